"""Tables, figures and the HTML report; reads artifacts only."""

from frugalfm.reporting.collect import collect_demo
from frugalfm.reporting.html import write_report
from frugalfm.reporting.table import render_table

__all__ = ["collect_demo", "render_table", "write_report"]

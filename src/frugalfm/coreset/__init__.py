"""Coresets: exact, streaming selection of sequences by their scores (DuckDB over Parquet)."""

from frugalfm.coreset.budgets import parse_budget
from frugalfm.coreset.choose import choose_rows, write_selection
from frugalfm.coreset.extract import copy_rows
from frugalfm.coreset.strategies import Strategy

__all__ = ["Strategy", "choose_rows", "copy_rows", "parse_budget", "write_selection"]

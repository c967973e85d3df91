"""How figures look: small SVGs for inlining, in colours that follow the page's light or dark.

A figure is drawn with matplotlib's objects (no pyplot, so no global state) and turned into SVG
without metadata, with text as paths, so that it looks the same everywhere and the same input gives
the same bytes. Every colour of the palette is replaced by a CSS variable of the page.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

__all__ = ["MODELS", "PALETTE", "SERIES", "Figure", "canvas", "colour", "finish", "style"]

INK, MUTED, GRID, PAGE = "#1c2127", "#6a7480", "#dfe3e8", "#fffffe"

# name: (light, dark); distinct for the common forms of colour blindness, after Okabe and Ito.
PALETTE = {
    "ink": (INK, "#e6e9ee"),
    "muted": (MUTED, "#98a2ae"),
    "grid": (GRID, "#353c45"),
    "page": (PAGE, "#15191e"),
    "slate": ("#56606b", "#b4bdc8"),
    "orange": ("#c2500a", "#f0834a"),
    "gold": ("#b07c00", "#e8b530"),
    "blue": ("#0068a8", "#5fb4ee"),
    "green": ("#00805c", "#35c898"),
    "pink": ("#a8437c", "#e08abd"),
    "area": ("#c9d0d8", "#4a535e"),
    "indigo": ("#3b3f8f", "#8b90e6"),
    "cyan": ("#6fb7d6", "#8fd3f0"),
    "teal": ("#2f8f83", "#4fbfb0"),
    "sand": ("#d6bd5a", "#e0cc7a"),
    "rose": ("#c25b6b", "#e88695"),
    "wine": ("#7d2152", "#c0588f"),
    "olive": ("#7f8030", "#b4b558"),
    "stone": ("#9aa2ac", "#7c8692"),
}
MODELS = {
    "random": ("slate", "s"),
    "top-influence": ("orange", "^"),
    "top-influence-by-length": ("gold", "D"),
    "coverage": ("blue", "o"),
    "full-softmax": ("green", "P"),
    "full-softmax1": ("pink", "X"),
    "untrained": ("muted", "v"),
}
SERIES = ("indigo", "cyan", "teal", "sand", "rose", "wine", "olive", "stone")
_STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "frugalfm",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Figure:
    """One figure of a report.

    Attributes
    ----------
    slug, section
        Its id on the page, and the heading under which it stands.
    title, caption, alt
        Plain text; `alt` says in words what is seen.
    svg
        An ``<svg>`` element.
    """

    slug: str
    section: str
    title: str
    caption: str
    alt: str
    svg: str


def colour(name: str) -> str:
    """Hex code of a colour of the palette, which `finish` turns into a variable."""
    return PALETTE[name][0]


def style() -> contextlib.AbstractContextManager[None]:
    """Within this context matplotlib draws in the style of the report."""
    context: contextlib.AbstractContextManager[None] = mpl.rc_context(_STYLE)
    return context


def canvas(rows: int = 1, columns: int = 1, *, height: float = 2.9, **options: Any) -> Any:
    """Make an empty figure of 4.4 inches width and its axes: ``(figure, axes)``."""
    figure = Canvas(figsize=(4.4, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def finish(figure: Any, slug: str, section: str, title: str, caption: str, alt: str) -> Figure:
    """Turn a drawn figure into SVG that can be inlined."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    return Figure(slug, section, title, caption, alt, _inline(buffer.getvalue(), slug, alt))


def _inline(text: str, slug: str, alt: str) -> str:
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    label = f'role="img" aria-label="{html.escape(alt, quote=True)}"'
    svg = re.sub(r"<svg[^>]*>", lambda _: f"<svg {box[0]} {label}>", svg, count=1)
    # Ids are unique on the page, whatever other figures it holds.
    svg = re.sub(r'\bid="', f'id="{slug}-', svg)
    svg = svg.replace("url(#", f"url(#{slug}-")
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{slug}-', svg)
    for name, (light, _) in PALETTE.items():
        svg = svg.replace(light, f"var(--{name})")
    # Presentation attributes know no variables; only styles do.
    svg = re.sub(r'\b(fill|stroke)="(var\([^"]*\))"', r'style="\1: \2"', svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()

"""The figure that `select` leaves beside a coreset: what was chosen, and from what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frugalfm.artifacts import write_atomically
from frugalfm.reporting.drawing import MODELS, SERIES, canvas, colour, style

__all__ = ["draw_selection"]

_MOST_SOURCES = 7
_DOTS_PER_INCH = 200


def draw_selection(report: Mapping[str, Any], path: Path) -> None:
    """Draw pool and coreset by influence, loss, length and (where they are known) source.

    Everything drawn is a histogram that the report holds already, so that it costs the same
    whatever the size of the pool. Histograms are shares of the sequences, not densities: bars may
    differ in width.

    Parameters
    ----------
    report
        From :func:`frugalfm.coreset.write_selection`.
    path
        PNG to write.
    """
    with style():
        panels = [
            ("influence", report["histograms"]["influence"]),
            ("loss", report["histograms"]["loss"]),
            ("length in residues", report["length_bins"]),
        ]
        panels = [(label, histogram) for label, histogram in panels if histogram["edges"]]
        sources = report["sources"]
        figure, axes = canvas(
            len(panels) + bool(sources), 1, height=1.9 * (len(panels) + bool(sources)),
            squeeze=False,
        )  # fmt: skip
        hue = colour(MODELS.get(report["strategy"], ("blue", "o"))[0])
        for place, (label, histogram) in zip(axes.flat, panels, strict=False):
            _draw_histogram(place, label, histogram, hue)
        axes.flat[0].legend(loc="upper right")
        if sources:
            _draw_sources(axes.flat[-1], sources)
        figure.suptitle(
            f"{report['strategy']}: {report['chosen']['sequences']:,} of "
            f"{report['pool']['sequences']:,} sequences",
            fontsize=10,
        )
        with write_atomically(path, "wb") as handle:
            figure.savefig(
                handle, format="png", dpi=_DOTS_PER_INCH, facecolor=colour("page"),
                metadata={"Software": None},
            )  # fmt: skip


def _draw_histogram(axes: Any, label: str, histogram: Mapping[str, Any], hue: str) -> None:
    edges = np.array(histogram["edges"], float)
    shares = {
        name: 100 * np.array(histogram[name], float) / max(sum(histogram[name]), 1)
        for name in ("pool", "chosen")
    }
    axes.stairs(shares["pool"], edges, fill=True, color=colour("area"), label="pool")
    axes.stairs(shares["chosen"], edges, color=hue, linewidth=1.6, label="coreset")
    if edges[0] > 0 and edges[-1] > 10 * edges[0]:
        axes.set_xscale("log")
    axes.set(xlabel=label, ylabel="% of sequences")


def _draw_sources(axes: Any, sources: Mapping[str, Mapping[str, int]]) -> None:
    """Draw two bars, pool and coreset, with a piece for each of the largest sources."""
    names = sorted(sources, key=lambda name: -sources[name]["pool"])
    if len(names) > _MOST_SOURCES:
        names = names[: _MOST_SOURCES - 1]
    rows = [[sources[name][of] for of in ("pool", "chosen")] for name in names]
    totals = np.array([sum(s[of] for s in sources.values()) for of in ("pool", "chosen")], float)
    if len(names) < len(sources):
        names = [*names, f"{len(sources) - len(names)} others"]
        rows.append((totals - np.sum(rows, axis=0)).tolist())
    left = np.zeros(2)
    for name, row, hue in zip(names, rows, SERIES, strict=False):
        share = 100 * np.array(row) / np.maximum(totals, 1)
        label = name.replace("$", r"\$")  # no formula
        axes.barh(
            [0, 1], share, left=left, height=0.7, label=label, color=colour(hue),
            edgecolor=colour("page"), linewidth=0.8,
        )  # fmt: skip
        left += share
    axes.set_yticks([0, 1], ["pool", "coreset"])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlabel="% of sequences", xlim=(0, 100))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.35), ncols=3, handlelength=1)

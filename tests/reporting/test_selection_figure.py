"""The figure of a selection: drawn from the report alone, whatever it lacks."""

import numpy as np
import pytest

from frugalfm.reporting.selection_figure import draw_selection


def report_of(sources):
    edges = np.geomspace(0.1, 100, 11).tolist()
    bars = {"edges": edges, "pool": list(range(10)), "chosen": [0] * 5 + [2] * 5}
    return {
        "strategy": "coverage-log",
        "pool": {"sequences": 45},
        "chosen": {"sequences": 10},
        "histograms": {"influence": bars, "loss": {"edges": [], "pool": [], "chosen": []}},
        "length_bins": bars | {"edges": list(range(10, 21))},
        "sources": sources,
    }


@pytest.mark.parametrize("number", [0, 1, 5, 40])
def test_a_figure_is_drawn_and_repeats(tmp_path, number):
    sources = {f"$source {n}$": {"pool": n + 1, "chosen": n % 3} for n in range(number)}
    for name in ("a", "b"):
        draw_selection(report_of(sources), tmp_path / name)
    content = (tmp_path / "a").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content == (tmp_path / "b").read_bytes()
    assert len(content) > 10_000

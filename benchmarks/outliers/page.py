"""The table, the figure and the page of finished recipes.

python -m benchmarks.outliers.page docs/results cpu=RUN/results.json h200=RUN/results.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.common import Dot, Page, draw_dots, show_mean, tabulate
from benchmarks.outliers.results import write_results

__all__ = ["draw", "main", "render_changes", "render_table", "render_verdicts"]

_COLUMNS = (
    ("val. loss", "loss", ".4f"),
    ("avg. kurtosis", "avg_kurtosis", ".3f"),
    ("max inf-norm FFN", "max_inf_norm", ".2f"),
    ("max inf-norm LN", "max_inf_norm_layer_norm", ".2f"),
    ("null", "null", ".3f"),
)


def render_table(content: dict[str, Any]) -> str:
    """Markdown: one row an arm; mean over seeds ± half of the 95 % interval."""
    widths = list(content["rows"][0]["increase"])
    forms = [(key, form) for _, key, form in _COLUMNS] + [(name, "+.4f") for name in widths]
    rows = [
        [arm["name"], *(show_mean(arm["values"].get(key), form) for key, form in forms)]
        for arm in content["arms"]
    ]
    return tabulate(["arm", *(head for head, _, _ in _COLUMNS), *widths], rows)


def render_changes(content: dict[str, Any]) -> str:
    """Markdown: what is left of the control's excesses, and differences of losses."""
    arms = [arm for arm in content["arms"] if "change" in arm]
    widths = list(content["rows"][0]["increase"])
    heads = ["arm", "control", "excess kurtosis", "FFN inf-norm excess", "LN inf-norm excess",
             "loss", *widths]  # fmt: skip
    rows = []
    for arm in arms:
        change = arm["change"]
        cells = [arm["name"], arm["against"]]
        for name in ("kurtosis", "inf_norm", "inf_norm_layer_norm"):
            found = change[name]
            cells.append(f"{found['control']:.3f} → {found['arm']:.3f}{_show_gone(found['gone'])}")
        cells += [show_mean(change[name], "+.4f") for name in ("loss", *widths)]
        rows.append(cells)
    return tabulate(heads, rows)


def _show_gone(gone: dict[str, Any] | None) -> str:
    """Change of an excess in per cent, and half of its interval."""
    if gone is None:
        return ""
    half = "" if gone["low"] is None else f" ± {(gone['high'] - gone['low']) / 2:.0%}"
    return f" ({-gone['mean']:+.0%}{half})"


def render_verdicts(content: dict[str, Any]) -> str:
    """One computed sentence per arm that has a control."""
    return "\n".join(f"- {a['verdict']['words']}" for a in content["arms"] if "verdict" in a)


def draw(content: dict[str, Any], path: Path) -> None:
    """One panel a measure: every arm's mean, its interval, and its single seeds."""
    widths = list(content["rows"][0]["increase"])
    panels = [
        ("validation loss", "loss"),
        ("excess kurtosis", "avg_kurtosis_excess"),
        ("max inf-norm, FFN", "max_inf_norm"),
        (f"loss added, {widths[-1]}", widths[-1]),
    ]

    def find(arm: dict[str, Any], key: str) -> Dot:
        rows = [row for row in content["rows"] if row["arm"] == arm["name"]]
        single = [row["increase"].get(key, row.get(key)) for row in rows]
        color = "0.5" if arm["against"] is None else "tab:blue"
        return Dot(**arm["values"][key], single=single, color=color)

    arms = content["arms"]
    dots = [(title, [find(arm, key) for arm in arms]) for title, key in panels]
    draw_dots(dots, [arm["name"] for arm in arms], path)


_INTRODUCTION = """# Which part removes the outliers?

Written by `python -m benchmarks.outliers.page`; every number below is measured, and every sentence
of a verdict computed from the numbers. The arms of a table share data, batches, masks, schedule
and number of steps, and differ in the attention, the optimizer or what they start from as their
names say; a converted arm is compared with the control that continues the same checkpoint for the
same steps. Kurtosis and inf-norms are GERM's measures (`frugalfm outliers`); an excess is what lies
above independent Gaussian values of the same width and spread, of inf-norms that of the site where
it is largest, of kurtosis without GERM's floor of 1e-6, which favours small activations. W8A8 and
the like are the nats that simulated min-max quantization of weights and activations adds to the
masked loss: *coarse* is one grid per tensor, *fine* one per weight channel and token. "null" is
the share of attention that goes to nothing. ± is half of a 95 % interval over seeds, of
differences and shares paired by seed; a share of an excess that may as well be no change is no
finding, however large.
The flattened arms are trained against excess kurtosis itself: their reaching the goal says that the
measure can be met, not that a model then quantizes better; see the W4A4 columns."""


def _describe(name: str, content: dict[str, Any]) -> str:
    settings = content["settings"]
    train = settings["train"]
    seeds = len(content["seeds"])
    return "\n\n".join(
        [
            f"## {content['title']}",
            f"{content['parameters'] / 1e6:.1f}M parameters, {seeds} seed(s), {train['steps']:,} "
            f"steps of {train['batch_tokens']:,} tokens, conversions of "
            f"{settings['convert'].get('steps', 0):,}; {content['seconds'] / 60:.0f} minutes of "
            "training in all.",
            render_table(content),
            f"![outliers and losses of all arms](outliers-{name}.png)",
            "Against the controls:",
            render_changes(content),
            render_verdicts(content),
        ]
    )


main = Page("outliers", _INTRODUCTION, draw, write_results, _describe).run

if __name__ == "__main__":
    sys.exit(main())

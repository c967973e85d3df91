"""The tables, the figure and the page of finished recipes.

python -m benchmarks.quantization.page docs/results cpu=RUN
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Page, show_mean, tabulate
from benchmarks.quantization.results import PUBLISHED, write_results

__all__ = ["draw", "main", "render_drops", "render_scores", "render_spared", "render_verdicts"]

_COLORS = ("0.4", "tab:blue", "tab:orange", "tab:green", "tab:red")


def render_scores(content: dict[str, Any]) -> str:
    """Markdown: average MCC, one row a method and model; ± half of the interval over seeds."""
    plain = {found["model"]: found["mcc"] for found in content["plain"]}

    def start(model: str) -> str:
        return show_mean(plain[model], ".3f")

    return _tabulate(content, content["cells"], content["models"], ["W16A16"], start,
                     lambda cell: show_mean(cell["mcc"], ".3f"))  # fmt: skip


def render_drops(content: dict[str, Any], key: str) -> str:
    """Markdown: average drop of MCC, or increase of the masked loss, from floating point."""
    return _tabulate(content, content["cells"], content["models"], [], lambda _: "",
                     lambda cell: show_mean(cell[key], "+.4f"))  # fmt: skip


def render_spared(content: dict[str, Any], key: str) -> str:
    """Markdown: share of the first model's drop, or increase, that the others are spared."""
    return _tabulate(content, content["spared"], content["models"][1:], [], lambda _: "",
                     lambda cell: _show_share(cell[key]))  # fmt: skip


def render_verdicts(content: dict[str, Any]) -> str:
    """One computed sentence a model."""
    words = [found["verdict"] for found in content["overall"] if "verdict" in found]
    return "\n".join(f"- {each}." for each in words)


def _show_share(found: dict[str, Any]) -> str:
    if found["mean"] is None or found["distinct"] is False:
        return "n.d."
    text = f"{found['mean']:.0%}"
    return text if found["low"] is None else f"{text} ({found['low']:.0%} to {found['high']:.0%})"


def _tabulate(
    content: dict[str, Any],
    cells: Sequence[dict[str, Any]],
    models: Sequence[str],
    before: list[str],
    start: Callable[[str], str],
    show: Callable[[dict[str, Any]], str],
) -> str:
    by_place = {(cell["method"], cell["model"], cell["scheme"]): cell for cell in cells}
    rows = []
    for method in content["methods"]:
        for model in models:
            row = [method, model, *(start(model) for _ in before)]
            for scheme in content["schemes"]:
                cell = by_place.get((method, model, scheme))
                row.append("" if cell is None else show(cell))
            rows.append(row)
    return tabulate(["method", "model", *before, *content["schemes"]], rows)


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw drops above and added losses below, one column a method, one line a model."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    methods, schemes = content["methods"], content["schemes"]
    cells = {(c["method"], c["scheme"], c["model"]): c for c in content["cells"]}
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(1.2 + 2.2 * len(methods), 5.0), layout="constrained")
        panels = figure.subplots(2, len(methods), sharex=True, sharey="row", squeeze=False)
        for column, method in enumerate(methods):
            for panel, key in zip(panels[:, column], ("drop", "increase"), strict=True):
                _draw_lines(panel, content, cells, method, key)
                panel.grid(axis="y", alpha=0.3)
                panel.axhline(0, color="0.7", lw=0.8)
            panels[0, column].set_title(method, fontsize=9)
            panels[1, column].set_xticks(range(len(schemes)), schemes, rotation=60)
        panels[0, 0].set_ylabel("average drop of MCC")
        panels[1, 0].set_ylabel("masked loss added, nats")
        panels[1, 0].set_yscale("symlog", linthresh=0.01)
        panels[0, 0].legend(fontsize=8)
        figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw_lines(
    panel: Any, content: dict[str, Any], cells: dict[Any, Any], method: str, key: str
) -> None:
    models = content["models"]
    for number, model in enumerate(models):
        offset = 0.12 * (number - (len(models) - 1) / 2)
        color = _COLORS[number % len(_COLORS)]
        points = [
            (place + offset, cells[method, scheme, model][key])
            for place, scheme in enumerate(content["schemes"])
            if (method, scheme, model) in cells
        ]
        for x, found in points:
            if found["low"] is not None:
                panel.plot([x, x], [found["low"], found["high"]], color=color, lw=1.5)
        panel.plot([x for x, _ in points], [found["mean"] for _, found in points], "o",
                   color=color, ms=4, label=model)  # fmt: skip


_INTRODUCTION = f"""# What low-bit schemes cost, by method and by model

Written by `python -m benchmarks.quantization.page`; every number below is measured, and every
sentence of a verdict computed from the numbers. All models of a table have had the same data,
batches, schedule and number of steps, continuation or conversion included; then each is tuned on
each task, quantized by each method, and scored on the task's test split. Quantization is
simulated: weights and inputs of the linears are rounded, everything else stays in fp32 (`frugalfm
quantize` lists what). W4A8 is 4-bit weights and 8-bit activations; A16 is weight-only. A drop is
MCC in floating point minus MCC quantized, averaged over tasks. ± is half of a 95 % interval over
seeds, each with its own pretraining, tuning and calibration.

The GERM paper (arXiv 2505.00598) claims {PUBLISHED:.2%} for quantization without saying how it is
computed. We read it as the relative reduction of the average drop against the vanilla model, and
give that share with Fieller's interval over seeds. Where vanilla's own drop cannot be told from 0
there is nothing of which to take a share: n.d."""


def _describe(name: str, content: dict[str, Any]) -> str:
    settings = content["settings"]
    train, convert = settings["train"], settings["convert"]
    steps = train["steps"] + convert.get("steps", 0)
    headline = content["headline"]
    return "\n\n".join(
        [
            f"## {content['title']}",
            f"{content['parameters'] / 1e6:.1f}M parameters, {len(content['seeds'])} seed(s), "
            f"{steps:,} steps of pretraining in all ({convert.get('steps', 0):,} of them "
            f"continued or converted); tasks: {', '.join(content['tasks'])}, of each at most "
            f"{settings['tune']['max_train']:,} rows to tune on; "
            f"{content['seconds'] / 60:.0f} minutes of quantizing and measuring in all.",
            "Average MCC:",
            render_scores(content),
            f"![drops and added losses](quantization-{name}.png)",
            f"Average drop of MCC over {', '.join(headline['methods'])} at "
            f"{', '.join(headline['schemes'])}:",
            render_verdicts(content),
            "Average drop of MCC:",
            render_drops(content, "drop"),
            f"Share of {content['models'][0]}'s drop that is spared:",
            render_spared(content, "drop"),
            "Masked loss added, nats a target:",
            render_drops(content, "increase"),
            f"Share of {content['models'][0]}'s added loss that is spared:",
            render_spared(content, "increase"),
        ]
    )


main = Page("quantization", _INTRODUCTION, draw, write_results, _describe).run

if __name__ == "__main__":
    sys.exit(main())

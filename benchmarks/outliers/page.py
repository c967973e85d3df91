"""The table, the figure and the page of finished recipes.

python -m benchmarks.outliers.page docs/results cpu=RUN/results.json h200=RUN/results.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.outliers.results import write_results

from frugalfm.errors import InputError

__all__ = ["draw", "main", "render_table", "render_verdicts", "write_page"]

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
    heads = ["arm", *(head for head, _, _ in _COLUMNS), *widths]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm in content["arms"]:
        cells = [arm["name"]]
        cells += [_cell(arm["values"].get(key), form) for _, key, form in _COLUMNS]
        cells += [_cell(arm["values"][name], "+.4f") for name in widths]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict[str, float] | None, form: str) -> str:
    if found is None:
        return ""
    text = format(found["mean"], form)
    if found["low"] is None:
        return text
    return f"{text} ± {format(found['high'] - found['mean'], form.lstrip('+'))}"


def render_changes(content: dict[str, Any]) -> str:
    """Markdown: what is left of the control's excesses, and differences of losses."""
    arms = [arm for arm in content["arms"] if "change" in arm]
    widths = list(content["rows"][0]["increase"])
    heads = ["arm", "control", "excess kurtosis", "FFN inf-norm excess", "LN inf-norm excess",
             "loss", *widths]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for arm in arms:
        change = arm["change"]
        cells = [arm["name"], arm["against"]]
        for name in ("kurtosis", "inf_norm", "inf_norm_layer_norm"):
            found = change[name]
            gone = found["gone"]
            share = "" if gone is None or gone["mean"] > 1 else f" ({-gone['mean']:+.0%})"
            cells.append(f"{found['control']:.3f} → {found['arm']:.3f}{share}")
        cells += [_cell(change[name], "+.4f") for name in ("loss", *widths)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_verdicts(content: dict[str, Any]) -> str:
    """One computed sentence per arm that has a control."""
    return "\n".join(f"- {a['verdict']['words']}" for a in content["arms"] if "verdict" in a)


def draw(content: dict[str, Any], path: Path) -> None:
    """One panel a measure: every arm's mean, its interval, and its single seeds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    widths = list(content["rows"][0]["increase"])
    panels = [
        ("validation loss", "loss"),
        ("excess kurtosis", "avg_kurtosis_excess"),
        ("max inf-norm, FFN", "max_inf_norm"),
        (f"loss added, {widths[-1]}", widths[-1]),
    ]
    arms = content["arms"][::-1]
    with mpl.rc_context({"font.size": 9}):
        size = (2.2 + 2.3 * len(panels), 0.9 + 0.28 * len(arms))
        figure = Figure(figsize=size, layout="constrained")
        for panel, (title, key) in zip(
            figure.subplots(1, len(panels), sharey=True), panels, strict=True
        ):
            for height, arm in enumerate(arms):
                color = "0.5" if arm["against"] is None else "tab:blue"
                found = arm["values"][key]
                if found["low"] is not None:
                    panel.plot([found["low"], found["high"]], [height] * 2, color=color, lw=2)
                rows = [row for row in content["rows"] if row["arm"] == arm["name"]]
                single = [row["increase"].get(key, row.get(key)) for row in rows]
                panel.plot(single, [height] * len(single), "|", color=color, ms=7, alpha=0.6)
                panel.plot(found["mean"], height, "o", color=color, ms=4)
            panel.set_title(title, fontsize=9)
            panel.grid(axis="x", alpha=0.3)
            panel.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
        figure.savefig(path, dpi=130, metadata={"Software": None})


def write_page(contents: list[tuple[str, dict[str, Any]]], folder: Path) -> Path:
    """Write ``outliers.md`` with a figure, JSON and Parquet for each finished recipe.

    Parameters
    ----------
    contents
        A short name for files, and what :func:`~benchmarks.outliers.results.collect` gave.
    folder
        For the page and all beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_INTRODUCTION]
    for name, content in contents:
        draw(content, folder / f"outliers-{name}.png")
        write_results(content, folder / f"outliers-{name}")
        parts.append(_describe(name, content))
    page = folder / "outliers.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page


_INTRODUCTION = """# Which part removes the outliers?

Written by `python -m benchmarks.outliers.page`; every number below is measured, and every sentence
of a verdict computed from the numbers. The arms of a table share data, batches, masks, schedule
and number of steps, and differ in the attention, the optimizer or what they start from as their
names say; a converted arm is compared with the control that continues the same checkpoint for the
same steps. Kurtosis and inf-norms are GERM's measures (`frugalfm outliers`); an excess is what lies
above independent Gaussian values of the same width and spread. W8A8 and the like are the nats that
simulated min-max quantization of weights and activations adds to the masked loss: *coarse* is one
grid per tensor, *fine* one per weight channel and token. "null" is the share of attention that
goes to nothing. ± is half of a 95 % interval over seeds.
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


def main(arguments: list[str] | None = None) -> int:
    """Write the page of the results named on the command line."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) < 2 or any("=" not in word for word in words[1:]):
        print(__doc__, file=sys.stderr)
        return 2
    contents = []
    for word in words[1:]:
        name, _, path = word.partition("=")
        try:
            contents.append((name, json.loads(Path(path).read_text())))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: no results of this benchmark ({error})") from None
    print(write_page(contents, Path(words[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The figure, the table and the page of finished recipes.

python -m benchmarks.pruning.page docs/results rna-cpu=RUN protein-cpu=RUN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.pruning.results import write_results

from frugalfm.errors import InputError

__all__ = ["draw", "main", "render_table", "write_page"]

_COLORS = {"bound": "0.55", "random": "tab:orange", "chosen": "tab:blue"}


def render_table(content: dict[str, Any]) -> str:
    """Markdown: one row an arm, one column a task and way, with the half-width of its interval."""
    values = {(v["task"], v["way"], v["arm"]): v for v in content["values"]}
    settings = list(dict.fromkeys((task, way) for task, way, _ in values))
    against = content["goal"]["against"]
    better = {(d["task"], d["way"], d["arm"]): d for d in content["differences"]
              if d["rival"] == against}  # fmt: skip
    names = [f"{task} {content['tasks'][task]} ({way})" for task, way in settings]
    lines = [
        f"| arm | sequences | share | epochs | val. loss | {' | '.join(names)} |",
        f"|---|---|---|---|---|{'---|' * len(names)}",
    ]
    for arm in content["arms"]:
        training = arm["training"]
        cells = [arm["name"], f"{arm['sequences']:,}", f"{arm['share']:.2%}"]
        cells.append(f"{training['epochs']:.0f}" if "epochs" in training else "")
        cells.append(f"{training['validation_loss']:.3f}" if "validation_loss" in training else "")
        for task, way in settings:
            found = values[task, way, arm["name"]]
            half = (found["high"] - found["low"]) / 2
            cells.append(f"{found['value']:.3f} ± {half:.3f}{_mark(better, task, way, arm)}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _mark(better: dict[Any, dict[str, Any]], task: str, way: str, arm: dict[str, Any]) -> str:
    found = better.get((task, way, arm["name"]))
    if found is None or found["low"] <= 0 <= found["high"]:
        return ""
    return " (+)" if found["low"] > 0 else " (-)"


def draw(content: dict[str, Any], path: Path) -> None:
    """One panel a task and way: every arm's mean, its interval, and its single seeds."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    values = {(v["task"], v["way"], v["arm"]): v for v in content["values"]}
    settings = list(dict.fromkeys((task, way) for task, way, _ in values))
    arms = content["arms"][::-1]
    with mpl.rc_context({"svg.fonttype": "none", "font.size": 9}):
        size = (2.2 + 2.6 * len(settings), 0.9 + 0.28 * len(arms))
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
        for panel, (task, way) in zip(panels, settings, strict=True):
            for height, arm in enumerate(arms):
                found = values[task, way, arm["name"]]
                color = _COLORS["bound" if arm["bound"] else
                                "random" if arm["strategy"] == "random" else "chosen"]  # fmt: skip
                panel.plot([found["low"], found["high"]], [height] * 2, color=color, lw=2)
                single = [r["value"] for r in content["runs"] if (r["task"], r["way"], r["arm"])
                          == (task, way, arm["name"])]  # fmt: skip
                panel.plot(single, [height] * len(single), "|", color=color, ms=7, alpha=0.6)
                panel.plot(found["value"], height, "o", color=color, ms=4)
            panel.set_title(f"{task}\n{content['tasks'][task]}, {way}", fontsize=9)
            panel.grid(axis="x", alpha=0.3)
        panels[0].set_yticks(range(len(arms)), [arm["name"] for arm in arms])
        figure.savefig(path, dpi=130)


def write_page(contents: list[tuple[str, dict[str, Any]]], folder: Path) -> Path:
    """Write ``pruning.md`` with a figure, JSON and Parquet for each finished recipe.

    Parameters
    ----------
    contents
        A short name for files, and what :func:`~benchmarks.pruning.results.collect` gave.
    folder
        For the page and all beside it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_INTRODUCTION]
    for name, content in contents:
        draw(content, folder / f"pruning-{name}.png")
        write_results(content, folder / f"pruning-{name}")
        parts.append(_describe(name, content))
    page = folder / "pruning.md"
    page.write_text("\n\n".join(parts) + "\n")
    return page


_INTRODUCTION = """# Does pruning pay? The claim, tested

Written by `python -m benchmarks.pruning.page`; every number below is measured, and every
sentence of a verdict computed from the numbers. All models of a recipe are pretrained from
scratch for the same number of optimizer steps on batches of the same number of tokens; only the
data differ. ± is half of a 95 % interval over seeds and test sequences; (+) and (-) are better
and worse than ten times as much random data by the paired test at 5 %, not corrected for the
number of comparisons."""


def _describe(name: str, content: dict[str, Any]) -> str:
    arms = [arm for arm in content["arms"] if arm["sources"]]
    seconds = sum(content["seconds"].values())
    parts = [
        f"## {content['title']}",
        f"Pool: {content['pool']:,} sequences; seeds: {len(content['seeds'])}; "
        f"{seconds / 60:.0f} minutes of computing in all.",
        render_table(content),
        f"![values and intervals](pruning-{name}.png)",
        "**Verdict.** " + "\n- ".join(content["verdict"]["words"]),
    ]
    if content["sources"] and len(content["sources"]) > 1:
        parts.append(_render_sources(content["sources"], arms))
    return "\n\n".join(parts)


def _render_sources(sources: list[dict[str, Any]], arms: list[dict[str, Any]]) -> str:
    """What the scores say of each source, and its share of each coreset (of the first seed)."""
    names = " | ".join(arm["name"] for arm in arms)
    lines = [
        f"| source | length | loss | median influence | share of the pool | {names} |",
        f"|---|---|---|---|---|{'---|' * len(arms)}",
    ]
    for entry in sources:
        shares = " | ".join(f"{arm['sources'].get(entry['source'], 0):.1%}" for arm in arms)
        lines.append(
            f"| {entry['source']} | {entry['length']:.0f} | {entry['loss']:.2f} "
            f"| {entry['influence']:.3g} | {entry['share']:.1%} | {shares} |"
        )
    return "Sources, their scores, and their share of each coreset:\n\n" + "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Write the page into a folder from ``NAME=RUN`` of finished runs."""
    if len(arguments) < 2 or not all("=" in word for word in arguments[1:]):
        print("usage: python -m benchmarks.pruning.page FOLDER NAME=RUN ...", file=sys.stderr)
        return 2
    contents = []
    for word in arguments[1:]:
        name, _, run = word.partition("=")
        found = Path(run) / "results.json"
        if not found.is_file():
            raise InputError(f"{found}: no such file; finish the run first")
        contents.append((name, json.loads(found.read_text())))
    print(f"{write_page(contents, Path(arguments[0]))}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

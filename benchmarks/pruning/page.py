"""The figure, the table and the page of finished recipes.

python -m benchmarks.pruning.page docs/results rna-cpu=RUN protein-cpu=RUN
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from benchmarks.common import Dot, Page, draw_dots, tabulate
from benchmarks.pruning.results import LEVEL, write_results

__all__ = ["draw", "main", "render_table"]

_COLORS = {"bound": "0.55", "random": "tab:orange", "chosen": "tab:blue"}


def render_table(content: dict[str, Any]) -> str:
    """Markdown: one row an arm, one column a task and way, with the half-width of its interval."""
    values = {(v["task"], v["way"], v["arm"]): v for v in content["values"]}
    settings = list(dict.fromkeys((task, way) for task, way, _ in values))
    against = content["goal"]["against"]
    better = {(d["task"], d["way"], d["arm"]): d for d in content["differences"]
              if d["rival"] == against}  # fmt: skip
    names = [f"{task} {content['tasks'][task]} ({way})" for task, way in settings]
    rows = []
    for arm in content["arms"]:
        training = arm["training"]
        cells = [arm["name"], f"{arm['sequences']:,}", f"{arm['share']:.2%}"]
        cells.append(f"{training['steps']:,.0f}" if "steps" in training else "")
        cells.append(f"{training['epochs']:.0f}" if "epochs" in training else "")
        cells.append(f"{training['validation_loss']:.3f}" if "validation_loss" in training else "")
        for task, way in settings:
            found = values[task, way, arm["name"]]
            cells.append(
                f"{found['value']:.3f} ± {_half(found):.3f}{_mark(better, task, way, arm)}"
            )
        rows.append(cells)
    return tabulate(["arm", "sequences", "share", "steps", "epochs", "val. loss", *names], rows)


def _mark(better: dict[Any, dict[str, Any]], task: str, way: str, arm: dict[str, Any]) -> str:
    found = better.get((task, way, arm["name"]))
    if found is None or found["low"] <= 0 <= found["high"]:
        return ""
    star = "*" if found.get("p_holm", 1) < LEVEL else ""
    return f" (+{star})" if found["low"] > 0 else f" (-{star})"


def draw(content: dict[str, Any], path: Path) -> None:
    """One panel a task and way: every arm's mean, its interval, and its single seeds."""
    values = {(v["task"], v["way"], v["arm"]): v for v in content["values"]}
    settings = list(dict.fromkeys((task, way) for task, way, _ in values))

    def find(task: str, way: str, arm: dict[str, Any]) -> Dot:
        found = values[task, way, arm["name"]]
        runs = [r for r in content["runs"] if (r["task"], r["way"], r["arm"])
                == (task, way, arm["name"])]  # fmt: skip
        kind = "bound" if arm["bound"] else "random" if arm["strategy"] == "random" else "chosen"
        single = [run["value"] for run in runs]
        return Dot(found["value"], found["low"], found["high"], single, _COLORS[kind])

    arms = content["arms"]
    panels = [
        (f"{task}\n{content['tasks'][task]}, {way}", [find(task, way, arm) for arm in arms])
        for task, way in settings
    ]
    draw_dots(panels, [arm["name"] for arm in arms], path)


_INTRODUCTION = """# Does pruning pay? The claim, tested

Written by `python -m benchmarks.pruning.page`; every number below is measured, and every
sentence of a verdict computed from the numbers. All models of a recipe but the reference are
pretrained from scratch for the same number of optimizer steps on batches of the same number of
tokens; only the data differ. The reference, by which all sequences are scored, is taken as given:
its steps and the scores, which random data do without, come on top. ± is half of a 95 % interval
over seeds and test sequences; (+) and (-) are better and worse than ten times as much random data
by the paired test at 5 %, and with * also after Holm's correction for all coresets and
measurements of the recipe."""


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
    if content.get("losses"):
        parts.append(_render_losses(content))
        if content["losses"]["by_source"]:
            parts.append(_render_sources_losses(content))
    if content["sources"] and len(content["sources"]) > 1:
        parts.append(_render_sources(content["sources"], arms))
    return "\n\n".join(parts)


def _render_losses(content: dict[str, Any]) -> str:
    """The masked loss on held-out sequences, and how far it is from the rival's."""
    losses, rival = content["losses"], content["goal"]["against"]
    values = {(v["mean"], v["arm"]): v for v in losses["values"]}
    differences = {(d["mean"], d["arm"]): d for d in losses["differences"]}
    means = list(dict.fromkeys(mean for mean, _ in values))
    rows = []
    for name in dict.fromkeys(arm for _, arm in values):
        row = [name]
        for mean in means:
            row.append(f"{values[mean, name]['value']:.4f}")
            found = differences.get((mean, name))
            row.append(f"{found['value']:+.4f} ± {_half(found):.4f}" if found else "")
        rows.append(row)
    heads = [head for mean in means for head in (f"mean over {mean}", f"minus {rival}'s, paired")]
    left_out = f" ({losses['left_out']} more are in the pool, too)" if losses["left_out"] else ""
    return (
        f"Masked loss on {losses['sequences']} held-out sequences{left_out}, every residue "
        f"predicted once, in nats (lower is better):\n\n{tabulate(['arm', *heads], rows)}"
    )


def _render_sources_losses(content: dict[str, Any]) -> str:
    """The losses of coresets within each source, less the rival's."""
    entries = content["losses"]["by_source"]
    arms = [arm["name"] for arm in content["arms"] if not arm["bound"]]
    found = {(e["source"], e["arm"]): e for e in entries}
    arms = [arm for arm in arms if any(own == arm for _, own in found)]
    rows = []
    for source, count in {e["source"]: e["sequences"] for e in entries}.items():
        cells = [found[source, arm] for arm in arms]
        rows.append([source, str(count), *(f"{c['value']:+.3f} ± {_half(c):.3f}" for c in cells)])
    return (
        f"The same within each source, minus {content['goal']['against']}'s, paired:\n\n"
        f"{tabulate(['source', 'held out', *arms], rows)}"
    )


def _half(found: dict[str, Any]) -> float:
    return float(found["high"] - found["low"]) / 2


def _render_sources(sources: list[dict[str, Any]], arms: list[dict[str, Any]]) -> str:
    """What the scores say of each source, and its share of each coreset (of the first seed)."""
    heads = ["source", "length", "loss", "median influence", "share of the pool"]
    rows = [
        [
            entry["source"],
            f"{entry['length']:.0f}",
            f"{entry['loss']:.2f}",
            f"{entry['influence']:.3g}",
            f"{entry['share']:.1%}",
            *(f"{arm['sources'].get(entry['source'], 0):.1%}" for arm in arms),
        ]
        for entry in sources
    ]
    table = tabulate([*heads, *(arm["name"] for arm in arms)], rows)
    return f"Sources, their scores, and their share of each coreset:\n\n{table}"


main = Page("pruning", _INTRODUCTION, draw, write_results, _describe).run

if __name__ == "__main__":
    sys.exit(main())

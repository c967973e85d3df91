"""Pages of what stages cost, written from the JSON files of their benchmarks.

python -m benchmarks.pages scoring docs/results/scoring.md scoring.json scoring-bf16.json
python -m benchmarks.pages estimate docs/results/estimate.md estimate.json --note "on one core"
python -m benchmarks.pages selection docs/results/selection.md selection.json

Each file is a section, and every number and verdict is computed from it; the note says what it does
not know of the machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import guard, tabulate

from frugalfm.errors import InputError

__all__ = [
    "EXACT",
    "HEAD",
    "RELEASED",
    "describe_estimate",
    "describe_scores",
    "describe_selection",
    "main",
]

Content = dict[str, Any]

HEAD, EXACT = "head, 7 groups", "all layers, diagonal, 7 groups"
RELEASED = "the released way, two passes"
"""Rows of the scores that others are compared with."""


@dataclass(frozen=True)
class Goal:
    """Something to be reached; `value` is None where it was not measured."""

    what: str
    value: float | None
    bound: float
    most: bool = True

    def cells(self) -> tuple[str, str, str, str]:
        """One row of the table of goals."""
        bound = f"at {'most' if self.most else 'least'} {self.bound:g}"
        if self.value is None:
            return self.what, bound, "", "not measured"
        met = self.value <= self.bound if self.most else self.value >= self.bound
        return self.what, bound, f"{self.value:.4g}", "reached" if met else "**not reached**"


def show_goals(goals: Iterator[Goal]) -> str:
    """Write what was to be reached, and whether it was."""
    return tabulate(["goal", "", "measured", ""], [goal.cells() for goal in goals])


def _join(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {form.format(value)}" for name, value in values.items())


# --- scoring --------------------------------------------------------------------------------------

_SCORING = """# What scores cost

`python -m benchmarks.scoring`{note}: seconds of scoring the same sequences, beside the forward
passes of the whole model alone on the same batches. Contenders take turns, and ratios are of
medians. The released way (arXiv 2512.12932, written from its description) differentiates by
vmap(jacrev) in fp32 with everything padded to 1024 tokens; it runs on a few of the sequences, and
its seconds are scaled to all of them and to its two passes. Agreement is Spearman's correlation and
the Jaccard index of the top 10 %."""

SPARED = {"fp32": 12, "bf16": 30}
"""Goal: how many times a mask group of the head's score the released way costs."""


def describe_scores(content: Content) -> str:
    """Write what scores cost, where the time goes, and which of them agree."""
    options, scores = content["options"], content["scores"]
    model = options["model_size"] + (", trained briefly" if int(options["train_steps"]) else "")
    if options["checkpoint"] != "None":
        model = Path(options["checkpoint"]).name
    heads = ["score", "passes", "seconds", "x its forward passes", "released / this"]
    heads += [f"Spearman, top 10 % with *{truth}*" for truth in (HEAD, EXACT)]
    ordered = sorted(scores.items(), key=lambda item: item[1]["seconds"])
    return "\n\n".join(
        [
            f"## {options['precision']}, {Path(options['pool']).name}",
            f"{model} on {options['device']}; {int(options['sequences']):,} sequences of "
            f"{Path(options['pool']).name}, {int(options['subset']):,} of them for the Fisher "
            f"matrices; batches of {int(options['batch_tokens']):,} tokens.",
            tabulate(heads, [_show_score(scores, name, row) for name, row in ordered]),
            _find_best(scores, EXACT if EXACT in scores else HEAD),
            f"Where the time of *{HEAD}* goes: {_join(content['shares'], '{:.1%}')}. Peak memory, "
            f"in parts of one size: {_join(content['memory_mb'], '{:.0f} MB')}.",
            show_goals(_judge_scores(content)),
        ]
    )


def _show_score(scores: Content, name: str, row: Content) -> list[str]:
    agreement = row.get("agreement", {})
    return [
        name,
        str(row["passes"]),
        f"{row['seconds']:.2f}",
        f"{row['ratio']:.3f}",
        f"{scores[RELEASED]['seconds'] / row['seconds']:.1f}",
        *("{:.3f}, {:.2f}".format(*agreement.get(truth, ())) if truth in agreement else ""
          for truth in (HEAD, EXACT)),
    ]  # fmt: skip


def _find_best(scores: Content, truth: str) -> str:
    """Name the scores that agree better than every cheaper one."""
    best: list[str] = []
    highest = -1.0
    for name, row in sorted(scores.items(), key=lambda item: item[1]["seconds"]):
        rank = row.get("agreement", {truth: [-1.0]})[truth][0]
        if name != truth and rank > highest:
            share = row["seconds"] / scores[truth]["seconds"]
            best.append(f"{name} ({rank:.3f} for {share:.1%} of its time)")
            highest = rank
    return f"The best for what they cost, by ranks beside *{truth}*: {'; '.join(best)}."


def _judge_scores(content: Content) -> Iterator[Goal]:
    scores, bound = content["scores"], SPARED[content["options"]["precision"]]
    ratios = {name: row["ratio"] for name, row in scores.items() if name.startswith("head,")}
    worst = max(ratios, key=lambda name: ratios[name], default="nothing")
    what = f"score of the head beside its forward passes, the worst of {len(ratios)} (*{worst}*)"
    yield Goal(what, ratios.get(worst), 1.05)
    for name in ("head, 1 group", HEAD):
        spared = None
        if name in scores:
            group = scores[name]["seconds"] / scores[name]["passes"]
            spared = scores[RELEASED]["seconds"] / group
        what = f"the released way in fp32 beside a mask group of *{name}*"
        yield Goal(what, spared, bound, most=False)
    peaks = list(content["memory_mb"].values())
    growth = peaks[-1] / peaks[0] if len(peaks) > 1 else None
    yield Goal("peak memory beside that of an eighth of the pool", growth, 1.05)


# --- estimate -------------------------------------------------------------------------------------

_ESTIMATE = """# What an estimate is worth

`python -m benchmarks.estimate`{note}: `frugalfm estimate` predicts a small plan; then every stage
of it runs on the same machine in a process of its own, whose seconds (without its start and
imports), peak of memory and bytes on disk are measured. Less than three seconds, or than a megabyte
on disk, is shown and not judged."""

NEAR = 0.25
"""Goal: how far a prediction may be from what is measured."""


def describe_estimate(content: Content) -> str:
    """Write what was predicted, and what then happened."""
    options, rows = content["options"], content["rows"]
    spent = sum(row["measured"] for row in rows if row["what"] == "seconds")
    gaps = [abs(row["ratio"] - 1) for row in rows if row["judged"]]
    good = sum(gap <= NEAR for gap in gaps)
    what = f"distance of the ratios from 1, the worst of {len(gaps)}; {good} are within"
    return "\n\n".join(
        [
            f"## {options['model']}, {options['precision']}",
            f"{int(options['sequences']):,} sequences of {Path(options['pool']).name}, a coreset "
            f"of {options['budget']}, {int(options['steps']):,} steps of "
            f"{int(options['batch_tokens']):,} tokens, on {options['device']}. The estimate took "
            f"{content['probe_seconds']:.0f} s, the plan {spent:.0f} s.",
            tabulate(
                ["stage", "", "predicted", "measured", "ratio", ""], map(_show_prediction, rows)
            ),
            show_goals(iter([Goal(what, max(gaps, default=None), NEAR)])),
        ]
    )


def _show_prediction(row: Content) -> list[str]:
    in_time = row["what"] == "seconds"
    what, unit, size = ("time", "s", 1) if in_time else (row["what"].replace("_", " "), "MB", 1e6)
    amounts = [f"{row[key] / size:,.1f} {unit}" for key in ("predicted", "measured")]
    verdict = "" if abs(row["ratio"] - 1) <= NEAR else "**outside**"
    verdict = verdict if row["judged"] else "not judged"
    return [row["stage"], what, *amounts, f"{row['ratio']:.2f}", verdict]


# --- selection ------------------------------------------------------------------------------------

_SELECTION = """# What selection costs

`python -m benchmarks.selection`{note}: every strategy on log-normal scores in Parquet as `frugalfm
score` writes them, beside DuckDB reading each column that selection needs, ids included, once: the
scan. Each runs in a process of its own; scans and strategies take turns, and a ratio is that of a
strategy and the mean of the scans before and after it, of several rounds the median. The released
way, written from its description, holds all scores in memory and sorts them; it reads nothing but
the scores, and writes nothing."""

_COSTS = {
    "seconds": ("s", ".1f"),
    "cpu_seconds": ("CPU-s", ".1f"),
    "times_scan": ("x scan", ".2f"),
    "times_scan_cpu": ("x scan, CPU", ".2f"),
    "peak_mb": ("peak MiB", ".0f"),
}


def describe_selection(content: Content) -> str:
    """Write what strategies cost beside a scan."""
    rows = [
        [row["what"], *(format(row[key], form) if key in row else "" for key, (_, form) in
                        _COSTS.items())]
        for row in content["results"]
    ]  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return "\n\n".join(
        [
            f"## {content['rows']:,} scores",
            f"{content['budget']} chosen, a memory limit of {content['memory_limit']}, "
            f"{content['rounds']} round(s), {content['cpus']} CPUs; {versions}.",
            tabulate(["", *(head for head, _ in _COSTS.values())], rows),
            show_goals(_judge_selection(content["results"])),
        ]
    )


def _judge_selection(results: Sequence[Content]) -> Iterator[Goal]:
    ours = [r for r in results if "times_scan" in r and not r["what"].startswith("released")]
    for what, key, unit, bound in (
        ("time beside the scan's", "times_scan", 1.0, 1.5),
        ("peak memory in GB", "peak_mb", 2**20 / 1e9, 2.0),
    ):
        values = {row["what"]: unit * row[key] for row in ours}
        worst = max(values, key=lambda name: values[name], default="nothing")
        within = sum(value <= bound for value in values.values())
        words = f"{what}, the worst of {len(values)} strategies (*{worst}*); {within} are within"
        yield Goal(words, values.get(worst), bound)


# --- the command line -----------------------------------------------------------------------------

PAGES: dict[str, tuple[str, Callable[[Content], str]]] = {
    "scoring": (_SCORING, describe_scores),
    "estimate": (_ESTIMATE, describe_estimate),
    "selection": (_SELECTION, describe_selection),
}


def main(words: list[str] | None = None) -> int:
    """Write a page; returns the exit status."""
    parser = argparse.ArgumentParser(prog="benchmarks.pages", description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=PAGES)
    parser.add_argument("page", type=Path, help="Markdown to write")
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of the benchmark")
    parser.add_argument("--note", help="on which machine, and what else was running")
    return guard(_run, parser.parse_args(words))


def _run(options: argparse.Namespace) -> int:
    introduction, describe = PAGES[options.benchmark]
    parts = [introduction.format(note=f", {options.note}" if options.note else "")]
    for path in options.results:
        try:
            parts.append(describe(json.loads(path.read_text())))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: no results; finish the run first ({error})") from None
        except (KeyError, TypeError, AttributeError) as error:
            what = f"no results of the benchmark {options.benchmark}"
            raise InputError(f"{path}: {what} ({type(error).__name__}: {error})") from None
    options.page.write_text("\n\n".join(parts) + "\n")
    print(f"{options.page}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())

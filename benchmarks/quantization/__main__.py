"""Run a recipe of the quantization benchmark: train, tune, quantize, measure, compare.

    python -m benchmarks.quantization recipes/quantization/cpu.toml --data ../shared/data/dna \
        --out RUN

The same command continues where a run was left or killed, cell by cell. With
--stop-after-minutes it leaves by itself, with exit status 3. Several processes may share one RUN,
each with seeds of its own (--set "seeds=[0]"); the recipe as it is then collects them all. Ends
with RUN/results.json, results.parquet and results.png, for ``python -m
benchmarks.quantization.page``.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.common import guard, limit_time, make_parser
from benchmarks.quantization.page import draw, render_drops, render_scores, render_verdicts
from benchmarks.quantization.recipe import Recipe
from benchmarks.quantization.results import collect, write_results
from benchmarks.quantization.running import run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    data = "folder with pool.fasta.gz, dnabert2_tokenizer and GUE"
    return guard(_run, make_parser("quantization", __doc__, data).parse_args(arguments))


def _run(options: argparse.Namespace) -> int:
    recipe = Recipe.load(options.recipe, options.set)
    with limit_time(options.stop_after_minutes):
        rows = run(recipe, options.data, options.out, options.device)
    content = collect(recipe, rows)
    write_results(content, options.out / "results")
    draw(content, options.out / "results.png")
    parts = [
        render_scores(content),
        render_drops(content, "drop"),
        render_drops(content, "increase"),
        render_verdicts(content),
    ]
    print("\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())

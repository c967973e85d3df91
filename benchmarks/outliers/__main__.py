"""Run a recipe of the outlier benchmark: train, convert, measure, compare.

    python -m benchmarks.outliers recipes/outliers/cpu.toml --data POOL.fasta.gz --tokenizer DIR \
        --out RUN

The same command continues where a run was left or killed. With --stop-after-minutes it leaves by
itself, with exit status 3. Ends with RUN/results.json, results.parquet and results.png, for
``python -m benchmarks.outliers.page``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.common import guard, limit_time, make_parser
from benchmarks.outliers.page import draw, render_changes, render_table, render_verdicts
from benchmarks.outliers.recipe import Recipe
from benchmarks.outliers.results import collect, write_results
from benchmarks.outliers.running import run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = make_parser("outliers", __doc__, "FASTA of DNA")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of DNABERT-2's")
    return guard(_run, parser.parse_args(arguments))


def _run(options: argparse.Namespace) -> int:
    recipe = Recipe.load(options.recipe, options.set)
    with limit_time(options.stop_after_minutes):
        rows = run(recipe, options.data, options.tokenizer, options.out, options.device)
    content = collect(recipe, rows)
    write_results(content, options.out / "results")
    draw(content, options.out / "results.png")
    print("\n\n".join([render_table(content), render_changes(content), render_verdicts(content)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

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

from benchmarks.common import UNFINISHED, OutOfTime
from benchmarks.outliers.page import draw, render_changes, render_table, render_verdicts
from benchmarks.outliers.recipe import load_recipe
from benchmarks.outliers.results import collect, write_results
from benchmarks.outliers.running import run

from frugalfm.errors import FrugalError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parse(arguments)
    try:
        recipe = load_recipe(options.recipe, options.set)
        rows = run(
            recipe,
            options.data,
            options.tokenizer,
            options.out,
            device=options.device,
            minutes=options.stop_after_minutes,
        )
    except OutOfTime:
        print("out of time; the same command continues", file=sys.stderr)
        return UNFINISHED
    except FrugalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    content = collect(recipe, rows)
    write_results(content, options.out / "results")
    draw(content, options.out / "results.png")
    print("\n\n".join([render_table(content), render_changes(content), render_verdicts(content)]))
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.outliers", description=__doc__.splitlines()[0]
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="FASTA of DNA")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of DNABERT-2's")
    parser.add_argument("--out", type=Path, required=True, help="for all artifacts and results")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--stop-after-minutes", type=float)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change the recipe")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

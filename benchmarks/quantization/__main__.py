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
from pathlib import Path

from benchmarks.common import UNFINISHED, OutOfTime
from benchmarks.quantization.page import draw, render_drops, render_scores, render_verdicts
from benchmarks.quantization.recipe import load_recipe
from benchmarks.quantization.results import collect, write_results
from benchmarks.quantization.running import run

from frugalfm.errors import FrugalError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parse(arguments)
    try:
        recipe = load_recipe(options.recipe, options.set)
        rows = run(
            recipe,
            options.data,
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
    parts = [
        render_scores(content),
        render_drops(content, "drop"),
        render_drops(content, "increase"),
        render_verdicts(content),
    ]
    print("\n\n".join(parts))
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.quantization", description=__doc__.splitlines()[0]
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True,
                        help="folder with pool.fasta.gz, dnabert2_tokenizer and GUE")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="for all artifacts and results")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--stop-after-minutes", type=float)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change the recipe")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""Run a recipe of the pruning benchmark: score, select, pretrain, measure, compare.

    python -m benchmarks.pruning recipes/pruning/rna-cpu.toml --data ../shared/data/rna --out RUN

The same command continues where a run was left or killed. With --stop-after-minutes it leaves by
itself, with exit status 3, when the next step would end too late.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.common import UNFINISHED, guard, make_parser
from benchmarks.pruning.page import draw, render_table
from benchmarks.pruning.recipe import load_recipe
from benchmarks.pruning.results import collect, write_results
from benchmarks.pruning.running import run_steps
from benchmarks.pruning.steps import plan_steps

from frugalfm.errors import FrugalError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = make_parser("pruning", __doc__, "folder with pool and tasks")
    parser.add_argument("--workers", type=int, default=1, help="steps at a time")
    parser.add_argument("--overwrite", action="store_true", help="replace other recipes' steps")
    parser.add_argument("--plan", action="store_true", help="only list the steps")
    return guard(_run, parser.parse_args(arguments))


def _run(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.set)
    steps = plan_steps(recipe, options.data)
    if options.plan:
        print("\n".join(f"{step.call:16} {step.out}" for step in steps))
        return 0
    minutes = options.stop_after_minutes
    left = run_steps(
        steps,
        options.out,
        device=options.device,
        workers=options.workers,
        stop_after=None if minutes is None else 60 * minutes,
        overwrite=options.overwrite,
    )
    try:
        content = collect(recipe, options.out, options.data, steps)
    except FrugalError:
        if left:
            return UNFINISHED
        raise
    write_results(content, options.out)
    draw(content, options.out / "pruning.png")
    (options.out / "table.md").write_text(render_table(content) + "\n")
    print("\n" + render_table(content) + "\n\n" + "\n".join(content["verdict"]["words"]))
    return UNFINISHED if left else 0


if __name__ == "__main__":
    sys.exit(main())

"""Time and memory of each selection strategy, beside DuckDB merely scanning the same columns.

``python benchmarks/selection.py --rows 20000000`` makes log-normal scores in parts (about 23
bytes a row; kept in --folder if given), runs each strategy in a process of its own, prints a
table, and writes it to --out as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

PART_ROWS = 2_000_000
STRATEGIES = ("random", "top-influence", "top-influence-by-length", "coverage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--budget", default="1%")
    parser.add_argument("--memory-limit", default="1GB")
    parser.add_argument("--folder", type=Path, help="keep the scores here, or use those here")
    parser.add_argument("--out", type=Path, default=Path("selection.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        make_scores(options.folder, options.rows)
        results = [in_own_process(options, what) for what in ("scan", *STRATEGIES)]
    report(options, results)


def make_scores(folder: Path, rows: int) -> None:
    """Write parts as `frugalfm score` does; those of an earlier run are used again."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(list(folder.glob("part-*.parquet"))) == -(-rows // PART_ROWS):
        return
    connection = duckdb.connect()
    connection.execute("SET preserve_insertion_order = false; SELECT setseed(0.5)")
    for number, first in enumerate(range(0, rows, PART_ROWS)):
        end = min(rows, first + PART_ROWS)
        connection.execute(f"""
            COPY (SELECT
                'URS' || lpad(to_hex(range), 10, '0') AS id,
                range AS row,
                exp(2 * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random()))::FLOAT AS influence,
                (3 * random())::FLOAT AS loss,
                100::INT AS n_tokens,
                (20 + 3000 * random() * random())::INT AS length
            FROM range({first}, {end}))
            TO '{folder}/part-{number:05d}.parquet' (FORMAT parquet)""")


def in_own_process(options: argparse.Namespace, what: str) -> dict[str, object]:
    words = [sys.executable, __file__, "--measure", what, "--folder", str(options.folder)]
    words += ["--budget", options.budget, "--memory-limit", options.memory_limit]
    return json.loads(subprocess.run(words, check=True, capture_output=True).stdout)


def measure(options: argparse.Namespace) -> dict[str, object]:
    files = sorted(options.folder.glob("part-*.parquet"))
    # Imports and a first touch of the files are nobody's cost.
    from frugalfm.coreset import write_selection

    scan(files)
    with tempfile.TemporaryDirectory() as scratch:
        wall, cpu = time.perf_counter(), time.process_time()
        if options.measure == "scan":
            scan(files)
        else:
            write_selection(
                files,
                Path(scratch) / "selection.parquet",
                options.measure,
                options.budget,
                memory_limit=options.memory_limit,
                scratch=Path(scratch),
            )
        return {
            "what": options.measure,
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def scan(files: list[Path]) -> None:
    names = ", ".join(f"'{file}'" for file in files)
    duckdb.sql(
        "SELECT max(id), sum(row), sum(influence), sum(loss), max(length) "
        f"FROM read_parquet([{names}])"
    ).fetchall()


def report(options: argparse.Namespace, results: list[dict[str, object]]) -> None:
    print(f"{options.rows:,} scores, budget {options.budget}, {os.cpu_count()} CPUs")
    print(f"{'':24} {'s':>7} {'CPU-s':>7} {'x scan':>7} {'peak MB':>8}")
    for result in results:
        result["times_scan"] = result["seconds"] / results[0]["seconds"]
        print(
            f"{result['what']:24} {result['seconds']:7.2f} {result['cpu_seconds']:7.2f} "
            f"{result['times_scan']:7.1f} {result['peak_mb']:8.0f}"
        )
    content = {
        "rows": options.rows,
        "budget": options.budget,
        "memory_limit": options.memory_limit,
        "cpus": os.cpu_count(),
        "duckdb": duckdb.__version__,
        "results": results,
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

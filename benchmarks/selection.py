"""Time and memory of every selection strategy, beside DuckDB merely scanning the same files.

``python benchmarks/selection.py --rows 200M`` makes log-normal scores as `frugalfm score` writes
them (19 bytes a row; kept in --folder if given), runs everything in a process of its own, prints a
Markdown table, and writes it to --out as JSON.

What a strategy is compared with is DuckDB reading each column that selection needs, ids included,
once, and doing as little with it as it can: the largest id, sums of the numbers. A second scan
leaves the ids out. Scans and strategies take turns, so that a busy machine slows both; a ratio is
that of a strategy and the mean of the scans before and after it, and of several rounds the median.

The released way, written from its description, holds all scores in memory as float64 and sorts
them; it reads nothing but the scores, and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PART_ROWS = 4 << 20
SCANS = {
    "scan": "max(id), max(row), sum(influence), sum(loss), sum(length)",
    "scan without ids": "max(row), sum(influence), sum(loss), sum(length)",
}
RATIOS = ("times_scan", "times_scan_cpu")
RELEASED = ("released: top", "released: coverage")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=as_number, default=20_000_000, help="such as 200M")
    parser.add_argument("--budget", default="1%")
    parser.add_argument("--memory-limit", default="1GB")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="strategies; all by default")
    parser.add_argument("--caps", action="store_true", help="also cap random clusters")
    parser.add_argument("--no-released", action="store_true", help="leave the released way out")
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
        report(options, run_all(options))


def as_number(text: str) -> int:
    units = {"K": 10**3, "M": 10**6, "G": 10**9}
    return int(float(text[:-1]) * units[text[-1].upper()] if text[-1].upper() in units else text)


def run_all(options: argparse.Namespace) -> list[dict[str, object]]:
    from frugalfm.coreset import Strategy

    things = list(options.only or get_args(Strategy))
    things += ["top-influence, at most 2 of a cluster"] if options.caps else []
    things += [] if options.no_released else RELEASED
    results: dict[str, list[dict[str, float]]] = {name: [] for name in (*SCANS, *things)}
    for _ in range(options.rounds):
        results["scan without ids"].append(in_own_process(options, "scan without ids"))
        before = in_own_process(options, "scan")
        for thing in things:
            found = in_own_process(options, thing)
            after = in_own_process(options, "scan")
            scans = {key: (before[key] + after[key]) / 2 for key in before}
            found["times_scan"] = found["seconds"] / scans["seconds"]
            found["times_scan_cpu"] = found["cpu_seconds"] / scans["cpu_seconds"]
            results[thing].append(found)
            results["scan"].append(before)
            before = after
    return [
        {"what": name}
        | {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        | {"peak_mb": max(run["peak_mb"] for run in runs)}
        for name, runs in results.items()
    ]


def make_scores(folder: Path, rows: int) -> None:
    """Write parts as `frugalfm score` does, and clusters; those of an earlier run are kept."""
    from frugalfm.coreset.footers import describe_part

    folder.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, rows, PART_ROWS)):
        path, end = folder / f"part-{number:05d}.parquet", min(rows, first + PART_ROWS)
        if path.exists():
            continue
        random, row = np.random.default_rng([7, number]), np.arange(first, end)
        size = len(row)
        table = pa.table(
            {
                "id": make_ids(row, random),
                "row": row,
                "influence": random.lognormal(0, 2, size).astype(np.float32),
                "loss": (3 * random.random(size)).astype(np.float32),
                "n_tokens": np.full(size, 100, np.int32),
                "length": (20 + 3000 * random.random(size) * random.random(size)).astype(np.int32),
            }
        )
        clusters = {
            "row": row,
            "cluster": (rows * random.random(size) ** 2).astype(np.int64),
            "complexity": random.random(size).astype(np.float32),
        }
        pq.write_table(pa.table(clusters), folder / f"clusters-{number:05d}.parquet")
        draft = path.with_suffix(".draft")
        pq.write_table(describe_part(table), draft, compression="zstd", write_page_checksum=True)
        draft.rename(path)


def make_ids(row: np.ndarray, random: np.random.Generator) -> pa.Array:
    """Ids such as URS00009E3779_9606: 18 letters, in no order."""
    number = row * np.int64(2654435761) % (1 << 40)
    letters = np.frombuffer(b"0123456789ABCDEF", np.uint8)
    text = np.empty((len(row), 18), np.uint8)
    text[:, :3] = np.frombuffer(b"URS", np.uint8)
    for place in range(10):
        text[:, 3 + place] = letters[number >> 4 * (9 - place) & 15]
    text[:, 13] = ord("_")
    text[:, 14:] = random.integers(ord("0"), ord("9") + 1, (len(row), 4))
    offsets = np.arange(len(row) + 1, dtype=np.int32) * 18
    return pa.StringArray.from_buffers(len(row), pa.py_buffer(offsets), pa.py_buffer(text))


def in_own_process(options: argparse.Namespace, what: str) -> dict[str, float]:
    words = [sys.executable, __file__, "--measure", what, "--folder", str(options.folder)]
    words += ["--budget", options.budget, "--memory-limit", options.memory_limit]
    words += ["--rows", str(options.rows)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    print(f"{what:40} {found['seconds']:8.2f} s", file=sys.stderr)
    return found


def measure(options: argparse.Namespace) -> dict[str, float]:
    files = sorted(options.folder.glob("part-*.parquet"))[: -(-options.rows // PART_ROWS)]
    work = prepare(options, files)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": peak_memory(),
    }


def peak_memory() -> float:
    """Peak resident memory in MiB; not by getrusage, which counts the parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def prepare(options: argparse.Namespace, files: list[Path]):
    """Import what is needed, which is nobody's cost, and return what is to be timed."""
    what = options.measure
    if what in SCANS:
        names = ", ".join(f"'{file}'" for file in files)
        duckdb.sql("SELECT 1").fetchall()
        return lambda: duckdb.sql(f"SELECT {SCANS[what]} FROM read_parquet([{names}])").fetchall()
    if what in RELEASED:
        return lambda: released(files, options, what == "released: top")
    from frugalfm.coreset import Choice, write_selection

    strategy, _, capped = what.partition(",")
    choice = Choice(strategy, options.budget, max_per_cluster=2 if capped else None)
    clusters = sorted(options.folder.glob("clusters-*.parquet"))[: len(files)] if capped else []

    def select() -> None:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            write_selection(
                files,
                Path(scratch) / "selection.parquet",
                choice,
                clusters=clusters,
                memory_limit=options.memory_limit,
                scratch=Path(scratch),
            )

    return select


def released(files: list[Path], options: argparse.Namespace, top: bool) -> np.ndarray:
    """Choose rows as the released code is described to: in memory, by sorting negative scores."""
    from frugalfm.coreset import parse_budget

    tables = [pq.read_table(file, columns=["influence"]) for file in files]
    scores = -np.concatenate([table["influence"].to_numpy() for table in tables]).astype(float)
    budget = parse_budget(options.budget, len(scores))
    order = np.argsort(scores)
    if top:
        return order[:budget]
    kept = order[len(scores) // 10 :]
    values = scores[kept]
    edges = np.linspace(values.min(), values.max() + 1e-9, 51)
    strata = [kept[(values >= low) & (values < high)] for low, high in itertools.pairwise(edges)]
    random, chosen, left = np.random.default_rng(0), [], budget
    for number, members in enumerate(sorted(strata, key=len)):
        take = min(len(members), left // (len(strata) - number))
        chosen.append(random.choice(members, take, replace=False))
        left -= take
    return np.concatenate(chosen)


def report(options: argparse.Namespace, results: list[dict[str, object]]) -> None:
    print(f"{options.rows:,} scores, budget {options.budget}, {os.cpu_count()} CPUs\n")
    print("| | s | CPU-s | x scan | x scan, CPU | peak MiB |\n|---|---|---|---|---|---|")
    for result in results:
        ratios = [f"{result[key]:.2f}" if key in result else "" for key in RATIOS]
        print(
            f"| {result['what']} | {result['seconds']:.1f} | {result['cpu_seconds']:.1f} | "
            f"{' | '.join(ratios)} | {result['peak_mb']:.0f} |"
        )
    content = {
        "rows": options.rows,
        "budget": options.budget,
        "memory_limit": options.memory_limit,
        "rounds": options.rounds,
        "cpus": os.cpu_count(),
        "versions": {"duckdb": duckdb.__version__, "pyarrow": pa.__version__},
        "results": results,
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Ways to run an encoder on a CPU, side by side: time, size and error of each.

    python -m benchmarks.inference --work /tmp/inference --json inference.json
    python -m benchmarks.inference --checkpoint MODEL --data SEQUENCES --work /tmp/inference-real

Without a checkpoint the model has DNABERT-2's architecture and size, random weights, and softmax
or softmax_1. All that calibrates does so on the same batches. Every contender computes the last
hidden states of the same padded batches; its error is ``|states - states of torch fp32| /
|states|`` over real tokens. Contenders are made once, in --work, which a later call finds again.
Then they take turns, a process each, so that no thread pool disturbs another: one round is every
contender once, and numbers are medians over rounds of medians inside them. Peers that are
installed elsewhere are found with PYTHONPATH; what cannot be run is listed with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common import keep_settings
from benchmarks.inference_contenders import (
    BASE,
    CONTENDERS,
    ENGINE,
    OURS,
    PEER,
    SMALL,
    Run,
    count_threads,
    make_model,
)

ROOT = Path(__file__).parents[1]
IN_TORCH = {BASE: 4, "torch bf16": 2}  # bytes a parameter; its int8 has no form on a disk
SHAPES = ("1x128", "1x512", "32x128", "32x512")
SIZES = {"layers": 12, "width": 768, "heads": 12, "feed_forward": 3072}


# --- one contender's turn, in a process of its own ----------------------------------------------


def take_turn(name: str, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Make a contender, or time it and measure its error."""
    import frugalfm  # noqa: F401 - registers the attentions

    work: Path = options.work
    contender = CONTENDERS[name]
    if task == "make":
        if contender.make is not None:
            contender.make(work)
        return {"made": True}
    run = contender.load(work)
    ids, mask, expected = np.load(work / "held-out.npz").values()
    real = mask.astype(bool)
    states = run(ids, mask)
    gap = np.linalg.norm(states[real] - expected[real]) / np.linalg.norm(expected[real])
    return {
        "error": float(gap),
        "ms": {shape: time_shape(run, shape, options) for shape in options.shapes},
    }


def time_shape(run: Run, shape: str, options: argparse.Namespace) -> float:
    """Median milliseconds, after one run to warm up."""
    batch, tokens = map(int, shape.split("x"))
    high = options.ids
    ids = np.random.default_rng(0).integers(min(5, high // 2), high, size=(batch, tokens))
    mask = np.ones_like(ids)
    run(ids, mask)
    times: list[float] = []
    while not times or (sum(times) < options.seconds * 1e3 and len(times) < 50):
        started = time.perf_counter()
        run(ids, mask)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def ask(name: str, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Let a process take a turn; what goes wrong is the answer."""
    words = [
        sys.executable,
        "-m",
        "benchmarks.inference",
        "--turn",
        name,
        task,
        "--work",
        str(options.work),
    ]
    words += ["--shapes", *options.shapes, "--seconds", str(options.seconds)]
    words += ["--ids", str(options.ids)]
    threads = str(count_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return {"failed": said[-1][:300] if said else f"exit status {done.returncode}"}


# --- the table ----------------------------------------------------------------------------------


def compete(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    chosen = [n for n in CONTENDERS if not options.only or n in options.only]
    parameters = read_parameters(options.work)
    for name in chosen:
        files = [options.work / file for file in CONTENDERS[name].files]
        made = all(file.exists() for file in files)
        rows[name] = {} if made else ask(name, "make", options)
        if "failed" not in rows[name]:
            size = sum(file.stat().st_size for file in files)
            rows[name] = {"bytes": size or IN_TORCH.get(name, 0) * parameters}
        print(f"{name}: {rows[name].get('failed', 'made')}", file=sys.stderr, flush=True)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for number in range(options.rounds):
        for name in chosen:
            if "failed" in rows[name]:
                continue
            found = ask(name, "run", options)
            if "failed" in found:
                rows[name]["failed"] = found["failed"]
            else:
                turns[name].append(found)
            print(f"round {number + 1}, {name}: {found}", file=sys.stderr, flush=True)
    for name, taken in turns.items():
        if "failed" in rows[name] or not taken:
            continue
        rows[name]["error"] = taken[0]["error"]
        rows[name]["ms"] = {
            shape: statistics.median(turn["ms"][shape] for turn in taken)
            for shape in options.shapes
        }
        rows[name]["sequences_per_s"] = {
            shape: 1e3 * int(shape.split("x")[0]) / ms for shape, ms in rows[name]["ms"].items()
        }
    return rows


def read_parameters(work: Path) -> int:
    from safetensors import safe_open

    total = 0
    for file in (work / "checkpoint").glob("*.safetensors"):
        with safe_open(file, "np") as tensors:
            total += sum(int(np.prod(tensors.get_slice(k).get_shape())) for k in tensors.keys())  # noqa: SIM118
    return total


def tabulate(rows: dict[str, dict[str, Any]], shapes: list[str]) -> str:
    head = [f"{shape} ms (seq/s)" for shape in shapes]
    lines = [f"| | MB | {' | '.join(head)} | error |", "|---|---|" + "---|" * (len(shapes) + 1)]
    for name, row in rows.items():
        if "failed" in row:
            continue
        size = "" if not row["bytes"] else f"{row['bytes'] / 1e6:.0f}"
        times = [f"{row['ms'][s]:.1f} ({row['sequences_per_s'][s]:.1f})" for s in shapes]
        lines.append(f"| {name} | {size} | {' | '.join(times)} | {row['error']:.4f} |")
    lines += [
        f"\n{name}: not measured, {row['failed']}" for name, row in rows.items() if "failed" in row
    ]
    return "\n".join(lines)


def judge(rows: dict[str, dict[str, Any]], shapes: list[str]) -> dict[str, Any]:
    """Ratios that the goals speak of, where both sides were measured."""
    whole = {name: row for name, row in rows.items() if "failed" not in row}
    if OURS not in whole:
        return {}
    ours, found = whole[OURS], {}
    peers = [n for n in whole if not n.startswith("ours") and n not in {BASE, ENGINE}]
    for shape in shapes:
        for other, goal in ((BASE, ">= 7"), (ENGINE, ">= 2.5")):
            if other in whole:
                ratio = whole[other]["ms"][shape] / ours["ms"][shape]
                found[f"{shape}: times faster than {other} ({goal})"] = ratio
        if peers:
            fastest = min(peers, key=lambda name: whole[name]["ms"][shape])
            ratio = whole[fastest]["ms"][shape] / ours["ms"][shape]
            found[f"{shape}: times faster than the fastest peer, {fastest} (>= 1)"] = ratio
    if BASE in whole:
        found["times smaller than fp32 (>= 3.9)"] = whole[BASE]["bytes"] / ours["bytes"]
        if SMALL in whole:
            small = whole[BASE]["bytes"] / whole[SMALL]["bytes"]
            found["4-bit weights: times smaller than fp32 (>= 7)"] = small
    if PEER in whole and whole[PEER]["error"]:
        found[f"error beside {PEER}'s (<= 0.5)"] = ours["error"] / whole[PEER]["error"]
    return found


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--checkpoint", type=Path, help="real weights instead of random ones")
    parser.add_argument("--data", type=Path, help="sequences to calibrate and measure errors on")
    parser.add_argument("--attention", default="softmax", choices=["softmax", "softmax1"])
    for name, size in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    parser.add_argument("--tokens", type=int, default=128, help="of what errors are measured on")
    parser.add_argument("--calibration", type=int, default=16, help="batches of 8 sequences")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="batch x tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="a shape, once at least")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="contenders")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ids", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--turn", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    options = parse(words)
    if options.turn:
        print(json.dumps(take_turn(*options.turn, options)))
        return
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    making = ("checkpoint", "data", "attention", *SIZES, "tokens", "calibration")
    keep_settings(options.work, {name: str(getattr(options, name)) for name in making})
    if not (options.work / "held-out.npz").exists():
        make_model(options, options.work)
    config = json.loads((options.work / "checkpoint" / "config.json").read_text())
    options.ids = config["vocab_size"]
    rows = compete(options)
    print(tabulate(rows, options.shapes))
    goals = judge(rows, options.shapes)
    for what, ratio in goals.items():
        print(f"{what}: {ratio:.2f}")
    if options.json:
        settings = {k: str(v) for k, v in vars(options).items()}
        content = {"settings": settings, "threads": count_threads(), "rows": rows, "goals": goals}
        options.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()

"""What `frugalfm estimate` predicts, beside what then happens on the same machine.

    OMP_NUM_THREADS=1 python -m benchmarks.estimate --model rna-fm-nano --sequences 4000 --steps 200
    python -m benchmarks.estimate pool.fasta.gz --model rna-fm-small --device cuda --precision bf16

The plan is small: score the pool, select a coreset, pretrain on it and on the full pool for equal
steps. The estimate is made first; then every stage runs in a process of its own, whose seconds
(without its start and imports), peak of memory and bytes on disk are measured. The goal is that
each second and byte predicted is within 25 % of the one measured; less than three seconds, or than
a megabyte on disk, is shown and not judged. Nothing else should run on the machine. `python -m
benchmarks.pages estimate` makes a page of what is written to --json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any
from zlib import crc32

import dnaio
from benchmarks.pages import describe_estimate

import frugalfm
from frugalfm.encoders import create_encoder, save_encoder

LEAST = {"seconds": 3.0, "memory": 0.0, "device_memory": 0.0, "disk": 1e6}
"""What is below is not judged: it is what a report or a figure costs, whatever the pool."""

# The process of a stage: what it does is timed once everything heavy is there.
STAGE = """
import json, resource, sys, threading, time
import torch, transformers, pyarrow.parquet, duckdb
import frugalfm, frugalfm.influence, frugalfm.training, frugalfm.coreset, frugalfm.encoders
from pathlib import Path
verb, options = json.loads(sys.argv[1])
out, peak, done = Path(options["out"]), 0, threading.Event()
staging = out.with_name(f".{out.name}.partial")
def size():
    total = 0
    for folder in (staging, out):
        for file in folder.rglob("*"):
            try:
                total += file.stat().st_size if file.is_file() else 0
            except OSError:
                pass
    return total
def look():
    global peak
    while not done.wait(0.05):
        peak = max(peak, size())
thread = threading.Thread(target=look, daemon=True)
thread.start()
# The most is there right before what was temporary goes: too short a while to be seen by chance.
from frugalfm import artifacts
commit = artifacts.Stage.commit
def count(stage, summary):
    global peak
    peak = max(peak, size())
    return commit(stage, summary)
artifacts.Stage.commit = count
started = time.perf_counter()
getattr(frugalfm, verb)(options.pop("data"), **options)
seconds = time.perf_counter() - started
done.set()
thread.join()
unit = 1 if sys.platform == "darwin" else 1024
device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
print("\\n" + json.dumps({
    "seconds": seconds,
    "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    "device_memory": device,
    "disk": max(peak, size()),
}))
"""


def run_stage(verb: str, **options: Any) -> dict[str, Any]:
    words = {
        key: str(value) if isinstance(value, Path) else value for key, value in options.items()
    }
    command = [sys.executable, "-c", STAGE, json.dumps([verb, words])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def prepare(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Shards of the first sequences, and a checkpoint to score with."""
    fasta = folder / "pool.fasta"
    with (
        dnaio.open(arguments.pool) as reader,
        dnaio.open(fasta, mode="w", fileformat="fasta") as to,
    ):
        for record in islice(reader, arguments.every * arguments.sequences):
            if arguments.every == 1 or crc32(record.sequence.encode()) % arguments.every == 0:
                to.write(record)
    pool = frugalfm.build(fasta, alphabet=arguments.alphabet, out=folder / "pool")
    save_encoder(*create_encoder(arguments.model), folder / "model")
    return pool, folder / "model"


def compare(
    predicted: dict[str, Any], measured: dict[str, Any], stage: str
) -> list[dict[str, Any]]:
    known = [what for what in LEAST if None not in {predicted[what], measured[what]}]
    return [
        {
            "stage": stage,
            "what": what,
            "predicted": predicted[what],
            "measured": measured[what],
            "ratio": predicted[what] / measured[what],
            "judged": measured[what] >= LEAST[what],
        }
        for what in known
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    demo = str(files("frugalfm") / "data/demo/pool.fasta.gz")
    parser.add_argument("pool", nargs="?", default=demo)
    parser.add_argument("--alphabet", default="rna")
    parser.add_argument("--model", default="rna-fm-nano")
    parser.add_argument("--sequences", type=int, default=4000)
    parser.add_argument("--every", type=int, default=1, help="about one record in so many is taken")
    parser.add_argument("--budget", default="10%")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shared = {"precision": arguments.precision, "device": arguments.device}
    training = {"batch_tokens": arguments.batch_tokens, "steps": arguments.steps}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool, model = prepare(arguments, folder)
        probe = run_stage(
            "estimate",
            data=pool,
            model=str(model),
            out=folder / "estimate",
            budget=arguments.budget,
            seconds=arguments.seconds,
            **shared,
            **training,
        )
        stages = json.loads((folder / "estimate/estimate.json").read_text())["stages"]
        scores = run_stage("score", data=pool, model=model, out=folder / "scores", **shared)
        select = {"budget": arguments.budget, "strategy": "random", "out": folder / "coreset"}
        chosen = run_stage("select", data=folder / "scores", **select)
        runs = [
            run_stage("pretrain", data=data, model=str(model), out=out, **shared, **training)
            for data, out in ((folder / "coreset", folder / "a"), (pool, folder / "b"))
        ]
        measured = [scores, chosen, *runs]
    predicted = [stages[1], stages[2], stages[3], stages[5]]
    rows = [
        row
        for before, after in zip(predicted, measured, strict=True)
        for row in compare(before, after, before["stage"])
    ]
    options = {key: str(value) for key, value in vars(arguments).items()}
    found = {"options": options, "probe_seconds": probe["seconds"], "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    print(describe_estimate(found))


if __name__ == "__main__":
    main()

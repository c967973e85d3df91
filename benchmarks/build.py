"""How long `frugalfm.build` takes on a file, beside the time that dnaio needs merely to read it.

    python benchmarks/build.py pool.fasta.gz --alphabet rna --out build.json

Both run in turn in one warm process; the best of some rounds counts. Peak memory is that of a
process that does nothing else; what its imports alone need is told beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import dnaio

import frugalfm

# Not getrusage: its peak includes that of the process which started this one.
_PEAK = """
import re, sys
from pathlib import Path
import frugalfm, frugalfm.sequences.building
if len(sys.argv) > 1:
    frugalfm.build(Path(sys.argv[1]), alphabet=sys.argv[2], out=Path(sys.argv[3]))
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def read(path: Path) -> tuple[int, int]:
    """Count records and residues with dnaio alone."""
    records = residues = 0
    with dnaio.open(path) as reader:
        for record in reader:
            records += 1
            residues += len(record)
    return records, residues


def build(path: Path, alphabet: str) -> None:
    """Build shards, and throw them away."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        frugalfm.build(path, alphabet=alphabet, out=Path(folder) / "shards")


def clock(function: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Seconds by the wall clock, and of all processors together."""
    wall, processor = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - wall, time.process_time() - processor


def peak(*arguments: object) -> float:
    """Peak memory (MiB) of a process that imports, and with `arguments` builds."""
    command = [sys.executable, "-c", _PEAK, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def measure(path: Path, alphabet: str, rounds: int) -> dict[str, object]:
    records, residues = read(path)
    build(path, alphabet)
    reads, builds = [], []
    for _ in range(rounds):
        reads.append(clock(read, path))
        builds.append(clock(build, path, alphabet))
    with tempfile.TemporaryDirectory() as folder:
        memory = peak(path, alphabet, Path(folder) / "shards")
    return {
        "file": path.name,
        "records": records,
        "residues": residues,
        "rounds": rounds,
        "read_seconds": min(reads)[0],
        "build_seconds": min(builds)[0],
        "ratio": min(builds)[0] / min(reads)[0],
        "read_processor_seconds": min(seconds for _, seconds in reads),
        "build_processor_seconds": min(seconds for _, seconds in builds),
        "build_peak_mib": memory,
        "imports_peak_mib": peak(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="FASTA or FASTQ, plain or compressed")
    parser.add_argument("--alphabet", default="rna", choices=("dna", "rna", "protein"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build.json"))
    options = parser.parse_args()
    found = measure(options.file, options.alphabet, options.rounds)
    for name, value in found.items():
        print(f"{name:25}{value:>15,.3f}" if isinstance(value, float) else f"{name:25}{value:>15}")
    options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Clusters by MMseqs2's linclust (Steinegger & Söding 2018), where that program is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np

from frugalfm.errors import FrugalError, InputError
from frugalfm.progress import progress
from frugalfm.sequences.shards import Shards

__all__ = ["find_mmseqs", "group_with_mmseqs", "mmseqs_version"]

COVERAGE = 0.8
"""Share of a member that must align with its representative."""


def find_mmseqs() -> str | None:
    """Where the program is, if it is on the PATH."""
    return shutil.which("mmseqs")


def mmseqs_version() -> str:
    """Ask the program for its version.

    Raises
    ------
    InputError
        It is not on the PATH, or does not run.
    """
    program = find_mmseqs()
    if program is None:
        raise InputError(
            "mmseqs is not on the PATH; install MMseqs2 (Debian: mmseqs2, conda: mmseqs2), "
            "or use --method minhash"
        )
    done = _run([program, "version"])
    if done.returncode:
        raise InputError(f"{program}: does not run ({_tail(done)}); use --method minhash")
    return done.stdout.strip()


def group_with_mmseqs(shards: Shards, scratch: Path, identity: float) -> np.ndarray:
    """Cluster with ``mmseqs easy-linclust``, on all processors that this process may use.

    Parameters
    ----------
    shards
        The pool.
    scratch
        A folder to make, for the sequences and MMseqs2's own files.
    identity
        Its ``--min-seq-id``; 0.8 of a member must align (``-c 0.8 --cov-mode 1``).

    Returns
    -------
    ndarray
        int64, shape ``(n,)``: for each row the row of its representative.

    Raises
    ------
    FrugalError
        The program fails, or its answer does not fit the input.
    """
    program = find_mmseqs()
    if program is None:
        raise FrugalError("mmseqs is no longer on the PATH")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    fasta, answer = scratch / "pool.fasta", scratch / "answer"
    _write_fasta(shards, fasta)
    command = [program, "easy-linclust", str(fasta), str(answer), str(scratch / "own")]
    options = {
        "--min-seq-id": f"{identity:g}",
        "-c": f"{COVERAGE:g}",
        "--cov-mode": "1",
        "--dbtype": "1" if shards.alphabet == "protein" else "2",
        "--threads": str(len(os.sched_getaffinity(0))),
        "-v": "1",
    }
    done = _run(command + [word for pair in options.items() for word in pair])
    table = answer.with_name("answer_cluster.tsv")
    if done.returncode or not table.is_file():
        raise FrugalError(
            f"mmseqs easy-linclust failed (status {done.returncode}): {_tail(done)}; "
            "mend that, or use --method minhash"
        )
    return _parse(table, shards.n_sequences)


def _write_fasta(shards: Shards, path: Path) -> None:
    """Rows are named by their numbers; MMseqs2 reads T for U."""
    row = 0
    with path.open("w") as file:
        for batch in progress(shards.batches(["sequence"]), desc="write", unit="batch"):
            sequences = batch.column("sequence").to_pylist()
            text = "".join(f">{row + i}\n{sequence}\n" for i, sequence in enumerate(sequences))
            file.write(text.replace("U", "T") if shards.alphabet == "rna" else text)
            row += len(sequences)


def _parse(table: Path, n: int) -> np.ndarray:
    """Read pairs of representative and member; each row must be a member exactly once."""
    try:
        pairs = np.loadtxt(table, np.int64, delimiter="\t", ndmin=2).reshape(-1, 2)
    except ValueError as error:
        raise FrugalError(f"mmseqs wrote a table that cannot be read ({error})") from None
    representatives = np.full(n, -1, np.int64)
    inside = (pairs >= 0) & (pairs < n)
    if not inside.all() or len(np.unique(pairs[:, 1])) != len(pairs):
        raise FrugalError("mmseqs named a sequence twice, or one that it was not given")
    representatives[pairs[:, 1]] = pairs[:, 0]
    missing = np.flatnonzero(representatives < 0)
    if len(missing):
        raise FrugalError(
            f"mmseqs left out {len(missing)} of {n} sequences, the first of them in row "
            f"{missing[0]}; use --method minhash"
        )
    return representatives


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        return subprocess.CompletedProcess(command, 126, "", str(error))


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "no message"

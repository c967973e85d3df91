"""Run steps, several at a time, so that a run can be left and continued anywhere.

Every finished step is a line in ``steps.jsonl`` with a key: the hash of its call and of the keys
of the steps that it needs. A step whose line and artifact are there is skipped without loading
anything. Whatever a killed step had saved, its verb finds again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.pruning import local
from benchmarks.pruning.steps import Step

__all__ = ["Journal", "run_steps"]

_TAKE_DEVICE = {"pretrain", "score", "evaluate", "tune"}


class Journal:
    """What was done in a folder, by which call, and in how many seconds."""

    def __init__(self, folder: Path, steps: Sequence[Step]) -> None:
        self.folder = folder
        self._path = folder / "steps.jsonl"
        self.keys: dict[str, str] = {}
        for step in steps:
            needed = [self.keys[name] for name in step.needs]
            called = json.dumps([asdict(step), needed], sort_keys=True)
            self.keys[step.out] = hashlib.sha256(called.encode()).hexdigest()
        lines = self._path.read_text().splitlines() if self._path.is_file() else []
        # A kill may have cut the last line short.
        entries = [json.loads(line) for line in lines if line.endswith("}")]
        self.done = {entry["key"]: entry for entry in entries}

    def is_done(self, step: Step) -> bool:
        """The very same call was finished, and what it made is there."""
        made = self.folder / step.out / "manifest.json"
        return self.keys[step.out] in self.done and made.is_file()

    def add(self, step: Step, seconds: float) -> None:
        """Write down a finished step."""
        entry = {"out": step.out, "call": step.call, "seconds": round(seconds, 2)}
        entry |= {"key": self.keys[step.out]}
        self.done[entry["key"]] = entry
        with self._path.open("a") as handle:
            handle.write(json.dumps(entry) + "\n")

    def seconds(self, step: Step) -> float:
        """How long a finished step took, when it was run."""
        return float(self.done[self.keys[step.out]]["seconds"])

    def expect(self, step: Step) -> float:
        """How long a step will take: the mean of finished ones of its kind, else nothing."""
        found = [e["seconds"] for e in self.done.values() if e["call"] == step.call]
        return statistics.fmean(found) if found else 0.0


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    *,
    device: str = "auto",
    workers: int = 1,
    stop_after: float | None = None,
    overwrite: bool = False,
) -> int:
    """Run what is not done yet; return how many steps are left.

    Parameters
    ----------
    steps
        Each after those it needs.
    folder
        For all artifacts, ``steps.jsonl`` and ``log.txt``.
    device
        For the verbs that take one.
    workers
        Processes; cores are shared out among them. With 1, all runs in this process.
    stop_after
        Seconds after which to leave: no step is started that is expected to end later, but for
        one, so that every call gets somewhere.
    overwrite
        Replace what other recipes left in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder, steps)
    left = [step for step in steps if not journal.is_done(step)]
    print(f"{folder}: {len(steps)} steps, {len(steps) - len(left)} done", flush=True)
    if not left:
        return 0
    started = time.monotonic()
    limit = float("inf") if stop_after is None else stop_after
    finished = 0
    running: dict[Future[float], Step] = {}
    with _open_pool(workers) as pool:
        while left or running:
            for step in _ready(left, running.values()):
                late = time.monotonic() - started + journal.expect(step) > limit
                if len(running) >= workers or (late and (finished or running)):
                    break
                left.remove(step)
                running[pool.submit(_run, step, folder, device, overwrite)] = step
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                journal.add(step, future.result())
                finished += 1
                print(
                    f"[{len(steps) - len(left) - len(running)}/{len(steps)}] {step.call} "
                    f"{step.out} ({journal.seconds(step):.1f} s)",
                    flush=True,
                )
    if left:
        print(f"left after {(time.monotonic() - started) / 60:.1f} min; {len(left)} steps to go")
    return len(left)


def _ready(left: Sequence[Step], running: Any) -> list[Step]:
    missing = {step.out for step in left} | {step.out for step in running}
    return [step for step in left if not missing.intersection(step.needs)]


@contextlib.contextmanager
def _open_pool(workers: int) -> Iterator[Any]:
    if workers == 1:
        yield _Here()
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    # Spawned, since a forked process cannot use CUDA.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _limit_threads, (threads,)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Here:
    """A pool of one: this process."""

    def submit(self, function: Any, *arguments: Any) -> Future[float]:
        future: Future[float] = Future()
        future.set_result(function(*arguments))
        return future


def _limit_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    torch.set_num_threads(threads)


def _run(step: Step, folder: Path, device: str, overwrite: bool) -> float:
    """Make one call; what it prints goes to the log."""
    import frugalfm

    call = getattr(local, step.call, None) or getattr(frugalfm, step.call)
    options = step.options | {name: str(folder / path) for name, path in step.folders.items()}
    if step.call in _TAKE_DEVICE:
        options["device"] = device
    inputs = [folder / path for path in step.positional]
    out = folder / step.out
    out.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
        print(f"\n{step.call} {step.out}", flush=True)
        try:
            call(*inputs, out=out, overwrite=overwrite, **options)
        except Exception as error:
            error.add_note(f"in the step {step.call} {step.out}")
            raise
    return time.perf_counter() - began

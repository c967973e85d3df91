"""Processes that share work through a folder, on one machine or on many, without a network.

Each piece of work has a name. A process claims it by creating the file ``NAME.0``, which only one
can do (``O_EXCL``, on network file systems too), touches the file every few seconds while it
works, and leaves it there when the work is done. A claim whose owner is dead, or whose file has
not been touched for two minutes although the work is not done, is void: the next process creates
``NAME.1``, and so on, so that of several that notice only one takes over. Nothing is ever removed
to take over, so there is no moment at which two could.

Should an owner only have been asleep, it finds its claim lost, and throws its result away.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from frugalfm.artifacts import Stage
from frugalfm.errors import FrugalError

__all__ = [
    "Claim",
    "Claims",
    "VanishedError",
    "count_launched",
    "is_first",
    "share",
]

_BEAT = 10.0
_STALE = 120.0  # A network file system may show what others did up to a minute late.
_POLL = 0.5

_held: set[Path] = set()  # by this process


class VanishedError(FrugalError):
    """The folder that was shared is gone: another process has finished, or somebody removed it."""


class Claim:
    """One piece of work, to be done inside ``with``; given up if that raises.

    Attributes
    ----------
    path
        The file that stands for it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Claim:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Suppress that a file was not found if it is because another did the work."""
        self._stop.set()
        self._thread.join()
        lost = self.lost
        if kind is not None:
            self.path.unlink(missing_ok=True)
        _held.discard(self.path)
        return lost and isinstance(error, FileNotFoundError)

    @property
    def lost(self) -> bool:
        """Whether another process has taken over, or the whole folder is gone."""
        successor = self.path.with_suffix(f".{int(self.path.suffix[1:]) + 1}")
        return successor.exists() or not self.path.exists()

    @contextlib.contextmanager
    def write(self, path: Path) -> Iterator[Path]:
        """Yield where to write a file that appears at `path` whole, if the claim still holds."""
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        try:
            yield draft
            with draft.open("rb") as handle:
                os.fsync(handle.fileno())
            if not self.lost:
                draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)


class Claims:
    """What the processes that share a folder have claimed.

    Parameters
    ----------
    folder
        Made if it is not there; holds nothing else.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._token = secrets.token_hex(4)
        self._owner = json.dumps({"host": _name_host(), "pid": os.getpid()})
        self._told: set[str] = set()

    def take(self, name: str) -> Claim | None:
        """Claim a piece of work, unless a process that is alive has claimed it.

        That it is claimed no more does not mean that it is to be done: look again whether it is.
        """
        with contextlib.suppress(FileNotFoundError):  # the folder is gone, or a claim given up
            for generation in count():
                path = self._folder / f"{name}.{generation}"
                try:
                    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    if not self._is_void(path):
                        return None
                    continue
                _held.add(path)
                with os.fdopen(handle, "w") as file:
                    file.write(self._owner)
                return Claim(path)
        return None

    def wait(self, purpose: str) -> None:
        """Wait a moment for other processes; the first time, say on stderr what for.

        Raises
        ------
        VanishedError
            The folder is gone.
        """
        if purpose not in self._told:
            self._told.add(purpose)
            print(f"waiting for other processes to {purpose}", file=sys.stderr)
        time.sleep(_POLL)
        if not self._folder.is_dir():
            raise VanishedError(f"{self._folder}: is gone; run the same command again")

    def sign(self) -> None:
        """Count this process among those that have done something."""
        with contextlib.suppress(FileNotFoundError):
            (self._folder / f".worker-{self._token}").touch()

    def count_workers(self) -> int:
        """Count the processes that have done something, dead ones too."""
        return len(list(self._folder.glob(".worker-*")))

    def _is_void(self, path: Path) -> bool:
        """Whether nobody works on a claim any more: its owner is dead, or silent for long."""
        with path.open() as file:  # Opening a file asks its server, not a cache.
            text, touched = file.read(), os.fstat(file.fileno()).st_mtime
        owner = json.loads(text) if text.endswith("}") else {}
        if owner.get("host") == _name_host():
            mine = owner["pid"] == os.getpid()  # or of an earlier process of that number
            if path not in _held if mine else not _is_alive(owner["pid"]):
                return True
        # By the clock of the file system, which all share, unlike those of the machines.
        clock = self._folder / f".clock-{self._token}"
        clock.touch()
        return clock.stat().st_mtime - touched > _STALE


def share(
    stage: Stage, work: Callable[[Claims], None], summarise: Callable[[int], Mapping[str, Any]]
) -> bool:
    """Do the work of a stage together with the other processes that do it now; one commits.

    Parameters
    ----------
    stage
        Opened as shared.
    work
        Returns when all files of the stage are there, whoever made them.
    summarise
        Makes the summary from the number of processes that did something; called in the process
        that commits.

    Returns
    -------
    bool
        Whether it was this process that committed; the artifact is there anyway.
    """
    try:
        claims = Claims(stage.scratch / "claims")
        work(claims)
        return _commit_once(stage, claims, summarise)
    except (VanishedError, FileNotFoundError):
        if stage.work.exists():
            raise
    deadline = time.monotonic() + _STALE  # until its new name is seen on this machine too
    while not stage.is_finished():
        if time.monotonic() > deadline:
            raise VanishedError(f"{stage.work}: was removed; run the same command again")
        time.sleep(_POLL)
    return False


def _commit_once(
    stage: Stage, claims: Claims, summarise: Callable[[int], Mapping[str, Any]]
) -> bool:
    while not stage.is_finished():
        claim = claims.take("commit")
        if claim is None:
            claims.wait("finish")
            continue
        with claim:
            if not stage.is_finished():
                stage.commit(summarise(claims.count_workers()))
                return True
    return False


def count_launched() -> int:
    """Count the processes that were started together, as far as their launcher tells."""
    numbers = [_variable(name) for name in ("WORLD_SIZE", "SLURM_ARRAY_TASK_COUNT")]
    launched = 1
    for number in filter(str.isdigit, numbers):
        launched *= int(number)
    return launched


def is_first() -> bool:
    """Whether this is the process that shows progress among those that share a terminal."""
    return _variable("RANK") in {"", "0"}


def _variable(name: str) -> str:
    return os.environ.get(name, "")


def _name_host() -> str:
    """Name what process ids are unique in: a machine since it was started, or a container."""
    name = platform.node()
    with contextlib.suppress(OSError):
        name += " " + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        name += " " + str(Path("/proc/self/ns/pid").readlink())
    return name


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

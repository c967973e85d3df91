"""The one way anything is written: a staging folder, fsync, a rename, and a manifest.

A stage works in ``.NAME.partial`` beside its destination. A killed stage leaves that folder
behind, and the same call made again finds it and continues; a call with other settings starts
afresh. Only :meth:`Stage.commit` makes the destination appear, all at once. What only an
unfinished stage needs goes to :attr:`Stage.scratch`, which outlives everything but that rename.

Only one process works on a stage, unless it is opened as shared: then the same calls join.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from frugalfm.destinations import find_place
from frugalfm.errors import FrugalError, InputError

__all__ = ["Stage", "fingerprint", "open_stage", "read_manifest", "write_atomically", "write_json"]

MANIFEST = "manifest.json"
_PLAN = ".plan.json"
_SCRATCH = ".scratch"
_NO_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # of some cluster file systems
_PATIENCE = 30.0  # seconds that a process waits for another to set up a shared stage
_RECORDED_LIBRARIES = ("torch", "transformers", "numpy", "pyarrow", "duckdb", "scikit-learn")


@contextlib.contextmanager
def write_atomically(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success flush it to disk and rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open(mode) as handle:
        yield handle
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with write_atomically(path) as handle:
        json.dump(content, handle, indent=1)
        handle.write("\n")


def read_manifest(folder: Path, kind: str | tuple[str, ...] | None = None) -> dict[str, Any]:
    """Read an artifact's manifest and check that its files are whole.

    Parameters
    ----------
    folder
        The artifact.
    kind
        Accepted kind or kinds; any when None.

    Returns
    -------
    dict
        ``kind, frugalfm, created, config, inputs, versions, files, summary``.

    Raises
    ------
    InputError
        No such folder, no manifest, another kind, or a file that is missing or of another size
        than recorded.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    kinds = (kind,) if isinstance(kind, str) else kind
    wanted = f" ({' or '.join(kinds)})" if kinds else ""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; an artifact{wanted} is needed here")
    if not path.is_file():
        raise InputError(f"{folder}: holds no {MANIFEST}, so it is not a finished artifact{wanted}")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        files, found = manifest["files"], manifest["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); make the artifact again") from None
    if kinds and found not in kinds:
        raise InputError(f"{folder}: is an artifact of kind {found!r}, not{wanted}")
    for name, entry in files.items():
        file = folder / name
        size = file.stat().st_size if file.is_file() else None
        if size != entry["bytes"]:
            state = "is missing" if size is None else f"has {size} bytes, not {entry['bytes']}"
            raise InputError(f"{file}: {state}; the artifact is damaged, make it again")
    return manifest


def fingerprint(path: Path) -> str:
    """SHA-256 that identifies the content of a file, an artifact or any other folder.

    An artifact is identified by the hashes in its manifest, so that nothing is read again.
    """
    path = Path(path)
    if path.is_file():
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    if (path / MANIFEST).is_file():
        files = {name: entry["sha256"] for name, entry in read_manifest(path)["files"].items()}
    elif path.is_dir():
        files = {
            file.relative_to(path).as_posix(): fingerprint(file)
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
    else:
        raise InputError(f"{path}: no such file or folder")
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


@dataclass
class Stage:
    """One artifact in the making.

    Attributes
    ----------
    out
        Where the artifact will be; at the end of a link, if it was given as one.
    work
        The staging folder to write into; survives a kill.
    done
        The same artifact is already there and whole: skip the work.
    resumed
        `work` holds what an interrupted run of the same call left.
    lock
        Held while this process works on the artifact.
    """

    out: Path
    work: Path
    kind: str
    config: dict[str, Any]
    inputs: dict[str, dict[str, str]]
    done: bool = False
    resumed: bool = False
    lock: IO[Any] | None = field(default=None, repr=False)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        """Give up the lock; what an unfinished stage has made stays for a later resume."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None

    @property
    def scratch(self) -> Path:
        """Folder for what does not belong to the artifact: state to resume from, spilled data."""
        folder = self.work / _SCRATCH
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def summary(self) -> dict[str, Any]:
        """The summary that the finished artifact was committed with."""
        return dict(read_manifest(self.out, self.kind)["summary"])

    def is_finished(self) -> bool:
        """Whether the same artifact is there by now, by whichever process."""
        try:
            found = read_manifest(self.out, self.kind)
        except FrugalError:
            return False
        here = _identity(self.config, self.inputs)
        return _identity(found["config"], found["inputs"]) == here

    def commit(self, summary: Mapping[str, Any]) -> Path:
        """Flush everything, write the manifest, and rename the staging folder into place.

        The plan and the scratch folder go last: killed before the rename, the stage resumes.
        """
        for draft in self.work.rglob(".*.tmp"):
            draft.unlink(missing_ok=True)  # of an atomic write that was killed
        files = {}
        for file in _own_files(self.work):
            with file.open("rb") as handle:
                digest = hashlib.file_digest(handle, "sha256").hexdigest()
                os.fsync(handle.fileno())
            name = file.relative_to(self.work).as_posix()
            files[name] = {"bytes": file.stat().st_size, "sha256": digest}
        write_json(
            self.work / MANIFEST,
            {
                "kind": self.kind,
                "frugalfm": metadata.version("frugalfm"),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "config": self.config,
                "inputs": self.inputs,
                "versions": _library_versions(),
                "files": files,
                "summary": dict(summary),
            },
        )
        old = self.out.with_name(f".{self.out.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.out.exists():
            self.out.replace(old)
        self.work.replace(self.out)
        _fsync_folder(self.out.parent)
        for leftover in (old, self.out / _SCRATCH):
            shutil.rmtree(leftover, ignore_errors=True)
        (self.out / _PLAN).unlink(missing_ok=True)
        _lock_path(self.out).unlink(missing_ok=True)
        self.__exit__()
        return self.out


def open_stage(
    out: Path,
    kind: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path | None],
    *,
    overwrite: bool = False,
    shared: bool = False,
) -> Stage:
    """Begin, resume or recognise as finished the making of one artifact.

    Parameters
    ----------
    out
        Destination folder, or a link to it.
    kind
        The artifact's kind, such as ``"scores"``.
    config
        Every option that changes the result; JSON-serialisable.
    inputs
        Named input paths, identified by content; None is left out.
    overwrite
        Replace a different artifact at `out` instead of refusing; never anything else.
    shared
        Let other processes that make the same call work in the same staging folder. They have to
        agree on who writes what, and who commits.

    Raises
    ------
    InputError
        `out` holds something else, is, holds or lies inside an input, or another process is
        writing it.
    """
    out = find_place(out, inputs.values())
    settings = json.loads(json.dumps(dict(config), default=str))
    sources = {
        name: {"path": str(path), "sha256": fingerprint(path)}
        for name, path in inputs.items()
        if path is not None
    }
    stage = Stage(out, out.with_name(f".{out.name}.partial"), kind, settings, sources)
    stage.done = stage.is_finished()
    if stage.done:
        return stage
    if out.exists():
        _refuse_to_replace(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    if shared:
        _join(stage)
    else:
        stage.lock = _lock(out)
        _set_up(stage)
    return stage


def _refuse_to_replace(out: Path, overwrite: bool) -> None:
    """Raise unless `out` is an empty folder, or an artifact that may be overwritten."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise InputError(f"{out}: already exists and is no artifact; choose another --out")
    if not overwrite:
        raise InputError(
            f"{out}: already exists and was not made by this call; "
            "choose another --out, or replace it with --overwrite"
        )


def _own_files(folder: Path) -> list[Path]:
    """All files of an artifact in the making, in order."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and file.relative_to(folder).parts[0] not in {MANIFEST, _PLAN, _SCRATCH}
    )


def _set_up(stage: Stage) -> None:
    """Make the staging folder, or keep its content if the same call left it; the lock is held."""
    stage.done = stage.is_finished()  # by a process that had the lock before
    if stage.done:
        stage.__exit__()
        return
    existed, stage.resumed = stage.work.exists(), _has_plan(stage)
    if stage.resumed:
        return
    if existed:
        shutil.rmtree(stage.work, ignore_errors=True)
    # It appears with its plan in it: where locks do nothing, only one process can make it.
    draft = stage.work.with_name(f"{stage.work.name}.{secrets.token_hex(4)}")
    draft.mkdir()
    write_json(draft / _PLAN, _plan(stage))
    try:
        draft.rename(stage.work)
    except OSError:
        shutil.rmtree(draft)
        if not _has_plan(stage):
            raise


def _join(stage: Stage) -> None:
    """Share the staging folder with the same calls; one that finds itself alone sets it up."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(InputError), _lock(stage.out):
            _set_up(stage)
        if stage.done:
            return
        try:
            stage.lock = _lock(stage.out, fcntl.LOCK_SH)
        except InputError:  # another sets it up, or works there alone
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
            continue
        if _has_plan(stage):
            return
        stage.__exit__()
        if stage.work.exists():
            raise InputError(f"{stage.out}: another call is writing it; wait or stop it")


def _plan(stage: Stage) -> dict[str, str]:
    return {"kind": stage.kind, "key": _identity(stage.config, stage.inputs)}


def _has_plan(stage: Stage) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return bool(json.loads((stage.work / _PLAN).read_text()) == _plan(stage))
    return False


def _lock(out: Path, operation: int = fcntl.LOCK_EX) -> IO[Any]:
    """Lock an artifact's making; the lock's file is beside the staging folder, and outlives it."""
    path = _lock_path(out)
    while True:
        lock = path.open("a+")
        try:
            fcntl.flock(lock, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise InputError(f"{out}: another process is writing it; wait or stop it") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        # Another process may have finished, and removed the file, since we opened it.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return lock
        lock.close()


def _lock_path(out: Path) -> Path:
    return out.with_name(f".{out.name}.lock")


def _identity(config: Mapping[str, Any], inputs: Mapping[str, Mapping[str, str]]) -> str:
    hashes = {name: entry["sha256"] for name, entry in inputs.items()}
    return json.dumps([config, hashes], sort_keys=True)


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in _RECORDED_LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

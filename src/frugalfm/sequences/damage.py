"""What is wrong with a file that cannot be read, in words that say what to do."""

from __future__ import annotations

import contextlib
import importlib
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from frugalfm.errors import InputError

__all__ = ["explained"]

_GZIP = b"\x1f\x8b"
_BLOCK = 1 << 20


def _find_errors() -> tuple[type[Exception], ...]:
    """List what readers raise; the libraries that xopen takes if they are there add their own."""
    found: list[type[Exception]] = [
        OSError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        pa.ArrowException,
    ]
    for name in ("isal.isal_zlib", "zlib_ng.zlib_ng"):
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(name).error)
    return tuple(found)


_ERRORS = _find_errors()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader raise into an InputError that names it."""
    try:
        yield
    except _ERRORS as error:
        raise InputError(f"{path}: {_describe(path, error)}") from None


def _describe(path: Path, error: Exception) -> str:
    if isinstance(error, (EOFError, OSError)) and _has_tail(path):
        return "holds something else after its gzip content; compress or copy it anew"
    if isinstance(error, EOFError):
        return "ends too early; compress or copy it anew"
    return f"cannot be read ({error}); compress or copy it anew"


def _has_tail(path: Path) -> bool:
    """Whether a file begins with whole gzip members, and goes on with something else."""
    try:
        with path.open("rb") as file:
            if file.read(len(_GZIP)) != _GZIP:
                return False
            file.seek(0)
            member = zlib.decompressobj(31)
            while block := file.read(_BLOCK):
                while block:
                    if member.eof:
                        block = block.lstrip(b"\0")  # padding, which is allowed
                        if block and not block.startswith(_GZIP[: len(block)]):
                            return True
                        member = zlib.decompressobj(31)
                    member.decompress(block)
                    block = member.unused_data
    except (OSError, zlib.error):
        pass
    return False

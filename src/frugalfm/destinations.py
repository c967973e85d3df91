"""Where results go: links are followed, and no input is lost to a result that replaces it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from frugalfm.errors import InputError

__all__ = ["find_place"]


def find_place(out: Path, inputs: Iterable[Path | None]) -> Path:
    """Tell where writing to `out` goes, once it is sure that no input goes with what is there.

    Parameters
    ----------
    out
        The file or folder to write; a link stays one, even one to nothing yet.
    inputs
        What it is made from, wherever links have it; None is left out.

    Returns
    -------
    Path
        Absolute and free of links.

    Raises
    ------
    InputError
        `out` is, holds or lies inside an input, or is a link to itself.
    """
    place = Path(os.path.realpath(out))
    if place.is_symlink():
        raise InputError(f"{out}: is a link that leads to itself; choose another --out")
    for path in inputs:
        if path is None:
            continue
        source = Path(os.path.realpath(path))
        if source in {place, *place.parents}:
            raise InputError(f"{out}: is or lies inside the input {path}; choose another --out")
        if place in source.parents:
            raise InputError(f"{out}: holds the input {path}; choose another --out")
    return place

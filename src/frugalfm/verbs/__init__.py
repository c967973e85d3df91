"""One file, one command, one public function each; they meet through folders on disk."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

__all__ = ["with_paths"]

P = ParamSpec("P")
R = TypeVar("R")


def with_paths(verb: Callable[P, R]) -> Callable[P, R]:
    """Let every argument that is annotated as a path be a string too, and expand its ``~``."""
    signature = inspect.signature(verb)
    paths = {
        name for name, found in signature.parameters.items() if "Path" in str(found.annotation)
    }

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        for name in paths & given.arguments.keys():
            given.arguments[name] = _expand(given.arguments[name])
        return verb(*given.args, **given.kwargs)

    return call


def _expand(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_expand, value))
    return None if value is None else Path(value).expanduser()

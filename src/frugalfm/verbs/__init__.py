"""One file, one command, one public function each; they meet through folders on disk."""

from __future__ import annotations

import functools
import inspect
import math
import os
import types
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from frugalfm.errors import InputError

__all__ = ["with_paths"]

P = ParamSpec("P")
R = TypeVar("R")


def with_paths(verb: Callable[P, R]) -> Callable[P, R]:
    """Let a verb take from Python what the command line would, and refuse the rest as it does.

    A path may be a string, and has its ``~`` expanded; a whole number does for a number, numpy's
    do for Python's, one word for a list of words, and a list of paths for several.

    Raises
    ------
    InputError
        A value that an option cannot have; names both, and what is wanted.
    """
    signature = inspect.signature(verb)
    forms = functools.cache(lambda: get_type_hints(verb))  # not while the module is half read

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            form = forms()[name]
            if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                items = [item for some in value for item in _listed(some)]
                given.arguments[name] = tuple(_fit(name.upper(), item, form) for item in items)
            else:
                given.arguments[name] = _fit(f"--{name.replace('_', '-')}", value, form)
        return verb(*given.args, **given.kwargs)

    return call


def _fit(label: str, value: Any, form: Any) -> Any:
    """Give `value` the type that a verb's signature asks for."""
    for kind in _alternatives(form):
        fitted = _convert(value, kind)
        if fitted is not _MISFIT:
            return fitted
    wanted = [_describe(kind) for kind in _alternatives(form) if kind is not types.NoneType]
    raise InputError(f"{label} must be {' or '.join(wanted)}, not {value!r}")


_MISFIT = object()


def _alternatives(form: Any) -> tuple[Any, ...]:
    return get_args(form) if get_origin(form) in {Union, types.UnionType} else (form,)


def _convert(value: Any, kind: Any) -> Any:
    """Give `value` as a `kind`, if it is one or does for one without doubt; else the misfit."""
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not value.shape:
        value = value.item()
    if get_origin(kind) is Literal:
        return value if isinstance(value, str) and value in get_args(kind) else _MISFIT
    if get_origin(kind) is list:
        items = [_convert(item, get_args(kind)[0]) for item in _listed(value)]
        return _MISFIT if any(item is _MISFIT for item in items) else items
    if kind in {bool, types.NoneType}:
        return value if isinstance(value, kind) else _MISFIT
    if isinstance(value, bool):
        return _MISFIT
    if kind is int and isinstance(value, Integral):
        return int(value)
    if kind is float and isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if kind in {str, Path} and isinstance(value, (str, os.PathLike)):
        # Path's own expanduser raises where there is no such user.
        return os.fspath(value) if kind is str else Path(os.path.expanduser(value))  # noqa: PTH111
    if kind is str and isinstance(value, Integral):
        return str(value)
    return _MISFIT


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        *others, last = get_args(kind)
        return f"{', '.join(others)} or {last}" if others else str(last)
    if get_origin(kind) is list:
        return f"a list, each {_describe(get_args(kind)[0])}"
    return {bool: "True or False", int: "a whole number", float: "a finite number",
            str: "text", Path: "a path"}[kind]  # fmt: skip

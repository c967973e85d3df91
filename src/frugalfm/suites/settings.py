"""What of a suite is to be run, and how."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from frugalfm.encoders.devices import Precision
from frugalfm.errors import InputError, require_positive
from frugalfm.tasks.folder import Leaks, TooLong
from frugalfm.training.adapters import Method, check_method
from frugalfm.training.recipes import StartName

__all__ = ["PROBE", "SuiteSettings", "name_checkpoints"]

PROBE = "probe"
_METHODS: tuple[str, ...] = (PROBE, *get_args(Method))
_FIRST_SEED = 42  # of the published fine-tuning


@dataclass(frozen=True)
class SuiteSettings:
    """What is the same for all cells, checked as far as it can be alone.

    Attributes
    ----------
    methods
        ``probe``, ``full``, ``lora``, ``qlora``, ``loftq``: one or several.
    seeds
        Tunings of each task, with one seed each. A probe has no randomness and is fitted once.
    seed
        The first of them: 42 when None, and then 0 for the intervals of probes.
    max_train
        Training rows of a task, at most, drawn at random; the same for all cells of a task.
    max_steps
        Optimizer steps of a tuning, at most.
    start
        Whether tuned heads start as linear probes, or at random.
    leaks, too_long
        As for :func:`~frugalfm.tasks.read_task`.
    pooling, batch_tokens, precision
        As for ``frugalfm evaluate`` and ``frugalfm tune``; auto is the mean for probes.

    Raises
    ------
    InputError
        An unknown method, one whose libraries are missing, or numbers that make no sense.
    """

    methods: tuple[str, ...] = (PROBE,)
    seeds: int = 1
    seed: int | None = None
    max_train: int | None = None
    max_steps: int | None = None
    start: StartName = "probe"
    leaks: Leaks = "report"
    too_long: TooLong = "crop"
    pooling: Literal["auto", "mean", "cls"] = "auto"
    batch_tokens: int = 16_384
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        require_positive(
            seed=self.seed or 0,
            seeds=self.seeds,
            max_train=self.max_train,
            max_steps=self.max_steps,
            batch_tokens=self.batch_tokens,
        )
        for method in self.methods:
            if method not in _METHODS:
                raise InputError(f"--methods: there is no {method!r}, only {', '.join(_METHODS)}")
            if method != PROBE:
                check_method(cast("Method", method))
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise InputError(f"--methods: name each once, of {', '.join(_METHODS)}")

    def seeds_of(self, method: str) -> range:
        """Seeds that a method is run with."""
        if method == PROBE:
            return range(self.seed or 0, (self.seed or 0) + 1)
        first = _FIRST_SEED if self.seed is None else self.seed
        return range(first, first + self.seeds)

    @property
    def limits(self) -> dict[str, int]:
        """What makes the run smaller than the published one."""
        found = {"max_train": self.max_train, "max_steps": self.max_steps}
        if set(self.methods) == {PROBE}:
            del found["max_steps"]
        return {name: value for name, value in found.items() if value is not None}

    @property
    def probe_pooling(self) -> Literal["mean", "cls"]:
        """What probes read."""
        return "mean" if self.pooling == "auto" else self.pooling

    def identity(self, method: str) -> dict[str, Any]:
        """All that decides the result of a cell, but for task, checkpoint, method and seed."""
        names = ("max_train", "leaks", "too_long", "pooling", "batch_tokens", "precision")
        found = {name: getattr(self, name) for name in names}
        if method == PROBE:
            return found | {"pooling": self.probe_pooling}
        return found | {"max_steps": self.max_steps, "start": self.start}


def name_checkpoints(given: Sequence[Path | str]) -> dict[str, Path]:
    """Read ``NAME=FOLDER``, or ``FOLDER``, whose own name it then is.

    Raises
    ------
    InputError
        None, a name twice, or one that cannot be a folder's.
    """
    if not given:
        raise InputError("name at least one checkpoint: FOLDER, or NAME=FOLDER")
    named: dict[str, Path] = {}
    for text in map(str, given):
        name, equals, rest = text.partition("=")
        if not equals or Path(text).exists():
            name, rest = Path(text).resolve().name, text
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise InputError(f"{text}: {name!r} is no name of letters, digits, _ . + and -")
        if name in named:
            raise InputError(f"two checkpoints are called {name}; name them, as in a={rest}")
        named[name] = Path(rest).expanduser()
    return named

"""What a recipe says: models, tasks to tune them on, and the methods and widths to quantize by."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import read_toml
from benchmarks.common_arms import Arm, check_arms

from frugalfm.errors import InputError
from frugalfm.quantization import QuantizationPlan

__all__ = ["MASKED", "MethodRow", "Recipe", "load_recipe"]

MASKED = "masked loss"
"""Stands where a task's name does, for what is measured without tuning."""


@dataclass(frozen=True)
class MethodRow:
    """One way to quantize, as a row of the table.

    Attributes
    ----------
    name
        Of the row.
    method
        As ``frugalfm quantize`` knows it.
    options
        Of the method, where they differ from its own.
    schemes
        Those of the recipe's that it is measured at; None for all.
    published
        Whether the average over methods counts it: the paper has it.
    """

    name: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    schemes: tuple[str, ...] | None = None
    published: bool = False


@dataclass(frozen=True)
class Recipe:
    """A table.

    Attributes
    ----------
    title
        Of the table.
    seeds
        One model of every arm, tuned once on every task, for each.
    models
        Arms that are measured; the first is what the others are compared with.
    tasks
        Folders under GUE's, with ``train.csv``, ``dev.csv`` and ``test.csv``.
    schemes
        Such as ``W4A8``.
    headline
        Those that the average over schemes counts.
    pool, model, train, convert, arms
        As of :class:`~benchmarks.common_arms.Course`.
    tune
        ``max_train`` rows of a task, and options of ``frugalfm tune``.
    quantize
        Options of :class:`~frugalfm.quantization.QuantizationPlan`.
    methods
        The rows.
    """

    title: str
    seeds: tuple[int, ...]
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    schemes: tuple[str, ...]
    headline: tuple[str, ...]
    pool: dict[str, int]
    model: dict[str, Any]
    train: dict[str, Any]
    convert: dict[str, Any]
    tune: dict[str, Any]
    quantize: dict[str, Any]
    arms: tuple[Arm, ...]
    methods: tuple[MethodRow, ...]

    @property
    def rows(self) -> Iterator[tuple[MethodRow, str]]:
        """Every method and scheme that is measured."""
        for method in self.methods:
            for scheme in method.schemes or self.schemes:
                yield method, scheme

    def plan(self, method: MethodRow, scheme: str, seed: int) -> QuantizationPlan:
        """How a cell is quantized."""
        found = re.fullmatch(r"W(\d+)A(\d+)", scheme)
        if found is None:
            raise InputError(f"{scheme}: is no scheme; write it as W4A8")
        widths = {"weights": int(found[1]), "activations": int(found[2])}
        return QuantizationPlan(
            method.method, options=widths | method.options, seed=seed, **self.quantize
        )


def load_recipe(path: Path, changes: list[str] | None = None) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    path
        A TOML file.
    changes
        ``table.key=value`` or ``key=value``, the value in TOML.

    Raises
    ------
    InputError
        A recipe that cannot be run.
    """
    try:
        content = read_toml(path, changes)
        arms = tuple(Arm(**arm) for arm in content.pop("arm"))
        methods = tuple(_read_method(dict(given)) for given in content.pop("method"))
        for name in ("seeds", "models", "tasks", "schemes", "headline"):
            content[name] = tuple(content[name])
        recipe = Recipe(arms=arms, methods=methods, **content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is no recipe of this benchmark ({error})") from None
    check_arms(path, recipe.arms, recipe.seeds)
    _check(path, recipe)
    return recipe


def _read_method(given: dict[str, Any]) -> MethodRow:
    if "schemes" in given:
        given["schemes"] = tuple(given["schemes"])
    return MethodRow(**given)


def _check(path: Path, recipe: Recipe) -> None:
    known = {arm.name for arm in recipe.arms}
    for name in recipe.models:
        if name not in known:
            raise InputError(f"{path}: there is no arm {name!r} to measure")
    if not (recipe.models and recipe.tasks and recipe.methods):
        raise InputError(f"{path}: has no models, no tasks or no methods")
    names = [method.name for method in recipe.methods]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two methods have one name")
    strange = set(recipe.headline) - set(recipe.schemes)
    for method, scheme in recipe.rows:
        strange |= {scheme} - set(recipe.schemes)
        recipe.plan(method, scheme, 0)
    if strange:
        raise InputError(f"{path}: {min(strange)} is not among the schemes")

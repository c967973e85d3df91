"""What a recipe says: one model, one course of training, and the arms that differ in one thing."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frugalfm.attention import NAMES
from frugalfm.errors import InputError

__all__ = ["Arm", "Recipe", "load_recipe"]


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes
    ----------
    name
        Of the row.
    against
        The arm it is compared with, of as many steps; None for those that others are compared
        with.
    attention, optimizer
        As the verbs take them.
    converts
        The arm whose checkpoints are converted; None for training from scratch.
    start
        Of a conversion; None for the best.
    change
        Options of the verb that differ from the recipe's.
    """

    name: str
    against: str | None = None
    attention: str = "softmax"
    optimizer: str = "adamw"
    converts: str | None = None
    start: str | None = None
    change: dict[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as a folder."""
        kept = "".join(c if c.isalnum() else "-" for c in self.name.lower())
        return "-".join(part for part in kept.split("-") if part)


@dataclass(frozen=True)
class Recipe:
    """A table.

    Attributes
    ----------
    title
        Of the table.
    seeds
        One model of every arm for each.
    pool
        ``sequences`` to train on, ``validation`` sequences, ``window`` in nucleotides.
    model
        Fields of DNABERT-2's config that differ from the published model's.
    train, convert
        Options of the verbs.
    measure
        ``bits``, and ``sequences`` to measure outliers and quantization on.
    arms
        Those that are converted come before what converts them.
    """

    title: str
    seeds: tuple[int, ...]
    pool: dict[str, int]
    model: dict[str, Any]
    train: dict[str, Any]
    convert: dict[str, Any]
    measure: dict[str, Any]
    arms: tuple[Arm, ...]


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
        content = tomllib.loads(path.read_text())
        for change in changes or []:
            _change(content, change)
        arms = tuple(Arm(**arm) for arm in content.pop("arm"))
        recipe = Recipe(arms=arms, **content | {"seeds": tuple(content["seeds"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is no recipe of this benchmark ({error})") from None
    _check(path, recipe)
    return recipe


def _change(content: dict[str, Any], change: str) -> None:
    key, _, value = change.partition("=")
    *tables, last = key.strip().split(".")
    for table in tables:
        content = content[table]
    content[last] = tomllib.loads(f"value = {value}")["value"]


def _check(path: Path, recipe: Recipe) -> None:
    known: dict[str, Arm] = {}
    for arm in recipe.arms:
        if arm.name in known:
            raise InputError(f"{path}: two arms are called {arm.name!r}")
        if arm.attention not in NAMES:
            raise InputError(f"{path}: arm {arm.name!r} has an unknown attention {arm.attention!r}")
        for other in (arm.against, arm.converts):
            if other is not None and other not in known:
                raise InputError(f"{path}: arm {arm.name!r} needs {other!r} before it")
        known[arm.name] = arm
    if not recipe.arms or not recipe.seeds:
        raise InputError(f"{path}: has no arms or no seeds")

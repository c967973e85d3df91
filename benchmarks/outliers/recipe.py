"""What a recipe says: one model, one course of training, and the arms that differ in one thing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import read_toml
from benchmarks.common_arms import Arm, check_arms

from frugalfm.errors import InputError

__all__ = ["Arm", "Recipe", "load_recipe"]


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
        content = read_toml(path, changes)
        arms = tuple(Arm(**arm) for arm in content.pop("arm"))
        recipe = Recipe(arms=arms, **content | {"seeds": tuple(content["seeds"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is no recipe of this benchmark ({error})") from None
    check_arms(path, recipe.arms, recipe.seeds)
    return recipe

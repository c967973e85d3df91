"""A recipe of the pruning benchmark: a TOML file, checked completely before anything runs."""

from __future__ import annotations

import inspect
import tomllib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import read_toml

import frugalfm
from frugalfm.errors import InputError

__all__ = ["BOUNDS", "METRICS", "Arm", "Recipe", "Task", "load_recipe"]

BOUNDS = ("untrained", "full", "reference")
"""Arms that need no coreset: random weights, the whole pool, and the model that scored it."""
METRICS = ("accuracy", "macro_f1", "spearman", "f1", "top_L", "top_L/2", "top_L/5",
           "long_top_L", "long_top_L/2", "long_top_L/5")  # fmt: skip

_SECTIONS = {
    "title", "alphabet", "seeds", "pool", "model", "pretrain", "reference", "scores", "cluster",
    "arms", "tasks", "goal",
}  # fmt: skip
_OPTIONAL = {"reference", "cluster", "goal"}
_POOL = {"file", "sample", "longest", "validation", "seed"} | {
    "max_length", "too_long", "min_length", "ambiguous", "duplicates",
}  # fmt: skip
_MODEL = {"name", "layers", "max_residues"}
_GOAL = {"share": 0.025, "against": "random-10x", "full": "full", "within": 0.02}
_SET_HERE = {
    "out",
    "seed",
    "overwrite",
    "device",
    "data",
    "model",
    "task",
    "checkpoint",
    "scores",
} | {"clusters"}


@dataclass(frozen=True)
class Arm:
    """One way to choose what to pretrain on.

    Attributes
    ----------
    name
        In tables and folders.
    strategy
        Of `select`, or one of :data:`BOUNDS`.
    options
        Further options of `select`, the budget among them.
    scores
        Which of the recipe's scores `select` goes by; the first by default.
    clustered
        Whether `select` is given the clusters of the recipe.
    """

    name: str
    strategy: str
    options: dict[str, Any]
    scores: str = ""
    clustered: bool = False

    @property
    def bound(self) -> bool:
        """Needs no coreset."""
        return self.strategy in BOUNDS


@dataclass(frozen=True)
class Task:
    """A labelled task, and how models are measured on it.

    Attributes
    ----------
    name, folder
        The folder is relative to the data; the name is for tables.
    metric
        The one compared: a key of :data:`METRICS`.
    probe, tune
        Options of `evaluate` and `tune`; None is not to be done.
    """

    name: str
    folder: str
    metric: str
    probe: dict[str, Any] | None
    tune: dict[str, Any] | None

    @property
    def ways(self) -> dict[str, dict[str, Any]]:
        """Ways of measuring, ``"probe"`` and ``"tune"``, with their options."""
        ways = {"probe": self.probe, "tune": self.tune}
        return {way: options for way, options in ways.items() if options is not None}


@dataclass(frozen=True)
class Recipe:
    """All settings of one benchmark; `settings` is what the file says."""

    path: Path
    settings: dict[str, Any]
    arms: tuple[Arm, ...]
    tasks: tuple[Task, ...]
    goal: dict[str, Any]

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return str(self.settings["title"])

    @property
    def seeds(self) -> list[int]:
        """One run of every arm each."""
        return list(self.settings["seeds"])

    def options(self, section: str) -> dict[str, Any] | None:
        """Options of a verb; None where the recipe has no such section."""
        found = self.settings.get(section)
        return None if found is None else dict(found)


def load_recipe(path: Path, changes: list[str] | None = None) -> Recipe:
    """Read and check a recipe.

    Parameters
    ----------
    path
        TOML file.
    changes
        ``"pretrain.steps=20"`` and the like, in TOML's notation, over what the file says.

    Raises
    ------
    InputError
        Anything unknown, missing or of the wrong kind; names the file and the entry.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such recipe")
    try:
        settings = read_toml(path, changes)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: {error}") from None
    _check(path, settings)
    scores = list(settings["scores"])
    arms = tuple(
        _read_arm(path, name, dict(entry), scores) for name, entry in settings["arms"].items()
    )
    tasks = tuple(_read_task(path, name, dict(entry)) for name, entry in settings["tasks"].items())
    if any(arm.clustered for arm in arms) and "cluster" not in settings:
        raise InputError(f"{path}: an arm is clustered, but there is no section [cluster]")
    goal = _GOAL | settings.get("goal", {})
    for role in ("against", "full"):
        if goal[role] not in settings["arms"]:
            raise InputError(f"{path}: goal.{role} is {goal[role]!r}, which is no arm")
    return Recipe(path, settings, arms, tasks, goal)


def _check(path: Path, settings: dict[str, Any]) -> None:
    _refuse_unknown(path, "the recipe", settings, _SECTIONS)
    missing = sorted(_SECTIONS - _OPTIONAL - settings.keys())
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}")
    _refuse_unknown(path, "[pool]", settings["pool"], _POOL)
    _refuse_unknown(path, "[model]", settings["model"], _MODEL)
    _refuse_unknown(path, "[goal]", settings.get("goal", {}), set(_GOAL))
    for section in ("pretrain", "cluster"):
        check_options(path, section, section, settings.get(section, {}))
    for name, options in settings["scores"].items():
        check_options(path, f"scores.{name}", "score", options)
    check_options(path, "reference", "pretrain", settings.get("reference", {}))
    if not settings["scores"]:
        raise InputError(f"{path}: [scores] needs an entry, such as [scores.head]")
    if "sample" not in settings["pool"] or "file" not in settings["pool"]:
        raise InputError(f"{path}: [pool] needs file and sample")
    seeds = settings["seeds"]
    if not seeds or any(type(seed) is not int for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: seeds are different whole numbers, at least one")


def _read_arm(path: Path, name: str, entry: dict[str, Any], known: list[str]) -> Arm:
    strategy = entry.pop("strategy", None)
    clustered = bool(entry.pop("clustered", False))
    scores = entry.pop("scores", known[0])
    if strategy in BOUNDS:
        _refuse_unknown(path, f"[arms.{name}]", entry, set())
    elif strategy is None or "budget" not in entry:
        raise InputError(f"{path}: [arms.{name}] needs a strategy and a budget")
    elif scores not in known:
        raise InputError(f"{path}: [arms.{name}] scores is one of {', '.join(known)}")
    else:
        check_options(path, f"arms.{name}", "select", {"strategy": strategy, **entry})
    return Arm(name, strategy, entry, scores, clustered)


def _read_task(path: Path, name: str, entry: dict[str, Any]) -> Task:
    known = {"folder", "metric", "probe", "tune"}
    _refuse_unknown(path, f"[tasks.{name}]", entry, known)
    task = Task(
        name,
        entry.get("folder", f"tasks/{name}"),
        entry.get("metric", "accuracy"),
        entry.get("probe"),
        entry.get("tune"),
    )
    if task.metric not in METRICS:
        raise InputError(f"{path}: [tasks.{name}] metric is one of {', '.join(METRICS)}")
    if not task.ways:
        raise InputError(f"{path}: [tasks.{name}] needs probe, tune or both, such as probe = {{}}")
    check_options(path, f"tasks.{name}.probe", "evaluate", task.probe or {})
    check_options(path, f"tasks.{name}.tune", "tune", task.tune or {})
    return task


def check_options(path: Path, section: str, verb: str, options: dict[str, Any]) -> None:
    """Refuse options that a verb does not have, or that the benchmark sets itself."""
    if not options:
        return
    if verb not in frugalfm.VERBS:
        raise InputError(f"{path}: [{section}] needs the verb {verb}, which is not installed")
    call = getattr(frugalfm, verb)
    known = set(inspect.signature(call).parameters) - _SET_HERE
    _refuse_unknown(path, f"[{section}]", options, known)
    hints = typing.get_type_hints(call)
    for name, value in options.items():
        choices = typing.get_args(hints[name])
        if typing.get_origin(hints[name]) is typing.Literal and value not in choices:
            raise InputError(
                f"{path}: [{section}] {name} is {value!r}; one of: {', '.join(map(str, choices))}"
            )


def _refuse_unknown(path: Path, where: str, entries: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(entries.keys() - known)
    if unknown:
        raise InputError(
            f"{path}: {where} has no {', '.join(unknown)}; there are: {', '.join(sorted(known))}"
        )

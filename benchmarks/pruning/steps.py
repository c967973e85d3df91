"""The steps of a recipe: calls of verbs, and what each needs to be done before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.pruning.losses import loss_folder
from benchmarks.pruning.recipe import Arm, Recipe, Task

from frugalfm.errors import InputError

__all__ = ["Step", "evaluation", "plan_steps"]

_DRAWN = ("sample", "longest", "validation", "seed")  # of [pool]; the rest is for `build`


@dataclass(frozen=True)
class Step:
    """One call; `out` is what it makes, and its name.

    Attributes
    ----------
    call
        A verb of FrugalFM, or a function of :mod:`benchmarks.pruning.local`.
    out
        The artifact, relative to the benchmark's folder.
    needs
        Artifacts that must be there before.
    positional, folders
        The artifacts and paths given to the call: in order, and by name.
    options
        All else that is given by name.
    """

    call: str
    out: str
    needs: tuple[str, ...] = ()
    positional: tuple[str, ...] = ()
    folders: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def evaluation(arm: Arm, seed: int, task: Task, way: str) -> str:
    """Where an evaluation of an arm's model is kept."""
    return f"evaluations/{arm.name}-{seed}/{task.name}-{way}"


def plan_steps(recipe: Recipe, data: Path) -> list[Step]:
    """List all steps, each after those it needs; all arms of a seed before the next seed."""
    data = data.resolve()
    shared = list(_shared(recipe, data))
    runs = [step for seed in recipe.seeds for step in _runs(recipe, data, seed)]
    return [*shared, *runs]


def _shared(recipe: Recipe, data: Path) -> Iterator[Step]:
    """The pool, the reference model, its scores, and clusters; the tasks are only looked for."""
    pool = dict(recipe.settings["pool"])
    drawn = {key: pool.pop(key) for key in _DRAWN if key in pool}
    source = data / pool.pop("file")
    if not source.is_file():
        raise InputError(f"{source}: no such file; --data is the folder with {source.name}")
    building = {"alphabet": recipe.settings["alphabet"]} | pool
    yield Step("draw_pool", "sample", (), (str(source),), {}, drawn)
    for name in ("pool", "validation"):
        yield Step("build", name, ("sample",), (f"sample/{name}.parquet",), {}, building)
    yield Step("describe_model", "model", options=dict(recipe.settings["model"]))
    yield _pretrain(recipe, "reference", "pool", 0, recipe.options("reference") or {})
    needs = ("pool", "models/reference")
    for name, options in recipe.settings["scores"].items():
        scoring = {"seed": 0} | options
        yield Step("score", f"scores/{name}", needs, ("pool",), {"model": needs[1]}, scoring)
    clustering = recipe.options("cluster")
    if clustering is not None:
        yield Step("cluster", "clusters", ("pool",), ("pool",), {}, {"seed": 0} | clustering)
    for task in recipe.tasks:
        folder = data / task.folder
        if not folder.is_dir():
            raise InputError(f"{folder}: no such task folder; see --data")


def _runs(recipe: Recipe, data: Path, seed: int) -> Iterator[Step]:
    for arm in recipe.arms:
        name = f"{arm.name}-{seed}"
        model = f"models/{name}"
        if arm.strategy == "untrained":
            yield Step("make_untrained", model, ("model",), ("model",), {}, {"seed": seed})
        elif arm.strategy == "reference":
            if seed != recipe.seeds[0]:  # there is only one
                continue
            model = "models/reference"
        elif arm.strategy == "full":
            yield _pretrain(recipe, name, "pool", seed)
        else:
            yield _select(arm, seed)
            yield _pretrain(recipe, name, f"coresets/{name}", seed)
        needs = (model, "validation")
        where = loss_folder(arm, seed)
        yield Step("measure_losses", where, needs, (model,), {"data": "validation"})
        for task in recipe.tasks:
            yield from _evaluate(arm, seed, task, model, data)


def _select(arm: Arm, seed: int) -> Step:
    scores = f"scores/{arm.scores}"
    folders, needs = {"data": "pool"}, [scores, "pool"]
    if arm.clustered:
        folders["clusters"] = "clusters"
        needs.append("clusters")
    options = {"strategy": arm.strategy, "seed": seed} | arm.options
    out = f"coresets/{arm.name}-{seed}"
    return Step("select", out, tuple(needs), (scores,), folders, options)


def _pretrain(
    recipe: Recipe, name: str, data: str, seed: int, changes: dict[str, Any] | None = None
) -> Step:
    options = {**recipe.settings["pretrain"], "seed": seed} | (changes or {})
    needs = ("model", "validation", data)
    # A folder with config and tokenizer only: the verb starts from random weights by its seed.
    folders = {"model": "model", "validation": "validation"}
    return Step("pretrain", f"models/{name}", needs, (data,), folders, options)


def _evaluate(arm: Arm, seed: int, task: Task, model: str, data: Path) -> Iterator[Step]:
    folder = str(data / task.folder)
    for way, options in task.ways.items():
        verb = "evaluate" if way == "probe" else "tune"
        out = evaluation(arm, seed, task, way)
        yield Step(verb, out, (model,), (model,), {"task": folder}, {"seed": seed} | options)

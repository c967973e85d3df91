"""From the evaluations of a run to numbers with intervals, and from those to a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from benchmarks.common import write_files
from benchmarks.pruning.intervals import (
    Interval,
    Sample,
    adjust_holm,
    compare,
    stack,
    summarise,
)
from benchmarks.pruning.losses import FREQUENCIES, collect_losses
from benchmarks.pruning.measuring import measure
from benchmarks.pruning.recipe import Arm, Recipe
from benchmarks.pruning.running import Journal
from benchmarks.pruning.steps import Step, evaluation

from frugalfm.artifacts import read_manifest
from frugalfm.errors import InputError

__all__ = ["LEVEL", "collect", "judge", "write_results"]

LEVEL = 0.05
"""Of tests."""

Table = dict[tuple[str, str, str], Sample]  # task, way, arm


def collect(recipe: Recipe, folder: Path, data: Path, steps: Sequence[Step]) -> dict[str, Any]:
    """Put together all that was measured with the seeds that every arm has.

    Returns
    -------
    dict
        Fit for JSON: ``title, recipe, goal, pool, sources, seeds, arms, tasks, values,
        differences, losses, runs, seconds, versions, verdict``. `values` has an interval for each
        task, way of measuring and arm; `differences` has one for each arm against the goal's
        rival, random data of equal size, the full pool and the untrained model. ``p_holm`` of a
        coreset is adjusted for all coresets and measurements with that rival.
    """
    seeds = [seed for seed in recipe.seeds if all(_exist(recipe, folder, seed))]
    if not seeds:
        raise InputError(f"{folder}: no seed is complete yet; run the recipe further")
    arms = _describe_arms(recipe, folder, seeds)
    samples = _measure_all(recipe, folder, seeds, data)
    journal = Journal(folder, steps)
    content = {
        "title": recipe.title,
        "recipe": recipe.settings,
        "goal": recipe.goal,
        "pool": read_manifest(folder / "pool")["summary"]["n_sequences"],
        "sources": _describe_sources(recipe, folder),
        "seeds": seeds,
        "arms": arms,
        "tasks": {task.name: task.metric for task in recipe.tasks},
        "values": _values(samples),
        "differences": _differences(recipe, samples),
        "losses": collect_losses(recipe, folder, seeds),
        "runs": _list_runs(samples, seeds),
        "seconds": _sum_seconds(journal, steps),
        "versions": read_manifest(folder / "pool")["versions"],
    }
    coresets = {arm["name"] for arm in arms if not arm["bound"]}
    _adjust(content["differences"], coresets, "rival")
    if content["losses"]:
        _adjust(content["losses"]["differences"], coresets, "mean")
    return content | {"verdict": judge(content)}


def _adjust(differences: list[dict[str, Any]], coresets: set[str], family: str) -> None:
    """Add p-values adjusted for the number of comparisons of coresets in a family."""
    own = [entry for entry in differences if entry["arm"] in coresets]
    for name in {entry[family] for entry in own}:
        members = [entry for entry in own if entry[family] == name]
        for entry, p in zip(members, adjust_holm([e["p"] for e in members]), strict=True):
            entry["p_holm"] = p


def _exist(recipe: Recipe, folder: Path, seed: int) -> list[bool]:
    return [
        (folder / evaluation(arm, seed, task, way) / "manifest.json").is_file()
        for arm in recipe.arms
        for task in recipe.tasks
        for way in task.ways
        if arm.strategy != "reference" or seed == recipe.seeds[0]
    ]


def _measure_all(recipe: Recipe, folder: Path, seeds: list[int], data: Path) -> Table:
    """Values of all arms; of one task and way, all on the same resamples of the test set."""
    samples: Table = {}
    arms = [(arm, seeds[:1] if arm.strategy == "reference" else seeds) for arm in recipe.arms]
    for task in recipe.tasks:
        for way in task.ways:
            places = [
                folder / evaluation(arm, seed, task, way) for arm, own in arms for seed in own
            ]
            alphabet = recipe.settings["alphabet"]
            found = iter(measure(places, task.metric, data / task.folder, alphabet))
            for arm, own in arms:
                samples[task.name, way, arm.name] = stack([next(found) for _ in own])
    return samples


def _describe_arms(recipe: Recipe, folder: Path, seeds: list[int]) -> list[dict[str, Any]]:
    size = read_manifest(folder / "pool")["summary"]["n_sequences"]
    described = []
    for arm in recipe.arms:
        chosen = {"untrained": 0, "full": size, "reference": size}.get(arm.strategy)
        if chosen is None:
            coreset = read_manifest(folder / f"coresets/{arm.name}-{seeds[0]}")
            chosen = coreset["summary"]["n_sequences"]
        described.append(
            {"name": arm.name, "strategy": arm.strategy, "options": arm.options}
            | {"sequences": chosen, "share": chosen / size, "bound": arm.bound}
            | {"training": _mean_training(folder, arm, seeds)}
            | {"sources": None if arm.bound else _count_sources(folder, arm, seeds[0])}
        )
    return described


def _mean_training(folder: Path, arm: Arm, seeds: list[int]) -> dict[str, float]:
    """Means over the seeds of what the models say of their training."""
    names = [f"{arm.name}-{seed}" for seed in seeds]
    if arm.strategy == "reference":
        names = ["reference"]
    found = [read_manifest(folder / "models" / name)["summary"] for name in names]
    keys = ("steps", "epochs", "loss", "validation_loss")
    return {key: float(np.mean([one[key] for one in found])) for key in keys if key in found[0]}


def _count_sources(folder: Path, arm: Arm, seed: int) -> dict[str, float] | None:
    """Share of each source in a coreset, the largest first."""
    table = _read_parts(folder / f"coresets/{arm.name}-{seed}", "source")
    if table is None:
        return None
    found = table["source"].value_counts().to_pylist()
    counts = {entry["values"]: entry["counts"] for entry in found}
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return {str(name): round(count / len(table), 4) for name, count in ordered}


def _describe_sources(recipe: Recipe, folder: Path) -> list[dict[str, Any]] | None:
    """What the first scores say of each source of the pool, the largest first."""
    pool = _read_parts(folder / "pool", "source")
    if pool is None:
        return None
    columns = ["row", "influence", "loss", "length"]
    scores = _read_parts(folder / "scores" / next(iter(recipe.settings["scores"])), *columns)
    assert scores is not None
    table = scores.sort_by("row").append_column("source", pool["source"])
    found = []
    for source in table["source"].unique().to_pylist():
        own = table.filter(pc.equal(table["source"], source))
        means = {name: float(pc.mean(own[name]).as_py()) for name in ("loss", "length")}
        middle = float(np.median(own["influence"].to_numpy()))
        share = {"source": source, "share": len(own) / len(table)}
        found.append(share | {"influence": middle} | means)
    return sorted(found, key=lambda entry: -entry["share"])


def _read_parts(folder: Path, *columns: str) -> pa.Table | None:
    """Columns of all parts of an artifact; None where it lacks one."""
    parts = sorted(folder.glob("part-*.parquet"))
    if not set(columns) <= set(pq.read_schema(parts[0]).names):
        return None
    return pa.concat_tables([pq.read_table(part, columns=list(columns)) for part in parts])


def _values(samples: Table) -> list[dict[str, Any]]:
    return [
        {"task": task, "way": way, "arm": arm} | summarise(sample).to_json()
        for (task, way, arm), sample in samples.items()
    ]


def _differences(recipe: Recipe, samples: Table) -> list[dict[str, Any]]:
    """Every arm against those it is to be compared with, paired."""
    rivals = [recipe.goal["against"], recipe.goal["full"]]
    rivals += [arm.name for arm in recipe.arms if arm.name in {"random", "untrained"}]
    found = []
    for (task, way, arm), sample in samples.items():
        for rival in dict.fromkeys(rivals):
            other = samples[task, way, rival]
            if arm != rival and len(other.values) == len(sample.values):
                difference: Interval = compare(sample, other)
                found.append(
                    {"task": task, "way": way, "arm": arm, "rival": rival} | difference.to_json()
                )
    return found


def _list_runs(samples: Table, seeds: list[int]) -> list[dict[str, Any]]:
    """One row for each model and task."""
    return [
        {"task": task, "way": way, "arm": arm, "seed": seeds[number], "value": float(value)}
        for (task, way, arm), sample in samples.items()
        for number, value in enumerate(sample.values)
    ]


def _sum_seconds(journal: Journal, steps: Sequence[Step]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for step in filter(journal.is_done, steps):
        totals[step.call] = round(totals.get(step.call, 0.0) + journal.seconds(step), 1)
    return totals


def judge(content: dict[str, Any]) -> dict[str, Any]:
    """Say of every coreset within the goal's share what it reaches, and of all what that means.

    Returns
    -------
    dict
        ``met`` (whether some coreset reaches the whole goal), ``coresets`` (for each, the tasks
        where its interval lies above the rival's, where it is better or worse by the paired test,
        where that is certain after Holm's correction, where it is above an untrained model, and
        where it comes close to the full pool) and ``words``.
    """
    goal = content["goal"]
    values = {(v["task"], v["way"], v["arm"]): v for v in content["values"]}
    pairs = {(d["task"], d["way"], d["arm"]): d for d in content["differences"]
             if d["rival"] == goal["against"]}  # fmt: skip
    floors = {(d["task"], d["way"], d["arm"]): d for d in content["differences"]
              if d["rival"] == "untrained"}  # fmt: skip
    settings = list(dict.fromkeys((task, way) for task, way, _ in values))
    coresets = {}
    for arm in content["arms"]:
        # Budgets are rounded to whole sequences.
        small = arm["share"] <= goal["share"] + 1 / content["pool"]
        if arm["bound"] or not small or arm["name"] == goal["against"]:
            continue
        apart, better, worse, close, certain, learned = [], [], [], [], [], []
        for task, way in settings:
            own, rival = (values[task, way, name] for name in (arm["name"], goal["against"]))
            paired, full = pairs[task, way, arm["name"]], values[task, way, goal["full"]]
            name = f"{task} ({way})"
            if paired.get("p_holm", 1) < LEVEL:
                certain.append(name)
            base = floors.get((task, way, arm["name"]))
            learned += [name] * (base is not None and base["low"] > 0)
            apart += [name] * (own["low"] > rival["high"])
            better += [name] * (paired["low"] > 0)
            worse += [name] * (paired["high"] < 0)
            close += [name] * (own["value"] >= (1 - goal["within"]) * full["value"])
        coresets[arm["name"]] = {"apart": apart, "better": better, "worse": worse, "close": close,
                                 "certain": certain, "above_untrained": learned}  # fmt: skip
    total = len(settings)
    met = [name for name, found in coresets.items()
           if len(found["apart"]) == len(found["close"]) == total]  # fmt: skip
    return {"met": met, "coresets": coresets, "words": _put_into_words(content, met, coresets)}


def _put_into_words(content: dict[str, Any], met: list[str], coresets: dict[str, Any]) -> list[str]:
    goal, values = content["goal"], content["values"]
    settings = {(v["task"], v["way"]) for v in values}
    claim = (
        f"a coreset of at most {goal['share']:.1%} of the pool beats {goal['against']} on every "
        f"task with intervals that do not overlap, and comes within {goal['within']:.0%} of "
        f"{goal['full']}"
    )
    words = [f"The goal ({claim}) is {'met by ' + ', '.join(met) if met else 'not met'}."]
    total = len(settings)
    for name, found in coresets.items():
        words.append(
            f"{name}: interval above {goal['against']}'s on {len(found['apart'])} of {total} "
            f"measurements, better by the paired test on {len(found['better'])}, worse on "
            f"{len(found['worse'])} ({len(found['certain'])} of them after Holm's correction); "
            f"above untrained on {len(found['above_untrained'])}; within {goal['within']:.0%} of "
            f"{goal['full']} on {len(found['close'])}."
        )
    words += _judge_losses(content)
    words += [_judge_arm(content, name) for name in (goal["full"], goal["against"])]
    if len(content["seeds"]) < 3:
        words.append(f"Only {len(content['seeds'])} seed(s): too few for a conclusion.")
    return words


def _judge_arm(content: dict[str, Any], name: str) -> str:
    """Whether an arm that others are compared with has learned anything itself."""
    own = [d for d in content["differences"] if d["arm"] == name and d["rival"] == "untrained"]
    gained = sum(d["low"] > 0 for d in own)
    words = f"{name} is better than an untrained model on {gained} of {len(own)} measurements"
    if content.get("losses"):
        entries = content["losses"]["values"]
        losses = {v["arm"]: v["value"] for v in entries if v["mean"] == "sequences"}
        gap = losses[name] - losses[FREQUENCIES]
        words += f", and its held-out loss is {gap:+.4f} nats from that of residue frequencies"
    return f"{words}; to beat what has learned nothing says little about pretraining."


def _judge_losses(content: dict[str, Any]) -> list[str]:
    """Which coresets pretrain as well as the rival, by the loss on sequences held out."""
    losses, rival = content.get("losses"), content["goal"]["against"]
    coresets = {arm["name"] for arm in content["arms"] if not arm["bound"]}
    words = []
    for mean in dict.fromkeys(entry["mean"] for entry in losses["values"]) if losses else ():
        own = [d for d in losses["differences"] if d["mean"] == mean and d["arm"] in coresets]
        lower = [d for d in own if d["high"] < 0]
        higher = [d for d in own if d["low"] > 0]
        words.append(
            f"Held-out masked loss, mean over {mean}: lower than {rival}'s by the paired test for "
            f"{_name(lower)}; higher for {_name(higher)} (* also after Holm's correction)."
        )
    return words


def _name(differences: list[dict[str, Any]]) -> str:
    names = [d["arm"] + "*" * (d.get("p_holm", 1) < LEVEL) for d in differences]
    return ", ".join(names) or "none"


def write_results(content: dict[str, Any], folder: Path) -> None:
    """Write ``results.json`` and, one row a model and task, ``results.parquet``."""
    write_files(content, content["runs"], folder / "results")

"""From a pool to measured cells, one after the other; what is finished is skipped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common import exclusively, remember
from benchmarks.common_arms import Arm, prepare_course, train_arm
from benchmarks.quantization.recipe import MASKED, Recipe

import frugalfm
from frugalfm.artifacts import read_manifest
from frugalfm.errors import InputError
from frugalfm.quantization import QuantizationPlan

__all__ = ["run"]

Row = dict[str, Any]


def run(recipe: Recipe, data: Path, out: Path, device: str = "auto") -> list[Row]:
    """Train, convert, tune, quantize and measure all that is not done yet.

    Broken off, it continues with the same call; a cell, or some steps of training, are done again.

    Parameters
    ----------
    recipe
        What to do.
    data
        Folder with ``pool.fasta`` (or ``.gz``), ``dnabert2_tokenizer`` and ``GUE``.
    out
        For all artifacts.
    device
        As the verbs take it.

    Returns
    -------
    list of dict
        One per seed, model, task, method and scheme.

    Raises
    ------
    InputError
        Data that is not there.
    """
    pools = sorted(data.glob("pool.fasta*"))
    if not pools:
        raise InputError(f"{data}: holds no pool.fasta or pool.fasta.gz")
    shards, blank = prepare_course(recipe, pools[0], data / "dnabert2_tokenizer", out)
    tasks = _prepare_tasks(recipe, data / "GUE", out / "tasks")
    rows: list[Row] = []
    for seed in recipe.seeds:
        made = {
            arm.name: train_arm(recipe, arm, seed, shards, blank, out, device)
            for arm in recipe.arms
        }
        for name in recipe.models:
            arm = next(arm for arm in recipe.arms if arm.name == name)
            runner = _Runner(recipe, arm, seed, out, device)
            rows += runner.run(made[name], tasks, shards["validation"])
    return rows


def _prepare_tasks(recipe: Recipe, root: Path, out: Path) -> dict[str, Path]:
    """Copy tasks, with so many of the training rows, drawn at random but always the same."""
    limit = recipe.tune["max_train"]
    made = {}
    with exclusively(out):
        for task in recipe.tasks:
            folder = made[task] = out / task
            folder.mkdir(parents=True, exist_ok=True)
            for split in ("dev", "test", "train"):
                source, copy = root / task / f"{split}.csv", folder / f"{split}.csv"
                if not source.is_file():
                    raise InputError(f"{source}: no such file; the recipe wants the task {task}")
                head, *lines = source.read_text().splitlines()
                if split == "train" and len(lines) > limit:
                    order = np.random.default_rng(0).permutation(len(lines))
                    lines = [lines[row] for row in np.sort(order[:limit])]
                text = "\n".join([head, *lines]) + "\n"
                if not copy.is_file() or copy.read_text() != text:
                    copy.write_text(text)
    return made


class _Runner:
    """One model of one seed: tuned on each task, quantized by each method."""

    def __init__(self, recipe: Recipe, arm: Arm, seed: int, out: Path, device: str) -> None:
        self.recipe, self.arm, self.seed, self.device = recipe, arm, seed, device
        self.name = f"{arm.slug}-{seed}"
        self.out = out

    def run(self, checkpoint: Path, tasks: dict[str, Path], validation: Path) -> Iterator[Row]:
        yield from self._measure(MASKED, _Case(checkpoint, self.device, data=validation))
        options = {name: x for name, x in self.recipe.tune.items() if name != "max_train"}
        for name, folder in tasks.items():
            tuned = frugalfm.tune(
                checkpoint,
                task=folder,
                out=self.out / "tuned" / self.name / _slug(name),
                seed=42 + self.seed,
                device=self.device,
                **options,
            )
            yield from self._measure(name, _Case(tuned, self.device, task=folder))

    def _measure(self, task: str, case: _Case) -> Iterator[Row]:
        folder = self.out / "cells" / self.name / _slug(task)
        for method, scheme in self.recipe.rows:
            plan = self.recipe.plan(method, scheme, self.seed)
            key = {"model": case.identity, "plan": plan.identity(), "task": task}
            place = folder / f"{_slug(method.name)}-{scheme}.json"
            yield remember(place, key, partial(self._find, task, case, method.name, scheme, plan))

    def _find(
        self, task: str, case: _Case, method: str, scheme: str, plan: QuantizationPlan
    ) -> Row:
        cell = {"task": task, "method": method, "scheme": scheme}
        found = {"seed": self.seed, "model": self.arm.name, **cell, **case.quantize(plan)}
        print(
            f"{self.arm.name}, seed {self.seed}, {task}: {method} {scheme} {found['value']:.4f} -> "
            f"{found['quantized']:.4f} ({found['seconds']:.1f} s)",
            flush=True,
        )
        return found


class _Case:
    """A checkpoint, and what its quantization is measured on."""

    def __init__(
        self, folder: Path, device: str, *, data: Path | None = None, task: Path | None = None
    ) -> None:
        self.folder, self.device, self._data, self._task = folder, device, data, task
        self._manifest = read_manifest(folder)

    @property
    def identity(self) -> dict[str, str]:
        """Hashes of the weights."""
        files = self._manifest["files"].items()
        return {name: file["sha256"] for name, file in files if name.endswith(".safetensors")}

    @cached_property
    def _subject(self) -> Any:
        from frugalfm.encoders.devices import choose_device
        from frugalfm.quantization import load_subject

        return load_subject(self.folder, device=choose_device(self.device))

    @cached_property
    def _read(self) -> Any:
        from frugalfm.quantization.running import read_own_task
        from frugalfm.quantization.subjects import read_tuning

        if self._task is None:
            return None
        return read_own_task(self._task, self._subject, read_tuning(self.folder))

    def quantize(self, plan: QuantizationPlan) -> Row:
        """Find a scheme and measure it."""
        from frugalfm.quantization.running import quantize_subject

        subject, task, started = self._subject, self._read, time.perf_counter()
        found = quantize_subject(subject, plan, data=self._data, task=task).found.to_dict()
        row = {
            "seconds": time.perf_counter() - started,
            "agreement": found["agreement"],
            "output_error": found["output_error"],
            "saturation": max([0.0, *found["saturation"].values()]),
        }
        if task is None:
            parameters = sum(p.numel() for p in subject.model.parameters())
            return row | {
                "value": found["loss"],
                "quantized": found["quantized_loss"],
                "accuracy": found["accuracy"],
                "quantized_accuracy": found["quantized_accuracy"],
                "parameters": parameters,
            }
        return row | {
            "value": found["value"],
            "quantized": found["quantized_value"],
            "accuracy": found["plain"]["test"]["accuracy"]["value"],
            "quantized_accuracy": found["quantized"]["test"]["accuracy"]["value"],
        }


def _slug(name: str) -> str:
    return "-".join(part for part in "".join(c if c.isalnum() else " " for c in name).split())

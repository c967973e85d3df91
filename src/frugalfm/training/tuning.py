"""Tuning an encoder with a head on a task: the loop, whatever part of the model is trained.

The weights that do best on dev are kept, the untuned ones included where the head began as a
probe; the test split has no part in any of this. A killed tuning resumes to the same weights.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frugalfm.encoders.heads import head_parameters, stretch_head
from frugalfm.progress import progress
from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import HEADLINE, NUMBERS, Kind, is_map
from frugalfm.tasks.results import score_split
from frugalfm.tokens.codec import Codec
from frugalfm.training.labelled import TuningData
from frugalfm.training.loop import clip_gradient, mean_finite
from frugalfm.training.map_outputs import (
    find_standard,
    measure_maps,
    positions_head,
    start_from_separation,
)
from frugalfm.training.optimizers import make_optimizers, scale_learning_rate, update
from frugalfm.training.outputs import Standard, accumulate, decide, run_model
from frugalfm.training.recipes import Tuned, TuningRecipe
from frugalfm.training.resume import load_state, read_record, save_state
from frugalfm.training.starts import start_from_probe

__all__ = ["Tuned", "TuningRecipe", "decide", "predict", "tune"]

_BETAS = (0.9, 0.999)  # AdamW's own; those of pretraining forget sooner.


def tune(
    model: nn.Module,
    task: Task,
    recipe: TuningRecipe,
    codec: Codec,
    max_tokens: int | None = None,
    *,
    state: Path | None = None,
) -> Tuned:
    """Train whatever of a model needs a gradient, in place, and end with its best weights on dev.

    Numbers are standardised for training; afterwards the head gives them in their own units.

    Parameters
    ----------
    model
        With a head for the task, on the device to compute on.
    task
        Of which only train and dev are read.
    recipe
        How.
    codec, max_tokens
        As in :meth:`TuningData.encode`.
    state
        Folder for what a killed run resumes from; None if nothing is to be saved. Resumed, the
        model must be made as it was made first.

    Raises
    ------
    FrugalError
        The loss is no longer finite.
    """
    train = TuningData.encode(task.train, task.kind, codec, max_tokens)
    dev = TuningData.encode(task.dev, task.kind, codec, max_tokens)
    run = _Run(model, task, recipe, train, dev)
    if state is None or not run.resume(state):
        run.begin()
        if state is not None:
            run.save(state)
    steps = recipe.count_steps(len(train.sequences))
    every = recipe.validate_every or math.ceil(len(train.sequences) / recipe.batch_size)
    warmup = recipe.warmup_share(steps)
    done = run.tuned.steps
    bar = progress(total=steps, initial=done, desc="tune", unit="step")
    for step, epoch, rows in _iterate(train, recipe, done, steps):
        run.step(step, rows, recipe.learning_rate * scale_learning_rate(step, steps, warmup))
        bar.update()
        if run.tuned.steps % every == 0 or run.tuned.steps == steps:
            bar.set_postfix(run.validate(epoch))
            if run.tuned.since_reached >= recipe.patience:
                run.tuned.stopped = run.tuned.steps < steps
                break
        if state is not None and run.tuned.steps % recipe.save_every == 0:
            run.save(state)
    bar.close()
    return run.finish()


def predict(model: nn.Module, data: TuningData, recipe: TuningRecipe) -> np.ndarray:
    """Logits or values, as :func:`~frugalfm.training.outputs.run_model` gives them."""
    return run_model(model, data, recipe.batch_tokens, recipe.precision)


class _Weights(nn.Module):
    """What is trained, as it is now and as it was best on dev: one module to save and load."""

    def __init__(self, trained: list[nn.Parameter]) -> None:
        super().__init__()
        self.now = nn.ParameterList(trained)
        # Not on the device, where the room is.
        best = [nn.Parameter(p.detach().cpu().clone(), requires_grad=False) for p in trained]
        self.best = nn.ParameterList(best)

    @torch.no_grad()
    def keep(self) -> None:
        for best, now in zip(self.best, self.now, strict=True):
            best.copy_(now)

    @torch.no_grad()
    def restore(self) -> None:
        for best, now in zip(self.best, self.now, strict=True):
            now.copy_(best)


class _Run:
    """One tuning: the model, its optimizers, its best weights, and the record of it."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        recipe: TuningRecipe,
        train: TuningData,
        dev: TuningData,
    ) -> None:
        self.model, self.task, self.recipe = model, task, recipe
        self.train, self.dev = train, dev
        self.standard = _find_standard(train)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.weights = _Weights(self.trained)
        self.optimizers = _make_optimizers(model, recipe)
        self.tuned = Tuned(
            _name_metric(task.kind),
            shortened=train.cropped,
            parameters=sum(map(torch.numel, self.trained)),
        )
        self.losses: list[Tensor] = []  # since the last validation
        self.started = time.perf_counter()

    def begin(self) -> None:
        if self.recipe.start != "probe":
            return
        if self.train.maps is not None:
            start_from_separation(self.model, self.train.maps, self.standard)
            self._note_start()
            return
        found = start_from_probe(
            self.model,
            self.task,
            self.train,
            self.dev,
            read=lambda data: predict(self.model, data, self.recipe),
            measure=self._score,
            standard=self.standard,
            seed=self.recipe.seed,
        )
        if found is not None:
            self.tuned.start = asdict(found)
            self._note_start()

    def step(self, step: int, rows: np.ndarray, learning_rate: float) -> None:
        recipe = self.recipe
        self.model.train()
        # Dropout depends on the step alone, so a resumed run needs no saved generator.
        torch.manual_seed((recipe.seed << 32) + step)
        loss = accumulate(
            self.model, self.train, rows, recipe.batch_tokens, recipe.precision, self.standard
        )
        self.losses.append(clip_gradient(loss, self.trained, recipe.clip))
        update(self.optimizers, learning_rate)
        self.tuned.steps = step + 1

    def validate(self, epoch: int) -> dict[str, str]:
        loss = mean_finite(self.losses, self.tuned.steps)
        self.losses.clear()
        value = self._measure()
        if self.tuned.note(epoch, loss, value):
            self.weights.keep()
        return {"loss": f"{loss:.3f}", f"dev {self.tuned.metric}": f"{value:.3f}"}

    def save(self, state: Path) -> None:
        if self.losses:
            mean_finite(self.losses, self.tuned.steps)  # else every later run would begin there
        record = {
            "tuned": asdict(self.tuned) | {"seconds": self._elapse()},
            "losses": [float(loss) for loss in self.losses],
        }
        save_state(state, self.tuned.steps, self.weights, self.optimizers, record)

    def resume(self, state: Path) -> bool:
        record = read_record(state)
        if record is None:
            return False
        load_state(state, self.weights, self.optimizers)
        self.tuned = Tuned(**record["tuned"])
        self.losses = [torch.tensor(loss) for loss in record["losses"]]
        return True

    def finish(self) -> Tuned:
        self.weights.restore()
        shift, scale = self.standard
        if self.task.kind in NUMBERS:
            stretch_head(self.model, 1, scale, shift)
        elif self.task.kind == "distance":
            positions_head(self.model).stretch(scale, shift)
        self.model.eval()
        self.tuned.seconds = self._elapse()
        return self.tuned

    def _note_start(self) -> None:
        self.tuned.note(0, None, self._measure())
        self.weights.keep()

    def _measure(self) -> float:
        recipe = self.recipe
        if self.dev.maps is None:
            return self._score(predict(self.model, self.dev, recipe))
        return measure_maps(
            self.model,
            self.dev,
            recipe.batch_tokens,
            recipe.precision,
            self.standard,
            recipe.seed,
        )[0]

    def _score(self, outputs: np.ndarray) -> float:
        found = decide(self.task.kind, outputs)
        return score_split(self.task, self.task.dev, found, resamples=0)[self.tuned.metric].value

    def _elapse(self) -> float:
        return self.tuned.seconds + time.perf_counter() - self.started


def _name_metric(kind: Kind) -> str:
    """Name what is compared on dev: as the field does, and of classes the one of GUE."""
    return HEADLINE[kind] if kind in NUMBERS or is_map(kind) else "mcc"


def _find_standard(train: TuningData) -> Standard:
    """Mean and standard deviation that numbers are trained in."""
    if train.maps is not None:
        return find_standard(train.maps)
    if train.kind not in NUMBERS:
        return 0.0, 1.0
    values = np.concatenate(train.targets)
    return float(values.mean()), float(values.std())


def _make_optimizers(model: nn.Module, recipe: TuningRecipe) -> list[Optimizer]:
    """AdamW for all that is trained, with a learning rate of its own for the head if asked."""
    optimizers = make_optimizers(
        model,
        "adamw",
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=_BETAS,
    )
    if recipe.head_learning_rate is None:
        return optimizers
    head = set(map(id, head_parameters(model)))
    factor = recipe.head_learning_rate / recipe.learning_rate
    for optimizer in optimizers:
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if id(p) in head]
            group["params"] = [p for p in group["params"] if id(p) not in head]
            if own:
                rest = {key: value for key, value in group.items() if key != "params"}
                optimizer.add_param_group({**rest, "params": own, "factor": factor})
    return optimizers


def _iterate(
    data: TuningData, recipe: TuningRecipe, done: int, steps: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield step, epoch and rows from step `done` on."""
    plans = (
        (epoch, rows)
        for epoch in itertools.count()
        for rows in data.plan(recipe.batch_size, seed=recipe.seed, epoch=epoch)
    )
    for step, (epoch, rows) in enumerate(itertools.islice(plans, done, steps), done):
        yield step, epoch, rows

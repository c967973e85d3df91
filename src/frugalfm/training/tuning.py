"""Tuning an encoder with a head on a task: the loop, whatever part of the model is trained.

The checkpoint that does best on dev is kept; the test split has no part in any of this.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from frugalfm.encoders.devices import Precision, autocast, limit_batch
from frugalfm.encoders.heads import residue_logits, stretch_head
from frugalfm.progress import progress
from frugalfm.tasks.folder import Task
from frugalfm.tasks.labels import Kind
from frugalfm.tasks.results import score_split
from frugalfm.tokens.batches import plan_by_length
from frugalfm.tokens.codec import Codec
from frugalfm.training.labelled import TuningData
from frugalfm.training.loop import mean_finite
from frugalfm.training.optimizers import make_optimizers, scale_learning_rate, update

__all__ = ["Tuned", "TuningRecipe", "decide", "predict", "tune"]

_BETAS = (0.9, 0.999)  # AdamW's own; those of pretraining forget sooner.


@dataclass(frozen=True)
class TuningRecipe:
    """How to tune.

    Attributes
    ----------
    epochs, max_steps
        Passes over the training split, and optimizer steps at most.
    batch_size
        Sequences of one optimizer step: the effective batch.
    batch_tokens
        Padded tokens of one forward pass, at most; a step takes as many passes as it needs, and
        comes to the same.
    learning_rate, weight_decay, warmup_steps
        Of AdamW; the rate decays linearly after the warm-up, which takes a tenth of the steps,
        at most 50, when None.
    clip
        Largest norm of the gradient.
    validate_every, patience
        Steps between scores of dev (an epoch when None), and how many of them without a better
        one end the tuning.
    seed
        Determines batches and dropout.
    precision
        ``bf16`` runs the forward pass under autocast; what is trained stays fp32.
    """

    epochs: int = 5
    max_steps: int | None = None
    batch_size: int = 32
    batch_tokens: int = 16_384
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    warmup_steps: int | None = None
    clip: float = 1.0
    validate_every: int | None = None
    patience: int = 5
    seed: int = 42
    precision: Precision = "fp32"

    def count_steps(self, sequences: int) -> int:
        """Optimizer steps of the whole run."""
        steps = self.epochs * math.ceil(sequences / self.batch_size)
        return min(steps, self.max_steps or steps)

    def warmup_share(self, steps: int) -> float:
        """Share of the steps that warm up."""
        rising = min(50, steps / 10) if self.warmup_steps is None else self.warmup_steps
        return min(rising / steps, 1)

    def identity(self) -> dict[str, Any]:
        """All that decides the result."""
        return asdict(self)


@dataclass
class Tuned:
    """How tuning went.

    Attributes
    ----------
    steps, best_step
        Steps taken, and those after which dev was best: the weights that are kept.
    best
        The dev metric there.
    metric
        Its name.
    stopped
        Whether patience ended the tuning.
    parameters, seconds
        Numbers trained, and what that took.
    shortened
        Training sequences cut to `max_tokens`.
    history
        A line a validation: step, epoch, mean loss since the last one, dev metric.
    since_best
        Validations after the best one.
    """

    metric: str
    steps: int = 0
    best_step: int = 0
    best: float = -math.inf
    stopped: bool = False
    shortened: int = 0
    parameters: int = 0
    seconds: float = 0.0
    history: list[dict[str, float | None]] = field(default_factory=list)
    since_best: int = 0

    def summarise(self) -> dict[str, Any]:
        """Give what metrics record of the tuning."""
        return {
            "steps": self.steps,
            "best_step": self.best_step,
            "stopped_early": self.stopped,
            "chosen_by": f"dev {self.metric}",
            "shortened": self.shortened,
            "trained_parameters": self.parameters,
            "seconds": round(self.seconds, 1),
        }

    def note(self, epoch: int, loss: float, value: float) -> bool:
        """Write a validation down and say whether it is the best so far (NaN never is)."""
        metric = value if math.isfinite(value) else None
        line = {"step": self.steps, "epoch": epoch, "loss": loss, f"dev_{self.metric}": metric}
        better = value > self.best or not self.history
        self.history.append(line)
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.best_step = self.steps
            self.best = -math.inf if metric is None else metric
        return better


def tune(
    model: nn.Module, task: Task, recipe: TuningRecipe, codec: Codec, max_tokens: int | None = None
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

    Raises
    ------
    FrugalError
        The loss is no longer finite.
    """
    train = TuningData.encode(task.train, task.kind, codec, max_tokens)
    dev = TuningData.encode(task.dev, task.kind, codec, max_tokens)
    shift, scale = 0.0, 1.0
    if task.kind == "regression":
        shift, scale = float(task.train.targets.mean()), float(task.train.targets.std())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizers = make_optimizers(
        model,
        "adamw",
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=_BETAS,
    )
    steps = recipe.count_steps(len(train.sequences))
    every = recipe.validate_every or math.ceil(len(train.sequences) / recipe.batch_size)
    warmup = recipe.warmup_share(steps)
    tuned = Tuned("spearman" if task.kind == "regression" else "mcc", shortened=train.cropped)
    tuned.parameters, started = sum(map(torch.numel, trained)), time.perf_counter()
    kept = _copy(trained)
    losses: list[Tensor] = []
    bar = progress(total=steps, desc="tune", unit="step")
    for step, epoch, rows in _iterate(train, recipe, steps):
        losses.append(_accumulate(model, train, rows, recipe, step, (shift, scale)))
        nn.utils.clip_grad_norm_(trained, recipe.clip)
        update(optimizers, recipe.learning_rate * scale_learning_rate(step, steps, warmup))
        bar.update()
        tuned.steps = step + 1
        if tuned.steps % every and tuned.steps != steps:
            continue
        loss = mean_finite(losses, tuned.steps)
        losses.clear()
        found = decide(task.kind, predict(model, dev, recipe))
        value = score_split(task, task.dev, found, resamples=0)[tuned.metric].value
        bar.set_postfix({"loss": f"{loss:.3f}", f"dev {tuned.metric}": f"{value:.3f}"})
        if tuned.note(epoch, loss, value):
            kept = _copy(trained)
        elif tuned.since_best >= recipe.patience:
            tuned.stopped = tuned.steps < steps
            break
    bar.close()
    with torch.no_grad():
        for parameter, best in zip(trained, kept, strict=True):
            parameter.copy_(best)
    if task.kind == "regression":
        stretch_head(model, 1, scale, shift)
    model.eval()
    tuned.seconds = time.perf_counter() - started
    return tuned


@torch.no_grad()
def predict(model: nn.Module, data: TuningData, recipe: TuningRecipe) -> np.ndarray:
    """Logits or values, fp32, in the order of the sequences.

    Returns
    -------
    ndarray
        Shape ``(sequences, outputs)``, or ``(all residues, classes)`` for labels of residues.
    """
    model.eval()
    device = next(model.parameters()).device
    found: list[np.ndarray] = [np.empty(0)] * len(data.sequences)
    limit = limit_batch(recipe.batch_tokens, device)
    for rows in plan_by_length(data.lengths, limit):
        outputs = _forward(model, data, rows, recipe.precision).cpu().numpy()
        sizes = data.lengths[rows] if data.kind == "token" else np.ones(len(rows), np.int64)
        for row, part in zip(rows, np.split(outputs, np.cumsum(sizes)[:-1]), strict=True):
            found[row] = part
    return np.concatenate(found)


def decide(kind: Kind, outputs: np.ndarray) -> np.ndarray:
    """Turn outputs into predictions of the shape of the targets."""
    if kind == "regression":
        return np.asarray(outputs[:, 0], np.float64)
    if kind == "multilabel":
        return np.asarray(outputs > 0, np.int64)
    return np.asarray(outputs.argmax(1))


def _forward(model: nn.Module, data: TuningData, rows: np.ndarray, precision: Precision) -> Tensor:
    device = next(model.parameters()).device
    ids, lengths = data.codec.collate([data.sequences[row] for row in rows])
    attended = torch.from_numpy((ids != data.codec.pad_id).astype(np.int64))
    with autocast(device, precision):
        out = model(input_ids=torch.from_numpy(ids).to(device), attention_mask=attended.to(device))
    logits: Tensor = out.logits.float()
    return residue_logits(logits, lengths.tolist()) if data.kind == "token" else logits


def _accumulate(
    model: nn.Module,
    data: TuningData,
    rows: np.ndarray,
    recipe: TuningRecipe,
    step: int,
    standard: tuple[float, float],
) -> Tensor:
    """Add up the gradient of the mean loss of some rows, in as many passes as memory asks for."""
    model.train()
    torch.manual_seed((recipe.seed << 32) + step)
    shift, scale = standard
    items = sum(len(data.targets[row]) for row in rows)
    total = torch.zeros(())
    for part in plan_by_length(data.lengths[rows], recipe.batch_tokens):
        outputs = _forward(model, data, rows[part], recipe.precision)
        targets = np.concatenate([data.targets[row] for row in rows[part]])
        if data.kind == "regression":
            targets = (targets - shift) / scale
        loss = _sum_losses(data.kind, outputs, torch.from_numpy(targets).to(outputs.device)) / items
        loss.backward()
        total = total + loss.detach().cpu()
    return total


def _sum_losses(kind: Kind, outputs: Tensor, targets: Tensor) -> Tensor:
    if kind == "regression":
        return functional.mse_loss(outputs[:, 0], targets.float(), reduction="sum")
    if kind == "multilabel":
        return (
            functional.binary_cross_entropy_with_logits(outputs, targets.float(), reduction="none")
            .mean(1)
            .sum()
        )
    return functional.cross_entropy(outputs, targets, reduction="sum")


def _iterate(
    data: TuningData, recipe: TuningRecipe, steps: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    plans = (
        (epoch, rows)
        for epoch in itertools.count()
        for rows in data.plan(recipe.batch_size, seed=recipe.seed, epoch=epoch)
    )
    for step, (epoch, rows) in enumerate(itertools.islice(plans, steps)):
        yield step, epoch, rows


def _copy(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().cpu().clone() for parameter in parameters]

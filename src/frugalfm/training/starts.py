"""Where a head starts: at the linear probe of what it reads, so that tuning begins where it ends.

The last linear of every head reads features of a sequence or a residue: the mean of the states,
or what a small network makes of the first token. A probe on these features, chosen on dev, *is*
such a linear (its standardisation folds into its weights), so that the untuned model predicts
what the probe does. The idea is that of linear probing then fine-tuning (Kumar et al. 2022).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from frugalfm.encoders.heads import final_linear
from frugalfm.probing.evaluation import draw_whole
from frugalfm.probing.probes import ALPHAS, Probe, choose, fit_labels, fit_logistic, fit_ridge
from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import IGNORED, NUMBERS
from frugalfm.training.labelled import TuningData
from frugalfm.training.outputs import Standard

__all__ = ["Start", "start_from_probe"]

_MOST = 20_000  # sequences, or residues, that the probe is fitted on
_NEVER = -1e29  # A bias below this is a class that the probe has not met ...
_FLOOR = -30.0  # ... and becomes a number to train from.

Read = Callable[[TuningData], np.ndarray]
Measure = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Start:
    """A probe that a head began as.

    Attributes
    ----------
    setting
        Of its penalty, chosen on dev.
    value
        Its metric on dev.
    items
        Sequences or residues that it was fitted on.
    seconds
        That this took.
    """

    setting: float
    value: float
    items: int
    seconds: float


def start_from_probe(
    model: nn.Module,
    task: Task,
    train: TuningData,
    dev: TuningData,
    *,
    read: Read,
    measure: Measure,
    standard: Standard,
    seed: int,
) -> Start | None:
    """Give the last linear of a model's head the weights of the best probe.

    Parameters
    ----------
    model
        Whose head ends in a linear layer; changed in place.
    task, train, dev
        The task, and its splits as the model reads them.
    read
        Outputs of the model for a split.
    measure
        Dev's metric for outputs; the larger the better.
    standard
        Of the numbers that regression is trained in.
    seed
        Determines the rows that are drawn from a larger training split.

    Returns
    -------
    Start or None
        None, and no change, where the drawn labels leave nothing to fit, or the head has no such
        layer (labels of residues from pieces of several).
    """
    began = time.perf_counter()
    part = train.take(draw_whole(train.sizes, _MOST, seed))
    targets = np.concatenate(part.targets)
    linear = final_linear(model, len(task.classes) or 1)
    if linear is None or linear.bias is None:
        return None
    with _bypassed(linear):
        x, held = read(part), read(dev)
    if not (np.isfinite(x).all() and np.isfinite(held).all()):
        return None  # The first steps will say what to do about it.
    probes = _fit(task, x, targets, standard)
    if not probes:
        return None
    values = [measure(probe.outputs(held)) for probe in probes]
    best = choose(values)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(probes[best].weights))
        bias = np.where(probes[best].bias < _NEVER, _FLOOR, probes[best].bias)
        linear.bias.copy_(torch.from_numpy(bias))
    return Start(probes[best].setting, values[best], len(x), time.perf_counter() - began)


def _fit(task: Task, x: np.ndarray, y: np.ndarray, standard: Standard) -> list[Probe]:
    if task.kind in NUMBERS:
        return fit_ridge(x, (y - standard[0]) / standard[1], ALPHAS)
    if task.kind == "multilabel":
        return fit_labels(x, y)
    x, y = x[y != IGNORED], y[y != IGNORED]
    return fit_logistic(x, y, len(task.classes)) if len(np.unique(y)) > 1 else []


@contextlib.contextmanager
def _bypassed(linear: nn.Linear) -> Iterator[None]:
    """Let a model give what its last linear reads."""
    linear.forward = lambda states: states  # type: ignore[method-assign, assignment, misc]
    try:
        yield
    finally:
        del linear.forward

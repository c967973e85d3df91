"""What a report is made of: plain, frozen records, read from artifacts by `collect`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "Coreset",
    "Interval",
    "Model",
    "Outliers",
    "Pool",
    "Probe",
    "Quantization",
    "Results",
    "Run",
    "Site",
    "Stratum",
]


@dataclass(frozen=True)
class Interval:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """A linear probe's result on the test set of a task.

    Attributes
    ----------
    task, classes
        The task's name, and the number of its classes.
    accuracy, macro_f1
        With bootstrap intervals over the test sequences.
    chance
        Accuracy of always predicting one class.
    correct
        Whether each test sequence was predicted right, in the order of the test file; shape (n,).
    """

    task: str
    classes: int
    accuracy: Interval
    macro_f1: Interval
    chance: float
    correct: np.ndarray


@dataclass(frozen=True)
class Model:
    """One pretrained (or untrained) encoder and what it achieved.

    Attributes
    ----------
    name, label
        Its folder's name, and how the report calls it.
    attention
        ``softmax`` or ``softmax1``.
    role
        ``strategy`` (trained on a coreset), ``full`` (on the whole pool) or ``untrained``.
    sequences, share
        How many sequences it was trained on, and which share of the pool that is (0 to 1).
    epochs, steps, seconds
        Of the pretraining; seconds are None for an untrained model.
    validation_loss
        Masked loss in nats per residue on held-out sequences; None for an untrained model.
    curve
        Pairs of an optimizer step and its training loss.
    """

    name: str
    label: str
    attention: str
    role: str
    sequences: int
    share: float
    epochs: int
    steps: int
    seconds: float | None
    validation_loss: float | None
    parameters: int | None
    curve: tuple[tuple[int, float], ...]
    probe: Probe


@dataclass(frozen=True)
class Stratum:
    """A range of scores (or lengths), and how many of the pool lie in it and were chosen."""

    low: float
    high: float
    population: int
    chosen: int


@dataclass(frozen=True)
class Coreset:
    """What one strategy chose: positions in the pool, and the strata that it drew from."""

    name: str
    label: str
    rows: np.ndarray
    dropped: int
    strata: tuple[Stratum, ...]


@dataclass(frozen=True)
class Pool:
    """Every scored sequence: three arrays of the same length, in the order of the shards."""

    influence: np.ndarray
    length: np.ndarray
    family: np.ndarray

    @property
    def size(self) -> int:
        """Number of sequences."""
        return len(self.influence)


@dataclass(frozen=True)
class Site:
    """Activation statistics at one place of one layer."""

    layer: int
    place: str
    kurtosis: float
    gaussian_kurtosis: float
    inf_norm: float


@dataclass(frozen=True)
class Outliers:
    """Activation outliers of one model."""

    name: str
    attention: str
    avg_kurtosis: float
    gaussian_kurtosis: float
    max_inf_norm: float
    max_inf_norm_layer_norm: float
    sequences: int
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Quantization:
    """What a low-bit scheme cost one model.

    Attributes
    ----------
    label, meaning
        Such as ``W8A8``, and ``weight-and-activation`` or ``weight-only``.
    loss, increase, standard_error
        Masked loss in full precision, by how much quantization raises it, and the standard error
        of that increase over sequences (None where it cannot be told); nats per residue.
    """

    name: str
    attention: str
    label: str
    meaning: str
    method: str
    execution: str
    bits: int
    loss: float
    increase: float
    standard_error: float | None
    sequences: int


@dataclass(frozen=True)
class Run:
    """One finished stage: its folder, kind, main options, and seconds where it recorded them."""

    folder: str
    kind: str
    options: Mapping[str, Any]
    seconds: float | None


@dataclass(frozen=True)
class Results:
    """Everything that a report says, in the order in which it says it."""

    title: str
    sources: tuple[tuple[str, str], ...]
    pool: Pool
    models: tuple[Model, ...]
    coresets: tuple[Coreset, ...]
    outliers: tuple[Outliers, ...]
    quantizations: tuple[Quantization, ...]
    runs: tuple[Run, ...]
    versions: Mapping[str, str]
    created: str
    device: str
    validation_sequences: int
    architecture: str
    seeds: tuple[int, ...]

    def role(self, role: str) -> tuple[Model, ...]:
        """List the models that have a role."""
        return tuple(model for model in self.models if model.role == role)

    def model(self, name: str) -> Model | None:
        """Find a model by its folder's name."""
        return next((model for model in self.models if model.name == name), None)

"""What quantization costs a tuned model: its task's metrics, its decisions and its outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from frugalfm.errors import InputError
from frugalfm.quantization.data import plain_batches
from frugalfm.quantization.evaluation import ClipCounter, find_saturating
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.simulate import simulate
from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import HEADLINE, NUMBERS, Kind, is_map
from frugalfm.tasks.metrics import to_json
from frugalfm.tasks.results import score_split
from frugalfm.tasks.splits import Split
from frugalfm.tokens.batches import SPECIALS
from frugalfm.tokens.codec import Codec
from frugalfm.training.data import Batch
from frugalfm.training.labelled import TuningData, piece_sizes
from frugalfm.training.map_outputs import evaluate_tuned_maps
from frugalfm.training.outputs import decide, run_model

__all__ = [
    "Agreement",
    "TaskComparison",
    "compare_decisions",
    "compare_task",
    "encode_unlabelled",
    "score_task",
    "task_batches",
]


@dataclass(frozen=True)
class Agreement:
    """How near a quantized model with a head is to itself in floating point.

    Attributes
    ----------
    label, meaning
        As of :class:`~frugalfm.quantization.evaluation.Comparison`.
    kind
        Of what is predicted.
    sequences, items
        What was predicted: sequences (or pairs), and in them residues or labels.
    agreement
        Fraction of the items decided alike; None for numbers and maps.
    output_error
        Mean over items of ``|quantized logits - logits| / |logits|`` (Euclidean); of numbers the
        root mean square of the difference over the outputs' standard deviation. None for maps.
    saturation
        By site with a static grid: fraction of (transformed) values, pads left out, outside it.
    """

    label: str
    meaning: str
    kind: Kind
    sequences: int
    items: int
    agreement: float | None
    output_error: float | None
    saturation: dict[str, float]

    @property
    def saturating(self) -> dict[str, float]:
        """The sites that saturate, worst first."""
        return find_saturating(self.saturation)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-serialisable (NaN as None)."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class TaskComparison(Agreement):
    """One tuned model in floating point and under a scheme, on its task; items are of test.

    Attributes
    ----------
    task
        Name of its folder.
    metric
        The one that counts: ``mcc`` of classes, and the kind's own of numbers and maps.
    plain, quantized
        By split (``dev``, ``test``) and metric: ``value``, ``low`` and ``high``, as
        ``frugalfm tune`` gives them.
    """

    task: str
    metric: str
    plain: dict[str, dict[str, Any]]
    quantized: dict[str, dict[str, Any]]

    @property
    def value(self) -> float:
        """The metric on test in floating point."""
        return _number(self.plain["test"][self.metric]["value"])

    @property
    def quantized_value(self) -> float:
        """The metric on test under the scheme."""
        return _number(self.quantized["test"][self.metric]["value"])

    @property
    def drop(self) -> float:
        """What quantization took away from the metric on test."""
        return self.value - self.quantized_value

    def to_dict(self) -> dict[str, Any]:
        """Everything, and the three numbers that count."""
        names = ("value", "quantized_value", "drop")
        numbers = {name: getattr(self, name) for name in names}
        return super().to_dict() | {n: None if math.isnan(x) else x for n, x in numbers.items()}


def compare_task(
    model: nn.Module,
    scheme: Scheme,
    task: Task,
    codec: Codec,
    *,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    resamples: int = 1000,
    seed: int = 42,
) -> TaskComparison:
    """Score a tuned model on its task, in floating point and under a scheme.

    Parameters
    ----------
    model
        With its head, in evaluation mode, adapters merged; left as it was.
    scheme
        Found for this model.
    task
        That the model was tuned on; dev and test are read, once each.
    codec
        Of the model's tokenizer.
    max_tokens
        As in tuning.
    batch_tokens
        Padded tokens of a batch, at most.
    resamples, seed
        Of the bootstrap.

    Raises
    ------
    InputError
        The scheme belongs to another model, or activations or outputs are not finite.
    """
    data = _encode(task, codec, max_tokens)
    if is_map(task.kind):
        return _compare_maps(model, scheme, task, data, batch_tokens, resamples, seed)
    plain, rounded, saturation = _run_both(model, scheme, data, batch_tokens)
    return TaskComparison(
        **_judge(scheme, task.kind, len(task.test), plain["test"], rounded["test"]),
        saturation=saturation,
        task=task.folder.resolve().name,
        metric=_name_metric(task.kind),
        plain=_score(task, plain, resamples, seed),
        quantized=_score(task, rounded, resamples, seed),
    )


def score_task(
    model: nn.Module,
    task: Task,
    codec: Codec,
    *,
    max_tokens: int | None = None,
    batch_tokens: int = 8192,
    resamples: int = 1000,
    seed: int = 42,
) -> dict[str, dict[str, Any]]:
    """Score one model, as :func:`compare_task` scores both; by split and metric.

    Parameters
    ----------
    model
        Anything that gives ``logits`` for ``input_ids`` and ``attention_mask``, on the device of
        its parameters.
    task, codec, max_tokens, batch_tokens, resamples, seed
        As of :func:`compare_task`.
    """
    data = _encode(task, codec, max_tokens)
    if is_map(task.kind):
        return _score_maps(model, task, data, batch_tokens, resamples, seed)
    outputs = {name: run_model(model, part, batch_tokens, "fp32") for name, part in data.items()}
    return _score(task, outputs, resamples, seed)


def compare_decisions(
    model: nn.Module, scheme: Scheme, data: TuningData, *, batch_tokens: int = 8192
) -> Agreement:
    """Compare what a tuned model says of sequences without labels; see :func:`compare_task`.

    Parameters
    ----------
    data
        Of :func:`encode_unlabelled`.
    """
    plain, rounded, saturation = _run_both(model, scheme, {"all": data}, batch_tokens)
    found = _judge(scheme, data.kind, len(data.sequences), plain["all"], rounded["all"])
    return Agreement(**found, saturation=saturation)


def encode_unlabelled(
    sequences: Sequence[np.ndarray], kind: Kind, codec: Codec, max_tokens: int | None = None
) -> TuningData:
    """Let a model with a head read sequences that nothing is known of.

    Parameters
    ----------
    sequences
        Encoded, without special tokens.
    kind, codec
        Of the model.
    max_tokens
        As of :meth:`~frugalfm.training.labelled.TuningData.encode`: what is longer is cut, but for
        labels of residues.

    Raises
    ------
    InputError
        The model is about pairs: of sequences, or of positions.
    """
    if kind in {"interaction", "affinity"} or is_map(kind):
        raise InputError(f"a model for {kind} is measured on labelled data; give --task")
    sizes = [1] * len(sequences)
    if kind == "token":
        pieces = piece_sizes(codec)
        known = None if pieces is None else np.array(pieces)
        sizes = [len(s) if known is None else int(known[s].sum()) for s in sequences]
    targets = [np.zeros(size, np.int64) for size in sizes]
    limit = None if max_tokens is None or kind == "token" else max_tokens - SPECIALS
    cropped = 0 if limit is None else sum(len(sequence) > limit for sequence in sequences)
    return TuningData([sequence[:limit] for sequence in sequences], targets, kind, codec, cropped)


def task_batches(
    data: TuningData, count: int, *, batch_tokens: int = 8192, seed: int = 0
) -> list[Batch]:
    """Draw calibration batches of equally many rows from a split, unmasked as tuning reads them.

    Raises
    ------
    InputError
        There are fewer rows than batches.
    """
    rows = len(data.sequences)
    if rows < count:
        raise InputError(
            f"{rows} rows are too few for {count} calibration batches; give more data (of "
            "--data, perhaps a larger --limit) or fewer --calibration-batches"
        )
    fits = batch_tokens // int(data.lengths.max() + 2)
    size = min(rows // count, max(1, fits))
    order = np.random.default_rng(seed).permutation(rows)
    chosen = [order[i * size : (i + 1) * size] for i in range(count)]
    return plain_batches([data.collate(part) for part in chosen], data.codec)


def _run_both(
    model: nn.Module, scheme: Scheme, data: dict[str, TuningData], batch_tokens: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, float]]:
    """Run a model in floating point and simulated: outputs by split, and what saturated."""
    plain = {name: run_model(model, part, batch_tokens, "fp32") for name, part in data.items()}
    if not all(np.isfinite(outputs).all() for outputs in plain.values()):
        raise InputError("the model's output is not finite; the checkpoint is unusable")
    counter = ClipCounter(scheme, next(model.parameters()).device)
    with simulate(model, scheme) as simulation, counter.watch(simulation):
        rounded = {
            name: run_model(model, part, batch_tokens, "fp32") for name, part in data.items()
        }
    if not all(np.isfinite(outputs).all() for outputs in rounded.values()):
        raise InputError("the quantized model's output is not finite; use more bits")
    return plain, rounded, counter.finish()


def _judge(
    scheme: Scheme, kind: Kind, sequences: int, plain: np.ndarray, rounded: np.ndarray
) -> dict[str, Any]:
    x, y = plain.astype(np.float64), rounded.astype(np.float64)
    if kind in NUMBERS:
        agreement = None
        error = math.sqrt(np.square(y - x).mean()) / max(float(x.std()), 1e-30)
    else:
        agreement = float((decide(kind, plain) == decide(kind, rounded)).mean())
        sizes = np.maximum(np.linalg.norm(x, axis=1), 1e-30)
        error = float((np.linalg.norm(y - x, axis=1) / sizes).mean())
    return {
        "label": scheme.label,
        "meaning": scheme.meaning,
        "kind": kind,
        "sequences": sequences,
        "items": len(decide(kind, plain).ravel()),
        "agreement": agreement,
        "output_error": error,
    }


def _encode(task: Task, codec: Codec, max_tokens: int | None) -> dict[str, TuningData]:
    splits = {"dev": task.dev, "test": task.test}
    return {
        name: TuningData.encode(split, task.kind, codec, max_tokens)
        for name, split in splits.items()
    }


def _score(
    task: Task, outputs: dict[str, np.ndarray], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    splits: dict[str, Split] = {"dev": task.dev, "test": task.test}
    found: dict[str, dict[str, Any]] = {}
    for name, split in splits.items():
        predicted = decide(task.kind, outputs[name])
        found[name] = to_json(score_split(task, split, predicted, resamples=resamples, seed=seed))
    return found


def _score_maps(
    model: nn.Module,
    task: Task,
    data: dict[str, TuningData],
    batch_tokens: int,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Any]]:
    found = evaluate_tuned_maps(
        model,
        task,
        data["dev"],
        data["test"],
        batch_tokens=batch_tokens,
        precision="fp32",
        how={},
        resamples=resamples,
        seed=seed,
    )
    return {name: found.metrics[name] for name in ("dev", "test")}


def _compare_maps(
    model: nn.Module,
    scheme: Scheme,
    task: Task,
    data: dict[str, TuningData],
    batch_tokens: int,
    resamples: int,
    seed: int,
) -> TaskComparison:
    """Compare predictions of pairs of positions, which are too large to hold."""
    rest = (task, data, batch_tokens, resamples, seed)
    plain = _score_maps(model, *rest)
    counter = ClipCounter(scheme, next(model.parameters()).device)
    with torch.no_grad(), simulate(model, scheme) as simulation, counter.watch(simulation):
        quantized = _score_maps(model, *rest)
    return TaskComparison(
        label=scheme.label,
        meaning=scheme.meaning,
        kind=task.kind,
        sequences=len(task.test),
        items=len(task.test),
        agreement=None,
        output_error=None,
        saturation=counter.finish(),
        task=task.folder.resolve().name,
        metric=_name_metric(task.kind),
        plain=plain,
        quantized=quantized,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _name_metric(kind: Kind) -> str:
    return HEADLINE[kind] if kind in NUMBERS or is_map(kind) else "mcc"

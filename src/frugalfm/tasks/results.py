"""What predictions of a task are worth: metrics and a table, whoever made the predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from frugalfm.tasks.folder import Task
from frugalfm.tasks.metrics import Estimate, score_classes, score_numbers, to_json
from frugalfm.tasks.splits import Split

__all__ = ["Evaluation", "describe_scores", "describe_task", "report_predictions", "score_split"]


@dataclass(frozen=True)
class Evaluation:
    """What a model achieved on a task.

    Attributes
    ----------
    metrics
        Fit for JSON; see :func:`report_predictions`.
    predictions
        One row a test sequence: ``row`` (in its file, from 0), ``label``, ``prediction`` and,
        for classes of sequences, ``probability`` of the predicted one.
    """

    metrics: dict[str, Any]
    predictions: pa.Table


def score_split(
    task: Task, split: Split, predicted: np.ndarray, *, resamples: int, seed: int = 0
) -> dict[str, Estimate]:
    """Metrics of one split's predictions, of the same shape as its targets.

    With several labels a sequence, every pair of a sequence and a label is one decision of two
    classes; resamples draw whole sequences, as they do for labels of residues.
    """
    if task.kind == "regression":
        return score_numbers(split.targets, predicted, resamples=resamples, seed=seed)
    groups = None
    if task.kind == "token":
        groups = np.repeat(np.arange(len(split)), split.lengths)
    elif task.kind == "multilabel":
        groups = np.repeat(np.arange(len(split)), len(task.classes))
    return score_classes(
        split.targets.ravel(), predicted.ravel(), groups, resamples=resamples, seed=seed
    )


def report_predictions(
    task: Task,
    dev: np.ndarray,
    test: np.ndarray,
    probability: np.ndarray | None = None,
    *,
    how: dict[str, Any],
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score the predictions for dev and test, and tabulate those for test.

    Parameters
    ----------
    task
        Whose splits were predicted.
    dev, test
        Predictions, of the shape of the splits' targets.
    probability
        Of the predicted class of each test sequence, shape ``(n,)``.
    how
        Entries that say how the predictions were made.
    resamples, seed
        Of the bootstrap.

    Returns
    -------
    Evaluation
        Its metrics are ``task, kind, reason, classes, n, (how), dev, test, baseline, repeats,
        dropped, cropped, bootstrap``; ``dev`` and ``test`` hold a value and an interval for each
        metric, ``baseline`` those of the majority class or the mean of the training labels.
    """

    def score(split: Split, predicted: np.ndarray) -> dict[str, Any]:
        return to_json(score_split(task, split, predicted, resamples=resamples, seed=seed))

    constant = _baseline(task)
    metrics = {
        "task": task.folder.resolve().name,
        "kind": task.kind,
        "reason": task.reason,
        "classes": list(task.classes),
        "n": {name: len(split) for name, split in task.splits.items()},
        **how,
        "dev": score(task.dev, dev),
        "test": score(task.test, test),
        "baseline": {
            "predicts": _name(task, constant),
            "test": score(task.test, np.resize(constant, task.test.targets.shape)),
        },
        "repeats": task.repeats,
        "dropped": task.dropped,
        "cropped": task.cropped,
        "bootstrap": {"resamples": resamples, "level": 0.95, "unit": "sequence", "seed": seed},
    }
    return Evaluation(metrics, _tabulate(task, test, probability))


def _baseline(task: Task) -> np.ndarray:
    """Predict without looking at a sequence: one number, or one for each label."""
    targets = task.train.targets
    if task.kind == "regression":
        return np.asarray(targets.mean())
    if task.kind == "multilabel":
        return np.asarray(targets.mean(0) > 0.5, np.int64)
    return np.asarray(np.bincount(targets).argmax())


def _name(task: Task, constant: np.ndarray) -> str | float:
    if task.kind == "regression":
        return float(constant)
    if task.kind == "multilabel":
        return _join(task, constant)
    return task.classes[int(constant)]


def _join(task: Task, flags: np.ndarray) -> str:
    return ";".join(name for name, flag in zip(task.classes, flags, strict=True) if flag)


def _tabulate(task: Task, predicted: np.ndarray, probability: np.ndarray | None) -> pa.Table:
    columns: dict[str, Any] = {"row": pa.array(task.test.rows, pa.int64())}
    if task.kind == "regression":
        columns["label"] = pa.array(task.test.targets)
        columns["prediction"] = pa.array(predicted, pa.float64())
        return pa.table(columns)
    columns["label"] = task.test.texts
    if task.kind == "multilabel":
        found = [_join(task, flags) for flags in predicted]
        return pa.table(columns | {"prediction": pa.array(found, pa.string())})
    names = np.array(task.classes)
    if task.kind == "classification":
        columns["prediction"] = pa.array(names[predicted].tolist(), pa.string())
        columns["probability"] = pa.array(probability, pa.float32())
        return pa.table(columns)
    letters = "".join(names[predicted].tolist())
    ends = np.cumsum(task.test.lengths, dtype=np.int64)
    starts = ends - task.test.lengths
    found = [letters[a:b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    return pa.table(columns | {"prediction": pa.array(found, pa.string())})


def describe_task(metrics: dict[str, Any]) -> str:
    """Say in one line what was predicted, why it is taken for that, and of how many sequences."""
    sizes = ", ".join(f"{count:,} {name}" for name, count in metrics["n"].items())
    kind = metrics["kind"] + (
        f" of {len(metrics['classes'])} classes" if metrics["classes"] else ""
    )
    return f"{metrics['task']}, {kind} ({metrics['reason']}); {sizes}"


def describe_scores(metrics: dict[str, Any]) -> list[str]:
    """Say what was measured on test, beside the baseline, and what happened to the splits."""
    lines = []
    for name, found in metrics["test"].items():
        value, low, high = (_show(found[key]) for key in ("value", "low", "high"))
        base = _show(metrics["baseline"]["test"][name]["value"])
        lines.append(f"  test {name:9} {value}  [{low}, {high}]  baseline {base}")
    for what in ("repeats", "dropped", "cropped"):
        counts = [
            f"{count:,} {key.replace('_', ' ')}" for key, count in metrics[what].items() if count
        ]
        if counts:
            lines.append(f"  {what}: {', '.join(counts)}")
    return lines


def _show(value: float | None) -> str:
    return "  n/a" if value is None else f"{value:.4f}"

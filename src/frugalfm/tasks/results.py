"""What predictions of a task are worth: metrics and a table, whoever made the predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import CLASSES, IGNORED, NUMBERS, PAIRS
from frugalfm.tasks.metrics import Estimate, score_classes, score_numbers, score_ranking, to_json
from frugalfm.tasks.splits import Split

__all__ = [
    "Evaluation",
    "describe_scores",
    "describe_task",
    "find_shared",
    "report_predictions",
    "score_split",
    "summarise",
]


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
    task: Task,
    split: Split,
    predicted: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    resamples: int,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics of one split's predictions, of the same shape as its targets; not for maps.

    With several labels a sequence, every pair of a sequence and a label is one decision of two
    classes; resamples draw whole sequences, as they do for labels of residues. Residues without a
    label are left out. With `scores` (of the second of two classes, shape ``(n,)``, or of each
    label, ``(n, labels)``; higher for likelier ones) there are ``auroc`` and ``auprc``, too.
    """
    members = find_shared(split)
    if task.kind in NUMBERS:
        return score_numbers(
            split.targets, predicted, members=members, resamples=resamples, seed=seed
        )
    true, found, groups = split.targets.ravel(), predicted.ravel(), None
    if task.kind == "token":
        known = true != IGNORED
        groups = np.repeat(np.arange(len(split)), split.lengths)[known]
        true, found = true[known], found[known]
    elif task.kind == "multilabel":
        groups = np.repeat(np.arange(len(split)), len(task.classes))
    metrics = score_classes(true, found, groups, members=members, resamples=resamples, seed=seed)
    if scores is not None and len(task.classes) > 1:
        metrics |= score_ranking(
            split.targets, scores, members=members, resamples=resamples, seed=seed
        )
    return metrics


def find_shared(split: Split) -> np.ndarray | None:
    """Numbers of the two sequences of each pair, if some sequence is in several pairs."""
    if split.partners is None:
        return None
    numbers = np.asarray(split.members.dictionary_encode().indices).astype(np.int64)
    members = numbers.reshape(2, -1).T
    once = len(np.unique(members)) == sum(1 if a == b else 2 for a, b in members.tolist())
    return None if once else members


def report_predictions(
    task: Task,
    dev: np.ndarray,
    test: np.ndarray,
    probability: np.ndarray | None = None,
    *,
    how: dict[str, Any],
    scores: tuple[np.ndarray, np.ndarray] | None = None,
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
    scores
        For dev and test, as :func:`score_split` takes them.
    resamples, seed
        Of the bootstrap.

    Returns
    -------
    Evaluation
        Its metrics are ``task, kind, reason, classes, n, (how), dev, test, baseline, repeats,
        dropped, held_out, cropped, bootstrap``; ``dev`` and ``test`` hold a value and an interval
        for each metric, ``baseline`` those of the majority class or the mean of the training
        labels.
    """
    bootstrap = {"resamples": resamples, "seed": seed}
    constant = _baseline(task)
    ranked = scores or (None, None)
    indifferent = None if scores is None else np.zeros_like(scores[1])
    guess = np.resize(constant, task.test.targets.shape)
    found = {
        "dev": score_split(task, task.dev, dev, ranked[0], **bootstrap),
        "test": score_split(task, task.test, test, ranked[1], **bootstrap),
        "baseline": score_split(task, task.test, guess, indifferent, **bootstrap),
    }
    metrics = summarise(task, how, found, _name(task, constant), **bootstrap)
    return Evaluation(metrics, _tabulate(task, test, probability))


def summarise(
    task: Task,
    how: dict[str, Any],
    found: dict[str, dict[str, Estimate]],
    predicts: str | float,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Put together what is recorded of an evaluation; see :func:`report_predictions`.

    `found` holds ``dev``, ``test``, and the ``baseline`` on test, which `predicts` something.
    """
    return {
        "task": task.folder.resolve().name,
        "kind": task.kind,
        "reason": task.reason,
        "classes": list(task.classes),
        "n": {name: len(split) for name, split in task.splits.items()},
        **how,
        "dev": to_json(found["dev"]),
        "test": to_json(found["test"]),
        "baseline": {"predicts": predicts, "test": to_json(found["baseline"])},
        "repeats": task.repeats,
        "dropped": task.dropped,
        "held_out": list(task.held_out),
        "cropped": task.cropped,
        "bootstrap": {
            "resamples": resamples,
            "level": 0.95,
            "unit": _name_unit(task),
            "seed": seed,
        },
    }


def _name_unit(task: Task) -> str:
    if task.kind not in PAIRS:
        return "sequence"
    if find_shared(task.test) is None:
        return "pair of sequences"
    return "sequence; a pair is drawn with both of its sequences"


def _baseline(task: Task) -> np.ndarray:
    """Predict without looking at a sequence: one number, or one for each label."""
    targets = task.train.targets
    if task.kind in NUMBERS:
        return np.asarray(targets.mean())
    if task.kind == "multilabel":
        return np.asarray(targets.mean(0) > 0.5, np.int64)
    return np.asarray(np.bincount(targets[targets != IGNORED]).argmax())


def _name(task: Task, constant: np.ndarray) -> str | float:
    if task.kind in NUMBERS:
        return float(constant)
    if task.kind == "multilabel":
        return _join(task, constant)
    return task.classes[int(constant)]


def _join(task: Task, flags: np.ndarray) -> str:
    return ";".join(name for name, flag in zip(task.classes, flags, strict=True) if flag)


def _tabulate(task: Task, predicted: np.ndarray, probability: np.ndarray | None) -> pa.Table:
    columns: dict[str, Any] = {"row": pa.array(task.test.rows, pa.int64())}
    if task.kind in NUMBERS:
        columns["label"] = pa.array(task.test.targets)
        columns["prediction"] = pa.array(predicted, pa.float64())
        return pa.table(columns)
    columns["label"] = task.test.texts
    if task.kind == "multilabel":
        found = [_join(task, flags) for flags in predicted]
        return pa.table(columns | {"prediction": pa.array(found, pa.string())})
    names = np.array(task.classes)
    if task.kind in CLASSES:
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
    width = max(9, *map(len, metrics["test"]))
    for name, found in metrics["test"].items():
        value, low, high = (_show(found[key]) for key in ("value", "low", "high"))
        base = _show(metrics["baseline"]["test"][name]["value"])
        lines.append(f"  test {name:{width}} {value}  [{low}, {high}]  baseline {base}")
    if held_out := metrics.get("held_out"):
        lines.append(
            f"  {' and '.join(held_out)} held out of train by a hash of each sequence; relatives "
            "may be on both sides"
        )
    for what in ("repeats", "dropped", "cropped"):
        counts = [
            f"{count:,} {key.replace('_', ' ')}" for key, count in metrics[what].items() if count
        ]
        if counts:
            lines.append(f"  {what}: {', '.join(counts)}")
    return lines


def _show(value: float | None) -> str:
    return "  n/a" if value is None else f"{value:.4f}"

"""A linear probe on frozen embeddings, from a checked task to metrics and predictions.

Pairs of sequences are read off the embeddings of the two: ``a + b``, ``a * b`` and ``|a - b|``,
which are the same in either order, or ``a``, ``b`` and ``a * b`` where the order means something.
Pairs of positions have their own module, :mod:`frugalfm.probing.map_probes`. The penalty is
chosen on the development split; the test split is scored once, for that choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from frugalfm.errors import InputError
from frugalfm.probing.embed import Embedder
from frugalfm.probing.probes import Probe, choose, fit_labels, fit_logistic, fit_ridge
from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import HEADLINE, IGNORED, MAPS, NUMBERS, PAIRS
from frugalfm.tasks.results import Evaluation, report_predictions, score_split
from frugalfm.tasks.splits import Split

__all__ = ["PairOrder", "count_residues", "draw_whole", "evaluate_task"]

_WINDOW = 1 << 24  # numbers of residues' embeddings held at once
PairOrder = Literal["symmetric", "ordered"]
Tick = Callable[[int], object]


@dataclass(frozen=True)
class _Outcome:
    """Predictions for dev and test by the chosen probe, and how it was chosen."""

    probe: Probe
    grid: dict[str, float | None]
    dev: np.ndarray
    test: np.ndarray
    probability: np.ndarray | None = None
    scores: tuple[np.ndarray, np.ndarray] | None = None
    trained_on: int = 0


def evaluate_task(
    embedder: Embedder,
    task: Task,
    *,
    train_tokens: int = 50_000,
    order: PairOrder = "symmetric",
    resamples: int = 1000,
    seed: int = 0,
    tick: Tick | None = None,
) -> Evaluation:
    """Fit linear probes on the training split, choose one on dev, and score it on test.

    Parameters
    ----------
    embedder
        With pooling ``"token"`` if, and only if, the task is one of residues.
    task
        Cropped to what the model takes; not one of maps.
    train_tokens
        For labels of residues: training sequences are drawn at random, whole, until their
        residues would exceed this number.
    order
        Whether the two of a pair of sequences may be exchanged.
    resamples
        Of the bootstrap.
    seed
        Determines the drawn training sequences and the resamples.
    tick
        Told the residues of every batch that is embedded.

    Returns
    -------
    Evaluation
        As :func:`~frugalfm.tasks.results.report_predictions` makes it, with a ``probe``.
    """
    if (embedder.pooling == "token") != (task.kind == "token") or task.kind in MAPS:
        raise InputError(f"pooling {embedder.pooling!r} does not suit a task of kind {task.kind!r}")
    if task.kind == "token":
        outcome = _probe_residues(embedder, task, train_tokens, seed, tick)
    else:
        outcome = _probe_sequences(embedder, task, order, tick)
    return report_predictions(
        task,
        outcome.dev,
        outcome.test,
        outcome.probability,
        how={"probe": _describe(task, outcome, order)},
        scores=outcome.scores,
        resamples=resamples,
        seed=seed,
    )


def count_residues(task: Task, train_tokens: int) -> int:
    """Residues that :func:`evaluate_task` embeds, or nearly so many."""
    if task.kind in PAIRS:
        return sum(len("".join(set(s.members.to_pylist()))) for s in task.splits.values())
    residues = {name: int(split.lengths.sum()) for name, split in task.splits.items()}
    if task.kind == "token":
        residues["train"] = min(residues["train"], train_tokens)
    return sum(residues.values())


def _probe_sequences(
    embedder: Embedder, task: Task, order: PairOrder, tick: Tick | None
) -> _Outcome:
    train, dev, test = (_embed(embedder, split, order, tick) for split in task.splits.values())
    if task.kind == "multilabel":
        return _probe_labels(task, train, dev, test)
    if task.kind in NUMBERS:
        probes = fit_ridge(train, task.train.targets)
        found = [probe.outputs(dev)[:, 0] for probe in probes]
    else:
        probes = fit_logistic(train, task.train.targets, len(task.classes))
        found = [probe.outputs(dev).argmax(1) for probe in probes]
    best, grid = _choose(task, probes, found)
    probe = probes[best]
    if task.kind in NUMBERS:
        return _Outcome(probe, grid, found[best], probe.outputs(test)[:, 0])
    probabilities = probe.probabilities(test)
    scores = None
    if len(task.classes) == 2:
        scores = probe.probabilities(dev)[:, 1], probabilities[:, 1]
    return _Outcome(
        probe,
        grid,
        found[best],
        probabilities.argmax(1),
        probabilities.max(1).astype(np.float32),
        scores,
    )


def _probe_labels(task: Task, train: np.ndarray, dev: np.ndarray, test: np.ndarray) -> _Outcome:
    """Several labels a sequence: a logistic regression each, with one setting for all."""
    probes = fit_labels(train, task.train.targets)
    found = [(probe.outputs(dev) > 0).astype(np.int64) for probe in probes]
    best, grid = _choose(task, probes, found)
    scores = probes[best].outputs(dev), probes[best].outputs(test)
    return _Outcome(
        probes[best], grid, found[best], (scores[1] > 0).astype(np.int64), scores=scores
    )


def _embed(embedder: Embedder, split: Split, order: PairOrder, tick: Tick | None) -> np.ndarray:
    """Features of each row: an embedding, or what two of them are made into."""
    if split.partners is None:
        return embedder.embed(_encode(embedder, split.sequences), tick)
    coded = split.members.dictionary_encode()  # every sequence is embedded once
    states = embedder.embed(_encode(embedder, coded.dictionary), tick)
    a, b = (states[rows] for rows in np.split(np.asarray(coded.indices), 2))
    parts = [a, b, a * b] if order == "ordered" else [a + b, a * b, np.abs(a - b)]
    return np.concatenate(parts, axis=1)


def _probe_residues(
    embedder: Embedder, task: Task, train_tokens: int, seed: int, tick: Tick | None
) -> _Outcome:
    chosen = draw_whole(task.train.lengths, train_tokens, seed)
    sequences = _encode(embedder, task.train.sequences)
    labels = np.split(task.train.targets, np.cumsum(task.train.lengths)[:-1])
    y = np.concatenate([labels[row] for row in chosen])
    known = y != IGNORED
    y = y[known]
    if len(np.unique(y)) < 2:
        raise InputError(
            f"{task.train.path}: the {len(y)} residues drawn for training have one label only; "
            "raise --train-tokens"
        )
    x = embedder.embed([sequences[row] for row in chosen], tick)[known]
    probes = fit_logistic(x, y, len(task.classes))
    del x
    parts = [
        [probe.outputs(states).argmax(1) for probe in probes]
        for states in _stream(embedder, task.dev, tick)
    ]
    found = [np.concatenate(column) for column in zip(*parts, strict=True)]
    best, grid = _choose(task, probes, found)
    test = [probes[best].outputs(states).argmax(1) for states in _stream(embedder, task.test, tick)]
    return _Outcome(probes[best], grid, found[best], np.concatenate(test), trained_on=len(y))


def _encode(embedder: Embedder, sequences: pa.Array) -> list[np.ndarray]:
    tokens, lengths = embedder.codec.encode(sequences)
    return np.split(tokens, np.cumsum(lengths)[:-1])


def _stream(embedder: Embedder, split: Split, tick: Tick | None) -> Iterator[np.ndarray]:
    """Embeddings of all residues, in order, some sequences at a time."""
    limit = max(1, _WINDOW // embedder.width)
    sequences = _encode(embedder, split.sequences)
    window = (np.cumsum(split.lengths, dtype=np.int64) - 1) // limit
    for part in np.split(np.arange(len(split)), np.flatnonzero(np.diff(window)) + 1):
        yield embedder.embed([sequences[row] for row in part], tick)


def draw_whole(lengths: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Whole sequences at random, at least one, of at most `limit` residues; in their order."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    count = int((np.cumsum(lengths[order], dtype=np.int64) <= limit).sum())
    return np.sort(order[: max(1, count)])


def _choose(
    task: Task, probes: list[Probe], found: list[np.ndarray]
) -> tuple[int, dict[str, float | None]]:
    name = HEADLINE[task.kind]
    scores = [score_split(task, task.dev, predicted, resamples=0) for predicted in found]
    values = [score[name].value for score in scores]
    pairs = zip(probes, values, strict=True)
    grid = {f"{p.setting:g}": None if np.isnan(v) else float(v) for p, v in pairs}
    return choose(values), grid


def _describe(task: Task, outcome: _Outcome, order: PairOrder) -> dict[str, Any]:
    regression = task.kind in NUMBERS
    probe: dict[str, Any] = {
        "name": "ridge regression" if regression else "logistic regression",
        "alpha" if regression else "C": outcome.probe.setting,
        "chosen_by": f"dev {HEADLINE[task.kind]}",
        "grid": outcome.grid,
        "converged": outcome.probe.converged,
    }
    if task.kind == "token":
        probe["train_tokens"] = outcome.trained_on
    if task.kind in PAIRS:
        probe["order"] = order
    return probe

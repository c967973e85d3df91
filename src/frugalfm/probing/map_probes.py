"""Linear probes for pairs of positions: contact maps, distance maps and base pairs.

A probe is fitted on some pairs of some training sequences, chosen on sequences of dev, and applied
to all pairs of all sequences of dev and test, one sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from frugalfm.errors import InputError
from frugalfm.probing.embed import Embedder
from frugalfm.probing.pair_features import PairReader
from frugalfm.probing.probes import Probe, choose, fit_logistic, fit_ridge, fit_sparse
from frugalfm.tasks.brackets import decode_pairs
from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import HEADLINE, MapKind, is_map
from frugalfm.tasks.map_metrics import (
    FLOOR,
    Measured,
    choose_threshold,
    measure_map,
)
from frugalfm.tasks.map_results import describe_map, report_maps, targets_of
from frugalfm.tasks.maps import MapTargets
from frugalfm.tasks.results import Evaluation
from frugalfm.tasks.splits import Split

__all__ = ["MapPlan", "MapProbe", "evaluate_maps"]

MapProbe = Literal["auto", "attention", "pairs", "both"]
"""From attention maps, from products of embeddings, or from both."""

_AUTO: dict[MapKind, MapProbe] = {"contact": "attention", "distance": "pairs", "base-pair": "both"}
# Rao et al. (2020) fit attention maps on 20 proteins; embeddings have more to learn.
_SEQUENCES: dict[MapProbe, int] = {"attention": 20, "pairs": 500, "both": 500}
_CHOOSING = 200  # sequences of dev
_CS = (1e-4, 1e-3, 1e-2, 1e-1)
_SPARSE_CS = (1e-3, 1e-2, 0.15, 1.0)
_ALPHAS = (1e5, 1e4, 1e3, 1e2, 1e1)
_MOST_TRUE = 0.5  # share of contacts or base pairs among the pairs that are fitted, at most

Tick = Callable[[int], object]


@dataclass(frozen=True)
class MapPlan:
    """Which sequences a probe is fitted on and chosen by, and how many pairs it sees.

    Attributes
    ----------
    probe
        Which features.
    train, choosing
        Rows of train and dev.
    pairs
        Pairs that are fitted, at most.
    seed
        That drew all of this.
    """

    probe: MapProbe
    train: np.ndarray
    choosing: np.ndarray
    pairs: int
    seed: int

    @classmethod
    def draw(
        cls,
        task: Task,
        probe: MapProbe = "auto",
        *,
        train_sequences: int | None = None,
        train_pairs: int = 50_000,
        seed: int = 0,
    ) -> MapPlan:
        """Draw sequences of a task at random; see :func:`evaluate_maps`."""
        assert is_map(task.kind)
        probe = _AUTO[task.kind] if probe == "auto" else probe
        count = train_sequences or _SEQUENCES[probe]
        random = np.random.default_rng(seed)
        train = np.sort(random.permutation(len(task.train))[:count])
        choosing = np.sort(random.permutation(len(task.dev))[:_CHOOSING])
        return cls(probe, train, choosing, train_pairs, seed)

    def count_residues(self, task: Task) -> int:
        """Residues that are to be embedded."""
        again = task.train.lengths[self.train].sum() + task.dev.lengths[self.choosing].sum()
        return int(again + task.dev.lengths.sum() + task.test.lengths.sum())


def evaluate_maps(
    embedder: Embedder,
    task: Task,
    plan: MapPlan,
    *,
    resamples: int = 1000,
    tick: Tick | None = None,
) -> Evaluation:
    """Fit probes on pairs of training sequences, choose one on dev, and score it on test.

    Logistic regression for contacts and base pairs (with an L1 penalty on attention maps alone:
    the attention regression of Rao et al. 2020), ridge regression for distances.

    Parameters
    ----------
    embedder
        With pooling ``"token"``.
    task
        Of contacts, distances or base pairs, cropped to what the model takes.
    plan
        What to fit on. Of each sequence equally many pairs are drawn, true ones up to half of
        them; the intercept is corrected for that (King & Zeng 2001).
    resamples
        Of the bootstrap.
    tick
        Told the residues of every batch that is embedded.

    Returns
    -------
    Evaluation
        As :func:`~frugalfm.tasks.map_results.report_maps` makes it, with a ``probe``.

    Raises
    ------
    InputError
        The drawn training pairs are all alike.
    """
    reader = PairReader(embedder, plan.probe != "pairs", plan.probe != "attention")
    probes, fitted = _fit(reader, task, plan, tick)
    best, threshold, grid = _choose(reader, task, plan, probes, tick)
    chosen = probes[best]
    dev, _ = _predict(reader, task.dev, chosen, threshold, tick, describe=False)
    test, predictions = _predict(reader, task.test, chosen, threshold, tick, describe=True)
    settings = "alpha" if task.kind == "distance" else "C"
    how: dict[str, Any] = {
        "name": _name(task.kind, plan.probe),
        settings: chosen.setting,
        "chosen_by": f"dev {HEADLINE[task.kind]}",
        "chosen_on": len(plan.choosing),
        "grid": {f"{p.setting:g}": value for p, value in zip(probes, grid, strict=True)},
        "converged": chosen.converged,
        "train_sequences": len(plan.train),
        "train_pairs": fitted,
    }
    if task.kind == "base-pair":
        how["threshold"] = threshold
    return report_maps(
        task, dev, test, predictions, how={"probe": how}, resamples=resamples, seed=plan.seed
    )


def _name(kind: str, probe: MapProbe) -> str:
    features = {
        "attention": "attention maps",
        "pairs": "products of embeddings",
        "both": "attention maps and products of embeddings",
    }[probe]
    if kind == "distance":
        return f"ridge regression on {features}"
    return f"logistic regression{' (L1)' * (probe == 'attention')} on {features}"


def _fit(
    reader: PairReader, task: Task, plan: MapPlan, tick: Tick | None
) -> tuple[list[Probe], int]:
    maps = targets_of(task.train)
    share = max(2, plan.pairs // len(plan.train))
    drawn = [_draw(maps, row, share, plan.seed) for row in plan.train.tolist()]
    y = np.concatenate([found.values for found in drawn])
    if len(np.unique(y)) < 2:
        raise InputError(
            f"{task.train.path}: the {len(y)} pairs drawn for training are all alike, so there is "
            "nothing to learn; raise --train-sequences or --train-pairs"
        )
    sequences = _encode(reader, task.train)
    x = reader.gather(
        [sequences[row] for row in plan.train], [(found.i, found.j) for found in drawn], tick
    )
    if task.kind == "distance":
        return fit_ridge(x, y, _ALPHAS), len(y)
    if plan.probe == "attention":
        probes = fit_sparse(x, y, _SPARSE_CS)
    else:
        probes = [
            replace(p, weights=p.weights[1:] - p.weights[:1], bias=p.bias[1:] - p.bias[:1])
            for p in fit_logistic(x, y.astype(np.int64), 2, _CS)
        ]
    true = sum(found.true for found in drawn) / y.sum()
    false = sum(found.false for found in drawn) / (len(y) - y.sum())
    shift = np.log(true / false)
    return [replace(probe, bias=probe.bias + shift) for probe in probes], len(y)


@dataclass(frozen=True)
class _Drawn:
    """Pairs drawn of one sequence, and how many true and false ones it has."""

    i: np.ndarray
    j: np.ndarray
    values: np.ndarray
    true: int
    false: int


def _draw(maps: MapTargets, row: int, count: int, seed: int) -> _Drawn:
    """Draw pairs of a sequence: true ones up to half, the rest of the others."""
    i, j, values = maps.pairs(row)
    random = np.random.default_rng([seed, row])
    if maps.kind == "distance":
        chosen = random.permutation(len(values))[:count]
        return _Drawn(i[chosen], j[chosen], values[chosen], 0, 0)
    true, false = np.flatnonzero(values), np.flatnonzero(values == 0)
    kept = random.permutation(true)[: int(count * _MOST_TRUE)]
    chosen = np.concatenate([kept, random.permutation(false)[: count - len(kept)]])
    return _Drawn(i[chosen], j[chosen], values[chosen], len(true), len(false))


def _choose(
    reader: PairReader, task: Task, plan: MapPlan, probes: list[Probe], tick: Tick | None
) -> tuple[int, float, list[float | None]]:
    """Best probe on some sequences of dev, the best threshold of base pairs, and all scores."""
    maps = targets_of(task.dev)
    keep = np.isin(np.arange(len(task.dev)), plan.choosing)
    sequences = [s for s, there in zip(_encode(reader, task.dev), keep, strict=True) if there]
    maps = maps.take(keep)
    weights = np.concatenate([probe.weights for probe in probes])
    bias = np.concatenate([probe.bias for probe in probes])
    found: list[list[Any]] = [[None] * len(maps) for _ in probes]
    for row, logits in reader.combine(sequences, weights, bias, tick):
        for outputs, part in zip(logits, found, strict=True):
            if task.kind == "base-pair":
                part[row] = decode_pairs(_logistic(outputs), FLOOR)
            else:
                part[row] = measure_map(maps, row, outputs)
    thresholds = [0.5] * len(probes)
    if task.kind == "base-pair":
        for index, decoded in enumerate(found):
            thresholds[index], found[index] = choose_threshold(maps, decoded)
    values = [_mean([one[HEADLINE[task.kind]] for one in part]) for part in found]
    best = choose(values)
    grid = [None if np.isnan(value) else value for value in values]
    return best, thresholds[best], grid


def _predict(
    reader: PairReader,
    split: Split,
    probe: Probe,
    threshold: float,
    tick: Tick | None,
    *,
    describe: bool,
) -> tuple[list[Measured], list[dict[str, Any]]]:
    maps = targets_of(split)
    measured: list[Measured] = [{} for _ in range(len(split))]
    described: list[dict[str, Any]] = [{} for _ in range(len(split))]
    sequences = _encode(reader, split)
    for row, (logits,) in reader.combine(sequences, probe.weights, probe.bias, tick):
        outputs = logits if maps.kind == "distance" else _logistic(logits)
        measured[row] = measure_map(maps, row, outputs, threshold)
        if describe:
            described[row] = describe_map(split, row, outputs, threshold)
    return measured, described


def _encode(reader: PairReader, split: Split) -> list[np.ndarray]:
    tokens, lengths = reader.embedder.codec.encode(split.sequences)
    return np.split(tokens, np.cumsum(lengths)[:-1])


def _logistic(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-logits.clip(-80, 80))))


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")

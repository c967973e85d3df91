"""Metrics of predicted contact maps, distance maps and base pairs: of each sequence, then means.

A map is measured as soon as it is predicted, so that no more than one is ever held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from frugalfm.tasks.brackets import decode_pairs
from frugalfm.tasks.maps import CAP, MapTargets
from frugalfm.tasks.metrics import Estimate, bootstrap, correlate_ranks

__all__ = [
    "FLOOR",
    "Measured",
    "choose_threshold",
    "measure_map",
    "measure_pairs",
    "score_maps",
    "top_precision",
]

RANGES = {"": (6, None), "short_": (6, 11), "medium_": (12, 23), "long_": (24, None)}
"""Sequence separations, both ends included, as in CASP."""
_SHARES = {"top_L": 1, "top_L/2": 2, "top_L/5": 5}
_LOGITS = np.arange(-6, 3.01, 0.5)
FLOOR = float(1 / (1 + np.exp(6)))
"""The lowest threshold that :func:`choose_threshold` tries."""

Measured = dict[str, float]
"""Metrics of one sequence, by name."""


def measure_map(
    maps: MapTargets, index: int, predicted: np.ndarray, threshold: float = 0.5
) -> Measured:
    """Measure the predicted map of one sequence.

    Parameters
    ----------
    maps, index
        The targets, and which of their sequences it is.
    predicted
        Symmetric, shape ``(residues, residues)``: a score that is higher for likelier contacts,
        distances in angstrom, or probabilities of base pairs.
    threshold
        Of base pairs, which :func:`~frugalfm.tasks.brackets.decode_pairs` chooses.

    Returns
    -------
    dict
        For contacts, precision of the likeliest L, L/2 and L/5 pairs (L: resolved residues) of
        any separation from 6, and of 6-11 (``short_``), 12-23 (``medium_``) and from 24
        (``long_``). For distances, ``spearman`` and ``mae`` (angstrom), both capped. For base
        pairs, as :func:`measure_pairs`. NaN where undefined.
    """
    if maps.kind == "base-pair":
        return measure_pairs(maps, index, decode_pairs(predicted, threshold)[0])
    i, j, values = maps.pairs(index)
    scores = np.asarray(predicted, np.float64)[i, j]
    if maps.kind == "distance":
        if not len(values):
            return {"spearman": np.nan, "mae": np.nan}
        scores, values = np.minimum(scores, CAP), values.astype(np.float64)
        return {
            "spearman": correlate_ranks(values, scores),
            "mae": float(np.abs(values - scores).mean()),
        }
    size, apart = int(maps.resolved(index).sum()), j - i
    measured = {}
    for span, (low, high) in RANGES.items():
        within = (apart >= low) & (apart <= (high or size + low + len(maps.pieces[index])))
        for name, share in _SHARES.items():
            count = max(1, size // share)
            measured[span + name] = top_precision(values[within], scores[within], count)
    return measured


def top_precision(values: np.ndarray, scores: np.ndarray, count: int) -> float:
    """Share of true ones among the `count` highest scores (or all, if fewer); NaN if none.

    Of scores that tie at the end, the share to be expected if they are drawn at random counts.
    """
    count = min(count, len(scores))
    if not count:
        return float("nan")
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    above, tied = scores > last, scores == last
    hits = values[above].sum() + (count - above.sum()) * values[tied].mean()
    return float(hits / count)


def measure_pairs(maps: MapTargets, index: int, pairs: np.ndarray) -> Measured:
    """Measure the base pairs that were chosen for one sequence.

    Parameters
    ----------
    maps, index
        The targets, and which of their sequences it is.
    pairs
        Shape ``(pairs, 2)``, each from left to right.

    Returns
    -------
    dict
        ``f1``, ``precision`` (NaN if no pair was chosen), ``recall`` (NaN if there is none),
        ``f1_shifted`` (either end may be off by one: Mathews 2019), and the counts ``hits``,
        ``chosen`` and ``true``. Without any pair, true or chosen, F1 is 1.
    """
    length = int(maps.lengths[index])
    true = np.zeros((length + 2, length + 2), np.bool_)  # with a border, for shifts
    found = true.copy()
    a, b = maps.pieces[index].T + 1
    true[a, b] = True
    a, b = np.asarray(pairs, np.int64).reshape(-1, 2).T + 1
    found[a, b] = True
    hits, chosen, there = int((true & found).sum()), int(found.sum()), int(true.sum())
    near_chosen = int((found & _spread(true)).sum())
    near_there = int((true & _spread(found)).sum())
    return {
        "f1": _f1(hits, hits, chosen, there),
        "precision": hits / chosen if chosen else np.nan,
        "recall": hits / there if there else np.nan,
        "f1_shifted": _f1(near_chosen, near_there, chosen, there),
        "hits": hits,
        "chosen": chosen,
        "true": there,
    }


def choose_threshold(
    maps: MapTargets, decoded: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[float, list[Measured]]:
    """Choose the threshold of base pairs with the highest mean F1.

    Parameters
    ----------
    maps
        Targets of all sequences.
    decoded
        Of each, what :func:`~frugalfm.tasks.brackets.decode_pairs` gave with :data:`FLOOR`.

    Returns
    -------
    threshold
        The highest of equals.
    measured
        With it, one a sequence.
    """
    best: tuple[float, list[Measured]] | None = None
    best_f1 = -1.0
    for threshold in (1 / (1 + np.exp(-_LOGITS)))[::-1]:
        measured = [
            measure_pairs(maps, index, pairs[chosen >= threshold])
            for index, (pairs, chosen) in enumerate(decoded)
        ]
        f1 = float(np.mean([found["f1"] for found in measured]))
        if f1 > best_f1:
            best, best_f1 = (float(threshold), measured), f1
    assert best is not None
    return best


def score_maps(
    measured: Sequence[Mapping[str, float]],
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Mean of each metric over sequences, undefined ones left out, with bootstrap intervals.

    Parameters
    ----------
    measured
        One a sequence, as :func:`measure_map` makes them.
    resamples, level, seed
        As in :func:`~frugalfm.tasks.metrics.score_classes`; whole sequences are drawn.

    Returns
    -------
    dict
        The metrics; for base pairs also ``pooled_f1``, of all pairs of all sequences together.
    """
    columns = {name: np.array([found[name] for found in measured]) for name in measured[0]}
    counts = [columns.pop(name) for name in ("hits", "chosen", "true") if name in columns]

    def evaluate(weights: np.ndarray) -> dict[str, np.ndarray]:
        scores = {}
        for name, values in columns.items():
            known = ~np.isnan(values)
            total = weights[:, known].sum(1)
            undefined = np.full(len(weights), np.nan)
            sums = weights[:, known] @ values[known]
            scores[name] = np.divide(sums, total, out=undefined, where=total > 0)
        if counts:
            hits, size = weights @ counts[0], weights @ (counts[1] + counts[2])
            undefined = np.full(len(weights), np.nan)
            scores["pooled_f1"] = np.divide(2 * hits, size, out=undefined, where=size > 0)
        return scores

    return bootstrap(evaluate, len(measured), resamples, level, seed)


def _spread(pairs: np.ndarray) -> np.ndarray:
    """Mark pairs and those with one end moved by one."""
    out = pairs.copy()
    out[1:] |= pairs[:-1]
    out[:-1] |= pairs[1:]
    out[:, 1:] |= pairs[:, :-1]
    out[:, :-1] |= pairs[:, 1:]
    return out


def _f1(of_chosen: int, of_true: int, chosen: int, there: int) -> float:
    """Harmonic mean of precision and recall; 1 if there is nothing to find and nothing found."""
    if not chosen and not there:
        return 1.0
    if not of_chosen or not of_true:
        return 0.0
    precision, recall = of_chosen / chosen, of_true / there
    return 2 * precision * recall / (precision + recall)

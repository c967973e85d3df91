"""Counts that describe a set of sequences, gathered in one pass and in little memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from frugalfm.coreset.budgets import length_bin, length_bin_start
from frugalfm.coreset.order import Counts, Watch, bucket_starts, count_upper, in_order

__all__ = ["QUANTILES", "Tally"]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_SHORT = 1 << 16
_MOST_BARS = 60


class Tally:
    """Lengths, losses and sources of some sequences.

    Parameters
    ----------
    sources
        Number of sources; 0 if they are not known.
    watch
        Is shown all influences.
    known
        What :func:`~frugalfm.coreset.footers.read_tally` read, so that lengths and losses need
        not be counted again.
    """

    columns = ("length", "loss")

    def __init__(self, sources: int = 0, watch: Watch | None = None, *, known: Tally | None = None):
        self.size, self.watch, self._known = 0, watch, known is not None
        self.influences: Counts = np.zeros(1 << 16, np.int64)
        self._losses: Counts = np.zeros(1 << 16, np.int64)
        self.sources: Counts = np.zeros(sources, np.int64)
        self._lengths: Counts = np.zeros(_SHORT, np.int64)
        self._long: Counter[int] = Counter()
        self._loss = 0.0
        if known is not None:
            self.merge(known)

    def start(self) -> Tally:
        """Return an empty one, to be merged, that counts what this one does not know."""
        empty = Tally(len(self.sources), self.watch)
        empty._known = self._known
        return empty

    def add(self, columns: Mapping[str, Any]) -> None:
        """Count some sequences, given by columns of equal size."""
        if not self._known:
            self._count(columns["length"], columns["loss"])
        if len(self.sources):
            np.add.at(self.sources, columns["source"], 1)
        if self.watch is not None:
            self.watch.add(columns["influence"])

    def _count(self, length: npt.NDArray[np.integer[Any]], loss: npt.NDArray[np.float32]) -> None:
        self.size += len(length)
        self._loss += float(np.sum(loss, dtype=np.float64))
        count_upper(self._losses, loss)
        if len(length) and length.max() >= _SHORT:
            self._long.update(length[length >= _SHORT].tolist())
            length = length[length < _SHORT]
        np.add.at(self._lengths, length.astype(np.intp), 1)

    def merge(self, other: Tally) -> None:
        """Count what another one has counted."""
        self.size += other.size
        self._loss += other._loss
        self._lengths += other._lengths
        self._long.update(other._long)
        self._losses += other._losses
        if len(other.sources):
            self.sources += other.sources

    def to_json(self) -> dict[str, Any]:
        """Lengths and losses, for :meth:`from_json`."""
        filled = np.flatnonzero(self._losses)
        return {
            "rows": self.size,
            "loss": self._loss,
            "losses": [filled.tolist(), self._losses[filled].tolist()],
            "lengths": [*map(list, zip(*self.lengths().items(), strict=True))],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tally:
        """Read what :meth:`to_json` gave."""
        found = cls()
        found.size, found._loss = int(content["rows"]), float(content["loss"])
        buckets, counts = content["losses"]
        found._losses[buckets] = counts
        for length, count in zip(*content["lengths"], strict=True):
            if length < _SHORT:
                found._lengths[length] = count
            else:
                found._long[length] = count
        return found

    def composition(self) -> dict[str, Any]:
        """Return ``sequences, mean_loss, loss_quantiles, length_quantiles``.

        Quantiles of the loss are those of a histogram whose buckets are less than 1 % wide.
        """
        lengths = self.lengths()
        values, counts = np.array(list(lengths)), np.array(list(lengths.values()))
        # Rounded, because sums depend on how files are cut into blocks.
        mean = float(f"{self._loss / self.size:.6g}") if math.isfinite(self._loss) else None
        return {
            "sequences": self.size,
            "mean_loss": mean,
            "loss_quantiles": None if mean is None else self._loss_quantiles(),
            "length_quantiles": {
                f"{q:.0%}": int(value) for q, value in _quantiles(values, counts).items()
            },
        }

    @property
    def losses(self) -> Counts:
        """How many losses are in each bucket of :func:`~frugalfm.coreset.order.bucket_starts`."""
        return in_order(self._losses)

    def _loss_quantiles(self) -> dict[str, float]:
        starts = bucket_starts()
        filled = np.flatnonzero(self.losses)
        middles = (starts[filled] + starts[filled + 1]) / 2
        found = _quantiles(middles, self.losses[filled])
        return {f"{q:.0%}": float(f"{value:.4g}") for q, value in found.items()}

    def lengths(self) -> dict[int, int]:
        """Return how many sequences have which length, in ascending order."""
        short = np.flatnonzero(self._lengths)
        found = dict(zip(short.tolist(), self._lengths[short].tolist(), strict=True))
        return found | dict(sorted(self._long.items()))

    def length_bins(self) -> dict[int, int]:
        """Return how many sequences are in which length bin."""
        bins: Counter[int] = Counter()
        for length, count in self.lengths().items():
            bins[length_bin(length)] += count
        return dict(sorted(bins.items()))


def _quantiles(values: npt.NDArray[Any], counts: Counts) -> dict[float, Any]:
    up_to = np.cumsum(counts)
    ranks = [max(1, math.ceil(q * int(up_to[-1]))) for q in QUANTILES]
    return {
        q: values[np.searchsorted(up_to, rank)] for q, rank in zip(QUANTILES, ranks, strict=True)
    }


def length_histogram(pool: Tally, chosen: Tally) -> dict[str, list[Any]]:
    """Return ``edges`` (one more than bars), ``pool`` and ``chosen`` of the length bins."""
    ours, theirs = pool.length_bins(), chosen.length_bins()
    bins = range(min(ours), max(ours) + 1)
    return {
        "edges": [length_bin_start(n) for n in [*bins, bins[-1] + 1]],
        "pool": [ours.get(n, 0) for n in bins],
        "chosen": [theirs.get(n, 0) for n in bins],
    }


def value_histogram(pool: Counts, chosen: Counts) -> dict[str, list[Any]]:
    """Return ``edges``, ``pool`` and ``chosen``, at most 60 bars, from counts of buckets.

    Bars are equally wide in the logarithm if all values are positive and reach over more than a
    factor of ten; otherwise equally wide. Where buckets are wider than bars, bars are joined.
    """
    starts = np.append(bucket_starts(), np.inf)
    filled = np.flatnonzero(pool)
    low, high = starts[filled[0]], starts[min(filled[-1] + 1, len(starts) - 1)]
    if not (np.isfinite(low) and np.isfinite(high)):
        return {"edges": [], "pool": [], "chosen": []}
    spread = low > 0 and high > 10 * low
    wanted = np.geomspace(low, high, _MOST_BARS + 1) if spread else np.linspace(
        low, high, _MOST_BARS + 1
    )  # fmt: skip
    # Every edge is where a bucket begins, so that counts are exact.
    cuts = np.searchsorted(starts, wanted)
    cuts = cuts[np.diff(cuts, prepend=-1) > 0]
    edges = starts[cuts]
    return {
        "edges": [float(f"{edge:.6g}") for edge in edges],
        "pool": _between(pool, cuts),
        "chosen": _between(chosen, cuts),
    }


def _between(counts: Counts, cuts: npt.NDArray[np.intp]) -> list[int]:
    up_to = np.concatenate([[0], np.cumsum(counts)])
    found: list[int] = np.diff(up_to[cuts]).tolist()
    return found

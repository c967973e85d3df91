"""Every strategy in plain Python, with lists and sorting, from the published descriptions."""

import hashlib
from bisect import bisect_right
from fractions import Fraction
from math import floor

import numpy as np

MASK = (1 << 64) - 1
P, Q, R = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

STRATEGIES = (
    "random",
    "top-influence",
    "top-influence-by-length",
    "coverage",
    "coverage-log",
    "top-loss",
    "middle-loss",
    "bottom-loss",
)


def digest(text, seed, purpose=""):
    """The hash of an id, as frugalfm.coreset.ids describes it."""
    content = text.encode()
    key = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=8).digest()
    value = (len(content) * P & MASK) ^ int.from_bytes(key, "little")
    for start in range(0, len(content), 8):
        word = int.from_bytes(content[start : start + 8], "little")
        value = (value ^ word) * P & MASK
        value ^= value >> 32
    value = value * Q & MASK
    value ^= value >> 29
    return value * R & MASK


class Oracle:
    """A pool whose row i has the id ``si``."""

    def __init__(self, scores, lengths, losses, seed=0, strata=50, drop=0.1):
        self.scores = [float(np.float32(score)) for score in scores]
        self.losses = [float(np.float32(loss)) for loss in losses]
        self.lengths = [int(length) for length in lengths]
        self.seed, self.strata, self.drop = seed, strata, drop

    def hash(self, row, purpose=""):
        return digest(f"s{row}", self.seed, purpose)

    def choose(self, strategy, budget, rows=None):
        rows = range(len(self.scores)) if rows is None else rows
        name = strategy.replace("-", "_")
        return sorted(getattr(self, name)(list(rows), budget))

    def best(self, rows, budget, values):
        return sorted(rows, key=lambda row: (-values[row], self.hash(row)))[:budget]

    def random(self, rows, budget):
        return sorted(rows, key=self.hash)[:budget]

    def top_influence(self, rows, budget):
        return self.best(rows, budget, self.scores)

    def top_loss(self, rows, budget):
        return self.best(rows, budget, self.losses)

    def bottom_loss(self, rows, budget):
        return self.best(rows, budget, [-loss for loss in self.losses])

    def middle_loss(self, rows, budget):
        """Equal losses at either end of the window are drawn by hash."""
        ordered = sorted(self.losses[row] for row in rows)
        first = (len(rows) - budget) // 2
        window = ordered[first : first + budget]
        return [
            row
            for value in sorted(set(window))
            for row in self.random(
                [row for row in rows if self.losses[row] == value], window.count(value)
            )
        ]

    def top_influence_by_length(self, rows, budget):
        bins = {}
        for row in rows:
            # sqrt(2)^bin <= length, so 2^bin <= length^2
            bins.setdefault((self.lengths[row] ** 2).bit_length() - 1, []).append(row)
        quotas = apportion(budget, {number: len(own) for number, own in bins.items()})
        return [row for n, own in bins.items() for row in self.top_influence(own, quotas[n])]

    def coverage(self, rows, budget, logarithmic=False):
        dropped = floor(Fraction(str(self.drop)) * len(rows))
        hardest = sorted(rows, key=lambda row: (-self.scores[row], self.hash(row, "drop")))
        kept = hardest[dropped:]
        values = [self.scores[row] for row in kept]
        edges = self.edges(min(values), max(values), logarithmic)
        members = {}
        for row in kept:
            members.setdefault(bisect_right(edges, self.scores[row]), []).append(row)
        chosen, remaining = [], budget
        smallest_first = [members[s] for s in sorted(members, key=lambda s: (len(members[s]), s))]
        for left, of_stratum in zip(range(len(members), 0, -1), smallest_first, strict=True):
            take = min(len(of_stratum), remaining // left)
            remaining -= take
            chosen += sorted(of_stratum, key=self.hash)[:take]
        assert remaining == 0
        return chosen

    def coverage_log(self, rows, budget):
        return self.coverage(rows, budget, logarithmic=True)

    def edges(self, low, high, logarithmic):
        """Where all strata but the first begin."""
        inner = range(1, self.strata)
        if low == high or (logarithmic and high <= 0):
            return []
        if logarithmic:
            low = max(low, high / 1e6)
            return [min(low * (high / low) ** (i / self.strata), high) for i in inner]
        return [min(low + i * ((high - low) / self.strata), high) for i in inner]


def apportion(budget, sizes):
    """Largest remainders."""
    total = sum(sizes.values())
    shares = {group: Fraction(budget * size, total) for group, size in sizes.items()}
    quotas = {group: floor(share) for group, share in shares.items()}
    for group in sorted(sizes, key=lambda g: (quotas[g] - shares[g], g)):
        if sum(quotas.values()) < budget:
            quotas[group] += 1
    return quotas

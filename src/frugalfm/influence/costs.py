"""What a plan will cost, from what a few of its batches cost: arithmetic only.

Batches of one budget of tokens differ in how long their sequences are: longer ones pay more for
attention, shorter ones more for what is done once a sequence. So seconds are measured per token at
several lengths, interpolated between them, and added up over all the batches to come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Cost", "Rates", "Shapes", "as_table", "choose_widths", "repeat_measures", "say_bytes"]


@dataclass(frozen=True)
class Shapes:
    """Batches to come, each standing for `weight` of them.

    Attributes
    ----------
    tokens
        Of each batch, pads included; float64, shape ``(n,)``.
    widths
        Tokens of its longest sequence, shape ``(n,)``.
    weight
        How many batches of the plan each stands for.
    """

    tokens: np.ndarray
    widths: np.ndarray
    weight: float = 1.0

    @property
    def count(self) -> float:
        """Batches of the plan."""
        return len(self.tokens) * self.weight

    def scale(self, factor: float) -> Shapes:
        """Return the same mixture, `factor` times as many."""
        return Shapes(self.tokens, self.widths, self.weight * factor)


@dataclass(frozen=True)
class Rates:
    """Seconds a token at some widths, ascending."""

    widths: np.ndarray
    seconds: np.ndarray

    @classmethod
    def fit(
        cls, widths: Sequence[float], tokens: Sequence[float], seconds: Sequence[Sequence[float]]
    ) -> Rates:
        """Take the median of each batch's repeated measures, and merge batches of one width.

        Parameters
        ----------
        widths, tokens
            Of each measured batch.
        seconds
            Measures of each batch; batches without any are left out.
        """
        measured = zip(widths, tokens, seconds, strict=True)
        rates = [(width, float(np.median(s)) / count) for width, count, s in measured if s]
        at = sorted({w for w, _ in rates})
        mean = [float(np.mean([rate for w, rate in rates if w == width])) for width in at]
        return cls(np.array(at, np.float64), np.array(mean))

    def total(self, shapes: Shapes) -> float:
        """Seconds of all batches; beyond the measured widths the nearest one's rate holds."""
        rates = np.interp(shapes.widths, self.widths, self.seconds)
        return float(shapes.weight * (shapes.tokens * rates).sum())


@dataclass(frozen=True)
class Cost:
    """One line of the plan.

    Attributes
    ----------
    stage
        What is done.
    seconds
        How long it takes; None for what is there already.
    memory
        Bytes of main memory at the peak.
    device_memory
        Bytes of a GPU's memory at the peak; None without one.
    disk
        Bytes on disk at the peak, of this stage alone.
    """

    stage: str
    seconds: float | None
    memory: float | None
    device_memory: float | None
    disk: float

    def as_record(self, price: float | None) -> dict[str, Any]:
        """For JSON; ``cost`` is in the currency of the price of an hour."""
        found = asdict(self)
        found["hours"] = None if self.seconds is None else self.seconds / 3600
        cost = None if price is None or self.seconds is None else price * self.seconds / 3600
        return found | {"cost": cost}


def choose_widths(shapes: Shapes, count: int) -> np.ndarray:
    """Choose batches to measure: from the widest to the narrowest, in even ratios.

    Returns
    -------
    ndarray
        int64 numbers of at most `count` batches, all of different widths.
    """
    # A rest of a few sequences tells little of a full batch of that width.
    full = np.flatnonzero(shapes.tokens >= shapes.tokens.max() / 2)
    widths = shapes.widths[full]
    wanted = np.geomspace(widths.max(), widths.min(), count)
    chosen = full[np.argmin(abs(np.log(widths) - np.log(wanted)[:, None]), axis=1)]
    _, first = np.unique(shapes.widths[chosen], return_index=True)
    found: np.ndarray = chosen[np.sort(first)]
    return found


def repeat_measures(
    run: Callable[[int], None],
    count: int,
    seconds: float,
    clock: Callable[[], float],
    *,
    least: int = 2,
    most: int = 50,
) -> list[list[float]]:
    """Time several things in turns, so that what slows the machine down slows all of them alike.

    Parameters
    ----------
    run
        Does the thing of a number below `count`.
    seconds
        After these no round is begun, once there are `least`.
    clock
        Tells seconds.
    least, most
        Rounds.

    Returns
    -------
    list of list of float
        Seconds of each repetition of each thing, after the first has been done once to warm up.
    """
    started = clock()
    run(0)
    found: list[list[float]] = [[] for _ in range(count)]
    for number in range(most):
        if number >= least and clock() - started > seconds:
            break
        for thing in range(count):
            before = clock()
            run(thing)
            found[thing].append(clock() - before)
    return found


def as_table(costs: Sequence[Cost], price: float | None) -> str:
    """Lay the plan out for reading."""
    heads = ["", "time", "memory", "GPU memory", "disk", "cost"]
    rows = [heads]
    for cost in costs:
        record = cost.as_record(price)
        money = "" if record["cost"] is None else f"{record['cost']:,.2f}"
        sizes = [cost.memory, cost.device_memory, cost.disk]
        time = "" if cost.seconds is None else say_time(cost.seconds)
        rows.append([cost.stage, time, *("" if s is None else say_bytes(s) for s in sizes), money])
    kept = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in kept]
    lines = [
        "  ".join(
            word.ljust(width) if place == 0 else word.rjust(width)
            for place, (word, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in zip(*kept, strict=True)
    ]
    return "\n".join(line.rstrip() for line in lines)


def say_time(seconds: float) -> str:
    """Say it in the unit that fits."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h"


def say_bytes(size: float) -> str:
    """Say it in the unit that fits; 1 GB is 10^9 bytes."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6)):
        if size >= 10**power:
            return f"{size / 10**power:,.1f} {unit}"
    return f"{size / 1000:,.1f} kB"

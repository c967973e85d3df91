"""Whole-number arithmetic of budgets: what is asked for, and how it is shared out."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from fractions import Fraction

from frugalfm.errors import InputError

__all__ = ["allocate", "apportion", "length_bin", "length_bin_start", "parse_budget"]


def parse_budget(budget: int | str, size: int) -> int:
    """Turn a budget such as ``200``, ``"200"`` or ``"0.5%"`` into a number of sequences.

    A percentage is of the pool's `size`, rounded to the nearest and at least 1.

    Raises
    ------
    InputError
        Neither a positive whole number nor a percentage, or more than the pool holds.
    """
    text = str(budget).strip()
    if match := re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*%", text):
        percent = Fraction(match[1])
        count = max(1, math.floor(percent * size / 100 + Fraction(1, 2))) if percent else 0
    elif re.fullmatch(r"\d+", text):
        count = int(text)
    else:
        raise InputError(
            f"--budget {text}: write a number of sequences such as 200000, or a percentage of "
            "the pool such as 1%"
        )
    if count < 1:
        raise InputError(f"--budget {text}: must be more than 0")
    if count > size:
        raise InputError(
            f"--budget {text} asks for {count} sequences but the pool holds {size}; "
            f"choose at most {size}"
        )
    return count


def allocate(budget: int, sizes: Mapping[int, int]) -> dict[int, int]:
    """Share a budget among strata: from the smallest, ``min(size, remaining // strata left)``.

    Exact for any budget up to the sum of the sizes. Let r remain for m strata, the smallest of
    size s, and q = r // m; r is at most what the m strata hold. If s <= q, the stratum gives all
    it has, and the rest still hold what then remains. If s > q, it gives q, and the rest hold at
    least (m - 1)(q + 1), which is no less than r - q, because r < m(q + 1). So the last stratum
    (m = 1, q = r) holds all that remains.
    """
    remaining = budget
    quotas = {}
    by_size = sorted(sizes, key=lambda stratum: (sizes[stratum], stratum))
    for left, stratum in zip(range(len(by_size), 0, -1), by_size, strict=True):
        quotas[stratum] = min(sizes[stratum], remaining // left)
        remaining -= quotas[stratum]
    return quotas


def apportion(budget: int, sizes: Mapping[int, int]) -> dict[int, int]:
    """Share a budget in proportion to the sizes, exactly (largest remainders; ties: the first)."""
    total = sum(sizes.values())
    shares = {group: divmod(budget * size, total) for group, size in sizes.items()}
    quotas = {group: whole for group, (whole, _) in shares.items()}
    by_remainder = sorted(shares, key=lambda group: (-shares[group][1], group))
    for group in by_remainder[: budget - sum(quotas.values())]:
        quotas[group] += 1
    return quotas


def length_bin_start(number: int) -> int:
    """Smallest length of a bin: sqrt(2)^number, rounded up."""
    return 1 + math.isqrt(2**number - 1)


_BIN_STARTS = [length_bin_start(number) for number in range(64)]


def length_bin(length: int) -> int:
    """Bin of a length, at least 1; bins grow by a factor of sqrt(2)."""
    return bisect_right(_BIN_STARTS, length) - 1

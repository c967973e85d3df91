"""How a budget is shared among sources."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from frugalfm.coreset.budgets import allocate, apportion
from frugalfm.errors import InputError

__all__ = ["Mixture", "parse_mixture", "share_out"]

Mixture = str | dict[str, Fraction]


def parse_mixture(text: str) -> Mixture:
    """Read ``proportional``, ``equal``, or weights such as ``rfam=2,mirbase=1``.

    Raises
    ------
    InputError
        Something else, a weight that is not a positive number, or a source named twice.
    """
    if text in {"proportional", "equal"}:
        return text
    weights: dict[str, Fraction] = {}
    for item in text.split(","):
        name, _, weight = item.rpartition("=")
        name = name.strip()
        try:
            value = Fraction(weight.strip())
        except (ValueError, ZeroDivisionError):
            value = Fraction(0)
        if not name or value <= 0 or name in weights:
            raise InputError(
                f"--mixture {text}: write proportional, equal, or each source once with a "
                "positive weight, such as rfam=2,mirbase=1"
            )
        weights[name] = value
    return weights


def share_out(
    budget: int, capacities: Sequence[int], names: Sequence[str], mixture: Mixture | None
) -> list[int]:
    """Share a budget among sources, exactly.

    ``proportional`` to what they hold; ``equal`` shares, where a source that holds less gives all
    it has and the others share the rest; or by weights, where other sources give nothing and a
    source that holds too little is an error, because the shares would not be those asked for.

    Parameters
    ----------
    budget
        How many to choose.
    capacities
        How many can be chosen from each source.
    names
        Of the sources; not used without a mixture.
    mixture
        From :func:`parse_mixture`; None for a pool that is not divided.

    Raises
    ------
    InputError
        The budget cannot be met, or there is no such source.
    """
    total = sum(capacities)
    if not isinstance(mixture, dict):
        if budget > total:
            raise InputError(
                f"--budget of {budget} sequences: only {total} can be chosen; "
                f"choose at most {total}"
            )
        share = allocate if mixture == "equal" else apportion
        held = {n: capacity for n, capacity in enumerate(capacities) if capacity}
        quotas = share(budget, held)
        return [quotas.get(n, 0) for n in range(len(capacities))]
    for name in mixture:
        if name not in names:
            raise InputError(
                f"--mixture: there is no source {name!r}; there are: {', '.join(names[:20])}"
            )
    scale = sum(mixture.values())
    found = _by_weight(budget, mixture, names)
    if any(quota > capacity for quota, capacity in zip(found, capacities, strict=True)):
        short = [
            f"{name!r} holds {capacity} of {quota}"
            for name, quota, capacity in zip(names, found, capacities, strict=True)
            if quota > capacity
        ]
        most = min(
            int(capacity * scale / mixture[name])
            for name, capacity in zip(names, capacities, strict=True)
            if name in mixture
        )
        while any(q > c for q, c in zip(_by_weight(most, mixture, names), capacities, strict=True)):
            most -= 1
        raise InputError(
            f"--budget of {budget} sequences in this --mixture: {'; '.join(short)}; choose at "
            f"most {most}, or other weights"
        )
    return found


def _by_weight(budget: int, weights: dict[str, Fraction], names: Sequence[str]) -> list[int]:
    scale = 1
    for weight in weights.values():
        scale *= weight.denominator
    whole = {n: int(weights[name] * scale) for n, name in enumerate(names) if name in weights}
    quotas = apportion(budget, whole)
    return [quotas.get(n, 0) for n in range(len(names))]

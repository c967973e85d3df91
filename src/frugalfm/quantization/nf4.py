"""NF4 (QLoRA: Dettmers et al. 2023, arXiv 2305.14314): 16 levels for normally distributed weights.

Levels are quantiles of a normal distribution, closer where weights are many, 0 among them; the
unit is the largest magnitude of each group of inputs of an output channel (64 as published). It
needs no data. The unit stays in fp32 here, where bitsandbytes rounds it again to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from frugalfm.errors import InputError
from frugalfm.quantization.assembly import assemble, cover_groups
from frugalfm.quantization.groups import input_groups
from frugalfm.quantization.observers import PERCENTILE, ObserverName
from frugalfm.quantization.quantizers import (
    Format,
    InputGranularity,
    WeightGranularity,
    make_input_format,
)
from frugalfm.quantization.scheme import FLOATING_POINT, Scheme
from frugalfm.quantization.sites import survey_sites
from frugalfm.training.data import Batch

__all__ = ["NF4_LEVELS", "quantize_nf4"]


def _find_levels() -> tuple[float, ...]:
    """Quantiles of the normal distribution: eight above 0, seven below, and 0, over the largest.

    The outermost lie where half a level of 15 or 16 is left beyond them (on average), so that
    they are finite.
    """
    outermost = 1 - (1 / 32 + 1 / 30) / 2
    above, below = (
        torch.special.ndtri(torch.linspace(outermost, 0.5, n, dtype=torch.float64)[:-1])
        for n in (9, 8)
    )
    levels = torch.cat([-below, torch.zeros(1, dtype=torch.float64), above]) / above[0]
    return tuple(levels.sort().values.float().tolist())


NF4_LEVELS = _find_levels()
_GROUP = 64


def quantize_nf4(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    weights: int = 4,
    activations: int = 16,
    weight_granularity: WeightGranularity = "group",
    activation_granularity: InputGranularity = "token",
    group_size: int | None = None,
    symmetric_activations: bool = False,
    activation_observer: ObserverName = "running",
    momentum: float = 0.9,
    percentile: float = PERCENTILE,
) -> Scheme:
    """Find an NF4 scheme.

    Parameters
    ----------
    model
        An encoder that the catalogue knows, in evaluation mode, on the device to compute on.
    batches
        For calibration; only looked at where activations get static grids.
    weights
        4; or 16, which leaves them in floating point.
    activations
        Width in bits, 2 to 15, rounded as min-max does; 16 leaves them in floating point, as the
        method means it.
    weight_granularity, group_size
        What shares a unit: a weight, an output channel, or so many inputs of one (64).
    activation_granularity, symmetric_activations, activation_observer, momentum, percentile
        As of :func:`~frugalfm.quantization.minmax.quantize_minmax`.

    Raises
    ------
    InputError
        An unknown architecture, an option out of range, weights that are not finite or do not
        divide into groups.
    """
    if weights not in {4, FLOATING_POINT}:
        raise InputError(f"NF4 has 4 bits, not {weights}")
    weight_format = None
    if weights == 4:
        size = (group_size or _GROUP) if weight_granularity == "group" else None
        weight_format = Format(4, True, weight_granularity, size, NF4_LEVELS)
    input_format = make_input_format(
        activations, activation_granularity, symmetric=symmetric_activations
    )
    groups = input_groups(survey_sites(model))
    return assemble(
        "nf4",
        model,
        groups,
        weights=weight_format,
        activations=input_format,
        input_grids=cover_groups(
            model,
            batches,
            groups,
            input_format,
            observer=activation_observer,
            momentum=momentum,
            percentile=percentile,
        ),
    )

"""NF4 (QLoRA: Dettmers et al. 2023, arXiv 2305.14314): 16 levels for normally distributed weights.

Levels are quantiles of a normal distribution, closer where weights are many, 0 among them; the
unit is the largest magnitude of each group of inputs of an output channel (64 as published). It
needs no data. The unit stays in fp32 here, where bitsandbytes rounds it again to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.quantization.methods.assembly import assemble, transformed_weights
from frugalfm.quantization.methods.groups import input_groups
from frugalfm.quantization.quantizers import Format
from frugalfm.quantization.ranges import cover_weights
from frugalfm.quantization.scheme import FLOATING_POINT, Scheme
from frugalfm.quantization.settings import Settings
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


def quantize_nf4(model: nn.Module, batches: Sequence[Batch], settings: Settings) -> Scheme:
    """Find an NF4 scheme.

    Parameters
    ----------
    model, batches, settings
        As of :class:`~frugalfm.quantization.methods.Method`. Weights have 4 bits (or 16: they
        stay), and groups that share a unit 64 inputs by default. Activations stay in floating
        point, as the method means it, or are rounded as min-max does; only static grids look at
        batches.
    """
    if settings.weights not in {4, FLOATING_POINT}:
        raise InputError(f"NF4 has 4 bits, not {settings.weights}")
    groups = input_groups(survey_sites(model))
    plain = replace(settings, weights=FLOATING_POINT)
    scheme = assemble("nf4", model, batches, groups, plain)
    if settings.weights == FLOATING_POINT:
        return scheme
    values: dict[str, Tensor] = {}
    for group in groups:
        values |= transformed_weights(model, group, None)
    shared = settings.weight_granularity
    size = (settings.group_size or _GROUP) if shared == "group" else None
    form = Format(4, True, shared, size, NF4_LEVELS)
    return replace(scheme, weights=form, weight_grids=cover_weights(values, form, settings))

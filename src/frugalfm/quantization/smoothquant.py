"""SmoothQuant (Xiao et al. 2023, arXiv 2211.10438): move outliers from activations to weights.

Channel j of a linear's input is divided by

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)                                          (eq. 4)

and column j of the weight multiplied by it. The paper smooths the inputs that a LayerNorm makes,
because it folds the division into that LayerNorm. Here the division belongs to the linear (see
:mod:`frugalfm.quantization.transforms`), so that every input is smoothed, in post-LN and gated
models too. Linears that read one tensor share its scales; ``max|W_j|`` is then over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.progress import progress
from frugalfm.quantization.assembly import OutputError, assemble, cover_groups, linear_of
from frugalfm.quantization.capture import Captured, capture_inputs
from frugalfm.quantization.groups import InputGroup, input_groups
from frugalfm.quantization.observers import PERCENTILE, ObserverName
from frugalfm.quantization.quantizers import (
    Format,
    InputGranularity,
    WeightGranularity,
    make_input_format,
    make_weight_format,
)
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.sites import survey_sites
from frugalfm.quantization.transforms import ChannelTransform
from frugalfm.training.data import Batch

__all__ = ["ALPHAS", "quantize_smoothquant", "smoothing_scale"]

ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8)
"""What ``alpha="search"`` tries, beside not smoothing at all."""

_SMALLEST = 1e-5  # Of the largest column: a column of zeros counts as this.


def quantize_smoothquant(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    weights: int = 8,
    activations: int = 8,
    weight_granularity: WeightGranularity = "channel",
    activation_granularity: InputGranularity = "token",
    group_size: int | None = None,
    symmetric_activations: bool = False,
    weight_observer: ObserverName = "minmax",
    activation_observer: ObserverName = "running",
    momentum: float = 0.9,
    percentile: float = PERCENTILE,
    alpha: float | Literal["search"] = 0.5,
    tokens: int = 1024,
) -> Scheme:
    """Find a SmoothQuant scheme.

    Parameters
    ----------
    model
        An encoder that the catalogue knows, in evaluation mode, on the device to compute on.
    batches
        For calibration; at least one. Pads are left out.
    weights, activations
        Widths in bits, 2 to 15; 16 leaves them in floating point, but smoothed.
    weight_granularity, activation_granularity
        The defaults are the paper's setting.
    group_size, symmetric_activations
        As of :func:`~frugalfm.quantization.minmax.quantize_minmax`.
    weight_observer, activation_observer, momentum, percentile
        Likewise; ranges are those of smoothed weights and inputs.
    alpha
        How much of the difficulty goes to the weights, 0 to 1; or ``search``: in every group, the
        one of :data:`ALPHAS`, or no smoothing, with the least error of the group's outputs.
    tokens
        Sampled for the search.

    Raises
    ------
    InputError
        An unknown architecture, an option out of range, no batches, or weights or activations
        that are not finite.
    """
    if alpha != "search" and not 0 <= alpha <= 1:
        raise InputError(f"alpha {alpha} is not between 0 and 1")
    weight_format = make_weight_format(weights, weight_granularity, group_size=group_size)
    input_format = make_input_format(
        activations, activation_granularity, symmetric=symmetric_activations
    )
    groups = input_groups(survey_sites(model))
    captured = capture_inputs(model, batches, groups, tokens=tokens)
    transforms = {}
    for group in progress(groups, desc="smooth", unit="site"):
        seen = captured[group]
        if alpha == "search":
            found = _search(
                model,
                group,
                seen,
                weight_format,
                input_format,
                observer=weight_observer,
                percentile=percentile,
            )
        else:
            found = _smooth(model, group, seen, alpha)
        if found is not None:
            transforms[group] = found
    return assemble(
        "smoothquant",
        model,
        groups,
        weights=weight_format,
        activations=input_format,
        transforms=transforms,
        input_grids=cover_groups(
            model,
            batches,
            groups,
            input_format,
            transforms,
            observer=activation_observer,
            momentum=momentum,
            percentile=percentile,
        ),
        weight_observer=weight_observer,
        percentile=percentile,
    )


def smoothing_scale(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Compute the paper's equation 4.

    Parameters
    ----------
    inputs, weights
        Largest magnitude of every input channel and of every weight column, shape
        ``(in_features,)``.
    alpha
        0 to 1.

    Returns
    -------
    Tensor
        Positive and finite, of the inputs' type. A channel that was always 0 gets the median of
        the other channels' scales, so that it is an ordinary one should it come to life.
    """
    inputs, weights = inputs.double(), weights.double()
    weights = weights.clamp_min(_SMALLEST * float(weights.max()) or 1.0)
    alive = inputs > 0
    if not bool(alive.any()):
        return torch.ones_like(inputs).float()
    scale = inputs.pow(alpha) / weights.pow(1 - alpha)
    return torch.where(alive, scale, scale[alive].median()).float()


def _smooth(model: nn.Module, group: InputGroup, seen: Captured, alpha: float) -> ChannelTransform:
    columns = [linear_of(model, site).weight.detach().abs().amax(0) for site in group.sites]
    return ChannelTransform(smoothing_scale(seen.largest, torch.stack(columns).amax(0), alpha))


def _search(
    model: nn.Module,
    group: InputGroup,
    seen: Captured,
    weights: Format | None,
    activations: Format | None,
    **observing: Any,
) -> ChannelTransform | None:
    candidates = [None, *(_smooth(model, group, seen, alpha) for alpha in ALPHAS)]
    errors = [
        OutputError(
            model, group, seen.sample, weights=weights, transform=candidate, **observing
        ).at(activations)
        for candidate in candidates
    ]
    return candidates[errors.index(min(errors))]

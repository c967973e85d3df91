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
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.progress import progress
from frugalfm.quantization.methods.assembly import OutputError, assemble, linear_of
from frugalfm.quantization.methods.capture import Captured, capture_inputs
from frugalfm.quantization.methods.groups import InputGroup, input_groups
from frugalfm.quantization.quantizers import Format, Grid
from frugalfm.quantization.scheme import FLOATING_POINT, Scheme
from frugalfm.quantization.settings import Settings
from frugalfm.quantization.sites import survey_sites
from frugalfm.quantization.transforms import ChannelTransform
from frugalfm.training.data import Batch

__all__ = ["ALPHAS", "quantize_smoothquant", "smoothing_scale"]

ALPHAS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
"""What ``alpha="search"`` tries, beside not smoothing at all."""

_SMALLEST = 1e-5  # Of the largest column: a column of zeros counts as this.


def quantize_smoothquant(
    model: nn.Module,
    batches: Sequence[Batch],
    settings: Settings,
    *,
    alpha: float | Literal["search"] = 0.5,
    tokens: int = 1024,
) -> Scheme:
    """Find a SmoothQuant scheme.

    Parameters
    ----------
    model, batches, settings
        As of :class:`~frugalfm.quantization.methods.Method`; ranges are those of smoothed weights
        and inputs. What stays in floating point is smoothed, too.
    alpha
        How much of the difficulty goes to the weights, 0 to 1; or ``search``: in every group, the
        one of :data:`ALPHAS`, or no smoothing, with the least error of the group's outputs on a
        quarter of the batches, which scales and ranges are not taken from while they are judged.
    tokens
        Sampled for the search.
    """
    if alpha != "search" and not 0 <= alpha <= 1:
        raise InputError(f"alpha {alpha} is not between 0 and 1")
    groups = input_groups(survey_sites(model))
    # What is tried is judged by batches that it has not seen: a scale that is right for these
    # tokens alone would have others clipped.
    apart = max(1, len(batches) // 4) if alpha == "search" and len(batches) > 1 else 0
    captured = capture_inputs(model, batches[apart:], groups, tokens=tokens)
    judges = capture_inputs(model, batches[:apart], groups, tokens=tokens) if apart else captured
    transforms = {}
    for group in progress(groups, desc="smooth", unit="site"):
        seen, judge = captured[group], judges[group]
        best: float | None = (
            _search(model, group, seen, judge, settings) if alpha == "search" else alpha
        )
        if best is not None:
            transforms[group] = _smooth(model, group, seen.join(judge), best)
    return assemble("smoothquant", model, batches, groups, settings, transforms=transforms)


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
    model: nn.Module, group: InputGroup, seen: Captured, judge: Captured, settings: Settings
) -> float | None:
    """Find the alpha of the least error on tokens that are not those that scales come from."""
    form = settings.input_format
    if settings.rounding == "gptq" and form is not None:  # little is left of the weights' part
        settings = replace(settings, weights=FLOATING_POINT)
    errors: dict[float | None, float] = {}
    for alpha in (None, *ALPHAS):
        transform = None if alpha is None else _smooth(model, group, seen, alpha)
        how: Format | Grid | None = form
        if form is not None and not form.dynamic:
            ends = torch.stack([seen.low, seen.high])
            how = form.cover(*(ends if transform is None else transform.on_input(ends)).aminmax())
        errors[alpha] = OutputError(model, group, judge.sample, settings, transform).at(how)
    return min(errors, key=lambda alpha: errors[alpha])

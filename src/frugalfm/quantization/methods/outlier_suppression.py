"""Outlier Suppression (Wei et al. 2022, arXiv 2209.13325), for encoders of any layer order.

**Gamma migration.** A LayerNorm computes ``X_j = gamma_j X'_j`` with
``X'_j = (x_j - mean) / std + beta_j / gamma_j``. A large gamma makes
the same few channels of every token large, and X' is easier to round than X. So X' is what is
rounded, and gamma moves into the weights that read it: ``W X = (W gamma) X'``. The paper
changes the LayerNorm and multiplies the residual branch by gamma in turn; here the division
belongs to the linear, and the other branches read X as before. Only the magnitude of gamma moves
(a transform's scale is positive). Gammas near 0 are taken as a small part of their mean, because
``beta / gamma`` would be a new outlier. The paper migrates everywhere; ``migrate="search"`` does
where it helps: a small gamma can be what hides an outlier.

**Token-wise clipping**, where one static grid serves all tokens. What few tokens alone reach can
be clipped at little cost. With ``o_u`` and ``o_l`` the largest and the smallest value of every
token, the *coarse* stage tries ranges

    ``[quantile(o_l, 1 - a), quantile(o_u, a)]``

and keeps the step ``s_0`` with the least loss ``L(s) = |f_q(s) - f|^2``. The *fine* stage
descends the gradient ``s <- s - rate dL/ds``, straight-through and with the clipped
values' part as in LSQ+ (arXiv 2004.09576). Unlike the paper, f are the outputs of the linears
that read the tensor, not of the whole network; the rate is relative to the step, so that it suits
any unit; the zero point stays; and the best step seen is kept, so that no stage does harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from frugalfm.progress import progress
from frugalfm.quantization.methods.assembly import OutputError, assemble
from frugalfm.quantization.methods.capture import Captured, capture_inputs
from frugalfm.quantization.methods.groups import InputGroup, find_feeding_norms, input_groups
from frugalfm.quantization.quantizers import Format, Grid
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.settings import Settings
from frugalfm.quantization.sites import survey_sites
from frugalfm.quantization.transforms import ChannelTransform
from frugalfm.training.data import Batch

__all__ = [
    "RATIOS",
    "clip_tokens",
    "migration_scale",
    "quantize_outlier_suppression",
    "round_through",
]

RATIOS = (1.0, 0.995, 0.99, 0.98, 0.96, 0.92, 0.84, 0.68, 0.5, 0.3, 0.1, 0.0)
"""Quantiles of the tokens' ranges that the coarse stage tries, beside the range of all values."""

_SMALLEST = 0.01  # Of the mean |gamma|.


def quantize_outlier_suppression(
    model: nn.Module,
    batches: Sequence[Batch],
    settings: Settings,
    *,
    migrate: Literal["search", "always", "never"] = "search",
    coarse: bool = True,
    fine_steps: int = 20,
    fine_rate: float = 0.02,
    tokens: int = 1024,
) -> Scheme:
    """Find an Outlier Suppression scheme.

    Parameters
    ----------
    model, batches, settings
        As of :class:`~frugalfm.quantization.methods.Method`. Gamma is migrated where inputs stay
        in floating point, too; nothing is clipped where their grids are dynamic.
    migrate
        Gamma: ``always``, as published; ``never``; or ``search``: for the linears that read one
        tensor, whichever of the two loses less.
    coarse
        Whether to do the coarse stage.
    fine_steps
        Of the gradient descent; 0 leaves it out.
    fine_rate
        Its rate, relative to the step between two grid points.
    tokens
        Sampled, to measure losses on.
    """
    input_format = settings.input_format
    groups = input_groups(survey_sites(model))
    captured = capture_inputs(model, batches, groups, tokens=tokens)
    norms = find_feeding_norms(model, batches[0], groups) if migrate != "never" else {}
    transforms: dict[InputGroup, ChannelTransform] = {}
    grids: dict[InputGroup, Grid] = {}
    ratios = RATIOS if coarse else ()
    for group in progress(groups, desc="suppress", unit="site"):
        moved = _migrate(model, norms[group]) if group in norms else None
        tried = []
        choices = [moved]
        if migrate == "search" and moved is not None and input_format is not None:
            choices.append(None)
        for transform in choices:
            loss = OutputError(model, group, captured[group].sample, settings, transform)
            how: Format | Grid | None = input_format
            if input_format and not input_format.dynamic:
                start = _cover(input_format, captured[group], transform)
                how = clip_tokens(loss, start, ratios, steps=fine_steps, rate=fine_rate)
            tried.append((loss.at(how), transform, how))
        _, transform, how = min(tried, key=lambda one: one[0])
        if transform is not None:
            transforms[group] = transform
        if isinstance(how, Grid):
            grids[group] = how
    return assemble(
        "outlier-suppression",
        model,
        batches,
        groups,
        settings,
        transforms=transforms,
        input_grids=grids,
    )


def _migrate(model: nn.Module, norm: str) -> ChannelTransform:
    gamma = model.get_submodule(norm).get_parameter("weight").detach()
    return ChannelTransform(migration_scale(gamma))


def _cover(form: Format, seen: Captured, transform: ChannelTransform | None) -> Grid:
    ends = torch.stack([seen.low, seen.high])
    return form.cover(*(ends if transform is None else transform.on_input(ends)).aminmax())


def migration_scale(gamma: Tensor) -> Tensor:
    """Give what of a LayerNorm's gamma moves into the weights: its magnitude, kept from 0."""
    size = gamma.abs().float()
    smallest = _SMALLEST * float(size.mean())
    return size.clamp_min(smallest) if smallest > 0 else torch.ones_like(size)


@torch.no_grad()
def clip_tokens(
    loss: OutputError, start: Grid, ratios: Sequence[float], *, steps: int, rate: float
) -> Grid:
    """Find a grid by token-wise clipping.

    Parameters
    ----------
    loss
        L above, with the tokens.
    start
        Grid of the range without clipping; where nothing better is found, it stays.
    ratios
        Quantiles for the coarse stage.
    steps, rate
        Of the fine stage.

    Returns
    -------
    Grid
        Of the same format.
    """
    uppers, lowers = loss.inputs.amax(-1), loss.inputs.amin(-1)
    candidates = [start]
    for ratio in ratios:
        low, high = lowers.quantile(1 - ratio), uppers.quantile(ratio)
        candidates.append(start.format.cover(low, high))
    losses = [loss.at(grid) for grid in candidates]
    best = candidates[losses.index(min(losses))]
    return _descend(loss, best, min(losses), steps, rate)


def _descend(loss: OutputError, grid: Grid, reached: float, steps: int, rate: float) -> Grid:
    """Descend the loss over the logarithm of the step; keep the best."""
    best, first = grid, grid.scale
    moved = torch.zeros_like(first, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=rate)
    for step in range(steps + 1):
        with torch.enable_grad():
            scale = first * moved.exp()
            found = loss(round_through(loss.inputs, grid, scale))
        if float(found.detach()) < reached:
            reached, best = float(found.detach()), replace(grid, scale=scale.detach())
        if step < steps:
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
    return best


def round_through(values: Tensor, grid: Grid, scale: Tensor) -> Tensor:
    """Round to a grid with another step, so that gradients reach the step (LSQ+).

    The gradient of rounding is taken as 1; a value inside the grid then adds
    ``round(x / s) - x / s`` to the derivative, one outside adds the end's integer.
    """
    zero = grid.zero_point.to(scale.dtype)
    inside = (values / scale).clamp(grid.format.lowest - zero, grid.format.highest - zero)
    return (inside + (inside.round() - inside).detach()) * scale

"""Weights rounded to spare a linear's output: GPTQ (Frantar et al. 2023, arXiv 2210.17323).

It holds for any scheme, with static or dynamic inputs, transforms or none: what method found the
grids does not matter. Columns are rounded one after the other, and what
each of them loses is made up for by the columns still in floating point, as far as the calibration
inputs X allow. With ``H = 2 X X^T`` (damped) and U the upper Cholesky factor of its inverse (the
paper's algorithm 1):

    ``e = (w_j - round(w_j)) / U_jj``,    ``w_k <- w_k - e U_jk`` for all k > j

in blocks of columns, so that columns far ahead are changed only once in a block. Grids are those
of round-to-nearest, found before (also for groups of columns: "static groups"), so that any order
of the columns can be taken. X are the inputs as the linear multiplies them: transformed, and
rounded where that is to a fixed grid. They come from the model in floating point, or
(`sequential`, as the paper does it) from one whose layers before are quantized already.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.progress import progress
from frugalfm.quantization.blocks import Part, list_parts, run_part, substitute
from frugalfm.quantization.methods.assembly import linear_of
from frugalfm.quantization.methods.groups import InputGroup, input_groups
from frugalfm.quantization.quantizers import Grid
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.simulate import SimulatedLinear
from frugalfm.quantization.sites import Site, survey_sites
from frugalfm.quantization.taps import tap
from frugalfm.training.data import Batch

__all__ = ["round_columns", "round_weights"]


@torch.no_grad()
def round_weights(
    model: nn.Module,
    batches: Sequence[Batch],
    scheme: Scheme,
    *,
    damping: float = 0.01,
    order: Literal["size", "given"] = "size",
    sequential: bool = False,
) -> Scheme:
    """Choose the integers of a scheme's weights by GPTQ; grids and transforms stay.

    Parameters
    ----------
    model
        That the scheme was found for; left as it was.
    batches
        For calibration; at least one. Pads are left out.
    scheme
        Of linears.
    damping, order
        As of :func:`round_columns`.
    sequential
        Whether each layer sees what the quantized layers before it pass on.

    Raises
    ------
    InputError
        No batches, or inputs that are not finite.
    """
    if not scheme.weight_grids:
        return scheme
    if not batches:
        raise InputError("no calibration batch has been given; give at least one")
    device = next(model.parameters()).device
    moved = [batch.to(device) for batch in batches]
    passed: list[Any] = [None] * len(moved)
    survey = survey_sites(model)
    integers: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        for part in progress(list_parts(survey), desc="gptq", unit="layer"):
            inside = [group for group in input_groups(survey) if group.first in part.sites]
            hessians, outputs = _collect(model, part, inside, scheme, moved, passed)
            for group in inside:
                for site in group.sites:
                    linear = linear_of(model, site)
                    integers[site] = round_columns(
                        scheme.transformed_weight(site, linear),
                        scheme.weight_grids[site].to(device),
                        hessians[group.first],
                        damping=damping,
                        order=order,
                    )
            if sequential:
                found = replace(scheme, integers=integers)
                stack.enter_context(substitute(model, _simulate(model, found, part.sites)))
            if part.is_layer:
                if sequential:
                    outputs = [
                        run_part(model, part, batch, given)
                        for batch, given in zip(moved, passed, strict=True)
                    ]
                passed = outputs
    return replace(scheme, integers=integers)


def _simulate(model: nn.Module, scheme: Scheme, sites: Sequence[str]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for site in sites:
        linear, transform = linear_of(model, site), scheme.transforms.get(site)
        weight = scheme.quantized_weight(site, linear)
        moved = None if transform is None else transform.to(weight.device)
        found[site] = SimulatedLinear(linear, weight, None, moved)
    return found


def _collect(
    model: nn.Module,
    part: Part,
    groups: Sequence[InputGroup],
    scheme: Scheme,
    batches: Sequence[Batch],
    passed: Sequence[Any],
) -> tuple[dict[str, Tensor], list[Any]]:
    """Hessians of the groups of one part, up to a factor, and what the part gave."""
    hessians: dict[str, Tensor] = {}

    def visit(site: Site, inputs: Tensor) -> Tensor:
        rows = taps.real.select(inputs, site).flatten(0, -2).float()
        if not bool(rows.isfinite().all()):
            raise InputError(f"the input of {site.name} is not finite; the checkpoint is unusable")
        transform, grid = scheme.transforms.get(site.name), scheme.input_grids.get(site.name)
        if transform is not None:
            rows = transform.to(rows.device).on_input(rows)
        if grid is not None:
            rows = grid.to(rows.device).round(rows)
        hessians[site.name] = hessians.get(site.name, 0) + rows.T @ rows
        return inputs

    with tap(model, [Site(group.first, "", None) for group in groups], visit) as taps:
        outputs = [
            run_part(model, part, batch, given)
            for batch, given in zip(batches, passed, strict=True)
        ]
    return hessians, outputs


@torch.no_grad()
def round_columns(
    weight: Tensor,
    grid: Grid,
    hessian: Tensor,
    *,
    damping: float = 0.01,
    order: Literal["size", "given"] = "size",
    block: int = 128,
) -> Tensor:
    """Choose a weight's integers by GPTQ.

    Parameters
    ----------
    weight
        Shape ``(out_features, in_features)``.
    grid
        Its grid or grids.
    hessian
        ``X X^T`` of the inputs up to a factor, shape ``(in_features, in_features)``.
    damping
        Added to the diagonal, as a share of its mean.
    order
        Columns by falling diagonal of the Hessian (``size``: the paper's code calls it act-order),
        or as they come.
    block
        Columns between two updates of all columns ahead; the result depends on it only by
        rounding errors.

    Returns
    -------
    Tensor
        int16, shape of the weight. Columns whose input was always 0 are rounded to nearest.

    Raises
    ------
    InputError
        A Hessian that is not finite, or not positive even with damping.
    """
    upper, ranks = _factor(hessian, damping, order)
    left = weight.detach().double()[:, ranks]
    integers = torch.empty_like(left)
    count, places = left.shape[1], ranks.tolist()
    for start in range(0, count, block):
        end = min(start + block, count)
        errors = torch.empty_like(left[:, start:end])
        for j in range(start, end):
            column = left[:, j : j + 1]
            own = _column_grid(grid, places[j])
            chosen = own.to_integers(column).clamp(grid.format.lowest, grid.format.highest)
            integers[:, j : j + 1] = chosen
            error = (column - own.to_values(chosen)) / upper[j, j]
            left[:, j:end] -= error * upper[j, j:end]
            errors[:, j - start : j - start + 1] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    return integers[:, ranks.argsort()].to(torch.int16)


def _factor(hessian: Tensor, damping: float, order: str) -> tuple[Tensor, Tensor]:
    """Upper Cholesky factor of the inverse of the damped Hessian, and the columns' order."""
    matrix = hessian.double().clone()
    diagonal = matrix.diagonal()
    diagonal += damping * diagonal.mean()
    # Without any input at all there is nothing to make up for.
    diagonal[diagonal == 0] = 1
    ranks = torch.arange(len(matrix), device=matrix.device)
    if order == "size":
        ranks = diagonal.argsort(descending=True, stable=True)
    matrix = matrix[ranks][:, ranks]
    lower, failed = torch.linalg.cholesky_ex(matrix)
    if bool(failed) or not bool(matrix.isfinite().all()):
        raise InputError("the calibration inputs' Hessian is not positive; use more damping")
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True), ranks


def _column_grid(grid: Grid, column: int) -> Grid:
    """Give the grid or grids of one column."""
    size = grid.format.group_size
    if size is None:
        return grid
    place = slice(column // size, column // size + 1)
    form = replace(grid.format, granularity="channel", group_size=None)
    return Grid(form, grid.scale[:, place], grid.zero_point[:, place])

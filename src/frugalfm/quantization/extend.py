"""From the linears to other places: whatever found a scheme, more of the model is rounded with it.

A method decides about linears. Operands of attention, embeddings, LayerNorms' outputs and residual
sums get plain grids of the activations' own format here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from frugalfm.quantization.quantizers import Grid
from frugalfm.quantization.ranges import cover_inputs, cover_weights
from frugalfm.quantization.scheme import Scheme, hash_weight
from frugalfm.quantization.settings import Settings
from frugalfm.quantization.sites import Extent, Site, Survey, survey_sites
from frugalfm.quantization.transforms import ChannelTransform
from frugalfm.training.data import Batch

__all__ = ["extend_scheme"]

_DEFAULTS = Settings()


def extend_scheme(
    model: nn.Module,
    batches: Sequence[Batch],
    scheme: Scheme,
    sites: Extent = "linears",
    *,
    tables: bool = False,
    settings: Settings = _DEFAULTS,
) -> Scheme:
    """Let a scheme round more than linears.

    Parameters
    ----------
    model
        That the scheme was found for.
    batches
        For calibration; not looked at if activations stay or are quantized dynamically.
    scheme
        Of the linears.
    sites
        How far to go; see :func:`~frugalfm.quantization.sites.survey_sites`. Where the scheme
        leaves activations in floating point there is nothing to add; a
        :class:`~frugalfm.quantization.plan.QuantizationPlan` refuses that.
    tables
        Whether the table of token embeddings is rounded, and with it the weight of a decoder that
        shares it; only if the scheme rounds weights.
    settings
        What static ranges are found by, and those of weights; formats are the scheme's.

    Returns
    -------
    Scheme
        Where a LayerNorm's output is read by linears that all transform it alike, the output is
        rounded so transformed, too, and to their grid: one rounding serves them and the residual
        sum.
    """
    sites = sites if scheme.activations is not None else "linears"
    tables = tables and scheme.weights is not None
    if sites == "linears" and not tables:
        return scheme
    survey = survey_sites(model, sites, tables=tables)
    transforms = _inherit(survey, scheme)
    new = [site for site in survey.sites if site.name not in scheme.sites]
    weight_grids = _cover_weights(model, survey, scheme, settings, tables=tables)
    input_grids: dict[str, Grid] = {}
    if scheme.activations is not None and not scheme.activations.dynamic:
        shared = _inherit_grids(survey, scheme)
        input_grids = shared | cover_inputs(
            model,
            batches,
            [site for site in new if site.kind != "table" and site.name not in shared],
            scheme.activations,
            settings,
            transforms,
        )
    owned = {s.name: s.module for s in new if s.kind in {"linear", "table"}}
    hashes = {name: hash_weight(model.get_submodule(module)) for name, module in owned.items()}
    return replace(
        scheme,
        sites=tuple(site.name for site in survey.linears),
        places=survey.places,
        extent=sites,
        weight_grids=scheme.weight_grids | weight_grids,
        input_grids=scheme.input_grids | input_grids,
        weight_hashes=scheme.weight_hashes | hashes,
        transforms=scheme.transforms | transforms,
    )


def _inherit(survey: Survey, scheme: Scheme) -> dict[str, ChannelTransform]:
    """Give LayerNorms' outputs the transform that all their readers have, if it is one."""
    found = {}
    for site in survey.places:
        own = [scheme.transforms.get(name) for name in site.feeds]
        first = own[0] if own else None
        if first is not None and all(_same(one, first) for one in own):
            found[site.name] = first
    return found


def _inherit_grids(survey: Survey, scheme: Scheme) -> dict[str, Grid]:
    """Give LayerNorms' outputs the grid that all their readers have, if it is one.

    What the method has clipped stays clipped so, and rounding the output again as the readers'
    input changes nothing. A head is left out: it may have seen pooled states alone.
    """
    heads = {site.name for site in survey.linears if site.layer is None}
    found = {}
    for site in survey.places:
        if not site.feeds or heads & set(site.feeds):
            continue
        first, *others = site.feeds
        grid, transform = scheme.input_grids[first], scheme.transforms.get(first)
        if all(
            torch.equal(scheme.input_grids[name].scale, grid.scale)
            and torch.equal(scheme.input_grids[name].zero_point, grid.zero_point)
            and _same(scheme.transforms.get(name), transform)
            for name in others
        ):
            found[site.name] = grid
    return found


def _same(one: ChannelTransform | None, other: ChannelTransform | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.shift is None or other.shift is None:
        return one.shift is other.shift and torch.equal(one.scale, other.scale)
    return torch.equal(one.scale, other.scale) and torch.equal(one.shift, other.shift)


def _cover_weights(
    model: nn.Module, survey: Survey, scheme: Scheme, settings: Settings, *, tables: bool
) -> dict[str, Grid]:
    """Grids of a task's head, and of the table, which a decoder that shares it has as well."""
    if scheme.weights is None:
        return {}
    new = [site.name for site in survey.linears if site.name not in scheme.sites]
    own = {name: name for name in new if name not in survey.tied}
    if tables:
        table = _find_table(survey)
        own[table.name] = table.module
    values = {n: model.get_submodule(m).get_parameter("weight").detach() for n, m in own.items()}
    grids = cover_weights(values, scheme.weights, settings)
    if tables:
        shared = [name for name, module in survey.tied.items() if module == table.module]
        grids |= dict.fromkeys(shared, grids[table.name])
    return grids


def _find_table(survey: Survey) -> Site:
    return next(site for site in survey.places if site.kind == "table")

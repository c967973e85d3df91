"""Plain min-max quantization, the "traditional" baseline of GERM (arXiv 2505.00598).

Weights: symmetric, range of the tensor. Activations: asymmetric, static, a running average of the
calibration batches' ranges. Rounding to nearest of weights alone is the same with activations left
in floating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.quantization.observers import (
    PERCENTILE,
    Observer,
    ObserverName,
    find_weight_range,
    make_observer,
)
from frugalfm.quantization.quantizers import (
    Format,
    Grid,
    InputGranularity,
    WeightGranularity,
    make_input_format,
    make_weight_format,
)
from frugalfm.quantization.scheme import Scheme, hash_weight
from frugalfm.quantization.sites import Site, survey_sites
from frugalfm.quantization.taps import see_sites
from frugalfm.quantization.transforms import ChannelTransform
from frugalfm.training.data import Batch

__all__ = ["cover_inputs", "cover_weights", "quantize_minmax", "quantize_rtn"]


def quantize_minmax(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    weights: int = 8,
    activations: int = 8,
    weight_granularity: WeightGranularity = "tensor",
    activation_granularity: InputGranularity = "tensor",
    group_size: int | None = None,
    symmetric_weights: bool = True,
    symmetric_activations: bool = False,
    weight_observer: ObserverName = "minmax",
    activation_observer: ObserverName = "running",
    momentum: float = 0.9,
    percentile: float = PERCENTILE,
) -> Scheme:
    """Find a scheme from ranges alone.

    Parameters
    ----------
    model
        An encoder that the catalogue knows, in evaluation mode, on the device to compute on.
    batches
        For calibration; the method as published takes 16. Not looked at if activations stay in
        floating point or are quantized dynamically.
    weights, activations
        Widths in bits, 2 to 15; 16 leaves them in floating point.
    weight_granularity
        One grid for a weight, for each of its output channels, or for each group of a channel's
        inputs.
    activation_granularity
        One static grid for a site, or a dynamic one for each token or for each sequence.
    group_size
        Inputs that share a grid, with groups; 128 by default.
    symmetric_weights, symmetric_activations
        Grids without zero points.
    weight_observer, activation_observer
        What ranges are found by; the latter of static grids.
    momentum, percentile
        Of the observers ``running`` and ``percentile``.

    Raises
    ------
    InputError
        An unknown architecture, an option out of range, no batches where they are needed,
        weights or activations that are not finite.
    """
    weight_format = make_weight_format(
        weights, weight_granularity, group_size=group_size, symmetric=symmetric_weights
    )
    input_format = make_input_format(
        activations, activation_granularity, symmetric=symmetric_activations
    )
    linears = survey_sites(model).linears
    weight_grids: dict[str, Grid] = {}
    if weight_format:
        values = {site.name: _weight(model, site) for site in linears}
        weight_grids = cover_weights(values, weight_format, weight_observer, percentile)
    input_grids: dict[str, Grid] = {}
    if input_format and not input_format.dynamic:
        input_grids = cover_inputs(
            model,
            batches,
            linears,
            input_format,
            observer=activation_observer,
            momentum=momentum,
            percentile=percentile,
        )
    return Scheme(
        method="minmax",
        weights=weight_format,
        activations=input_format,
        sites=tuple(site.name for site in linears),
        weight_grids=weight_grids,
        input_grids=input_grids,
        weight_hashes={site.name: hash_weight(model.get_submodule(site.name)) for site in linears},
    )


def quantize_rtn(
    model: nn.Module,
    batches: Sequence[Batch] = (),
    *,
    weights: int = 4,
    weight_granularity: WeightGranularity = "group",
    group_size: int | None = None,
    symmetric_weights: bool = True,
    weight_observer: ObserverName = "minmax",
    percentile: float = PERCENTILE,
) -> Scheme:
    """Round weights to nearest and leave activations in floating point.

    Parameters are as in :func:`quantize_minmax`; `batches` are not looked at.
    """
    del batches
    found = quantize_minmax(
        model,
        (),
        weights=weights,
        activations=16,
        weight_granularity=weight_granularity,
        group_size=group_size,
        symmetric_weights=symmetric_weights,
        weight_observer=weight_observer,
        percentile=percentile,
    )
    return replace(found, method="rtn")


def cover_weights(
    values: dict[str, Tensor],
    form: Format,
    observer: ObserverName = "minmax",
    percentile: float = PERCENTILE,
) -> dict[str, Grid]:
    """Find the grids of weights.

    Parameters
    ----------
    values
        By site: the weight, transformed if it is to be.
    form
        Of the grids.
    observer, percentile
        What ranges are found by.

    Raises
    ------
    InputError
        A weight is not finite, or does not divide into groups; names the site.
    """
    grids = {}
    for name, weight in values.items():
        if not bool(weight.isfinite().all()):
            raise InputError(f"the weight of {name} is not finite; the checkpoint is unusable")
        try:
            found = find_weight_range(weight.float(), form, observer, percentile=percentile)
        except InputError as error:
            raise InputError(f"the weight of {name}: {error}") from None
        grids[name] = form.cover(*found)
    return grids


def cover_inputs(
    model: nn.Module,
    batches: Sequence[Batch],
    sites: Sequence[Site],
    form: Format,
    *,
    transforms: dict[str, ChannelTransform] | None = None,
    observer: ObserverName = "running",
    momentum: float = 0.9,
    percentile: float = PERCENTILE,
) -> dict[str, Grid]:
    """Find the static grids of what passes some sites while the model computes in floating point.

    Parameters
    ----------
    model, batches
        To run; at least one batch. Pads are left out.
    sites
        Linears or other places.
    form
        Of the grids, one for a site.
    transforms
        By site, where there is one: of the values before they are rounded.
    observer, momentum, percentile
        What ranges are found by.

    Raises
    ------
    InputError
        No batch has shown a site, or values are not finite; names the site.
    """
    made: dict[str, Observer] = {
        site.name: make_observer(observer, form, momentum=momentum, percentile=percentile)
        for site in sites
    }
    chosen = transforms or {}

    def see(site: Site, values: Tensor) -> None:
        transform = chosen.get(site.name)
        made[site.name].observe(values if transform is None else transform.on_input(values))

    see_sites(model, batches, sites, see)
    grids = {}
    for name, seen in made.items():
        found = seen.range()
        if found is None:
            raise InputError(
                f"no calibration batch has shown the input of {name}; give at least one"
            )
        grids[name] = form.cover(found[0].float(), found[1].float())
    return grids


def _weight(model: nn.Module, site: Site) -> Tensor:
    return model.get_submodule(site.name).get_parameter("weight").detach()

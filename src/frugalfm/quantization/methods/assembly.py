"""Steps that methods share: the error of a group's outputs, its grid, a scheme from the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from frugalfm.quantization.methods.groups import InputGroup
from frugalfm.quantization.quantizers import Format, Grid, fake_quantize
from frugalfm.quantization.ranges import cover_inputs, cover_weights
from frugalfm.quantization.scheme import Scheme, hash_weight
from frugalfm.quantization.settings import Settings
from frugalfm.quantization.sites import Site
from frugalfm.quantization.transforms import ChannelTransform
from frugalfm.training.data import Batch

_T = TypeVar("_T")

__all__ = ["OutputError", "assemble", "linear_of", "transformed_weights"]


def linear_of(model: nn.Module, site: str) -> nn.Linear:
    """Get a site's linear."""
    linear = model.get_submodule(site)
    assert isinstance(linear, nn.Linear)
    return linear


class OutputError:
    """What rounding does to the outputs of the linears that read one tensor.

    Parameters
    ----------
    model, group
        The linears.
    inputs
        Real tokens, not transformed, shape ``(tokens, in_features)``.
    settings
        How weights are rounded, to nearest, if they are.
    transform
        Of the group.

    Attributes
    ----------
    inputs
        Transformed.

    Raises
    ------
    InputError
        A weight is not finite or does not divide into groups.
    """

    def __init__(
        self,
        model: nn.Module,
        group: InputGroup,
        inputs: Tensor,
        settings: Settings,
        transform: ChannelTransform | None,
    ) -> None:
        values = transformed_weights(model, group, transform)
        self.inputs = inputs if transform is None else transform.on_input(inputs)
        self._exact = self.inputs @ torch.cat(list(values.values())).T
        if settings.weight_format is not None:
            grids = cover_weights(values, settings.weight_format, settings)
            values = {site: grids[site].round(weight) for site, weight in values.items()}
        self._weight = torch.cat(list(values.values()))
        self._size = self._exact.square().sum().clamp_min(torch.finfo(torch.float32).tiny)

    def __call__(self, rounded: Tensor) -> Tensor:
        """``sum |y' - y|^2 / sum |y|^2`` for rounded (transformed) inputs; biases cancel."""
        return (rounded @ self._weight.T - self._exact).square().sum() / self._size

    def at(self, how: Format | Grid | None) -> float:
        """Error if inputs are rounded so; a format covers these very inputs."""
        if isinstance(how, Format) and how.granularity == "sequence":
            how = replace(how, granularity="tensor")
        return float(self(fake_quantize(self.inputs, how)))


def assemble(
    method: str,
    model: nn.Module,
    batches: Sequence[Batch],
    groups: Sequence[InputGroup],
    settings: Settings,
    *,
    transforms: Mapping[InputGroup, ChannelTransform] | None = None,
    input_grids: Mapping[InputGroup, Grid] | None = None,
    weight_grids: dict[str, Grid] | None = None,
    integers: dict[str, Tensor] | None = None,
) -> Scheme:
    """Make a scheme of what was found for each group.

    Weights, and static inputs, get grids by the settings' observers where none are given.

    Raises
    ------
    InputError
        A weight is not finite or does not divide into groups; no batches where inputs are to get
        grids, or values that are not finite.
    """
    by_group = dict(transforms or {})
    form = settings.weight_format
    if form is not None and weight_grids is None:
        values: dict[str, Tensor] = {}
        for group in groups:
            values |= transformed_weights(model, group, by_group.get(group))
        weight_grids = cover_weights(values, form, settings)
    if input_grids is None:
        input_grids = _cover_groups(model, batches, groups, settings, by_group)
    sites = tuple(site for group in groups for site in group.sites)
    return Scheme(
        method=method,
        weights=form,
        activations=settings.input_format,
        sites=sites,
        weight_grids=weight_grids or {},
        input_grids=_by_site(input_grids),
        weight_hashes={site: hash_weight(linear_of(model, site)) for site in sites},
        transforms=_by_site(by_group),
        integers=integers or {},
    )


def _cover_groups(
    model: nn.Module,
    batches: Sequence[Batch],
    groups: Sequence[InputGroup],
    settings: Settings,
    transforms: Mapping[InputGroup, ChannelTransform],
) -> dict[InputGroup, Grid]:
    """Find the static grid of each group's (transformed) input; none if they are dynamic."""
    form = settings.input_format
    if form is None or form.dynamic:
        return {}
    found = cover_inputs(
        model,
        batches,
        [Site(group.first, "", None) for group in groups],
        form,
        settings,
        {group.first: transform for group, transform in transforms.items()},
    )
    return {group: found[group.first] for group in groups}


def transformed_weights(
    model: nn.Module, group: InputGroup, transform: ChannelTransform | None
) -> dict[str, Tensor]:
    """Give the weights of a group's linears, transformed; by site, in fp32."""
    values = {site: linear_of(model, site).weight.detach().float() for site in group.sites}
    if transform is None:
        return values
    return {site: transform.on_weight(weight) for site, weight in values.items()}


def _by_site(by_group: Mapping[InputGroup, _T]) -> dict[str, _T]:
    return {site: value for group, value in by_group.items() for site in group.sites}

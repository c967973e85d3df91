"""Simulated low-bit execution: values are rounded to a scheme's grids, arithmetic is not.

Weights are rounded once, when the simulation begins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn
from torch.nn import functional

from frugalfm.quantization.blocks import substitute
from frugalfm.quantization.quantizers import Format, Grid, fake_quantize
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.sites import Site
from frugalfm.quantization.taps import RealTokens, Taps, tap
from frugalfm.quantization.transforms import ChannelTransform

__all__ = ["SimulatedEmbedding", "SimulatedLinear", "Simulation", "simulate"]

Watcher = Callable[[str, Tensor], None]
"""Gets a site's name and the (transformed) values of real tokens that are about to be rounded."""


class Rounding:
    """What one site does to the values that pass it.

    Parameters
    ----------
    site
        The place.
    how
        Fixed grid, dynamic format, or nothing.
    transform
        Of the values before they are rounded.
    real
        Tells pads.
    """

    def __init__(
        self,
        site: Site,
        how: Format | Grid | None,
        transform: ChannelTransform | None,
        real: RealTokens,
    ) -> None:
        self.site, self.how, self.transform, self.real = site, how, transform, real
        self.watcher: Watcher | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Transform and round."""
        if self.transform is not None:
            values = self.transform.on_input(values)
        if self.watcher is not None:
            self.watcher(self.site.name, self.real.select(values, self.site))
        return fake_quantize(values, self.how, self.real.pads(values, self.site))


class SimulatedLinear(nn.Module):
    """A linear whose weight and input are rounded; arithmetic stays in floating point.

    Parameters
    ----------
    linear
        The original; not changed.
    weight
        Transformed and rounded.
    activation
        What rounds its (transformed) input; None rounds nothing.
    transform
        Of the input; None leaves it.
    rounding
        Does all that to the input, where pads are to be told; by default there are none.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        weight: Tensor,
        activation: Format | Grid | None,
        transform: ChannelTransform | None = None,
        rounding: Rounding | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.transform = transform
        self.enabled = True
        self.rounding = rounding or Rounding(
            Site("", "", None), activation, transform, RealTokens()
        )
        bias = linear.bias if transform is None else transform.on_bias(linear)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last dimension, as ``nn.Linear`` does."""
        if not self.enabled:
            out: Tensor = self.linear(x)
            return out
        return functional.linear(self.rounding(x), self.weight, self.bias)


class SimulatedEmbedding(nn.Module):
    """A table of embeddings that was rounded.

    Parameters
    ----------
    table
        The original; not changed.
    weight
        Rounded.
    """

    weight: Tensor

    def __init__(self, table: nn.Embedding, weight: Tensor) -> None:
        super().__init__()
        self.table = table
        self.enabled = True
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Look up."""
        if not self.enabled:
            out: Tensor = self.table(ids)
            return out
        return functional.embedding(ids, self.weight, self.table.padding_idx)


class Simulation:
    """The quantized sites of a model while it is simulated.

    Attributes
    ----------
    sites
        The linears, by name.
    """

    def __init__(
        self,
        sites: dict[str, SimulatedLinear],
        tables: list[SimulatedEmbedding],
        roundings: list[Rounding],
        taps: Taps,
    ) -> None:
        self.sites = sites
        self._tables, self._roundings, self._taps = tables, roundings, taps

    def enable(self, enabled: bool = True) -> None:
        """Turn all quantizers on, or off: then the model computes exactly what it did before."""
        for linear in self.sites.values():
            linear.enabled = enabled
        for table in self._tables:
            table.enabled = enabled
        self._taps.enable(enabled)

    def watch(self, watcher: Watcher | None) -> None:
        """Show a function what is about to be rounded, site by site; None ends that."""
        for rounding in self._roundings:
            rounding.watcher = watcher


@contextlib.contextmanager
def simulate(model: nn.Module, scheme: Scheme) -> Iterator[Simulation]:
    """Let a model run under a scheme; afterwards it is exactly what it was.

    The model's own parameters are never written to: sites are exchanged for
    :class:`SimulatedLinear`, and the originals are put back at the end, also after an error.

    Parameters
    ----------
    model
        The one that the scheme was found for. If there are pads it is to be called by keyword,
        with ``attention_mask``.
    scheme
        How to quantize.

    Raises
    ------
    InputError
        The scheme belongs to another model.
    """
    scheme.check(model)
    real = RealTokens()
    roundings = {
        place.name: _make_rounding(scheme, place, model, real)
        for place in scheme.places
        if place.kind != "table" and scheme.activations is not None
    }
    linears = {name: _make_linear(model, scheme, name, real) for name in scheme.sites}
    tables = {
        place.module: _make_table(model, scheme, place)
        for place in scheme.places
        if place.kind == "table" and scheme.weights is not None
    }

    def visit(site: Site, values: Tensor) -> Tensor:
        rounding = roundings[site.name]
        rounded = rounding(values)
        return rounded if rounding.transform is None else rounding.transform.undo(rounded)

    places = [rounding.site for rounding in roundings.values()]
    every = [*(linear.rounding for linear in linears.values()), *roundings.values()]
    with substitute(model, {**linears, **tables}), tap(model, places, visit, real) as taps:
        yield Simulation(linears, list(tables.values()), every, taps)


def _make_rounding(scheme: Scheme, site: Site, model: nn.Module, real: RealTokens) -> Rounding:
    device = next(model.parameters()).device
    how, transform = scheme.input_quantizer(site.name), scheme.transforms.get(site.name)
    return Rounding(
        site,
        how.to(device) if isinstance(how, Grid) else how,
        transform.to(device) if transform else None,
        real,
    )


def _make_linear(model: nn.Module, scheme: Scheme, name: str, real: RealTokens) -> SimulatedLinear:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)  # checked above
    rounding = _make_rounding(scheme, Site(name, "", None), model, real)
    weight = scheme.quantized_weight(name, linear)
    made = SimulatedLinear(linear, weight, rounding.how, rounding.transform, rounding)
    return made.train(model.training)


def _make_table(model: nn.Module, scheme: Scheme, place: Site) -> SimulatedEmbedding:
    table = model.get_submodule(place.module)
    assert isinstance(table, nn.Embedding)
    return SimulatedEmbedding(table, scheme.quantized_table(place.name, table))

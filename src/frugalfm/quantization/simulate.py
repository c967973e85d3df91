"""Simulated low-bit execution: linears that round their weight and input to a scheme's grids."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from frugalfm.quantization.quantizers import Format, Grid, fake_quantize
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.transforms import ChannelTransform

__all__ = ["SimulatedLinear", "Simulation", "simulate"]


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
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        weight: Tensor,
        activation: Format | Grid | None,
        transform: ChannelTransform | None = None,
    ) -> None:
        super().__init__()
        self.linear = linear
        self.activation = activation
        self.transform = transform
        self.enabled = True
        bias = linear.bias if transform is None else transform.on_bias(linear)
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last dimension, as ``nn.Linear`` does."""
        if not self.enabled:
            out: Tensor = self.linear(x)
            return out
        if self.transform is not None:
            x = self.transform.on_input(x)
        return functional.linear(fake_quantize(x, self.activation), self.weight, self.bias)


class Simulation:
    """The quantized sites of a model while it is simulated.

    Attributes
    ----------
    sites
        By name.
    """

    def __init__(self, sites: dict[str, SimulatedLinear]) -> None:
        self.sites = sites

    def enable(self, enabled: bool = True) -> None:
        """Turn all quantizers on, or off: then the model computes what it did before."""
        for site in self.sites.values():
            site.enabled = enabled


@contextlib.contextmanager
def simulate(model: nn.Module, scheme: Scheme) -> Iterator[Simulation]:
    """Let a model run under a scheme; afterwards it is exactly what it was.

    The model's own parameters are never written to: sites are exchanged for
    :class:`SimulatedLinear`, and the originals are put back at the end, also after an error.

    Parameters
    ----------
    model
        The one that the scheme was found for.
    scheme
        How to quantize.

    Raises
    ------
    InputError
        The scheme belongs to another model.
    """
    scheme.check(model)
    originals: dict[str, nn.Linear] = {}
    simulated: dict[str, SimulatedLinear] = {}
    for name in scheme.sites:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)  # checked above
        device = linear.weight.device
        activation = scheme.input_quantizer(name)
        transform = scheme.transforms.get(name)
        originals[name] = linear
        simulated[name] = SimulatedLinear(
            linear,
            scheme.quantized_weight(name, linear),
            activation.to(device) if isinstance(activation, Grid) else activation,
            transform.to(device) if transform else None,
        ).train(model.training)
    try:
        for name, module in simulated.items():
            model.set_submodule(name, module)
        yield Simulation(simulated)
    finally:
        for name, linear in originals.items():
            model.set_submodule(name, linear)

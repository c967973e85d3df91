"""Plain min-max quantization, the "traditional" baseline of GERM (arXiv 2505.00598).

Weights: symmetric, range of the tensor. Activations: asymmetric, static, a running average of the
calibration batches' ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.probing.activations import watch
from frugalfm.progress import progress
from frugalfm.quantization.observers import MinMax, Observer, RunningMinMax
from frugalfm.quantization.quantizers import Format, Grid
from frugalfm.quantization.scheme import FLOATING_POINT, Scheme, hash_weight
from frugalfm.quantization.sites import survey_sites
from frugalfm.training.data import Batch

__all__ = ["observe_inputs", "quantize_minmax"]


def quantize_minmax(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    weights: int = 8,
    activations: int = 8,
    weight_granularity: Literal["tensor", "channel"] = "tensor",
    activation_granularity: Literal["tensor", "token"] = "tensor",
    momentum: float = 0.9,
) -> Scheme:
    """Find a min-max scheme.

    Parameters
    ----------
    model
        An encoder that the catalogue knows, in evaluation mode, on the device to compute on.
    batches
        For calibration; the method as published takes 16. Not looked at if activations stay in
        floating point or are quantized per token.
    weights, activations
        Widths in bits, 2 to 15; 16 leaves them in floating point.
    weight_granularity
        One grid for a weight, or one for each of its output channels.
    activation_granularity
        One static grid for a site, or a dynamic one for each token.
    momentum
        Of the running average.

    Raises
    ------
    InputError
        An unknown architecture, a width out of range, no batches where they are needed, weights
        or activations that are not finite.
    """
    weight_format = _make_format(weights, symmetric=True, granularity=weight_granularity)
    input_format = _make_format(activations, symmetric=False, granularity=activation_granularity)
    if weight_format and weight_format.dynamic:
        raise InputError("weights are quantized per tensor or channel, not per token")
    if input_format and input_format.granularity == "channel":
        raise InputError("activations are quantized per tensor or token, not per channel")
    sites = [site.name for site in survey_sites(model).sites]
    linears = {name: model.get_submodule(name) for name in sites}
    weight_grids, input_grids = {}, {}
    if weight_format:
        for name, linear in linears.items():
            observer = MinMax(per_row=weight_format.per_row)
            observer.observe(linear.get_parameter("weight"))
            weight_grids[name] = _make_grid(weight_format, observer, f"the weight of {name}")
    if input_format and not input_format.dynamic:
        observers: dict[str, Observer] = {name: RunningMinMax(momentum) for name in sites}
        observe_inputs(model, batches, observers)
        for name, seen in observers.items():
            input_grids[name] = _make_grid(input_format, seen, f"the input of {name}")
    return Scheme(
        method="minmax",
        weights=weight_format,
        activations=input_format,
        sites=tuple(sites),
        weight_grids=weight_grids,
        input_grids=input_grids,
        weight_hashes={
            name: hash_weight(linear)
            for name, linear in linears.items()
            if isinstance(linear, nn.Linear)
        },
    )


@torch.no_grad()
def observe_inputs(
    model: nn.Module, batches: Sequence[Batch], observers: dict[str, Observer]
) -> None:
    """Run calibration batches and show each site's observer the inputs of real tokens."""
    device = next(model.parameters()).device
    bar = progress(batches, desc="calibrate", unit="batch")

    def see(name: str, values: Tensor) -> None:
        observers[name].observe(values)

    with watch(model, list(observers), see, "input"):
        for batch in bar:
            moved = batch.to(device)
            model(input_ids=moved.input_ids, attention_mask=moved.attention_mask)


def _make_format(
    bits: int, *, symmetric: bool, granularity: Literal["tensor", "channel", "token"]
) -> Format | None:
    if bits == FLOATING_POINT:
        return None
    return Format(bits, symmetric, granularity)


def _make_grid(form: Format, observer: Observer, what: str) -> Grid:
    found = observer.range()
    if found is None:
        raise InputError(f"no calibration batch has shown {what}; give at least one")
    low, high = found
    if not (low.isfinite().all() and high.isfinite().all()):
        raise InputError(f"{what} is not finite; the checkpoint is unusable")
    return form.cover(low.float(), high.float())

"""What passes the sites while calibration batches run: samples of real tokens, and extremes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.quantization.methods.groups import InputGroup
from frugalfm.quantization.sites import Site
from frugalfm.quantization.taps import see_sites
from frugalfm.training.data import Batch

__all__ = ["Captured", "capture_inputs"]


@dataclass(frozen=True)
class Captured:
    """What one group of linears has read.

    Attributes
    ----------
    low, high
        Extremes of every channel over all real tokens, shape ``(in_features,)``.
    sample
        Some of the tokens, as many of each batch, shape ``(tokens, in_features)``.
    """

    low: Tensor
    high: Tensor
    sample: Tensor

    def join(self, other: Captured) -> Captured:
        """Extremes of both; the sample of this one."""
        return Captured(self.low.minimum(other.low), self.high.maximum(other.high), self.sample)

    @property
    def largest(self) -> Tensor:
        """``max |x|`` of every channel."""
        return torch.maximum(-self.low, self.high)


@torch.no_grad()
def capture_inputs(
    model: nn.Module,
    batches: Sequence[Batch],
    groups: Sequence[InputGroup],
    *,
    tokens: int = 1024,
    seed: int = 0,
) -> dict[InputGroup, Captured]:
    """Run calibration batches and keep what each group of linears reads, pads left out.

    Parameters
    ----------
    model
        In evaluation mode, on the device to compute on.
    batches
        At least one.
    groups
        Of :func:`~frugalfm.quantization.methods.groups.input_groups`.
    tokens
        To sample, about; the extremes are those of all tokens.
    seed
        Which tokens; the same ones in every group of as many tokens.

    Raises
    ------
    InputError
        No batches, or values that are not finite.
    """
    if not batches:
        raise InputError("no calibration batch has been given; give at least one")
    device = next(model.parameters()).device
    share = -(-tokens // len(batches))
    ends: dict[str, tuple[Tensor, Tensor]] = {}
    samples: dict[str, list[Tensor]] = {group.first: [] for group in groups}
    drawn: dict[int, Tensor] = {}

    def see(site: Site, passed: Tensor) -> None:
        values = passed.float()
        count = len(values)
        if count not in drawn:
            generator = torch.Generator().manual_seed(seed)
            drawn[count] = torch.randperm(count, generator=generator)[:share].to(device)
        samples[site.name].append(values[drawn[count]])
        low, high = values.amin(0), values.amax(0)
        past = ends.get(site.name, (low, high))
        ends[site.name] = low.minimum(past[0]), high.maximum(past[1])

    see_sites(model, batches, [Site(name, "", None) for name in samples], see)
    return {
        group: Captured(*ends[group.first], torch.cat(samples[group.first])) for group in groups
    }

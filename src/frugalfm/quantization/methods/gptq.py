"""GPTQ alone: a scheme from ranges whose weights are rounded as :mod:`.rounding` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from frugalfm.quantization.methods.assembly import assemble
from frugalfm.quantization.methods.groups import input_groups
from frugalfm.quantization.methods.rounding import round_weights
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.settings import Settings
from frugalfm.quantization.sites import survey_sites
from frugalfm.training.data import Batch

__all__ = ["quantize_gptq"]


def quantize_gptq(
    model: nn.Module,
    batches: Sequence[Batch],
    settings: Settings,
    *,
    damping: float = 0.01,
    order: Literal["size", "given"] = "size",
    sequential: bool = True,
) -> Scheme:
    """Find a scheme by GPTQ.

    Parameters
    ----------
    model, batches, settings
        As of :class:`~frugalfm.quantization.methods.Method`. GPTQ is made for activations in
        floating point; others are rounded as min-max does.
    damping, order, sequential
        As of :func:`~frugalfm.quantization.methods.rounding.round_weights`.
    """
    scheme = assemble("gptq", model, batches, input_groups(survey_sites(model)), settings)
    return round_weights(
        model, batches, scheme, damping=damping, order=order, sequential=sequential
    )

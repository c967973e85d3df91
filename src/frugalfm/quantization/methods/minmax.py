"""Plain min-max quantization, the "traditional" baseline of GERM (arXiv 2505.00598).

Weights: symmetric, range of the tensor. Activations: asymmetric, static, a running average of the
calibration batches' ranges; the method as published takes 16 batches. Rounding to nearest of
weights alone is the same with activations left in floating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from frugalfm.quantization.methods.assembly import assemble
from frugalfm.quantization.methods.groups import input_groups
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.settings import Settings
from frugalfm.quantization.sites import survey_sites
from frugalfm.training.data import Batch

__all__ = ["quantize_minmax", "quantize_rtn"]


def quantize_minmax(model: nn.Module, batches: Sequence[Batch], settings: Settings) -> Scheme:
    """Find a scheme from ranges alone.

    Parameters are as of :class:`~frugalfm.quantization.methods.Method`; `batches` are not looked
    at if activations stay in floating point or are quantized dynamically.
    """
    return assemble("minmax", model, batches, input_groups(survey_sites(model)), settings)


def quantize_rtn(model: nn.Module, batches: Sequence[Batch], settings: Settings) -> Scheme:
    """Round weights to nearest and leave activations in floating point; looks at no batches."""
    return replace(quantize_minmax(model, batches, settings), method="rtn")

"""What every method is told: widths, what shares a grid, and how ranges are found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from frugalfm.errors import InputError
from frugalfm.quantization.observers import PERCENTILE, ObserverName
from frugalfm.quantization.quantizers import (
    Format,
    InputGranularity,
    WeightGranularity,
    make_input_format,
    make_weight_format,
)

__all__ = ["RoundingName", "Settings"]

RoundingName = Literal["nearest", "gptq"]


@dataclass(frozen=True)
class Settings:
    """The options that methods share; each has defaults of its own.

    Attributes
    ----------
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
    rounding
        Of weights: each number to the ``nearest``; or ``gptq``, whatever found the grids, so that
        the errors of a row make up for each other
        (:func:`~frugalfm.quantization.methods.rounding.round_weights`).

    Raises
    ------
    InputError
        A width out of range, or a granularity that is another kind's.
    """

    weights: int = 8
    activations: int = 8
    weight_granularity: WeightGranularity = "channel"
    activation_granularity: InputGranularity = "token"
    group_size: int | None = None
    symmetric_weights: bool = True
    symmetric_activations: bool = False
    weight_observer: ObserverName = "minmax"
    activation_observer: ObserverName = "running"
    momentum: float = 0.9
    percentile: float = PERCENTILE
    rounding: RoundingName = "nearest"

    def __post_init__(self) -> None:
        _ = self.weight_format, self.input_format
        if self.rounding not in get_args(RoundingName):
            raise InputError(
                f"rounding {self.rounding!r} is not known; use {', '.join(get_args(RoundingName))}"
            )

    @property
    def weight_format(self) -> Format | None:
        """Of the weights; None if they stay in floating point."""
        return make_weight_format(
            self.weights,
            self.weight_granularity,
            group_size=self.group_size,
            symmetric=self.symmetric_weights,
        )

    @property
    def input_format(self) -> Format | None:
        """Of the linears' inputs; None if they stay in floating point."""
        return make_input_format(
            self.activations, self.activation_granularity, symmetric=self.symmetric_activations
        )

"""What is decided before a model is quantized: the options as given, checked and filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import nn

from frugalfm.errors import InputError, require_positive
from frugalfm.quantization.extend import extend_scheme
from frugalfm.quantization.methods import METHODS
from frugalfm.quantization.observers import check_observer, check_percentile
from frugalfm.quantization.quantizers import InputGranularity, WeightGranularity
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.sites import Extent
from frugalfm.training.data import Batch

__all__ = ["QuantizationPlan"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "weight_granularity": get_args(WeightGranularity),
    "activation_granularity": get_args(InputGranularity),
}


@dataclass(frozen=True)
class QuantizationPlan:
    """How to quantize a model, with nothing left open.

    Attributes
    ----------
    method
        Of :data:`~frugalfm.quantization.methods.METHODS`.
    options
        For the method, where they were given; the rest is as its paper has it.
    sites, tables
        What is rounded: see :func:`~frugalfm.quantization.sites.survey_sites`.
    calibration_batches, limit, batch_tokens, seed
        Of the data: batches to calibrate with, sequences to evaluate on at most, padded tokens of
        a batch at most, and what determines draws and masks.

    Raises
    ------
    InputError
        An option that is out of range, or that does nothing with the method; names it as the
        command line does.
    """

    method: str = "minmax"
    options: Mapping[str, Any] = field(default_factory=dict)
    sites: Extent = "linears"
    tables: bool = False
    calibration_batches: int = 16
    limit: int = 1024
    batch_tokens: int = 8192
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(
                f"--method {self.method} is not known; there are: {', '.join(METHODS)}"
            )
        if self.sites not in get_args(Extent):
            raise InputError(f"--sites {self.sites}: use {', '.join(get_args(Extent))}")
        require_positive(
            calibration_batches=self.calibration_batches,
            limit=self.limit,
            batch_tokens=self.batch_tokens,
        )
        given = {name: value for name, value in self.options.items() if value is not None}
        object.__setattr__(self, "options", self._match(given))
        self._check_numbers()

    @property
    def settings(self) -> dict[str, Any]:
        """All options of the method, whether given or its own."""
        return {**METHODS[self.method].defaults, **self.options}

    def identity(self) -> dict[str, Any]:
        """All that decides the result, as JSON."""
        return {
            "method": self.method,
            **self.settings,
            "sites": self.sites,
            "tables": self.tables,
            "calibration_batches": self.calibration_batches,
            "limit": self.limit,
            "batch_tokens": self.batch_tokens,
            "seed": self.seed,
        }

    def find_scheme(self, model: nn.Module, batches: Sequence[Batch]) -> Scheme:
        """Find the scheme of a model.

        Parameters
        ----------
        model
            An encoder that the catalogue knows, with or without a head, in evaluation mode, on
            the device to compute on.
        batches
            For calibration.
        """
        scheme = METHODS[self.method](model, batches, **self.options)
        # Other places get their ranges as the linears do, where the method has observers at all.
        more = {
            name.removeprefix("activation_"): self.settings[name]
            for name in ("activation_observer", "momentum", "percentile")
            if name in self.settings
        }
        return extend_scheme(model, batches, scheme, self.sites, tables=self.tables, **more)

    def _match(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keep what the method takes; refuse what it would ignore."""
        if given.get("activations") == 16 and METHODS[self.method].weight_only:
            del given["activations"]  # that is what such a method does
        if "group_size" in given:
            given.setdefault("weight_granularity", "group")
        known = METHODS[self.method].defaults
        for name in given:
            if name not in known:
                raise InputError(
                    f"--{name.replace('_', '-')} does nothing with --method {self.method}; it "
                    f"takes {', '.join('--' + each.replace('_', '-') for each in known)}"
                )
        return given

    def _check_numbers(self) -> None:
        settings = self.settings
        for option in ("weights", "activations"):
            bits = settings.get(option, 16)
            if not 2 <= bits <= 16:
                raise InputError(f"--{option} {bits}: use 2 to 15 bits, or 16 for floating point")
        for option, known in _CHOICES.items():
            if (value := settings.get(option)) is not None and value not in known:
                words = f"{', '.join(known[:-1])} or {known[-1]}"
                raise InputError(f"--{option.replace('_', '-')} {value}: use {words}")
        size = self.options.get("group_size")
        require_positive(group_size=size)
        if size is not None and settings["weight_granularity"] != "group":
            raise InputError("--group-size belongs to --weight-granularity group")
        for option in ("weight_observer", "activation_observer"):
            if option in self.options:
                check_observer(self.options[option])
        if "percentile" in self.options:
            check_percentile(self.options["percentile"])

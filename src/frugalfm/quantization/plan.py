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
from frugalfm.quantization.scheme import FLOATING_POINT, Scheme
from frugalfm.quantization.settings import RoundingName
from frugalfm.quantization.sites import Extent
from frugalfm.training.data import Batch

__all__ = ["QuantizationPlan"]

_OPTIONS = (
    *("weights", "activations", "weight_granularity", "activation_granularity", "group_size"),
    *("symmetric_activations", "weight_observer", "activation_observer", "percentile"),
    *("rounding", "alpha", "epochs"),
)
"""Those of methods that ``frugalfm quantize`` has; functions take more."""

_OBSERVERS = ("weight_observer", "activation_observer")
_ALWAYS_CUT = {"minmax", "rtn"}
"""Methods whose identity has the percentile in any case, as it was before others took one: what
they had made stays the same call."""

_LATER: dict[str, Any] = {"rounding": "nearest"}
"""Options that came later, with what was done before: likewise."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "weight_granularity": get_args(WeightGranularity),
    "activation_granularity": get_args(InputGranularity),
    "rounding": get_args(RoundingName),
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
    sequence_column
        Of tables of data; None is ``sequence``.

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
    sequence_column: str | None = None

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
        self._check_learning()
        self._check_places()
        self._check_observers()

    @property
    def settings(self) -> dict[str, Any]:
        """All options of the method, whether given or its own."""
        return {**METHODS[self.method].defaults, **self.options}

    def identity(self) -> dict[str, Any]:
        """All that decides the result, as JSON."""
        settings = {k: v for k, v in self.settings.items() if v != _LATER.get(k, ...)}
        if self.method not in _ALWAYS_CUT and "percentile" not in self._observers.values():
            settings.pop("percentile", None)
        column = {"sequence_column": self.sequence_column} if self.sequence_column else {}
        return {
            "method": self.method,
            **settings,
            "sites": self.sites,
            "tables": self.tables,
            "calibration_batches": self.calibration_batches,
            "limit": self.limit,
            "batch_tokens": self.batch_tokens,
            "seed": self.seed,
            **column,
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
        method = METHODS[self.method]
        scheme = method(model, batches, **self.options)
        # Other places get their ranges as the linears do, where the method has observers at all.
        settings = method.settle(self.options)
        return extend_scheme(
            model, batches, scheme, self.sites, tables=self.tables, settings=settings
        )

    def _match(self, given: dict[str, Any]) -> dict[str, Any]:
        """Keep what the method takes; refuse what it would ignore."""
        if given.get("activations") == 16 and METHODS[self.method].weight_only:
            del given["activations"]  # that is what such a method does
        if "group_size" in given:
            given.setdefault("weight_granularity", "group")
        known = METHODS[self.method].defaults
        for name in given:
            if name not in known:
                takes = ", ".join(_flag(option) for option in _OPTIONS if option in known)
                raise InputError(
                    f"{_flag(name)} does nothing with --method {self.method}; it takes {takes}"
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
                raise InputError(f"{_flag(option)} {value}: use {words}")
        if settings.get("rounding") == "gptq" and self._stays("weights"):
            raise InputError(
                "--rounding gptq does nothing here: weights stay in floating point; leave it out, "
                "or give --weights 8"
            )
        size = self.options.get("group_size")
        require_positive(group_size=size)
        if size is not None and settings["weight_granularity"] != "group":
            raise InputError("--group-size belongs to --weight-granularity group")

    def _check_learning(self) -> None:
        alpha, epochs = self.options.get("alpha"), self.options.get("epochs")
        if epochs is not None and epochs < 0:
            raise InputError(f"--epochs {epochs}: use 0 (nothing is learned) or more")
        if alpha == "search":
            if self.method != "smoothquant":
                raise InputError(
                    f"--alpha search: --method {self.method} starts from one value and learns; use "
                    "0 to 1, or --method smoothquant"
                )
        elif alpha is not None and not (isinstance(alpha, int | float) and 0 <= alpha <= 1):
            more = ", or search" if self.method == "smoothquant" else ""
            raise InputError(f"--alpha {alpha}: use 0 to 1{more}")
        if alpha is not None and self.method == "omniquant" and self._stays("activations"):
            raise InputError(
                "--alpha does nothing here: omniquant transforms nothing where activations stay in "
                "floating point; leave it out, or give --activations 8"
            )

    def _check_places(self) -> None:
        """Refuse to go further than linears where nothing is rounded there."""
        if self.sites != "linears" and self._stays("activations"):
            remedy = "leave it out, or give --activations 8"
            if METHODS[self.method].weight_only:
                remedy = "leave it out, or use another method, such as minmax"
            raise InputError(
                f"--sites {self.sites} does nothing here: it rounds activations in more places, "
                f"and with these settings of {self.method} they stay in floating point; {remedy}"
            )
        if self.tables and self._stays("weights"):
            raise InputError(
                "--tables does nothing with --weights 16: the table is rounded as weights are, and "
                "they stay in floating point; leave it out, or give --weights 8"
            )

    def _check_observers(self) -> None:
        """Refuse observers that find nothing."""
        for option in _OBSERVERS:
            if option in self.options:
                check_observer(self.options[option])
                self._check_observed(option)
        if "percentile" not in self.options:
            return
        check_percentile(self.options["percentile"])
        if "percentile" not in self._observers.values():
            ways = " or ".join(f"{_flag(option)} percentile" for option in self._observers)
            raise InputError(
                f"--percentile does nothing here: no observer is percentile; give {ways} with it"
            )

    def _check_observed(self, option: str) -> None:
        what = option.replace("_observer", "s")
        if self._stays(what):
            raise InputError(
                f"{_flag(option)} does nothing here: with these settings of {self.method} {what} "
                f"stay in floating point; leave it out, or give --{what} 8"
            )
        granularity = self.settings.get("activation_granularity")
        if what == "activations" and granularity in {"token", "sequence"}:
            raise InputError(
                f"{_flag(option)} does nothing here: {self.method} finds the scale of each "
                f"{granularity} as it passes; leave it out, or give --activation-granularity "
                "tensor for fixed scales"
            )

    @property
    def _observers(self) -> dict[str, str]:
        """What ranges are found by, as far as the method leaves that open."""
        return {name: self.settings[name] for name in _OBSERVERS if name in self.settings}

    def _stays(self, what: str) -> bool:
        """Whether weights, or activations, stay in floating point."""
        return bool(self.settings.get(what, FLOATING_POINT) == FLOATING_POINT)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"

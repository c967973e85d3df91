"""The methods by name; each is a function of a model, batches, settings and its own options.

What a method takes, and what it does by default, is in :data:`METHODS` and in its function's
signature: the settings that its paper has. Each gives a scheme of the linears.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from frugalfm.errors import InputError
from frugalfm.quantization.scheme import FLOATING_POINT, Scheme
from frugalfm.quantization.settings import Settings
from frugalfm.quantization.sites import survey_sites
from frugalfm.training.data import Batch

__all__ = ["METHODS", "Method"]

_GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class Method:
    """A way to find a scheme.

    Attributes
    ----------
    module, function
        Where it is, in this folder; imported when it is first used.
    summary
        In a few words.
    settings
        Its defaults of the options that methods share.
    without
        Those of them that it does not take.
    group_size
        Inputs that share a grid where weights have groups and nothing else is said, if that
        divides the inputs of every linear; else the largest of 64 and 32 that does, and without
        any of them one grid a channel.
    """

    module: str
    function: str
    summary: str
    settings: Settings = field(default_factory=Settings)
    without: tuple[str, ...] = ()
    group_size: int = 128

    def __call__(self, model: nn.Module, batches: Sequence[Batch] = (), **options: Any) -> Scheme:
        """Find a scheme.

        Parameters
        ----------
        model
            An encoder that the catalogue knows, with or without a head, in evaluation mode, on
            the device to compute on; left as it was.
        batches
            For calibration; pads are left out. At least one, where the method looks at them.
        options
            Of :class:`~frugalfm.quantization.settings.Settings` and the function's own, where
            they are not to be as in :attr:`defaults`.

        Raises
        ------
        InputError
            An unknown architecture, an option out of range, no batches where they are needed,
            weights or activations that are not finite.
        """
        settings = _fit_groups(model, self.settle(options), self.group_size)
        found: Scheme = self._load()(model, batches, settings, **self._own(options))
        if settings.rounding == "nearest":
            return found
        from frugalfm.quantization.methods.rounding import round_weights

        return round_weights(model, batches, found)

    @property
    def defaults(self) -> dict[str, Any]:
        """What it takes, and what it does if that is not given."""
        shared = {k: v for k, v in vars(self.settings).items() if k not in self.without}
        _model, _batches, _settings, *own = inspect.signature(self._load()).parameters.values()
        return shared | {parameter.name: parameter.default for parameter in own}

    @property
    def weight_only(self) -> bool:
        """Whether it cannot but leave activations in floating point."""
        return "activations" in self.without

    def settle(self, options: Mapping[str, Any]) -> Settings:
        """Give the shared settings with some options."""
        return replace(self.settings, **{k: v for k, v in options.items() if self._shares(k)})

    def _own(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in options.items() if not self._shares(name)}

    def _shares(self, option: str) -> bool:
        return option in vars(self.settings) and option not in self.without

    def _load(self) -> Callable[..., Any]:
        try:
            module = importlib.import_module(f"{__name__}.{self.module}")
            found: Callable[..., Any] = getattr(module, self.function)
        except (ImportError, AttributeError) as error:
            raise InputError(f"the method {self.function} cannot be used here ({error})") from error
        return found


METHODS: dict[str, Method] = {
    "minmax": Method(
        "minmax",
        "quantize_minmax",
        "ranges alone",
        Settings(weight_granularity="tensor", activation_granularity="tensor"),
    ),
    "smoothquant": Method(
        "smoothquant",
        "quantize_smoothquant",
        "outliers moved from activations to weights",
        without=("symmetric_weights",),
    ),
    "outlier-suppression": Method(
        "outlier_suppression",
        "quantize_outlier_suppression",
        "gamma migrated, tokens clipped",
        Settings(activation_granularity="tensor"),
        without=("symmetric_weights", "activation_observer", "momentum"),
    ),
    "omniquant": Method(
        "omniquant",
        "quantize_omniquant",
        "clipping and transform learned",
        without=("weight_observer", "activation_observer", "percentile"),
    ),
    "rtn": Method(
        "minmax",
        "quantize_rtn",
        "weights alone, to the nearest",
        Settings(weights=4, activations=16, weight_granularity="group"),
        without=(
            *("activations", "activation_granularity", "symmetric_activations"),
            *("activation_observer", "momentum", "rounding"),
        ),
    ),
    "gptq": Method(
        "gptq",
        "quantize_gptq",
        "weights whose errors make up for each other",
        Settings(weights=4, activations=16),
        without=("symmetric_weights", "rounding"),
    ),
    "nf4": Method(
        "nf4",
        "quantize_nf4",
        "weights at 16 quantiles of a normal distribution",
        Settings(weights=4, activations=16, weight_granularity="group"),
        without=("symmetric_weights", "weight_observer"),
        group_size=64,
    ),
}
"""By the name that ``--method`` takes."""


def _fit_groups(model: nn.Module, settings: Settings, largest: int) -> Settings:
    """Choose the size of groups where that is left open; see :attr:`Method.group_size`."""
    grouped = settings.weight_granularity == "group" and settings.weights != FLOATING_POINT
    if not grouped or settings.group_size is not None:
        return settings
    sites = survey_sites(model).linears
    common = math.gcd(*(model.get_parameter(f"{s.name}.weight").shape[1] for s in sites))
    for size in _GROUPS:
        if size <= largest and common % size == 0:
            return replace(settings, group_size=size)
    return replace(settings, weight_granularity="channel")

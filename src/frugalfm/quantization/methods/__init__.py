"""The methods by name; each is a function of a model, batches, settings and its own options.

What a method takes, and what it does by default, is in :data:`METHODS` and in its function's
signature: the settings that its paper has. Each gives a scheme of the linears.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from frugalfm.errors import InputError
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.settings import Settings
from frugalfm.training.data import Batch

__all__ = ["METHODS", "Method"]


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
    """

    module: str
    function: str
    summary: str
    settings: Settings = field(default_factory=Settings)
    without: tuple[str, ...] = ()

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
        settings = self.settle(options)
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
    ),
}
"""By the name that ``--method`` takes."""

"""The methods by name; each is a function of a model, calibration batches and its own options.

What a method takes, and what it does by default, is its function's signature: the settings that
its paper has. All take ``weights`` (bits) and give a scheme of the linears.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from frugalfm.errors import InputError
from frugalfm.quantization.scheme import Scheme
from frugalfm.training.data import Batch

__all__ = ["METHODS", "Method"]


@dataclass(frozen=True)
class Method:
    """A way to find a scheme.

    Attributes
    ----------
    module, function
        Where it is; imported when it is first used.
    summary
        In a few words.
    """

    module: str
    function: str
    summary: str

    def __call__(self, model: nn.Module, batches: Sequence[Batch], **options: Any) -> Scheme:
        """Find a scheme."""
        found: Scheme = self._load()(model, batches, **options)
        return found

    @property
    def defaults(self) -> dict[str, Any]:
        """What it takes, and what it does if that is not given."""
        parameters = inspect.signature(self._load()).parameters
        own = {name: found.default for name, found in parameters.items()}
        return {name: value for name, value in own.items() if name not in {"model", "batches"}}

    @property
    def weight_only(self) -> bool:
        """Whether it cannot but leave activations in floating point."""
        return "activations" not in self.defaults

    def _load(self) -> Callable[..., Any]:
        try:
            module = importlib.import_module(f"frugalfm.quantization.{self.module}")
            found: Callable[..., Any] = getattr(module, self.function)
        except (ImportError, AttributeError) as error:
            raise InputError(f"the method {self.function} cannot be used here ({error})") from error
        return found


METHODS: dict[str, Method] = {
    "minmax": Method("minmax", "quantize_minmax", "ranges alone"),
    "smoothquant": Method(
        "smoothquant", "quantize_smoothquant", "outliers moved from activations to weights"
    ),
    "outlier-suppression": Method(
        "outlier_suppression", "quantize_outlier_suppression", "gamma migrated, tokens clipped"
    ),
    "omniquant": Method("omniquant", "quantize_omniquant", "clipping and transform learned"),
    "rtn": Method("minmax", "quantize_rtn", "weights alone, to the nearest"),
    "gptq": Method("gptq", "quantize_gptq", "weights whose errors make up for each other"),
    "nf4": Method("nf4", "quantize_nf4", "weights at 16 quantiles of a normal distribution"),
}
"""By the name that ``--method`` takes."""

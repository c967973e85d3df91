"""FrugalFM's attentions inside transformers: registered by name, stored, and enforced on loading.

A checkpoint trained here carries ``"attention": NAME`` in its ``config.json``. transformers
itself does not save the attention of a model and would load a softmax_1 checkpoint as a softmax
model without a word; :func:`install` makes the stored name binding.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from frugalfm.attention import NAMES
from frugalfm.errors import InputError

__all__ = ["install", "install_with_transformers"]

_MODULE = "transformers.modeling_utils"


def install_with_transformers() -> None:
    """Install now if transformers' models are loaded already, else as soon as they are."""
    if _MODULE in sys.modules:
        install()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def install() -> None:
    """Register the attentions and their masks, and make a stored attention binding."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.modeling_utils import PreTrainedModel

    from frugalfm.attention.kernels import attend_softmax, attend_softmax1

    if getattr(PreTrainedModel.get_correct_attn_implementation, "by_frugalfm", False):
        return
    for name, kernel in {"softmax": attend_softmax, "softmax1": attend_softmax1}.items():
        AttentionInterface.register(name, _make_forward(kernel))
        # Without a mask function of the same name pads would be attended.
        AttentionMaskInterface.register(name, make_additive_mask)
    PreTrainedModel.get_correct_attn_implementation = _make_binding(
        PreTrainedModel.get_correct_attn_implementation
    )


def make_additive_mask(**kwargs: Any) -> Any:
    """Build the mask of one batch: 0 where attended, -inf elsewhere, None if all is attended.

    Converting once per forward pass spares every layer the same conversion.
    """
    import torch
    from transformers.masking_utils import sdpa_mask

    mask = sdpa_mask(**kwargs)
    if mask is None:
        return None
    dtype = kwargs.get("dtype") or torch.float32
    additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return additive.masked_fill_(~mask, -torch.inf)


def _make_forward(kernel: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        module: Any,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any,
        scaling: float | None = None,
        dropout: float = 0.0,
        position_bias: Any = None,
        **_: Any,
    ) -> tuple[Any, None]:
        bias = attention_mask
        if position_bias is not None:
            bias = position_bias if bias is None else bias + position_bias
        if bias is not None:
            bias = bias.to(query.dtype)
        out = kernel(query, key, value, bias, scaling, dropout if module.training else 0.0)
        return out.transpose(1, 2).contiguous(), None

    return forward


def _make_binding(original: Callable[..., str]) -> Callable[..., str]:
    def get_correct_attn_implementation(
        self: Any, requested_attention: str | None, is_init_check: bool = False
    ) -> str:
        stored = getattr(self.config, "attention", None)
        if stored in NAMES:
            # Every implementation that transformers ships computes softmax.
            runs = "softmax1" if requested_attention == "softmax1" else "softmax"
            if requested_attention is not None and runs != stored:
                raise InputError(
                    f"this model was trained with attention {stored!r} and cannot run with "
                    f"{requested_attention!r}; leave the attention to its config.json"
                )
            requested_attention = requested_attention or stored
            # Saved along, so that transformers without FrugalFM refuses instead of using softmax.
            self.config.attn_implementation = stored
        return original(self, requested_attention, is_init_check)

    get_correct_attn_implementation.by_frugalfm = True  # type: ignore[attr-defined]
    return get_correct_attn_implementation


class _AfterImport(importlib.abc.MetaPathFinder):
    """Runs :func:`install` right after transformers' model code has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            install()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

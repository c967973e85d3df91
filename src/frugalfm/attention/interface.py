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
from frugalfm.attention.binding import make_binding, make_initialise, make_post_init
from frugalfm.errors import InputError

__all__ = ["call_after_import", "install", "install_with_transformers"]

_MODULE = "transformers.modeling_utils"


def install_with_transformers() -> None:
    """Install now if transformers' models are loaded already, else as soon as they are."""
    call_after_import(_MODULE, install)


def install() -> None:
    """Register the attentions and their masks, and make a stored attention binding."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.modeling_utils import PreTrainedModel

    if getattr(PreTrainedModel.get_correct_attn_implementation, "by_frugalfm", False):
        return
    for name in NAMES:
        AttentionInterface.register(name, _make_forward(name))
        # Without a mask function of the same name pads would be attended.
        AttentionMaskInterface.register(name, make_additive_mask)
    PreTrainedModel.get_correct_attn_implementation = make_binding(
        PreTrainedModel.get_correct_attn_implementation
    )
    PreTrainedModel.post_init = make_post_init(PreTrainedModel.post_init)
    PreTrainedModel._initialize_weights = make_initialise(  # noqa: SLF001
        PreTrainedModel._initialize_weights  # noqa: SLF001
    )


def make_additive_mask(**kwargs: Any) -> Any:
    """Build the mask of one batch: 0 where attended, -inf elsewhere, None if all is attended.

    Converting once per forward pass spares every layer the same conversion.
    """
    import torch
    from transformers.masking_utils import sdpa_mask

    # A causal mask that is left out would have to be replaced by a flag that kernels here lack.
    mask = sdpa_mask(**(kwargs | {"allow_is_causal_skip": False}))
    if mask is None:
        return None
    dtype = kwargs.get("dtype") or torch.float32
    additive = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return additive.masked_fill_(~mask, -torch.inf)


def _make_forward(name: str) -> Callable[..., Any]:
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
        query, key, value = _match(query, key, value)
        bias = attention_mask
        if position_bias is not None:
            bias = position_bias if bias is None else bias + position_bias
        if bias is not None:
            bias = bias.to(query.dtype)
        dropout = dropout if module.training else 0.0
        observe = module.__dict__.get("attention_observer")
        if observe is not None:
            observe(query, key, value, bias, scaling)
        out = _attend(name, module, (query, key, value, bias, scaling, dropout))
        return out.transpose(1, 2).contiguous(), None

    return forward


def _attend(name: str, module: Any, arguments: tuple[Any, ...]) -> Any:
    """Call a kernel, with what it learns or is set to."""
    from frugalfm.attention import clipped, kernels
    from frugalfm.attention.strength import get_strength, weaken_sink

    strength = get_strength(module)
    if name == "softmax" or (strength == 0 and name != "gated"):
        return kernels.attend_softmax(*arguments)
    if name == "softmax1" and strength == 1:
        return kernels.attend_softmax1(*arguments)
    if name == "clipped":
        alpha = getattr(getattr(module, "config", None), "attention_alpha", clipped.ALPHA)
        return clipped.attend_clipped(*arguments, alpha=strength * alpha)
    try:
        if name in {"softmax1", "sink"}:
            learned = module.sink_logit if name == "sink" else None
            sink = weaken_sink(learned, arguments[0], strength)
            return kernels.attend_sink(*arguments, sink=sink)
        return kernels.attend_gated(*arguments, gate=module.__dict__.pop("gate_logits"))
    except (AttributeError, KeyError) as error:
        raise InputError(
            f"{type(module).__name__} lacks the parameters of attention {name!r} ({error}); make "
            "the model with this attention in its config"
        ) from error


def _match(query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """Bring the three to one dtype, autocast's if it is on, and to one number of heads.

    torch's own attention does the first by itself; kernels called by name do not.
    """
    import torch

    kind, dtype = query.device.type, query.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    query, key, value = (t.to(dtype) for t in (query, key, value))
    if key.shape[1] != query.shape[1]:
        times = query.shape[1] // key.shape[1]
        key, value = (t.repeat_interleave(times, 1) for t in (key, value))
    return query, key, value


def call_after_import(module: str, action: Callable[[], None]) -> None:
    """Call `action` now if `module` is loaded already, else right after it has been imported."""
    waiting = (finder for finder in sys.meta_path if isinstance(finder, _AfterImport))
    if module in sys.modules:
        action()
    elif not any(finder.module == module and finder.action is action for finder in waiting):
        sys.meta_path.insert(0, _AfterImport(module, action))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function once, right after one module's code has run."""

    def __init__(self, module: str, action: Callable[[], None]) -> None:
        self.module = module
        self.action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)  # While the others look for the module.
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                self.action()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

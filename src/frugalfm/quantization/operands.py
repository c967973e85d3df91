"""The operands of attention (queries, keys, probabilities, values), which fused kernels hide.

While :class:`Operands` are on, a model's attention is computed step by step, with every operand
shown to a function that may change it. Whatever attention the model has is computed: softmax,
softmax_1, sink, clipped or gated, with its mask and its bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from frugalfm.attention import NAMES
from frugalfm.attention.binding import find_attentions
from frugalfm.attention.interface import make_additive_mask
from frugalfm.attention.strength import get_strength
from frugalfm.attention.weights import attention_weights
from frugalfm.errors import InputError

__all__ = ["Operands", "Visit"]

Visit = Callable[[str, Tensor], Tensor]
"""Gets the role of an operand and its values; gives the values to go on with."""

_PREFIX, _VISIT = "frugalfm_operands_", "operand_visit"


class Operands:
    """A model whose attention can be computed step by step.

    Parameters
    ----------
    model
        Whose attention goes through transformers' interface.
    visits
        By the name of the attention module: gets ``query``, ``key``, ``value`` of shape
        ``(batch, heads, tokens, head_dim)`` and ``probabilities`` of shape ``(batch, heads,
        queries, keys)``. Modules without one are computed step by step, too. If there are none,
        nothing is ever changed.

    Raises
    ------
    InputError
        A module named is no such attention, or one on its way to another.
    """

    def __init__(self, model: nn.Module, visits: dict[str, Visit]) -> None:
        found = {id(module) for module in find_attentions(model)}
        self._visited: list[tuple[nn.Module, Visit]] = []
        for name, visit in visits.items():
            module = model.get_submodule(name)
            if id(module) not in found:
                raise InputError(f"{name} is no attention that goes through transformers")
            if get_strength(module) != 1:
                raise InputError(f"{name} is still being converted; finish that first")
            self._visited.append((module, visit))
        configs: dict[int, Any] = {
            id(module.config): module.config
            for module in model.modules()
            if hasattr(getattr(module, "config", None), "_attn_implementation")
        }
        self._runs = [(config, config._attn_implementation) for config in configs.values()]  # noqa: SLF001

    def enable(self, enabled: bool = True) -> None:
        """Compute step by step from now on, or exactly as the model did before."""
        if not self._visited:
            return
        _register()
        for config, runs in self._runs:
            steps = _PREFIX + (runs if runs in NAMES else "softmax")
            config._attn_implementation = steps if enabled else runs  # noqa: SLF001
        for module, visit in self._visited:
            if enabled:
                module.__dict__[_VISIT] = visit
            else:
                module.__dict__.pop(_VISIT, None)


def _register() -> None:
    """Make the step-by-step attentions known to transformers; nothing asks for them by itself."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for name in NAMES:
        AttentionInterface.register(_PREFIX + name, _make_forward(name))
        AttentionMaskInterface.register(_PREFIX + name, make_additive_mask)


def _make_forward(name: str) -> Callable[..., Any]:
    def forward(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        position_bias: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        visit: Visit = module.__dict__.get(_VISIT, lambda _, values: values)
        times = query.shape[1] // key.shape[1]
        query, key, value = (visit(*x) for x in (("query", query), ("key", key), ("value", value)))
        if times > 1:
            key, value = (t.repeat_interleave(times, 1) for t in (key, value))
        bias = attention_mask
        if position_bias is not None:
            bias = position_bias if bias is None else bias + position_bias
        weights = attention_weights(name, module, query, key, bias, scaling)
        if dropout and module.training:
            weights = torch.nn.functional.dropout(weights, dropout)
        out = visit("probabilities", weights).to(value.dtype) @ value
        if name == "gated":
            gate = module.__dict__.pop("gate_logits")
            out = out * torch.sigmoid(gate).unsqueeze(-1).to(out.dtype)
        return out.to(query.dtype).transpose(1, 2).contiguous(), None

    return forward

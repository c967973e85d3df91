r"""How far an attention has departed from softmax, and a look at what enters it.

Every attention here but ``gated`` is softmax at strength 0 and itself at strength 1, with all that
lies between: softmax_1 and ``sink`` weigh their null by it, :math:`p_i = e^{s_i} / (t e^s + \sum_j
e^{s_j})`, ``clipped`` multiplies its α. A finished model is at strength 1, and nothing of this is
saved; conversion raises the strength step by step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from frugalfm.attention.binding import find_attentions
from frugalfm.errors import InputError

__all__ = ["get_strength", "set_strength", "watch_attention", "weaken_sink"]

_STRENGTH = "attention_strength"
_OBSERVER = "attention_observer"


def set_strength(model: Any, strength: float) -> None:
    """Set the strength of all attentions of a model, in [0, 1]; 1 is how every model starts."""
    if not 0 <= strength <= 1:
        raise InputError(f"an attention's strength is in [0, 1], not {strength}")
    for module in find_attentions(model):
        module.__dict__.pop(_STRENGTH, None)
        if strength < 1:
            setattr(module, _STRENGTH, float(strength))


def get_strength(module: Any) -> float:
    """Read the strength of one attention module."""
    found: float = module.__dict__.get(_STRENGTH, 1.0)
    return found


def weaken_sink(sink: Any, query: Any, strength: float) -> Any:
    """Give the logits of the null, shape ``(heads,)``, at a strength above 0.

    Parameters
    ----------
    sink
        The learned logits; None where the logit is 0 always.
    query
        Shape ``(batch, heads, ...)``, for the number of heads and the device.
    strength
        Multiplies the null's share in the denominator.
    """
    if sink is None:
        sink = query.new_zeros(query.shape[1])
    return sink if strength == 1 else sink + math.log(strength)


@contextlib.contextmanager
def watch_attention(model: Any, see: Callable[..., None]) -> Iterator[None]:
    """Show a function what enters every attention of a model.

    Parameters
    ----------
    model
        One that runs an attention of ours (``softmax`` too).
    see
        Called as ``see(number, module, query, key, value, bias, scale)``: the number of the
        attention module from 0 on, and the arguments of
        :func:`~frugalfm.attention.kernels.attend_softmax1`.
    """
    modules = find_attentions(model)
    for number, module in enumerate(modules):

        def observe(*arguments: Any, number: int = number, module: Any = module) -> None:
            see(number, module, *arguments)

        setattr(module, _OBSERVER, observe)
    try:
        yield
    finally:
        for module in modules:
            delattr(module, _OBSERVER)

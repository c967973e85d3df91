"""Which linears of an encoder an adapter goes on, and which are put in 4 bits, by structure.

Attention modules are told by what they call (transformers' attention interface), their
projections by the few names that these have, and the layers by the list that holds them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from torch import nn

from frugalfm.attention.binding import find_attentions
from frugalfm.encoders.heads import head_names
from frugalfm.errors import InputError

__all__ = ["find_layer_linears", "find_targets"]

_PROJECTIONS = {
    "query", "key", "value",  # BERT, RoBERTa, ESM, RNA-FM
    "q_proj", "k_proj", "v_proj",  # ESM-C
    "Wqkv",  # ModernBERT, DNABERT-2
    "q_lin", "k_lin", "v_lin", "query_key_value", "in_proj", "qkv", "qkv_proj",
}  # fmt: skip
_LAYER = re.compile(r"^(.*?\.)(\d+)\.")


def find_targets(model: nn.Module, asked: Sequence[str] = ()) -> list[str]:
    """Name the linears that an adapter goes on: by default attention's projections.

    Parameters
    ----------
    model
        With a head.
    asked
        Ends of names, such as ``Wqkv`` or ``mlp.wo``; the defaults when empty.

    Raises
    ------
    InputError
        There are none, or one that is asked for is not there; names the candidates.
    """
    linears = find_layer_linears(model)
    if not asked:
        attentions = {id(module) for module in find_attentions(model)}
        inside = [
            f"{outer}." for outer, module in model.named_modules() if id(module) in attentions
        ]
        found = [
            name
            for name in linears
            if name.rpartition(".")[2] in _PROJECTIONS and name.startswith(tuple(inside))
        ]
        if not found:
            raise InputError(
                f"cannot tell the attention's projections of {type(model).__name__}; name the "
                f"linears to adapt with --targets. {_list_candidates(linears)}"
            )
        return found
    for end in asked:
        if not any(_ends(name, end) for name in linears):
            raise InputError(
                f"--targets {end}: no linear of {type(model).__name__}'s layers is called so. "
                f"{_list_candidates(linears)}"
            )
    return [name for name in linears if any(_ends(name, end) for end in asked)]


def find_layer_linears(model: nn.Module) -> list[str]:
    """Name all linears of the trunk's layers, in order; the head's are none of them."""
    heads = tuple(f"{name}." for name in head_names(model))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _LAYER.match(name) and not name.startswith(heads)
    ]


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _list_candidates(linears: Sequence[str]) -> str:
    within = Counter(_LAYER.sub("", name) for name in linears)
    return "There are: " + ", ".join(f"{name} ({count}x)" for name, count in within.items())

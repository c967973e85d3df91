"""Which module of an encoder does what: one catalogue for statistics and quantization.

Rooms above ask for "the second linear of the feed-forward network of layer 3" and never spell a
module's name themselves; another architecture is one more function here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers.models.esm.modeling_esm import EsmEncoder

from frugalfm.encoders.dnabert2.layers import DnaBert2Encoder
from frugalfm.errors import InputError

__all__ = ["Anatomy", "Block", "describe_encoder"]


@dataclass(frozen=True)
class Block:
    """The modules of one layer, by their names in the model.

    Attributes
    ----------
    name
        The layer itself.
    query, key, value, attention_out
        The linears of the attention; the first three are one name where they are fused.
    ffn_in, ffn_out
        The first and the second linear of the feed-forward network.
    attention_norm, ffn_norm
        The two LayerNorms that belong to attention and feed-forward network: before them in a
        pre-LN layer, after them (and after the residual sum) in a post-LN layer.
    output_norm
        "The layer's final LayerNorm", through which the layer's output reaches what comes next.
        In a post-LN layer that is `ffn_norm`. A pre-LN layer ends in a bare residual sum; there
        it is the LayerNorm that reads this sum: the next layer's `attention_norm`, and for the
        last layer the one after the stack.
    """

    name: str
    query: str
    key: str
    value: str
    attention_out: str
    ffn_in: str
    ffn_out: str
    attention_norm: str
    ffn_norm: str
    output_norm: str

    @property
    def linears(self) -> dict[str, str]:
        """Name of each linear and its role, in order of use; a fused one occurs once."""
        roles: dict[str, list[str]] = {}
        for role in ("query", "key", "value", "attention_out", "ffn_in", "ffn_out"):
            roles.setdefault(getattr(self, role), []).append(role)
        return {name: "+".join(found) for name, found in roles.items()}


@dataclass(frozen=True)
class Anatomy:
    """The modules of an encoder, by name.

    Attributes
    ----------
    pre_norm
        Whether LayerNorm comes before attention and feed-forward network (pre-LN) or after.
    blocks
        The layers, first to last.
    head
        The linears between the stack and the output, in order of use.
    unused
        Linears that take no part in computing the output, and why.
    """

    pre_norm: bool
    blocks: tuple[Block, ...]
    head: tuple[str, ...]
    unused: dict[str, str]


def describe_encoder(model: nn.Module) -> Anatomy:
    """Find the layers of an encoder and the linears and LayerNorms in them.

    Parameters
    ----------
    model
        A transformers model, with or without a head.

    Returns
    -------
    Anatomy
        Names for ``model.get_submodule``.

    Raises
    ------
    InputError
        The architecture is not in the catalogue, or a module is not of the kind expected (as
        when an adapter has wrapped it).
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in _CATALOGUE:
        raise InputError(
            f"architecture {kind!r} cannot be taken apart yet; known: {', '.join(_CATALOGUE)}"
        )
    anatomy = _CATALOGUE[kind](model)
    _check(model, anatomy)
    return anatomy


def _find_layers(model: nn.Module, kind: type[nn.Module]) -> tuple[str, list[str]]:
    """Find the one stack of layers: the prefix of its modules' names, and its layers' names."""
    stacks = [name for name, module in model.named_modules() if isinstance(module, kind)]
    if len(stacks) != 1:
        raise InputError(f"{type(model).__name__}: holds {len(stacks)} stacks of layers, not one")
    layers = f"{stacks[0]}.layer"
    count = len(list(model.get_submodule(layers).children()))
    return f"{stacks[0]}.", [f"{layers}.{i}" for i in range(count)]


def _describe_esm(model: nn.Module) -> Anatomy:
    """ESM and RNA-FM as transformers writes them: pre-LN, one LayerNorm after the stack."""
    prefix, layers = _find_layers(model, EsmEncoder)
    after = [f"{layer}.attention.LayerNorm" for layer in layers[1:]]
    blocks = [
        Block(
            name=layer,
            query=f"{layer}.attention.self.query",
            key=f"{layer}.attention.self.key",
            value=f"{layer}.attention.self.value",
            attention_out=f"{layer}.attention.output.dense",
            ffn_in=f"{layer}.intermediate.dense",
            ffn_out=f"{layer}.output.dense",
            attention_norm=f"{layer}.attention.LayerNorm",
            ffn_norm=f"{layer}.LayerNorm",
            output_norm=output_norm,
        )
        for layer, output_norm in zip(
            layers, [*after, f"{prefix}emb_layer_norm_after"], strict=True
        )
    ]
    outside = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(prefix)
    ]
    unused = {
        name: "predicts contacts from attention maps, takes no part in the output"
        for name in outside
        if "contact_head." in name
    }
    return Anatomy(
        pre_norm=True,
        blocks=tuple(blocks),
        head=tuple(name for name in outside if name not in unused),
        unused=unused,
    )


def _describe_dnabert2(model: nn.Module) -> Anatomy:
    """DNABERT-2: post-LN, one fused projection, a gated first linear."""
    prefix, layers = _find_layers(model, DnaBert2Encoder)
    blocks = [
        Block(
            name=layer,
            query=f"{layer}.attention.self.Wqkv",
            key=f"{layer}.attention.self.Wqkv",
            value=f"{layer}.attention.self.Wqkv",
            attention_out=f"{layer}.attention.output.dense",
            ffn_in=f"{layer}.mlp.gated_layers",
            ffn_out=f"{layer}.mlp.wo",
            attention_norm=f"{layer}.attention.output.LayerNorm",
            ffn_norm=f"{layer}.mlp.layernorm",
            output_norm=f"{layer}.mlp.layernorm",
        )
        for layer in layers
    ]
    head = tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(prefix)
    )
    return Anatomy(pre_norm=False, blocks=tuple(blocks), head=head, unused={})


_CATALOGUE: dict[str, Callable[[nn.Module], Anatomy]] = {
    "esm": _describe_esm,
    "dnabert2": _describe_dnabert2,
}
"""By ``config.model_type``."""


def _check(model: nn.Module, anatomy: Anatomy) -> None:
    """Refuse a model whose modules are not what the catalogue says."""
    for block in anatomy.blocks:
        norms = (block.attention_norm, block.ffn_norm, block.output_norm)
        expected = dict.fromkeys(block.linears, nn.Linear) | dict.fromkeys(norms, nn.LayerNorm)
        for name, kind in expected.items():
            try:
                found = model.get_submodule(name)
            except AttributeError:
                raise InputError(f"{type(model).__name__}: has no module {name}") from None
            if not isinstance(found, kind):
                raise InputError(
                    f"{type(model).__name__}: {name} is a {type(found).__name__}, not a "
                    f"{kind.__name__}; merge adapters and undo quantization first"
                )
    if not anatomy.blocks:
        raise InputError(f"{type(model).__name__}: has no layers")

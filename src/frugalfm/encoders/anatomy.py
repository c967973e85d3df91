"""Which module of an encoder does what: one catalogue for statistics and quantization.

Rooms above ask for "the second linear of the feed-forward network of layer 3" and never spell a
module's name themselves; another architecture is one more entry here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

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
    ffn_gate
        Where the network is gated and its first linear not fused: the one whose output goes
        through the activation function and multiplies that of `ffn_in`.
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
    ffn_gate: str | None = None

    @property
    def linears(self) -> dict[str, str]:
        """Name of each linear and its role, in order of use; a fused one occurs once."""
        roles: dict[str, list[str]] = {}
        for role in _LINEARS:
            name = getattr(self, role)
            if name is not None:
                roles.setdefault(name, []).append(role)
        return {name: "+".join(found) for name, found in roles.items()}


_LINEARS = ("query", "key", "value", "attention_out", "ffn_gate", "ffn_in", "ffn_out")


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
    anatomy = _describe(model, _CATALOGUE[kind])
    _check(model, anatomy)
    return anatomy


@dataclass(frozen=True)
class _Plan:
    """Where an architecture keeps what.

    Attributes
    ----------
    layers
        The list of layers; its name in the model ends so.
    query, key, value, attention_out, ffn_in, ffn_out, ffn_gate, attention_norm, ffn_norm
        Names inside a layer.
    last_norm
        In a pre-LN architecture, the LayerNorm after the stack, beside `layers`.
    first_norm
        The LayerNorm whose output the first layer's attention reads, beside `layers`, where it
        is not that layer's own.
    """

    layers: str
    query: str
    key: str
    value: str
    attention_out: str
    ffn_in: str
    ffn_out: str
    attention_norm: str
    ffn_norm: str
    ffn_gate: str | None = None
    last_norm: str | None = None
    first_norm: str | None = None


_BERT = _Plan(
    layers="encoder.layer",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_out="attention.output.dense",
    ffn_in="intermediate.dense",
    ffn_out="output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_norm="output.LayerNorm",
)
_ESMC = _Plan(
    layers="layers",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    attention_out="self_attn.o_proj",
    ffn_gate="mlp.gate_proj",
    ffn_in="mlp.up_proj",
    ffn_out="mlp.down_proj",
    attention_norm="input_layernorm",
    ffn_norm="post_attention_layernorm",
    last_norm="norm",
)

_CATALOGUE: dict[str, _Plan] = {
    # ESM and RNA-FM as transformers writes them: BERT's names, but pre-LN.
    "esm": replace(
        _BERT,
        attention_norm="attention.LayerNorm",
        ffn_norm="LayerNorm",
        last_norm="emb_layer_norm_after",
    ),
    # Post-LN, one fused projection, a gated first linear, fused too.
    "dnabert2": replace(
        _BERT,
        **dict.fromkeys(("query", "key", "value"), "attention.self.Wqkv"),
        ffn_in="mlp.gated_layers",
        ffn_out="mlp.wo",
        ffn_norm="mlp.layernorm",
    ),
    "esmc": _ESMC,
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "modernbert": _Plan(
        layers="layers",
        query="attn.Wqkv",
        key="attn.Wqkv",
        value="attn.Wqkv",
        attention_out="attn.Wo",
        ffn_in="mlp.Wi",
        ffn_out="mlp.Wo",
        attention_norm="attn_norm",
        ffn_norm="mlp_norm",
        last_norm="final_norm",
        first_norm="embeddings.norm",
    ),
    # ESM-C's names, but post-LN.
    "nomic_bert": replace(
        _ESMC,
        attention_norm="post_attention_layernorm",
        ffn_norm="post_mlp_layernorm",
        last_norm=None,
    ),
}
"""By ``config.model_type``."""


def _describe(model: nn.Module, plan: _Plan) -> Anatomy:
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and f".{name}".endswith(f".{plan.layers}")
    ]
    if len(stacks) != 1:
        raise InputError(f"{type(model).__name__}: holds {len(stacks)} stacks of layers, not one")
    beside = stacks[0].removesuffix(plan.layers.rpartition(".")[2])
    names = [f"{stacks[0]}.{i}" for i in range(len(model.get_submodule(stacks[0])))]  # type: ignore[arg-type]
    attention_norms = [f"{name}.{plan.attention_norm}" for name in names]
    if plan.first_norm is not None:
        attention_norms[:1] = [beside + plan.first_norm]
    inside = {role: getattr(plan, role) for role in _LINEARS if getattr(plan, role) is not None}
    ffn_norms = [f"{name}.{plan.ffn_norm}" for name in names]
    after = [] if plan.last_norm is None else [*attention_norms[1:], beside + plan.last_norm]
    blocks = [
        Block(
            **{role: f"{name}.{path}" for role, path in inside.items()},
            name=name,
            attention_norm=attention_norm,
            ffn_norm=ffn_norm,
            output_norm=output_norm,
        )
        for name, attention_norm, ffn_norm, output_norm in zip(
            names, attention_norms, ffn_norms, after or ffn_norms, strict=True
        )
    ]
    outside = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(f"{stacks[0]}.")
    ]
    unused = {
        name: "predicts contacts from attention maps, takes no part in the output"
        for name in outside
        if "contact_head." in name
    }
    head = tuple(name for name in outside if name not in unused)
    return Anatomy(plan.last_norm is not None, tuple(blocks), head, unused)


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

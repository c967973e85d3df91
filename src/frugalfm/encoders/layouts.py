"""Checkpoints of one file in their authors' own names, renamed to those of transformers."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frugalfm.encoders.catalogue import Preset, make_config, make_esmc_config
from frugalfm.encoders.weights import shorten, write_folder
from frugalfm.errors import InputError
from frugalfm.tokens.vocabulary import (
    ESMC_TOKENS,
    RNA_TOKENS,
    make_protein_tokenizer,
    make_rna_tokenizer,
)

__all__ = ["translate_esmc", "translate_rna_fm"]


def translate_rna_fm(
    path: Path, weights: dict[str, Tensor], arguments: dict[str, Any], folder: Path
) -> list[str]:
    """Rename ESM-1b's parameters, as RNA-FM's file spells them, to those of EsmForMaskedLM."""
    words = weights.get("encoder.sentence_encoder.embed_tokens.weight")
    places = weights.get("encoder.sentence_encoder.embed_positions.weight")
    first = weights.get("encoder.sentence_encoder.layers.0.fc1.weight")
    if words is None or places is None or first is None or words.ndim != 2:
        shown = ", ".join(sorted(weights)[:5])
        raise InputError(f"{path}: does not have RNA-FM's names; it has {shown}, ...")
    if len(words) != len(RNA_TOKENS):
        raise InputError(f"{path}: has {len(words)} tokens, RNA-FM has {len(RNA_TOKENS)}")
    renamed = _rename_all(path, weights, _rename_rna_fm, "RNA-FM")
    width = words.shape[1]
    depth = len({name.split(".")[3] for name in renamed if name.startswith("esm.encoder.layer.")})
    heads = _count_heads(path, width, arguments)
    notes = _complete_rna_fm(path, renamed, depth * heads)
    tokenizer = make_rna_tokenizer(max_residues=len(places) - 4)
    preset = Preset(depth, width, heads, first.shape[0], len(places) - 4)
    write_folder(folder, make_config(preset, tokenizer, "softmax"), renamed, tokenizer)
    return notes


_RNA_FM_NAMES = {
    r"encoder\.sentence_encoder\.embed_tokens\.weight": "esm.embeddings.word_embeddings.weight",
    r"encoder\.sentence_encoder\.embed_positions\.weight": (
        "esm.embeddings.position_embeddings.weight"
    ),
    r"encoder\.sentence_encoder\.emb_layer_norm_before\.(weight|bias)": (
        r"esm.embeddings.layer_norm.\1"
    ),
    r"encoder\.sentence_encoder\.emb_layer_norm_after\.(weight|bias)": (
        r"esm.encoder.emb_layer_norm_after.\1"
    ),
    r"encoder\.lm_head\.weight": "lm_head.decoder.weight",
    r"encoder\.lm_head\.bias": "lm_head.bias",
    r"encoder\.lm_head\.(dense|layer_norm)\.(weight|bias)": r"lm_head.\1.\2",
    r"encoder\.(?:sentence_encoder\.)?contact_head\.regression\.(weight|bias)": (
        r"esm.contact_head.regression.\1"
    ),
}
_RNA_FM_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}


def _rename_rna_fm(name: str) -> str | None:
    layer = re.fullmatch(r"encoder\.sentence_encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        number, module, kind = layer.groups()
        new = _RNA_FM_LAYER.get(module)
        return new and f"esm.encoder.layer.{number}.{new}.{kind}"
    return _match(name, _RNA_FM_NAMES)


def _count_heads(path: Path, width: int, arguments: dict[str, Any]) -> int:
    """Read the number of heads, which no shape tells, from the arguments of the file."""
    heads = arguments.get("encoder_attention_heads", arguments.get("attention_heads"))
    if heads is None and width == 640:
        heads = 20  # the published model's
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise InputError(
            f"{path}: its args do not say encoder_attention_heads for a width of {width}"
        )
    return heads


def _complete_rna_fm(path: Path, weights: dict[str, Tensor], maps: int) -> list[str]:
    """Fill in what the file may leave out: a tied table, and the contact head."""
    notes = []
    words, decoder = weights["esm.embeddings.word_embeddings.weight"], "lm_head.decoder.weight"
    if decoder not in weights:
        notes.append("the decoder is not in the file; it is tied to the embeddings")
    elif not torch.equal(weights[decoder], words):
        raise InputError(f"{path}: decoder and embeddings differ, but RNA-FM ties them")
    contact = "esm.contact_head.regression."
    if not any(name.startswith(contact) for name in weights):
        weights[contact + "weight"] = torch.zeros(1, maps)
        weights[contact + "bias"] = torch.zeros(1)
        notes.append("the contact head is not in the file; it is zero here")
    return notes


_ESMC_NAMES = {
    r"embed\.weight": "esmc.embed_tokens.weight",
    r"transformer\.norm\.weight": "esmc.norm.weight",
    r"sequence_head\.0\.(weight|bias)": r"lm_head.dense.\1",
    r"sequence_head\.2\.(weight|bias)": r"lm_head.layer_norm.\1",
    r"sequence_head\.3\.(weight|bias)": r"lm_head.decoder.\1",
}
_ESMC_LAYER = {
    "attn.layernorm_qkv.0": "input_layernorm",
    "attn.layernorm_qkv.1": "self_attn.qkv_proj",  # cut in three below
    "attn.q_ln": "self_attn.q_norm",
    "attn.k_ln": "self_attn.k_norm",
    "attn.out_proj": "self_attn.o_proj",
    "ffn.0": "post_attention_layernorm",
    "ffn.1": "mlp.gate_up_proj",  # cut in two below
    "ffn.3": "mlp.down_proj",
}
_ESMC_CUTS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
_ESMC_HEAD = 64  # the width of an attention head in every published size


def translate_esmc(path: Path, weights: dict[str, Tensor], folder: Path) -> list[str]:
    """Rename ESM-C's parameters, as its first files (``esmc_*_v0.pth``) spell them.

    There query, key and value are one matrix, and so are gate and input of the feed-forward
    network, the gate first; sizes are told by shapes, heads are 64 wide.
    """
    table = weights.get("embed.weight")
    first = weights.get("transformer.blocks.0.ffn.3.weight")
    if table is None or first is None or table.ndim != 2 or first.ndim != 2:
        raise InputError(f"{path}: does not have ESM-C's names; it has {shorten([*weights])}")
    # Of the rotary embeddings; not a weight, and computed anew.
    kept = {name: t for name, t in weights.items() if not name.endswith("rotary.inv_freq")}
    renamed: dict[str, Tensor] = {}
    for name, tensor in _rename_all(path, kept, _rename_esmc, "ESM-C").items():
        renamed |= _cut(name, tensor)
    width = table.shape[1]
    if width % _ESMC_HEAD:
        raise InputError(f"{path}: is {width} wide, which heads of {_ESMC_HEAD} do not divide")
    depth = len({name.split(".")[2] for name in renamed if name.startswith("esmc.layers.")})
    preset = Preset(depth, width, width // _ESMC_HEAD, first.shape[1], max_residues=2046)
    config = make_esmc_config(preset, "softmax")
    config.vocab_size = table.shape[0]
    words = make_protein_tokenizer(preset.max_residues, ESMC_TOKENS)
    write_folder(folder, config, renamed, words)
    return []


def _cut(name: str, tensor: Tensor) -> dict[str, Tensor]:
    for fused, parts in _ESMC_CUTS.items():
        if f".{fused}." in name:
            pieces = zip(parts, tensor.chunk(len(parts)), strict=True)
            return {name.replace(fused, part): piece.contiguous() for part, piece in pieces}
    return {name: tensor}


def _rename_esmc(name: str) -> str | None:
    layer = re.fullmatch(r"transformer\.blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        number, module, kind = layer.groups()
        new = _ESMC_LAYER.get(module)
        return new and f"esmc.layers.{number}.{new}.{kind}"
    return _match(name, _ESMC_NAMES)


def _match(name: str, patterns: dict[str, str]) -> str | None:
    for pattern, new in patterns.items():
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(new)
    return None


def _rename_all(
    path: Path, weights: dict[str, Tensor], rename: Callable[[str], str | None], owner: str
) -> dict[str, Tensor]:
    """Rename every tensor, or refuse those whose names are strange."""
    strangers = [name for name in weights if rename(name) is None]
    if strangers:
        raise InputError(f"{path}: {len(strangers)} names are not {owner}'s: {shorten(strangers)}")
    return {str(rename(name)): tensor for name, tensor in weights.items()}

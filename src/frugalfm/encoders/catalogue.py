"""Named architectures and how to make one with random weights.

RNA-FM is ESM-1b's architecture over 25 tokens: learned positions, LayerNorm before and after
the stack, token dropout, a tied masked-language-modelling head. transformers' ESM classes hold
it at any size, and ESM-2 with its rotary positions; ESM-C has classes of its own there.
DNABERT-2 is ours (:mod:`frugalfm.encoders.dnabert2`); its vocabulary is learned from data, so
that a tokenizer must be given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    EsmcConfig,
    EsmConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from frugalfm.attention.binding import require_attention
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.errors import InputError
from frugalfm.tokens.vocabulary import (
    ESMC_TOKENS,
    make_protein_tokenizer,
    make_rna_tokenizer,
    prepare_dna_tokenizer,
)

__all__ = ["DNA_PRESETS", "NAMES", "PRESETS", "PROTEIN_PRESETS", "Preset", "create_encoder"]


@dataclass(frozen=True)
class Preset:
    """The size of an encoder; the architecture is told by its name.

    Attributes
    ----------
    layers, width, heads, feed_forward
        Depth, hidden size, attention heads, and hidden size of the feed-forward layers.
    max_residues
        Longest sequence, without ``<cls>`` and ``<eos>``; DNABERT-2 knows no longest.
    """

    layers: int
    width: int
    heads: int
    feed_forward: int
    max_residues: int = 1022

    @property
    def sizes(self) -> dict[str, int]:
        """Name the sizes as transformers' configs do."""
        return {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "intermediate_size": self.feed_forward,
        }


PRESETS: dict[str, Preset] = {
    # The published model, 99.5M parameters (arXiv 2204.00300).
    "rna-fm": Preset(layers=12, width=640, heads=20, feed_forward=5120),
    # 10.8M parameters: a GPU's hour, a workstation's night.
    "rna-fm-small": Preset(layers=6, width=384, heads=12, feed_forward=1536),
    # 0.9M parameters: trains on a laptop.
    "rna-fm-tiny": Preset(layers=4, width=128, heads=4, feed_forward=512),
    # 0.2M parameters: trains while you watch; the demo's.
    "rna-fm-nano": Preset(layers=3, width=64, heads=2, feed_forward=256),
}

PROTEIN_PRESETS: dict[str, Preset] = {
    # ESM-C's two published sizes with open shapes, 333M and 575M parameters.
    "esmc-600m": Preset(36, 1152, 18, 3072, max_residues=2046),
    "esmc-300m": Preset(30, 960, 15, 2560, max_residues=2046),
    # In the same architecture, at the sizes of RNA-FM's above: 10.8M, 0.9M and 0.2M parameters.
    "esmc-small": Preset(6, 384, 6, 1024, max_residues=2046),
    "esmc-tiny": Preset(4, 128, 4, 384, max_residues=2046),
    "esmc-nano": Preset(3, 64, 2, 192, max_residues=2046),
    # ESM-2's published sizes (doi 10.1126/science.ade2574), and one for a laptop.
    "esm2-650m": Preset(33, 1280, 20, 5120),
    "esm2-150m": Preset(30, 640, 20, 2560),
    "esm2-35m": Preset(12, 480, 20, 1920),
    "esm2-8m": Preset(6, 320, 20, 1280),
    "esm2-tiny": Preset(4, 128, 4, 512),
}

DNA_PRESETS: dict[str, Preset] = {
    # The published model, 117M parameters over 4,096 byte pairs (arXiv 2306.15006).
    "dnabert2": Preset(layers=12, width=768, heads=12, feed_forward=3072),
    # 1.1M parameters in the layers, and 0.5M in 4,096 embeddings: trains on a laptop.
    "dnabert2-tiny": Preset(layers=4, width=128, heads=4, feed_forward=512),
}

NAMES = (*PRESETS, *PROTEIN_PRESETS, *DNA_PRESETS)
"""Every name that :func:`create_encoder` knows."""

# The rows of ESM-C's tables, of which its 33 tokens use the first.
_ESMC_ROWS = 64


def create_encoder(
    name: str, *, attention: str = "softmax", seed: int = 0, tokenizer: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a named encoder with random weights.

    Parameters
    ----------
    name
        One of :data:`NAMES`.
    attention
        Stored in the config as ``attention`` and binding from then on.
    seed
        Determines every weight.
    tokenizer
        Folder with DNABERT-2's ``tokenizer.json``, or another with its special tokens.

    Returns
    -------
    tuple
        The masked-language model, in evaluation mode, and its tokenizer.
    """
    if name in DNA_PRESETS:
        return _create_dnabert2(name, attention, seed, tokenizer)
    if name not in NAMES:
        raise InputError(f"{name!r} is no named model; there are: {', '.join(NAMES)}")
    if tokenizer is not None:
        raise InputError(f"{name} has a tokenizer of its own; it takes no other")
    if name in PRESETS:
        preset = PRESETS[name]
        words = make_rna_tokenizer(max_residues=preset.max_residues)
        config: PreTrainedConfig = make_config(preset, words, attention)
    elif name.startswith("esm2"):
        preset = PROTEIN_PRESETS[name]
        words = make_protein_tokenizer(max_residues=preset.max_residues)
        changes = {"position_embedding_type": "rotary", "emb_layer_norm_before": False}
        config = make_config(preset, words, attention, **changes)
    else:
        preset = PROTEIN_PRESETS[name]
        words = make_protein_tokenizer(preset.max_residues, ESMC_TOKENS)
        config = make_esmc_config(preset, attention)
    return create_from_config(config, seed), words


def _create_dnabert2(
    name: str, attention: str, seed: int, folder: Path | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if folder is None:
        raise InputError(
            f"{name} needs a tokenizer, which is learned from data: give a folder with a "
            'tokenizer.json and a config.json that says {"model_type": "dnabert2", ...}'
        )
    words = prepare_dna_tokenizer(Path(folder))
    sizes = DNA_PRESETS[name].sizes
    config = DnaBert2Config(vocab_size=len(words), attention=attention, **sizes)
    return create_from_config(adopt_specials(config, words), seed), words


def adopt_specials(
    config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig:
    """Let a config name the special tokens as a tokenizer does; returns the config."""
    config.pad_token_id = tokenizer.pad_token_id
    config.mask_token_id = tokenizer.mask_token_id
    config.bos_token_id = tokenizer.cls_token_id
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    config.eos_token_id = end
    return config


def make_config(
    preset: Preset, tokenizer: PreTrainedTokenizerBase, attention: str, **changes: Any
) -> EsmConfig:
    """Describe an encoder in RNA-FM's architecture, or with changes in ESM-2's, as a config."""
    # The table of positions starts after the padding index: ids 0 and 1 are never used.
    positions = preset.max_residues + 2 + tokenizer.pad_token_id + 1
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "mask_token_id": tokenizer.mask_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **preset.sizes,
        "max_position_embeddings": positions,
        "position_embedding_type": "absolute",
        "emb_layer_norm_before": True,
        "token_dropout": True,
        "layer_norm_eps": 1e-5,
        # ESM-1b trains without dropout inside the blocks; regularisation comes from masking.
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "attention": attention,
    }
    return EsmConfig(**(settings | changes))


def make_esmc_config(preset: Preset, attention: str) -> EsmcConfig:
    """Describe an encoder in ESM-C's architecture as a transformers config."""
    positions = preset.max_residues + 2
    config = EsmcConfig(vocab_size=_ESMC_ROWS, max_position_embeddings=positions, **preset.sizes)
    config.attention = attention
    return config


def create_from_config(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Initialise a masked-language model; the same seed gives the same weights."""
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise InputError(f"{config.model_type} has no masked-language model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODEL_FOR_MASKED_LM_MAPPING[type(config)](config)
    require_attention(model, getattr(config, "attention", "softmax"))
    return model.eval()

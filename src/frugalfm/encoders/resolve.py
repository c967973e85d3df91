"""From what a user names (a size, a config file, a checkpoint) to a model."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AutoConfig,
    EsmcConfig,
    EsmConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from frugalfm.attention.binding import require_attention
from frugalfm.encoders.catalogue import (
    NAMES,
    adopt_specials,
    create_encoder,
    create_from_config,
)
from frugalfm.encoders.checkpoints import hint_at_hub, load_encoder, load_tokenizer
from frugalfm.errors import InputError
from frugalfm.tokens.vocabulary import (
    ESM_TOKENS,
    ESMC_TOKENS,
    RNA_TOKENS,
    make_protein_tokenizer,
    make_rna_tokenizer,
    prepare_dna_tokenizer,
)

__all__ = ["open_model"]


def open_model(
    name: str, *, attention: str | None = None, seed: int = 0, tokenizer: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Path | None]:
    """Make or load a masked-language model.

    Parameters
    ----------
    name
        A named size, a transformers ``config.json`` of an ESM model over RNA-FM's or ESM's own
        vocabulary or of ESM-C, a checkpoint folder, or a folder with config and tokenizer only,
        which starts from random weights.
    attention
        A checkpoint keeps its own and refuses another; else softmax when None.
    seed
        Determines random weights.
    tokenizer
        Folder with the tokenizer of a named size of DNABERT-2.

    Returns
    -------
    tuple
        Model, tokenizer, and the path that `name` is, None for a named size.

    Raises
    ------
    InputError
        `name` is none of these, or the attention is not the checkpoint's.
    """
    named = name in NAMES
    if named and Path(name).exists():
        raise InputError(
            f"{name}: is a named size, and a folder here; write ./{name} for the folder, "
            "or call it otherwise"
        )
    if named:
        made = create_encoder(
            name, attention=attention or "softmax", seed=seed, tokenizer=tokenizer
        )
        return *made, None
    if tokenizer is not None:
        raise InputError(
            f"{name}: brings its own tokenizer; only named sizes of DNABERT-2 take one"
        )
    path = Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():
        return *_create_from_file(path, attention, seed), path
    if not path.is_dir():
        raise InputError(
            f"{name}: neither a named size ({', '.join(NAMES)}), "
            f"nor a config.json, nor a checkpoint folder{hint_at_hub(name)}"
        )
    if (path / "config.json").is_file() and not any(map(_holds_weights, path.iterdir())):
        return *_create_from_folder(path, attention, seed), path
    model, words = load_encoder(path)
    stored = getattr(model.config, "attention", None)
    if stored is None:
        stored = model.config.attention = "softmax"
        model.set_attn_implementation("softmax")
        require_attention(model, "softmax")
    if attention not in {None, stored}:
        remedy = f"`frugalfm convert --attention {attention}` gives it that"
        raise InputError(
            f"{path}: was trained with attention {stored!r}; it cannot continue with "
            f"{attention!r}; "
            + (remedy if stored == "softmax" else "leave --attention out to go on with its own")
        )
    return model, words, path


def _holds_weights(file: Path) -> bool:
    return file.suffix in {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}


def _set_attention(config: PreTrainedConfig, attention: str | None) -> None:
    """Let random weights start with an attention, whatever the config was saved with."""
    config.attention = attention or getattr(config, "attention", None) or "softmax"
    config._attn_implementation = config.attention  # noqa: SLF001 - transformers has no other way


def _create_from_folder(
    path: Path, attention: str | None, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Start from random weights where a folder has a config and a tokenizer, but no weights."""
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        if config.model_type == "dnabert2":
            words = prepare_dna_tokenizer(path)
        else:
            words = load_tokenizer(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: holds no weights, and no transformers config and tokenizer to start from "
            f"random ones ({error})"
        ) from error
    # ESM-C's tables have more rows than its tokenizer has tokens.
    fits = (
        len(words) <= config.vocab_size
        if config.model_type == "esmc"
        else (len(words) == config.vocab_size)
    )
    if not fits:
        raise InputError(
            f"{path}: config.json says vocab_size {config.vocab_size}, the tokenizer has "
            f"{len(words)} tokens"
        )
    _set_attention(config, attention)
    return create_from_config(adopt_specials(config, words), seed), words


def _create_from_file(
    path: Path, attention: str | None, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{path}: not a transformers config ({error})") from error
    tokenizer = _make_tokenizer(path, config)
    _set_attention(config, attention)
    for name in ("mask_token_id", "pad_token_id", "eos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    return create_from_config(config, seed), tokenizer


def _make_tokenizer(path: Path, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Make the tokenizer of a model whose config says all that there is to say about it."""
    places = getattr(config, "max_position_embeddings", 0)
    if isinstance(config, EsmcConfig) and config.vocab_size >= len(ESMC_TOKENS):
        return make_protein_tokenizer(places - 2, ESMC_TOKENS)
    if isinstance(config, EsmConfig) and config.vocab_size == len(RNA_TOKENS):
        return make_rna_tokenizer(places - 4)
    if isinstance(config, EsmConfig) and config.vocab_size == len(ESM_TOKENS):
        return make_protein_tokenizer(places - 4)
    raise InputError(
        f"{path}: model_type must be 'esm' with vocab_size {len(RNA_TOKENS)} (RNA-FM) or "
        f"{len(ESM_TOKENS)} (ESM-2), or 'esmc'; other architectures start from a checkpoint folder"
    )

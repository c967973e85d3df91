"""From what a user names (a size, a config file, a checkpoint) to a model."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, EsmConfig, PreTrainedModel, PreTrainedTokenizerBase

from frugalfm.encoders.catalogue import PRESETS, create_encoder, create_from_config
from frugalfm.encoders.checkpoints import load_encoder
from frugalfm.errors import InputError
from frugalfm.tokens.vocabulary import RNA_TOKENS, make_rna_tokenizer

__all__ = ["open_model"]


def open_model(
    name: str, *, attention: str | None = None, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Path | None]:
    """Make or load a masked-language model.

    Parameters
    ----------
    name
        A key of :data:`PRESETS`, a transformers ``config.json`` of an ESM model over RNA-FM's
        vocabulary, or a checkpoint folder.
    attention
        A checkpoint keeps its own and refuses another; else softmax when None.
    seed
        Determines random weights.

    Returns
    -------
    tuple
        Model, tokenizer, and the path that `name` is, None for a named size.

    Raises
    ------
    InputError
        `name` is none of these, or the attention is not the checkpoint's.
    """
    if name in PRESETS and Path(name).exists():
        raise InputError(
            f"{name}: is a named size, and a folder here; write ./{name} for the folder, "
            "or call it otherwise"
        )
    if name in PRESETS:
        return *create_encoder(name, attention=attention or "softmax", seed=seed), None
    path = Path(name).expanduser()
    if path.suffix == ".json" and path.is_file():
        return *_create_from_file(path, attention, seed), path
    if not path.is_dir():
        raise InputError(
            f"{name}: neither a named size ({', '.join(PRESETS)}), nor a config.json, "
            "nor a checkpoint folder"
        )
    model, tokenizer = load_encoder(path)
    stored = getattr(model.config, "attention", None)
    if stored is None:
        stored = model.config.attention = "softmax"
        model.set_attn_implementation("softmax")
    if attention not in {None, stored}:
        raise InputError(
            f"{path}: was trained with attention {stored!r}; it cannot continue with {attention!r}"
        )
    return model, tokenizer, path


def _create_from_file(
    path: Path, attention: str | None, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise InputError(f"{path}: not a transformers config ({error})") from error
    if not isinstance(config, EsmConfig) or config.vocab_size != len(RNA_TOKENS):
        raise InputError(
            f"{path}: model_type must be 'esm' with vocab_size {len(RNA_TOKENS)} "
            "(RNA-FM's architecture); other architectures start from a checkpoint folder"
        )
    config.attention = attention or getattr(config, "attention", None) or "softmax"
    tokenizer = make_rna_tokenizer(config.max_position_embeddings - 4)
    for name in ("mask_token_id", "pad_token_id", "eos_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    return create_from_config(config, seed), tokenizer

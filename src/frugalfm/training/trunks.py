"""The encoder of any checkpoint, whatever head is on it, for what looks at its states alone."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalfm.artifacts import read_manifest
from frugalfm.encoders.checkpoints import (
    check_checkpoint,
    check_weights,
    classifies,
    load_encoder,
    load_tokenizer,
    read_kind,
)
from frugalfm.encoders.heads import load_head
from frugalfm.errors import InputError
from frugalfm.training.pairs import PairModel

__all__ = ["check_trunk", "find_base", "load_any", "load_trunk"]


def check_trunk(folder: Path) -> None:
    """Refuse what :func:`load_trunk` would, as far as that can be told without reading weights.

    Raises
    ------
    InputError
        No model of any kind, or a damaged one.
    """
    if read_kind(folder) == "tuned":
        read_manifest(folder, "tuned")
    elif classifies(folder):
        check_weights(folder)
    else:
        check_checkpoint(folder)


def find_base(folder: Path, base: Path | None) -> Path | None:
    """Tell which checkpoint an adapter adapts, as given or as recorded; None of a whole model.

    Raises
    ------
    InputError
        One is given, and there is no adapter to put on it.
    """
    if read_kind(folder) == "tuned" and (folder / "adapter_config.json").is_file():
        recorded = read_manifest(folder, "tuned")["inputs"]["checkpoint"]["path"]
        return base or Path(recorded)
    if base is not None:
        raise InputError(f"--base {base}: {folder} is a whole model, not an adapter; leave it out")
    return None


def load_trunk(
    folder: Path, *, base: Path | None = None, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the encoder of a checkpoint of any kind.

    Parameters and errors are those of :func:`load_any`.

    Returns
    -------
    tuple
        A model whose trunk is the encoder's, with some head, in fp32 and evaluation mode; and its
        tokenizer.
    """
    check_trunk(folder)
    model, tokenizer = load_any(folder, base=base, device=device)
    if isinstance(model, PairModel):
        model = model.encoder
    assert isinstance(model, PreTrainedModel)
    return model, tokenizer


def load_any(
    folder: Path, *, base: Path | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load a checkpoint of any kind with the head that it has.

    Parameters
    ----------
    folder
        A masked-language checkpoint, what ``frugalfm tune`` made (whole, merged, or an adapter,
        which is merged in memory), or a Hugging Face folder of a model with a head.
    base
        Of an adapter: the checkpoint that it adapts, if that has moved.
    device
        Where the model goes.

    Returns
    -------
    tuple
        The model, in fp32 and evaluation mode, and its tokenizer.

    Raises
    ------
    InputError
        No such model, a damaged one, or an adapter whose checkpoint is gone.
    """
    if read_kind(folder) == "tuned":
        from frugalfm.training.adapters import merge_adapter
        from frugalfm.training.tuned import load_tuned  # much that an encoder alone does not need

        model, tokenizer = load_tuned(folder, base=base, device=device)
        if hasattr(model, "peft_config"):
            model = merge_adapter(model)
        return model.eval(), tokenizer
    if not classifies(folder):
        return load_encoder(folder, device=device)
    return load_head(folder).to(device), load_tokenizer(folder)  # type: ignore[arg-type]

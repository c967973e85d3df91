"""What can be quantized: a masked-language model, or a tuned one with its head, adapters merged."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from frugalfm.artifacts import read_manifest
from frugalfm.encoders.checkpoints import check_checkpoint, classifies, read_kind
from frugalfm.encoders.pieces import DnaBert2ForTokenClassification
from frugalfm.errors import InputError
from frugalfm.tasks.kinds import Kind
from frugalfm.tokens.codec import Codec
from frugalfm.training.predicting import TaskHead
from frugalfm.training.trunks import load_any

__all__ = ["Subject", "check_subject", "load_subject", "read_tuning"]

_PROBLEMS: dict[str, Kind] = {
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
    "regression": "regression",
}


@dataclass(frozen=True)
class Subject:
    """A model to quantize.

    Attributes
    ----------
    model, tokenizer
        In fp32 and evaluation mode; plain linears all through.
    codec
        Of the tokenizer.
    head
        What a tuned model predicts; None of a masked-language model.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    codec: Codec
    head: TaskHead | None


def check_subject(folder: Path) -> TaskHead | None:
    """Refuse what :func:`load_subject` would, without reading weights.

    Returns
    -------
    TaskHead or None
        What the model predicts; None of a masked-language model.

    Raises
    ------
    InputError
        No checkpoint, and no tuned model; or a head for several numbers.
    """
    if read_kind(folder) == "tuned":
        return TaskHead.from_summary(read_manifest(folder, "tuned")["summary"])
    check_checkpoint(folder)
    return _find_head(folder)


def read_tuning(folder: Path) -> dict[str, Any]:
    """Give the configuration that a model was tuned with; empty where `frugalfm tune` did not."""
    if read_kind(folder) != "tuned":
        return {}
    config: dict[str, Any] = read_manifest(folder, "tuned")["config"]
    return config


def load_subject(
    folder: Path, *, base: Path | None = None, device: torch.device | str = "cpu"
) -> Subject:
    """Load a checkpoint of any kind to quantize it.

    Parameters are those of :func:`~frugalfm.training.trunks.load_any`.

    Raises
    ------
    InputError
        No such model, a damaged one, or an adapter whose checkpoint is gone.
    """
    head = check_subject(folder)
    model, tokenizer = load_any(folder, base=base, device=device)
    codec = Codec.from_tokenizer(tokenizer)
    foreign = head is not None and head.kind == "token" and read_kind(folder) != "tuned"
    if foreign and not _labels_residues(model, codec):
        raise InputError(
            f"{folder}: labels tokens that hold several residues each, so that no residue has a "
            "label of its own; `frugalfm tune` makes a model that labels residues"
        )
    return Subject(model, tokenizer, codec, head)


def _find_head(folder: Path) -> TaskHead | None:
    """Read from the config of a Hugging Face folder what its head predicts."""
    try:
        config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text())
    except ValueError as error:
        raise InputError(f"{folder}: config.json is damaged ({error})") from None
    if not classifies(folder):
        return None
    # transformers writes no names where there are two classes without any; keys are strings.
    names: dict[str, str] = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    classes = tuple(names[key] for key in sorted(names, key=int))
    if any("TokenClassification" in name for name in config["architectures"]):
        return TaskHead("token", classes)
    # What transformers takes it for where nothing is said.
    alone: Kind = "regression" if len(classes) == 1 else "classification"
    kind = _PROBLEMS.get(config.get("problem_type") or "", alone)
    if kind == "regression" and len(classes) > 1:
        raise InputError(
            f"{folder}: predicts {len(classes)} numbers of each sequence; heads for one number "
            "are supported"
        )
    return TaskHead(kind, () if kind == "regression" else classes)


def _labels_residues(model: nn.Module, codec: Codec) -> bool:
    """Whether the labels that a model gives to tokens are those of residues."""
    return codec.per_residue or isinstance(model, DnaBert2ForTokenClassification)

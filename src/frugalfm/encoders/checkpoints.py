"""Checkpoints: Hugging Face folders, loaded strictly (every key, safetensors, no remote code)."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from frugalfm.attention.binding import require_attention
from frugalfm.encoders.catalogue import NAMES
from frugalfm.errors import InputError

# A bar for a load of milliseconds is noise among the verbs' own.
disable_progress_bar()

_TALKATIVE = ("transformers.modeling_utils", "transformers.distributed.tensor_parallel")

_DEPLOYED = "deployment.json"  # what the room of that name writes last

__all__ = [
    "check_checkpoint",
    "check_weights",
    "classifies",
    "describe_missing",
    "hint_at_hub",
    "load_encoder",
    "load_tokenizer",
    "read_kind",
    "refuse_other_artifacts",
    "save_encoder",
]


def check_checkpoint(folder: Path) -> None:
    """Refuse what is not a checkpoint that :func:`load_encoder` would read, without reading it.

    Raises
    ------
    InputError
        Says what the folder is instead, as far as that can be told, and what to give.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(describe_missing(folder))
    refuse_other_artifacts(folder)
    check_weights(folder)


def check_weights(folder: Path) -> None:
    """Refuse a folder without a config or without weights in safetensors, whatever the head."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(describe_missing(folder))
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: holds no config.json, so it is not a checkpoint")
    weights = [*folder.glob("*.safetensors")]
    if not weights:
        pickles = [
            file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)
        ]
        hint = f" ({pickles[0]} is a pickle, which can run code when opened)" if pickles else ""
        raise InputError(
            f"{folder}: holds no .safetensors weights{hint}; "
            "`frugalfm import-checkpoint` makes them"
        )


def read_kind(folder: Path) -> str | None:
    """Tell what kind of artifact a folder is, whole or damaged; None where nothing says so."""
    kind = _read_json(Path(folder) / "manifest.json").get("kind")
    return kind if isinstance(kind, str) else None


def classifies(folder: Path) -> bool:
    """Whether a folder's config is of a model with a head for sequences or residues."""
    names = _read_json(Path(folder) / "config.json").get("architectures") or ()
    return any(f"{what}Classification" in name for name in names for what in ("Sequence", "Token"))


def describe_missing(path: Path) -> str:
    """Say that there is no such checkpoint, and what may have been meant."""
    if str(path) in NAMES:
        return (
            f"{path}: is a named size, and weights are needed here: `frugalfm pretrain --model "
            f"{path}` trains them, `frugalfm import-checkpoint` takes published ones"
        )
    return f"{path}: no such checkpoint folder{hint_at_hub(path)}"


def hint_at_hub(path: Path | str) -> str:
    """Say how to get a model whose name on a hub seems to have been given for a path."""
    parts = Path(path).parts
    if len(parts) != 2 or parts[0] in {"/", ".", "..", "~"} or Path(parts[0]).exists():
        return ""
    return (
        "; nothing is downloaded here: a model on the Hugging Face hub comes by `hf download "
        f"{path} --local-dir FOLDER` and `frugalfm import-checkpoint FOLDER --out CHECKPOINT`"
    )


def refuse_other_artifacts(folder: Path) -> None:
    """Refuse artifacts that are no masked-language checkpoint, by what they are."""
    kind = read_kind(folder)
    inputs = _read_json(folder / "manifest.json").get("inputs", {})
    source = inputs.get("checkpoint", {}).get("path") if isinstance(inputs, dict) else None
    origin = f" ({source})" if source else ""
    if (folder / _DEPLOYED).is_file():
        raise InputError(
            f"{folder}: is a deployed model, which runs in `frugalfm embed` and `frugalfm "
            f"predict`; give the checkpoint that it was made of{origin}"
        )
    if kind == "quantization":
        raise InputError(
            f"{folder}: is what `frugalfm quantize` measured, without a model that runs; repeat "
            f"that with --deploy, or give the checkpoint that was quantized{origin}"
        )
    # Models for pairs are masked-language checkpoints, with their head beside them.
    if kind == "tuned" and (classifies(folder) or not (folder / "config.json").is_file()):
        raise InputError(
            f"{folder}: is a tuned model, which `frugalfm predict`, `embed`, `outliers` and "
            f"`quantize` take; give a pretrained checkpoint, such as the tuned one's own{origin}"
        )
    if kind not in {None, "checkpoint", "tuned"}:
        raise InputError(f"{folder}: is an artifact of kind {kind!r}, and no checkpoint")


def _read_json(path: Path) -> dict[str, Any]:
    """Read an object; none where there is no file, or a damaged one."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a local folder, running none of its code."""
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    return found


def load_encoder(
    folder: Path, *, device: torch.device | str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a masked-language model and its tokenizer.

    Parameters
    ----------
    folder
        A Hugging Face folder with safetensors weights.
    device
        Where the model goes.

    Returns
    -------
    tuple
        The model, in fp32 and evaluation mode, and its tokenizer.

    Raises
    ------
    InputError
        The folder is not a checkpoint, is damaged, or holds keys or shapes that the architecture
        does not, or lacks some that it needs; or the architecture cannot run the attention that
        config.json names.
    """
    check_checkpoint(folder)
    try:
        with _silenced(*_TALKATIVE):
            model, report = AutoModelForMaskedLM.from_pretrained(
                folder,
                output_loading_info=True,
                # So that the report names the key; any mismatch is refused below.
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=torch.float32,
            )
        tokenizer = load_tokenizer(folder)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None
    except Exception as error:
        raise InputError(f"{folder}: cannot be loaded ({_first_line(error)})") from error
    _refuse_unmatched(folder, report)
    require_attention(model, getattr(model.config, "attention", None) or "softmax")
    _own_storage(model)
    return model.eval().to(device), tokenizer


def save_encoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str = ""
) -> None:
    """Write weights (safetensors), config, tokenizer and, if given, a model card."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if card:
        (Path(folder) / "README.md").write_text(card)


def _own_storage(model: PreTrainedModel) -> None:
    """Copy parameters that are parts of larger tensors.

    transformers cuts NomicBERT's fused projections in three views, which safetensors refuses to
    save.
    """
    for parameter in model.parameters():
        if parameter.untyped_storage().nbytes() > parameter.numel() * parameter.element_size():
            parameter.data = parameter.data.clone()


def _refuse_unmatched(folder: Path, report: dict[str, object]) -> None:
    problems = []
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        keys = sorted(str(key) for key in report.get(what, ()))  # type: ignore[attr-defined]
        if keys:
            shown = ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
            problems.append(f"{len(keys)} {what.replace('_', ' ')}: {shown}")
    if problems and classifies(folder):
        raise InputError(
            f"{folder}: is a model with a head for a task, which `frugalfm predict`, `embed`, "
            "`outliers` and `quantize` take; give a pretrained checkpoint"
        )
    if problems:
        raise InputError(
            f"{folder}: the weights do not fit the architecture in config.json; "
            + "; ".join(problems)
        )


@contextlib.contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """Keep transformers' own load reports off the screen: ours says the same in one line."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Encoders with a head for a task: transformers' classes, over a trunk that was pretrained.

What is tuned is thereby a plain Hugging Face folder: ``AutoModelForSequenceClassification`` and
``AutoModelForTokenClassification`` load it, and pipelines and PEFT know it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from frugalfm.encoders.checkpoints import check_weights
from frugalfm.encoders.pieces import DnaBert2ForTokenClassification
from frugalfm.errors import InputError

__all__ = [
    "Pooling",
    "Problem",
    "add_head",
    "choose_pooling",
    "final_linear",
    "head_names",
    "head_parameters",
    "load_head",
    "residue_logits",
    "stretch_head",
]

Problem = Literal["single_label", "multi_label", "regression", "token"]
Pooling = Literal["auto", "mean", "cls"]
_OURS = ("esm", "esmc", "dnabert2")  # with a class of ours over the mean
_THEIRS = ("modernbert",)  # with a setting for it in transformers' own
_PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
    "token": "single_label_classification",
}


def add_head(
    encoder: PreTrainedModel,
    problem: Problem,
    classes: Sequence[str],
    seed: int = 0,
    pooling: Pooling = "auto",
    pieces: Sequence[int] | None = None,
) -> PreTrainedModel:
    """Put a new head for a task on the trunk of a masked-language model.

    For residues that is a linear layer on each; for sequences one on the mean of their residues,
    or the architecture's own small network on the first token.

    Parameters
    ----------
    encoder
        Whose trunk is copied.
    problem
        What is predicted.
    classes
        Names of the classes; none for regression.
    seed
        Determines the head's weights.
    pooling
        ``mean`` of the residues, ``cls`` for the first token, or ``auto`` for the former where
        there is one, as :func:`choose_pooling` tells. Labels of residues pool nothing.
    pieces
        Where tokens hold several residues: how many each does, in the order of ids.

    Raises
    ------
    InputError
        There is no such head for the architecture, or the trunks do not match.
    """
    chosen = choose_pooling(encoder.config.model_type, problem, pooling)
    names = list(classes) or ["value"]
    config = copy.deepcopy(encoder.config)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    config.problem_type = _PROBLEM_TYPES[problem]
    if chosen is not None and config.model_type in _OURS:
        config.pooling = chosen
    elif chosen is not None:
        config.classifier_pooling = chosen
    if problem == "token" and pieces is not None:
        config.longest_piece = max(pieces)
    model = _create(config, problem, seed)
    if problem == "token" and (pieces is not None or config.model_type == "dnabert2"):
        _tell_pieces(model, pieces)
    state = getattr(encoder, encoder.base_model_prefix).state_dict()
    trunk = getattr(model, model.base_model_prefix)
    missing, unexpected = trunk.load_state_dict(state, strict=False)
    new = {name.split(".")[0] for name in missing}
    if unexpected or new - {"pooler"}:
        raise InputError(
            f"the trunk of {type(model).__name__} is not that of {type(encoder).__name__}: "
            f"{', '.join([*missing, *unexpected][:5])}"
        )
    return model


def choose_pooling(
    model_type: str, problem: Problem, pooling: Pooling
) -> Literal["mean", "cls"] | None:
    """Say what a new head would read: the mean, the first token, or None where that is fixed.

    Raises
    ------
    InputError
        The mean is asked for, and there is no such head.
    """
    if problem == "token" or model_type not in _OURS + _THEIRS:
        if pooling == "mean":
            raise InputError(
                f"a {model_type!r} model for {problem} has no head over the mean; "
                "leave out --pooling"
            )
        return None
    return "cls" if pooling == "cls" else "mean"


def head_names(model: nn.Module) -> list[str]:
    """Names of the modules that are the head: all beside the trunk, and the trunk's pooler.

    A model that is not transformers' own calls its head so.
    """
    if not isinstance(model, PreTrainedModel):
        return ["head"]
    prefix = model.base_model_prefix
    names = [name for name, _ in model.named_children() if name != prefix]
    names = [name for name in names if any(True for _ in model.get_submodule(name).parameters())]
    pooler = getattr(getattr(model, prefix), "pooler", None)
    return names + ([f"{prefix}.pooler"] if pooler is not None else [])


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters of a head that is trained, in PEFT's wrapping or without."""
    if any(".modules_to_save." in name for name, _ in model.named_modules()):
        return [
            parameter
            for name, parameter in model.named_parameters()
            if ".modules_to_save." in name and parameter.requires_grad
        ]
    modules = [model.get_submodule(name) for name in head_names(model)]
    return [parameter for module in modules for parameter in module.parameters()]


def final_linear(model: nn.Module, outputs: int) -> nn.Linear | None:
    """Find the linear that makes the logits: the last one that is trained, if there is one."""
    found = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear)
        and module.out_features == outputs
        and module.weight.requires_grad
    ]
    return found[-1] if found else None


@torch.no_grad()
def stretch_head(model: nn.Module, outputs: int, scale: float, shift: float) -> None:
    """Make the head give ``scale * output + shift``: from standardised values to real ones."""
    linear = final_linear(model, outputs)
    assert linear is not None
    linear.weight.mul_(scale)
    linear.bias.mul_(scale).add_(shift)


def load_head(folder: Path) -> PreTrainedModel:
    """Load a tuned model that is whole (not an adapter), in fp32 and evaluation mode.

    Raises
    ------
    InputError
        No such checkpoint, or its weights are not those that its config asks for.
    """
    check_weights(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    auto: Any = (
        AutoModelForTokenClassification
        if any("TokenClassification" in name for name in config.architectures or ())
        else AutoModelForSequenceClassification
    )
    model, report = auto.from_pretrained(
        folder,
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        dtype=torch.float32,
    )
    wrong = sorted(map(str, [*report["missing_keys"], *report["unexpected_keys"]]))
    if wrong:
        raise InputError(f"{folder}: holds no tuned model; unmatched keys: {', '.join(wrong[:5])}")
    tuned: PreTrainedModel = model.eval()
    return tuned


def _create(config: PreTrainedConfig, problem: Problem, seed: int) -> PreTrainedModel:
    auto: Any = (
        AutoModelForTokenClassification
        if problem == "token"
        else AutoModelForSequenceClassification
    )
    if type(config) not in auto._model_mapping:  # noqa: SLF001 - transformers has no other way
        raise InputError(
            f"transformers has no head for {'residues' if problem == 'token' else 'sequences'} "
            f"of a {config.model_type!r} model"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(config)
    return model.eval()


def _tell_pieces(model: PreTrainedModel, pieces: Sequence[int] | None) -> None:
    if pieces is None or not isinstance(model, DnaBert2ForTokenClassification):
        raise InputError(
            f"labels of residues with a {model.config.model_type!r} model need a tokenizer of "
            + ("pieces" if pieces is None else "one token a residue; dnabert2 takes pieces, too")
        )
    model.set_pieces(pieces)


def residue_logits(logits: Tensor, lengths: Sequence[int]) -> Tensor:
    """Take the logits of residues out of a padded batch, first sequence first.

    Parameters
    ----------
    logits
        Shape ``(batch, width, classes)``; the residues follow one special token.
    lengths
        Residues of each sequence.
    """
    return torch.cat([row[1 : length + 1] for row, length in zip(logits, lengths, strict=True)])

"""Low-rank adapters through PEFT: on a frozen encoder (LoRA), or on one in 4 bits.

QLoRA (Dettmers et al. 2023) freezes the linears of the layers in NF4 with double quantization;
LoftQ (Li et al. 2023) chooses adapter and 4-bit weight together, so that their sum starts near
the weight that was there. The quantized layers are bitsandbytes', on CPU and CUDA.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from frugalfm.artifacts import fingerprint, read_manifest, write_json
from frugalfm.encoders.checkpoints import load_encoder
from frugalfm.encoders.heads import Pooling, Problem, add_head, head_names
from frugalfm.errors import InputError
from frugalfm.tasks.kinds import PAIRS, Kind, is_map
from frugalfm.tokens.codec import Codec
from frugalfm.training.four_bit import (
    plain_name,
    quantize_linear,
    quantized_layers,
    replace_module,
    restore_weights,
    split_weight,
    to_dense,
)
from frugalfm.training.labelled import piece_sizes
from frugalfm.training.pairs import PairOrder, make_pair_model
from frugalfm.training.targets import find_layer_linears, find_targets

__all__ = [
    "ADAPTERS",
    "AdapterRecipe",
    "Method",
    "add_adapter",
    "check_method",
    "find_misreading",
    "load_adapter",
    "merge_adapter",
    "put_head",
    "save_adapter",
    "task_type",
]

Method = Literal["full", "lora", "qlora", "loftq"]
_REMEDY = "pip install 'frugalfm[tune]'"
_BASE_FILE = "base_4bit.safetensors"
_CONFIG_FILE = "adapter_config.json"


@dataclass(frozen=True)
class AdapterRecipe:
    """Size and kind of an adapter.

    Attributes
    ----------
    method
        ``lora``, ``qlora`` or ``loftq``.
    rank, alpha, dropout
        Of the low-rank product; it is scaled by ``alpha / rank``.
    iterations
        Of LoftQ's alternation between quantization and singular values.
    """

    method: Method
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    iterations: int = 5

    def changed(self, rank: int | None) -> AdapterRecipe:
        """Take another rank, and an alpha that keeps the scale."""
        return (
            self if rank is None else replace(self, rank=rank, alpha=rank * self.alpha // self.rank)
        )


ADAPTERS: dict[str, AdapterRecipe] = {
    "lora": AdapterRecipe("lora"),
    "qlora": AdapterRecipe("qlora"),
    "loftq": AdapterRecipe("loftq", rank=16, alpha=16, dropout=0.1),
}
"""GERM's settings (arXiv 2505.00598)."""


def check_method(method: Method) -> None:
    """Refuse a method whose libraries are not installed.

    Raises
    ------
    InputError
        Names the extra to install.
    """
    needed = {"full": (), "lora": ("peft",)}.get(method, ("peft", "bitsandbytes"))
    for name in needed:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--method {method} needs {name}, which is not installed; {_REMEDY}")


def add_adapter(
    model: nn.Module,
    recipe: AdapterRecipe,
    *,
    task_type: str | None = "SEQ_CLS",
    targets: Sequence[str] = (),
    seed: int = 0,
    compute: torch.dtype = torch.float32,
) -> nn.Module:
    """Freeze a model but for its head, and put adapters on linears of its layers.

    Parameters
    ----------
    model
        With a head; changed in place.
    recipe
        The adapter.
    task_type
        PEFT's name for what the head does; None where it has none.
    targets
        Ends of the names of the linears to adapt; by default attention's projections, as
        :func:`~frugalfm.training.targets.find_targets` finds them.
    seed
        Determines the adapter's weights.
    compute
        Arithmetic of the 4-bit layers.

    Returns
    -------
    Module
        PEFT's model.
    """
    from peft import LoraConfig, get_peft_model

    adapted_names = find_targets(model, targets)
    starts = {}
    if recipe.method != "lora":
        if recipe.method == "loftq":
            for name in adapted_names:
                linear: Any = model.get_submodule(name)
                starts[name] = split_weight(linear.weight, recipe.rank, recipe.iterations)
        for name in find_layer_linears(model):
            quantize_linear(model, name, compute, starts[name][0] if name in starts else None)
        model.is_loaded_in_4bit = True  # type: ignore[assignment]  # by which PEFT knows it
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=adapted_names,
        modules_to_save=head_names(model),
        task_type=task_type,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted: nn.Module = get_peft_model(model, config)
    for name, (_, left, right) in starts.items():
        layer: Any = model.get_submodule(name)
        with torch.no_grad():
            # LoftQ's product is the whole residual, whatever the scale of the adapter.
            layer.lora_B["default"].weight.copy_(left / layer.scaling["default"])
            layer.lora_A["default"].weight.copy_(right)
    return adapted


def task_type(kind: Kind) -> str | None:
    """Give PEFT's name for what a head does; None where it has none."""
    if kind == "token":
        return "TOKEN_CLS"
    return None if is_map(kind) or kind in PAIRS else "SEQ_CLS"


def find_misreading(model: nn.Module, checkpoint: PreTrainedConfig, method: Method) -> str | None:
    """Say why PEFT alone would not make the model that was tuned; None if it would.

    It loads the checkpoint in transformers' class for the task and puts adapter and head on it.

    Parameters
    ----------
    model
        With the adapter.
    checkpoint
        Config of the encoder that was adapted.
    method
        Of the adapter.
    """
    if method != "lora":
        return "the weights that it adapts are in 4 bits"
    adapted: Any = model
    head = adapted.get_base_model()
    if not isinstance(head, PreTrainedModel):
        return "its head for pairs is no class of transformers"
    if getattr(head.config, "pooling", None) == "mean":
        return "its head reads the mean of the residues"
    names = ("classifier_pooling", "longest_piece")  # of ModernBERT, and of labels of pieces
    if any(getattr(head.config, name, None) != getattr(checkpoint, name, None) for name in names):
        return "its head is not the one that the checkpoint's config makes"
    return None


def save_adapter(
    model: nn.Module, folder: Path, method: Method, misreading: str | None = None
) -> None:
    """Write a PEFT folder with adapter and head; for LoftQ the 4-bit weights it belongs to too.

    Parameters
    ----------
    model, method
        What to write.
    folder
        Where.
    misreading
        Why PEFT alone would predict otherwise, as :func:`find_misreading` tells. It would do so
        without a word: keys and shapes of another head can match. So its config then names a task
        type that PEFT refuses, with the reason and the remedy in it; :func:`load_adapter` puts
        the right one in its place.
    """
    adapted: Any = model
    # PEFT would otherwise ask the hub whether the vocabulary has changed.
    adapted.save_pretrained(folder, save_embedding_layers=False)
    if misreading is not None:
        path = Path(folder) / _CONFIG_FILE
        known = adapted.peft_config["default"].task_type
        refused = (
            f"{'' if known is None else f'{known} '}that PEFT alone would misread, as "
            f"{misreading}; load it with frugalfm.training.tuned.load_tuned, or write a whole "
            "model with `frugalfm tune --merge`"
        )
        write_json(path, json.loads(path.read_text()) | {"task_type": refused})
    if method == "loftq":  # its 4-bit weights are not simply those of the checkpoint
        state = {
            f"{plain_name(name)}.{key}": value.contiguous().cpu()
            for name, layer in quantized_layers(model)
            for key, value in layer.state_dict().items()
            if key.startswith("weight")
        }
        save_file(state, Path(folder) / _BASE_FILE)


def load_adapter(
    folder: Path, *, base: Path | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load what ``frugalfm tune`` wrote as an adapter, on the checkpoint it was trained on.

    Parameters
    ----------
    folder
        The adapter.
    base
        The checkpoint; by default where it was when the adapter was trained.
    device
        Where the model goes.

    Raises
    ------
    InputError
        No adapter of ``frugalfm tune``, or the checkpoint is another one or gone.
    """
    manifest = read_manifest(folder, "tuned")
    summary, source = manifest["summary"], manifest["inputs"]["checkpoint"]
    method = summary["tuning"]["method"]
    if not (Path(folder) / _CONFIG_FILE).is_file():
        raise InputError(f"{folder}: holds a whole model, not an adapter")
    check_method(method)
    path = Path(base or source["path"])
    if not path.is_dir():
        raise InputError(
            f"{path}: the checkpoint that {folder} adapts is not there; name it (--base)"
        )
    if fingerprint(path) != source["sha256"]:
        raise InputError(f"{path}: is not the checkpoint that {folder} was trained on")
    from peft import PeftConfig, PeftModel

    encoder, tokenizer = load_encoder(path)
    model: Any = put_head(
        encoder,
        summary["kind"],
        summary["classes"],
        summary["tuning"]["pooling"],
        summary["tuning"].get("order", "symmetric"),
        Codec.from_tokenizer(tokenizer),
    )
    if method != "lora":
        compute = torch.bfloat16 if manifest["config"]["precision"] == "bf16" else torch.float32
        for name in find_layer_linears(model):
            quantize_linear(model, name, compute)
        model.is_loaded_in_4bit = True
        if method == "loftq":
            restore_weights(model, load_file(Path(folder) / _BASE_FILE), _BASE_FILE)
    found = PeftConfig.from_json_file(Path(folder) / _CONFIG_FILE)
    config = PeftConfig.from_peft_type(**found | {"task_type": task_type(summary["kind"])})
    adapted: nn.Module = PeftModel.from_pretrained(model, str(folder), config=config)
    return adapted.eval().to(device), tokenizer


def put_head(
    encoder: PreTrainedModel,
    kind: Kind,
    classes: Sequence[str],
    pooling: Pooling = "auto",
    order: PairOrder = "symmetric",
    codec: Codec | None = None,
    seed: int = 0,
) -> nn.Module:
    """Put a new head on an encoder for a task of some kind.

    Parameters
    ----------
    encoder
        A masked-language model; left as it is.
    kind, classes
        Of the task.
    pooling, order
        Of heads for sequences, and for pairs of sequences.
    codec
        Of the encoder's tokenizer, for labels of residues if its tokens hold several.
    seed
        Determines the head's weights.
    """
    if is_map(kind):
        return make_pair_model(encoder, "positions", seed=seed)
    if kind in PAIRS:
        return make_pair_model(encoder, "sequences", len(classes) or 1, order=order, seed=seed)
    pieces = None if codec is None else piece_sizes(codec)
    model: nn.Module = add_head(encoder, _PROBLEMS[kind], classes, seed, pooling, pieces)
    return model


_PROBLEMS: dict[str, Problem] = {
    "classification": "single_label",
    "multilabel": "multi_label",
    "regression": "regression",
    "token": "token",
}


@torch.no_grad()
def merge_adapter(model: nn.Module) -> nn.Module:
    """Add the adapter to the weights it adapts; 4-bit weights become fp32 first, unrounded.

    Returns
    -------
    Module
        The model beneath the adapter, which now computes the same by itself.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    adapted: Any = model
    base: Any = adapted.get_base_model()
    for name, layer in [*base.named_modules()]:
        found: Any = layer
        if isinstance(layer, ModulesToSaveWrapper):
            replace_module(base, name, found.modules_to_save["default"])
        elif isinstance(layer, LoraLayer):
            dense = to_dense(found.get_base_layer())
            dense.weight += found.get_delta_weight("default").to(dense.weight)
            replace_module(base, name, dense)
    for name, layer in [*quantized_layers(base)]:
        replace_module(base, name, to_dense(layer))
    if hasattr(base, "is_loaded_in_4bit"):
        del base.is_loaded_in_4bit
    merged: nn.Module = base.eval()
    return merged

"""Low-rank adapters through PEFT: on a frozen encoder (LoRA), or on one in 4 bits.

QLoRA (Dettmers et al. 2023) freezes the linears of the layers in NF4 with double quantization;
LoftQ (Li et al. 2023) chooses adapter and 4-bit weight together, so that their sum starts near
the weight that was there. The quantized layers are bitsandbytes', on CPU and CUDA.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalfm.artifacts import fingerprint, read_manifest
from frugalfm.encoders.anatomy import describe_encoder
from frugalfm.encoders.checkpoints import load_encoder
from frugalfm.encoders.heads import Problem, add_head, head_names
from frugalfm.errors import InputError

__all__ = [
    "ADAPTERS",
    "AdapterRecipe",
    "Method",
    "add_adapter",
    "check_method",
    "load_adapter",
    "merge_adapter",
    "save_adapter",
]

Method = Literal["full", "lora", "qlora", "loftq"]
_REMEDY = "pip install 'frugalfm[tune]'"
_BASE_FILE = "base_4bit.safetensors"


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
    model: PreTrainedModel,
    recipe: AdapterRecipe,
    *,
    token: bool,
    seed: int = 0,
    compute: torch.dtype = torch.float32,
) -> nn.Module:
    """Freeze a model but for its head, and put adapters on the attention's projections.

    Parameters
    ----------
    model
        With a head; changed in place.
    recipe
        The adapter.
    token
        Whether the head is one for residues.
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

    anatomy = describe_encoder(model)
    targets = list(dict.fromkeys(n for b in anatomy.blocks for n in (b.query, b.key, b.value)))
    starts = {}
    if recipe.method != "lora":
        if recipe.method == "loftq":
            starts = {name: _split(model.get_submodule(name), recipe) for name in targets}
        for name in [name for block in anatomy.blocks for name in block.linears]:
            _quantize(model, name, compute, starts[name][0] if name in starts else None)
        model.is_loaded_in_4bit = True  # by which PEFT knows it
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=targets,
        modules_to_save=head_names(model),
        task_type="TOKEN_CLS" if token else "SEQ_CLS",
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


def save_adapter(model: nn.Module, folder: Path, method: Method) -> None:
    """Write a PEFT folder with adapter and head; for LoftQ the 4-bit weights it belongs to too."""
    adapted: Any = model
    # PEFT would otherwise ask the hub whether the vocabulary has changed.
    adapted.save_pretrained(folder, save_embedding_layers=False)
    if method == "loftq":  # its 4-bit weights are not simply those of the checkpoint
        state = {
            f"{_plain(name)}.{key}": value.contiguous().cpu()
            for name, layer in _quantized(model)
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
    if not (Path(folder) / "adapter_config.json").is_file():
        raise InputError(f"{folder}: holds a whole model, not an adapter")
    check_method(method)
    path = Path(base or source["path"])
    if not path.is_dir():
        raise InputError(f"{path}: the checkpoint that {folder} adapts is not there; say where")
    if fingerprint(path) != source["sha256"]:
        raise InputError(f"{path}: is not the checkpoint that {folder} was trained on")
    from peft import PeftModel

    encoder, tokenizer = load_encoder(path)
    problem = problem_of(summary["kind"])
    model = add_head(encoder, problem, summary["classes"], pooling=summary["tuning"]["pooling"])
    if method != "lora":
        compute = torch.bfloat16 if manifest["config"]["precision"] == "bf16" else torch.float32
        for name in [n for block in describe_encoder(model).blocks for n in block.linears]:
            _quantize(model, name, compute)
        model.is_loaded_in_4bit = True
        if method == "loftq":
            _restore(model, load_file(Path(folder) / _BASE_FILE))
    adapted: nn.Module = PeftModel.from_pretrained(model, str(folder))
    return adapted.eval().to(device), tokenizer


def problem_of(kind: str) -> Problem:
    """Say what a head has to do for a task of some kind."""
    problems: dict[str, Problem] = {
        "classification": "single_label",
        "multilabel": "multi_label",
        "regression": "regression",
        "token": "token",
    }
    return problems[kind]


@torch.no_grad()
def merge_adapter(model: nn.Module) -> PreTrainedModel:
    """Add the adapter to the weights it adapts; 4-bit weights become fp32 first, unrounded.

    Returns
    -------
    PreTrainedModel
        The model beneath the adapter, which now computes the same by itself.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    adapted: Any = model
    base: PreTrainedModel = adapted.get_base_model()
    for name, layer in [*base.named_modules()]:
        found: Any = layer
        if isinstance(layer, ModulesToSaveWrapper):
            _replace(base, name, found.modules_to_save["default"])
        elif isinstance(layer, LoraLayer):
            dense = _to_dense(found.get_base_layer())
            dense.weight += found.get_delta_weight("default").to(dense.weight)
            _replace(base, name, dense)
    for name, layer in [*_quantized(base)]:
        _replace(base, name, _to_dense(layer))
    if hasattr(base, "is_loaded_in_4bit"):
        del base.is_loaded_in_4bit
    return base.eval()


def _quantize(
    model: nn.Module, name: str, compute: torch.dtype, weight: Tensor | None = None
) -> None:
    """Put a frozen NF4 layer, doubly quantized, in the place of a linear."""
    import bitsandbytes as bnb

    linear: Any = model.get_submodule(name)
    layer = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=compute,
        quant_type="nf4",
    )
    layer.weight = _to_nf4(linear.weight if weight is None else weight)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    # On CPUs with AVX512-BF16 an evaluation repacks the weights for good, and every gradient
    # after it is wrong without a word.
    layer.support_avx512bf16_for_cpu = False
    _replace(model, name, layer)


def _to_nf4(weight: Tensor) -> Any:
    import bitsandbytes as bnb

    found: Any = bnb.nn.Params4bit(
        weight.detach().float().cpu().clone().contiguous(),
        requires_grad=False,
        quant_type="nf4",
        compress_statistics=True,
    )
    return found.to("cpu")


def _from_nf4(weight: Any) -> Tensor:
    import bitsandbytes as bnb

    found: Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return found.float()


@torch.no_grad()
def _split(linear: nn.Module, recipe: AdapterRecipe) -> tuple[Tensor, Tensor, Tensor]:
    """Split a weight by LoftQ: what to quantize, and the two factors of what that leaves out.

    From a zero product on, in turn: quantize the weight less the product; let the product be the
    best one of its rank (truncated singular values) for the weight less what was quantized.
    """
    linear_: Any = linear
    weight = linear_.weight.detach().float().cpu()
    product = torch.zeros_like(weight)
    for _ in range(recipe.iterations):
        kept = weight - product
        u, s, v = torch.linalg.svd(weight - _from_nf4(_to_nf4(kept)), full_matrices=False)
        root = s[: recipe.rank].sqrt()
        left, right = u[:, : recipe.rank] * root, root[:, None] * v[: recipe.rank]
        product = left @ right
    return kept, left, right


def _restore(model: nn.Module, state: dict[str, Tensor]) -> None:
    import bitsandbytes as bnb

    for name, layer in _quantized(model):
        prefix = f"{_plain(name)}.weight"
        parts = {key: value for key, value in state.items() if key.startswith(f"{prefix}.")}
        if prefix not in state or not parts:
            raise InputError(f"{_BASE_FILE}: holds no {prefix}; tune again")
        layer.weight = bnb.nn.Params4bit.from_prequantized(
            state[prefix],
            {key.removeprefix(f"{prefix}."): v for key, v in parts.items()},
            device="cpu",
        )


def _quantized(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield all 4-bit layers (not PEFT's of the same name) with their names."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    import bitsandbytes as bnb

    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            yield name, module


def _to_dense(layer: Any) -> nn.Linear:
    dense = nn.Linear(
        layer.in_features, layer.out_features, bias=layer.bias is not None,
        device=layer.weight.device,
    )  # fmt: skip
    four_bit = hasattr(layer.weight, "quant_state")
    dense.weight.copy_(_from_nf4(layer.weight) if four_bit else layer.weight)
    if layer.bias is not None:
        dense.bias.copy_(layer.bias)
    return dense


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _plain(name: str) -> str:
    """Take PEFT's wrapping out of a module's name."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")

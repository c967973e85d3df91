"""Linears in 4 bits: bitsandbytes' NF4 with double quantization, and LoftQ's split of a weight.

They run on CPU and CUDA; the quantized weight is the same on both.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError

__all__ = [
    "from_nf4",
    "plain_name",
    "quantize_linear",
    "quantized_layers",
    "replace_module",
    "restore_weights",
    "split_weight",
    "to_dense",
    "to_nf4",
]


def quantize_linear(
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
    layer.weight = to_nf4(linear.weight if weight is None else weight)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    # On CPUs with AVX512-BF16 an evaluation repacks the weights for good, and every gradient
    # after it is wrong without a word.
    layer.support_avx512bf16_for_cpu = False
    replace_module(model, name, layer)


def to_nf4(weight: Tensor) -> Any:
    """Quantize a weight; it stays on the CPU."""
    import bitsandbytes as bnb

    found: Any = bnb.nn.Params4bit(
        weight.detach().float().cpu().clone().contiguous(),
        requires_grad=False,
        quant_type="nf4",
        compress_statistics=True,
    )
    return found.to("cpu")


def from_nf4(weight: Any) -> Tensor:
    """Undo :func:`to_nf4`, but for the rounding; fp32."""
    import bitsandbytes as bnb

    found: Tensor = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return found.float()


@torch.no_grad()
def split_weight(weight: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split a weight by LoftQ: what to quantize, and the two factors of what that leaves out.

    From a zero product on, in turn: quantize the weight less the product; let the product be the
    best one of its rank (truncated singular values) for the weight less what was quantized.

    Returns
    -------
    kept, left, right
        Shapes ``(out, in)``, ``(out, rank)``, ``(rank, in)``.
    """
    weight = weight.detach().float().cpu()
    product = torch.zeros_like(weight)
    for _ in range(iterations):
        kept = weight - product
        u, s, v = torch.linalg.svd(weight - from_nf4(to_nf4(kept)), full_matrices=False)
        root = s[:rank].sqrt()
        left, right = u[:, :rank] * root, root[:, None] * v[:rank]
        product = left @ right
    return kept, left, right


def restore_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Give all 4-bit layers their weights as they were saved, with what scales them.

    Raises
    ------
    InputError
        A layer's is not there; names the `source`.
    """
    import bitsandbytes as bnb

    for name, layer in quantized_layers(model):
        prefix = f"{plain_name(name)}.weight"
        parts = {key: value for key, value in state.items() if key.startswith(f"{prefix}.")}
        if prefix not in state or not parts:
            raise InputError(f"{source}: holds no {prefix}; tune again")
        layer.weight = bnb.nn.Params4bit.from_prequantized(
            state[prefix],
            {key.removeprefix(f"{prefix}."): v for key, v in parts.items()},
            device="cpu",
        )


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield all 4-bit layers (not PEFT's of the same name) with their names."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    import bitsandbytes as bnb

    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            yield name, module


@torch.no_grad()
def to_dense(layer: Any) -> nn.Linear:
    """Make a plain fp32 linear of one in 4 bits or any other; the weight stays as it is rounded."""
    dense = nn.Linear(
        layer.in_features, layer.out_features, bias=layer.bias is not None,
        device=layer.weight.device,
    )  # fmt: skip
    four_bit = hasattr(layer.weight, "quant_state")
    dense.weight.copy_(from_nf4(layer.weight) if four_bit else layer.weight)
    if layer.bias is not None:
        dense.bias.copy_(layer.bias)
    return dense


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where another of this name is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def plain_name(name: str) -> str:
    """Take PEFT's wrapping out of a module's name."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")

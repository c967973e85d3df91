"""Optimizers by name, and the learning-rate schedule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

__all__ = ["OptimizerName", "make_optimizers", "scale_learning_rate", "update"]

OptimizerName = Literal["adamw", "muon"]


def make_optimizers(
    model: nn.Module,
    name: OptimizerName,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
) -> list[Optimizer]:
    """Make the optimizers that together update every parameter.

    ``muon`` orthogonalises the updates of the weight matrices inside the blocks (Jordan et al.
    2024), scaled to AdamW's RMS so that learning rates carry over; all else is AdamW's.
    Weight decay spares biases, LayerNorms, embeddings and attention's gates.

    Parameters
    ----------
    model
        The model; parameters that need no gradient are left out.
    name
        ``adamw`` or ``muon``.
    learning_rate, weight_decay
        At the schedule's peak.
    betas
        Of AdamW; pretraining's by default.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    matrices, inner, rest = [], [], []
    for parameter_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # A gate is a vector per head, not a map between spaces.
        gate = parameter_name.endswith(".gate_weight")
        if parameter.ndim != 2 or gate or id(parameter) in embeddings:
            rest.append(parameter)
        elif name == "muon" and re.search(r"\.layers?\.\d+\.", parameter_name):
            inner.append(parameter)
        else:
            matrices.append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[Optimizer] = []
    if groups:
        # One kernel for all of an update, where launching kernels is what takes the time.
        on_gpu = all(p.device.type == "cuda" for p in (*matrices, *rest))
        optimizers.append(
            torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=on_gpu or None)
        )
    if inner:
        optimizers.append(
            torch.optim.Muon(
                inner, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers


def update(optimizers: Sequence[Optimizer], learning_rate: float) -> None:
    """Take one step at a learning rate with all optimizers, and drop the gradients.

    A group of parameters may have a ``factor`` of the learning rate.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("factor", 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def scale_learning_rate(step: int, steps: int, warmup: float) -> float:
    """Factor of the peak learning rate at one step: linear warm-up, then linear decay.

    Parameters
    ----------
    step
        From 0 to ``steps - 1``.
    steps
        Of the whole run.
    warmup
        Share of the steps that warm up.

    Returns
    -------
    float
        In (0, 1].
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return (steps - step) / max(1, steps - rising + 1)

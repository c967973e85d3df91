"""Where to compute."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from frugalfm.errors import InputError

__all__ = ["Precision", "assign_device", "autocast", "choose_device", "limit_batch"]

Precision = Literal["fp32", "bf16"]

_CPU_TOKENS = 2048


def choose_device(name: str = "auto") -> torch.device:
    """Turn an option into a device that is really there.

    Parameters
    ----------
    name
        ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    InputError
        Another name, or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise InputError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(
                f"device {name!r} is not here ({count} CUDA devices are); use --device auto or cpu"
            )
    return device


def assign_device(device: str) -> str:
    """Turn ``auto`` into the GPU of this process, where a launcher has numbered its processes.

    The number is ``LOCAL_RANK`` (torchrun) or ``SLURM_LOCALID`` (srun); where there are more
    processes than GPUs, they share them.
    """
    numbers = (os.environ.get(name, "") for name in ("LOCAL_RANK", "SLURM_LOCALID"))
    number = next(filter(str.isdigit, numbers), None)
    if device != "auto" or number is None or not torch.cuda.is_available():
        return device
    return f"cuda:{int(number) % torch.cuda.device_count()}"


def limit_batch(batch_tokens: int, device: torch.device) -> int:
    """Tokens of a batch for a forward pass alone: fewer on a CPU, where large ones are slower.

    A batch that stays in the processor's cache runs up to twice as fast (benchmarks/scoring.py).
    """
    return min(batch_tokens, _CPU_TOKENS) if device.type == "cpu" else batch_tokens


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Context of a forward pass: bf16 arithmetic, or nothing special."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()

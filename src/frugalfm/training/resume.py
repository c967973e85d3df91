"""The state of an unfinished run on disk, so that a killed run continues bit by bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.optim import Optimizer

from frugalfm.artifacts import write_json

__all__ = ["load_state", "read_record", "save_state"]

_PREFIX = "state-"


def save_state(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write the state after `step` steps, then remove older ones.

    Nothing random needs saving: batches, masks and dropout are functions of the step. What else
    a run has to remember is its `record`, fit for JSON.
    """
    target = folder / f"{_PREFIX}{step:09d}"
    draft = folder / f".{target.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    save_model(model, str(draft / "model.safetensors"))
    torch.save([optimizer.state_dict() for optimizer in optimizers], draft / "optimizers.pt")
    write_json(draft / "progress.json", {"step": step, "record": record})
    draft.rename(target)
    for older in folder.glob(f"{_PREFIX}*"):
        if older != target:
            shutil.rmtree(older)


def read_record(folder: Path) -> Any:
    """Read what the latest state has on record; None if there is neither."""
    states = sorted(folder.glob(f"{_PREFIX}*"))
    return json.loads((states[-1] / "progress.json").read_text())["record"] if states else None


def load_state(folder: Path, model: nn.Module, optimizers: Sequence[Optimizer]) -> int:
    """Restore the latest state, if any, and return the number of steps done."""
    states = sorted(folder.glob(f"{_PREFIX}*"))
    if not states:
        return 0
    step: int = json.loads((states[-1] / "progress.json").read_text())["step"]
    load_model(model, str(states[-1] / "model.safetensors"))
    # Loaded to the CPU first: the run may continue on another device than it was saved on.
    saved = torch.load(states[-1] / "optimizers.pt", weights_only=True, map_location="cpu")
    for optimizer, state in zip(optimizers, saved, strict=True):
        optimizer.load_state_dict(state)
    return step

"""Turns a pickled checkpoint into safetensors; a program of its own, run in another process.

A pickle can run any code when it is opened. The process that opens it hands back nothing but a
safetensors file: tensors by name, and the simple values of its ``args`` as JSON in the metadata.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

__all__ = ["convert"]


def convert(source: Path, target: Path) -> None:
    """Write the tensors of `source` to `target`.

    Parameters
    ----------
    source
        Pickle of a state dict, or of a dict with a state dict as ``model`` and a Namespace as
        ``args``.
    target
        The safetensors file.
    """
    content = _load(source)
    arguments: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        found = content.get("args") or {}
        arguments = dict(found if isinstance(found, dict) else vars(found))
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise ValueError(f"holds a {type(content).__name__}, not tensors by name")
    strangers = [name for name, tensor in content.items() if not isinstance(tensor, torch.Tensor)]
    if strangers:
        raise ValueError(f"holds what is no tensor: {', '.join(map(str, strangers[:5]))}")
    # Cloned, because safetensors refuses tensors that share memory.
    tensors = {str(name): tensor.detach().clone().contiguous() for name, tensor in content.items()}
    simple = {k: v for k, v in arguments.items() if isinstance(v, (bool, int, float, str))}
    save_file(tensors, target, metadata={"format": "pt", "args": json.dumps(simple)})


def _load(source: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - whatever it is, opening it fully says it better
        # The user has allowed it.
        return torch.load(source, map_location="cpu", weights_only=False)


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # noqa: BLE001 - the parent reports it
        sys.exit(f"{type(error).__name__}: {error}")

"""Files of foreign checkpoints: tensors out of safetensors and pickles, and folders written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from frugalfm.encoders import unpickle
from frugalfm.encoders.catalogue import adopt_specials
from frugalfm.errors import InputError

__all__ = ["find_pickles", "read_config", "read_weights", "shorten", "write_folder"]

_SAVED = (b"\x80", b"PK\x03\x04")  # of torch.save: a pickle, or a zip archive with one in it
_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")
# What transformers' Trainer leaves beside the weights.
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state")


def read_weights(
    path: Path, folder: Path, allow_pickle: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read all tensors of a checkpoint, and the simple values of a pickle's ``args``.

    Parameters
    ----------
    path
        A file, or a folder whose safetensors, or else pickles, are read.
    folder
        Where an intermediate file may go.
    allow_pickle
        Whether to open pickles, in another process.

    Raises
    ------
    InputError
        There are no weights, a file is damaged or may not be opened, or two hold one tensor.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) or find_pickles(path)
    if not files:
        raise InputError(f"{path}: holds no weights (.safetensors or a pickle)")
    weights: dict[str, Tensor] = {}
    arguments: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".safetensors":
            found, told = _read_safetensors(file)
        else:
            found, told = _read_pickle(file, folder, allow_pickle)
        twice = sorted(weights.keys() & found.keys())
        if twice:
            raise InputError(f"{file}: holds tensors that another file has too: {shorten(twice)}")
        weights |= found
        arguments |= told
    return weights, arguments


def find_pickles(folder: Path) -> list[Path]:
    """List the pickles in a folder that may hold weights."""
    found = sorted(file for pattern in _PICKLES for file in folder.glob(pattern))
    return [file for file in found if not file.name.startswith(_NO_WEIGHTS)]


def _read_pickle(
    file: Path, folder: Path, allow_pickle: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with file.open("rb") as start:
        if not start.read(4).startswith(_SAVED):
            raise InputError(
                f"{file}: is no checkpoint, neither safetensors nor what torch.save writes; name "
                "the file or the folder of one"
            )
    if not allow_pickle:
        raise InputError(
            f"{file}: is a pickle, which can run code when opened; if you trust where it comes "
            "from, --allow-pickle opens it in a process of its own"
        )
    target = folder / "unpickled.safetensors"
    done = subprocess.run(  # noqa: S603 - this very interpreter, and a program of this package
        # -P: the folder of the program must not shadow any library.
        [sys.executable, "-P", unpickle.__file__, str(file.absolute()), str(target.absolute())],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise InputError(f"{file}: cannot be opened ({reason})")
    try:
        return _read_safetensors(target)
    finally:
        target.unlink()


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as handle:
            # Cloned: a mapped file must not be needed after it has been removed.
            weights = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
            arguments = json.loads((handle.metadata() or {}).get("args", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file}: damaged ({error})") from None
    return weights, arguments if isinstance(arguments, dict) else {}


def read_config(path: Path) -> dict[str, Any]:
    """Read a folder's ``config.json``."""
    try:
        config = json.loads((path / "config.json").read_text())
    except OSError:
        raise InputError(f"{path}: is no folder with a config.json") from None
    except ValueError as error:
        raise InputError(f"{path / 'config.json'}: is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path / 'config.json'}: holds no settings")
    return config


def write_folder(
    folder: Path, config: Any, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write a native folder; the config names the special tokens as the tokenizer does."""
    adopt_specials(config, tokenizer).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def shorten(names: list[str]) -> str:
    """Name the first few, for a message."""
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")

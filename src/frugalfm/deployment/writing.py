"""Write a deployed folder: the engine's graph, its weights, config, tokenizer and a card."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from frugalfm.artifacts import write_json
from frugalfm.deployment.engine import ENGINE, OUTPUTS, Precision, engine_version, require_engine
from frugalfm.deployment.lowering import lower
from frugalfm.deployment.runtime import DEPLOYMENT, FORMAT, GRAPH, WEIGHTS
from frugalfm.deployment.support import Execution, plan_execution
from frugalfm.deployment.tracing import encoder_of, trace
from frugalfm.errors import InputError
from frugalfm.quantization.scheme import Scheme

__all__ = ["deploy"]

_GROUPS = (256, 128, 64, 32, 16, 8)
_UNLIMITED = 2**31
_SAFE_BITS = 7


def deploy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | Path,
    scheme: Scheme | None,
    folder: Path,
    *,
    precision: Precision = "bf16",
    task: Mapping[str, Any] | None = None,
    graph: Any = None,
) -> dict[str, Any]:
    """Write a model as a folder that runs without torch.

    Parameters
    ----------
    model
        A transformers model with any head, or one for pairs; in evaluation mode, on the CPU.
    tokenizer
        Its own, or a folder that holds its files.
    scheme
        What makes it small and fast; None leaves it in floating point.
    folder
        Made if it is not there. ``deployment.json`` is written last: a folder without it is no
        deployed model.
    precision
        Of what is not computed with integers. ``bf16`` is rounded as it passes (about three
        digits); without a scheme, weights are stored as fp16 then. ``fp32`` rounds nothing.
    task
        What the head predicts: ``kind``, ``classes`` and what else is to be known of it.
    graph
        What :func:`~frugalfm.deployment.tracing.trace` made of the model, if that was called
        before; used up.

    Returns
    -------
    dict
        Content of ``deployment.json``.

    Raises
    ------
    InputError
        OpenVINO is not installed, cannot run the scheme, or the scheme is another model's.
    FrugalError
        The engine cannot represent the model.
    """
    openvino = require_engine()
    execution = plan_execution(scheme)
    folder = Path(folder)
    if (folder / DEPLOYMENT).exists():
        raise InputError(f"{folder}: holds a deployed model already; choose another folder")
    if graph is None:
        graph = trace(model)
    tables: list[str] = []
    if scheme is not None and execution != "float":
        tables = lower(graph, model, scheme, execution)
    made_here = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        small = execution == "float" and precision == "bf16"
        openvino.save_model(graph, folder / GRAPH, compress_to_fp16=small)
        encoder_of(model).config.save_pretrained(folder)
        _write_tokenizer(tokenizer, folder)
        card = _describe(model, scheme, execution, precision, tokenizer, folder)
        card |= {"tables_at_8_bits": tables, "task": None if task is None else dict(task)}
        write_json(folder / DEPLOYMENT, card)
    except BaseException:
        for name in (GRAPH, WEIGHTS, DEPLOYMENT):
            (folder / name).unlink(missing_ok=True)
        if made_here:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return card


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase | Path, folder: Path) -> None:
    if not isinstance(tokenizer, Path):
        tokenizer.save_pretrained(folder)
        return
    files = [*tokenizer.glob("tokenizer*"), *tokenizer.glob("special_tokens_map.json")]
    if not files:
        raise InputError(f"{tokenizer}: holds no tokenizer")
    for file in files:
        shutil.copy(file, folder / file.name)


def _describe(
    model: nn.Module,
    scheme: Scheme | None,
    execution: Execution,
    precision: Precision,
    tokenizer: PreTrainedTokenizerBase | Path,
    folder: Path,
) -> dict[str, Any]:
    rounded = scheme is not None and execution != "float"
    files = {name: (folder / name).stat().st_size for name in (GRAPH, WEIGHTS)}
    return {
        "format": FORMAT,
        "engine": ENGINE,
        "engine_version": engine_version(),
        "frugalfm": metadata.version("frugalfm"),
        "precision": precision,
        "execution": execution,
        "scheme": f"{scheme.label} ({scheme.method})" if scheme and rounded else None,
        "saturates_without_vnni": execution == "static" and _is_wide(scheme),
        "dynamic_group": _choose_group(model, scheme) if scheme and execution == "dynamic" else 0,
        "outputs": list(OUTPUTS),
        "max_tokens": _read_limit(tokenizer),
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(files.values()),
        "bytes_fp32": 4 * sum(p.numel() for p in model.parameters()),
        "files": files,
    }


def _read_limit(tokenizer: PreTrainedTokenizerBase | Path) -> int | None:
    """Longest sequence that the model takes, in tokens with the special ones, if it is limited."""
    if isinstance(tokenizer, Path):
        path = tokenizer / "tokenizer_config.json"
        found = json.loads(path.read_text()).get("model_max_length") if path.is_file() else None
    else:
        found = tokenizer.model_max_length
    return int(found) if found is not None and found < _UNLIMITED else None


def _is_wide(scheme: Scheme | None) -> bool:
    """Whether two products of weights and 8-bit inputs may be more than 16 bits hold.

    Of 7 bits they are not: twice 255 times 63.
    """
    return scheme is not None and scheme.weights is not None and scheme.weights.bits > _SAFE_BITS


def _choose_group(model: nn.Module, scheme: Scheme) -> int:
    """Choose how many inputs share a grid as they pass: many are fast; all linears must fit."""
    sizes = [model.get_parameter(f"{site}.weight").shape[1] for site in scheme.sites]
    sizes += [scheme.weights.group_size] if scheme.weights and scheme.weights.group_size else []
    common = math.gcd(*sizes)
    return next((group for group in _GROUPS if common % group == 0), common)

"""Run a deployed folder: with openvino and numpy alone, no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frugalfm.deployment.engine import (
    ENGINE,
    OUTPUTS,
    Precision,
    engine_version,
    require_engine,
)
from frugalfm.deployment.processor import lacks_vnni, say_once
from frugalfm.errors import FrugalError, InputError

__all__ = ["DEPLOYMENT", "FORMAT", "DeployedEncoder", "is_deployed", "load_deployed", "read_card"]

DEPLOYMENT, GRAPH, WEIGHTS = "deployment.json", "model.xml", "model.bin"
FORMAT = 1
_HINT = "INFERENCE_PRECISION_HINT"


def is_deployed(folder: Path) -> bool:
    """Whether a folder holds a deployed model, whole or damaged."""
    return (Path(folder) / DEPLOYMENT).is_file()


def read_card(folder: Path) -> dict[str, Any]:
    """Read ``deployment.json`` and check that the model's files are whole and can be run.

    Returns
    -------
    dict
        ``format, engine, engine_version, frugalfm, precision, execution, scheme,
        saturates_without_vnni, dynamic_group, outputs, task, max_tokens, tables_at_8_bits,
        parameters, bytes, bytes_fp32, files``.

    Raises
    ------
    InputError
        No deployed model, a damaged one, one of another engine or of a later version.
    """
    folder = Path(folder)
    path = folder / DEPLOYMENT
    if not path.is_file():
        raise InputError(
            f"{folder}: holds no {DEPLOYMENT}; `frugalfm quantize --deploy` makes a deployed model"
        )
    try:
        card: dict[str, Any] = json.loads(path.read_text())
        made, engine, version = card["format"], card["engine"], card["engine_version"]
        files: dict[str, int] = card["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); deploy again") from None
    if made > FORMAT:
        raise InputError(f"{path}: is of format {made}, this FrugalFM reads {FORMAT}; update it")
    if engine != ENGINE:
        raise InputError(f"{path}: was made for {engine}; this FrugalFM runs {ENGINE}")
    for name, size in files.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes, not {size}"
            raise InputError(f"{file}: {state}; the model is damaged, deploy again")
    installed = engine_version()
    if _as_numbers(version) > _as_numbers(installed):
        raise InputError(
            f"{path}: was made with {ENGINE} {version}, {installed} is installed; "
            f'pip install "{ENGINE}>={version}", or deploy again'
        )
    return card


class DeployedEncoder:
    """A deployed model, compiled for the CPU.

    Parameters
    ----------
    compiled
        By OpenVINO.
    card, config
        Content of ``deployment.json`` and of ``config.json``.
    outputs
        Those that it computes.
    """

    def __init__(
        self, compiled: Any, card: dict[str, Any], config: dict[str, Any], outputs: tuple[str, ...]
    ) -> None:
        self.card, self.config, self.outputs = card, config, outputs
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    @property
    def hidden_size(self) -> int:
        """Width of the states."""
        return int(self.config.get("hidden_size") or self.config["dim"])

    @property
    def task(self) -> dict[str, Any] | None:
        """What the head predicts (``kind``, ``classes``, ...); None of a masked-language model."""
        found: dict[str, Any] | None = self.card["task"]
        return found

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the outputs of one batch.

        Parameters
        ----------
        input_ids, attention_mask
            Integers, shape ``(batch, tokens)``; the mask is 0 at pads.

        Returns
        -------
        dict
            By name, fp32: ``last_hidden_state`` of shape ``(batch, tokens, hidden_size)``;
            ``logits`` as the model's head makes them.
        """
        shape = np.shape(input_ids)
        if len(shape) != 2 or np.shape(attention_mask) != shape or 0 in shape:
            raise InputError(
                f"input_ids of shape {shape} and attention_mask of shape "
                f"{np.shape(attention_mask)}: both are to be (batch, tokens)"
            )
        found = self._request.infer(
            {
                "input_ids": np.ascontiguousarray(input_ids, np.int64),
                "attention_mask": np.ascontiguousarray(attention_mask, np.int64),
            }
        )
        outputs = {name: np.array(found[name]) for name in self.outputs}
        if not all(output.size for output in outputs.values()):
            raise FrugalError(f"{ENGINE} {engine_version()} gave an empty output; update it")
        return outputs

    def count_kernels(self) -> dict[str, int]:
        """Count the products with weights by the precision that they are computed in.

        Such as ``{"u8": 48, "f32": 1}``; ``u8`` and ``i8`` are integers.
        """
        tally: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            if info["layerType"].astype(str) == "FullyConnected":
                # Weights that are unpacked show their own type; the kernel's name does not.
                kernel, kind = (
                    info[key].astype(str).lower() for key in ("primitiveType", "runtimePrecision")
                )
                tally[kind if kernel.endswith("i8") else kernel.rpartition("_")[2]] += 1
        return dict(tally)


def load_deployed(
    folder: Path,
    *,
    outputs: Sequence[str] = ("last_hidden_state",),
    threads: int | None = None,
    precision: Precision | None = None,
) -> DeployedEncoder:
    """Load and compile a deployed model.

    Parameters
    ----------
    folder
        Made by :func:`~frugalfm.deployment.writing.deploy`.
    outputs
        ``last_hidden_state``, ``logits`` or both; what only others need is not computed.
    threads
        To compute with; all that the process may use when None.
    precision
        Of what is not computed with integers, if not the one that it was deployed with; fp32
        where the CPU has no bf16.

    Raises
    ------
    InputError
        OpenVINO is not installed, the folder cannot be used as it is, or not on this CPU.

    Notes
    -----
    Says on stderr, once, if the CPU has no bf16, or if products of 8-bit integers may saturate.
    """
    openvino = require_engine()
    folder = Path(folder)
    card = read_card(folder)
    wanted = tuple(outputs)
    if not wanted or set(wanted) - set(card["outputs"]):
        raise InputError(
            f"{folder}: has the outputs {', '.join(card['outputs'])}, not {', '.join(wanted)}"
        )
    try:
        config = json.loads((folder / "config.json").read_text())
        core = openvino.Core()
        graph = core.read_model(folder / GRAPH)
        precision = precision or card["precision"]
        # In bf16 the engine keeps sums and LayerNorms in fp32 where they lead to an output without
        # a product between, so that a task's head reads exact states only if they are one.
        kept = set(wanted) | (set(OUTPUTS) if card["task"] and precision == "bf16" else set())
        for output in list(graph.outputs):
            if not output.get_names() & kept:
                graph.remove_result(output.get_node())
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # 0: otherwise inputs of unpacked weights are rounded without a word. OpenVINO 2026.4
            # gives empty outputs where it is to round them without VNNI.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(0 if lacks_vnni() else card["dynamic_group"]),
        }
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        line = _last_line(error)
        raise InputError(f"{folder}: cannot be loaded ({line}); deploy again") from error
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    if card["execution"] == "dynamic" and lacks_vnni():
        say_once(
            f"{folder}: this CPU has no VNNI, so inputs are not rounded and products computed in "
            "floating point, which is slower; deploy with --activation-granularity tensor "
            "--weights 7"
        )
    elif card.get("saturates_without_vnni") and lacks_vnni():
        say_once(
            f"{folder}: this CPU has no VNNI, so sums of products of 8-bit integers may saturate "
            "and answers be wrong; deploy with --weights 7, which runs as 8 bits and cannot, or "
            "with --weights 16 --activations 16"
        )
    compiled = _compile(core, graph, options, precision, folder)
    return DeployedEncoder(compiled, card, config, tuple(n for n in OUTPUTS if n in wanted))


def _compile(
    core: Any, graph: Any, options: dict[str, Any], precision: Precision, folder: Path
) -> Any:
    """Compile for this CPU: in fp32 if it has no bf16, or if the engine fails with that."""
    if precision == "bf16":
        problem = "this CPU has no bf16"
        if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            try:
                return core.compile_model(graph, "CPU", options | {_HINT: "bf16"})
            except RuntimeError as error:
                problem = f"{ENGINE} cannot run it in bf16 on this CPU ({_last_line(error)})"
        say_once(f"{folder}: {problem}; computing in fp32")
    try:
        return core.compile_model(graph, "CPU", options | {_HINT: "f32"})
    except RuntimeError as error:
        raise InputError(
            f"{folder}: {ENGINE} {engine_version()} cannot run it on this CPU "
            f"({_last_line(error)}); use the checkpoint that it was made of"
        ) from error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)


def _as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in str(version).split(".") if part.isdigit())

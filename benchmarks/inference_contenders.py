"""Every contender of benchmarks/inference.py, with the model and the data that they share."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]

BASE, ENGINE, OURS = "torch fp32", "OpenVINO fp32", "ours W8A8 smoothquant"
PEER, SMALL = "OpenVINO int8 (nncf)", "ours W4A16"
VOCABULARY = 4096
ROWS = 8


# --- the model and its data ---------------------------------------------------------------------


def make_model(options: argparse.Namespace, folder: Path) -> None:
    """Write the checkpoint, calibration batches, and what errors are measured on."""
    import torch

    from frugalfm.encoders import load_encoder, save_encoder
    from frugalfm.encoders.catalogue import create_from_config
    from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
    from frugalfm.tokens.vocabulary import make_protein_tokenizer

    if options.checkpoint is None:
        config = DnaBert2Config(
            vocab_size=VOCABULARY,
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            intermediate_size=options.feed_forward,
            attention=options.attention,
        )
        # Nothing is tokenised here; the tokenizer only completes the folder.
        model, tokenizer = create_from_config(config, seed=0), make_protein_tokenizer()
    else:
        model, tokenizer = load_encoder(options.checkpoint)
    save_encoder(model, tokenizer, folder / "checkpoint")
    calibration, held_out = draw_batches(options, model.config, tokenizer)
    np.savez(folder / "calibration.npz", *(a for batch in calibration for a in batch))
    ids, mask = held_out
    trunk = getattr(model, model.base_model_prefix)
    with torch.no_grad():
        states = trunk(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    np.savez(folder / "held-out.npz", ids, mask, states.last_hidden_state.numpy())


def draw_batches(
    options: argparse.Namespace, config: Any, tokenizer: Any
) -> tuple[list[Arrays], Arrays]:
    """Padded batches to calibrate with, and one to measure errors on.

    Of sequences if there are any, else of random tokens.
    """
    random = np.random.default_rng(0)
    count = options.calibration + 1
    pad = config.pad_token_id or 0
    if options.data is None:
        low, high = min(5, config.vocab_size // 2), config.vocab_size
        lengths = random.integers(options.tokens // 2, options.tokens + 1, size=(count, ROWS))
        found = [[random.integers(low, high, size=n) for n in row] for row in lengths]
    else:
        from frugalfm.tokens.codec import Codec
        from frugalfm.tokens.inputs import sample_encoded

        codec = Codec.from_tokenizer(tokenizer)
        drawn = sample_encoded(options.data, codec, ROWS * count).tokens
        if len(drawn) < 2 * count:
            raise SystemExit(f"{options.data}: holds {len(drawn)} sequences; give {2 * count}")
        rows = [codec.collate([tokens[: options.tokens - 2]])[0][0] for tokens in drawn]
        found = [rows[i::count] for i in range(count)]
    batches = []
    for rows in found:
        ids = np.full((len(rows), max(map(len, rows))), pad, np.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = tokens
        batches.append((ids, (ids != pad).astype(np.int64)))
    return batches[:-1], batches[-1]


def read_batches(work: Path) -> list[Any]:
    import torch

    from frugalfm.tokens.masking import IGNORED
    from frugalfm.training.data import Batch

    arrays = list(np.load(work / "calibration.npz").values())
    return [
        Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.full(ids.shape, IGNORED), 0)
        for ids, mask in zip(arrays[::2], arrays[1::2], strict=True)
    ]


def load_model(work: Path) -> tuple[Any, Any]:
    from frugalfm.encoders import load_encoder

    return load_encoder(work / "checkpoint")


# --- contenders: how each is made, and how it is run --------------------------------------------


@dataclass(frozen=True)
class Contender:
    """How it is run, how it is made before, and the files that are then the model."""

    load: Callable[[Path], Run]
    make: Callable[[Path], None] | None = None
    files: tuple[str, ...] = ()


def run_torch(model: Any) -> Run:
    import torch

    trunk = getattr(model, model.base_model_prefix)

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            out = trunk(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
        return np.asarray(out.last_hidden_state.float().numpy())

    return run


def torch_dynamic(work: Path) -> Run:
    import torch

    model = load_model(work)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    return run_torch(quantized)


def torchao_dynamic(work: Path) -> Run:
    import torch
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = load_model(work)[0]
    trunk = getattr(model, model.base_model_prefix)
    quantize_(trunk, Int8DynamicActivationInt8WeightConfig())
    torch._inductor.config.freezing = True  # noqa: SLF001 - what its documentation asks for
    trunk.forward = torch.compile(trunk.forward)
    return run_torch(model)


def export_onnx(work: Path) -> None:
    import torch

    from frugalfm.deployment.tracing import _Outputs

    if (work / "model.onnx").exists():
        return
    model = load_model(work)[0]
    torch.onnx.register_custom_op_symbolic(
        "aten::exp2",
        lambda g, x: g.op("Pow", g.op("Constant", value_t=torch.tensor(2.0)), x),
        18,
    )
    mask = torch.tensor([[1] * 13, [1] * 9 + [0] * 4])
    axes = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask", "states")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Outputs(model).eval(),
            (mask + 4, mask),
            str(work / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["states", "logits"],
            dynamic_axes=axes,
            opset_version=18,
            dynamo=False,
        )


def quantize_onnx(work: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    export_onnx(work)
    # Every other operator quantized as well ruins the output.
    quantize_dynamic(
        work / "model.onnx",
        work / "model.int8.onnx",
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options={"MatMulConstBOnly": True},
    )


def run_onnx(name: str) -> Callable[[Path], Run]:
    def load(work: Path) -> Run:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = count_threads()
        session = onnxruntime.InferenceSession(work / name, options)

        def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            inputs = {"input_ids": ids, "attention_mask": mask}
            return np.asarray(session.run(["states"], inputs)[0])

        return run

    return load


def deploy_as(name: str, find: Callable[[Any, Any], Any] | None, precision: str) -> Contender:
    """Deploy with a scheme; None is floating point."""

    def make(work: Path) -> None:
        from frugalfm.deployment import deploy

        model, tokenizer = load_model(work)
        found = None if find is None else find(model, read_batches(work))
        deploy(model, tokenizer, found, work / name, precision=precision)  # type: ignore[arg-type]

    def load(work: Path) -> Run:
        from frugalfm.deployment import load_deployed

        engine = load_deployed(work / name, threads=count_threads())
        return lambda ids, mask: engine.run(ids, mask)["last_hidden_state"]

    return Contender(load, make, (f"{name}/model.xml", f"{name}/model.bin"))


def scheme(name: str, **settings: Any) -> Callable[[Any, Any], Any]:
    """Find a scheme as ``frugalfm quantize --deploy`` does."""

    def find(model: Any, batches: Any) -> Any:
        from frugalfm.deployment.support import fit_options
        from frugalfm.quantization import METHODS

        return METHODS[name](model, batches, **fit_options(name, settings))

    return find


def quantize_nncf(work: Path) -> None:
    """Quantize as OpenVINO's own tool does by default for transformers."""
    import nncf
    import openvino

    if not (work / "fp32").exists():
        make = CONTENDERS[ENGINE].make
        assert make is not None
        make(work)
    graph = openvino.Core().read_model(work / "fp32" / "model.xml")
    data = [
        {"input_ids": batch.input_ids.numpy(), "attention_mask": batch.attention_mask.numpy()}
        for batch in read_batches(work)
    ]
    quantized = nncf.quantize(
        graph, nncf.Dataset(data), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(data)
    )
    openvino.save_model(quantized, work / "nncf.xml", compress_to_fp16=False)


def run_nncf(work: Path) -> Run:
    import openvino

    core = openvino.Core()
    graph = core.read_model(work / "nncf.xml")
    for output in list(graph.outputs):
        if "last_hidden_state" not in output.get_names():
            graph.remove_result(output.get_node())
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": count_threads()}
    compiled = core.compile_model(graph, "CPU", options)
    return lambda ids, mask: np.array(compiled({"input_ids": ids, "attention_mask": mask})[0])


CHANNEL = {"weight_granularity": "channel"}
PUBLISHED = {"alpha": 0.5, "rounding": "nearest", "activation_observer": "running"}
TOKEN = {"activation_granularity": "token"}
GROUPS = {"weights": 4, "weight_granularity": "group"}
CONTENDERS: dict[str, Contender] = {
    BASE: Contender(lambda work: run_torch(load_model(work)[0])),
    "torch bf16": Contender(lambda work: run_torch(load_model(work)[0].bfloat16())),
    "torch dynamic int8": Contender(torch_dynamic),
    "torchao int8": Contender(torchao_dynamic),
    "ONNX Runtime fp32": Contender(run_onnx("model.onnx"), export_onnx, ("model.onnx",)),
    "ONNX Runtime dynamic int8": Contender(
        run_onnx("model.int8.onnx"), quantize_onnx, ("model.int8.onnx",)
    ),
    ENGINE: deploy_as("fp32", None, "fp32"),
    PEER: Contender(run_nncf, quantize_nncf, ("nncf.xml", "nncf.bin")),
    "ours bf16": deploy_as("bf16", None, "bf16"),
    "ours W8A8 min-max": deploy_as("minmax", scheme("minmax", **CHANNEL), "bf16"),
    OURS: deploy_as("smoothquant", scheme("smoothquant"), "bf16"),
    f"{OURS}, as published": deploy_as("plain", scheme("smoothquant", **PUBLISHED), "bf16"),
    f"{OURS}, rest fp32": deploy_as("rest-fp32", scheme("smoothquant"), "fp32"),
    f"{OURS}, per token": deploy_as("dynamic", scheme("smoothquant", **TOKEN), "bf16"),
    SMALL: deploy_as("int4", scheme("gptq", **GROUPS), "bf16"),
    "ours W4A8, per token": deploy_as("int4-dynamic", scheme("minmax", **GROUPS, **TOKEN), "bf16"),
}


def count_threads() -> int:
    return len(os.sched_getaffinity(0))

"""What each attention costs beside torch's own attention with softmax, in the same layout.

    OMP_NUM_THREADS=1 python benchmarks/attention.py --json attention.json

Queries, keys and values come as a model makes them, (batch, tokens, heads, head size) seen as
(batch, heads, tokens, head size), and the output goes back to (batch, tokens, width). Contenders
take turns; numbers are medians of milliseconds and ratios of medians. With --bias every contender
gets the same ALiBi and padding. On CUDA, "own lse" is the form that FRUGALFM_FUSED_CUDA=1 turns on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from frugalfm.attention.clipped import attend_clipped
from frugalfm.attention.kernels import (
    attend_by_zero_key,
    attend_gated,
    attend_sink,
    attend_softmax1,
    softmax1,
)

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
BASE = "softmax (torch SDPA)"
GOAL = 1.05


def attend_eagerly(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    return softmax1(scores) @ value


def ask_for_fused_cuda(attend: Attend, wanted: str) -> Attend:
    def asked(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        os.environ["FRUGALFM_FUSED_CUDA"] = wanted
        return attend(query, key, value, bias)

    return asked


def list_contenders(heads: int, width: int, device: torch.device) -> dict[str, Attend]:
    sink = torch.zeros(heads, device=device, requires_grad=True)
    weight = torch.zeros(heads, width, device=device, requires_grad=True)
    offset = torch.zeros(heads, device=device, requires_grad=True)

    def attend_with_sink(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return attend_sink(q, k, v, bias, sink=sink)

    found: dict[str, Attend] = {
        BASE: lambda q, k, v, bias: functional.scaled_dot_product_attention(
            q, k, v, attn_mask=bias
        ),
        "softmax1": attend_softmax1,
        "sink": attend_with_sink,
        "gated": lambda q, k, v, bias: attend_gated(
            q, k, v, bias, gate_weight=weight, gate_bias=offset
        ),
        "clipped": attend_clipped,
        "softmax1, zero key": attend_by_zero_key,
        "softmax1, eager": attend_eagerly,
    }
    if device.type == "cuda":
        for name, attend in (("softmax1", attend_softmax1), ("sink", attend_with_sink)):
            found[name] = ask_for_fused_cuda(attend, "")
            found[f"{name}, own lse"] = ask_for_fused_cuda(attend, "1")
    return found


def add_peer(contenders: dict[str, Attend]) -> str:
    """Add hf-attention-normalizers, or say why it is not there."""
    try:
        import hf_attention_normalizers as peer
        from transformers import AttentionInterface

        peer.register_softmax1_attention_backends()
        forward = AttentionInterface()["softmax1_sdpa"]
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
        here = f"{type(error).__name__}: {error}"
        # Whose fault is it? Beside FrugalFM's import hooks is no place to judge a peer.
        command = [sys.executable, "-c", "import hf_attention_normalizers"]
        alone = subprocess.run(command, capture_output=True, text=True, check=False)
        if alone.returncode == 0:
            return f"NOT MEASURED, imports alone but not beside FrugalFM: {here}"
        return f"unavailable, fails to import by itself: {alone.stderr.strip().splitlines()[-1]}"
    module = torch.nn.Module()
    module.is_causal = False  # type: ignore[assignment]

    def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = forward(
            module, query, key, value, bias, scaling=query.shape[-1] ** -0.5, dropout=0.0
        )[0]
        return out.transpose(1, 2)

    contenders["hf-attention-normalizers"] = attend
    return "measured as softmax1_sdpa"


def make_inputs(
    options: argparse.Namespace, length: int, device: torch.device
) -> tuple[list[Tensor], Tensor | None]:
    batch = max(1, options.tokens // length)
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    shape = (batch, length, options.heads, options.head_size)
    tensors = [torch.randn(shape, device=device).to(dtype) for _ in range(4)]
    for tensor in tensors[:3]:
        tensor.requires_grad_()
    if not options.bias:
        return tensors, None
    places = torch.arange(length, device=device)
    slopes = 2.0 ** -torch.linspace(0.5, 8, options.heads, device=device)
    bias = -slopes[:, None, None] * (places[:, None] - places[None]).abs()
    bias = bias.expand(batch, -1, -1, -1).clone()
    bias[..., length - length // 8 :] = -torch.inf
    return tensors, bias.to(dtype)


def time_once(
    attend: Attend, tensors: list[Tensor], bias: Tensor | None, *, backward: bool
) -> float:
    query, key, value, grad = tensors
    for leaf in tensors[:3]:
        leaf.grad = None
    if query.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    with torch.set_grad_enabled(backward):
        out = attend(*(t.transpose(1, 2) for t in (query, key, value)), bias)
        out = out.transpose(1, 2).contiguous()
        if backward:
            out.backward(grad)
    if query.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1e3


def measure(
    contenders: dict[str, Attend],
    tensors: list[Tensor],
    bias: Tensor | None,
    options: argparse.Namespace,
) -> dict[str, dict[str, float | str]]:
    """Let all take turns until the time is up, five rounds at least after one to warm up."""
    times: dict[tuple[str, bool], list[float]] = {}
    failed: dict[str, str] = {}
    started, rounds = time.perf_counter(), 0
    while rounds < 6 or time.perf_counter() - started < options.seconds:
        for name, attend in contenders.items():
            for backward in (False, True):
                if name in failed:
                    continue
                try:
                    taken = time_once(attend, tensors, bias, backward=backward)
                except Exception as error:  # noqa: BLE001 - out of memory, unsupported
                    failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
                    continue
                if rounds:
                    times.setdefault((name, backward), []).append(taken)
        rounds += 1
    rows: dict[str, dict[str, float | str]] = {}
    for name in contenders:
        if name in failed:
            rows[name] = {"failed": failed[name]}
            continue
        rows[name] = {"rounds": rounds - 1}
        for backward, column in ((False, "forward"), (True, "both")):
            median = statistics.median(times[name, backward])
            rows[name][f"{column}_ms"] = median
            rows[name][f"{column}_ratio"] = median / statistics.median(times[BASE, backward])
    return rows


def show(rows: dict[str, dict[str, float | str]]) -> None:
    for name, row in rows.items():
        if "failed" in row:
            print(f"  {name:26} failed: {row['failed']}")
            continue
        print(
            f"  {name:26} {row['forward_ms']:9.2f} {row['forward_ratio']:6.2f}x"
            f" {row['both_ms']:9.2f} {row['both_ratio']:6.2f}x"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--tokens", type=int, help="tokens of a batch")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"])
    parser.add_argument("--bias", action="store_true", help="with ALiBi and padding")
    parser.add_argument("--seconds", type=float, default=10, help="per length, at least 5 rounds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    options.dtype = options.dtype or ("bfloat16" if on_gpu else "float32")
    options.tokens = options.tokens or (32_768 if on_gpu else 2_048)
    lengths = options.lengths or ([128, 512, 1024, 4096] if on_gpu else [128, 512, 1024])

    contenders = list_contenders(options.heads, options.head_size, device)
    peer = add_peer(contenders)
    kind = "ALiBi and padding" if options.bias else "no bias"
    where = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} thr."
    print(f"{where}, {options.dtype}, {options.heads} x {options.head_size}, {kind}")
    print(f"hf-attention-normalizers: {peer}")
    results: dict[int, dict[str, dict[str, float | str]]] = {}
    for length in lengths:
        tensors, bias = make_inputs(options, length, device)
        results[length] = measure(contenders, tensors, bias, options)
        title = f"{length} tokens x {tensors[0].shape[0]}"
        print(f"\n{title:29}forward ms        forward+backward ms")
        show(results[length])
    print()
    for name in ("softmax1", "softmax1, own lse"):
        ratios = [rows[name].get("both_ratio") for rows in results.values() if name in rows]
        if ratios and None not in ratios:
            print(f"{name}: forward and backward at worst {max(ratios):.3f}x (goal {GOAL}x)")
    if options.json:
        record = {
            "where": where,
            "torch": torch.__version__,
            "peer": peer,
            "options": {key: str(value) for key, value in vars(options).items()},
            "results": results,
        }
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()

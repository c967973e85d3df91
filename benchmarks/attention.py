"""What each attention costs beside torch's own attention with softmax, in the same layout.

    OMP_NUM_THREADS=1 python benchmarks/attention.py --json attention.json --markdown attention.md

Queries, keys and values come as a model makes them, (batch, tokens, heads, head size) seen as
(batch, heads, tokens, head size), and the output goes back to (batch, tokens, width). Layouts are
lengths, dtypes, and with or without a bias, which is ALiBi and padding, the same for every
contender. They take turns; numbers are medians of milliseconds and ratios of medians. On CUDA,
"own lse" is the form that FRUGALFM_FUSED_CUDA=1 turns on. A peer that is installed elsewhere
(pip install --no-deps --target DIR hf-attention-normalizers) is found with PYTHONPATH=DIR.
"""

from __future__ import annotations

import argparse
import itertools
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
PEER = "hf-attention-normalizers"
GOAL = 1.05
LENGTHS = (128, 512, 1024, 4096)
DTYPES = ("float32", "bfloat16")
Rows = dict[str, dict[str, float | str]]


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
            q,
            k,
            v,
            bias,
            gate=torch.einsum("bhqd,hd->bhq", q.to(weight.dtype), weight) + offset[:, None],
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

    contenders[PEER] = attend
    return "measured as softmax1_sdpa"


def make_inputs(
    options: argparse.Namespace, length: int, dtype: torch.dtype, *, biased: bool
) -> tuple[list[Tensor], Tensor | None]:
    batch, device = max(1, options.tokens // length), torch.device(options.device)
    torch.manual_seed(0)
    shape = (batch, length, options.heads, options.head_size)
    tensors = [torch.randn(shape, device=device).to(dtype) for _ in range(4)]
    for tensor in tensors[:3]:
        tensor.requires_grad_()
    if not biased:
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
) -> Rows:
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
    rows: Rows = {}
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


def show(title: str, rows: Rows) -> None:
    print(f"\n{title:40}forward ms        forward+backward ms")
    for name, row in rows.items():
        if "failed" in row:
            print(f"  {name:37} failed: {row['failed']}")
            continue
        print(
            f"  {name:37} {row['forward_ms']:9.2f} {row['forward_ratio']:6.2f}x"
            f" {row['both_ms']:9.2f} {row['both_ratio']:6.2f}x",
            flush=True,
        )


def tabulate(where: str, results: dict[str, Rows]) -> str:
    """One row per contender, one column per layout: forward and backward beside the base."""
    lines = [f"| {where} | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for name in next(iter(results.values())):
        cells = []
        for rows in results.values():
            row = rows[name]
            cells.append("failed" if "failed" in row else f"{row['both_ratio']:.2f}x")
            if name == BASE and "failed" not in row:
                cells[-1] = f"{row['both_ms']:.1f} ms"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    reasons = {
        f"{n}: {r['failed']}" for rows in results.values() for n, r in rows.items() if "failed" in r
    }
    return "\n".join([*lines, "", *sorted(reasons)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--tokens", type=int, help="tokens of a batch")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--dtypes", choices=DTYPES, nargs="+")
    parser.add_argument("--bias", choices=["with", "without", "both"], default="both")
    parser.add_argument("--seconds", type=float, default=10, help="a layout, at least 5 rounds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    options.dtypes = options.dtypes or (DTYPES[1:] if on_gpu else DTYPES)
    options.tokens = options.tokens or (65_536 if on_gpu else 2_048)
    kinds = {"with": [True], "without": [False], "both": [False, True]}[options.bias]

    contenders = list_contenders(options.heads, options.head_size, device)
    peer = add_peer(contenders)
    where = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} thr."
    print(f"{where}, {options.heads} x {options.head_size}\n{PEER}: {peer}")
    results: dict[str, Rows] = {}
    for biased, dtype, length in itertools.product(kinds, options.dtypes, options.lengths):
        tensors, bias = make_inputs(options, length, getattr(torch, dtype), biased=biased)
        layout = f"{dtype} {length} x {tensors[0].shape[0]}{' ALiBi' if biased else ''}"
        results[layout] = measure(contenders, tensors, bias, options)
        results[layout].setdefault(PEER, {"failed": peer})
        show(layout, results[layout])
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
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(tabulate(where, results) + "\n")


if __name__ == "__main__":
    main()

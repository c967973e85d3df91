"""Tokens a second in pretraining, beside transformers' Trainer; time and memory of tuning.

    OMP_NUM_THREADS=1 python benchmarks/training.py --steps 2 --rounds 3
    python benchmarks/training.py --device cuda --compiled
    python benchmarks/training.py --device cuda --only tuning --data GUE/tf/0 --tokenizer TOKENIZER

Pretraining: DNABERT-2 (117M parameters, random weights) through our loop, and a plain BERT of the
same width, depth and heads through our loop and through transformers' Trainer; all with AdamW,
clipping, dropout .1 outside attention, masks drawn anew, on the same random tokens, batches of as
many. Contenders take turns; rates are medians over the rounds, of tokens that are no pads.
With --shortest, lengths are mixed: Trainer then pads batches of TOKENS / LENGTH sequences, as it
does by default, and has fewer tokens in a batch.

Model FLOPs of a token, forward and backward: 6 x the weights of all linear layers (BERT's
feed-forward networks have a third fewer than DNABERT-2's gated ones) + 12 x layers x width x the
tokens of its sequence, for attention. "MFU" is their rate over the H200's dense bf16 peak.

Tuning: `frugalfm tune --method lora` on one task, whole on a GPU; on a CPU two short runs, whose
difference tells the seconds of a step, extrapolated to the preset's steps.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.encoders.catalogue import DNA_PRESETS, Preset, create_from_config
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.tasks import find_splits
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.store import TokenList
from frugalfm.training import Recipe, TrainingData, train
from frugalfm.training.presets import PRESETS

SPECIALS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
VOCABULARY = 4096
PEAK = 989.0  # TFLOP/s, dense bf16, of an H200
HELD_OUT = 64
BATCH = 32
Steps = tuple[float, float, int]  # seconds by the wall, of the processors, tokens


@dataclass
class Clock:
    """Times some steps, those before them not counted."""

    device: torch.device
    warmup: int
    steps: int
    marks: list[tuple[float, float]] = field(default_factory=list)

    def __call__(self, step: int) -> None:
        if step in {self.warmup, self.warmup + self.steps}:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.marks.append((time.perf_counter(), time.process_time()))

    def read(self, tokens: Iterable[int]) -> Steps:
        (wall, cpu), (later, cpu_later) = self.marks
        counted = list(tokens)[self.warmup : self.warmup + self.steps]
        return later - wall, cpu_later - cpu, sum(counted)


def make_codec() -> Codec:
    ids = {token: SPECIALS.index(token) for token in SPECIALS}
    residues = np.arange(len(SPECIALS), VOCABULARY, dtype=np.uint16)
    return Codec(
        "dna", np.empty(0, np.uint8), ids["[CLS]"], ids["[SEP]"], ids["[PAD]"], ids["[MASK]"],
        residues, 2**30,
    )  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = [*SPECIALS, *(f"w{i}" for i in range(len(SPECIALS), VOCABULARY))]
    model = models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    names = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(model), **dict(zip(names, SPECIALS, strict=True))
    )


def make_dnabert2(preset: Preset, attention: str) -> PreTrainedModel:
    config = DnaBert2Config(vocab_size=VOCABULARY, attention=attention, **preset.sizes)
    return create_from_config(config, 0)


def make_bert(preset: Preset, longest: int) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        **preset.sizes,
        max_position_embeddings=longest,
        attention_probs_dropout_prob=0.0,  # as DNABERT-2, and so that fused kernels serve
        pad_token_id=SPECIALS.index("[PAD]"),
    )
    torch.manual_seed(0)
    return BertForMaskedLM(config)


def count_weights(model: nn.Module) -> int:
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def draw_sequences(options: argparse.Namespace) -> list[np.ndarray]:
    """Random tokens, of one length or of many, enough for no step to see one twice."""
    random = np.random.default_rng(0)
    shortest = options.shortest or options.length
    mean = (shortest + options.length) / 2
    count = math.ceil(1.3 * (options.warmup + options.steps + 2) * options.tokens / mean) + 8
    sizes = random.integers(shortest, options.length + 1, count) - 2
    return [random.integers(len(SPECIALS), VOCABULARY, n).astype(np.uint16) for n in sizes]


def run_ours(
    model: PreTrainedModel,
    sequences: list[np.ndarray],
    options: argparse.Namespace,
    *,
    pack: int | None = None,
    compiled: bool = False,
) -> Steps:
    device = torch.device(options.device)
    store, held_out = TokenList(sequences), TokenList(sequences[:2])
    rows = np.arange(len(sequences))
    data = TrainingData(store, rows, held_out, np.arange(2), make_codec())
    recipe = Recipe(
        steps=options.warmup + options.steps + 1,
        batch_tokens=options.tokens,
        learning_rate=1e-4,
        precision=options.precision,
        pack=pack,
        compiled=compiled,
        save_every=10**9,
        validate_every=10**9,
    )
    clock = Clock(device, options.warmup, options.steps)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(
            model.to(device), data, recipe, folder, state=folder, device=device, before_step=clock
        )
    made = recipe.plan(data, 0)[: options.warmup + options.steps]
    return clock.read(int(make().attention_mask.bool().sum()) for make in made)


def run_trainer(
    model: PreTrainedModel,
    sequences: list[np.ndarray],
    options: argparse.Namespace,
    *,
    compiled: bool = False,
) -> Steps:
    device = torch.device(options.device)
    clock = Clock(device, options.warmup, options.steps)
    counts: list[int] = []
    collate = DataCollatorForLanguageModeling(make_tokenizer(), mlm_probability=0.15)

    def collate_and_count(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = collate(rows)
        counts.append(int(batch["attention_mask"].sum()))
        return batch

    class Mark(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            del args, control
            clock(state.global_step)

    rows = [{"input_ids": [1, *sequence.tolist(), 2]} for sequence in sequences]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=options.tokens // options.length,
            max_steps=options.warmup + options.steps + 1,
            learning_rate=1e-4,
            adam_beta2=0.95,
            weight_decay=0.01,
            warmup_steps=1,
            max_grad_norm=1.0,
            bf16=options.precision == "bf16",
            use_cpu=device.type == "cpu",
            torch_compile=compiled,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        with contextlib.redirect_stdout(sys.stderr):
            Trainer(
                model,
                arguments,
                data_collator=collate_and_count,
                train_dataset=rows,
                callbacks=[Mark()],
            ).train()
    return clock.read(counts)


def list_contenders(
    options: argparse.Namespace, sequences: list[np.ndarray]
) -> dict[str, tuple[PreTrainedModel, Callable[[], Steps]]]:
    preset = DNA_PRESETS[options.model]
    softmax, softmax1 = (make_dnabert2(preset, name) for name in ("softmax", "softmax1"))
    bert = make_bert(preset, options.length)
    given = {"sequences": sequences, "options": options}
    rows = {"packed": options.length, "padded": None}
    found: dict[str, tuple[PreTrainedModel, Callable[[], Steps]]] = {}

    def add(name: str, model: PreTrainedModel, function: Callable[..., Steps], **more: Any) -> None:
        found[name] = (model, partial(function, model, **given, **more))

    add("Trainer, BERT", bert, run_trainer)
    add("ours, BERT", bert, run_ours)
    add("Trainer, DNABERT-2 softmax", softmax, run_trainer)
    for how, pack in rows.items():
        add(f"ours, DNABERT-2 softmax, {how}", softmax, run_ours, pack=pack)
        add(f"ours, DNABERT-2 softmax1, {how}", softmax1, run_ours, pack=pack)
    if options.compiled:
        for kind in ("softmax", "softmax1"):
            model, pack = make_dnabert2(preset, kind), options.length
            name = f"ours, DNABERT-2 {kind}, packed, compiled"
            add(name, model, run_ours, pack=pack, compiled=True)
        add(
            "Trainer, BERT, compiled", make_bert(preset, options.length), run_trainer, compiled=True
        )
    return found


def measure_pretraining(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    sequences = draw_sequences(options)
    contenders = list_contenders(options, sequences)
    times: dict[str, list[Steps]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, (model, run) in contenders.items():
            model.to(options.device)
            times[name].append(run())
            if options.device != "cpu":
                model.cpu()
    sizes = np.array([len(sequence) + 2 for sequence in sequences], float)
    context = (sizes**2).sum() / sizes.sum()  # of a token's sequence, on average
    preset = DNA_PRESETS[options.model]
    found: dict[str, dict[str, float]] = {}
    for name, (model, _) in contenders.items():
        rate = statistics.median(tokens / wall for wall, _, tokens in times[name])
        busy = statistics.median(tokens / cpu for _, cpu, tokens in times[name])
        flops = 6 * count_weights(model) + 12 * preset.layers * preset.width * context
        found[name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "tokens_per_second": rate,
            "tokens_per_processor_second": busy,
            "tflops": rate * flops / 1e12,
            "rounds": [tokens / wall for wall, _, tokens in times[name]],  # type: ignore[dict-item]
        }
    return found


_TUNE = """
import json, re, sys, time
from pathlib import Path
import torch, frugalfm
checkpoint, task, out, options = sys.argv[1:]
started = time.perf_counter()
done = frugalfm.tune(Path(checkpoint), task=Path(task), out=Path(out), method="lora",
                     **json.loads(options))
seconds = time.perf_counter() - started
metrics = json.loads((done / "metrics.json").read_text())
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
on_gpu = torch.cuda.is_initialized()
print(json.dumps({"seconds": seconds, "tuning_seconds": metrics["tuning"]["seconds"],
                  "steps": metrics["tuning"]["steps"], "peak_mib": peak,
                  "gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None}))
"""


def shorten(task: Path, out: Path) -> Path:
    """Copy a task with little to score: scoring would take longer than a few steps do."""
    out.mkdir()
    for name, file in find_splits(task).items():
        lines = file.read_text().splitlines(keepends=True)
        kept = lines if name == "train" else lines[: HELD_OUT + 1]
        (out / f"{name}.csv").write_text("".join(kept))
    return out


def measure_tuning(options: argparse.Namespace) -> dict[str, Any]:
    """Tune the model by LoRA in processes of their own; what is not run is extrapolated."""
    train_file = find_splits(options.data)["train"]
    rows = sum(1 for _ in train_file.open()) - 1
    epochs = PRESETS["gue/tf"].epochs
    whole = epochs * math.ceil(rows / BATCH)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, words = create_encoder(
            options.model, attention=options.attention, tokenizer=options.tokenizer
        )
        save_encoder(model, words, folder / "model", "random weights")

        def run(label: str, task: Path, **more: Any) -> dict[str, Any]:
            settings = {
                "preset": "gue/tf",
                "batch_size": BATCH,
                "precision": options.precision,
                "device": options.device,
            } | more
            words = [str(folder / "model"), str(task), str(folder / label)]
            command = [sys.executable, "-c", _TUNE, *words, json.dumps(settings)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            return json.loads(done.stdout.splitlines()[-1])

        if options.device != "cpu":
            return run("whole", options.data) | {"whole_steps": whole, "extrapolated": False}
        few, more = options.tune_steps, 3 * options.tune_steps
        task = shorten(options.data, folder / "task")
        short = run("short", task, max_steps=few, start="random")
        long = run("long", task, max_steps=more, start="random")
    # Of the tuning alone: how long imports and the scores of test take varies.
    step = (long["tuning_seconds"] - short["tuning_seconds"]) / (more - few)
    fixed = short["seconds"] - few * step
    return {
        "rows": rows,
        "whole_steps": whole,
        "seconds_per_step": step,
        "fixed_seconds": fixed,
        "seconds": fixed + whole * step,
        "peak_mib": long["peak_mib"],
        "extrapolated": f"from {few} and {more} steps; {HELD_OUT} rows of dev are scored once, not "
        f"all of them {epochs} times, and the head starts at random",
    }


def tabulate(record: dict[str, Any], options: argparse.Namespace) -> str:
    lines: list[str] = []
    if found := record.get("pretraining"):
        base = found["Trainer, BERT"]
        on_gpu = options.device != "cpu"
        lines += [
            f"| {record['where']}, {options.precision}, batches of {options.tokens:,} tokens, "
            f"sequences of {options.shortest or options.length} to {options.length} "
            "| parameters | tokens/s | beside Trainer | TFLOP/s | beside Trainer |"
            + (" MFU |" if on_gpu else ""),
            "|---|---|---|---|---|---|" + ("---|" if on_gpu else ""),
        ]
        for name, row in found.items():
            rates = [
                f"{row[key]:,.{digits}f} | {row[key] / base[key]:.2f}x"
                for key, digits in (("tokens_per_second", 0), ("tflops", 3))
            ]
            line = f"| {name} | {row['parameters'] / 1e6:.1f}M | {' | '.join(rates)} |"
            share = row["tflops"] / options.peak
            lines.append(line + (f" {share:.1%} |" if on_gpu else ""))
    if found := record.get("tuning"):
        memory = found.get("gpu_peak_mib") or found["peak_mib"]
        note = f" ({found['extrapolated']})" if found["extrapolated"] else ""
        lines += [
            "",
            f"LoRA on {options.data.parent.name}/{options.data.name}, {options.attention}: "
            f"{found['seconds']:,.0f} s for {found['whole_steps']:,} steps{note}, "
            f"peak memory {memory:,.0f} MiB",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", choices=["pretraining", "tuning"])
    parser.add_argument("--model", choices=list(DNA_PRESETS), default="dnabert2")
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--tokens", type=int, help="of a batch")
    parser.add_argument("--length", type=int, default=512, help="of the longest, and of a pack")
    parser.add_argument("--shortest", type=int, help="mixed lengths from this on")
    parser.add_argument("--steps", type=int, help="timed, of each contender in each round")
    parser.add_argument("--warmup", type=int, help="steps before those")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compiled", action="store_true", help="compiled contenders, too")
    parser.add_argument("--peak", type=float, default=PEAK, help="TFLOP/s of the device")
    parser.add_argument("--data", type=Path, help="task to tune on, such as GUE/tf/0")
    parser.add_argument("--tokenizer", type=Path, help="DNABERT-2's, for the task")
    parser.add_argument("--attention", default="softmax", help="of the tuned model")
    parser.add_argument("--tune-steps", type=int, default=5, help="on a CPU: so many, and thrice")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    options.precision = options.precision or ("bf16" if on_gpu else "fp32")
    options.tokens = options.tokens or (65_536 if on_gpu else 2_048)
    options.steps = options.steps or (10 if on_gpu else 2)
    options.warmup = options.warmup or (5 if on_gpu else 1)
    if (options.data is None) != (options.tokenizer is None):
        parser.error("--data and --tokenizer go together")
    if options.only == "tuning" and options.data is None:
        parser.error("--only tuning needs --data and --tokenizer")

    threads = f"CPU, {torch.get_num_threads()} thr."
    record: dict[str, Any] = {
        "where": torch.cuda.get_device_name(options.device) if on_gpu else threads,
        "torch": torch.__version__,
        "options": {key: str(value) for key, value in vars(options).items()},
    }
    if options.only != "tuning":
        record["pretraining"] = measure_pretraining(options)
    if options.data is not None and options.only != "pretraining":
        record["tuning"] = measure_tuning(options)
    page = tabulate(record, options)
    print(page)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(page + "\n")


if __name__ == "__main__":
    main()

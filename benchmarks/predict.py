"""How much of an engine's own speed ``frugalfm predict`` keeps, reading and writing included.

    python benchmarks/predict.py --model-size rna-fm --sequences 400
    python benchmarks/predict.py --checkpoint tuned/ --deployed deployed/ --out predict.json

For each model: bare forward passes over batches that are ready-made of all sequences sorted by
length, with several sizes of batches, of which the fastest is the engine's own best; and the whole
of ``predict``'s second pass over a FASTA file (read, encode, batch within a window of the stream,
run, write Parquet), beside the pass that checks the input. They take turns, and medians are
compared. Without --checkpoint the model is random, with a head for two classes: that costs the
same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalfm.encoders import create_encoder
from frugalfm.encoders.devices import choose_device, limit_batch
from frugalfm.encoders.heads import add_head
from frugalfm.sequences.alphabets import get_alphabet
from frugalfm.tokens.batches import plan_by_length
from frugalfm.tokens.codec import Codec
from frugalfm.training.predicting import TaskHead, TaskRunner, TorchPredictor
from frugalfm.training.prediction_file import make_file, open_parts
from frugalfm.training.prediction_input import Survey, stream_records, survey_records
from frugalfm.training.prediction_run import PredictionRun, window_size
from frugalfm.training.prediction_table import PredictionTable
from frugalfm.verbs.predict import open_runner, read_head

BARE = (1024, 2048, 4096, 8192)  # padded tokens of a batch


def main() -> None:
    options = parse()
    device = choose_device(options.device)
    found: dict[str, Any] = {"device": str(device), "threads": torch.get_num_threads()}
    runners = open_runners(options, device)
    with tempfile.TemporaryDirectory() as folder:
        for name, runner in runners.items():
            alphabet = get_alphabet(runner.codec.alphabet).canonical.decode()
            fasta = write_fasta(Path(folder) / f"{name}.fa", alphabet, options)
            found[name] = compare(runner, fasta, options)
            print(f"{name}: {describe(found[name])}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def open_runners(options: argparse.Namespace, device: torch.device) -> dict[str, TaskRunner]:
    """Load what is to be compared: the tuned model or a random one, and a deployed one."""
    runners = {}
    folders = {"torch": options.checkpoint, "deployed": options.deployed}
    for name, folder in folders.items():
        if folder is not None:
            head, _ = read_head(folder)
            place = torch.device("cpu") if name == "deployed" else device
            tokens = options.batch_tokens
            runners[name] = open_runner(folder, None, head, tokens, options.precision, place)
    if "torch" not in runners:
        encoder, tokenizer = create_encoder(options.model_size, seed=0)
        model = add_head(encoder, "single_label", ["no", "yes"]).eval().to(device)
        codec = Codec.from_tokenizer(tokenizer)
        predictor = TorchPredictor(model, options.precision or "fp32")
        head = TaskHead("classification", ("no", "yes"))
        limit = limit_batch(options.batch_tokens, device)
        runners = {"torch": TaskRunner(predictor, head, codec, limit), **runners}
    return runners


def compare(runner: TaskRunner, fasta: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Let the ways take turns; seconds of each, and shares of the fastest bare one."""
    pieces = [*stream_records(fasta, runner.codec, runner.head)]
    sequences = [tokens for piece in pieces for tokens in piece.tokens]
    residues = sum(piece.residues for piece in pieces)
    ways: dict[str, Callable[[], object]] = {
        f"bare, {tokens} tokens": prepare(runner, sequences, tokens) for tokens in BARE
    }
    ways["check"] = lambda: check(runner, fasta)
    survey = check(runner, fasta)
    ways["predict"] = lambda: predict(runner, fasta, survey, options.batch_tokens)
    for run in ways.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    best = min(value for name, value in medians.items() if name.startswith("bare"))
    return {
        "sequences": len(sequences),
        "residues": residues,
        "seconds": medians,
        "residues_per_second": {name: residues / value for name, value in medians.items()},
        "share_of_best": best / medians["predict"],
        "share_with_check": best / (medians["predict"] + medians["check"]),
    }


def prepare(runner: TaskRunner, sequences: list[np.ndarray], tokens: int) -> Callable[[], None]:
    """Make ideal batches; what is returned runs them."""
    lengths = np.array([len(sequence) for sequence in sequences])
    batches = []
    for rows in plan_by_length(lengths, tokens):
        ids, _ = runner.codec.collate([sequences[row] for row in rows])
        batches.append((ids, (ids != runner.codec.pad_id).astype(np.int64)))

    def run() -> None:
        for ids, attended in batches:
            runner.predictor.logits(ids, attended)

    return run


def check(runner: TaskRunner, fasta: Path) -> Survey:
    return survey_records(fasta, runner.codec, runner.head, "error")


def predict(runner: TaskRunner, fasta: Path, survey: Survey, batch_tokens: int) -> None:
    """Do what the verb does but for loading and the first pass."""
    table = PredictionTable(runner.head)
    run = PredictionRun(runner, table, fasta, "error", survey, window_size(batch_tokens))
    out = fasta.with_suffix(".parquet")
    with open_parts(out, {}) as stage:
        make_file(stage, out, table, {}, run.windows)


def write_fasta(path: Path, letters: str, options: argparse.Namespace) -> Path:
    random = np.random.default_rng(0)
    low, high = options.lengths
    with path.open("w") as handle:
        for index in range(options.sequences):
            length = int(random.integers(low, high + 1))
            handle.write(f">s{index}\n{''.join(random.choice([*letters], length))}\n")
    return path


def describe(found: dict[str, Any]) -> str:
    rates = ", ".join(f"{k} {v:,.0f}" for k, v in found["residues_per_second"].items())
    return (
        f"{found['sequences']:,} sequences; residues/s: {rates}; predict keeps "
        f"{found['share_of_best']:.1%} of the engine's best"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a tuned model; else a random one")
    parser.add_argument("--deployed", type=Path, help="a deployed model")
    parser.add_argument("--model-size", default="rna-fm", help="of the random one")
    parser.add_argument("--sequences", type=int, default=400)
    parser.add_argument("--lengths", type=int, nargs=2, default=(50, 500))
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()

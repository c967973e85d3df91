"""What self-influence costs beside the forward pass alone, on the same sequences and batches.

    python benchmarks/scoring.py POOL.fasta.gz --model rna-fm-tiny --sequences 2000

The floor is one forward pass of the whole model per mask group, logits included, on the same
batches. Scoring runs the same passes and adds the head's gradients and the quadratic form.
Both are timed alternately, and the ratio is of the medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from frugalfm.encoders import create_encoder
from frugalfm.encoders.devices import autocast, limit_batch
from frugalfm.influence import HeadGradients, ScoreRecipe, estimate_fisher, score_sequences
from frugalfm.tokens.batches import plan_by_length
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.inputs import sample_encoded
from frugalfm.tokens.masking import hash_sequences, mask_groups


@torch.no_grad()
def run_forward(gradients: HeadGradients, sequences: list[np.ndarray], batch_tokens: int) -> None:
    """All passes of the whole model and nothing else."""
    codec = gradients.codec
    lengths = np.array([len(s) for s in sequences])
    for rows in plan_by_length(lengths, limit_batch(batch_tokens, gradients.device)):
        batch = [sequences[row] for row in rows]
        ids, counts = codec.collate(batch)
        groups = mask_groups(ids.shape[1], counts, hash_sequences(batch), gradients.groups)
        tokens = torch.from_numpy(ids).to(gradients.device)
        group = torch.from_numpy(groups).to(gradients.device)
        attention = (tokens != codec.pad_id).long()
        for number in range(gradients.passes):
            masked = tokens.masked_fill(group == number, codec.mask_id)
            with autocast(gradients.device, gradients.precision):
                gradients.model(input_ids=masked, attention_mask=attention)


def measure(job: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--model", default="rna-fm-tiny")
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    device = torch.device(options.device)
    model, tokenizer = create_encoder(options.model)
    model = model.to(device)
    codec = Codec.from_tokenizer(tokenizer)
    sequences = sample_encoded(options.pool, codec, options.sequences).tokens
    gradients = HeadGradients(model, codec, precision=options.precision)
    recipe = ScoreRecipe(batch_tokens=options.batch_tokens)
    fisher = estimate_fisher(gradients, sequences[:100], recipe)
    jobs = {
        "forward": lambda: run_forward(gradients, sequences, options.batch_tokens),
        "score": lambda: score_sequences(gradients, fisher, sequences, recipe),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(options.repeats + 1):
        for name, job in jobs.items():
            seconds = measure(job, device)
            if repeat:  # the first round warms up
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    residues = sum(len(s) for s in sequences) * gradients.passes
    print(f"{options.model} on {device}, {options.precision}, {len(sequences)} sequences, 7 groups")
    for name, value in medians.items():
        ratio = value / medians["forward"]
        print(f"{name:8} {value:8.2f} s  {residues / value:12,.0f} nt/s  {ratio:.3f} x forward")
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        options.json.write_text(json.dumps({"options": settings, "seconds": times}, indent=1))


if __name__ == "__main__":
    main()

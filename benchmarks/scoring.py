"""What scores cost, where the time goes, and which of them agree, on the same sequences.

    OMP_NUM_THREADS=1 python -m benchmarks.scoring pool.fasta.gz --model-size rna-fm-small
    python -m benchmarks.scoring pool.fasta.gz --checkpoint ref/ --device cuda --precision bf16

Costs are of all sequences and compared with the floor: forward passes of the whole model, logits
included, on the same batches. Contenders take turns, and ratios are of medians. The released way
(arXiv 2512.12932, written here from its description) differentiates the head's weight by
vmap(jacrev) with everything padded to 1024 tokens, in fp32; it runs on a few of the sequences, and
its seconds are scaled to all of them and counted twice, for its two passes (Fisher, scores).

Agreement is Spearman's correlation and the Jaccard index of the top 10 %, both with all seven
groups of the head and with the exact diagonal of all linear layers. A random model ranks at random:
give a --checkpoint, or let a new model be trained on the pool for --train-steps first.

Peaks of memory are of two processes that score pools of different sizes. `python -m
benchmarks.pages scoring` makes a page of what is written to --json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.pages import EXACT, HEAD, RELEASED, describe_scores
from scipy.stats import spearmanr
from torch.func import functional_call, jacrev, vmap
from transformers import PreTrainedModel

from frugalfm.encoders import create_encoder, load_encoder
from frugalfm.encoders.devices import autocast, choose_device
from frugalfm.influence import (
    Gradients,
    HeadGradients,
    LayerGradients,
    MaskScheme,
    ScoreRecipe,
    estimate_fisher,
    score_sequences,
    scoring,
)
from frugalfm.progress import progress
from frugalfm.sequences import shards
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.inputs import sample_encoded
from frugalfm.tokens.store import TokenList
from frugalfm.training.data import TrainingData
from frugalfm.training.loop import Recipe, train
from frugalfm.verbs.build import build

Sequences = list[np.ndarray]


class Contender:
    """One way to score, and what it costs beside as many forward passes.

    Parameters
    ----------
    gradients
        Of the model.
    options
        Of the recipe.
    """

    def __init__(self, gradients: Gradients, **options: Any) -> None:
        self.gradients = gradients
        self.recipe = ScoreRecipe(**options)
        self.passes = gradients.masks.n_passes

    def prepare(self, subset: Sequences) -> None:
        self.fisher = estimate_fisher(self.gradients, subset, self.recipe)

    def __call__(self, sequences: Sequences) -> np.ndarray:
        return score_sequences(self.gradients, self.fisher, sequences, self.recipe).influence


def list_contenders(
    model: PreTrainedModel, codec: Codec, options: argparse.Namespace
) -> dict[str, Contender]:
    def head(masks: MaskScheme) -> HeadGradients:
        return HeadGradients(model, codec, masks=masks, precision=options.precision)

    def every(masks: MaskScheme) -> LayerGradients:
        return LayerGradients(model, codec, masks=masks, precision=options.precision)

    common = {"batch_tokens": options.batch_tokens}
    found = {
        f"head, {n} group{'s' if n > 1 else ''}": Contender(head(MaskScheme(passes=n)), **common)
        for n in range(1, 8)
    }
    found["head, one random mask"] = Contender(head(MaskScheme("random")), **common)
    found["head, no mask"] = Contender(head(MaskScheme("none")), **common)
    for n in (1, 2, 7):
        name = f"{n} group{'s' if n > 1 else ''}"
        masks = MaskScheme(passes=n)
        found[f"all layers, rank-1, {name}"] = Contender(every(masks), fisher="rank-1", **common)
        for k in (16, 64):
            found[f"all layers, projection to {k}, {name}"] = Contender(
                every(masks), fisher="projection", projection=k, **common
            )
    found[EXACT] = Contender(every(MaskScheme()), fisher="diagonal", **common)
    return {name: row for name, row in found.items() if name.startswith(options.only)}


@torch.no_grad()
def run_forward(contender: Contender, sequences: Sequences) -> None:
    """All passes of the whole model, on the contender's batches, and nothing else."""
    own = contender.gradients
    for rows in scoring._plan(own, sequences, contender.recipe):  # noqa: SLF001
        views = own.masks.view(own.codec, [sequences[row] for row in rows], own.device)
        for masked in views.masked:
            with autocast(own.device, own.precision):
                own.model(input_ids=masked, attention_mask=views.attention)


def run_released(
    model: PreTrainedModel, codec: Codec, layer: str, sequences: Sequences, chunk: int = 8
) -> np.ndarray:
    """One pass with everything padded to 1024, unmasked: square norms of the gradients."""
    name = f"{layer}.weight"
    rest = {key: value.detach() for key, value in model.named_parameters() if key != name}
    weight = model.get_parameter(name).detach()

    def lose(weight: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        logits = functional_call(model, {**rest, name: weight}, (row[None],)).logits[0]
        return torch.nn.functional.cross_entropy(logits, row)

    norms = []
    for start in range(0, len(sequences), chunk):
        views = MaskScheme("none", pad_to=1024).view(
            codec, sequences[start : start + chunk], weight.device
        )
        gradients = vmap(jacrev(lose), in_dims=(None, 0))(weight, views.tokens)
        norms.append(gradients.square().sum((1, 2)).cpu())
    return torch.cat(norms).numpy()


def measure(job: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    job()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def time_all(
    contenders: dict[str, Contender],
    released: Callable[[], object],
    scale: float,
    sequences: Sequences,
    options: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """Seconds of each contender and of its floor, in turns, after all were warmed up."""
    jobs: dict[str, Callable[[], object]] = {RELEASED: released}
    floors = {}
    for name, contender in contenders.items():
        masks = contender.gradients.masks
        rows = contender.gradients.rows_per_sequence  # they decide the batches
        floors[name] = f"forward, {masks.masking}, {masks.n_passes} passes in batches of {rows}"
        jobs[floors[name]] = lambda c=contender: run_forward(c, sequences)
        jobs[name] = lambda c=contender: c(sequences)
        contender(sequences[:16])
    device = torch.device(options.device)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(options.repeats):
        for name, job in progress(jobs.items(), desc=f"round {repeat + 1}"):
            times[name].append(measure(job, device))
    median = {name: statistics.median(values) for name, values in times.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, contender in contenders.items():
        own, floor = median[name], median[floors[name]]
        found[name] = {"passes": contender.passes, "seconds": own, "ratio": own / floor}
    seconds = 2 * scale * median[RELEASED]
    ratio = seconds / 2 / median[floors["head, 1 group"]]
    found[RELEASED] = {"passes": 2, "seconds": seconds, "ratio": ratio}
    return found


@contextmanager
def stopwatch(owner: Any, name: str, device: torch.device) -> Iterator[list[float]]:
    """Time all calls of a method."""
    spent, original = [0.0], getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        result = []
        spent[0] += measure(lambda: result.append(original(*args, **kwargs)), device)
        return result[0]

    change = type.__setattr__ if isinstance(owner, type) else object.__setattr__  # even if frozen
    change(owner, name, timed)
    try:
        yield spent
    finally:
        change(owner, name, original)


def profile_head(contender: Contender, sequences: Sequences, device: torch.device) -> dict:
    """Shares of the time of the head's score with seven groups."""
    own = contender.gradients
    with (
        stopwatch(own.masks, "view", device) as masks,
        stopwatch(own, "_run_trunk", device) as trunk,
        stopwatch(own, "_run_head", device) as head,
        stopwatch(scoring.DiagonalMetric, "__call__", device) as metric,
    ):
        whole = measure(lambda: contender(sequences), device)
    parts = {"masks and padding": masks, "trunk": trunk, "head, forward and backward": head}
    parts["outer products and Fisher"] = metric
    shares = {name: spent[0] / whole for name, spent in parts.items()}
    return shares | {"the rest": 1 - sum(shares.values())}


def agree(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation, and the Jaccard index of the top 10 %."""
    count = max(1, len(truth) // 10)
    tops = [set(np.argsort(-values)[:count].tolist()) for values in (found, truth)]
    return float(spearmanr(found, truth)[0]), len(tops[0] & tops[1]) / len(tops[0] | tops[1])


def pretrain_briefly(
    model: PreTrainedModel, codec: Codec, sequences: Sequences, options: argparse.Namespace
) -> None:
    store = TokenList(sequences)
    data = TrainingData(store, np.arange(len(store)), store, np.arange(1), codec)
    recipe = Recipe(steps=options.train_steps, batch_tokens=8192, precision=options.precision)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        train(model, data, recipe, place, state=place, device=torch.device(options.device))
    model.eval()


MEMORY = """
import resource, sys, frugalfm
shards, model, out, device = sys.argv[1:]
frugalfm.score(shards, model=model, out=out, device=device, adapt=False, subset=200, passes=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """Peak RSS in MB of scoring a pool and one of eight times its size, in parts of one size."""
    from frugalfm.encoders import save_encoder

    peaks = {}
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_encoder(*create_encoder("rna-fm-nano"), folder / "model")
        shards.PART_ROWS = options.memory_sequences
        for size in (options.memory_sequences, 8 * options.memory_sequences):
            texts = np.array(list("ACGU"))[random.integers(0, 4, (size, 60))]
            lines = (f">s{i}\n{''.join(row)}\n" for i, row in enumerate(texts))
            (folder / f"{size}.fasta").write_text("".join(lines))
            pool = build(folder / f"{size}.fasta", alphabet="rna", out=folder / f"{size}")
            command = [sys.executable, "-c", MEMORY, str(pool), str(folder / "model")]
            command += [str(folder / f"scores{size}"), options.device]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks[f"{size:,} sequences"] = int(done.stdout.split()[-1]) / 1024
    return peaks


def parse() -> argparse.Namespace:
    bundled = files("frugalfm") / "data/demo/pool.fasta.gz"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pool", type=Path, nargs="?", default=Path(str(bundled)))
    parser.add_argument("--model-size", default="rna-fm-tiny", help="a named model, new")
    parser.add_argument("--checkpoint", type=Path, help="instead of a new model")
    parser.add_argument("--train-steps", type=int, default=200, help="of a new model")
    parser.add_argument("--only", choices=["", "head"], default="", help="scores of the head alone")
    parser.add_argument("--sequences", type=int, default=300)
    parser.add_argument("--released-sequences", type=int, default=16)
    parser.add_argument("--memory-sequences", type=int, default=5000)
    parser.add_argument("--subset", type=int, default=150, help="for the Fisher matrices")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, default=Path("scoring.json"))
    return parser.parse_args()


def main() -> None:
    options = parse()
    device = choose_device(options.device)
    options.device = str(device)
    if options.checkpoint:
        model, tokenizer = load_encoder(options.checkpoint, device=device)
    else:
        model, tokenizer = create_encoder(options.model_size)
        model = model.to(device)
    codec = Codec.from_tokenizer(tokenizer)
    sequences = sample_encoded(options.pool, codec, options.sequences).tokens
    if not options.checkpoint and options.train_steps:
        pretrain_briefly(model, codec, sequences, options)
    contenders = list_contenders(model, codec, options)
    scores = {}
    for name, contender in progress(contenders.items(), desc="scores"):
        contender.prepare(sequences[: options.subset])
        scores[name] = contender(sequences)
    few = sequences[:: max(1, len(sequences) // options.released_sequences)]
    layer = contenders[HEAD].gradients.layers[0]
    rows = time_all(
        contenders,
        lambda: run_released(model, codec, layer, few),
        len(sequences) / len(few),
        sequences,
        options,
    )
    for name, found in scores.items():
        truths = [of for of in (HEAD, EXACT) if of in scores]
        rows[name]["agreement"] = {of: agree(found, scores[of]) for of in truths}
    shares = profile_head(contenders[HEAD], sequences, device)
    memory = measure_memory(options)
    settings = {key: str(value) for key, value in vars(options).items()}
    result = {"options": settings, "scores": rows, "shares": shares, "memory_mb": memory}
    options.json.write_text(json.dumps(result, indent=1))
    print(describe_scores(result))


if __name__ == "__main__":
    main()

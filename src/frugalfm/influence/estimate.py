"""Hours, memory and disk of a plan, from what a probe measured: score, select, pretrain."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalfm.encoders import save_encoder
from frugalfm.influence.costs import Cost, Rates, Shapes
from frugalfm.influence.gradients import Gradients
from frugalfm.influence.pool import ADAPT_BATCH
from frugalfm.influence.probe import (
    Peak,
    Sample,
    Trained,
    draw_sample,
    probe_scoring,
    probe_training,
    score_shapes,
    train_shapes,
)
from frugalfm.influence.scoring import ScoreRecipe
from frugalfm.progress import progress
from frugalfm.sequences.alphabets import get_alphabet
from frugalfm.sequences.building import write_shards
from frugalfm.sequences.cutting import Policies
from frugalfm.sequences.readers import open_sources
from frugalfm.sequences.shards import Shards
from frugalfm.training.loop import Recipe

__all__ = ["Measured", "Plan", "measure", "predict"]

SAMPLE = 16_384  # sequences
_SELECTED = 24  # bytes a row of selection.parquet, beside its id
_ROW_MEMORY = 28  # bytes that training holds of a row: its offset, length, and places in plans
_HELD_OUT = 2000


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes
    ----------
    sequences
        Of the pool.
    budget
        Sequences of the coreset.
    steps, epochs
        Of pretraining; one of them is None.
    subset, adapt
        Of scoring: sequences for the Fisher matrix, and whether the model is adapted to them.
    validation_fraction, validate_every, save_every
        Of pretraining.
    """

    sequences: int
    budget: int
    steps: int | None
    epochs: int | None
    subset: int = 2000
    adapt: bool = True
    validation_fraction: float = 0.01
    validate_every: int = 500
    save_every: int = 500


@dataclass(frozen=True)
class Measured:
    """What the probe found.

    Attributes
    ----------
    residues, tokens
        A sequence, on average; tokens with special ones.
    build_seconds, read_seconds, encode_seconds
        A residue.
    load_seconds
        To make or load the model.
    shard_bytes, score_bytes, token_bytes
        On disk, a sequence.
    checkpoint_bytes
        Of a checkpoint.
    scoring, scoring_peak
        Of batches of scores, and memory.
    training
        Of optimizer steps.
    adapting_peak
        Memory of the adaptation, whose batches are smaller.
    score_shapes, train_shapes
        From a number of sequences to the batches of one pass.
    """

    residues: float
    tokens: float
    build_seconds: float
    read_seconds: float
    encode_seconds: float
    load_seconds: float
    shard_bytes: float
    score_bytes: float
    token_bytes: float
    checkpoint_bytes: float
    scoring: Rates
    scoring_peak: Peak
    training: Trained
    adapting_peak: Peak
    score_shapes: Callable[[int], Shapes]
    train_shapes: Callable[[int], Shapes]


def measure(
    shards: Shards,
    open_model: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    make_gradients: Callable[[PreTrainedModel], Gradients],
    recipe: ScoreRecipe,
    training: Recipe,
    *,
    seconds: float,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Probe everything on this machine.

    Parameters
    ----------
    shards
        The pool, or a part of it that is like the rest.
    open_model
        Makes or loads the model, on its device; it is scored with, then trained.
    make_gradients
        From the model to what scores.
    recipe, training
        Of scores and of pretraining.
    seconds
        How long scoring and training are run, each.
    seed
        Of the sample.
    clock
        Tells seconds.
    """
    started = clock()
    model, tokenizer = open_model()
    loading = clock() - started
    gradients = make_gradients(model)
    codec = gradients.codec
    sample = draw_sample(shards, codec, SAMPLE, seed, clock)
    lengths = sample.lengths
    with (
        TemporaryDirectory(prefix="frugalfm-estimate-") as name,
        progress(total=3, desc="probe", unit="stage") as bar,
    ):
        folder = Path(name)
        building = _probe_build(sample, shards.alphabet, folder / "build", clock)
        score_bytes = _probe_scores(sample, folder / "scores.parquet")
        save_encoder(model, tokenizer, folder / "checkpoint")
        checkpoint = _size(folder / "checkpoint")
        bar.update()
        rates, peak = probe_scoring(gradients, sample, recipe, seconds, clock)
        bar.update()
        trained = probe_training(
            model, sample, codec, training, gradients.device, folder, seconds, clock
        )
        bar.update()
    shard_bytes = sum(part.path.stat().st_size for part in shards.parts)
    return Measured(
        residues=shards.n_residues / shards.n_sequences,
        tokens=float(lengths.mean()) + 2,
        build_seconds=building,
        read_seconds=sample.read_seconds,
        encode_seconds=sample.encode_seconds,
        load_seconds=loading,
        shard_bytes=shard_bytes / shards.n_sequences,
        score_bytes=score_bytes,
        token_bytes=float(lengths.mean()) * codec.dtype.itemsize + 8,
        checkpoint_bytes=checkpoint,
        scoring=rates,
        scoring_peak=peak,
        training=trained,
        adapting_peak=trained.peak.scale(
            min(1.0, ADAPT_BATCH / training.batch_tokens), trained.save_bytes
        ),
        score_shapes=_extend(
            lengths, lambda some: score_shapes(gradients, some, recipe.batch_tokens)
        ),
        train_shapes=_extend(lengths, lambda some: train_shapes(some, codec, training)),
    )


def predict(plan: Plan, measured: Measured) -> list[Cost]:
    """Predict all stages: building the pool, the way by a coreset and its sum, and the full pool.

    A coreset is taken to have sequences as long as the pool's. What programs take to start, a few
    seconds each, is left out.
    """
    residues = plan.sequences * measured.residues
    build = Cost(
        "build the pool",
        residues * measured.build_seconds,
        None,
        None,
        plan.sequences * measured.shard_bytes,
    )
    score = _predict_score(plan, measured)
    choose = Cost(
        f"select {plan.budget:,}",
        residues * measured.read_seconds,
        None,
        None,
        plan.budget * (measured.shard_bytes + _SELECTED),
    )
    coreset = _predict_training(plan, measured, plan.budget, "pretrain on the coreset")
    chain = [score, choose, coreset]
    host = [cost.memory for cost in chain if cost.memory is not None]
    device = [cost.device_memory for cost in chain if cost.device_memory is not None]
    together = Cost(
        "these three together",
        sum(cost.seconds or 0.0 for cost in chain),
        max(host),
        max(device, default=None),
        sum(cost.disk for cost in chain),
    )
    full = _predict_training(plan, measured, plan.sequences, "or on the full pool")
    return [build, *chain, together, full]


def count_steps(plan: Plan, measured: Measured, rows: int) -> int:
    """Optimizer steps of pretraining on so many sequences."""
    if plan.steps is not None:
        return plan.steps
    assert plan.epochs is not None
    return max(1, round(plan.epochs * measured.train_shapes(rows - _held_out(plan, rows)).count))


def _predict_score(plan: Plan, measured: Measured) -> Cost:
    subset = min(plan.subset, plan.sequences)
    # Everything is read twice: the subset is drawn from the whole pool.
    read = 2 * measured.read_seconds + measured.encode_seconds
    seconds = measured.load_seconds + plan.sequences * measured.residues * read
    for rows in (subset, plan.sequences):  # the Fisher matrix, and the scores
        seconds += measured.scoring.total(measured.score_shapes(rows))
    if plan.adapt:
        seconds += measured.training.rates.total(measured.train_shapes(subset))
    peak = measured.scoring_peak
    if plan.adapt:
        adapting = measured.adapting_peak
        peak = Peak(max(peak.host, adapting.host), _larger(peak, adapting))
    disk = plan.sequences * measured.score_bytes + plan.adapt * measured.checkpoint_bytes
    return Cost("score", seconds, peak.host, peak.device, disk)


def _predict_training(plan: Plan, measured: Measured, rows: int, stage: str) -> Cost:
    training, held_out = measured.training, _held_out(plan, rows)
    steps = count_steps(plan, measured, rows)
    epoch = measured.train_shapes(rows - held_out)
    saves = (steps - 1) // plan.save_every
    seconds = (
        measured.load_seconds
        + rows * measured.residues * (measured.read_seconds + measured.encode_seconds)
        + steps * training.rates.total(epoch) / epoch.count
        + -(-steps // plan.validate_every)
        * held_out
        * measured.tokens
        * training.validation_seconds
        + saves * training.save_seconds
    )
    disk = (
        rows * measured.token_bytes
        + measured.checkpoint_bytes
        + min(saves, 2) * training.save_bytes  # a new state is written before the old one goes
    )
    name = f"{stage}, {steps:,} steps"
    return Cost(name, seconds, training.peak.host + rows * _ROW_MEMORY, training.peak.device, disk)


def _held_out(plan: Plan, rows: int) -> int:
    return min(max(1, round(plan.validation_fraction * rows)), _HELD_OUT, rows - 1)


def _larger(one: Peak, other: Peak) -> float | None:
    found = [peak.device for peak in (one, other) if peak.device is not None]
    return max(found, default=None)


def _extend(lengths: np.ndarray, plan: Callable[[np.ndarray], Shapes]) -> Callable[[int], Shapes]:
    """Plan for any number of sequences: as many of the sample, or all of it several times."""

    def shapes(rows: int) -> Shapes:
        return plan(lengths[:rows]).scale(max(1.0, rows / len(lengths)))

    return shapes


def _probe_build(sample: Sample, alphabet: str, folder: Path, clock: Callable[[], float]) -> float:
    """Seconds a residue of building shards from a FASTA file of the sample."""
    folder.mkdir()
    path = folder / "sample.fasta"
    rows = enumerate(sample.letters.to_pylist())
    path.write_text("".join(f">{number}\n{letters}\n" for number, letters in rows))
    started = clock()
    summary = write_shards(
        open_sources(path, alphabet),
        folder,
        get_alphabet(alphabet),
        Policies(max_length=1 << 30),
        drop_duplicates=True,
        reverse_complements=False,
        repeated_ids="rename",
    )
    return (clock() - started) / int(summary["residues"])


def _probe_scores(sample: Sample, path: Path) -> float:
    """Bytes a row of scores: ids as they are, numbers that cannot be compressed."""
    random = np.random.default_rng(0)
    n = len(sample.tokens)
    columns = {
        "id": sample.ids,
        "row": pa.array(np.arange(n)),
        "influence": pa.array(random.random(n, np.float32)),
        "loss": pa.array(random.random(n, np.float32)),
        "n_tokens": pa.array(sample.lengths),
        "length": pa.array(sample.lengths),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")
    return path.stat().st_size / n


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

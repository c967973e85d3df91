"""Run a few real batches of scoring and of training, and see what they take."""

from __future__ import annotations

import gc
import resource
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from frugalfm.encoders.devices import limit_batch
from frugalfm.influence.costs import Rates, Shapes, choose_widths, repeat_measures
from frugalfm.influence.gradients import Gradients
from frugalfm.influence.scoring import ScoreRecipe, estimate_fisher, score_sequences
from frugalfm.sequences.shards import Shards
from frugalfm.tokens.batches import SPECIALS, plan_by_length
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.packing import plan_packs
from frugalfm.tokens.store import TokenList
from frugalfm.training.data import Batch, TrainingData
from frugalfm.training.loop import Recipe, train, validate

__all__ = ["Peak", "Sample", "Trained", "draw_sample", "probe_scoring", "probe_training"]

Clock = Callable[[], float]

_GROUPS = 32  # row groups that a sample is drawn from, at most
_WIDTHS = 7
_FISHER = 16  # sequences
_VALIDATED = 16
_PATIENCE = 0.01  # seconds between looks at the memory


@dataclass(frozen=True)
class Sample:
    """Sequences drawn at random from a pool, in random order.

    Attributes
    ----------
    ids, letters
        As in the shards.
    tokens
        Encoded.
    read_seconds, encode_seconds
        A residue.
    """

    ids: pa.Array
    letters: pa.Array
    tokens: list[np.ndarray]
    read_seconds: float
    encode_seconds: float

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, without special tokens; int32."""
        return np.array([len(sequence) for sequence in self.tokens], np.int32)

    @property
    def residues(self) -> int:
        """Residues of all sequences."""
        return sum(len(sequence) for sequence in self.letters.to_pylist())


@dataclass(frozen=True)
class Peak:
    """Memory in bytes, of the process and of a GPU (None without one).

    Attributes
    ----------
    host, device
        The most.
    host_before, device_before
        What there was before.
    """

    host: float
    device: float | None
    host_before: float = 0.0
    device_before: float = 0.0

    def scale(self, share: float, fixed: float) -> Peak:
        """Guess the peak of batches `share` as large; `fixed` bytes are there whatever the batch.

        Fixed are gradients and the optimizer's state; activations grow with the batch.
        """

        def guess(most: float, before: float) -> float:
            grown = max(0.0, most - before)
            return before + max(share * grown, min(grown, fixed + share * (grown - fixed)))

        device = None if self.device is None else guess(self.device, self.device_before)
        return Peak(guess(self.host, self.host_before), device)


@dataclass(frozen=True)
class Trained:
    """What training takes.

    Attributes
    ----------
    rates
        Of optimizer steps.
    validation_seconds
        A token.
    save_seconds, save_bytes
        Of one saved state.
    peak
        Of memory.
    """

    rates: Rates
    validation_seconds: float
    save_seconds: float
    save_bytes: float
    peak: Peak


def draw_sample(shards: Shards, codec: Codec, size: int, seed: int, clock: Clock) -> Sample:
    """Draw rows from row groups all over the pool, and time reading and encoding them."""
    random = np.random.Generator(np.random.Philox(key=[seed, 1]))
    every = [(part, group) for part in shards.parts for group in range(shards.count_groups(part))]
    chosen = [every[i] for i in np.sort(random.permutation(len(every))[:_GROUPS])]
    started = clock()
    tables = [shards.read(part, ["id", "sequence", "length"], group) for part, group in chosen]
    spent, whole = clock() - started, pa.concat_tables(tables)
    rows = random.permutation(len(whole))[:size]
    residues = int(whole["length"].to_numpy().sum())
    drawn = whole.take(pa.array(rows)).combine_chunks()
    letters = drawn["sequence"].combine_chunks()
    started = clock()
    tokens, lengths = codec.encode(letters)
    encoding = clock() - started
    return Sample(
        drawn["id"].combine_chunks(),
        letters,
        np.split(tokens, np.cumsum(lengths)[:-1]),
        spent / max(residues, 1),
        encoding / max(int(drawn["length"].to_numpy().sum()), 1),
    )


def score_shapes(gradients: Gradients, lengths: np.ndarray, batch_tokens: int) -> Shapes:
    """Batches in which sequences of these lengths are scored."""
    rows = gradients.rows_per_sequence
    widths = (gradients.masks.padded(lengths) + SPECIALS) * rows
    plan = plan_by_length(widths - SPECIALS, limit_batch(batch_tokens, gradients.device))
    return _shapes([widths[batch].max() for batch in plan], [len(batch) for batch in plan])


def train_shapes(lengths: np.ndarray, codec: Codec, recipe: Recipe) -> Shapes:
    """Batches in which sequences of these lengths are trained on for an epoch."""
    order = {"seed": recipe.seed, "epoch": 0}
    if recipe.pack is not None:
        packed = plan_packs(lengths, recipe.batch_tokens, recipe.pack, **order)
        return _shapes([recipe.pack] * len(packed), [len(packs) for packs in packed])
    store = TokenList([np.zeros(length, np.uint8) for length in lengths])
    everything = np.arange(len(store))
    plan = TrainingData(store, everything, store, everything[:1], codec).plan(
        recipe.batch_tokens, **order
    )
    return _shapes([lengths[b].max() + SPECIALS for b in plan], [len(b) for b in plan])


def probe_scoring(
    gradients: Gradients, sample: Sample, recipe: ScoreRecipe, seconds: float, clock: Clock
) -> tuple[Rates, Peak]:
    """Score single batches of several widths, each many times.

    Parameters
    ----------
    gradients
        Of a model in evaluation mode.
    sample
        Of the pool.
    recipe
        Of the scores.
    seconds
        How long, about; longer where a few batches take longer.
    clock
        Tells seconds.
    """
    shapes = score_shapes(gradients, sample.lengths, recipe.batch_tokens)
    chosen = choose_widths(shapes, _WIDTHS)
    rows = gradients.rows_per_sequence
    plan = plan_by_length(
        (gradients.masks.padded(sample.lengths) + SPECIALS) * rows - SPECIALS,
        limit_batch(recipe.batch_tokens, gradients.device),
    )
    batches = [[sample.tokens[row] for row in plan[number]] for number in chosen]
    with watch_memory(gradients.device) as peaks:
        fisher = estimate_fisher(gradients, sample.tokens[:_FISHER], recipe)
        first = _time(lambda: score_sequences(gradients, fisher, batches[0], recipe), clock)
        if first * 2 * len(chosen) > seconds:
            few = np.unique([0, len(chosen) // 2, len(chosen) - 1])
            chosen, batches = chosen[few], [batches[number] for number in few]

        def run(number: int) -> None:
            score_sequences(gradients, fisher, batches[number], recipe)

        found = repeat_measures(run, len(batches), seconds, clock)
    return Rates.fit(shapes.widths[chosen], shapes.tokens[chosen], found), peaks[0]


def probe_training(
    model: nn.Module,
    sample: Sample,
    codec: Codec,
    recipe: Recipe,
    device: torch.device,
    folder: Path,
    seconds: float,
    clock: Clock,
) -> Trained:
    """Train on single batches of several widths, in turns; the model's weights change.

    Parameters
    ----------
    model
        On `device`.
    sample
        Of what is to be trained on.
    recipe
        How.
    folder
        For temporary files.
    seconds
        How long, about; longer where a few steps take longer.
    clock
        Tells seconds.
    """
    store = TokenList(sample.tokens)
    everything = np.arange(len(store))
    shapes = train_shapes(sample.lengths, codec, recipe)
    data = _Few(store, everything, store, everything[:_VALIDATED], codec)
    made = data.plan_batches(recipe.batch_tokens, recipe.pack, seed=recipe.seed, epoch=0)
    chosen = choose_widths(shapes, _WIDTHS)

    def run(numbers: Sequence[int], save_every: int = 1 << 40) -> list[float]:
        """Seconds of each of these steps."""
        stamps: list[float] = []

        def stamp(_: int = 0) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            stamps.append(clock())

        steps = replace(recipe, steps=len(numbers), validate_every=1 << 40, save_every=save_every)
        few = replace(
            data,
            batches=tuple(made[number] for number in numbers),
            held_out_rows=everything[:1],  # at the end, one sequence is validated
        )
        with TemporaryDirectory(dir=folder) as state:
            here = Path(state)
            train(
                model, few, steps, here, state=here, device=device, label="probe", before_step=stamp
            )
            stamp()
            saved.append(sum(file.stat().st_size for file in here.rglob("*") if file.is_file()))
        return np.diff(stamps).tolist()

    saved: list[int] = []
    with watch_memory(device) as peaks:
        middle = chosen[len(chosen) // 2]
        begun, saving, first = run([middle, chosen[0], chosen[0]], save_every=2)
        if first * 4 > seconds:
            chosen, measured = np.array([middle, chosen[0]]), [begun, first]
        else:
            few = min(len(chosen), int(seconds / (2 * first)))
            chosen = chosen[np.linspace(0, len(chosen) - 1, few).astype(np.int64)]
            rounds = int(np.clip(seconds / (first * len(chosen)), 2, 50))
            # The first step makes the optimizer's state.
            measured = run([chosen[0], *np.tile(chosen, rounds)])[1:]
        validating = [_time(lambda: validate(model, data, recipe, device), clock) for _ in range(3)]
    by_batch = [measured[place :: len(chosen)] for place in range(len(chosen))]
    validated = int((sample.lengths[:_VALIDATED] + SPECIALS).sum())
    return Trained(
        Rates.fit(shapes.widths[chosen], shapes.tokens[chosen], by_batch),
        float(np.median(validating)) / validated,
        max(0.0, saving - first),
        saved[0],
        peaks[0],
    )


@contextmanager
def watch_memory(device: torch.device) -> Iterator[list[Peak]]:
    """Look at the memory all the while; the list gets the peak at the end."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    found: list[Peak] = []
    most = before = resident_bytes()
    gpu_before = float(torch.cuda.memory_allocated(device)) if device.type == "cuda" else 0.0
    done = threading.Event()

    def look() -> None:
        nonlocal most
        while not done.wait(_PATIENCE):
            most = max(most, resident_bytes())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()
        reserved = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        found.append(Peak(max(most, resident_bytes()), reserved, before, gpu_before))


def resident_bytes() -> int:
    """Bytes of this process in main memory; where the system does not tell, the most so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return pages * resource.getpagesize()


@dataclass(frozen=True)
class _Few(TrainingData):
    """Training data whose epoch is some chosen batches."""

    batches: tuple[Callable[[], Batch], ...] = ()

    def plan_batches(
        self, batch_tokens: int, pack: int | None = None, *, seed: int, epoch: int
    ) -> list[Callable[[], Batch]]:
        """Return the chosen batches, if there are any."""
        if self.batches:
            return list(self.batches)
        return super().plan_batches(batch_tokens, pack, seed=seed, epoch=epoch)


def _shapes(widths: Sequence[int], rows: Sequence[int]) -> Shapes:
    wide = np.array(widths, np.float64)
    return Shapes(wide * np.array(rows), wide)


def _time(run: Callable[[], object], clock: Clock) -> float:
    started = clock()
    run()
    return clock() - started

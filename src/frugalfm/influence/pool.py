"""Scores of a whole pool: subset, adaptation and Fisher matrix once, then part by part."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, load_model, save_file, save_model

from frugalfm.artifacts import write_atomically
from frugalfm.influence.gradients import Gradients
from frugalfm.influence.scoring import (
    Fisher,
    ScoreRecipe,
    Scores,
    estimate_fisher,
    score_sequences,
)
from frugalfm.progress import progress
from frugalfm.sequences.shards import Part, Shards
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.store import TokenList
from frugalfm.training.data import TrainingData
from frugalfm.training.loop import Recipe, train

__all__ = ["draw_subset", "score_pool"]

_ADAPT_BATCH = 8192  # Fixed, so that scores do not depend on --batch-tokens.
_PIECE = 1 << 24  # residues that are encoded and scored at a time


def score_pool(
    gradients: Gradients, shards: Shards, recipe: ScoreRecipe, work: Path, scratch: Path
) -> dict[str, Any]:
    """Score all parts of some shards into `work`, skipping what an earlier call finished.

    Parameters
    ----------
    gradients
        Of the model; its weights are changed by the adaptation.
    shards
        The pool.
    recipe
        What decides the scores.
    work
        Gets ``part-*.parquet`` (columns ``id, row, influence, loss, n_tokens, length``) and
        ``fisher.safetensors``.
    scratch
        Gets the adapted model, until the scores are finished.

    Returns
    -------
    dict
        ``n_sequences``, percentiles of ``influence``, mean ``loss``, ``subset``, ``seconds``.
    """
    started = time.perf_counter()
    fisher = _prepare(gradients, shards, recipe, work, scratch)
    with progress(total=shards.n_residues, desc="score", unit="nt", unit_scale=True) as bar:
        for part in shards.parts:
            _score_part(gradients, fisher, shards, part, recipe, work, bar)
    summary = _summarise(sorted(work.glob("part-*.parquet")))
    return summary | {
        "subset": fisher.sequences,
        "seconds": round(time.perf_counter() - started, 1),
    }


def draw_subset(shards: Shards, codec: Codec, size: int, seed: int) -> list[np.ndarray]:
    """Draw rows uniformly without replacement and encode them, in row order."""
    random = np.random.Generator(np.random.Philox(key=[seed, 0]))
    size = min(size, shards.n_sequences)
    rows = np.sort(random.choice(shards.n_sequences, size, replace=False))
    drawn: list[np.ndarray] = []
    first = 0
    for batch in shards.batches(["sequence"]):
        inside = rows[(rows >= first) & (rows < first + len(batch))] - first
        if len(inside):
            drawn += _encode(codec, batch.column("sequence").take(pa.array(inside)))
        first += len(batch)
    return drawn


def _prepare(
    gradients: Gradients, shards: Shards, recipe: ScoreRecipe, work: Path, scratch: Path
) -> Fisher:
    """Adapt the model and estimate its Fisher matrix, or reload what an earlier call had."""
    path, adapted = work / "fisher.safetensors", scratch / "adaptation/model.safetensors"
    if path.is_file() and (recipe.adapt is None or adapted.is_file()):
        if recipe.adapt is not None:
            load_model(gradients.model, str(adapted))
        return Fisher(load_file(path), min(recipe.subset, shards.n_sequences))
    subset = draw_subset(shards, gradients.codec, recipe.subset, recipe.seed)
    if recipe.adapt is not None:
        _adapt(gradients, subset, recipe, adapted.parent)
        save_model(gradients.model, str(adapted))
    fisher = estimate_fisher(gradients, subset, recipe)
    draft = path.with_suffix(".tmp")
    save_file(fisher.tensors, draft)
    draft.replace(path)
    return fisher


def _adapt(
    gradients: Gradients, subset: Sequence[np.ndarray], recipe: ScoreRecipe, folder: Path
) -> None:
    """Train for one epoch on the subset [arXiv 2512.12932, Assumption 1]."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    store = TokenList(subset)
    everything = np.arange(len(store))
    data = TrainingData(store, everything, store, everything[:1], gradients.codec)
    assert recipe.adapt is not None
    training = Recipe(
        steps=0,
        batch_tokens=_ADAPT_BATCH,
        learning_rate=recipe.adapt,
        seed=recipe.seed,
        precision=gradients.precision,
    ).fix_steps(data, epochs=1)
    train(
        gradients.model,
        data,
        training,
        folder,
        state=folder,
        device=gradients.device,
        label="adapt",
    )


def _score_part(
    gradients: Gradients,
    fisher: Fisher,
    shards: Shards,
    part: Part,
    recipe: ScoreRecipe,
    work: Path,
    bar: Any,
) -> None:
    """Score one part; the file appears only when it is whole."""
    path = work / part.path.name
    table = shards.read(part, ["id", "sequence", "length"])
    lengths = table["length"].to_numpy()
    if not path.is_file():
        pieces: list[Scores] = []
        for start, stop in _cut(lengths):
            sequences = _encode(gradients.codec, table["sequence"].slice(start, stop - start))
            pieces.append(score_sequences(gradients, fisher, sequences, recipe))
            bar.update(int(lengths[start:stop].sum()))
        columns = {
            "id": table["id"],
            "row": pa.array(np.arange(part.rows, dtype=np.int64) + part.first_row),
            "influence": pa.array(np.concatenate([piece.influence for piece in pieces])),
            "loss": pa.array(np.concatenate([piece.loss for piece in pieces])),
            "n_tokens": pa.array(np.concatenate([piece.n_tokens for piece in pieces])),
            "length": table["length"],
        }
        with write_atomically(path, "wb") as handle:
            pq.write_table(pa.table(columns), handle, compression="zstd", write_page_checksum=True)
    else:
        bar.update(int(lengths.sum()))


def _cut(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Cut rows into ranges of about :data:`_PIECE` residues."""
    number = np.cumsum(lengths, dtype=np.int64) // _PIECE
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(lengths)], strict=True))


def _encode(codec: Codec, sequences: pa.Array | pa.ChunkedArray) -> list[np.ndarray]:
    tokens, lengths = codec.encode(sequences)
    return np.split(tokens, np.cumsum(lengths)[:-1])


def _summarise(parts: Sequence[Path]) -> dict[str, Any]:
    import duckdb

    with duckdb.connect() as connection:
        count, low, middle, high, top, loss = connection.execute(
            "SELECT count(*), approx_quantile(influence, 0.1), approx_quantile(influence, 0.5), "
            "approx_quantile(influence, 0.9), max(influence), avg(loss) FROM read_parquet(?)",
            [[str(part) for part in parts]],
        ).fetchone()
    return {
        "n_sequences": count,
        "influence": {"p10": low, "p50": middle, "p90": high, "max": top},
        "loss": loss,
    }

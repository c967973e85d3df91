"""Scores of a whole pool: subset, adaptation and Fisher matrix once, then piece by piece.

Any number of processes can do this together, knowing of each other only through the folder: see
:mod:`frugalfm.influence.workers`. One of them prepares; then each claims a piece at a time, and
whoever finds all pieces of a part there joins them. Pieces do not depend on who scores them, so
neither do scores.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, load_model, save_file, save_model

from frugalfm.coreset.footers import describe_part
from frugalfm.errors import FrugalError
from frugalfm.influence.gradients import Gradients
from frugalfm.influence.scoring import Fisher, ScoreRecipe, estimate_fisher, score_sequences
from frugalfm.influence.workers import (
    Claim,
    Claims,
    VanishedError,
    count_launched,
    is_first,
)
from frugalfm.progress import progress
from frugalfm.sequences.shards import Part, Shards
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.store import TokenList
from frugalfm.training.data import TrainingData
from frugalfm.training.loop import Recipe, train

__all__ = ["draw_subset", "score_pool", "summarise"]

ADAPT_BATCH = 8192
"""Tokens of a batch of the adaptation; fixed, so that scores do not depend on --batch-tokens."""
_PIECE = 1 << 22  # residues that are claimed, encoded and scored at a time
_SCORES = ("influence", "loss", "n_tokens")


def score_pool(
    gradients: Gradients,
    shards: Shards,
    recipe: ScoreRecipe,
    work: Path,
    scratch: Path,
    claims: Claims,
) -> int:
    """Score all parts of some shards into `work`, but for what others do or have done.

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
        Gets the adapted model and pieces of parts, until the scores are finished.
    claims
        In `scratch`.

    Returns
    -------
    int
        Sequences that this process scored. All parts are there, or the artifact is.

    Raises
    ------
    VanishedError
        The folder is gone.
    FrugalError
        A score is not finite.
    """
    fisher = _prepare(gradients, shards, recipe, work, scratch, claims)
    pieces = scratch / "pieces"
    pieces.mkdir(exist_ok=True)
    worker = _Worker(gradients, fisher, shards, recipe, work, pieces, claims)
    return worker.run()


def summarise(work: Path) -> dict[str, Any]:
    """Describe the finished parts: ``n_sequences``, percentiles of ``influence``, mean ``loss``."""
    import duckdb

    with duckdb.connect() as connection:
        count, low, middle, high, top, loss = connection.execute(
            "SELECT count(*), approx_quantile(influence, 0.1), approx_quantile(influence, 0.5), "
            "approx_quantile(influence, 0.9), max(influence), avg(loss) FROM read_parquet(?)",
            [[str(part) for part in sorted(work.glob("part-*.parquet"))]],
        ).fetchone()
    return {
        "n_sequences": count,
        "influence": {"p10": low, "p50": middle, "p90": high, "max": top},
        "loss": loss,
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
    gradients: Gradients,
    shards: Shards,
    recipe: ScoreRecipe,
    work: Path,
    scratch: Path,
    claims: Claims,
) -> Fisher:
    """Adapt the model and estimate its Fisher matrix, or load what another process has made."""
    path, adapted = work / "fisher.safetensors", scratch / "adapted.safetensors"
    made = [path] if recipe.adapt is None else [adapted, path]
    while not all(file.is_file() for file in made):
        claim = claims.take("preparation")
        if claim is None:
            claims.wait("prepare (adaptation and Fisher matrix)")
            continue
        with claim:
            if all(file.is_file() for file in made):
                break
            subset = draw_subset(shards, gradients.codec, recipe.subset, recipe.seed)
            if recipe.adapt is not None:
                _adapt(gradients, subset, recipe, claim, adapted)
            fisher = estimate_fisher(gradients, subset, recipe)
            with claim.write(path) as draft:
                save_file(fisher.tensors, draft)
    # Read by the process that made them too: whoever made them, all go on with the same.
    if recipe.adapt is not None:
        load_model(gradients.model, str(adapted))
    return Fisher(load_file(path), min(recipe.subset, shards.n_sequences))


def _adapt(
    gradients: Gradients,
    subset: Sequence[np.ndarray],
    recipe: ScoreRecipe,
    claim: Claim,
    path: Path,
) -> None:
    """Train for one epoch on the subset [arXiv 2512.12932, Assumption 1]; save the model."""
    if path.is_file():
        load_model(gradients.model, str(path))
        return
    folder = claim.path.with_name(f".{claim.path.name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    store = TokenList(subset)
    everything = np.arange(len(store))
    data = TrainingData(store, everything, store, everything[:1], gradients.codec)
    assert recipe.adapt is not None
    training = Recipe(
        steps=0,
        batch_tokens=ADAPT_BATCH,
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
    with claim.write(path) as draft:
        save_model(gradients.model, str(draft))
    shutil.rmtree(folder, ignore_errors=True)
    if claim.lost:  # and another may be at it; this model is not the one to adapt any more
        raise FrugalError("this process stood still for minutes, and others went on; run it again")


@dataclass(frozen=True)
class _Piece:
    """Some rows of one row group of a part; `start` and `stop` count from the group's first."""

    part: Part
    group: int
    start: int
    stop: int
    path: Path

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass
class _Worker:
    """One of the processes that score the parts of a pool."""

    gradients: Gradients
    fisher: Fisher
    shards: Shards
    recipe: ScoreRecipe
    work: Path
    pieces: Path
    claims: Claims
    scored: int = 0
    _cuts: dict[Part, list[_Piece]] = field(default_factory=dict)
    _shown: dict[Part, int] = field(default_factory=dict)

    def run(self) -> int:
        """Do all that is to be done and that nobody else does, until every part is there.

        Others may even have finished, and moved the folder; that is left to the caller.
        """
        self._warn_of_idle()
        pending = list(self.shards.parts)
        with self._bar, suppress(VanishedError):
            while pending:
                before = self.scored
                pending = [part for part in pending if not self._advance(part)]
                if pending and self.scored == before:
                    self.claims.wait("score the last pieces")
        return self.scored

    def _advance(self, part: Part) -> bool:
        """Score and join what nobody else does of a part; return whether it is there."""
        path = self.work / part.path.name
        if not path.is_file():
            pieces = self._cut(part)
            there = 0
            for piece in pieces:
                if piece.path.is_file() or self._score(piece, path):
                    there += piece.rows
                    self._show(part, there)
            if there == part.rows:
                self._join(part, pieces, path)
        if path.is_file():
            self._show(part, part.rows)
            return True
        return False

    def _score(self, piece: _Piece, path: Path) -> bool:
        """Score a piece of the part at `path`, unless another does; return whether it is there."""
        claim = self.claims.take(piece.path.stem)
        if claim is None:
            return False
        with claim:
            if not (path.is_file() or piece.path.is_file()):
                table = self.shards.read(piece.part, ["sequence"], piece.group)
                column = table["sequence"].slice(piece.start, piece.rows)
                sequences = _encode(self.gradients.codec, column)
                found = score_sequences(self.gradients, self.fisher, sequences, self.recipe)
                with claim.write(piece.path) as draft, draft.open("wb") as file:
                    np.savez(file, **{name: getattr(found, name) for name in _SCORES})
                self.claims.sign()
                self.scored += piece.rows
        return piece.path.is_file()

    def _join(self, part: Part, pieces: Sequence[_Piece], path: Path) -> None:
        """Write a part of which all pieces are there, unless another does."""
        claim = self.claims.take(path.name)
        if claim is None:
            return
        with claim:
            if not path.is_file():
                table = self.shards.read(part, ["id", "length"])
                rows = np.arange(part.rows, dtype=np.int64) + part.first_row
                loaded = [np.load(piece.path) for piece in pieces]
                columns = {"id": table["id"], "row": pa.array(rows)}
                columns |= {
                    name: pa.array(np.concatenate([file[name] for file in loaded]))
                    for name in _SCORES
                }
                columns["length"] = table["length"]
                with claim.write(path) as draft:
                    described = describe_part(pa.table(columns))
                    pq.write_table(described, draft, compression="zstd", write_page_checksum=True)
            if path.is_file():
                for piece in pieces:
                    piece.path.unlink(missing_ok=True)

    def _cut(self, part: Part) -> list[_Piece]:
        """Cut a part into pieces: the same in every process, and in order."""
        if part not in self._cuts:
            first = 0
            pieces = []
            for group in range(self.shards.count_groups(part)):
                lengths = self.shards.read(part, ["length"], group)["length"].to_numpy()
                for start, stop in _cut(lengths):
                    name = f"{part.path.stem}-{first + start:08d}-{first + stop:08d}.npz"
                    pieces.append(_Piece(part, group, start, stop, self.pieces / name))
                first += len(lengths)
            self._cuts[part] = pieces
        return self._cuts[part]

    @cached_property
    def _bar(self) -> Any:
        total = self.shards.n_sequences
        quiet = None if is_first() else True
        return progress(total=total, desc="score", unit="seq", unit_scale=True, disable=quiet)

    def _show(self, part: Part, rows: int) -> None:
        """Move the bar to so many rows of a part, whoever has scored them."""
        new = rows - self._shown.get(part, 0)
        if new > 0:
            self._bar.update(new)
            self._shown[part] = rows

    def _warn_of_idle(self) -> None:
        launched = count_launched()
        if not is_first() or len(self.shards.parts) >= launched:
            return
        pieces = sum(len(self._cut(part)) for part in self.shards.parts)
        if pieces < launched:
            print(
                f"note: {launched} processes share {pieces} pieces of work; some will only wait",
                file=sys.stderr,
            )


def _cut(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Cut rows into ranges of about :data:`_PIECE` residues."""
    number = np.cumsum(lengths, dtype=np.int64) // _PIECE
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(lengths)], strict=True))


def _encode(codec: Codec, sequences: pa.Array | pa.ChunkedArray) -> list[np.ndarray]:
    tokens, lengths = codec.encode(sequences)
    return np.split(tokens, np.cumsum(lengths)[:-1])

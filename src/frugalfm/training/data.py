"""What a training run reads: encoded rows, split once, batched by epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from frugalfm.errors import InputError
from frugalfm.sequences.shards import Shards
from frugalfm.tokens.batches import SPECIALS, plan_by_length, plan_epoch
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import IGNORED, mask_randomly
from frugalfm.tokens.packing import place_tokens, plan_packs
from frugalfm.tokens.store import Tokens, TokenStore

__all__ = ["Batch", "TrainingData", "check_fits", "make_batch", "make_packed_batch", "prepare_data"]

_VALIDATION_SEED = 20_251_212  # Its own stream: validation masks are the same for every run.


@dataclass(frozen=True)
class Batch:
    """One padded or packed batch for masked-language modelling.

    Attributes
    ----------
    input_ids, attention_mask, labels
        int64, shape ``(batch, width)``; labels are -100 but at targets. Of a packed batch the
        mask numbers the sequences of each row, as :func:`frugalfm.encoders.packed.run_packed`
        reads it.
    residues
        Residues in the batch, pads and special tokens not counted.
    packed
        Whether sequences share rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    residues: int
    packed: bool = False

    def to(self, device: torch.device) -> Batch:
        """Move all tensors."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """Move all tensors to memory that a GPU copies from while it computes."""
        return self._map(Tensor.pin_memory)

    def take(self, start: int, step: int) -> Batch:
        """Give every `step`-th row from `start` on; of none, the first without its targets.

        The number of residues stays that of all rows.
        """
        if start < len(self.input_ids):
            return self._map(lambda tensor: tensor[start::step])
        first = self._map(lambda tensor: tensor[:1])
        return replace(first, labels=torch.full_like(first.labels, IGNORED))

    def count_targets(self) -> int:
        """Count the tokens to predict."""
        return int((self.labels != IGNORED).sum())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            input_ids=function(self.input_ids),
            attention_mask=function(self.attention_mask),
            labels=function(self.labels),
        )


def make_batch(
    store: Tokens, rows: np.ndarray, codec: Codec, *, seed: int, epoch: int, rate: float = 0.15
) -> Batch:
    """Collate and mask some rows; a pure function of its arguments."""
    ids, lengths = codec.collate([store[row] for row in rows])
    masked, labels = mask_randomly(ids, lengths, rows, codec, seed=seed, epoch=epoch, rate=rate)
    return Batch(
        torch.from_numpy(masked),
        torch.from_numpy((ids != codec.pad_id).astype(np.int64)),
        torch.from_numpy(labels),
        int(lengths.sum()),
    )


def make_packed_batch(
    store: Tokens,
    packs: list[np.ndarray],
    width: int,
    codec: Codec,
    *,
    seed: int,
    epoch: int,
    rate: float = 0.15,
) -> Batch:
    """Mask some rows just as :func:`make_batch` does, and let those of a pack share a row."""
    rows = np.concatenate(packs)
    ids, lengths = codec.collate([store[row] for row in rows])
    masked, labels = mask_randomly(ids, lengths, rows, codec, seed=seed, epoch=epoch, rate=rate)
    sizes = lengths + SPECIALS
    places, segments = place_tokens(packs, sizes, width)
    tokens = np.arange(ids.shape[1]) < sizes[:, None]

    def lay(values: np.ndarray, elsewhere: int) -> Tensor:
        laid = np.full(segments.size, elsewhere, np.int64)
        laid[places] = values[tokens]
        return torch.from_numpy(laid.reshape(segments.shape))

    return Batch(
        lay(masked, codec.pad_id),
        torch.from_numpy(segments),
        lay(labels, IGNORED),
        int(lengths.sum()),
        packed=True,
    )


def prepare_data(
    work: Path, tokenizer: PreTrainedTokenizerBase, pools: Sequence[Shards], fraction: float
) -> TrainingData:
    """Encode shards for training, into `work`; what an earlier call encoded is kept.

    Parameters
    ----------
    work
        A stage's folder; gets ``tokens/`` and, with a second pool, ``validation/``.
    tokenizer
        Of the model.
    pools
        Shards to train on and, optionally, shards to validate on.
    fraction
        Share of the first pool to hold out if there is no second.

    Raises
    ------
    InputError
        The model does not take such sequences, or there are too few.
    """
    codec = Codec.from_tokenizer(tokenizer)
    for pool in pools:
        check_fits(pool, codec)
    stores = [
        TokenStore.write(map(pa.Table.from_batches, _singly(pool)), codec, work / name)
        for pool, name in zip(pools, ("tokens", "validation"), strict=False)
    ]
    if len(stores) == 2:
        everything = (np.arange(len(store)) for store in stores)
        data = TrainingData(stores[0], next(everything), stores[1], next(everything), codec)
    elif len(stores[0]) < 2:
        raise InputError(f"{pools[0].folder}: one sequence is too few to train and validate on")
    else:
        data = TrainingData.split(stores[0], codec, fraction)
    if next(data.validation_batches(1), None) is None:
        raise InputError(
            f"{pools[-1].folder}: no residue of what is held out is ever masked, so that nothing "
            "would be validated; give a larger --validation-fraction, or --validation"
        )
    return data


def check_fits(shards: Shards, codec: Codec) -> None:
    """Refuse shards of another alphabet, or with sequences longer than the model takes."""
    if shards.alphabet != codec.alphabet:
        remedy = f"choose a model of {shards.alphabet}"
        if "protein" not in {shards.alphabet, codec.alphabet}:
            remedy = f"build with --alphabet {codec.alphabet}, or {remedy}"
        raise InputError(
            f"{shards.folder}: holds {shards.alphabet}, the model reads {codec.alphabet}; {remedy}"
        )
    if shards.max_length > codec.max_residues:
        raise InputError(
            f"{shards.folder}: its longest sequence has {shards.max_length} residues, the model "
            f"takes {codec.max_residues}; build with --max-length {codec.max_residues}"
        )


def _singly(pool: Shards) -> Iterator[list[pa.RecordBatch]]:
    return ([batch] for batch in pool.batches(["sequence"]))


@dataclass(frozen=True)
class TrainingData:
    """Training rows of one store and validation rows of the same or another.

    Attributes
    ----------
    store, rows
        Encoded sequences and the row numbers trained on.
    held_out, held_out_rows
        The same for validation.
    codec
        Of the tokenizer that encoded both.
    """

    store: Tokens
    rows: np.ndarray
    held_out: Tokens
    held_out_rows: np.ndarray
    codec: Codec

    @classmethod
    def split(cls, store: Tokens, codec: Codec, fraction: float, limit: int = 2000) -> TrainingData:
        """Hold out a fraction of the rows at random, at least one and at most `limit`."""
        count = min(max(1, round(fraction * len(store))), limit, len(store) - 1)
        random = np.random.Generator(np.random.Philox(key=[_VALIDATION_SEED, len(store)]))
        order = random.permutation(len(store))
        return cls(store, np.sort(order[count:]), store, np.sort(order[:count]), codec)

    def plan(self, batch_tokens: int, *, seed: int, epoch: int) -> list[np.ndarray]:
        """Rows of each training batch of one epoch."""
        lengths = self.store.lengths[self.rows]
        plan = plan_epoch(lengths, batch_tokens, seed=seed, epoch=epoch)
        return [self.rows[batch] for batch in plan]

    def plan_batches(
        self, batch_tokens: int, pack: int | None = None, *, seed: int, epoch: int
    ) -> list[Callable[[], Batch]]:
        """All training batches of one epoch, each made when it is called.

        Parameters
        ----------
        batch_tokens
            Tokens of a batch, pads included.
        pack
            Tokens of a row that sequences share; None for a padded row each.
        seed, epoch
            Determine batches and masks.
        """
        order = {"seed": seed, "epoch": epoch}
        if pack is None:
            plan = self.plan(batch_tokens, **order)
            return [partial(make_batch, self.store, rows, self.codec, **order) for rows in plan]
        lengths = self.store.lengths[self.rows]
        packed = plan_packs(lengths, batch_tokens, pack, **order)
        return [
            partial(
                make_packed_batch,
                self.store,
                [self.rows[rows] for rows in packs],
                pack,
                self.codec,
                **order,
            )
            for packs in packed
        ]

    def validation_batches(self, batch_tokens: int) -> Iterator[Batch]:
        """All held-out rows, masked the same way at every call."""
        lengths = self.held_out.lengths[self.held_out_rows]
        for batch in plan_by_length(lengths, batch_tokens):
            rows = self.held_out_rows[batch]
            made = make_batch(self.held_out, rows, self.codec, seed=_VALIDATION_SEED, epoch=0)
            if (made.labels != IGNORED).any():
                yield made

"""Frozen embeddings: the encoder's last hidden states, pooled, in input order.

The last hidden states are what the masked-language head reads. Embeddings do not depend on how
sequences are batched or padded, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from frugalfm.encoders.devices import Precision, autocast, limit_batch
from frugalfm.encoders.pooled import mean_of_residues
from frugalfm.errors import InputError
from frugalfm.tokens.batches import SPECIALS, plan_by_length
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.inputs import Encoded

__all__ = ["Embedder", "Engine", "Pooling", "regroup"]

Pooling = Literal["mean", "cls", "token"]


class Engine(Protocol):
    """What runs an encoder outside torch, such as a deployed one."""

    @property
    def hidden_size(self) -> int:
        """Width of the states."""

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> Mapping[str, np.ndarray]:
        """Compute outputs of a padded batch by name, ``last_hidden_state`` among them."""


@dataclass(frozen=True)
class Embedder:
    """How embeddings are made.

    Attributes
    ----------
    model
        A masked-language model in evaluation mode, whose device is used; or an engine that runs
        one on the CPU.
    codec
        Of the tokenizer that it was trained with.
    pooling
        ``"mean"`` of the residues, ``"cls"`` for the first special token, or ``"token"`` for
        every residue. Special tokens and pads are never pooled.
    batch_tokens
        Padded tokens of a batch, at most.
    precision
        ``"bf16"`` runs the model under autocast; pooling is in fp32 either way. An engine has its
        own.
    """

    model: PreTrainedModel | Engine
    codec: Codec
    pooling: Pooling = "mean"
    batch_tokens: int = 16_384
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        if self.pooling == "token" and not self.codec.per_residue:
            raise InputError(
                "embeddings of residues (--pooling token, tasks with a structure) need a tokenizer "
                "with one token a residue; of sequences, --pooling mean and cls work, and for a "
                "label a residue `frugalfm tune` works"
            )

    @property
    def torch_model(self) -> PreTrainedModel:
        """The model, for what looks inside.

        Raises
        ------
        InputError
            An engine runs it.
        """
        if isinstance(self.model, PreTrainedModel):
            return self.model
        raise InputError("a deployed model cannot be looked into; use the checkpoint")

    @property
    def width(self) -> int:
        """Numbers in one embedding."""
        if isinstance(self.model, PreTrainedModel):
            return int(self.model.config.hidden_size)
        return self.model.hidden_size

    def embed(
        self,
        sequences: Sequence[np.ndarray],
        tick: Callable[[int], object] | None = None,
        names: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Embed encoded sequences; they and their embeddings are held in memory.

        Parameters
        ----------
        sequences
            uint8 residue ids of each, as from :meth:`Codec.encode`; none empty.
        tick
            Told the residues of every finished batch.
        names
            Of the sequences, for messages; otherwise they are counted from 1.

        Returns
        -------
        ndarray
            float32, shape ``(sequences, width)``; with pooling ``"token"``
            ``(all residues, width)``, the residues of one sequence after those of another.

        Raises
        ------
        InputError
            An embedding is not finite; names the sequence, the first one of its batch.
        """
        lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
        per_residue = self.pooling == "token"
        sizes = lengths if per_residue else np.ones_like(lengths)
        ends = np.cumsum(sizes)
        result = np.empty((int(sizes.sum()), self.width), dtype=np.float32)
        for batch in plan_by_length(lengths, limit_batch(self.batch_tokens, self._device)):
            ids, _ = self.codec.collate([sequences[row] for row in batch])
            pooled = self._pool(self.forward(ids), lengths[batch])
            for row, states in sorted(zip(batch.tolist(), pooled, strict=True), key=itemgetter(0)):
                own = states[1 : lengths[row] + 1] if per_residue else states
                if not np.isfinite(own).all():
                    name = f"sequence {row + 1}" if names is None else repr(names[row])
                    raise InputError(
                        f"the embedding of {name} is not finite; try --precision fp32, or check "
                        "the checkpoint with `frugalfm outliers`"
                    )
                result[ends[row] - sizes[row] : ends[row]] = own
            if tick is not None:
                tick(int(lengths[batch].sum()))
        return result

    @property
    def _device(self) -> torch.device:
        if isinstance(self.model, PreTrainedModel):
            device: torch.device = next(self.model.parameters()).device
            return device
        return torch.device("cpu")

    @torch.no_grad()
    def forward(self, ids: np.ndarray) -> Tensor:
        """Last hidden states of padded token ids, fp32, shape ``(batch, tokens, width)``."""
        attended = (ids != self.codec.pad_id).astype(np.int64)
        if not isinstance(self.model, PreTrainedModel):
            return torch.from_numpy(self.model.run(ids, attended)["last_hidden_state"])
        trunk = getattr(self.model, self.model.base_model_prefix)
        device = self._device
        with autocast(device, self.precision):
            out = trunk(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(attended).to(device),
            )
        states: Tensor = out.last_hidden_state
        return states.float()

    def _pool(self, states: Tensor, lengths: np.ndarray) -> np.ndarray:
        if self.pooling == "cls":
            states = states[:, 0]
        elif self.pooling == "mean":
            ends = torch.from_numpy(lengths + SPECIALS).to(states.device)[:, None]
            attended = torch.arange(states.shape[1], device=states.device) < ends
            states = mean_of_residues(states, attended)
        return np.asarray(states.cpu().numpy())


def regroup(pieces: Iterable[Encoded], residues: int) -> Iterator[Encoded]:
    """Cut or join pieces into ones of at most `residues` residues (or of a single sequence).

    Large pieces hold sequences of like length for a batch; small ones bound the memory.
    """
    ids: list[str] = []
    tokens: list[np.ndarray] = []
    held = 0
    for piece in pieces:
        for name, sequence in zip(piece.ids, piece.tokens, strict=True):
            if ids and held + len(sequence) > residues:
                yield Encoded(ids, tokens)
                ids, tokens, held = [], [], 0
            ids.append(name)
            tokens.append(sequence)
            held += len(sequence)
    if ids:
        yield Encoded(ids, tokens)

"""What a model with a head says of any sequences: batches of like length, answers in input order.

The model is whatever gives logits for token ids, so that torch and a deployed engine share all
that is around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from frugalfm.encoders.devices import Precision, autocast
from frugalfm.errors import FrugalError
from frugalfm.tasks.brackets import decode_pairs
from frugalfm.tasks.kinds import PAIRS, Kind, is_map
from frugalfm.tasks.maps import SEPARATION
from frugalfm.tokens.batches import SPECIALS, plan_by_length
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.inputs import Encoded
from frugalfm.training.labelled import piece_sizes

__all__ = ["DeployedPredictor", "Predictor", "TaskHead", "TaskRunner", "TorchPredictor"]


@dataclass(frozen=True)
class TaskHead:
    """What a model predicts.

    Attributes
    ----------
    kind, classes
        Of the task that it was tuned on.
    max_tokens
        Longest sequence that it was tuned on, in tokens with the special ones, if it was limited.
    threshold
        Of base pairs.
    """

    kind: Kind
    classes: tuple[str, ...] = ()
    max_tokens: int | None = None
    threshold: float = 0.5

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> TaskHead:
        """Read it from what ``frugalfm tune`` recorded."""
        return cls(
            summary["kind"],
            tuple(summary["classes"]),
            summary["tuning"].get("max_tokens"),
            summary.get("threshold", 0.5),
        )

    @classmethod
    def from_task(cls, task: Mapping[str, Any]) -> TaskHead:
        """Read what :meth:`describe` gave."""
        return cls(**{**task, "classes": tuple(task["classes"])})

    def describe(self) -> dict[str, Any]:
        """Give it as what is stored with a deployed model."""
        return asdict(self)

    @property
    def by_residue(self) -> bool:
        """Whether it speaks of residues, so that a sequence cannot be cut without a loss."""
        return self.kind == "token" or is_map(self.kind)

    @property
    def of_pairs(self) -> bool:
        """Whether it speaks of pairs of sequences."""
        return self.kind in PAIRS


class Predictor(Protocol):
    """Any engine that runs a model with a head."""

    def logits(self, ids: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """Compute logits of padded token ids.

        Parameters
        ----------
        ids, attended
            int64, shape ``(batch, width)``; `attended` is 1 where there is no pad.

        Returns
        -------
        ndarray
            float32, shape ``(batch, outputs)``, ``(batch, width, classes)`` for labels of
            residues, ``(batch, width, width)`` for maps.
        """


@dataclass(frozen=True)
class TorchPredictor:
    """A model with a head in torch, in evaluation mode, on the device that it is on."""

    model: nn.Module
    precision: Precision = "fp32"

    @torch.no_grad()
    def logits(self, ids: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """Compute logits, as :meth:`Predictor.logits` lays down."""
        device = next(self.model.parameters()).device
        with autocast(device, self.precision):
            out = self.model(
                input_ids=torch.from_numpy(ids).to(device),
                attention_mask=torch.from_numpy(attended).to(device),
            )
        return np.asarray(out.logits.float().cpu().numpy())


class Engine(Protocol):
    """What runs a deployed model."""

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> Mapping[str, np.ndarray]:
        """Compute outputs by name, ``logits`` among them."""


@dataclass(frozen=True)
class DeployedPredictor:
    """A deployed model; it computes without torch, which this module imports all the same."""

    engine: Engine

    def logits(self, ids: np.ndarray, attended: np.ndarray) -> np.ndarray:
        """Compute logits, as :meth:`Predictor.logits` lays down."""
        return np.asarray(self.engine.run(ids, attended)["logits"], np.float32)


class TaskRunner:
    """A predictor with all that is needed to answer for encoded records.

    Parameters
    ----------
    predictor
        Runs the model.
    head
        What it predicts.
    codec
        Of the model's tokenizer.
    batch_tokens
        Padded tokens of a batch, at most.
    """

    def __init__(
        self, predictor: Predictor, head: TaskHead, codec: Codec, batch_tokens: int
    ) -> None:
        self.predictor, self.head, self.codec = predictor, head, codec
        self.batch_tokens = batch_tokens
        pieces = piece_sizes(codec) if head.kind == "token" else None
        self._pieces = None if pieces is None else np.array(pieces)

    def answer(
        self, records: Encoded, tick: Callable[[int], object] | None = None
    ) -> list[np.ndarray]:
        """Answer for some records, all of them held in memory; batches are of like length.

        Parameters
        ----------
        records
            Encoded; a pair of sequences is one record, with ``<eos>`` between the two.
        tick
            Told the tokens of every finished batch.

        Returns
        -------
        list of ndarray
            Of each record: logits or values, shape ``(outputs,)``; for labels of residues
            ``(residues, classes)``; for maps the pairs that are predicted, shape ``(pairs, 3)``:
            two positions from 0 and their probability, the likeliest first; for distances those
            of all pairs, ``(L (L - 1) / 2,)``, in the order of :func:`numpy.triu_indices`.

        Raises
        ------
        FrugalError
            A logit is not a finite number; names the record.
        """
        answers: list[np.ndarray] = [np.empty(0)] * len(records.ids)
        parts = [self._parts(tokens) for tokens in records.tokens]
        for rows in plan_by_length(_widths(parts), self.batch_tokens):
            # Of pairs, the first sequences come before the second ones.
            batch = [parts[row][side] for side in range(len(parts[0])) for row in rows]
            ids, _ = self.codec.collate(batch)
            logits = self.predictor.logits(ids, (ids != self.codec.pad_id).astype(np.int64))
            for found, row in zip(logits, rows, strict=True):
                own = self._cut(found, parts[row][0])
                if not np.isfinite(own).all():
                    raise FrugalError(
                        f"the model's output for {records.ids[row]!r} is not finite; try "
                        "--precision fp32, or check the checkpoint with `frugalfm outliers`"
                    )
                answers[row] = self._reduce(own)
            if tick is not None:
                tick(sum(len(records.tokens[row]) for row in rows))
        return answers

    def _parts(self, tokens: np.ndarray) -> tuple[np.ndarray, ...]:
        if not self.head.of_pairs:
            return (tokens,)
        middle = int(np.flatnonzero(tokens == self.codec.eos_id)[0])
        return tokens[:middle], tokens[middle + 1 :]

    def _cut(self, found: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Take what is said of the residues; there is one special token before them."""
        if is_map(self.head.kind):
            return found[1 : len(tokens) + 1, 1 : len(tokens) + 1]
        if self.head.kind == "token":
            size = len(tokens) if self._pieces is None else int(self._pieces[tokens].sum())
            return found[1 : size + 1].copy()  # lest the whole batch stays in memory
        return found

    def _reduce(self, found: np.ndarray) -> np.ndarray:
        """Keep of a map what is written down."""
        kind = self.head.kind
        if not is_map(kind):
            return found
        if kind == "distance":
            return np.asarray(found[np.triu_indices(len(found), 1)], np.float32)
        odds = expit(found)
        if kind == "base-pair":
            pairs, scores = decode_pairs(odds, self.head.threshold)
        else:
            pairs = np.stack(np.triu_indices(len(odds), SEPARATION[kind]), 1)
            scores = odds[pairs[:, 0], pairs[:, 1]]
            top = np.argsort(-scores, kind="stable")[: len(odds)]
            pairs, scores = pairs[top], scores[top]
        return np.column_stack([pairs, scores])


def _widths(parts: Sequence[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Tokens that each record takes of a batch, but for the special ones of one sequence."""
    lengths = np.array([[len(side) for side in record] for record in parts], np.int64)
    # A pair takes two rows of a batch, of the longer one's width.
    return lengths[:, 0] if lengths.shape[1] == 1 else 2 * lengths.max(1) + SPECIALS

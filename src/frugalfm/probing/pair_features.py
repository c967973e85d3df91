"""Features of pairs of residues from a frozen encoder: attention maps and products of embeddings.

Attention maps are those of all layers and heads, without special tokens, symmetrised and corrected
by the average product (APC), as for contact prediction by Rao et al. (2020). Products are
``h_i * h_j`` and ``|h_i - h_j|`` of last hidden states, with the separation, one-hot in bins. All
of them are the same for ``(i, j)`` and ``(j, i)``. Features are gathered at some pairs to fit a
linear probe; for whole maps the probe is applied layer by layer, so that no more than one layer's
maps of one batch, and one sequence's products, are held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frugalfm.attention.binding import find_attentions
from frugalfm.attention.strength import watch_attention
from frugalfm.attention.weights import attention_weights
from frugalfm.encoders.devices import limit_batch
from frugalfm.errors import InputError
from frugalfm.probing.embed import Embedder
from frugalfm.tokens.batches import SPECIALS, plan_by_length

__all__ = ["PairReader", "correct_map"]

_EDGES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 512)
"""Where bins of separations begin, but for the first."""
_WEIGHTS = 1 << 25  # attention weights of one layer held at a time, unless one sequence has more
_DIFFERENCES = 1 << 24  # numbers held at a time

Tick = Callable[[int], object]
See = Callable[[int, Tensor], None]


def correct_map(weights: Tensor) -> Tensor:
    """Symmetrise attention maps and subtract the average product (Dunn et al. 2008).

    Parameters
    ----------
    weights
        Shape ``(maps, residues, residues)``.

    Returns
    -------
    Tensor
        ``s - r r^T / sum(r)`` of each ``s = w + w^T`` with row sums r; s itself where its sum is
        0.
    """
    both = weights + weights.transpose(-1, -2)
    rows = both.sum(-1)
    total = rows.sum(-1)[:, None, None]
    product = rows[:, :, None] * rows[:, None, :]
    return both - torch.where(total > 0, product / total.clamp_min(1e-30), 0)


@dataclass(frozen=True)
class PairReader:
    """Reads features of pairs of residues off an encoder.

    Attributes
    ----------
    embedder
        With pooling ``"token"``.
    attention, products
        Which features, in this order: a map for each layer and head, and the products with the
        bins of the separation.
    """

    embedder: Embedder
    attention: bool
    products: bool

    def __post_init__(self) -> None:
        if self.attention and not self._modules:
            kind = type(self.embedder.torch_model).__name__
            raise InputError(
                f"{kind}: its attention cannot be looked at, since it does not go through "
                "transformers' attention interface; use --probe pairs"
            )

    @property
    def width(self) -> int:
        """Features of a pair."""
        return self._maps + self.products * (2 * self.embedder.width + len(_EDGES) + 1)

    @property
    def _modules(self) -> list[Any]:
        return find_attentions(self.embedder.torch_model)

    @property
    def _heads(self) -> int:
        return int(self.embedder.torch_model.config.num_attention_heads)

    @property
    def _maps(self) -> int:
        return len(self._modules) * self._heads if self.attention else 0

    def gather(
        self,
        sequences: Sequence[np.ndarray],
        pairs: Sequence[tuple[np.ndarray, np.ndarray]],
        tick: Tick | None = None,
    ) -> np.ndarray:
        """Read the features of some pairs of each sequence.

        Parameters
        ----------
        sequences
            Encoded, as from :meth:`Codec.encode`.
        pairs
            Of each, the left and the right positions.
        tick
            Told the residues of every finished batch.

        Returns
        -------
        ndarray
            float32, shape ``(pairs of all sequences, width)``, in order.
        """
        sizes = np.array([len(left) for left, _ in pairs], np.int64)
        starts = np.cumsum(sizes) - sizes
        result = np.empty((int(sizes.sum()), self.width), np.float32)
        for batch in self._plan(sequences):
            lengths = [len(sequences[row]) for row in batch]
            places = [tuple(torch.from_numpy(x).to(self._device) for x in pairs[r]) for r in batch]
            parts = [result[starts[row] : starts[row] + sizes[row]] for row in batch]

            def see(
                layer: int,
                weights: Tensor,
                lengths: list[int] = lengths,
                places: list[Any] = places,
                parts: list[np.ndarray] = parts,
            ) -> None:
                columns = slice(layer * self._heads, (layer + 1) * self._heads)
                for row, (length, (i, j)) in enumerate(zip(lengths, places, strict=True)):
                    maps = correct_map(_strip(weights[row], length))
                    parts[row][:, columns] = maps[:, i, j].T.cpu().numpy()

            states = self._forward([sequences[row] for row in batch], see)
            if self.products:
                for row, (i, j) in enumerate(places):
                    h = states[row, 1 : lengths[row] + 1]
                    found = torch.cat([h[i] * h[j], (h[i] - h[j]).abs(), _separate(i, j)], 1)
                    parts[row][:, self._maps :] = found.cpu().numpy()
            if tick is not None:
                tick(sum(lengths))
        return result

    def combine(
        self,
        sequences: Sequence[np.ndarray],
        weights: np.ndarray,
        bias: np.ndarray,
        tick: Tick | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Apply linear functions of the features to all pairs of each sequence.

        Parameters
        ----------
        sequences, tick
            As of :meth:`gather`.
        weights, bias
            Shapes ``(outputs, width)`` and ``(outputs,)``.

        Yields
        ------
        row
            Number of the sequence; they come longest first.
        maps
            float32, shape ``(outputs, residues, residues)``, symmetric; the diagonal means
            nothing.
        """
        linear = torch.from_numpy(weights.astype(np.float32)).to(self._device)
        shift = torch.from_numpy(bias.astype(np.float32)).to(self._device)[:, None, None]
        for batch in self._plan(sequences):
            lengths = [len(sequences[row]) for row in batch]
            maps = [shift.repeat(1, length, length) for length in lengths]

            def see(
                layer: int,
                found: Tensor,
                lengths: list[int] = lengths,
                maps: list[Tensor] = maps,
            ) -> None:
                part = linear[:, layer * self._heads : (layer + 1) * self._heads]
                for row, length in enumerate(lengths):
                    maps[row] += torch.einsum(
                        "oh,hij->oij", part, correct_map(_strip(found[row], length))
                    )

            states = self._forward([sequences[row] for row in batch], see)
            for row, number in enumerate(batch.tolist()):
                if self.products:
                    h = states[row, 1 : lengths[row] + 1]
                    maps[row] += self._multiply(h, linear[:, self._maps :])
                yield number, maps[row].cpu().numpy()
            if tick is not None:
                tick(sum(lengths))

    def _multiply(self, h: Tensor, linear: Tensor) -> Tensor:
        """Apply linear functions to the products of all pairs, shape ``(outputs, L, L)``."""
        width, length = h.shape[1], len(h)
        of_product, of_difference, of_bin = linear.split([width, width, len(_EDGES) + 1], 1)
        found: Tensor = (h[None] * of_product[:, None]) @ h.T
        rows = max(1, _DIFFERENCES // (length * width))
        for start in range(0, length, rows):
            part = (h[start : start + rows, None] - h[None]).abs()
            found[:, start : start + rows] += (part @ of_difference.T).permute(2, 0, 1)
        place = torch.arange(length, device=h.device)
        found += of_bin[:, _bin((place[:, None] - place).abs())]
        return found

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.embedder.torch_model.parameters()).device
        return device

    def _plan(self, sequences: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        for batch in plan_by_length(lengths, limit_batch(self.embedder.batch_tokens, self._device)):
            size = len(batch)
            if self.attention:
                size = max(1, _WEIGHTS // (self._heads * (int(lengths[batch[0]]) + SPECIALS) ** 2))
            for start in range(0, len(batch), size):
                yield batch[start : start + size]

    def _forward(self, sequences: list[np.ndarray], see: See) -> Tensor:
        """Last hidden states of a batch; `see` gets each layer's weights before that."""
        ids, _ = self.embedder.codec.collate(sequences)
        model = self.embedder.torch_model
        if not self.attention:
            return self.embedder.forward(ids)
        name = getattr(model.config, "attention", None) or "softmax"

        def watch(layer: int, module: Any, *given: Any) -> None:
            query, key, _, bias, scale = given
            see(layer, attention_weights(name, module, query, key, bias, scale))

        with _observable(model), watch_attention(model, watch):
            return self.embedder.forward(ids)


def _strip(weights: Tensor, length: int) -> Tensor:
    """Leave out special tokens and pads."""
    return weights[:, 1 : length + 1, 1 : length + 1]


def _bin(apart: Tensor) -> Tensor:
    return torch.bucketize(apart, torch.tensor(_EDGES, device=apart.device), right=True)


def _separate(i: Tensor, j: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(_bin(j - i), len(_EDGES) + 1).float()


@contextlib.contextmanager
def _observable(model: Any) -> Iterator[None]:
    """Let a model that runs transformers' own softmax run ours for a while: only it is watched."""
    runs = model.config._attn_implementation  # noqa: SLF001 - transformers has no other way
    if getattr(model.config, "attention", None) is not None:
        yield
        return
    model.set_attn_implementation("softmax")
    try:
        yield
    finally:
        model.set_attn_implementation(runs)

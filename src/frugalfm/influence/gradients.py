"""Per-sequence gradients of the head's dense weight, from hooks, without a backward pass.

The masked-language-modelling loss reaches the weight of the head's first linear layer through
that layer alone, so the gradient of one sequence is a sum of outer products over its targets,
``G = sum_t delta_t x_t^T``, with ``x_t`` the layer's input and ``delta_t`` the loss's gradient
with respect to its output. The trunk runs forward only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from frugalfm.encoders.devices import Precision, autocast
from frugalfm.encoders.mlm_head import find_head
from frugalfm.influence.masks import MaskScheme
from frugalfm.tokens.codec import Codec

__all__ = ["Gradients", "HeadGradients", "Losses", "Reduction", "Visit", "reduction_factors"]

Reduction = Literal["sqrt", "mean", "sum"]


class Visit(Protocol):
    """Gets one layer's share of the gradients of a batch."""

    def __call__(self, layer: str, inputs: Tensor, deltas: Tensor) -> None:
        """Take the factors of ``G[b] = deltas[b].T @ inputs[b]``.

        Parameters
        ----------
        layer
            Name of the layer's weight.
        inputs, deltas
            Shape ``(batch, tokens, d_in)`` and ``(batch, tokens, d_out)``: the layer's input, and
            the gradient of the reduced loss at its output.
        """


@dataclass(frozen=True)
class Losses:
    """What a batch's forward passes gave beside gradients.

    Attributes
    ----------
    losses
        Shape ``(batch,)``: loss summed over the targets, in nats.
    counts
        int64, shape ``(batch,)``: targets.
    """

    losses: Tensor
    counts: Tensor


class Gradients(ABC):
    """Computes per-sequence gradients of a masked-language model, layer by layer, factored.

    Parameters
    ----------
    model
        A masked-language model in evaluation mode.
    codec
        Of its tokenizer.
    masks
        What a sequence's loss is.
    precision
        Of the forward passes.

    Attributes
    ----------
    layers
        Names of the linear layers whose weights are looked at.
    """

    layers: list[str]

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        *,
        masks: MaskScheme | None = None,
        precision: Precision = "fp32",
    ) -> None:
        self.model = model
        self.codec = codec
        self.masks = masks or MaskScheme()
        self.precision = precision
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype

    @abstractmethod
    def __call__(
        self, sequences: Sequence[np.ndarray], reduction: Reduction, visit: Visit
    ) -> Losses:
        """Run all passes over one batch, and have every layer visited once.

        Parameters
        ----------
        sequences
            Encoded.
        reduction
            See :class:`frugalfm.influence.scoring.ScoreRecipe`.
        visit
            Gets the gradients of each layer.
        """

    @property
    def rows_per_sequence(self) -> int:
        """Rows of the model's input that one sequence takes up at a time."""
        return 1


class HeadGradients(Gradients):
    """Gradients of the head's first linear layer: as cheap as the forward passes.

    The head is differentiated at the targets only, and in full precision; the trunk is not.

    Parameters
    ----------
    model, codec, masks, precision
        See :class:`Gradients`.
    head
        Name of the linear layer, the head's first one when None; see
        :func:`frugalfm.encoders.mlm_head.find_head`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        *,
        masks: MaskScheme | None = None,
        precision: Precision = "fp32",
        head: str | None = None,
    ) -> None:
        super().__init__(model, codec, masks=masks, precision=precision)
        self.trunk = getattr(model, model.base_model_prefix)
        self.head, self.dense = find_head(model, head)
        self.layers = [name for name, module in model.named_modules() if module is self.dense]

    def __call__(
        self, sequences: Sequence[np.ndarray], reduction: Reduction, visit: Visit
    ) -> Losses:
        """Run all passes over one batch; see :meth:`Gradients.__call__`."""
        views = self.masks.view(self.codec, sequences, self.device)
        found: list[tuple[Tensor, ...]] = []
        for masked, target in zip(views.masked, views.targets, strict=True):
            hidden = self._run_trunk(masked, views.attention)[target]
            owner = target.nonzero()[:, 0]
            found.append((owner, *self._run_head(hidden, views.tokens[target])))
        owner, inputs, deltas, losses = (torch.cat(parts) for parts in zip(*found, strict=True))
        deltas = deltas * reduction_factors(views.counts, reduction, self.dtype)[owner, None]
        visit(self.layers[0], *_by_sequence(owner, views.counts, inputs, deltas))
        total = torch.zeros(len(views.counts), device=self.device, dtype=losses.dtype)
        return Losses(total.index_add_(0, owner, losses), views.counts)

    @torch.no_grad()
    def _run_trunk(self, tokens: Tensor, attention: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            out = self.trunk(input_ids=tokens, attention_mask=attention)
        hidden: Tensor = out.last_hidden_state
        return hidden.to(self.dtype)

    def _run_head(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the dense layer's inputs, the gradients at its output, and the losses."""
        seen: dict[str, Tensor] = {}

        def watch(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            seen["input"] = args[0].detach()
            # A leaf in place of the output: differentiation starts and ends here.
            seen["output"] = output.detach().requires_grad_()
            return seen["output"]

        handle = self.dense.register_forward_hook(watch)
        try:
            with torch.enable_grad():
                logits = self.head(hidden)
                losses = functional.cross_entropy(logits, labels, reduction="none")
                (delta,) = torch.autograd.grad(losses.sum(), seen["output"])
        finally:
            handle.remove()
        return seen["input"], delta, losses.detach()


def reduction_factors(counts: Tensor, reduction: Reduction, dtype: torch.dtype) -> Tensor:
    """Return what the summed loss of each sequence is multiplied with, shape ``(batch,)``."""
    numbers = counts.clamp_min(1).to(dtype)
    factors = {"sqrt": numbers.rsqrt(), "mean": 1.0 / numbers, "sum": torch.ones_like(numbers)}
    return factors[reduction]


def _by_sequence(owner: Tensor, counts: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Gather rows, shape ``(targets, d)``, to ``(batch, most targets, d)``, padded by zeros."""
    order = torch.argsort(owner, stable=True)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(owner), device=owner.device) - first[owner[order]]
    shape = (len(counts), int(counts.max()))
    gathered = []
    for rows in values:
        rectangle = torch.zeros(*shape, rows.shape[-1], device=rows.device, dtype=rows.dtype)
        rectangle[owner[order], place] = rows[order]
        gathered.append(rectangle)
    return tuple(gathered)

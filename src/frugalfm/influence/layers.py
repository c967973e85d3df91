"""Per-sequence gradients of all linear layers: one backward pass of the summed loss.

Losses of sequences don't mix, so one backward pass gives each linear layer the gradients
``delta_t`` at its output for all sequences at once; with its inputs ``x_t`` they are the factors
of every sequence's own gradient, ``G = sum_t delta_t x_t^T``. Autograd never computes gradients of
weights, and what a layer gets is used before the next one's turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from frugalfm.encoders.devices import Precision, autocast
from frugalfm.errors import InputError
from frugalfm.influence.gradients import Gradients, Losses, Reduction, Visit, reduction_factors
from frugalfm.influence.masks import MaskScheme
from frugalfm.tokens.codec import Codec

__all__ = ["LayerGradients"]


class LayerGradients(Gradients):
    """Gradients of the weights of all linear layers, in trunk and head.

    A decoder whose weight is tied to an embedding is no layer of its own: its gradient is a part
    of the embedding's, and embeddings are left out, as are biases and LayerNorms. Linear layers
    that share one weight count as one, under the first one's name. A layer that no target depends
    on has no gradient.

    All passes over a sequence are one batch, because the square of a sum over passes is not the
    sum of their squares: memory holds the activations of at least one sequence's passes.

    Parameters
    ----------
    model, codec, masks, precision
        See :class:`Gradients`; the precision is also the backward pass's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        *,
        masks: MaskScheme | None = None,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(model, codec, masks=masks, precision=precision)
        tied = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
        self.linears = {
            name: part
            for name, part in model.named_modules()
            if isinstance(part, nn.Linear) and id(part.weight) not in tied
        }
        if not self.linears:
            raise InputError(f"{type(model).__name__}: has no linear layers to take gradients of")
        self.layers = list(self.linears)

    @property
    def rows_per_sequence(self) -> int:
        """Rows of the model's input that one sequence takes up at a time."""
        return self.masks.n_passes

    def __call__(
        self, sequences: Sequence[np.ndarray], reduction: Reduction, visit: Visit
    ) -> Losses:
        """Run all passes over one batch; see :meth:`Gradients.__call__`."""
        views = self.masks.view(self.codec, sequences, self.device)
        passes, batch, width = views.masked.shape
        targets = views.targets.transpose(0, 1).reshape(batch * passes, width)
        owner = targets.nonzero()[:, 0] // passes
        with _follow_activations(self.model), _Watch(self.linears, views.masked.shape) as watch:
            with autocast(self.device, self.precision):
                logits = self.model(
                    input_ids=views.masked.transpose(0, 1).reshape(batch * passes, width),
                    attention_mask=views.attention.repeat_interleave(passes, 0),
                ).logits[targets]
            labels = views.tokens.repeat_interleave(passes, 0)[targets]
            losses = functional.cross_entropy(logits.to(self.dtype), labels, reduction="none")
            factors = reduction_factors(views.counts, reduction, self.dtype)[owner]
            watch.differentiate((losses * factors).sum(), visit)
        total = torch.zeros(batch, device=self.device, dtype=self.dtype)
        return Losses(total.index_add_(0, owner, losses.detach()), views.counts)


@contextmanager
def _follow_activations(model: nn.Module) -> Iterator[None]:
    """Let autograd follow activations but no weights."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_()


class _Watch:
    """Pairs each input of linear layers with the gradient at its output.

    Parameters
    ----------
    linears
        What to watch.
    shape
        Passes, sequences, and width of the batch.
    """

    def __init__(self, linears: dict[str, nn.Linear], shape: Sequence[int]) -> None:
        self.linears = linears
        self.passes, self.batch, self.width = shape
        self.names: dict[int, str] = {}  # by weight: layers may share one
        for name, linear in linears.items():
            self.names.setdefault(id(linear.weight), name)
        self.uses: dict[int, int] = {}
        self.pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self.visit: Visit

    def __enter__(self) -> _Watch:
        self.handles = [
            linear.register_forward_hook(self._see_output) for linear in self.linears.values()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def differentiate(self, loss: Tensor, visit: Visit) -> None:
        """Run the backward pass; each weight is visited once all its uses have gradients."""
        self.visit = visit
        loss.backward()
        for weight in list(self.pairs):  # shared ones, of which some use reaches no target
            self._flush(weight)

    def _see_output(self, linear: nn.Module, args: Any, output: Tensor) -> Tensor:
        inputs, weight = args[0].detach(), id(linear.weight)
        self._check(inputs, self.names[weight])
        if not output.requires_grad:  # next to the embeddings: here differentiation ends
            output = output.detach().requires_grad_()
        self.uses[weight] = self.uses.get(weight, 0) + 1

        def pair(deltas: Tensor) -> None:
            found = self.pairs.setdefault(weight, [])
            found.append((self._by_sequence(inputs), self._by_sequence(deltas)))
            if len(found) == self.uses[weight]:
                self._flush(weight)

        output.register_hook(pair)
        return output

    def _flush(self, weight: int) -> None:
        inputs, deltas = zip(*self.pairs.pop(weight), strict=True)
        with torch.no_grad():
            self.visit(self.names[weight], torch.cat(inputs, 1), torch.cat(deltas, 1))

    def _by_sequence(self, values: Tensor) -> Tensor:
        return values.detach().reshape(self.batch, -1, values.shape[-1])

    def _check(self, inputs: Tensor, name: str) -> None:
        """Sequences must be the outermost dimension, or flattened with their tokens."""
        rows = self.batch * self.passes
        if inputs.shape[0] not in {rows, rows * self.width}:
            raise InputError(
                f"layer {name} gets an input of shape {tuple(inputs.shape)}, which cannot be told "
                f"apart by sequence ({rows} rows of {self.width} tokens); score with --layers head"
            )

"""Per-sequence gradients of the head's dense weight, from hooks, without a backward pass.

The masked-language-modelling loss reaches the weight of the head's first linear layer through
that layer alone, so the gradient of one sequence is a sum of outer products over its targets,
``G = sum_t delta_t x_t^T``, with ``x_t`` the layer's input and ``delta_t`` the loss's gradient
with respect to its output. The trunk runs forward only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from frugalfm.encoders.devices import Precision, autocast
from frugalfm.errors import InputError
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import hash_sequences, mask_groups

__all__ = ["HeadGradients", "SequenceGradients", "find_head"]

_CHUNK = 1 << 26  # elements of per-sequence gradients that exist at a time (256 MB in fp32)


@dataclass(frozen=True)
class SequenceGradients:
    """What one batch of sequences contributes, before any reduction.

    Attributes
    ----------
    inputs, deltas
        fp32, shape ``(batch, width, d_in)`` and ``(batch, width, d_out)``: the head layer's
        input and the gradient of the summed loss at its output; zero but at targets.
    losses
        fp32, shape ``(batch,)``: loss summed over the targets, in nats.
    counts
        int64, shape ``(batch,)``: targets.
    """

    inputs: Tensor
    deltas: Tensor
    losses: Tensor
    counts: Tensor

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield gradients of the summed loss, shape ``(some, d_out, d_in)``, piece by piece."""
        step = max(1, _CHUNK // (self.inputs.shape[-1] * self.deltas.shape[-1]))
        for start in range(0, len(self.inputs), step):
            part = slice(start, start + step)
            yield part, torch.bmm(self.deltas[part].transpose(1, 2), self.inputs[part])


class HeadGradients:
    """Computes per-sequence gradients of the head's dense weight over masked passes.

    Parameters
    ----------
    model
        A masked-language model in evaluation mode.
    codec
        Of its tokenizer.
    groups
        Every residue is masked exactly once over this many passes; see
        :func:`frugalfm.tokens.masking.mask_groups`.
    passes
        How many of the groups are evaluated; all when None.
    precision
        Of the trunk; the head is always fp32.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        codec: Codec,
        *,
        groups: int = 7,
        passes: int | None = None,
        precision: Precision = "fp32",
    ) -> None:
        self.model = model
        self.codec = codec
        self.groups = groups
        self.passes = groups if passes is None else passes
        self.precision = precision
        self.trunk = getattr(model, model.base_model_prefix)
        self.head, self.dense = find_head(model)
        self.device = next(model.parameters()).device

    def __call__(self, sequences: list[np.ndarray]) -> SequenceGradients:
        """Run all passes over one batch of encoded sequences."""
        ids, lengths = self.codec.collate(sequences)
        groups = mask_groups(ids.shape[1], lengths, hash_sequences(sequences), self.groups)
        tokens = torch.from_numpy(ids).to(self.device)
        group = torch.from_numpy(groups).to(self.device)
        attention = (tokens != self.codec.pad_id).long()
        size = tokens.shape
        inputs = torch.zeros(*size, self.dense.in_features, device=self.device)
        deltas = torch.zeros(*size, self.dense.out_features, device=self.device)
        losses = torch.zeros(size, device=self.device)
        for number in range(self.passes):
            target = group == number
            masked = tokens.masked_fill(target, self.codec.mask_id)
            hidden = self._run_trunk(masked, attention)[target]
            inputs[target], deltas[target], losses[target] = self._run_head(hidden, tokens[target])
        counts = ((group >= 0) & (group < self.passes)).sum(1)
        return SequenceGradients(inputs, deltas, losses.sum(1), counts)

    @torch.no_grad()
    def _run_trunk(self, tokens: Tensor, attention: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            out = self.trunk(input_ids=tokens, attention_mask=attention)
        hidden: Tensor = out.last_hidden_state
        return hidden.float()

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
                losses = functional.cross_entropy(logits.float(), labels, reduction="none")
                (delta,) = torch.autograd.grad(losses.sum(), seen["output"])
        finally:
            handle.remove()
        return seen["input"], delta, losses.detach()


def find_head(model: PreTrainedModel) -> tuple[nn.Module, nn.Linear]:
    """Find the masked-language-modelling head and its first linear layer.

    Raises
    ------
    InputError
        The model has no such head.
    """
    head = getattr(model, "lm_head", None)
    dense = getattr(head, "dense", None)
    if head is None:  # named as in BERT
        head = getattr(getattr(model, "cls", None), "predictions", None)
        dense = getattr(getattr(head, "transform", None), "dense", None)
    if head is None or not isinstance(dense, nn.Linear):
        prefix = model.base_model_prefix + "."
        outside = [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and not name.startswith(prefix)
        ]
        raise InputError(
            f"{type(model).__name__}: has no head layer lm_head.dense or "
            f"cls.predictions.transform.dense to take gradients of; "
            f"linear layers outside its trunk: {', '.join(outside) or 'none'}"
        )
    return head, dense

"""ESM and RNA-FM with a classifier over the mean of their residues.

transformers' own head reads the first token, which masked-language modelling never trained for
such models: a linear probe on the mean then beats tuning the whole model for some epochs. This
class is that own one unless ``config.pooling`` says ``"mean"``; its classifier has other weights,
so that transformers without FrugalFM says that some are missing instead of predicting wrongly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import EsmConfig, EsmForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

__all__ = ["PooledEsmForSequenceClassification", "mean_of_residues", "register_pooled"]


class PooledEsmForSequenceClassification(EsmForSequenceClassification):  # type: ignore[misc]
    """An ESM trunk and, over the mean of the residues' states, dropout and one linear layer."""

    def __init__(self, config: EsmConfig) -> None:
        super().__init__(config)
        if getattr(config, "pooling", None) == "mean":
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
            self.dropout = nn.Dropout(config.hidden_dropout_prob)
            self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify sequences; the loss follows ``config.problem_type``, as in transformers."""
        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        if getattr(self.config, "pooling", None) != "mean":
            plain: SequenceClassifierOutput | tuple[Any, ...] = super().forward(
                input_ids, labels=labels, **given, **kwargs
            )
            return plain
        as_tuple = kwargs.pop("return_dict", True) is False
        out = self.esm(input_ids, **given, **kwargs)
        states = out.last_hidden_state
        if attention_mask is None:
            attention_mask = states.new_ones(states.shape[:2], dtype=torch.long)
        logits = self.classifier(self.dropout(mean_of_residues(states, attention_mask)))
        result = SequenceClassifierOutput(
            loss=None if labels is None else self._lose(logits.float(), labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return tuple(result.to_tuple()) if as_tuple else result

    def _lose(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind == "regression" or (kind is None and self.num_labels == 1):
            return functional.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
        if kind == "multi_label_classification" or (kind is None and labels.is_floating_point()):
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return functional.cross_entropy(logits, labels.flatten())


def mean_of_residues(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Average the states of what is attended, without the first and the last special token.

    Parameters
    ----------
    states
        Shape ``(batch, width, features)``.
    attention_mask
        Shape ``(batch, width)``; pads are on the right.
    """
    ends = attention_mask.long().sum(1, keepdim=True) - 1
    places = torch.arange(states.shape[1], device=states.device)[None]
    residue = (places >= 1) & (places < ends)
    # Zeroed rather than multiplied: what stands in a pad must not matter, NaN included.
    total = states.masked_fill(~residue[:, :, None], 0).sum(1)
    return total / residue.sum(1, keepdim=True).clamp_min(1)


def register_pooled() -> None:
    """Let ``AutoModelForSequenceClassification`` make this class for ESM's configs."""
    from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.register(
        EsmConfig, PooledEsmForSequenceClassification, exist_ok=True
    )

"""ESM, ESM-C and DNABERT-2 with a classifier over the mean of their residues.

Their own heads read the first token, which masked-language modelling never trained: a linear
probe on the mean then beats tuning the whole model for some epochs. Each class here is the own
one unless ``config.pooling`` says ``"mean"``; its classifier has other weights then, so that
transformers without FrugalFM says that some are missing instead of predicting wrongly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    EsmcConfig,
    EsmcForSequenceClassification,
    EsmConfig,
    EsmForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.dnabert2.modeling import DnaBert2ForSequenceClassification

__all__ = [
    "MeanPooled",
    "PooledDnaBert2ForSequenceClassification",
    "PooledEsmForSequenceClassification",
    "PooledEsmcForSequenceClassification",
    "mean_of_residues",
    "register_pooled",
]


class MeanPooled:
    """Over the mean of the residues' states, dropout and one linear layer, where config says so.

    To be put before a class for sequences, of whose trunk nothing changes but that a pooler,
    which nothing would read, is left out.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        if not self._pools:
            return
        this: Any = self
        trunk = getattr(this, this.base_model_prefix)
        if getattr(trunk, "pooler", None) is not None:
            trunk.pooler = None
        this.classifier = nn.Linear(config.hidden_size, config.num_labels)
        chosen = getattr(config, "classifier_dropout", None)
        this.dropout = nn.Dropout(config.hidden_dropout_prob if chosen is None else chosen)
        this.post_init()

    @property
    def _pools(self) -> bool:
        config: Any = self.config  # type: ignore[attr-defined]
        return getattr(config, "pooling", None) == "mean"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Classify sequences; the loss follows ``config.problem_type``, as in transformers."""
        this: Any = self
        if not self._pools:
            plain: SequenceClassifierOutput | tuple[Any, ...] = super().forward(  # type: ignore[misc]
                input_ids, attention_mask=attention_mask, labels=labels, **kwargs
            )
            return plain
        as_tuple = kwargs.pop("return_dict", True) is False
        trunk = getattr(this, this.base_model_prefix)
        out = trunk(input_ids, attention_mask=attention_mask, **kwargs)
        states = out.last_hidden_state
        if attention_mask is None:
            attention_mask = states.new_ones(states.shape[:2], dtype=torch.long)
        logits = this.classifier(this.dropout(mean_of_residues(states, attention_mask)))
        result = SequenceClassifierOutput(
            loss=None if labels is None else self._lose(logits.float(), labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return tuple(result.to_tuple()) if as_tuple else result

    def _lose(self, logits: Tensor, labels: Tensor) -> Tensor:
        this: Any = self
        kind = this.config.problem_type
        if kind == "regression" or (kind is None and this.num_labels == 1):
            return functional.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
        if kind == "multi_label_classification" or (kind is None and labels.is_floating_point()):
            return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return functional.cross_entropy(logits, labels.flatten())


class PooledEsmForSequenceClassification(MeanPooled, EsmForSequenceClassification):  # type: ignore[misc]
    """ESM or RNA-FM."""


class PooledEsmcForSequenceClassification(MeanPooled, EsmcForSequenceClassification):  # type: ignore[misc]
    """ESM-C."""


class PooledDnaBert2ForSequenceClassification(MeanPooled, DnaBert2ForSequenceClassification):
    """DNABERT-2; a token, of one residue or several, counts once in the mean."""


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
    """Let transformers' ``Auto`` classes make ours for their configs, that for pieces included."""
    from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

    from frugalfm.encoders.pieces import register_pieces

    register_pieces()
    for config, model in (
        (EsmConfig, PooledEsmForSequenceClassification),
        (EsmcConfig, PooledEsmcForSequenceClassification),
        (DnaBert2Config, PooledDnaBert2ForSequenceClassification),
    ):
        AutoModelForSequenceClassification.register(config, model, exist_ok=True)
        # transformers 5.17 passes over a class for a config of its own, without a word.
        mapping: Any = AutoModelForSequenceClassification._model_mapping  # noqa: SLF001
        mapping._extra_content.setdefault(config, model)  # noqa: SLF001

"""DNABERT-2 as transformers models: encoder, masked-language model, sequence classifier."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.dnabert2.layers import (
    DnaBert2Embeddings,
    DnaBert2Encoder,
    DnaBert2Layer,
    DnaBert2OnlyMLMHead,
    DnaBert2Pooler,
    DnaBert2SelfAttention,
    make_alibi,
)
from frugalfm.errors import InputError

__all__ = ["DnaBert2ForMaskedLM", "DnaBert2ForSequenceClassification", "DnaBert2Model"]


class DnaBert2PreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers needs to know of all DNABERT-2 models."""

    config_class = DnaBert2Config
    config: DnaBert2Config
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["DnaBert2Layer"]
    _supports_sdpa = True
    # Flash and flex attention would not see the additive bias that carries ALiBi.
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = True
    _can_record_outputs: ClassVar = {
        "hidden_states": DnaBert2Layer,
        "attentions": DnaBert2SelfAttention,
    }
    # Losses are means of the batch at hand; Trainer then weighs accumulated batches itself.
    accepts_loss_kwargs = False


class DnaBert2Model(DnaBert2PreTrainedModel):
    """The encoder, with or without a pooler over the first token.

    Parameters
    ----------
    config
        Its size.
    add_pooling_layer
        A masked-language model has none, so that loading one here leaves the pooler random.
    """

    def __init__(self, config: DnaBert2Config, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        if config.hidden_size % config.num_attention_heads:
            raise InputError(
                f"hidden_size {config.hidden_size} is not a multiple of "
                f"num_attention_heads {config.num_attention_heads}"
            )
        self.embeddings = DnaBert2Embeddings(config)
        self.encoder = DnaBert2Encoder(config)
        self.pooler = DnaBert2Pooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the table of words."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table of words."""
        self.embeddings.word_embeddings = value

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode token ids, shape ``(batch, length)``; attention_mask is 0 at pads.

        A mask of shape ``(batch, 1 or heads, length, length)`` (True or 0.0 where attended) is
        taken as it is: with blocks along the diagonal, several sequences share one row.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden = self.embeddings(input_ids, token_type_ids, inputs_embeds)
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=attention_mask
        )
        hidden = self.encoder(hidden, self._make_bias(hidden, mask), **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden),
        )

    def _make_bias(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Join ALiBi and mask once for all layers, in the precision of the attention."""
        kind = hidden.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else hidden.dtype
        heads = self.config.num_attention_heads
        alibi = make_alibi(heads, hidden.shape[1], dtype, hidden.device)
        if mask is None:
            return alibi
        if mask.dtype == torch.bool:
            return alibi.where(mask, -torch.inf)
        return alibi + mask.to(dtype)


class DnaBert2ForMaskedLM(DnaBert2PreTrainedModel):
    """DNABERT-2 with the head that it was pretrained with."""

    _tied_weights_keys: ClassVar = {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"
    }

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__(config)
        self.bert = DnaBert2Model(config, add_pooling_layer=False)
        self.cls = DnaBert2OnlyMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """Return the decoder."""
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the decoder."""
        self.cls.predictions.decoder = new_embeddings

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Predict every token; `labels` are ids, -100 where there is no target."""
        out = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.cls(out.last_hidden_state)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )


class DnaBert2ForSequenceClassification(DnaBert2PreTrainedModel):
    """DNABERT-2 with a linear classifier over the pooled first token."""

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = DnaBert2Model(config)
        chosen = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if chosen is None else chosen)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Classify sequences; the loss follows ``config.problem_type``, else `labels`."""
        out = self.bert(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(out.pooler_output))
        return SequenceClassifierOutput(
            loss=None if labels is None else self._lose(logits.float(), labels),
            logits=logits,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )

    def _lose(self, logits: Tensor, labels: Tensor) -> Tensor:
        kind = self.config.problem_type
        if kind is None and self.num_labels == 1:
            kind = "regression"
        if kind == "regression":
            return functional.mse_loss(logits.flatten(), labels.flatten().to(logits.dtype))
        if kind == "single_label_classification" or (
            kind is None and not labels.is_floating_point()
        ):
            return functional.cross_entropy(logits, labels.flatten())
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

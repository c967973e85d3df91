"""The configuration of DNABERT-2; light, so that it can be registered before any model code."""

from __future__ import annotations

from transformers import PreTrainedConfig

__all__ = ["DnaBert2Config"]


class DnaBert2Config(PreTrainedConfig):  # type: ignore[misc]
    """Size and settings of a DNABERT-2 model; the defaults are the published model's.

    Attributes
    ----------
    vocab_size, type_vocab_size
        Rows of the two embedding tables.
    hidden_size, num_hidden_layers, num_attention_heads
        Width, depth, and heads of the attention.
    intermediate_size
        Width of the feed-forward network after its gate; the gated linear has twice as many rows.
    hidden_act
        Activation of the masked-language head and of the gate.
    hidden_dropout_prob, attention_probs_dropout_prob, classifier_dropout
        Dropout in the residual branches, of attention weights, and before the classifier (as the
        first when None).
    initializer_range
        Standard deviation of random weights.
    layer_norm_eps
        Of every LayerNorm.
    pad_token_id, mask_token_id, bos_token_id, eos_token_id
        As in the published tokenizer, where 0 is ``[UNK]``.
    tie_word_embeddings
        Whether the decoder is the table of word embeddings.

    Notes
    -----
    Positions enter through ALiBi alone (arXiv 2108.12409), so there is no longest sequence.
    """

    model_type = "dnabert2"

    vocab_size: int = 4096
    type_vocab_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.0
    classifier_dropout: float | int | None = None
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 3
    mask_token_id: int | None = 4
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    tie_word_embeddings: bool = True

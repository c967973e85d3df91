"""The parts of DNABERT-2 (arXiv 2306.15006): ALiBi, fused projections, GeGLU, post-LN.

Parameters carry the names of the published checkpoint. Attention runs through transformers'
interface, so that every implementation that takes an additive mask fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from frugalfm.attention.kernels import softmax1
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.errors import InputError

__all__ = [
    "DnaBert2Embeddings",
    "DnaBert2Encoder",
    "DnaBert2Layer",
    "DnaBert2OnlyMLMHead",
    "DnaBert2Pooler",
    "DnaBert2SelfAttention",
    "make_alibi",
    "make_slopes",
]

_WEIGHTS: dict[str, Callable[..., Tensor]] = {"softmax": functional.softmax, "softmax1": softmax1}
"""From scores to the weights that a stored attention gives."""


def make_slopes(heads: int, device: Any = None) -> Tensor:
    """Make ALiBi's slope of every head, fp32 (arXiv 2108.12409, section 3).

    For a power of two they are the geometric sequence ``2^(-8/heads), ..., 2^-8``. Otherwise the
    sequence of the power of two below comes first, then every other one of the power above.
    Made on the device, so that a forward pass waits for no copy.
    """
    below = 2 ** int(math.log2(heads))
    first = torch.arange(1, below + 1, device=device) * (-8.0 / below)
    between = (2 * torch.arange(heads - below, device=device) + 1) * (-4.0 / below)
    return torch.exp2(torch.cat([first, between]))


def make_alibi(
    heads: int, length: int, dtype: torch.dtype = torch.float32, device: Any = None
) -> Tensor:
    """Make the bias of the scores, ``-slope * |i - j|``, shape ``(1, heads, length, length)``."""
    places = torch.arange(length, device=device)
    distance = (places[None, :] - places[:, None]).abs()
    slopes = make_slopes(heads, device)
    return (-slopes[:, None, None] * distance)[None].to(dtype)


def _eager_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Ordinary attention that also returns its weights."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = functional.softmax(scores, dim=-1)
    dropped = functional.dropout(weights, dropout, training=module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), weights


class DnaBert2Embeddings(nn.Module):
    """Sum of word and type embeddings, normalised; positions are the attention's business."""

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, input_ids: Tensor | None, token_type_ids: Tensor | None, inputs_embeds: Tensor | None
    ) -> Tensor:
        """Embed ids, or normalise embeddings that are given instead."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            kinds = self.token_type_embeddings.weight[0]
        else:
            kinds = self.token_type_embeddings(token_type_ids)
        out: Tensor = self.dropout(self.LayerNorm(words + kinds))
        return out


class DnaBert2SelfAttention(nn.Module):
    """Scaled dot products of one fused projection, biased by ALiBi and mask."""

    is_causal = False

    def __init__(self, config: DnaBert2Config, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.attention_head_size**-0.5
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(
        self, hidden_states: Tensor, attention_bias: Tensor, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the joined heads, and the weights if there are or they are asked for."""
        shape = hidden_states.shape[:-1]
        mixed = self.Wqkv(hidden_states)
        mixed = mixed.view(*shape, 3, self.num_attention_heads, self.attention_head_size)
        query, key, value = (mixed[:, :, i].transpose(1, 2) for i in range(3))
        bias = attention_bias.to(query.dtype)
        wanted = kwargs.pop("output_attentions", False)
        name = self.config._attn_implementation  # noqa: SLF001 - transformers' own convention
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, _eager_forward)
        out, weights = attend(
            self,
            query,
            key,
            value,
            bias,
            scaling=self.scaling,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            **kwargs,
        )
        if weights is None and wanted:
            weights = self._weigh(query, key, bias)
        return out.reshape(*shape, -1), weights

    def _weigh(self, query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
        """Compute the weights that a fused kernel keeps to itself."""
        name = getattr(self.config, "attention", None) or "softmax"
        if name not in _WEIGHTS:
            raise InputError(f"attention {name!r} does not hand out its weights")
        scores = (query @ key.transpose(2, 3) * self.scaling + bias).float()
        return _WEIGHTS[name](scores, dim=-1).to(query.dtype)


class DnaBert2SelfOutput(nn.Module):
    """Projection of the heads, added to the residual and normalised."""

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, heads: Tensor, residual: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.dropout(self.dense(heads)) + residual)
        return out


class DnaBert2Attention(nn.Module):
    """Attention and its output."""

    def __init__(self, config: DnaBert2Config, layer_idx: int) -> None:
        super().__init__()
        self.self = DnaBert2SelfAttention(config, layer_idx)
        self.output = DnaBert2SelfOutput(config)

    def forward(self, hidden_states: Tensor, attention_bias: Tensor, **kwargs: Any) -> Tensor:
        heads, _ = self.self(hidden_states, attention_bias, **kwargs)
        out: Tensor = self.output(heads, hidden_states)
        return out


class DnaBert2MLP(nn.Module):
    """GeGLU (arXiv 2002.05202): one half of a linear gates the other; then the residual."""

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.act = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, values = self.gated_layers(hidden_states).chunk(2, dim=-1)
        hidden = self.wo(self.dropout(self.act(gate) * values))
        out: Tensor = self.layernorm(hidden + hidden_states)
        return out


class DnaBert2Layer(GradientCheckpointingLayer):  # type: ignore[misc]
    """Attention, then feed-forward network."""

    def __init__(self, config: DnaBert2Config, layer_idx: int) -> None:
        super().__init__()
        self.attention = DnaBert2Attention(config, layer_idx)
        self.mlp = DnaBert2MLP(config)

    def forward(self, hidden_states: Tensor, attention_bias: Tensor, **kwargs: Any) -> Tensor:
        """Return the states after this layer."""
        out: Tensor = self.mlp(self.attention(hidden_states, attention_bias, **kwargs))
        return out


class DnaBert2Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [DnaBert2Layer(config, i) for i in range(config.num_hidden_layers)]
        )

    def forward(self, hidden_states: Tensor, attention_bias: Tensor, **kwargs: Any) -> Tensor:
        """Return the states after the last layer."""
        for layer in self.layer:
            hidden_states = layer(hidden_states, attention_bias, **kwargs)
        return hidden_states


class DnaBert2Pooler(nn.Module):
    """The first token, through a linear layer and tanh."""

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Pool states of shape ``(batch, length, width)``."""
        return torch.tanh(self.dense(hidden_states[:, 0]))


class DnaBert2PredictionHeadTransform(nn.Module):
    """Linear layer, activation, LayerNorm."""

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        out: Tensor = self.LayerNorm(self.act(self.dense(hidden_states)))
        return out


class DnaBert2LMPredictionHead(nn.Module):
    """Transform and decoder."""

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__()
        self.transform = DnaBert2PredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.transform(hidden_states))
        return out


class DnaBert2OnlyMLMHead(nn.Module):
    """The masked-language head, one level down as in the published names."""

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__()
        self.predictions = DnaBert2LMPredictionHead(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the logits of every token."""
        out: Tensor = self.predictions(hidden_states)
        return out

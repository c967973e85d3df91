"""DNABERT-2 with a label for each residue, though its tokens are pieces of several.

The state of a piece tells which letters it spells, so that one linear layer a place in the piece
can tell its residues apart: the first residue of a piece is classified by the first, the second
by the second. The logits are laid out by residue, as those of a model with one token a residue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import initialization
from transformers.modeling_outputs import TokenClassifierOutput

from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.dnabert2.modeling import DnaBert2Model, DnaBert2PreTrainedModel
from frugalfm.errors import InputError

__all__ = ["DnaBert2ForTokenClassification", "PieceClassifier", "register_pieces"]


class PieceClassifier(nn.Module):
    """A linear layer for each place in a piece.

    Parameters
    ----------
    width, classes
        Of the states, and of what is predicted.
    longest
        Residues of the longest piece.
    vocabulary
        Pieces, special tokens included.
    """

    sizes: Tensor

    def __init__(self, width: int, classes: int, longest: int, vocabulary: int) -> None:
        super().__init__()
        self.classes = classes
        self.places = nn.Linear(width, longest * classes)
        # Residues of each piece; none of special tokens.
        self.register_buffer("sizes", torch.zeros(vocabulary, dtype=torch.long))

    def forward(self, states: Tensor, input_ids: Tensor) -> Tensor:
        """Classify residues.

        Parameters
        ----------
        states
            Shape ``(batch, tokens, width)``.
        input_ids
            Shape ``(batch, tokens)``.

        Returns
        -------
        Tensor
            Shape ``(batch, most residues + 2, classes)``: a row of zeros, the residues of the
            sequence, and zeros.

        Raises
        ------
        InputError
            Nobody has told the residues of the pieces.
        """
        logits = self.places(states).unflatten(-1, (-1, self.classes))
        sizes = self.sizes[input_ids]
        spelt = torch.arange(logits.shape[2], device=sizes.device) < sizes[:, :, None]
        lengths = sizes.sum(1)
        longest = int(lengths.max())
        if not longest and not self.sizes.any():
            raise InputError(
                "the head does not know the residues of each piece; call set_pieces first, or "
                "let `frugalfm tune` make the model"
            )
        places = torch.arange(longest + 2, device=sizes.device)
        residue = (places >= 1) & (places <= lengths[:, None])
        laid_out = logits.new_zeros(*residue.shape, self.classes)
        # Both masks are in the order of sequences and, within them, of residues.
        found: Tensor = laid_out.masked_scatter(residue[:, :, None], logits[spelt])
        return found


class DnaBert2ForTokenClassification(DnaBert2PreTrainedModel):
    """DNABERT-2 with a label a residue; ``config.longest_piece`` is that of its tokenizer."""

    def __init__(self, config: DnaBert2Config) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = DnaBert2Model(config, add_pooling_layer=False)
        chosen = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if chosen is None else chosen)
        self.classifier = PieceClassifier(
            config.hidden_size,
            config.num_labels,
            getattr(config, "longest_piece", 1),
            config.vocab_size,
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Zero the sizes, too: a checkpoint without a head leaves them as they are in memory."""
        super()._init_weights(module)
        if isinstance(module, PieceClassifier):
            initialization.zeros_(module.sizes)

    @torch.no_grad()
    def set_pieces(self, sizes: Sequence[int]) -> None:
        """Tell the residues of each piece, in the order of ids.

        Raises
        ------
        InputError
            A piece is longer than those that the model was made for.
        """
        known = self.classifier.places.out_features // self.classifier.classes
        if max(sizes) > known:
            raise InputError(
                f"the longest piece has {max(sizes)} residues, and the head is made for {known}; "
                "set longest_piece in the config that the model is made from"
            )
        self.classifier.sizes.zero_()
        self.classifier.sizes[: len(sizes)] = torch.tensor(sizes)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """Classify residues; `labels` are laid out as the logits, -100 where there is none."""
        as_tuple = kwargs.pop("return_dict", True) is False
        out = self.bert(input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(out.last_hidden_state), input_ids)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        result = TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=out.hidden_states, attentions=out.attentions
        )
        return tuple(result.to_tuple()) if as_tuple else result


def register_pieces() -> None:
    """Let ``AutoModelForTokenClassification`` make this class for DNABERT-2's configs."""
    from transformers.models.auto.modeling_auto import AutoModelForTokenClassification

    AutoModelForTokenClassification.register(
        DnaBert2Config, DnaBert2ForTokenClassification, exist_ok=True
    )

"""Models for pairs: of sequences (two by one encoder), and of positions of a sequence.

transformers has no class for these, so that the encoder stays the masked-language model it was,
with a head beside it: tuned as a whole, the folder is a checkpoint that every verb reads, plus
the head's file.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from frugalfm.artifacts import write_json
from frugalfm.encoders.checkpoints import load_encoder, save_encoder
from frugalfm.encoders.pooled import mean_of_residues
from frugalfm.errors import InputError

__all__ = [
    "PairModel",
    "PairOrder",
    "PositionsHead",
    "SequencesHead",
    "is_pair_folder",
    "load_pair_model",
    "make_pair_model",
    "save_pair_model",
]

PairOrder = Literal["symmetric", "ordered"]

_EDGES = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 512)
"""Where bins of separations begin, but for the first."""
_RANK = 64
_HEAD, _HEAD_CONFIG = "head.safetensors", "head.json"


class SequencesHead(nn.Module):
    """A linear layer on what two sequences' means make together, as the frozen probe has it.

    Parameters
    ----------
    width, outputs
        Of the states, and classes or 1.
    order
        ``symmetric``: of ``a + b``, ``a * b`` and ``|a - b|``; ``ordered``: of ``a``, ``b`` and
        ``a * b``.
    dropout
        Before the linear layer.
    """

    def __init__(self, width: int, outputs: int, order: PairOrder, dropout: float) -> None:
        super().__init__()
        self.order = order
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(3 * width, outputs)

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Map states of the first sequences, then of the second ones, to ``(pairs, outputs)``."""
        a, b = mean_of_residues(states, attention_mask).chunk(2)
        parts = [a, b, a * b] if self.order == "ordered" else [a + b, a * b, (a - b).abs()]
        found: Tensor = self.linear(self.dropout(torch.cat(parts, 1)))
        return found


class PositionsHead(nn.Module):
    """A symmetric function of each pair of residues: a quadratic form of low rank.

    ``sum_k w_k (p_k . h_i)(p_k . h_j) + v . (h_i + h_j) + b(|i - j|)``, of normalised states h and
    with b by bins of the separation.

    Parameters
    ----------
    width, rank
        Of the states and of the form.
    """

    edges: Tensor

    def __init__(self, width: int, rank: int = _RANK) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, rank, bias=False)
        nn.init.normal_(self.project.weight, std=width**-0.5)
        signs = 1.0 - 2.0 * (torch.arange(rank) % 2)  # a form that is neither for nor against
        self.form = nn.Parameter(0.1 * signs / rank**0.5)
        self.single = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.single.weight)
        self.apart = nn.Parameter(torch.zeros(len(_EDGES) + 1))
        self.register_buffer("edges", torch.tensor(_EDGES), persistent=False)

    def forward(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Map states ``(batch, width, features)`` to ``(batch, width, width)``.

        Rows and columns of special tokens and pads mean nothing; no other depends on them.
        """
        normal = self.norm(states.masked_fill(attention_mask[:, :, None] == 0, 0))
        z, single = self.project(normal), self.single(normal)
        place = torch.arange(states.shape[1], device=states.device)
        apart = self.apart[self.bin((place[:, None] - place).abs())]
        form: Tensor = (z * self.form) @ z.transpose(1, 2)
        found = form + single + single.transpose(1, 2) + apart
        # Exactly symmetric, though the products are rounded in another order.
        symmetric: Tensor = (found + found.transpose(1, 2)) / 2
        return symmetric

    def bin(self, apart: Tensor) -> Tensor:
        """Tell the bin of separations."""
        return torch.bucketize(apart, self.edges, right=True)

    @torch.no_grad()
    def stretch(self, scale: float, shift: float) -> None:
        """Give ``scale * output + shift`` from now on."""
        self.form.mul_(scale)
        self.single.weight.mul_(scale)
        self.apart.mul_(scale).add_(shift)


class PairModel(nn.Module):
    """An encoder and a head for pairs.

    Parameters
    ----------
    encoder
        A masked-language model; its own head stays as it is and is not trained. Its config is
        not this model's, lest PEFT takes this for one of transformers'.
    head
        Of states and attention mask.
    """

    def __init__(self, encoder: PreTrainedModel, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head
        prefix = f"{encoder.base_model_prefix}."
        for name, parameter in encoder.named_parameters():
            if not name.startswith(prefix):
                parameter.requires_grad_(requires_grad=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any
    ) -> SequenceClassifierOutput:
        """Compute the head's ``logits``; pairs of sequences are the two halves of a batch."""
        trunk = getattr(self.encoder, self.encoder.base_model_prefix)
        states = trunk(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        logits = self.head(states.last_hidden_state.float(), attention_mask)
        return SequenceClassifierOutput(logits=logits)


def make_pair_model(
    encoder: PreTrainedModel,
    what: Literal["sequences", "positions"],
    outputs: int = 1,
    *,
    order: PairOrder = "symmetric",
    seed: int = 0,
) -> PairModel:
    """Put a new head for pairs beside a copy of an encoder.

    Parameters
    ----------
    encoder
        Left as it is.
    what
        What the pairs are of.
    outputs, order
        Of :class:`SequencesHead`.
    seed
        Determines the head's weights.
    """
    config = encoder.config
    dropout = getattr(config, "hidden_dropout_prob", None) or 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head: nn.Module = (
            SequencesHead(config.hidden_size, outputs, order, dropout)
            if what == "sequences"
            else PositionsHead(config.hidden_size)
        )
    return PairModel(copy.deepcopy(encoder), head).eval()


def save_pair_model(model: PairModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the encoder as a checkpoint and the head beside it."""
    save_encoder(model.encoder, tokenizer, folder)
    head = model.head
    save_file({k: v.contiguous() for k, v in head.state_dict().items()}, Path(folder) / _HEAD)
    made: dict[str, Any] = {"what": "positions"}
    if isinstance(head, SequencesHead):
        made = {"what": "sequences", "outputs": head.linear.out_features, "order": head.order}
    write_json(Path(folder) / _HEAD_CONFIG, made)


def is_pair_folder(folder: Path) -> bool:
    """Whether :func:`save_pair_model` wrote a folder."""
    return (Path(folder) / _HEAD_CONFIG).is_file()


def load_pair_model(folder: Path) -> tuple[PairModel, PreTrainedTokenizerBase]:
    """Read what :func:`save_pair_model` wrote.

    Raises
    ------
    InputError
        The checkpoint or the head is damaged.
    """
    encoder, tokenizer = load_encoder(folder)
    made = json.loads((Path(folder) / _HEAD_CONFIG).read_text())
    model = make_pair_model(encoder, **made)
    try:
        model.head.load_state_dict(load_file(Path(folder) / _HEAD))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{folder}: the head cannot be read ({error})") from None
    return model, tokenizer

"""Packed rows through an encoder: several sequences in one row, each attending to itself alone.

Positions need no reset where they are relative: ALiBi and rotary ones depend on distances. ESM's
embeddings count positions and masked tokens by row, and are computed here by sequence instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError

__all__ = ["check_packable", "make_block_mask", "run_packed"]

_PACKABLE = ("dnabert2", "esm", "esmc")
# What ESM expects to be masked, and rescales embeddings by: 80 % of 15 %.
_ESM_MASKED = 0.15 * 0.8


def check_packable(model: nn.Module) -> None:
    """Refuse an architecture whose sequences would see each other, or wrong positions.

    Raises
    ------
    InputError
        It is none of those that are tested.
    """
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if kind not in _PACKABLE:
        raise InputError(
            f"architecture {kind!r} cannot train on packed rows (--pack); "
            f"known: {', '.join(_PACKABLE)} (RNA-FM is one of esm)"
        )


def make_block_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Make the additive mask of packed rows: 0 inside a sequence, -inf between two.

    Pads attend to each other, so that no query is left without a key.

    Parameters
    ----------
    segments
        int64, shape ``(rows, width)``: which sequence of its row each token belongs to.
    dtype
        Of the mask.

    Returns
    -------
    Tensor
        Shape ``(rows, 1, width, width)``.
    """
    same = segments[:, None, :, None] == segments[:, None, None, :]
    mask = torch.zeros(same.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~same, -torch.inf)


@contextlib.contextmanager
def run_packed(model: nn.Module) -> Iterator[None]:
    """Let a masked-language model read packed rows.

    Inside, ``attention_mask`` is to number the sequences of each row from 1, and 0 at pads; as a
    truth value it still tells tokens from pads.

    Parameters
    ----------
    model
        One that :func:`check_packable` accepts.
    """
    check_packable(model)
    trunk = model.get_submodule(str(model.base_model_prefix))

    def unfold(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]]:
        kwargs = {**dict(zip(("input_ids",), args, strict=False)), **kwargs}
        segments = kwargs["attention_mask"]
        if hasattr(module, "embeddings") and hasattr(module.embeddings, "token_dropout"):
            embedded = _embed_esm(module.embeddings, kwargs.pop("input_ids"), segments)
            kwargs["inputs_embeds"] = embedded
        device = segments.device.type
        dtype = next(module.parameters()).dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        # Once a forward pass: transformers hands a mask of four dimensions to every layer as is.
        return (), kwargs | {"attention_mask": make_block_mask(segments, dtype)}

    handle = trunk.register_forward_pre_hook(unfold, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _embed_esm(embeddings: Any, input_ids: Tensor, segments: Tensor) -> Tensor:
    """Embed as transformers' ``EsmEmbeddings`` would embed every sequence in a row of its own."""
    out: Tensor = embeddings.word_embeddings(input_ids)
    real = segments > 0
    if embeddings.token_dropout:
        hidden = input_ids == embeddings.mask_token_id
        share = _count(hidden, segments) / _count(real, segments).clamp_min(1)
        scale = (1 - _ESM_MASKED) / (1 - share)
        out = out.masked_fill(hidden.unsqueeze(-1), 0.0) * scale.unsqueeze(-1)
    if embeddings.position_embedding_type == "absolute":
        places = torch.arange(segments.shape[1], device=segments.device)
        fresh = segments.diff(dim=1, prepend=torch.zeros_like(segments[:, :1])) != 0
        counted = embeddings.padding_idx + 1 + places - (places * fresh).cummax(1).values
        out = out + embeddings.position_embeddings(counted.where(real, embeddings.padding_idx))
    if embeddings.layer_norm is not None:
        out = embeddings.layer_norm(out)
    return out * real.unsqueeze(-1)


def _count(chosen: Tensor, segments: Tensor) -> Tensor:
    """Count the chosen tokens of every token's own sequence, fp32, shape ``(rows, width)``."""
    counts = torch.zeros(segments.shape[0], segments.shape[1] + 1, device=segments.device)
    return counts.scatter_add_(1, segments, chosen.float()).gather(1, segments)

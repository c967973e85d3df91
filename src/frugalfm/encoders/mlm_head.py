"""The masked-language-modelling head of any model, found by watching one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from frugalfm.errors import InputError

__all__ = ["find_head", "list_head_layers"]


def find_head(model: PreTrainedModel, name: str | None = None) -> tuple[nn.Module, nn.Linear]:
    """Find the masked-language-modelling head and the linear layer in it to take gradients of.

    No names are assumed: four tokens are run through the model, and what is called between the
    trunk's last hidden states and the logits is the head. So ESM's and RNA-FM's
    ``lm_head.dense``, BERT's ``cls.predictions.transform.dense`` and ModernBERT's ``head.dense``
    are found alike. A head that is nothing but a decoder (EuroBERT's) is its own first layer;
    where its weight is the table of embeddings too, gradients are those of its use as a decoder.

    Parameters
    ----------
    model
        A masked-language model.
    name
        The linear layer, by its name in the model, or the name of what holds it, whose first one
        is taken; the head's first one when None.

    Returns
    -------
    head : Module
        Maps the trunk's last hidden states, shape ``(..., width)``, to logits. Where the model
        calls several modules in turn (ModernBERT's head and decoder), a chain of them.
    dense : Linear
        The layer, a part of `head`.

    Raises
    ------
    InputError
        There is no trunk, no linear layer after it, none of that name (the others are listed
        with their shapes), or the logits are not what the modules after the trunk make of it.
    """
    seen = _watch_once(model)
    if not seen.linears:
        raise InputError(f"{type(model).__name__}: has no linear layer between trunk and logits")
    fits = [one for one in seen.linears if name in {None, one} or one.startswith(f"{name}.")]
    if not fits:
        raise InputError(
            f"{type(model).__name__}: {name!r} is no linear layer of its head; there are: "
            + ", ".join(_describe(*item) for item in seen.linears.items())
        )
    head = seen.children[0] if len(seen.children) == 1 else nn.Sequential(*seen.children)
    _check(model, head, seen)
    return head, seen.linears[fits[0]]


def list_head_layers(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """List the linear layers of the head, in order of use, with shapes (outputs, inputs)."""
    return {
        name: (linear.out_features, linear.in_features)
        for name, linear in _watch_once(model).linears.items()
    }


@dataclass
class _Seen:
    """One forward pass: trunk's output, logits, and what was called between them, in order."""

    hidden: Tensor | None = None
    logits: Tensor | None = None
    children: list[nn.Module] = field(default_factory=list)
    linears: dict[str, nn.Linear] = field(default_factory=dict)


@torch.no_grad()
def _watch_once(model: PreTrainedModel) -> _Seen:
    prefix = model.base_model_prefix
    trunk = getattr(model, prefix, None)
    if not prefix or not isinstance(trunk, nn.Module):
        raise InputError(
            f"{type(model).__name__}: has no trunk {prefix!r}; a masked-language model is needed"
        )
    seen = _Seen()
    ids = torch.arange(4, device=next(model.parameters()).device)[None]
    with _hooks(model, trunk, seen):
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    seen.logits = getattr(out, "logits", None)
    return seen


@contextlib.contextmanager
def _hooks(model: nn.Module, trunk: nn.Module, seen: _Seen) -> Iterator[None]:
    def note_trunk(_: nn.Module, __: Any, output: Any) -> None:
        seen.hidden = getattr(output, "last_hidden_state", None)

    def note_child(module: nn.Module, _: Any) -> None:
        seen.children.append(module)

    def note_linear(module: nn.Module, _: Any) -> None:
        seen.linears.setdefault(names[module], module)  # type: ignore[arg-type]

    inside = set(trunk.modules())
    names = {module: name for name, module in model.named_modules() if module not in inside}
    with contextlib.ExitStack() as stack:
        stack.callback(trunk.register_forward_hook(note_trunk).remove)
        for module in names:
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_pre_hook(note_linear).remove)
        for child in model.children():
            if child is not trunk:
                stack.callback(child.register_forward_pre_hook(note_child).remove)
        yield


@torch.no_grad()
def _check(model: nn.Module, head: nn.Module, seen: _Seen) -> None:
    """Run the head alone: it has to give the logits that the model gave."""
    if seen.hidden is not None and seen.logits is not None:
        found, expected = head(seen.hidden[0]), seen.logits[0]
        same = isinstance(found, Tensor) and found.shape == expected.shape
        if same and torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            return
    raise InputError(
        f"{type(model).__name__}: its logits are not what the modules after its trunk make of its "
        "last hidden states, one after the other; gradients of its head cannot be taken"
    )


def _describe(name: str, linear: nn.Linear) -> str:
    return f"{name} ({linear.out_features} x {linear.in_features})"

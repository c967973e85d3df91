"""Taps: look at, or change, what passes any site of a model, pads told from real tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.progress import progress
from frugalfm.quantization.operands import Operands, Visit
from frugalfm.quantization.sites import Site
from frugalfm.training.data import Batch

__all__ = ["RealTokens", "Taps", "see_sites", "tap"]


class RealTokens:
    """Which tokens of the batch that is running are no pads.

    Attributes
    ----------
    mask
        Boolean, shape ``(batch, width)``; None where all are real.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None

    def note(self, _: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        """Take the mask of a batch that is about to run: a hook before ``forward``."""
        mask = kwargs.get("attention_mask")
        self.mask = None if mask is None else mask.bool()

    def select(self, values: Tensor, site: Site) -> Tensor:
        """Take what belongs to real tokens, shape ``(..., features)``.

        Probabilities are those from real queries to real keys, one feature a head. What has no
        tokens, such as pooled states, is real as a whole.
        """
        mask = self.mask
        if site.kind == "attention" and values.ndim == 4:
            if mask is None:
                return values
            if site.role == "probabilities":
                return values.permute(0, 2, 3, 1)[mask[:, :, None] & mask[:, None, :]]
            return values.transpose(1, 2)[mask].flatten(1)
        if mask is None or not self._has_tokens(values):
            return values
        return values[mask]

    def pads(self, values: Tensor, site: Site) -> Tensor | None:
        """Say which values are pads', boolean and broadcastable to them; None if none can be."""
        if self.mask is None:
            return None
        if site.kind == "attention":
            return ~self.mask[:, None, :, None]
        if not self._has_tokens(values):
            return None
        return ~self.mask.reshape(*self.mask.shape, *[1] * (values.ndim - 2))

    def _has_tokens(self, values: Tensor) -> bool:
        mask = self.mask
        return mask is not None and values.ndim > 2 and values.shape[:2] == mask.shape


class Taps:
    """The taps of a model, on from the start."""

    def __init__(self, real: RealTokens, operands: Operands) -> None:
        self.real = real
        self.enabled = True
        self._operands = operands

    def enable(self, enabled: bool = True) -> None:
        """Let values pass the taps, or leave the model as it was without them."""
        self.enabled = enabled
        self._operands.enable(enabled)


@contextlib.contextmanager
def tap(
    model: nn.Module,
    sites: Sequence[Site],
    visit: Callable[[Site, Tensor], Tensor],
    real: RealTokens | None = None,
) -> Iterator[Taps]:
    """Show a function what passes some sites, and go on with what it gives.

    Parameters
    ----------
    model
        Called by keyword, with ``attention_mask`` if there are pads, while the context lasts;
        afterwards it is what it was.
    sites
        Of linears the input passes; tables of embeddings pass nothing.
    visit
        Gets the site and values of its own shape, pads and all; :attr:`Taps.real` tells them.
    real
        To use for that; a new one if None.
    """
    real = real or RealTokens()
    visits: dict[str, Visit] = {}
    for name in {site.module for site in sites if site.kind == "attention"}:
        own = {s.role: s for s in sites if s.kind == "attention" and s.module == name}
        visits[name] = _visit_operands(own, visit)
    taps = Taps(real, Operands(model, visits))
    with contextlib.ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(real.note, with_kwargs=True).remove)
        for site in sites:
            module = model.get_submodule(site.module)
            if site.kind in {"linear", "input"}:
                before = _make_before(site, taps, visit)
                stack.callback(module.register_forward_pre_hook(before).remove)
            elif site.kind == "output":
                after = _make_after(site, taps, visit)
                stack.callback(module.register_forward_hook(after).remove)
        stack.callback(taps.enable, False)
        taps.enable()
        yield taps


@torch.no_grad()
def see_sites(
    model: nn.Module,
    batches: Sequence[Batch],
    sites: Sequence[Site],
    see: Callable[[Site, Tensor], None],
    *,
    desc: str = "calibrate",
) -> None:
    """Run batches and show a function the real tokens' values at some sites.

    Raises
    ------
    InputError
        Values are not finite; names the site.
    """
    device = next(model.parameters()).device

    def visit(site: Site, values: Tensor) -> Tensor:
        seen = taps.real.select(values.detach(), site)
        if seen.numel():
            if not bool(torch.stack(seen.aminmax()).isfinite().all()):
                what = "input of " if site.kind == "linear" else "value at "
                raise InputError(f"the {what}{site.name} is not finite; the checkpoint is unusable")
            see(site, seen)
        return values

    with tap(model, sites, visit) as taps:
        for batch in progress(batches, desc=desc, unit="batch"):
            moved = batch.to(device)
            model(input_ids=moved.input_ids, attention_mask=moved.attention_mask)


def _visit_operands(own: dict[str, Site], visit: Callable[[Site, Tensor], Tensor]) -> Visit:
    return lambda role, values: visit(own[role], values) if role in own else values


def _make_before(
    site: Site, taps: Taps, visit: Callable[[Site, Tensor], Tensor]
) -> Callable[..., Any]:
    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (visit(site, inputs[0]), *inputs[1:]) if taps.enabled else None

    return hook


def _make_after(
    site: Site, taps: Taps, visit: Callable[[Site, Tensor], Tensor]
) -> Callable[..., Any]:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        return visit(site, output) if taps.enabled else None

    return hook

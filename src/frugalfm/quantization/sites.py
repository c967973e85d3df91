"""What of an encoder is quantized (linears: weight and input), what is not, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from frugalfm.encoders.anatomy import Anatomy, describe_encoder

__all__ = ["LeftOut", "Site", "Survey", "abbreviate", "survey_sites"]


@dataclass(frozen=True)
class Site:
    """One linear whose weight and input are quantized; bias and output stay as they are.

    Attributes
    ----------
    name
        The module.
    role
        ``query``, ``key``, ``value`` (joined by ``+`` where fused), ``attention_out``,
        ``ffn_gate``, ``ffn_in``, ``ffn_out`` or ``head``.
    layer
        From 0; None in the head.
    """

    name: str
    role: str
    layer: int | None


@dataclass(frozen=True)
class LeftOut:
    """A place that stays in floating point, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Survey:
    """Every place of a model: the quantized ones and the others.

    Attributes
    ----------
    sites
        In order of use.
    left_out
        Every other linear, embedding and LayerNorm by name, and the operations without a
        module of their own.
    """

    sites: tuple[Site, ...]
    left_out: tuple[LeftOut, ...]


def survey_sites(model: nn.Module) -> Survey:
    """List the linears of all layers and of the head, and everything else with a reason.

    Raises
    ------
    InputError
        The architecture is not in the catalogue.
    """
    anatomy = describe_encoder(model)
    modules = dict(model.named_modules())
    tables = {id(m.weight) for m in modules.values() if isinstance(m, nn.Embedding)}
    tied = [name for name in anatomy.head if id(modules[name].weight) in tables]
    sites = [
        Site(name, role, layer)
        for layer, block in enumerate(anatomy.blocks)
        for name, role in block.linears.items()
    ]
    sites += [Site(name, "head", None) for name in anatomy.head if name not in tied]
    return Survey(tuple(sites), tuple(_list_others(model, anatomy, tied, sites)))


def abbreviate(names: Iterable[str]) -> list[str]:
    """Write names that differ in one number as one, such as ``layer.{0..11}.output.dense``."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        found = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = (name[: found.start()], name[found.end() :]) if found else (name, "")
        groups.setdefault(key, []).extend([int(found.group())] if found else [])
    return [head + _write_numbers(numbers) + tail for (head, tail), numbers in groups.items()]


def _list_others(
    model: nn.Module, anatomy: Anatomy, tied: list[str], sites: list[Site]
) -> Iterable[LeftOut]:
    quantized = {site.name for site in sites}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name not in quantized:
            reason = anatomy.unused.get(name, "not part of the layers or the head")
            if name in tied:
                reason = "its weight is the table of token embeddings, which is not quantized"
            yield LeftOut(name, reason)
        elif isinstance(module, nn.Embedding):
            yield LeftOut(name, "a table look-up, no arithmetic to save")
        elif isinstance(module, nn.LayerNorm):
            yield LeftOut(name, "LayerNorm is computed in floating point")
    inside = "computed inside the attention kernel, in floating point"
    for place in ("queries x keys", "probabilities", "probabilities x values"):
        for block in anatomy.blocks:
            yield LeftOut(f"{block.name}.({place})", inside)
    for place in ("residual sums", "biases", "activation function"):
        for block in anatomy.blocks:
            yield LeftOut(f"{block.name}.({place})", "kept in floating point")


def _write_numbers(numbers: list[int]) -> str:
    if not numbers:
        return ""
    first, last = min(numbers), max(numbers)
    if len(numbers) == 1:
        return str(first)
    if sorted(numbers) == list(range(first, last + 1)):
        return f"{{{first}..{last}}}"
    return "{" + ",".join(map(str, numbers)) + "}"

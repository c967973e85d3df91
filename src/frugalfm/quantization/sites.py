"""The places of an encoder where values can be rounded: which are, which are not, and why.

Linears are what low-bit engines run, and the default. ``attention`` adds the operands of the two
products in attention, which SmoothQuant, Outlier Suppression and OmniQuant quantize as well;
``all`` adds what lies between: embeddings, LayerNorms and the residual sums that they read, the
decoder that shares the table of embeddings, and the head of a tuned model. That head is next to no
arithmetic, and nothing after it dampens its errors: one that started as a probe, with the scales
of its features folded in, makes most of the error of 8 bits when it is rounded too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from torch import nn

from frugalfm.attention.binding import find_attentions
from frugalfm.encoders.anatomy import Anatomy, Block, describe_encoder
from frugalfm.errors import InputError

__all__ = ["Extent", "LeftOut", "Site", "SiteKind", "Survey", "abbreviate", "survey_sites"]

Extent = Literal["linears", "attention", "all"]
SiteKind = Literal["linear", "table", "output", "input", "attention"]

_OPERANDS = {
    "query": "queries",
    "key": "keys",
    "probabilities": "probabilities",
    "value": "values",
}


@dataclass(frozen=True)
class Site:
    """One place where values are rounded.

    Attributes
    ----------
    name
        The module; of a place that is no linear, the module with what is meant in brackets, such
        as ``encoder.layer.0.attention.self.(queries)``.
    role
        Of a linear: ``query``, ``key``, ``value`` (joined by ``+`` where fused),
        ``attention_out``, ``ffn_gate``, ``ffn_in``, ``ffn_out`` or ``head``. Of others:
        ``table``, ``embedding``, ``norm``, ``residual``, or in attention ``query``, ``key``,
        ``probabilities``, ``value``.
    layer
        From 0; None outside the layers.
    kind
        What is rounded: a ``linear``'s weight and input (its bias and output stay); a ``table``
        of embeddings; the ``output`` or the ``input`` of a module; an operand of an ``attention``.
    reads
        Of a linear: what its input is, such as ``context`` or ``gated product``.
    feeds
        Of a LayerNorm's output: the linears that read it.
    """

    name: str
    role: str
    layer: int | None
    kind: SiteKind = "linear"
    reads: str = ""
    feeds: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Name of the module that the place belongs to."""
        return self.name if self.kind == "linear" else self.name.rpartition(".(")[0]


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
        The linears in order of use, then the other places.
    left_out
        Every other linear, embedding and LayerNorm by name, and the operations without a
        module of their own.
    tied
        The linear whose weight is the table of embeddings, and that table.
    """

    sites: tuple[Site, ...]
    left_out: tuple[LeftOut, ...]
    tied: dict[str, str] = field(default_factory=dict)

    @property
    def linears(self) -> tuple[Site, ...]:
        """The quantized linears."""
        return tuple(site for site in self.sites if site.kind == "linear")

    @property
    def places(self) -> tuple[Site, ...]:
        """What else is quantized."""
        return tuple(site for site in self.sites if site.kind != "linear")


def survey_sites(model: nn.Module, sites: Extent = "linears", *, tables: bool = False) -> Survey:
    """List what of a model is to be quantized, and everything else with a reason.

    Parameters
    ----------
    model
        An encoder that the catalogue knows, with or without a head.
    sites
        How far to go.
    tables
        Whether the table of token embeddings is rounded too, and with it the weight of a decoder
        that shares it.

    Raises
    ------
    InputError
        The architecture is not in the catalogue, or its attention is out of reach.
    """
    if sites not in get_args(Extent):
        raise InputError(f"sites {sites!r} are not known; use {', '.join(get_args(Extent))}")
    surveyor = _Surveyor(model, sites, tables)
    found = tuple(surveyor.list_sites())
    return Survey(found, tuple(surveyor.list_others(found)), surveyor.tied)


def abbreviate(names: Iterable[str]) -> list[str]:
    """Write names that differ in one number as one, such as ``layer.{0..11}.output.dense``."""
    groups: dict[tuple[str, str], list[int]] = {}
    for name in names:
        found = re.search(r"(?<=\.)\d+(?=\.)", name)
        key = (name[: found.start()], name[found.end() :]) if found else (name, "")
        groups.setdefault(key, []).extend([int(found.group())] if found else [])
    return [head + _write_numbers(numbers) + tail for (head, tail), numbers in groups.items()]


class _Surveyor:
    """Walks over one model."""

    def __init__(self, model: nn.Module, extent: Extent, tables: bool) -> None:
        self.model, self.extent, self.tables = model, extent, tables
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.anatomy = _describe(model)
        weights = {
            id(module.weight): name
            for name, module in self.modules.items()
            if isinstance(module, nn.Embedding)
        }
        self.tied = {
            name: weights[id(self.modules[name].weight)]
            for name in self.anatomy.head
            if id(self.modules[name].weight) in weights
        }
        self._sums = self._find_sums()
        self._answers = self._find_task_head()

    def list_sites(self) -> Iterator[Site]:
        yield from self._list_linears()
        if self.tables:
            name = self._find_table()
            yield Site(f"{name}.(table)", "table", None, "table")
        if self.extent != "linears":
            yield from self._list_operands()
        if self.extent == "all":
            yield from self._list_states()

    def list_others(self, sites: tuple[Site, ...]) -> Iterator[LeftOut]:
        taken = {site.name for site in sites}
        for name, module in self.modules.items():
            if isinstance(module, nn.Linear) and name not in taken:
                yield LeftOut(name, self._excuse_linear(name))
            elif name in self.tied and not self.tables:
                yield LeftOut(f"{name}.(weight)", self._excuse_linear(name))
            elif isinstance(module, nn.Embedding) and f"{name}.(table)" not in taken:
                yield LeftOut(name, "a table look-up, no arithmetic to save")
            elif isinstance(module, nn.LayerNorm):
                yield from self._excuse_norm(name, taken)
        for block in self.anatomy.blocks:
            yield from self._excuse_block(block)

    def _list_linears(self) -> Iterator[Site]:
        for layer, block in enumerate(self.anatomy.blocks):
            for name, role in block.linears.items():
                yield Site(name, role, layer, reads=self._say_input(block, name))
        for name in self.anatomy.head:
            left_out = name in self._answers or (name in self.tied and not self.tables)
            if not left_out or self.extent == "all":
                yield Site(name, "head", None, reads="states")

    def _list_operands(self) -> Iterator[Site]:
        names = {id(module): name for name, module in self.modules.items()}
        found = [names[id(module)] for module in find_attentions(self.model)]
        for layer, block in enumerate(self.anatomy.blocks):
            inside = [name for name in found if name.startswith(f"{block.name}.")]
            if len(inside) != 1:
                raise InputError(
                    f"{block.name}: its attention does not go through transformers' interface, so "
                    "its operands cannot be quantized; use the linears alone"
                )
            for role, what in _OPERANDS.items():
                yield Site(f"{inside[0]}.({what})", role, layer, "attention")

    def _list_states(self) -> Iterator[Site]:
        yield Site(f"{self._find_table()}.(output)", "embedding", None, "output")
        for name, module in self.modules.items():
            if not isinstance(module, nn.LayerNorm) or name in self.anatomy.unused:
                continue
            layer = self._find_layer(name)
            if name in self._sums:
                yield Site(f"{name}.(input)", "residual", layer, "input")
            if not self._feeds_linears_only(name):
                yield Site(f"{name}.(output)", "norm", layer, "output", feeds=self._feeds(name))

    def _excuse_linear(self, name: str) -> str:
        if name in self.tied:
            return "its weight is the table of token embeddings, which is not quantized"
        if name in self._answers:
            return "the task's head: little arithmetic, and nothing dampens its errors"
        return self.anatomy.unused.get(name, "not part of the layers or the head")

    def _excuse_norm(self, name: str, taken: set[str]) -> Iterator[LeftOut]:
        if name in self.anatomy.unused:
            yield LeftOut(name, self.anatomy.unused[name])
            return
        yield LeftOut(name, "LayerNorm is computed in floating point")
        if self.extent == "all" and f"{name}.(output)" not in taken:
            yield LeftOut(f"{name}.(output)", "rounded as the input of the linears that read it")

    def _excuse_block(self, block: Block) -> Iterator[LeftOut]:
        if self.extent == "linears":
            inside = "computed inside the attention kernel, in floating point"
            for place in ("queries x keys", "probabilities", "probabilities x values"):
                yield LeftOut(f"{block.name}.({place})", inside)
        else:
            yield LeftOut(f"{block.name}.(scores and softmax)", "kept in floating point")
        places = ["biases", "activation function"]
        if self.extent != "all":
            places.insert(0, "residual sums")
        for place in places:
            yield LeftOut(f"{block.name}.({place})", "kept in floating point")
        if self.extent == "all" and self.anatomy.pre_norm:
            reason = "rounded only as what LayerNorm reads: adding to it is in floating point"
            yield LeftOut(f"{block.name}.(running residual sum)", reason)

    def _say_input(self, block: Block, name: str) -> str:
        if name == block.attention_out:
            return "context"
        if name != block.ffn_out:
            return "states"
        first, second = self.modules[block.ffn_in], self.modules[block.ffn_out]
        gated = block.ffn_gate is not None or first.out_features != second.in_features
        return "gated product" if gated else "hidden activation"

    def _find_task_head(self) -> frozenset[str]:
        """Linears between the layers and an answer that is no token.

        Told by what the model is, not by its sizes: a task can have as many classes as the
        vocabulary has tokens.
        """
        find = getattr(self.model, "get_output_embeddings", None)
        predicts_tokens = find is not None and find() is not None
        return frozenset() if predicts_tokens else frozenset(self.anatomy.head)

    def _find_table(self) -> str:
        whole: Any = self.model.encoder if _is_pair(self.model) else self.model
        table: nn.Module = whole.get_input_embeddings()
        return next(name for name, module in self.modules.items() if module is table)

    def _find_sums(self) -> set[str]:
        """LayerNorms that read a sum: of branches, or of embeddings."""
        sums = {
            name
            for block in self.anatomy.blocks
            for name in (block.attention_norm, block.ffn_norm, block.output_norm)
        }
        return sums | {
            name
            for name, module in self.modules.items()
            if isinstance(module, nn.LayerNorm) and "embeddings." in name
        }

    def _feeds(self, norm: str) -> tuple[str, ...]:
        """Find the linears that read a LayerNorm's output, perhaps after pooling."""
        found: list[str | None] = []
        blocks, last = self.anatomy.blocks, self.anatomy.blocks[-1]
        if norm == last.output_norm:
            return () if _is_pair(self.model) else self.anatomy.head[:1]
        if not self.anatomy.pre_norm and self._find_layer(norm) is None and norm in self._sums:
            found = [blocks[0].query, blocks[0].key, blocks[0].value]
        for block, after in zip(blocks, [*blocks[1:], None], strict=True):
            attention: list[str | None] = [block.query, block.key, block.value]
            feed_forward: list[str | None] = [block.ffn_gate, block.ffn_in]
            readers: dict[str, list[str | None]]
            if self.anatomy.pre_norm:
                readers = {block.attention_norm: attention, block.ffn_norm: feed_forward}
            else:
                readers = {block.attention_norm: feed_forward}
                if after is not None:
                    readers[block.ffn_norm] = [after.query, after.key, after.value]
            found += readers.get(norm, [])
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def _feeds_linears_only(self, norm: str) -> bool:
        inside = any(norm.startswith(f"{block.name}.") for block in self.anatomy.blocks)
        return self.anatomy.pre_norm and inside and bool(self._feeds(norm))

    def _find_layer(self, name: str) -> int | None:
        for layer, block in enumerate(self.anatomy.blocks):
            if name.startswith(f"{block.name}."):
                return layer
        return None


def _is_pair(model: nn.Module) -> bool:
    return not hasattr(model, "config") and hasattr(model, "encoder") and hasattr(model, "head")


def _describe(model: nn.Module) -> Anatomy:
    """Take a model apart; of one for pairs, the encoder inside and the head beside it."""
    if not _is_pair(model):
        return describe_encoder(model)
    encoder: nn.Module = model.encoder  # type: ignore[assignment]
    inner = describe_encoder(encoder)
    names = [
        *("name", "query", "key", "value", "attention_out", "ffn_in", "ffn_out", "ffn_gate"),
        *("attention_norm", "ffn_norm", "output_norm"),
    ]
    blocks = tuple(
        replace(
            block,
            **{n: f"encoder.{getattr(block, n)}" for n in names if getattr(block, n) is not None},
        )
        for block in inner.blocks
    )
    trunk = f"encoder.{encoder.base_model_prefix}."
    kinds = nn.Linear | nn.LayerNorm
    unused = {
        name: "belongs to the masked-language head, which a model for pairs does not run"
        for name, module in model.named_modules()
        if isinstance(module, kinds) and name.startswith("encoder.") and not name.startswith(trunk)
    }
    unused |= {f"encoder.{name}": reason for name, reason in inner.unused.items()}
    head = tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("head.")
    )
    return Anatomy(inner.pre_norm, blocks, head, unused)


def _write_numbers(numbers: list[int]) -> str:
    if not numbers:
        return ""
    first, last = min(numbers), max(numbers)
    if len(numbers) == 1:
        return str(first)
    if sorted(numbers) == list(range(first, last + 1)):
        return f"{{{first}..{last}}}"
    return "{" + ",".join(map(str, numbers)) + "}"

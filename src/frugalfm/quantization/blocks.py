"""Run a model piece by piece: a layer at a time, then each linear of the head.

Methods that fit one layer after the other need what enters and leaves each of them, for the model
in floating point and for the one quantized so far. No signature of a layer is known here. Instead
the model itself is called: the layers before answer at once with what the last of them gave, the
one in question computes with whatever masks and positions the model hands it, and the call ends
there. So only the outputs of one layer are kept, and a piece costs what it costs plus the
embeddings.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.quantization.sites import Survey
from frugalfm.training.data import Batch

__all__ = ["Part", "list_parts", "real_rows", "run_part", "substitute"]


@dataclass(frozen=True)
class Part:
    """A piece of a model that is fitted as a whole.

    Attributes
    ----------
    name
        The module.
    before
        The layers before it, by name.
    sites
        Its linears; a linear of the head is its own and only one.
    is_layer
        Whether it is a layer, not a linear of the head.
    """

    name: str
    before: tuple[str, ...]
    sites: tuple[str, ...]
    is_layer: bool


def list_parts(survey: Survey) -> list[Part]:
    """Cut a model into its layers and the quantized linears of its head, in order of use."""
    inside: dict[int, list[str]] = {}
    for site in survey.linears:
        if site.layer is not None:
            inside.setdefault(site.layer, []).append(site.name)
    layers: list[str] = []
    parts = []
    for names in inside.values():
        parts.append(Part(_find_common(names), tuple(layers), tuple(names), True))
        layers.append(parts[-1].name)
    head = [site.name for site in survey.linears if site.layer is None]
    return parts + [Part(name, tuple(layers), (name,), False) for name in head]


def _find_common(names: Sequence[str]) -> str:
    """Find the innermost module that holds all of some modules."""
    common = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


class _ReachedError(Exception):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def run_part(model: nn.Module, part: Part, batch: Batch, given: Any = None) -> Any:
    """Compute one part of a model, gradients included.

    Parameters
    ----------
    model
        As it stands: linears that were exchanged compute what they are now.
    part
        Where to stop.
    batch
        On the model's device.
    given
        What the last layer before the part gave for this batch; None if there is none.

    Returns
    -------
    Tensor or tuple
        Whatever the part's module returns.

    Raises
    ------
    InputError
        The model computes its output without the part.
    """

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        raise _ReachedError(output)

    with contextlib.ExitStack() as stack:
        for name in part.before:
            stack.enter_context(_answer(model.get_submodule(name), given))
        stack.callback(model.get_submodule(part.name).register_forward_hook(stop).remove)
        try:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        except _ReachedError as reached:
            return reached.output
    raise InputError(f"{part.name} takes no part in computing the model's output")


def real_rows(values: Any, batch: Batch) -> Tensor:
    """Flatten what a module gives to ``(rows, features)``, pads left out.

    Of several outputs the first counts. What has no dimension of tokens (a pooled sequence) has
    no pads either.
    """
    first: Tensor = values if isinstance(values, Tensor) else values[0]
    mask = batch.attention_mask.bool()
    if first.shape[: mask.ndim] == mask.shape and first.ndim > mask.ndim:
        return first[mask]
    return first.flatten(0, -2)


@contextlib.contextmanager
def substitute(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Exchange modules by name while the context lasts."""
    originals = {name: model.get_submodule(name) for name in modules}
    try:
        for name, module in modules.items():
            model.set_submodule(name, module)
        yield
    finally:
        for name, module in originals.items():
            model.set_submodule(name, module)


@contextlib.contextmanager
def _answer(module: nn.Module, output: Any) -> Iterator[None]:
    """Let a module return an output without computing it."""
    before = module.__dict__.get("forward")
    module.forward = lambda *_, **__: output  # type: ignore[method-assign]
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before  # type: ignore[method-assign]

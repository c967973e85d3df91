"""Linears that read the same tensor, and the LayerNorms whose output they read.

Such linears share one transform and one input grid, so that an engine rounds the tensor once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frugalfm.quantization.sites import Survey
from frugalfm.training.data import Batch

__all__ = ["InputGroup", "find_feeding_norms", "input_groups"]

_TOGETHER = {"query": "attention", "key": "attention", "value": "attention"} | {
    "ffn_gate": "ffn",
    "ffn_in": "ffn",
}
"""Roles of the linears of one layer that read the same tensor, in every known architecture."""


@dataclass(frozen=True)
class InputGroup:
    """Linears that read one tensor.

    Attributes
    ----------
    sites
        Their names, in order of use.
    layer
        From 0; None in the head.
    """

    sites: tuple[str, ...]
    layer: int | None

    @property
    def first(self) -> str:
        """The site at which the tensor is looked at."""
        return self.sites[0]


def input_groups(survey: Survey) -> list[InputGroup]:
    """Gather a survey's linears by what they read, in order of use.

    Query, key and value of a layer read one tensor, and so do the gate and the first linear of
    its feed-forward network; every other linear has its input for itself.
    """
    gathered: dict[tuple[int | None, str], list[str]] = {}
    for site in survey.linears:
        what = _TOGETHER.get(site.role.partition("+")[0], site.name)
        gathered.setdefault((site.layer, what), []).append(site.name)
    return [InputGroup(tuple(names), layer) for (layer, _), names in gathered.items()]


@torch.no_grad()
def find_feeding_norms(
    model: nn.Module, batch: Batch, groups: Sequence[InputGroup], *, rows: int = 2
) -> dict[InputGroup, str]:
    """Find by running a model which LayerNorm's output each group reads, if any does.

    Parameters
    ----------
    model
        In evaluation mode, so that dropout passes its input on.
    batch
        Of which a few rows are run; their values do not matter.
    groups
        Of :func:`input_groups`.
    rows
        How many.

    Returns
    -------
    dict
        Names of the LayerNorms; groups that read no LayerNorm's output (or a changed copy of
        one) are missing.
    """
    outputs: dict[int, tuple[str, Tensor]] = {}
    found: dict[InputGroup, str] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            # The tensor is held, so that no other one comes to lie where it is.
            outputs[output.untyped_storage().data_ptr()] = name, output

        return hook

    def look(group: InputGroup) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            read = inputs[0]
            name, output = outputs.get(read.untyped_storage().data_ptr(), ("", None))
            if output is not None and output.shape[-1] == read.shape[-1]:
                found[group] = name

        return hook

    device = next(model.parameters()).device
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm):
                stack.callback(module.register_forward_hook(note(name)).remove)
        for group in groups:
            site = model.get_submodule(group.first)
            stack.callback(site.register_forward_pre_hook(look(group)).remove)
        model(
            input_ids=batch.input_ids[:rows].to(device),
            attention_mask=batch.attention_mask[:rows].to(device),
        )
    return found

"""OmniQuant (arXiv 2308.13137): clipping and equivalent transforms learned block by block.

Each layer in turn is given what the layers quantized before it really pass on, and learns to
answer as the layer in floating point answers to floating-point input: by how much to clip each
weight (learnable weight clipping), and by what scale and shift to make each channel of an input
easier to round (learnable equivalent transformation). Nothing else is trained. The linears of the
head follow, each by itself.

What is as published: the objective, straight-through rounding, AdamW with a rate for either kind,
the start of the shares at the sigmoid of 4, of the scales at SmoothQuant's (arXiv 2211.10438) and
of the shifts at the middle of each channel's range. What is not: transforms belong to the linears
(:mod:`~frugalfm.quantization.transforms`), so that post-LN, gated layers and residual sums need no
care; scales are learned as logarithms and shifts in units of the channel's range; a static range
follows the transform exactly; queries and keys, which stay in floating point, get no scale of
their own; and a layer keeps the best state that an epoch ended with, the starting points included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.progress import progress
from frugalfm.quantization.blocks import (
    Part,
    list_parts,
    real_rows,
    run_part,
    substitute,
)
from frugalfm.quantization.methods.assembly import assemble, linear_of
from frugalfm.quantization.methods.groups import InputGroup, input_groups
from frugalfm.quantization.methods.learned import LearnedClipping, LearnedLinear, LearnedTransform
from frugalfm.quantization.methods.learning import Learner, Learning, PartFit
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.settings import Settings
from frugalfm.quantization.simulate import Rounding, SimulatedLinear
from frugalfm.quantization.sites import Site, survey_sites
from frugalfm.quantization.taps import RealTokens, tap
from frugalfm.training.data import Batch

__all__ = ["PartFit", "fit_omniquant", "quantize_omniquant"]


def quantize_omniquant(
    model: nn.Module,
    batches: Sequence[Batch],
    settings: Settings,
    *,
    epochs: int = 10,
    lwc_lr: float = 1e-2,
    let_lr: float = 5e-3,
    alpha: float = 0.5,
) -> Scheme:
    """Find a scheme by OmniQuant.

    Parameters
    ----------
    model, batches, settings
        As of :func:`fit_omniquant`.
    epochs, lwc_lr, let_lr, alpha
        As of :class:`~frugalfm.quantization.methods.learning.Learning`.
    """
    return fit_omniquant(model, batches, settings, Learning(epochs, lwc_lr, let_lr, alpha))[0]


def fit_omniquant(
    model: nn.Module, batches: Sequence[Batch], settings: Settings, learning: Learning
) -> tuple[Scheme, list[PartFit]]:
    """Find a scheme, and say of each layer what was gained.

    Parameters
    ----------
    model, batches, settings
        As of :class:`~frugalfm.quantization.methods.Method`; the method as published takes 128
        sequences and rounds weights to asymmetric grids. Where activations stay in floating
        point, nothing is transformed and only the clipping is learned, as published.
    learning
        How; all batches are passed over in each epoch, one step a batch.

    Returns
    -------
    tuple
        The scheme, and how each part was fitted. No part is worse on its calibration objective
        than by min-max grids or by SmoothQuant's scales, given the same input.

    Notes
    -----
    Two outputs of one layer are kept for each batch: ``2 * tokens * features`` numbers of fp32.
    """
    survey = survey_sites(model)
    groups = input_groups(survey)
    start = assemble("omniquant", model, (), groups, settings, input_grids={})
    if not start.quantizes:
        return start, []
    if not batches:
        raise InputError("OmniQuant learns from calibration batches; give at least one")
    device = next(model.parameters()).device
    moved = [batch.to(device) for batch in batches]
    walk = _Walk(model, moved, groups, start, learning, settings.momentum)
    with walk.noting_pads(), progress(list_parts(survey), desc="omniquant", unit="part") as bar:
        fits = [walk.fit(part) for part in bar]
    return walk.scheme, fits


class _Walk:
    """From the first layer to the head: both streams of activations, and the scheme so far."""

    def __init__(
        self,
        model: nn.Module,
        batches: list[Batch],
        groups: list[InputGroup],
        scheme: Scheme,
        learning: Learning,
        momentum: float,
    ) -> None:
        self.model = model
        self.batches = batches
        self.groups = groups
        self.learning, self.momentum = learning, momentum
        self.scheme = scheme
        self._plain: list[Any] = [None] * len(batches)
        self._rounded: list[Any] = [None] * len(batches)
        self._head: dict[str, nn.Module] = {}
        self._real = RealTokens()

    @contextmanager
    def noting_pads(self) -> Iterator[None]:
        """Let linears know the pads of each batch while the context lasts."""
        handle = self.model.register_forward_pre_hook(self._real.note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def fit(self, part: Part) -> PartFit:
        """Learn one part and go on to the next."""
        for name in part.sites:
            if not linear_of(self.model, name).weight.isfinite().all():
                raise InputError(f"the weight of {name} is not finite; the checkpoint is unusable")
        with torch.no_grad():
            answers = self._run(part, self._plain)
        with substitute(self.model, self._head):
            targets = [real_rows(x, b) for x, b in zip(answers, self.batches, strict=True)]
            if not all(bool(target.isfinite().all()) for target in targets):
                raise InputError(
                    f"the output of {part.name} is not finite; the checkpoint is unusable"
                )
            linears, fit = self._learn(part, targets)
        for name, linear in linears.items():
            self._adopt(name, linear)
        simulated = {name: self._simulate(name) for name in part.sites}
        if not part.is_layer:
            self._head |= simulated
            return fit
        with torch.no_grad(), substitute(self.model, simulated):
            self._rounded = self._run(part, self._rounded)
        self._plain = answers
        return fit

    def _run(self, part: Part, given: list[Any]) -> list[Any]:
        return [
            run_part(self.model, part, batch, before)
            for batch, before in zip(self.batches, given, strict=True)
        ]

    def _learn(self, part: Part, targets: list[Tensor]) -> tuple[dict[str, LearnedLinear], PartFit]:
        with torch.no_grad():
            linears = self._prepare(part)
        learner = Learner(linears, self.learning)

        def find_error(number: int) -> Tensor:
            batch = self.batches[number]
            out = run_part(self.model, part, batch, self._rounded[number])
            return (real_rows(out, batch) - targets[number]).square().sum()

        elements = sum(target.numel() for target in targets)
        with substitute(self.model, linears):
            return linears, learner.learn(part.name, find_error, len(targets), elements)

    def _prepare(self, part: Part) -> dict[str, LearnedLinear]:
        """Make the part's linears, those that read the same with one transform."""
        form, input_form, made = self.scheme.weights, self.scheme.activations, {}
        groups = [group for group in self.groups if group.first in part.sites]
        ends = self._observe(part, [g.first for g in groups]) if input_form else {}
        for group in groups:
            transform = None
            if input_form:
                transform = LearnedTransform(*ends[group.first], self.momentum)
            for name in group.sites:
                linear = linear_of(self.model, name)
                clipping = None
                if form:
                    clipping = LearnedClipping(form, linear.weight)
                made[name] = LearnedLinear(linear, transform, clipping, input_form, self._real)
        return made

    def _observe(self, part: Part, names: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Find each channel's range in each batch, on quantized inputs: ``(batches, features)``."""
        ends: dict[str, list[Tensor]] = {name: [] for name in names}

        def visit(site: Site, x: Tensor) -> Tensor:
            rows = self._real.select(x, site).flatten(0, -2)
            found = torch.stack(torch.aminmax(rows, dim=0))
            if not found.isfinite().all():
                raise InputError(
                    f"the input of {site.name} is not finite; the checkpoint is unusable"
                )
            ends[site.name].append(found)
            return x

        sites = [Site(name, "", None) for name in names]
        with tap(self.model, sites, visit, self._real):
            self._run(part, self._rounded)
        return {name: tuple(torch.stack(found, 1)) for name, found in ends.items()}

    def _adopt(self, name: str, linear: LearnedLinear) -> None:
        """Add what one linear learned to the scheme."""
        scheme, grid = self.scheme, linear.input_grid()
        transform = linear.transform.export() if linear.transform is not None else None
        weight = linear.weight_grid()
        self.scheme = replace(
            scheme,
            weight_grids=scheme.weight_grids | ({name: weight} if weight else {}),
            input_grids=scheme.input_grids | ({name: grid} if grid else {}),
            transforms=scheme.transforms | ({name: transform} if transform else {}),
        )

    def _simulate(self, name: str) -> SimulatedLinear:
        linear, how = linear_of(self.model, name), self.scheme.input_quantizer(name)
        weight = self.scheme.quantized_weight(name, linear)
        transform = self.scheme.transforms.get(name)
        rounding = Rounding(Site(name, "", None), how, transform, self._real)
        return SimulatedLinear(linear, weight, how, transform, rounding)

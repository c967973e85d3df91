"""Gradient descent on what one part of a model learns, from several starts to the best state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.quantization.methods.learned import LearnedLinear, LearnedTransform
from frugalfm.quantization.methods.smoothquant import smoothing_scale

__all__ = ["Learner", "Learning", "PartFit"]

_STARTS = ("minmax", "smoothquant", "shifted")

_FIRST_LOGIT = 4.0
"""Where learning starts: shares of 0.982, as published."""


@dataclass(frozen=True)
class Learning:
    """How to learn.

    Attributes
    ----------
    epochs
        Passes over the calibration batches, one step a batch.
    lwc_lr, let_lr
        Rates of the clipping and of the transforms.
    alpha
        Of SmoothQuant's scales, which the transforms may start as.
    """

    epochs: int
    lwc_lr: float
    let_lr: float
    alpha: float


@dataclass(frozen=True)
class PartFit:
    """How one layer, or one linear of the head, was fitted.

    Attributes
    ----------
    name
        The module.
    errors
        Mean squared error of its output on real tokens of the calibration batches, against the
        module in floating point on floating-point inputs, before learning: ``minmax``,
        ``smoothquant`` and ``shifted`` (where inputs are quantized), nothing clipped.
    error
        Of what was kept.
    epoch
        When that was; 0 is before learning.
    """

    name: str
    errors: dict[str, float]
    error: float
    epoch: int

    @property
    def learned(self) -> bool:
        """Whether learning found anything better than where it started."""
        return self.epoch > 0


class Learner:
    """The learned tensors of one part, from their starting points to the best state found."""

    def __init__(self, linears: dict[str, LearnedLinear], learning: Learning) -> None:
        self._learning = learning
        self._readers: dict[LearnedTransform, list[nn.Linear]] = {}
        self._clippings = []
        for linear in linears.values():
            if linear.transform is not None:
                self._readers.setdefault(linear.transform, []).append(linear.linear)
            if linear.clipping is not None:
                self._clippings.append(linear.clipping)
        self._rates = [(clipping.logits, learning.lwc_lr) for clipping in self._clippings]
        for transform in self._readers:
            self._rates += [(p, learning.let_lr) for p in transform.parameters()]

    @torch.enable_grad()
    def learn(
        self, name: str, find_error: Callable[[int], Tensor], count: int, elements: int
    ) -> PartFit:
        """Learn, and leave the best state in place.

        Parameters
        ----------
        name
            Of the part.
        find_error
            Sum of the squared errors on a batch, by its number.
        count, elements
            Of batches, and of the outputs in all of them.
        """

        @torch.no_grad()
        def measure() -> float:
            return sum(float(find_error(number)) for number in range(count)) / elements

        errors, states = {}, {}
        for start in _STARTS if self._readers else _STARTS[:1]:
            self._begin(start)
            errors[start], states[start] = measure(), self._copy()
        best = min(errors, key=lambda start: _rank(errors[start]))
        if not math.isfinite(errors[best]):
            raise InputError(f"the output of {name} is not finite when quantized; use more bits")
        error, state, epoch = errors[best], states[best], 0
        self._restore(state)
        for clipping in self._clippings:
            clipping.begin(_FIRST_LOGIT)
        optimizer = self._make_optimizer()
        for number in range(1, self._learning.epochs + 1):
            for batch in range(count):
                self._step(optimizer, find_error(batch) * (count / elements))
            found = measure()
            if found < error:
                error, state, epoch = found, self._copy(), number
        self._restore(state)
        return PartFit(name, errors, error, epoch)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": [tensor], "lr": rate} for tensor, rate in self._rates]
        return torch.optim.AdamW(groups, weight_decay=0.0)

    def _step(self, optimizer: torch.optim.Optimizer, error: Tensor) -> None:
        learned = [tensor for tensor, _ in self._rates]
        gradients = torch.autograd.grad(error, learned)
        # One unlucky batch is left out rather than allowed to spoil all that comes after.
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            for tensor, gradient in zip(learned, gradients, strict=True):
                tensor.grad = gradient
            optimizer.step()

    def _begin(self, start: str) -> None:
        for transform, linears in self._readers.items():
            low, high = transform.extremes
            shift = (low + high) / 2 if start == "shifted" else torch.zeros_like(low)
            scale = torch.ones_like(low)
            if start != "minmax":
                reach = torch.maximum(shift - low, high - shift)
                weights = torch.stack([linear.weight.detach().abs().amax(0) for linear in linears])
                scale = smoothing_scale(reach, weights.amax(0), self._learning.alpha)
            transform.begin(scale, shift)

    @property
    def _tensors(self) -> list[Tensor]:
        return [tensor for tensor, _ in self._rates] + [t.start for t in self._readers]

    def _copy(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._tensors]

    @torch.no_grad()
    def _restore(self, state: list[Tensor]) -> None:
        for tensor, kept in zip(self._tensors, state, strict=True):
            tensor.copy_(kept)


def _rank(error: float) -> float:
    return error if math.isfinite(error) else math.inf

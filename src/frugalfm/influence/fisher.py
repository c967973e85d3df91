"""The empirical Fisher matrix of layers, and the quadratic form that it makes.

``diagonal``: one number a weight, the mean of ``G * G`` over the subset [arXiv 2512.12932].

``rank-1``: the diagonal of a layer, factored as Adafactor factors second moments (Shazeer and
Stern 2018, arXiv 1804.04235): ``F[o, i] = R[o] C[i] / sum(R)`` with R and C its sums over rows and
columns. It needs ``d_out + d_in`` numbers a layer. Because it factors, it can be divided out of
``deltas`` and ``inputs`` before they are multiplied, and the score is a plain square norm.

``projection``: the rank-1 score, estimated: before they are multiplied, ``deltas`` and ``inputs``
are projected to few dimensions, so that ``G`` itself is never computed. The projections of the
two sides are independent and uniformly distributed, and the estimate is unbiased.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import xxhash
from torch import Tensor

__all__ = [
    "DiagonalMetric",
    "Fisher",
    "FisherKind",
    "FisherSum",
    "Metric",
    "RankOneMetric",
    "draw_projection",
]

FisherKind = Literal["diagonal", "rank-1", "projection"]

_CHUNK = 1 << 26  # elements of per-sequence gradients that exist at a time (256 MB in fp32)


@dataclass(frozen=True)
class Fisher:
    """Mean of squared gradients of some layers, whole or summed.

    Attributes
    ----------
    tensors
        By name: ``LAYER`` of shape ``(d_out, d_in)``, or ``LAYER.rows`` of shape ``(d_out,)``
        and ``LAYER.columns`` of shape ``(d_in,)``.
    sequences
        How many it is the mean of.
    """

    tensors: dict[str, Tensor]
    sequences: int


class FisherSum:
    """Adds up squared gradients in fp64.

    Parameters
    ----------
    kind
        ``diagonal`` keeps one number a weight, the others sums over rows and columns.
    """

    def __init__(self, kind: FisherKind) -> None:
        self.kind = kind
        self.totals: dict[str, Tensor] = {}

    def __call__(self, layer: str, inputs: Tensor, deltas: Tensor) -> None:
        """Add one layer's gradients of a batch; see :class:`frugalfm.influence.gradients.Visit`."""
        for _, gradient in _multiply(inputs, deltas):
            squares = gradient.square_()
            if self.kind == "diagonal":
                self._add(layer, squares.sum(0))
            else:
                self._add(f"{layer}.rows", squares.sum((0, 2)))
                self._add(f"{layer}.columns", squares.sum((0, 1)))

    def _add(self, name: str, value: Tensor) -> None:
        if name in self.totals:
            self.totals[name] += value
        else:
            self.totals[name] = value.double()

    def mean(self, sequences: int, dtype: torch.dtype) -> Fisher:
        """Divide by the number of sequences."""
        means = {name: (t / sequences).to("cpu", dtype) for name, t in self.totals.items()}
        return Fisher(means, sequences)


class Metric(ABC):
    """``g^T (F + damping)^-1 g`` of one layer's gradients."""

    @abstractmethod
    def __call__(self, layer: str, inputs: Tensor, deltas: Tensor) -> Tensor:
        """Return one number a sequence, shape ``(batch,)``.

        Parameters
        ----------
        layer, inputs, deltas
            See :class:`frugalfm.influence.gradients.Visit`.
        """


class DiagonalMetric(Metric):
    """Divides by the diagonal plus `damping`, weight by weight."""

    def __init__(self, fisher: Fisher, damping: float, device: torch.device) -> None:
        self.inverse = {
            name: 1.0 / (diagonal.to(device) + damping).flatten()
            for name, diagonal in fisher.tensors.items()
        }

    def __call__(self, layer: str, inputs: Tensor, deltas: Tensor) -> Tensor:
        """See :meth:`Metric.__call__`."""
        inverse = self.inverse[layer]
        scores = torch.empty(len(inputs), device=inputs.device, dtype=inverse.dtype)
        for part, gradient in _multiply(inputs, deltas):
            scores[part] = gradient.square_().flatten(1) @ inverse
        return scores


class RankOneMetric(Metric):
    """Divides by the product of a row's and a column's factor; projects if `dimensions` are given.

    The damping is added to every squared gradient before rows and columns are summed, as
    Adafactor does, so that the damped diagonal factors as well.

    Parameters
    ----------
    fisher
        With sums over rows and columns.
    damping
        Per weight.
    device
        Where to compute.
    dimensions
        Rows and columns that gradients are projected to; None: no projection, the exact form.
    seed
        Determines the projections, together with the layer's name.
    """

    def __init__(
        self,
        fisher: Fisher,
        damping: float,
        device: torch.device,
        dimensions: int | None = None,
        seed: int = 0,
    ) -> None:
        self.left: dict[str, Tensor] = {}
        self.right: dict[str, Tensor] = {}
        for name in fisher.tensors:
            layer = name.removesuffix(".rows")
            if layer == name:
                continue
            rows = fisher.tensors[name].to(device)
            columns = fisher.tensors[f"{layer}.columns"].to(device)
            rows, columns = rows + damping * len(columns), columns + damping * len(rows)
            left, right = rows.rsqrt(), (columns / rows.sum()).rsqrt()
            self.left[layer] = _project(left, dimensions, seed, f"{layer}.rows")
            self.right[layer] = _project(right, dimensions, seed, f"{layer}.columns")

    def __call__(self, layer: str, inputs: Tensor, deltas: Tensor) -> Tensor:
        """See :meth:`Metric.__call__`."""
        left, right = self.left[layer], self.right[layer]
        scores = torch.empty(len(inputs), device=inputs.device, dtype=left.dtype)
        for part, gradient in _multiply(_apply(inputs, right), _apply(deltas, left)):
            scores[part] = gradient.square_().sum((1, 2))
        return scores


def draw_projection(size: int, dimensions: int, seed: int, name: str) -> Tensor:
    """Draw a projection that keeps square norms on average, exactly if no dimension is lost.

    Parameters
    ----------
    size, dimensions
        From how many, to how many; the identity if `dimensions` is not less than `size`.
    seed, name
        Determine it.

    Returns
    -------
    Tensor
        fp32, shape ``(size, dimensions)``: orthogonal columns of norm ``sqrt(size / dimensions)``,
        which span a subspace drawn uniformly.
    """
    if dimensions >= size:
        return torch.eye(size)
    key = xxhash.xxh3_64_intdigest(f"{seed}:{name}".encode()) >> 1
    normal = torch.randn(size, dimensions, generator=torch.Generator().manual_seed(key))
    basis, triangle = torch.linalg.qr(normal)
    # Without the signs the subspace is the same, but not the columns from one LAPACK to the next.
    projection: Tensor = basis * triangle.diagonal().sign() * math.sqrt(size / dimensions)
    return projection


def _project(scale: Tensor, dimensions: int | None, seed: int, name: str) -> Tensor:
    """Join scale and projection; only the scale where no dimension would be lost."""
    if dimensions is None or dimensions >= len(scale):
        return scale
    return scale[:, None] * draw_projection(len(scale), dimensions, seed, name).to(scale)


def _apply(values: Tensor, factor: Tensor) -> Tensor:
    """Scale the last dimension, or project it."""
    if factor.dim() == 1:
        return values * factor.to(values.dtype)
    return values @ factor.to(values.dtype)


def _multiply(inputs: Tensor, deltas: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield gradients, shape ``(some, d_out, d_in)``, piece by piece, fp32 at least."""
    inputs = inputs.to(deltas.dtype)
    step = max(1, _CHUNK // (inputs.shape[-1] * deltas.shape[-1]))
    for start in range(0, len(inputs), step):
        part = slice(start, start + step)
        gradient = torch.bmm(deltas[part].transpose(1, 2), inputs[part])
        yield part, gradient.float() if gradient.dtype == torch.bfloat16 else gradient

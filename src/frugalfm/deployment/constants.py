"""Real integers in the engine's graph: packed, unpacked by a conversion, a shift and a scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from frugalfm.deployment.engine import require_engine
from frugalfm.quantization.quantizers import Format, Grid, make_weight_format
from frugalfm.quantization.scheme import Scheme

__all__ = ["Integers", "quantize_table", "read_weight"]

_HALF_BYTE = 4
_TABLE_BITS = 8


class Integers:
    """A weight as integers, and what they stand for.

    Parameters
    ----------
    values
        Integers of the grid, shape ``(out, in)``.
    grid
        Their scales and zero points.
    """

    def __init__(self, values: Tensor, grid: Grid) -> None:
        self.form: Format = grid.format
        self.values = values.detach().cpu().numpy().astype(np.int16)
        # Scales and zero points by rows: (out or 1, groups).
        self.scale = self._by_rows(grid.scale).astype(np.float32)
        self.zero = self._by_rows(grid.zero_point).astype(np.int16)

    def node(self, rows: slice, *, spread: bool) -> Any:
        """Make the part of a graph that gives some rows in floating point, ``(rows, in)``.

        Parameters
        ----------
        rows
            Which.
        spread
            Let the engine widen four bits to eight when it loads the model, as products of
            integers need them; the file holds four either way.
        """
        from openvino import opset13 as ops

        values = self.values[rows]
        groups = self.scale.shape[1]
        if groups > 1:
            values = values.reshape(len(values), groups, -1)
        found: Any = self._pack(values)
        if spread and self.form.bits <= _HALF_BYTE:
            found = ops.convert(found, np.int8)
        found = ops.convert(found, np.float32)
        if not self.form.symmetric:
            # Of the integers' own type, which is what kernels look for.
            zero = self._pack(self._spread(self.zero, rows, values.ndim))
            found = ops.subtract(found, ops.convert(zero, np.float32))
        found = ops.multiply(found, ops.constant(self._spread(self.scale, rows, values.ndim)))
        if groups > 1:
            found = ops.reshape(found, np.array([len(values), -1]), special_zero=False)
        return found

    def _by_rows(self, of_grids: Tensor) -> np.ndarray:
        found = of_grids.detach().cpu().numpy()
        return found.reshape(1, 1) if found.ndim == 0 else found

    def _spread(self, of_grids: np.ndarray, rows: slice, dims: int) -> np.ndarray:
        kept = of_grids if len(of_grids) == 1 else of_grids[rows]
        return np.ascontiguousarray(kept[:, :, None] if dims == 3 else kept)

    def _pack(self, values: np.ndarray) -> Any:
        openvino = require_engine()
        signed = self.form.symmetric
        if self.form.bits > _HALF_BYTE:
            whole = values.astype(np.int8 if signed else np.uint8)
            return openvino.op.Constant(whole, shared_memory=False)
        halves = values.ravel().astype(np.int8).view(np.uint8) & 15
        if len(halves) % 2:
            halves = np.append(halves, np.uint8(0))
        packed = halves[0::2] | (halves[1::2] << 4)
        kind = openvino.Type.i4 if signed else openvino.Type.u4
        made = openvino.Tensor(kind, openvino.Shape(values.shape))
        made.data[:] = packed.reshape(made.data.shape)
        return openvino.op.Constant(made, shared_memory=False)


def read_weight(scheme: Scheme, site: str, weight: Tensor) -> Integers | None:
    """Get a site's integers; None where the scheme leaves the weight in floating point."""
    grid = scheme.weight_grids.get(site)
    if grid is None:
        return None
    if site in scheme.integers:
        return Integers(scheme.integers[site], grid)
    grid = grid.to(weight.device)
    if site in scheme.transforms:
        weight = scheme.transforms[site].to(weight.device).on_weight(weight)
    form = grid.format
    return Integers(grid.to_integers(weight).clamp(form.lowest, form.highest), grid)


def quantize_table(table: nn.Embedding) -> Integers:
    """Round a table of embeddings to 8 bits, each row on a grid of its own."""
    form = make_weight_format(_TABLE_BITS, "channel")
    assert form is not None
    weight = table.weight.detach()
    grid = form.cover(*form.find_range(weight))
    return Integers(grid.to_integers(weight).clamp(form.lowest, form.highest), grid)

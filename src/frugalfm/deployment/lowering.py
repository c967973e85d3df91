"""A scheme made real: integers for weights, rounded inputs, and products of both in the graph.

The engine recognises the pattern (constant integers, conversion, scale; inputs that are rounded to
256 levels) and runs products of integers. An input's transform is a product of its own, because
the engine rounds to one grid a tensor; it fuses the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from frugalfm.deployment.constants import Integers, quantize_table, read_weight
from frugalfm.deployment.support import Execution
from frugalfm.errors import FrugalError
from frugalfm.quantization.quantizers import Grid
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.transforms import ChannelTransform

__all__ = ["centre_heads", "lower"]

_PREFIX = "self.model."
_SMALL, _FEW = 0.01, 1 << 17
_ALL = slice(None)


def lower(graph: Any, model: nn.Module, scheme: Scheme, execution: Execution) -> list[str]:
    """Write a scheme into the graph of its model.

    Parameters
    ----------
    graph
        As :func:`~frugalfm.deployment.tracing.trace` made it of `model`; changed in place.
    model, scheme
        On the CPU.
    execution
        What :func:`~frugalfm.deployment.support.plan_execution` says.

    Returns
    -------
    list of str
        Tables of embeddings that the scheme leaves alone, and that are stored at 8 bits a row.

    Raises
    ------
    FrugalError
        A site is not in the graph.
    """
    scheme.check(model)
    _freeze_cuts(graph)
    work = _Lowering(graph, model, scheme, execution)
    for site in scheme.sites:
        if site in scheme.weight_grids:
            work.lower_linear(site)
    work.store_tables()
    graph.validate_nodes_and_infer_types()
    return work.own_tables


def centre_heads(
    graph: Any, model: nn.Module, scheme: Scheme, means: Mapping[str, torch.Tensor]
) -> None:
    """Let linears read ``x - mean`` and add what that takes away; before :func:`lower`.

    In exact arithmetic nothing changes. A head that started as a probe reads differences that are
    a small part of its inputs, all that bf16 keeps of them being about three digits.

    Parameters
    ----------
    graph, model, scheme
        As of :func:`lower`.
    means
        By the name of a linear that is no site: what its inputs are near to.
    """
    work = _Lowering(graph, model, scheme, "float")
    for name, mean in means.items():
        work.centre(name, mean)
    graph.validate_nodes_and_infer_types()


class _Lowering:
    def __init__(self, graph: Any, model: nn.Module, scheme: Scheme, execution: Execution) -> None:
        self.model, self.scheme, self.execution = model, scheme, execution
        self._constants = {
            node.get_friendly_name().removeprefix(_PREFIX): node
            for node in graph.get_ops()
            if node.get_type_name() == "Constant"
        }
        # Tied weights are one constant, by the name that torch lists them under, too.
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._inputs: dict[tuple[Any, ...], Any] = {}
        self.own_tables: list[str] = []

    def lower_linear(self, site: str) -> None:
        """Exchange a linear's weight and round its input."""
        linear = self.model.get_submodule(site)
        assert isinstance(linear, nn.Linear)
        integers = read_weight(self.scheme, site, linear.weight.detach())
        assert integers is not None
        constant = self._find(linear)
        products = [p for p in _consumers(constant, "MatMul") if self._belongs(p, site)]
        if not products:
            raise FrugalError(f"{site}: its product is not where it is expected in the graph")
        for product in products:
            self._move_bias(product, site, linear)
            source = self._round_input(product.input_value(0), site)
            self._multiply(product, source, integers)

    def centre(self, name: str, mean: torch.Tensor) -> None:
        """Take the mean from a linear's input, and give it back behind the product."""
        from openvino import opset13 as ops

        linear = self.model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        constant = self._constants.get(self._names[id(linear.weight)])
        mean = mean.half().float()  # as it may be stored
        for product in [] if constant is None else _consumers(constant, "MatMul"):
            source = product.input_value(0)
            if not self._belongs(product, name) or source.get_partial_shape().rank.is_dynamic:
                continue
            rank = source.get_partial_shape().rank.get_length()
            row = ops.constant(mean.numpy().reshape(*[1] * (rank - 1), -1))
            _add_constant(product, linear.weight.detach().double() @ mean.double())
            product.input(0).replace_source_output(ops.subtract(source, row).output(0))

    def store_tables(self) -> None:
        """Write tables of embeddings as integers; a decoder that shares one reads the same.

        One that the scheme leaves alone gets 8 bits a row if it is worth it: a vocabulary of byte
        pairs is, one of residues is not, nor any table of less than 512 kB.
        """
        grids = {place.module: place.name for place in self.scheme.places if place.kind == "table"}
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        for name, table in self.model.named_modules():
            if not isinstance(table, nn.Embedding) or id(table.weight) not in self._names:
                continue
            constant = self._constants.get(self._names[id(table.weight)])
            if constant is None:  # what torch reads one row of, or nothing at all
                continue
            readers = _consumers(constant, "Gather", port=0) + _consumers(constant, "MatMul")
            if not readers:
                continue
            place = grids.get(name)
            found = read_weight(self.scheme, place, table.weight.detach()) if place else None
            if found is None:
                if table.weight.numel() < max(_FEW, _SMALL * parameters):
                    continue
                found = quantize_table(table)
                self.own_tables.append(name)
            node = found.node(_ALL, spread=False)
            for reader in readers:
                port = 0 if reader.get_type_name() == "Gather" else 1
                reader.input(port).replace_source_output(node.output(0))

    def _find(self, linear: nn.Linear) -> Any:
        name = self._names[id(linear.weight)]
        if name not in self._constants:
            raise FrugalError(f"{name}: not in the converted graph; its weight was changed there")
        return self._constants[name]

    def _belongs(self, product: Any, site: str) -> bool:
        """Of a constant that several products read, tell the site's."""
        shared = len(_consumers(product.input_value(1).get_node(), "MatMul")) > 1
        return not shared or f".{site}/" in product.get_friendly_name()

    def _round_input(self, source: Any, site: str) -> Any:
        """Give the input as the site multiplies by it; several sites may read the same."""
        transform = self.scheme.transforms.get(site)
        grid = self.scheme.input_grids.get(site) if self.execution == "static" else None
        key = (source.get_node().get_name(), source.get_index(), *_identify(transform, grid))
        if key not in self._inputs:
            found = source
            if transform is not None:
                found = _transform(found, transform)
            if grid is not None:
                found = _fake_quantize(found, grid)
            self._inputs[key] = found
        return self._inputs[key]

    def _multiply(self, product: Any, source: Any, integers: Integers) -> None:
        """Put a product with integers in the place of one without, in parts if it is cut."""
        from openvino import opset13 as ops

        for rows, target in _find_parts(product):
            weight = integers.node(rows, spread=self.execution == "static")
            made = ops.matmul(source, weight, transpose_a=False, transpose_b=True)
            made.set_friendly_name(
                target.get_node().get_friendly_name() + f"/low-bit.{target.get_index()}"
            )
            target.replace(made.output(0))

    def _move_bias(self, product: Any, site: str, linear: nn.Linear) -> None:
        """Make up for a shift of the input."""
        transform = self.scheme.transforms.get(site)
        if transform is None or transform.shift is None:
            return
        moved = linear.weight.detach().double() @ transform.shift.cpu().double()
        _add_constant(product, moved)


def _add_constant(product: Any, moved: torch.Tensor) -> None:
    """Add to what a product gives, with its bias if it has one."""
    from openvino import opset13 as ops

    value = moved.float().numpy()
    readers = [target.get_node() for target in product.output(0).get_target_inputs()]
    if len(readers) == 1 and readers[0].get_type_name() == "Add":
        port = 1 - next(i for i in (0, 1) if readers[0].input_value(i).get_node() == product)
        bias = readers[0].input_value(port).get_node()
        if bias.get_type_name() == "Constant" and bias.get_data().size == value.size:
            both = ops.constant(bias.get_data() + value.reshape(bias.get_data().shape))
            readers[0].input(port).replace_source_output(both.output(0))
            return
    targets = list(product.output(0).get_target_inputs())
    added = ops.add(product, ops.constant(value))
    for target in targets:
        target.replace_source_output(added.output(0))


def _consumers(node: Any, kind: str, port: int = 1) -> list[Any]:
    """List the nodes of a kind that read a constant, at their weight's place."""
    return [
        target.get_node()
        for target in node.output(0).get_target_inputs()
        if target.get_node().get_type_name() == kind and target.get_index() == port
    ]


def _freeze_cuts(graph: Any) -> None:
    """Write down the sizes of cuts, which the graph computes from what one product gives."""
    from openvino import opset13 as ops

    for node in graph.get_ops():
        if node.get_type_name() == "VariadicSplit" and (sizes := _sizes_of_cut(node)):
            node.input(2).replace_source_output(ops.constant(np.array(sizes)).output(0))


def _sizes_of_cut(node: Any) -> list[int]:
    """Sizes of the parts that the last dimension is cut in; nothing if it is another."""
    shape = node.input_value(0).get_partial_shape()
    axis = node.input_value(1).get_node()
    if shape.rank.is_dynamic or axis.get_type_name() != "Constant":
        return []
    rank = len(shape)
    sizes = [output.get_partial_shape()[rank - 1] for output in node.outputs()]
    last = int(axis.get_data()) in {-1, rank - 1} and all(size.is_static for size in sizes)
    return [size.get_length() for size in sizes] if last else []


def _find_parts(product: Any) -> list[tuple[slice, Any]]:
    """Find rows of a weight and the outputs that they make.

    A gated network's first linear is cut in two right after the product. Two products of half the
    size cost the same, and spare the engine the cut, which it does slowly.
    """
    readers = list(product.output(0).get_target_inputs())
    node = readers[0].get_node()
    cut = len(readers) == 1 and node.get_type_name() in {"Split", "VariadicSplit"}
    if cut and (sizes := _sizes_of_cut(node)):
        ends = np.cumsum(sizes).tolist()
        parts = zip([0, *ends[:-1]], ends, node.outputs(), strict=True)
        return [(slice(start, end), output) for start, end, output in parts]
    return [(_ALL, product.output(0))]


def _transform(source: Any, transform: ChannelTransform) -> Any:
    from openvino import opset13 as ops

    found = source
    if transform.shift is not None:
        found = ops.subtract(found, ops.constant(_row(transform.shift))).output(0)
    factor = 1 / transform.scale.double()
    return ops.multiply(found, ops.constant(_row(factor))).output(0)


def _row(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.cpu().float().numpy()).reshape(1, 1, -1)


def _fake_quantize(source: Any, grid: Grid) -> Any:
    from openvino import opset13 as ops

    form, scale, zero = grid.format, float(grid.scale), int(grid.zero_point)
    low, high = (
        ops.constant(np.float32((end - zero) * scale)) for end in (form.lowest, form.highest)
    )
    levels = form.highest - form.lowest + 1
    return ops.fake_quantize(source, low, high, low, high, levels).output(0)


def _identify(transform: ChannelTransform | None, grid: Grid | None) -> tuple[Any, ...]:
    tensors: list[torch.Tensor | None] = [None, None, None, None]
    if transform is not None:
        tensors[:2] = [transform.scale, transform.shift]
    if grid is not None:
        tensors[2:] = [grid.scale, grid.zero_point]
    return tuple(None if t is None else t.cpu().numpy().tobytes() for t in tensors)

"""From a torch model to the engine's graph, in floating point and for any batch and length."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from frugalfm.deployment.engine import OUTPUTS, require_engine
from frugalfm.errors import FrugalError

__all__ = ["encoder_of", "trace"]

_LOGGERS = ("openvino", "transformers")
_NEVER = -1e30


def trace(model: nn.Module) -> Any:
    """Convert a model.

    Parameters
    ----------
    model
        A transformers model, or one for pairs, on the CPU, with ``logits`` in its output.

    Returns
    -------
    openvino.Model
        Inputs ``input_ids`` and ``attention_mask``, int64, shape ``(batch, tokens)``; outputs
        ``last_hidden_state``, which is the trunk's, and ``logits``. Its constants carry the names
        of the parameters behind ``self.model.``.

    Raises
    ------
    FrugalError
        The engine cannot represent the model.
    """
    openvino = require_engine()
    # Two rows, the second padded: neither size is 1, and no mask can be taken for none.
    mask = torch.tensor([[1] * 13, [1] * 9 + [0] * 4])
    example = {"input_ids": _make_ids(model, mask), "attention_mask": mask}
    try:
        with torch.no_grad(), _quiet():
            graph = openvino.convert_model(
                _Outputs(model), example_input=example, extension=_extensions()
            )
    except Exception as error:
        line = next((x for x in str(error).splitlines() if "No conversion rule" in x), str(error))
        raise FrugalError(
            f"{type(model).__name__}: cannot be converted ({line.strip()})"
        ) from error
    graph.reshape({name: [-1, -1] for name in example})
    _bound_masks(graph)
    return graph


def encoder_of(model: nn.Module) -> Any:
    """Get the transformers model inside: itself, or of one for pairs its encoder."""
    return model if hasattr(model, "base_model_prefix") else model.encoder


class _Outputs(nn.Module):
    """A model that gives the trunk's states beside its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        encoder = encoder_of(self.model)
        seen: list[Tensor] = []

        def keep(_: nn.Module, __: Any, out: Any) -> None:
            seen.append(out.last_hidden_state)

        hook = getattr(encoder, encoder.base_model_prefix).register_forward_hook(keep)
        try:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        finally:
            hook.remove()
        return dict(zip(OUTPUTS, (seen[0], logits), strict=True))


def _make_ids(model: nn.Module, mask: Tensor) -> Tensor:
    config = encoder_of(model).config
    ids: Tensor = torch.arange(mask.numel()).view_as(mask) % min(config.vocab_size, 8)
    pad: int = getattr(config, "pad_token_id", None) or 0
    return ids.masked_fill(mask == 0, pad)


def _extensions() -> list[Any]:
    """Rules for two operations that the converter does not know."""
    import numpy as np
    from openvino import opset13 as ops
    from openvino.frontend.pytorch import ConversionExtension

    def exp2(node: Any) -> list[Any]:
        return [ops.power(ops.constant(np.float32(2)), node.get_input(0)).output(0)]

    def transpose(node: Any) -> list[Any]:
        # Of weights alone, which are matrices.
        order = ops.constant(np.array([1, 0]))
        return [ops.transpose(node.get_input(0), order).output(0)]

    return [ConversionExtension("aten::exp2", exp2), ConversionExtension("aten::mT", transpose)]


def _bound_masks(graph: Any) -> None:
    """Make the masks of attention finite.

    A pad may have no key at all in its window. Where torch's kernels give it zeros, the engine
    divides by zero, and NaN would spread from there; so it averages what nobody reads.
    """
    import numpy as np
    from openvino import Type
    from openvino import opset13 as ops

    lowest = ops.constant(np.float32(_NEVER))
    bounded: dict[tuple[str, int], Any] = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or node.get_input_size() < 4:
            continue
        mask = node.input_value(3)
        key = (mask.get_node().get_name(), mask.get_index())
        if key not in bounded:
            if mask.get_element_type() == Type.boolean:
                bounded[key] = ops.select(mask, ops.constant(np.float32(0)), lowest)
            else:
                bounded[key] = ops.maximum(mask, lowest)
        node.input(3).replace_source_output(bounded[key].output(0))
    graph.validate_nodes_and_infer_types()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what tracing says about branches: they depend on nothing that varies."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)

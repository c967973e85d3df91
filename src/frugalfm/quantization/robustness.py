"""How well an encoder would bear quantization: outliers, and the loss at several widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import nn

from frugalfm.errors import InputError
from frugalfm.probing.activations import measure_outliers
from frugalfm.quantization.data import split_batches
from frugalfm.quantization.evaluation import compare
from frugalfm.quantization.methods import METHODS
from frugalfm.tokens.codec import Codec

__all__ = ["GRIDS", "assess_robustness"]

GRIDS: dict[str, tuple[Literal["tensor", "channel"], Literal["tensor", "token"]]] = {
    "coarse": ("tensor", "tensor"),
    "fine": ("channel", "token"),
}
"""Granularities of weights and activations: the plain min-max of GERM, and that of int8 kernels."""

_CALIBRATION = 16


def assess_robustness(
    model: nn.Module,
    codec: Codec,
    sequences: Sequence[np.ndarray],
    *,
    bits: Sequence[int] = (8, 4),
    grids: Sequence[str] = ("coarse", "fine"),
    batch_tokens: int = 8192,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure outliers, and what min-max quantization of weights and activations adds to the loss.

    Parameters
    ----------
    model
        A masked-language model that the catalogue knows, in evaluation mode, on its device.
    codec
        Of its tokenizer.
    sequences
        Token ids that the model was not trained on. One half calibrates, on the other the loss
        is taken; outliers are measured on that half too.
    bits
        Widths of both weights and activations.
    grids
        Keys of :data:`GRIDS`.
    batch_tokens
        Padded tokens of a batch, at most.
    seed
        Determines the split and the masks.

    Returns
    -------
    dict
        ``avg_kurtosis`` and all else of
        :attr:`~frugalfm.probing.activations.OutlierReport.summary`; and ``increase``: nats a
        target by name, such as ``"W8A8 coarse"``.

    Raises
    ------
    InputError
        Fewer than 4 sequences, an unknown architecture, or activations that are not finite.
    """
    if len(sequences) < 4:
        raise InputError(
            f"{len(sequences)} held-out sequences are too few to measure quantization on; give at "
            "least 4 (--validation-fraction, or --validation)"
        )
    split = split_batches(
        sequences,
        codec,
        calibration_batches=min(_CALIBRATION, len(sequences) // 2),
        limit=len(sequences),
        batch_tokens=batch_tokens,
        seed=seed,
    )
    evaluated = [sequences[row] for row in split.evaluation_rows]
    report = measure_outliers(model, codec, evaluated, batch_tokens=batch_tokens)
    increase = {}
    for width in bits:
        for name in grids:
            weights, activations = GRIDS[name]
            scheme = METHODS["minmax"](
                model,
                split.calibration,
                weights=width,
                activations=width,
                weight_granularity=weights,
                activation_granularity=activations,
            )
            found = compare(model, scheme, split.evaluation)
            increase[f"{found.label} {name}"] = found.increase
    return {**report.summary, "increase": increase}

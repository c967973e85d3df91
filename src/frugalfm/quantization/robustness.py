"""How well an encoder would bear quantization: outliers, and the loss at several widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import nn

from frugalfm.errors import InputError
from frugalfm.probing.activations import OutlierReport, Place, measure_outliers
from frugalfm.quantization.data import split_batches
from frugalfm.quantization.evaluation import compare
from frugalfm.quantization.methods import METHODS
from frugalfm.tokens.codec import Codec

__all__ = ["GRIDS", "assess_robustness", "gaussian_inf_norm"]

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
        :attr:`~frugalfm.probing.activations.OutlierReport.summary`; both inf-norms with
        ``_gaussian`` appended, at independent Gaussian values of the same standard deviation;
        and ``increase``: nats a target by name, such as ``"W8A8 coarse"``.

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
    return {**report.summary, **_expect_norms(report), "increase": increase}


def gaussian_inf_norm(width: int) -> float:
    r"""Give the expected largest :math:`|z|` of `width` independent standard Gaussian values.

    :math:`\int_0^\infty 1 - \mathrm{erf}(x / \sqrt 2)^n \, dx`, by the trapezoidal rule.
    """
    points = np.linspace(0.0, 12.0, 12_001)
    inside = np.array([math.erf(x / math.sqrt(2.0)) for x in points])
    return float(np.trapezoid(1.0 - inside**width, points))


def _expect_norms(report: OutlierReport) -> dict[str, float]:
    """Largest inf-norms, and what Gaussian values of the same spread would give there."""
    places: dict[Place, str] = {"ffn_output": "", "layer_norm": "_layer_norm"}
    found = {}
    for place, key in places.items():
        site = max(report.at(place), key=lambda site: site.inf_norm)
        found[f"max_inf_norm{key}_gaussian"] = site.std * gaussian_inf_norm(site.width)
    return found

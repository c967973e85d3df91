"""Quantization: where it applies, ranges, grids, methods, and simulated low-bit execution.

A method (:mod:`.minmax`) finds a :class:`Scheme` from a model and calibration batches;
:func:`simulate` runs the model under it, with every other place in floating point.
"""

from frugalfm.quantization.data import split_batches
from frugalfm.quantization.evaluation import Comparison, compare
from frugalfm.quantization.minmax import quantize_minmax
from frugalfm.quantization.quantizers import Format, Grid
from frugalfm.quantization.scheme import Scheme, load_scheme, save_scheme
from frugalfm.quantization.simulate import simulate
from frugalfm.quantization.sites import Site, Survey, survey_sites

__all__ = [
    "Comparison",
    "Format",
    "Grid",
    "Scheme",
    "Site",
    "Survey",
    "compare",
    "load_scheme",
    "quantize_minmax",
    "save_scheme",
    "simulate",
    "split_batches",
    "survey_sites",
]

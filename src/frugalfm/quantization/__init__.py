"""Quantization: where it applies, ranges, grids, methods, and simulated low-bit execution.

A method (:mod:`.methods`) finds a :class:`Scheme` from a model and calibration batches;
:func:`extend_scheme` lets it round more than linears; :func:`simulate` runs the model under it,
with every other place in floating point; :func:`compare` and :func:`compare_task` say what it
costs.
"""

from frugalfm.quantization.data import split_batches
from frugalfm.quantization.evaluation import Comparison, compare
from frugalfm.quantization.extend import extend_scheme
from frugalfm.quantization.methods import METHODS, Method
from frugalfm.quantization.plan import QuantizationPlan
from frugalfm.quantization.quantizers import Format, Grid
from frugalfm.quantization.scheme import Scheme, load_scheme, save_scheme
from frugalfm.quantization.settings import Settings
from frugalfm.quantization.simulate import simulate
from frugalfm.quantization.sites import Site, Survey, survey_sites
from frugalfm.quantization.subjects import Subject, load_subject
from frugalfm.quantization.task_evaluation import (
    Agreement,
    TaskComparison,
    compare_decisions,
    compare_task,
)
from frugalfm.quantization.transforms import ChannelTransform

__all__ = [
    "METHODS",
    "Agreement",
    "ChannelTransform",
    "Comparison",
    "Format",
    "Grid",
    "Method",
    "QuantizationPlan",
    "Scheme",
    "Settings",
    "Site",
    "Subject",
    "Survey",
    "TaskComparison",
    "compare",
    "compare_decisions",
    "compare_task",
    "extend_scheme",
    "load_scheme",
    "load_subject",
    "save_scheme",
    "simulate",
    "split_batches",
    "survey_sites",
]

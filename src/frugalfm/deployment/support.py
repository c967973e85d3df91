"""What the engine can run of a scheme, decided before any long work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from frugalfm.deployment.engine import require_engine
from frugalfm.errors import InputError
from frugalfm.quantization.methods import METHODS
from frugalfm.quantization.quantizers import Format, make_input_format, make_weight_format
from frugalfm.quantization.scheme import FLOATING_POINT, Scheme, name_widths

__all__ = [
    "Execution",
    "check_formats",
    "check_options",
    "choose_method",
    "fit_options",
    "plan_execution",
]

Execution = Literal["float", "weight-only", "dynamic", "static"]
"""How linears run: in floating point, with low-bit weights that are unpacked, or as products of
integers, the inputs rounded to fixed grids or to grids found as they pass."""

_BITS = 8


def plan_execution(scheme: Scheme | None) -> Execution:
    """Say how the engine runs a scheme; None is floating point.

    Raises
    ------
    InputError
        It cannot; names the scheme, the reason and the remedy.
    """
    if scheme is None or not scheme.quantizes:
        return "float"
    name = f"{scheme.label} ({scheme.method})"
    if scheme.extent != "linears":
        raise InputError(_say_sites(name))
    return check_formats(name, scheme.weights, scheme.activations)


def check_formats(name: str, weights: Format | None, activations: Format | None) -> Execution:
    """Say how the engine runs two formats, as :func:`plan_execution` does for a scheme."""
    if weights is None:
        problem = "the engine has no product of floating and integer numbers", "--weights 8"
    elif weights.bits > _BITS:
        problem = f"the engine has no weights of {weights.bits} bits", "--weights 8 or 4"
    elif weights.levels is not None:
        raise InputError(_say_uneven(name))
    elif activations is None:
        return "weight-only"
    else:
        found = _check_both(weights, activations)
        if isinstance(found, str):
            return found
        problem = found
    raise InputError("{} cannot be deployed: {}; use {}".format(name, *problem))


def _check_both(weights: Format, activations: Format) -> Execution | tuple[str, str]:
    """Say how integers are multiplied, or the reason why not, and the remedy."""
    if activations.bits != _BITS:
        return (
            f"the engine multiplies integers of 8 bits, not inputs of {activations.bits}",
            "--activations 8, or 16 for weights alone",
        )
    if activations.granularity == "sequence":
        return (
            "the engine finds no grid for a sequence as it passes",
            "--activation-granularity tensor or token",
        )
    if activations.dynamic:
        return "dynamic"
    if weights.granularity == "group":
        return (
            "fixed grids of inputs go with one grid for each channel of a weight",
            "--weight-granularity channel, or --activation-granularity token",
        )
    if not weights.symmetric:
        return "its weights have zero points", "symmetric weights"
    return "static"


def check_options(method: str, settings: Mapping[str, Any], sites: str = "linears") -> Execution:
    """Say how the engine would run what a method is about to find, as :func:`plan_execution`.

    Parameters
    ----------
    method
        By name.
    settings
        All of its options, as :class:`~frugalfm.quantization.plan.QuantizationPlan` has them.
    sites
        How far it goes.

    Raises
    ------
    InputError
        The engine is not installed, or cannot run that.
    """
    require_engine()
    bits = settings["weights"], settings.get("activations", FLOATING_POINT)
    name = f"{name_widths(*bits)[0]} ({method})"
    if method == "nf4":
        raise InputError(_say_uneven(name))
    if sites != "linears":
        raise InputError(_say_sites(name))
    if bits == (FLOATING_POINT, FLOATING_POINT):
        return "float"
    weights = make_weight_format(
        bits[0],
        settings.get("weight_granularity", "channel"),
        group_size=settings.get("group_size"),
        symmetric=settings.get("symmetric_weights", True),
    )
    activations = make_input_format(
        bits[1],
        settings.get("activation_granularity", "tensor"),
        symmetric=settings.get("symmetric_activations", False),
    )
    return check_formats(name, weights, activations)


def choose_method(options: Mapping[str, Any]) -> str:
    """Choose the method where it is left open: the most exact of the quick ones.

    Of products of integers, min-max had half again the error of SmoothQuant
    (docs/results/inference.md); with weights or activations in floating point there is nothing to
    move between them.
    """
    widths = (options.get("weights"), options.get("activations"))
    return "minmax" if FLOATING_POINT in widths else "smoothquant"


def fit_options(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what is fastest, then most exact, where a method's options leave it open.

    That is one fixed scale for the input of each linear, whatever the method's paper prefers: on
    two cores products with a scale for each token took about a quarter longer. With fixed scales,
    what is clipped costs most: so they cover all that calibration shows, and SmoothQuant's alpha
    is judged by tokens that its scales have not seen. Weights are rounded by GPTQ. None of that
    costs time when the model runs.
    """
    defaults = METHODS[method].defaults
    fitted = {name: value for name, value in options.items() if value is not None}
    settings = defaults | fitted
    better: dict[str, Any] = {}
    if settings["weights"] != FLOATING_POINT:
        better["rounding"] = "gptq"
    better["activation_granularity"] = "tensor"
    if settings.get("activations", FLOATING_POINT) != FLOATING_POINT:
        if fitted.get("activation_granularity", "tensor") == "tensor":
            better["activation_observer"] = "minmax"
        if method == "smoothquant":
            better["alpha"] = "search"
    return {name: value for name, value in better.items() if name in defaults} | fitted


def _say_sites(name: str) -> str:
    return (
        f"{name} cannot be deployed: it rounds more than linears, and the engine computes "
        "attention and sums in floating point; use --sites linears"
    )


def _say_uneven(name: str) -> str:
    return f"{name} cannot be deployed: its weights lie on no even grid; use --method rtn or gptq"

"""In words: what was deployed, what it costs, and what to try if that is too much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["describe_deployed", "find_losses"]

_TIMES = 2
_UNAVOIDABLE = 0.02  # relative error that bf16 alone makes between the products
_ALIKE = 0.98


def describe_deployed(found: Mapping[str, Any]) -> list[str]:
    """Say what :func:`~frugalfm.deployment.measure.deploy_scheme` found, warnings last.

    Parameters
    ----------
    found
        Its result; with ``task`` (``metric``, ``value``, ``fp32``, ``simulated``) where the
        deployed model was scored on its task.
    """
    kernels = ", ".join(f"{count} in {kind}" for kind, count in sorted(found["kernels"].items()))
    said = (
        f"deployed ({found['execution']}, {found['precision']}): {found['bytes'] / 1e6:,.1f} MB, "
        f"{_compare_sizes(found['smaller'])} than fp32; products: {kernels}"
    )
    if "error_to_fp32" in found:
        said += (
            f"; relative output error {found['error_to_scheme']:.4f} to the simulated scheme, "
            f"{found['error_to_fp32']:.4f} to fp32"
        )
        if found["agreement_with_fp32"] is not None:
            said += f", same choice as fp32 {found['agreement_with_fp32']:.1%}"
    if found["tables_at_8_bits"]:
        said += f"; at 8 bits a row, too: {', '.join(found['tables_at_8_bits'])}"
    lines = [said]
    if "task" in found:
        task = found["task"]
        fp32, simulated, value = (_format(task[k]) for k in ("fp32", "simulated", "value"))
        lines.append(
            f"test {task['metric']} of the deployed model {value} (fp32 {fp32}, simulated "
            f"{simulated})"
        )
    if losses := find_losses(found):
        lines.append(f"warning: {'; '.join(losses)}; try {_suggest(found)}")
    return lines


def find_losses(found: Mapping[str, Any]) -> list[str]:
    """List in what the deployed model is clearly further from fp32 than its scheme is."""
    if "error_to_fp32" not in found:
        return []
    losses = []
    error, scheme = found["error_to_fp32"], found["scheme_error"]
    if error > max(_TIMES * scheme, _UNAVOIDABLE):
        losses.append(
            f"the deployed model's output error to fp32 is {error:.3f}, where its scheme makes "
            f"{scheme:.3f} as simulated"
        )
    alike = found["agreement_with_fp32"]
    if alike is not None and alike < _ALIKE:
        losses.append(f"it decides as fp32 does in {alike:.1%} of cases only")
    return losses


def _suggest(found: Mapping[str, Any]) -> str:
    ways = []
    if found["precision"] == "bf16":
        ways.append("--precision fp32")
    if found["execution"] == "static":
        ways.append("--activation-granularity token (slower)")
        ways.append("more calibration data (--calibration-batches)")
    if found["execution"] in {"static", "dynamic"}:
        ways.append("--activations 16 (weights alone)")
    if found["execution"] == "weight-only":
        ways.append("--weights 8")
    return ", or ".join(dict.fromkeys(ways)) or "the checkpoint itself, as it is"


def _compare_sizes(smaller: float) -> str:
    if smaller >= 1:
        return f"{smaller:.2f} times smaller"
    return f"{1 / smaller:.1f} times larger"


def _format(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"

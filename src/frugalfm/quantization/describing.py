"""In words: what quantization costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["summarise"]


def summarise(found: Mapping[str, Any]) -> str:
    """Say in a line what :meth:`~frugalfm.quantization.running.Quantized.to_dict` holds."""
    what = f"{found['label']} ({found['meaning']}): "
    measured = found.get("measured", "masked loss")
    if measured == "masked loss":
        return what + _summarise_loss(found)
    if measured == "task":
        metric, change = found["metric"], found["drop"]
        value, quantized = (_format(found[key]) for key in ("value", "quantized_value"))
        drop = "n/a" if change is None else f"{-change:+z.4f}"
        what += f"test {metric} of {found['task']} {value} -> {quantized} ({drop}); "
    what += f"{found['sequences']:,} sequences, {found['items']:,} items"
    if found["agreement"] is not None:
        what += f", same decision {found['agreement']:.1%}"
    if found["output_error"] is not None:
        what += f", relative output error {found['output_error']:.4f}"
    return what


def _summarise_loss(found: Mapping[str, Any]) -> str:
    error = found["increase_standard_error"]
    spread = "" if error is None else f" ± {error:.4f}"
    return (
        f"masked loss {found['loss']:.4f} -> "
        f"{found['quantized_loss']:.4f} nats ({found['increase']:+z.4f}{spread}, "
        f"{found['increase_percent']:+z.2f} %) on {found['targets']:,} positions of "
        f"{found['sequences']:,} sequences; same choice {found['agreement']:.1%}, "
        f"relative output error {found['output_error']:.4f}"
    )


def _format(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"

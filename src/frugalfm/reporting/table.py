"""The report's one table, as rows for HTML and as plain text for a terminal."""

from __future__ import annotations

import textwrap

from frugalfm.reporting.records import Model, Results
from frugalfm.reporting.verdicts import format_increase, judge

__all__ = ["COLUMNS", "model_rows", "outlier_lines", "quantization_lines", "render_table"]

WIDTH = 100
COLUMNS = (
    "model",
    "sequences",
    "pool",
    "epochs",
    "steps",
    "val. loss",
    "probe accuracy",
    "macro F1",
    "seconds",
)
_WIDTHS = (20, 10, 7, 8, 7, 11, 22, 9, 6)
_SHORT = {"macro F1": "F1", "seconds": "s", "probe accuracy": "accuracy [95 %]"}


def model_rows(results: Results) -> list[tuple[str, ...]]:
    """List one row of strings for each model, in the order of `COLUMNS`."""
    return [_row(model) for model in results.models]


def outlier_lines(results: Results) -> list[str]:
    """Describe the activation outliers, one line for each model."""
    return [
        f"{found.attention}: average kurtosis {found.avg_kurtosis:.3f} (Gaussian "
        f"{found.gaussian_kurtosis:.3f}), maximum inf-norm {found.max_inf_norm:.2f} (LayerNorm "
        f"{found.max_inf_norm_layer_norm:.2f})"
        for found in results.outliers
    ]


def quantization_lines(results: Results) -> list[str]:
    """Describe what quantization costs, one line for each scheme and model."""
    return [
        f"{found.label} ({found.meaning}), {found.attention}: masked loss {found.loss:.4f} "
        f"{format_increase(found)}"
        for found in results.quantizations
    ]


def render_table(results: Results) -> str:
    """Render table, outliers, quantization and verdicts as text of at most 100 columns."""
    header = [_SHORT.get(column, column) for column in COLUMNS]
    lines = [_align(header), "-" * WIDTH, *(_align(row) for row in model_rows(results)), ""]
    if results.outliers:
        lines += ["outliers in activations, models of the full pool", *outlier_lines(results), ""]
    if results.quantizations:
        lines += ["loss by quantization (± standard error)", *quantization_lines(results), ""]
    for topic, verdict in judge(results):
        text = f"{topic}: {verdict}"
        lines += textwrap.wrap(text, WIDTH, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines)


def _row(model: Model) -> tuple[str, ...]:
    accuracy, f1 = model.probe.accuracy, model.probe.macro_f1
    return (
        model.label,
        f"{model.sequences:,}",
        f"{100 * model.share:.3g} %",
        f"{model.epochs}",
        f"{model.steps:,}",
        "" if model.validation_loss is None else f"{model.validation_loss:.3f}",
        f"{accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]",
        f"{f1.value:.3f}",
        "" if model.seconds is None else f"{model.seconds:.0f}",
    )


def _align(cells: list[str] | tuple[str, ...]) -> str:
    first, *rest = zip(cells, _WIDTHS, strict=True)
    line = f"{first[0]:<{first[1]}}" + "".join(f"{cell:>{width}}" for cell, width in rest)
    return line.rstrip()

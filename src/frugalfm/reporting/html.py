"""The report as one HTML file: no scripts, no fonts, nothing loaded from anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from frugalfm.artifacts import write_atomically, write_json
from frugalfm.reporting.drawing import PALETTE, Figure
from frugalfm.reporting.figures import draw_figures
from frugalfm.reporting.records import Quantization, Results, Run
from frugalfm.reporting.table import COLUMNS, model_rows
from frugalfm.reporting.verdicts import compare_probes, cost_in_words, format_increase, judge

__all__ = ["as_json", "render_html", "write_report"]

COMMANDS = """\
frugalfm build my-sequences.fasta --alphabet rna --out pool
frugalfm pretrain pool --model rna-fm-small --epochs 1 --out first
frugalfm score pool --model first --out scores
frugalfm select scores --budget 5% --strategy top-influence-by-length --out coreset
frugalfm pretrain coreset --model rna-fm-small --steps 5000 --out model
frugalfm evaluate model --task my-task --out evaluation
frugalfm outliers model --data my-task/test.csv --out outliers
frugalfm quantize model --data my-task/test.csv --weights 8 --activations 8 --out quantized"""


def write_report(results: Results, path: Path) -> None:
    """Write the report as one self-contained HTML file, and ``results.json`` beside it."""
    path = Path(path)
    write_json(path.with_name("results.json"), as_json(results))
    with write_atomically(path) as handle:
        handle.write(render_html(results))


def as_json(results: Results) -> dict[str, Any]:
    """List every number of the report, machine-readable."""
    random = results.model("random")
    models = []
    for model in results.models:
        entry = {key: value for key, value in vars(model).items() if key not in {"curve", "probe"}}
        probe = model.probe
        entry["probe"] = {
            "task": probe.task,
            "test_sequences": len(probe.correct),
            "chance": probe.chance,
            "accuracy": vars(probe.accuracy),
            "macro_f1": vars(probe.macro_f1),
        }
        if random is not None and model is not random:
            entry["accuracy_minus_random"] = vars(compare_probes(model, random))
        models.append(entry)
    outliers = [vars(f) | {"sites": [vars(site) for site in f.sites]} for f in results.outliers]
    return {
        "created": results.created,
        "versions": dict(results.versions),
        "pool_sequences": results.pool.size,
        "validation_sequences": results.validation_sequences,
        "seeds": list(results.seeds),
        "models": models,
        "outliers": outliers,
        "quantization": [vars(found) for found in results.quantizations],
        "runs": [vars(run) | {"options": dict(run.options)} for run in results.runs],
        "verdicts": [{"topic": topic, "text": text} for topic, text in judge(results)],
    }


def render_html(results: Results) -> str:
    """Render the whole page."""
    figures = draw_figures(results)
    body = [
        f"<header><h1>{escape(results.title)}</h1>{_introduction(results)}</header>",
        _section("what-came-out", "What came out", _verdicts(results)),
        _section("models", "The models side by side", _tables(results)),
        *_figures(figures),
        _section("your-data", "With your own data", _instructions()),
        _section("what-was-run", "What was run", _provenance(results)),
    ]
    style = files("frugalfm.reporting").joinpath("report.css").read_text()
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(results.title)}</title>\n<style>\n{_variables()}{style}</style>\n"
        "</head>\n<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def _introduction(results: Results) -> str:
    trained = [model for model in results.models if model.role != "untrained"]
    strategies = results.role("strategy")
    budget = max((model.sequences for model in strategies), default=0)
    parameters = max((model.parameters or 0 for model in trained), default=0)
    steps = max((model.steps for model in trained), default=0)
    probe = results.models[0].probe
    return (
        f"<p class=lead>{results.pool.size:,} sequences were scored by how much each one moves a "
        f"pretrained encoder, and coresets of {budget:,} were chosen from them by "
        f"{len(strategies)} strategies. On each coreset, and on the full pool, an encoder of "
        f"{parameters / 1e6:.1f} million parameters ({escape(results.architecture)}) was "
        f"pretrained from scratch for {steps:,} steps. A linear probe on the task "
        f"“{escape(probe.task)}” measures what it learned, and the full-pool models, with softmax "
        "and with softmax1, are checked for outliers and quantized.</p>"
    )


def _verdicts(results: Results) -> str:
    items = "".join(
        f"<dt>{escape(topic)}</dt><dd>{escape(_keep_together(verdict))}</dd>"
        for topic, verdict in judge(results)
    )
    return (
        f"<dl>{items}</dl>"
        "<p class=note>These sentences are computed from the numbers below. A run of this size "
        "shows that every step works, on real data; it neither confirms nor refutes published "
        "results, which are about models of some 100 million parameters and more, and about "
        "millions of sequences "
        "(influence and coverage: arXiv 2512.12932; softmax1 and outliers: arXiv 2505.00598).</p>"
    )


def _keep_together(sentence: str) -> str:
    """Let no line break fall into a number with its error or interval."""
    bracketed = re.sub(r"(\[[^]]*), ", "\\1,\u00a0", sentence).replace(" [", "\u00a0[")
    return bracketed.replace(" ± ", "\u00a0±\u00a0")


def _tables(results: Results) -> str:
    models = _table(
        COLUMNS,
        model_rows(results),
        "Validation loss in nats per masked residue; probe accuracy on test with its 95 % "
        "interval; seconds of pretraining.",
    )
    parts = [models]
    if results.outliers:
        parts.append("<h3>Outliers in activations</h3>" + _outlier_table(results))
    if results.quantizations:
        rows = [_quantization_row(found) for found in results.quantizations]
        columns = ("attention", "scheme", "loss", "increase ± s.e.", "against zero", "kind")
        caption = "Masked loss of the full-pool models before quantization, and its increase."
        parts.append(f"<h3>Quantization</h3>{_table(columns, rows, caption)}")
    return "".join(parts)


def _outlier_table(results: Results) -> str:
    columns = ("attention", "avg. kurtosis", "max. inf-norm", "LayerNorms")
    rows = [
        (
            found.attention,
            f"{found.avg_kurtosis:.3f}",
            f"{found.max_inf_norm:.2f}",
            f"{found.max_inf_norm_layer_norm:.2f}",
        )
        for found in results.outliers
    ]
    first = results.outliers[0]
    caption = (
        f"Full-pool models on {first.sequences:,} sequences; Gaussian activations would have a "
        f"kurtosis of {first.gaussian_kurtosis:.3f}. The inf-norm is that of feed-forward outputs; "
        "LayerNorms have their own column."
    )
    return _table(columns, rows, caption)


def _quantization_row(found: Quantization) -> tuple[str, ...]:
    return (
        found.attention,
        found.label,
        f"{found.loss:.4f}",
        format_increase(found),
        cost_in_words(found),
        found.meaning,
    )


def _figures(figures: Iterable[Figure]) -> list[str]:
    sections = []
    for title, group in groupby(figures, key=lambda figure: figure.section):
        cards = "".join(
            f'<figure id="figure-{figure.slug}"><h3>{escape(figure.title)}</h3>{figure.svg}'
            f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
            for figure in group
        )
        slug = title.lower().replace(" ", "-")
        sections.append(_section(slug, title, f"<div class=grid>{cards}</div>"))
    return sections


def _instructions() -> str:
    return (
        "<p>Each command reads a folder and writes a folder, and each can be run alone. "
        "<code>frugalfm COMMAND --help</code> lists its options; a checkpoint of your own can take "
        "the place of <code>first</code>. Compare strategies at equal steps, beside "
        "<code>--strategy random</code> and an untrained model.</p>"
        f'<div class=scroll tabindex=0 role="region" aria-label="Commands">'
        f"<pre><code>{escape(COMMANDS)}</code></pre></div>"
    )


def _provenance(results: Results) -> str:
    rows = [
        (run.folder, run.kind, _options(run), "" if run.seconds is None else f"{run.seconds:.0f}")
        for run in results.runs
    ]
    caption = "Every stage in the order in which it was finished; seconds where they are recorded."
    runs = _table(("folder", "kind", "options", "seconds"), rows, caption)
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    sources = "".join(f"<li>{escape(what)} ({escape(how)})</li>" for what, how in results.sources)
    return (
        f"<p>Finished {escape(results.created)} on {escape(results.device or 'cpu')}, with "
        f"{escape(versions)}.</p>"
        f"<details><summary>All {len(rows)} stages and their options</summary>{runs}</details>"
        + (f"<h3>Where the sequences are from</h3><ul>{sources}</ul>" if sources else "")
    )


def _options(run: Run) -> str:
    return ", ".join(f"{key} {value}" for key, value in run.options.items() if value is not None)


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]], caption: str) -> str:
    head = "".join(f"<th scope=col>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th scope=row>{escape(first)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    label = escape(caption, quote=True)
    # The note stands outside of the box that scrolls, so that it wraps on a narrow screen.
    return (
        f'<div class=scroll tabindex=0 role="region" aria-label="{label}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<p class=tablenote>{escape(caption)}</p>"
    )


def _section(slug: str, title: str, content: str) -> str:
    return f'<section id="{escape(slug, quote=True)}"><h2>{escape(title)}</h2>{content}</section>'


def _variables() -> str:
    """Declare the palette as CSS variables, for light and for dark."""
    light, dark = (_declare({name: pair[i] for name, pair in PALETTE.items()}) for i in (0, 1))
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"


def _declare(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())

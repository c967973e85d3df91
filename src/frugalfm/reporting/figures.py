"""The report's figures, each drawn from `Results` alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from frugalfm.reporting.drawing import MODELS, SERIES, Figure, canvas, colour, finish, style
from frugalfm.reporting.records import Coreset, Interval, Model, Results

__all__ = ["draw_figures"]

SCORES, CHOICES, QUALITY, OUTLIERS = (
    "Scores of the pool",
    "What each strategy chose",
    "Quality",
    "Outliers and quantization",
)
MOST_FAMILIES = 7


def draw_figures(results: Results) -> list[Figure]:
    """Draw every figure that the results have data for, in the order of the report."""
    with style():
        return _draw(results)


def _draw(results: Results) -> list[Figure]:
    figures = [draw_scores(results)]
    stratified = next((c for c in results.coresets if c.name == "coverage"), None)
    if stratified is not None and stratified.strata:
        figures.append(draw_strata(stratified))
    if results.coresets:
        figures += [draw_deciles(results), draw_lengths(results)]
        if len(set(results.pool.family)) > 1:
            figures.append(draw_families(results))
    trained = [model for model in results.models if model.role != "untrained"]
    if trained:
        figures.append(draw_accuracy(results))
    if any(model.validation_loss is not None for model in trained):
        figures.append(draw_validation(results))
    if any(model.curve for model in trained):
        figures.append(draw_curves(results))
    if results.outliers:
        figures += [draw_outliers(results, "kurtosis"), draw_outliers(results, "inf_norm")]
    if results.quantizations:
        figures.append(draw_quantization(results))
    return figures


def draw_scores(results: Results) -> Figure:
    """Histogram of influence on a logarithmic axis, with the strata of coverage."""
    influence = results.pool.influence
    positive = influence[influence > 0]
    figure, axes = canvas()
    edges = np.geomspace(positive.min(), max(positive.max(), positive.min() * 1.01), 45)
    counts, _ = np.histogram(positive, edges)
    axes.stairs(counts, edges, fill=True, color=colour("area"))
    axes.stairs(counts, edges, color=colour("slate"), linewidth=1)
    axes.set_xscale("log")
    top = 1.28 * max(counts.max(), 1)
    axes.set(xlabel="influence of a sequence", ylabel="sequences", ylim=(0, top))
    caption = f"Influence of the {results.pool.size:,} sequences of the pool."
    coverage = next((c for c in results.coresets if c.name == "coverage"), None)
    if coverage is not None and coverage.strata:
        bounds = [coverage.strata[0].low, *(stratum.high for stratum in coverage.strata)]
        axes.vlines(bounds, 0, 0.055 * top, color=colour("blue"), linewidth=0.6)
        if coverage.dropped:
            axes.axvspan(bounds[-1], positive.max(), color=colour("orange"), alpha=0.16, lw=0)
            middle = float(np.sqrt(bounds[-1] * positive.max()))
            share = 100 * coverage.dropped / results.pool.size
            axes.text(
                middle, 0.985 * top, f"hardest\n{share:.0f} %", ha="center", va="top",
                color=colour("orange"), fontsize=9,
            )  # fmt: skip
        caption += (
            f" The blue ticks are the edges of the {len(coverage.strata)} equally wide strata "
            "that CCI draws from evenly; the shaded part is what it sets aside first."
        )
    low, middle, high = np.percentile(influence, [10, 50, 90])
    alt = f"Histogram of influence: median {middle:.3g}, 10th to 90th percentile {low:.3g} to "
    return finish(figure, "scores", SCORES, "Score distribution", caption, f"{alt}{high:.3g}.")


def draw_strata(coreset: Coreset) -> Figure:
    """Pool and choice of every stratum of coverage."""
    numbers = np.arange(len(coreset.strata) + 1)
    population = np.array([stratum.population for stratum in coreset.strata])
    chosen = np.array([stratum.chosen for stratum in coreset.strata])
    figure, axes = canvas()
    axes.stairs(population, numbers + 0.5, fill=True, color=colour("area"), label="pool")
    axes.stairs(chosen, numbers + 0.5, color=colour("blue"), linewidth=1.6, label="chosen")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 1.6 * max(population.max(), 10))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(xlabel="stratum, from low to high influence", ylabel="sequences (log)")
    axes.legend(loc="upper right")
    filled = int((population > 0).sum())
    caption = (
        f"CCI takes about as many sequences from each of its {len(population)} strata (blue), "
        f"however few the pool has there (grey); {filled} strata hold any."
    )
    alt = f"Sequences per stratum: the pool has {population.min()} to {population.max()}, "
    alt += f"chosen are {chosen.min()} to {chosen.max()}."
    return finish(figure, "strata", SCORES, "The strata of CCI", caption, alt)


def draw_deciles(results: Results) -> Figure:
    """Share of every coreset that comes from each tenth of the pool by influence."""
    influence = results.pool.influence
    rank = np.empty(len(influence), dtype=int)
    rank[np.argsort(influence, kind="stable")] = np.arange(len(influence))
    decile = rank * 10 // len(influence)
    figure, panels = _panels(results)
    said = []
    for axes, coreset in zip(panels, results.coresets, strict=False):
        counts = np.bincount(decile[coreset.rows], minlength=10)
        share = 100 * counts / max(len(coreset.rows), 1)
        axes.bar(np.arange(1, 11), share, color=colour(_hue(coreset.name)), width=0.8)
        axes.axhline(10, color=colour("ink"), linewidth=1, linestyle=(0, (3, 2)))
        axes.set_title(coreset.label)
        said.append(f"{coreset.label} {share[-1]:.0f} %")
    figure.supxlabel("tenth of the pool, from low to high influence", fontsize=9.5)
    figure.supylabel("% of the coreset", fontsize=9.5)
    panels[0].set_xticks([1, 4, 7, 10])
    caption = "Share of a coreset from each tenth of the pool; the dashed line is the pool itself."
    alt = f"Share of each coreset from the tenth of highest influence: {', '.join(said)}."
    return finish(figure, "deciles", CHOICES, "By influence", caption, alt)


def draw_lengths(results: Results) -> Figure:
    """Length distribution of every coreset over that of the pool."""
    length = results.pool.length
    edges = np.linspace(length.min(), length.max() + 1, 23)
    pool = np.histogram(length, edges)[0] / len(length)
    figure, panels = _panels(results)
    said = [f"pool {np.median(length):.0f}"]
    for axes, coreset in zip(panels, results.coresets, strict=False):
        own = length[coreset.rows]
        axes.stairs(100 * pool, edges, fill=True, color=colour("area"))
        share = 100 * np.histogram(own, edges)[0] / max(len(own), 1)
        axes.stairs(share, edges, color=colour(_hue(coreset.name)), linewidth=1.6)
        axes.set_title(coreset.label)
        said.append(f"{coreset.label} {np.median(own):.0f}")
    figure.supxlabel("length in residues", fontsize=9.5)
    figure.supylabel("% of the coreset", fontsize=9.5)
    caption = "Lengths of each coreset (coloured line) over those of the pool (grey)."
    alt = f"Histograms of length; medians: {', '.join(said)} residues."
    return finish(figure, "lengths", CHOICES, "By length", caption, alt)


def draw_families(results: Results) -> Figure:
    """Composition of the pool and of every coreset, as stacked bars."""
    family = results.pool.family
    names, counts = np.unique(family.astype(str), return_counts=True)
    kept = [str(names[i]) for i in np.argsort(-counts, kind="stable")[:MOST_FAMILIES]]
    groups = kept if len(kept) == len(names) else [*kept, "other"]
    sets = [("pool", np.arange(results.pool.size))]
    sets += [(coreset.label, coreset.rows) for coreset in results.coresets]
    figure, axes = canvas(height=3.0)
    said = []
    left = np.zeros(len(sets))
    for name, hue in zip(groups, SERIES, strict=False):
        inside = ~np.isin(family, kept) if name == "other" else family == name
        share = np.array([100 * inside[rows].mean() if len(rows) else 0.0 for _, rows in sets])
        label = (name or "no family").replace("$", r"\$")  # no formula
        axes.barh(
            np.arange(len(sets)), share, left=left, height=0.7, label=label,
            color=colour(hue), edgecolor=colour("page"), linewidth=0.8,
        )  # fmt: skip
        left += share
        said.append(f"{name}: " + ", ".join(f"{share[i]:.0f} %" for i in range(len(sets))))
    axes.set_yticks(np.arange(len(sets)), [label for label, _ in sets])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlabel="% of the sequences", xlim=(0, 100))
    figure.legend(loc="outside upper center", ncols=3, handlelength=1, columnspacing=1)
    order = ", ".join(label for label, _ in sets)
    caption = "Kinds of sequences in the pool and in each coreset."
    alt = f"Composition of {order}. {'; '.join(said)}."
    return finish(figure, "families", CHOICES, "By kind of sequence", caption, alt)


def draw_accuracy(results: Results) -> Figure:
    """Draw the probe accuracy against the number of training sequences."""
    figure, axes = canvas(height=3.3)
    points = [(model, model.probe.accuracy) for model in results.models]
    _against_data(figure, axes, [point for point in points if point[0].role != "untrained"])
    for model in results.role("untrained"):
        value = model.probe.accuracy
        axes.axhline(value.value, color=colour("muted"), linewidth=1.2, linestyle=(0, (4, 2)))
        axes.axhspan(value.low, value.high, color=colour("muted"), alpha=0.14, lw=0)
        axes.annotate(
            "untrained", (0.99, value.value), xycoords=("axes fraction", "data"), ha="right",
            va="bottom", color=colour("muted"), fontsize=9,
        )  # fmt: skip
    for model in results.role("full")[:1]:
        hue = colour(_hue(model.name))
        axes.axhline(model.probe.accuracy.value, color=hue, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set(ylabel="probe accuracy")
    probe = results.models[0].probe
    caption = (
        f"Accuracy of a linear probe on the test set of task “{probe.task}” "
        f"({probe.classes} classes, {len(probe.correct):,} sequences, chance {probe.chance:.2f}), "
        "with 95 % intervals. Dotted: the full pool; dashed with band: the untrained model. "
        "Models of equally many sequences are drawn side by side."
    )
    said = [f"{model.label} {value.value:.3f}" for model, value in points]
    alt = f"Probe accuracy: {', '.join(said)}."
    return finish(figure, "accuracy", QUALITY, "Probe accuracy against data", caption, alt)


def draw_validation(results: Results) -> Figure:
    """Draw the validation loss against the number of training sequences."""
    figure, axes = canvas(height=3.3)
    points = [
        (model, Interval(*3 * (model.validation_loss,)))
        for model in results.models
        if model.validation_loss is not None
    ]
    _against_data(figure, axes, points)
    for model, value in points:
        if model.role == "full" and model.attention == "softmax":
            hue = colour(_hue(model.name))
            axes.axhline(value.value, color=hue, linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set(ylabel="validation loss (nats)")
    axes.margins(y=0.12)
    caption = (
        f"Masked loss on {results.validation_sequences:,} held-out sequences; lower is better. "
        "One training of each, so there is no interval. Dotted: the full pool."
    )
    said = [f"{model.label} {value.value:.3f}" for model, value in points]
    alt = f"Validation loss: {', '.join(said)}."
    return finish(figure, "validation", QUALITY, "Validation loss against data", caption, alt)


def draw_curves(results: Results) -> Figure:
    """Training loss, smoothed, and the validation loss at the end."""
    figure, axes = canvas(height=3.3)
    shown: list[float] = []
    for model in results.models:
        if not model.curve:
            continue
        steps, losses = (np.array(column, dtype=float) for column in zip(*model.curve, strict=True))
        smooth = _smooth(losses)
        hue, marker = MODELS.get(model.name, ("slate", "o"))
        dashes = (0, (3, 1.5)) if model.name == "full-softmax1" else "solid"
        axes.plot(steps, smooth, color=colour(hue), linewidth=1.4, linestyle=dashes,
                  label=model.label)  # fmt: skip
        shown += smooth[steps >= 0.1 * steps.max()].tolist()
        if model.validation_loss is not None:
            shown.append(model.validation_loss)
            axes.plot([steps.max()], [model.validation_loss], color=colour(hue), marker=marker,
                      markersize=6, markeredgecolor=colour("page"), clip_on=False)  # fmt: skip
    if shown:
        room = 0.06 * (max(shown) - min(shown) or 1.0)
        axes.set_ylim(min(shown) - room, max(shown) + room)
    axes.set(xlabel="optimizer step", ylabel="loss (nats)")
    figure.legend(loc="outside upper center", ncols=2, handlelength=1.6, columnspacing=1.2)
    caption = (
        "Loss on each model's own training data (lines, averaged over five logged steps; the "
        "first steps are cut off) and on the common validation set at the end (marks). A line far "
        "below its mark is an easy or memorised coreset, not a better model."
    )
    said = [f"{m.label} {_smooth(np.array([y for _, y in m.curve]))[-1]:.2f} on its own data"
            for m in results.models if m.curve]  # fmt: skip
    alt = f"Learning curves. At the end: {', '.join(said)}."
    return finish(figure, "curves", QUALITY, "Learning curves", caption, alt)


def draw_outliers(results: Results, measure: str) -> Figure:
    """Kurtosis or inf-norm of every layer, at both places, for each attention."""
    places = (("ffn_output", "feed-forward output"), ("layer_norm", "final LayerNorm"))
    figure, panels = canvas(1, 2, height=2.7, sharey=True)
    said = []
    for axes, (place, title) in zip(panels, places, strict=True):
        for found in results.outliers:
            sites = [site for site in found.sites if site.place == place]
            layers = [site.layer + 1 for site in sites]
            values = [getattr(site, measure) for site in sites]
            hue, marker = MODELS.get(found.name, ("slate", "o"))
            axes.plot(layers, values, color=colour(hue), marker=marker, markersize=6,
                      linewidth=1.4, label=found.attention)  # fmt: skip
            axes.set_xticks(layers[:: max(1, len(layers) // 6)])
            said.append(f"{found.attention}, {title}: {', '.join(f'{v:.2f}' for v in values)}")
        axes.margins(x=0.12, y=0.1)
        axes.set(title=title, xlabel="layer")
        if measure == "kurtosis" and results.outliers:
            gaussian = results.outliers[0].gaussian_kurtosis
            axes.axhline(gaussian, color=colour("muted"), linewidth=1.2, linestyle=(0, (4, 2)),
                         label="Gaussian")  # fmt: skip
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, handlelength=1.8)
    if measure == "kurtosis":
        panels[0].set_ylabel("kurtosis")
        caption = "Mean kurtosis of a token's activations in each layer; outliers raise it."
        title = "Kurtosis per layer"
    else:
        panels[0].set_ylabel("inf-norm")
        panels[0].set_ylim(bottom=0)
        caption = "Mean over tokens of the largest absolute activation in each layer."
        title = "Inf-norm per layer"
    alt = f"{title}. {'; '.join(said)}."
    return finish(figure, measure.replace("_", "-"), OUTLIERS, title, caption, alt)


def draw_quantization(results: Results) -> Figure:
    """Increase of the masked loss by scheme, for each attention."""
    figure, axes = canvas(height=2.7)
    labels = list(dict.fromkeys(found.label for found in results.quantizations))
    attentions = list(dict.fromkeys(found.attention for found in results.quantizations))
    for index, attention in enumerate(attentions):
        own = [found for found in results.quantizations if found.attention == attention]
        shift = 0.16 * (index - (len(attentions) - 1) / 2)
        hue, marker = MODELS["full-softmax1" if attention == "softmax1" else "full-softmax"]
        axes.errorbar(
            [labels.index(found.label) + shift for found in own],
            [found.increase for found in own],
            yerr=[1.96 * (found.standard_error or 0.0) for found in own],
            color=colour(hue), marker=marker, markersize=6, linestyle="none", elinewidth=1.4,
            capsize=3, label=attention,
        )  # fmt: skip
    axes.axhline(0, color=colour("muted"), linewidth=1)
    axes.set_xticks(range(len(labels)), labels)
    axes.margins(x=0.2, y=0.12)
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.set(ylabel="increase of the loss (nats)")
    figure.legend(loc="outside upper center", ncols=2)
    first = results.quantizations[0]
    caption = (
        f"What {first.meaning} quantization ({first.method}, {first.execution}) adds to the "
        f"masked loss of the full-pool models on {first.sequences:,} sequences; bars are 95 % "
        "intervals."
    )
    said = [f"{f.label} {f.attention} {f.increase:+.5f}" for f in results.quantizations]
    alt = f"Increase of the loss: {', '.join(said)}."
    return finish(figure, "quantization", OUTLIERS, "Quantization loss", caption, alt)


def _against_data(figure: Any, axes: Any, points: Sequence[tuple[Model, Interval]]) -> None:
    """Draw values with intervals over the number of sequences; equal numbers side by side."""
    groups: dict[int, list[tuple[Model, Interval]]] = {}
    for model, value in points:
        groups.setdefault(model.sequences, []).append((model, value))
    axes.set_xscale("log")
    for sequences, group in groups.items():
        for index, (model, value) in enumerate(group):
            x = sequences * 1.13 ** (index - (len(group) - 1) / 2)
            hue, marker = MODELS.get(model.name, ("slate", "o"))
            error = [[value.value - value.low], [value.high - value.value]]
            axes.errorbar([x], [value.value], yerr=error if value.high > value.low else None,
                          color=colour(hue), marker=marker, markersize=7, linestyle="none",
                          elinewidth=1.4, capsize=3, label=model.label)  # fmt: skip
    sizes = sorted(groups)
    axes.set_xlim(sizes[0] / 1.7, sizes[-1] * 1.7)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="training sequences (log)")
    figure.legend(loc="outside upper center", ncols=2, handlelength=1.2, columnspacing=1.2)


def _panels(results: Results) -> tuple[Any, list[Any]]:
    rows = (len(results.coresets) + 1) // 2
    figure, axes = canvas(rows, 2, height=0.7 + 1.25 * rows, sharex=True, sharey=True,
                          squeeze=False)  # fmt: skip
    panels = list(axes.flat)
    for spare in panels[len(results.coresets) :]:
        spare.set_visible(False)
    return figure, panels


def _smooth(losses: np.ndarray, span: int = 5) -> np.ndarray:
    """Mean of each value and the up to ``span - 1`` before it."""
    total = np.cumsum(np.insert(losses, 0, 0.0))
    first = np.maximum(np.arange(len(losses)) - span + 1, 0)
    last = np.arange(len(losses)) + 1
    means: np.ndarray = (total[last] - total[first]) / (last - first)
    return means


def _hue(name: str) -> str:
    return MODELS.get(name, ("slate", "o"))[0]

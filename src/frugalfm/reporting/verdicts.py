"""Sentences that follow from the numbers, by rules that could have said the opposite.

Accuracies of two models are compared on the same test sequences: only those count that exactly
one of the two gets right, so the difference's interval is narrower than two separate ones
(McNemar, Psychometrika 12, 1947, with the normal approximation of the interval). Where the 95 %
interval holds zero, the sentence says that nothing can be told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from frugalfm.reporting.records import Interval, Model, Outliers, Quantization, Results

__all__ = ["compare_probes", "cost_in_words", "format_increase", "judge"]

Z95 = 1.959963984540054


def judge(results: Results) -> list[tuple[str, str]]:
    """List the verdicts: pairs of a topic and one or two sentences."""
    verdicts = []
    random = results.model("random")
    strategies = [model for model in results.role("strategy") if model is not random]
    if random is not None and strategies:
        verdicts.append(("Probe", _on_probes(random, strategies)))
        verdicts.append(("Validation loss", _on_losses(random, strategies)))
    verdicts += [("Full pool", _on_full(results, random)), ("Untrained", _on_untrained(results))]
    if len(results.outliers) == 2:
        verdicts.append(("Outliers", _on_outliers(*results.outliers)))
    verdicts.append(("Quantization", _on_quantization(results.quantizations)))
    verdicts.append(("Limits", _on_steps(results)))
    return [(topic, sentence) for topic, sentence in verdicts if sentence]


def compare_probes(model: Model, other: Model) -> Interval:
    """Difference in test accuracy, `model` minus `other`, with its paired 95 % interval."""
    gain = model.probe.correct.astype(float) - other.probe.correct.astype(float)
    value = float(gain.mean())
    margin = Z95 * float(np.sqrt(np.mean((gain - value) ** 2) / len(gain)))
    return Interval(value, value - margin, value + margin)


def _on_steps(results: Results) -> str:
    steps = sorted({model.steps for model in results.models if model.role != "untrained"})
    if not steps:
        return ""
    if len(steps) > 1:
        return (
            f"The models took different numbers of optimizer steps ({steps[0]:,} to "
            f"{steps[-1]:,}), so their differences are not due to the data alone."
        )
    seeds = "one seed" if len(results.seeds) == 1 else f"{len(results.seeds)} seeds"
    return (
        f"All trained models took {steps[0]:,} optimizer steps, with {seeds}. Intervals are over "
        "test sequences; training again with another seed can move a result by more."
    )


def _on_probes(random: Model, strategies: Sequence[Model]) -> str:
    outcomes: dict[str, list[str]] = {}
    for model in strategies:
        found = compare_probes(model, random)
        word = _direction(found, "better than", "worse than", "not distinguishable from")
        outcomes.setdefault(word, []).append(f"{model.label} {_points(found)}")
    said = "; ".join(f"{word} random: {', '.join(group)}" for word, group in outcomes.items())
    return f"{_capital(said)} (points of accuracy, paired 95 % intervals)."


def _on_losses(random: Model, strategies: Sequence[Model]) -> str:
    known = [m for m in strategies if m.validation_loss is not None]
    if random.validation_loss is None or not known:
        return ""
    parts = []
    for word, sign in (("lower", -1), ("higher", 1), ("the same", 0)):
        group = [m for m in known if _sign(_at_3(m) - _at_3(random)) == sign]
        if group:
            parts.append(f"{word} with {_join([f'{m.label} ({_at_3(m):.3f})' for m in group])}")
    return (
        f"{_at_3(random):.3f} with random; {_join(parts)}. These differences come without an "
        "interval."
    )


def _on_untrained(results: Results) -> str:
    floor = next(iter(results.role("untrained")), None)
    if floor is None:
        return ""
    trained = [model for model in results.models if model.role != "untrained"]
    rest = [model.label for model in trained if compare_probes(model, floor).low <= 0]
    if not rest:
        return "Every trained model's probe beats the untrained model's."
    return f"The probe is not distinguishably better than the untrained model's for {_join(rest)}."


def _on_full(results: Results, random: Model | None) -> str:
    full = next(iter(results.role("full")), None)
    if full is None or random is None:
        return ""
    found = compare_probes(full, random)
    times = full.sequences / max(random.sequences, 1)
    digits = 0 if times >= 9.5 else 1
    gain = f"{times:.{digits}f} times the data against random: {_points(found)} points of accuracy"
    if found.low > 0:
        return f"{gain}, so there is a gain that a good choice of data could win back."
    return (
        f"{gain}. At this many steps more data brings no gain that can be told, so the probe "
        "says little about which strategy is best."
    )


def _on_outliers(softmax: Outliers, softmax1: Outliers) -> str:
    # Against the Gaussian value, because that is what outlier-free activations would have.
    before, after = (
        abs(found.avg_kurtosis - found.gaussian_kurtosis) for found in (softmax, softmax1)
    )
    if abs(after - before) <= 0.1 * before:
        word = f"{softmax1.attention} left the average kurtosis about as it was"
    else:
        changed = "lowered" if after < before else "raised"
        word = f"{softmax1.attention} {changed} the average kurtosis"
    return (
        f"{word}: {softmax.avg_kurtosis:.2f} to {softmax1.avg_kurtosis:.2f} (Gaussian "
        f"{softmax1.gaussian_kurtosis:.2f}); maximum inf-norm {softmax.max_inf_norm:.2f} to "
        f"{softmax1.max_inf_norm:.2f}. One training of each."
    )


def _on_quantization(found: Sequence[Quantization]) -> str:
    if not found:
        return ""
    schemes, differing, unknown = [], [], False
    for label in dict.fromkeys(q.label for q in found):
        group = [q for q in found if q.label == label]
        costs = _join([f"{format_increase(q)} ({q.attention})" for q in group])
        schemes.append(f"{label} {costs}")
        winner = _cheaper(*group) if len(group) == 2 else ""
        if winner:
            differing.append(f"{winner} loses less at {label}")
        unknown |= winner is None
    meaning = _join(list(dict.fromkeys(q.meaning for q in found)))
    sentence = f"Change of the masked loss, {meaning}: {'; '.join(schemes)}."
    if len({q.attention for q in found}) != 2:
        return sentence
    if unknown:
        return f"{sentence} Without standard errors the two attentions cannot be compared."
    if not differing:
        return f"{sentence} The two attentions are not distinguishable at any of these."
    return f"{sentence} {_capital(_join(differing))}."


def _cheaper(first: Quantization, second: Quantization) -> str | None:
    """Name the attention that loses less; empty if neither is told, None if none can be."""
    if first.standard_error is None or second.standard_error is None:
        return None
    margin = Z95 * math.hypot(first.standard_error, second.standard_error)
    difference = second.increase - first.increase
    if abs(difference) <= margin:
        return ""
    return (second if difference < 0 else first).attention


def cost_in_words(found: Quantization) -> str:
    """Say whether an increase is distinguishable from zero."""
    if found.standard_error is None:
        return "no standard error"
    if abs(found.increase) <= Z95 * found.standard_error:
        return "not distinguishable"
    return "worse" if found.increase > 0 else "better"


def format_increase(found: Quantization) -> str:
    """Format an increase with its standard error, such as ``+0.0032 ± 0.0005``."""
    digits = 4 if abs(found.increase) >= 0.001 else 5
    error = "" if found.standard_error is None else f" ± {found.standard_error:.{digits}f}"
    return f"{found.increase:+.{digits}f}{error}".replace("-", "−")


def _direction(found: Interval, above: str, below: str, neither: str) -> str:
    if found.low > 0:
        return above
    return below if found.high < 0 else neither


def _points(found: Interval) -> str:
    value, low, high = (100 * number for number in (found.value, found.low, found.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")


def _at_3(model: Model) -> float:
    """Round a validation loss as it is shown, so that sentence and table agree."""
    assert model.validation_loss is not None
    return round(model.validation_loss, 3)


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _join(words: Sequence[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]

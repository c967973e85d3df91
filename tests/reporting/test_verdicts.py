from dataclasses import replace

import numpy as np
import pytest

from frugalfm.reporting.verdicts import compare_probes, cost_in_words, format_increase, judge

N = 400


def with_correct(results, counts, overlap=True):
    """Give each named model's probe so many right answers of 400."""
    models = []
    for model in results.models:
        correct = np.zeros(N, dtype=bool)
        correct[: counts.get(model.name, counts["other"])] = True
        models.append(replace(model, probe=replace(model.probe, correct=correct)))
    return replace(results, models=tuple(models))


def change(results, name, **values):
    models = [replace(m, **values) if m.name == name else m for m in results.models]
    return replace(results, models=tuple(models))


def said(results, topic):
    return dict(judge(results)).get(topic, "")


def test_paired_interval_agrees_with_the_table_of_mcnemar(results):
    rng = np.random.default_rng(1)
    first, second = results.models[0], results.models[1]
    a, b = rng.random(900) < 0.4, rng.random(900) < 0.35
    found = compare_probes(
        replace(first, probe=replace(first.probe, correct=a)),
        replace(second, probe=replace(second.probe, correct=b)),
    )
    only_a, only_b = np.sum(a & ~b), np.sum(b & ~a)
    error = np.sqrt(only_a + only_b - (only_a - only_b) ** 2 / 900) / 900
    assert found.value == pytest.approx((only_a - only_b) / 900)
    assert found.high - found.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)


def test_probe_verdicts_follow_the_numbers(results):
    better = with_correct(results, {"random": 100, "coverage": 160, "other": 100})
    assert "Better than random: " not in said(results, "Probe")
    sentence = said(better, "Probe").lower()
    assert "better than random: cci (coverage) +15.0" in sentence
    assert "not distinguishable from random: top i +0.0" in sentence
    worse = said(with_correct(results, {"random": 160, "other": 100}), "Probe")
    assert worse.startswith("Worse than random: Top I −15.0")
    assert "etter than" not in worse


def test_bounds_follow_the_numbers(results):
    gain = with_correct(results, {"full-softmax": 300, "untrained": 50, "other": 200})
    assert "win back" in said(gain, "Full pool")
    assert said(gain, "Untrained").startswith("Every trained model's")
    none = with_correct(results, {"full-softmax": 200, "untrained": 200, "other": 200})
    assert "no gain" in said(none, "Full pool")
    assert "not distinguishably better" in said(none, "Untrained")
    assert "Top I by length" in said(none, "Untrained")


def test_validation_losses_are_sorted_into_lower_and_higher(results):
    # The stand-in: random 1.5, Top I 1.4, by length 1.3, CCI 1.2.
    assert "1.500 with random; lower with Top I (1.400), Top I by length (1.300) and CCI" in said(
        results, "Validation loss"
    )
    turned = change(results, "random", validation_loss=1.35)
    assert "higher with Top I (1.400)" in said(turned, "Validation loss")
    equal = change(results, "random", validation_loss=1.4004)
    assert "the same with Top I (1.400)" in said(equal, "Validation loss")


@pytest.mark.parametrize(
    ("kurtosis", "words"),
    [(3.0, "softmax1 lowered"), (9.0, "softmax1 raised"), (4.55, "about as it was")],
)
def test_outliers(results, kurtosis, words):
    first, second = results.outliers
    changed = replace(results, outliers=(first, replace(second, avg_kurtosis=kurtosis)))
    assert words in said(changed, "Outliers")


def test_quantization(results):
    assert "not distinguishable at any" in said(results, "Quantization")

    def with_change(**values):
        found = [
            replace(q, **values) if q.attention == "softmax1" and q.label == "W4A4" else q
            for q in results.quantizations
        ]
        return said(replace(results, quantizations=tuple(found)), "Quantization")

    assert with_change(increase=0.001).endswith("Softmax1 loses less at W4A4.")
    assert with_change(increase=0.1).endswith("Softmax loses less at W4A4.")
    assert "cannot be compared" in with_change(standard_error=None)


def test_increase_in_words(results):
    found = results.quantizations[0]
    for increase, words in ((0.0003, "worse"), (-0.0003, "better"), (1e-5, "not distinguishable")):
        assert cost_in_words(replace(found, increase=increase)) == words
    assert cost_in_words(replace(found, standard_error=None)) == "no standard error"
    assert format_increase(replace(found, increase=-0.0321)) == "−0.0321 ± 0.0001"


def test_unequal_steps_are_confessed(results):
    assert "All trained models took 100 optimizer steps, with one seed" in said(results, "Limits")
    assert "not due to the data alone" in said(change(results, "random", steps=50), "Limits")

"""Means, intervals, drops and their reduction, by hand."""

import json
import statistics

import numpy as np
import pytest

from frugalfm.suites.results import collect, estimate_mean
from frugalfm.suites.table import render_markdown, render_text
from frugalfm.tasks.intervals import Sample

T_95 = {1: 12.7062047, 2: 4.3026527}  # quantiles of Student's t, from a printed table


def rows_of(table):
    """From {(task, checkpoint, method): [MCC of each seed]}; intervals of ± 0.1."""
    return [
        {"task": task, "checkpoint": name, "method": method, "seed": 42 + i, "mcc": value,
         "mcc_low": value - 0.1, "mcc_high": value + 0.1, "seconds": 10.0 * (i + 1)}
        for (task, name, method), values in table.items() for i, value in enumerate(values)
    ]  # fmt: skip


def suite_of(tasks, methods, seeds, **others):
    fact = {"n": {"train": 9, "dev": 8, "test": 7},
            "repeats": {"duplicates_in_train": 3, "test_in_train": 2}}  # fmt: skip
    return {
        "tasks": dict.fromkeys(tasks, fact), "methods": methods, "seeds": seeds, "of": 28,
        "missing": ["tf/4"], "failed": {}, "limits": {}, "leaks": "report",
        "start": "probe", **others,
    }  # fmt: skip


def find(rows, **wanted):
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def sample_of(values, spread=0.0):
    """Values of seeds, and draws of each whose standard deviation is the spread."""
    return Sample(np.array(values), np.array(values)[:, None] + spread * np.array([[-1, 0, 1]]))


@pytest.mark.parametrize("values", [[0.5, 0.7], [0.1, 0.2, 0.6]])
def test_interval_over_seeds_alone(values):
    found = estimate_mean(Sample(np.array(values), np.empty((len(values), 0))))
    half = T_95[len(values) - 1] * statistics.stdev(values) / len(values) ** 0.5
    assert found["interval"] == "seeds"
    assert found["value"] == pytest.approx(statistics.mean(values))
    assert found["high"] - found["value"] == pytest.approx(half)
    assert found["value"] - found["low"] == pytest.approx(half)


@pytest.mark.parametrize(
    ("values", "spread", "half"),
    [
        # Variance 0.01 of the seeds' mean and 0.01 of the rows: 1 * (0.02 / 0.01)^2 = 4 degrees.
        ([0.5, 0.7], 0.1, 2.7764451 * 0.02**0.5),
        # No spread of the rows: Student's interval of two seeds.
        ([0.5, 0.7], 0.0, 12.7062047 * 0.1),
        # No spread of the seeds: the normal interval of the rows, not none at all.
        ([0.2, 0.2], 0.1, 1.9599640 * 0.1),
        # Variances 0.12 / 3 and 0.04 of three seeds: 2 * 2^2 = 8 degrees.
        ([0.2, 0.2, 0.8], 0.2, 2.3060041 * 0.08**0.5),
    ],
)
def test_interval_over_seeds_and_test_rows(values, spread, half):
    found = estimate_mean(sample_of(values, spread))
    assert found["interval"] == "seeds and test"
    assert found["value"] == pytest.approx(statistics.mean(values))
    assert found["high"] - found["value"] == pytest.approx(half)
    assert found["value"] - found["low"] == pytest.approx(half)


def test_a_single_seed_has_the_interval_of_its_test_rows():
    alone = estimate_mean(Sample(np.array([0.5]), np.empty((1, 0))))
    assert alone == {"value": 0.5, "low": None, "high": None, "interval": None}
    rows = rows_of({("tf/0", "a", "probe"): [0.2], ("tf/1", "a", "probe"): [0.4]})
    rows[0]["mcc_low"] = -0.3
    random = np.random.default_rng(0)
    # Of the mean of two independent tasks with standard errors 0.3 and 0.4.
    draws = {
        (task, "a", "probe", 42): random.normal(0.3, error, 200_000)
        for task, error in (("tf/0", 0.3), ("tf/1", 0.4))
    }
    suite = suite_of(["tf/0", "tf/1"], ["probe"], 3)
    found = collect(rows, suite=suite, checkpoints=["a"], draws=draws)
    score = find(found["scores"], task="tf/0")
    assert (score["low"], score["high"], score["interval"]) == (-0.3, pytest.approx(0.3), "test")
    (average,) = found["averages"]
    assert average["value"] == pytest.approx(0.3)
    assert average["interval"] == "test"
    assert average["high"] - 0.3 == pytest.approx(1.96 * 0.5 / 2, rel=0.01)
    assert found["drops"] == found["comparison"] == []


def test_drops_are_paired_by_test_rows():
    """What all models find hard is no spread of their difference."""
    table = {("tf/0", name, method): [value, value]
             for name, method, value in (("a", "full", 0.7), ("a", "lora", 0.6),
                                         ("b", "full", 0.7), ("b", "lora", 0.65))}  # fmt: skip
    common = np.random.default_rng(0).normal(0, 0.1, 1000)
    draws = {
        (*place, 42 + i): value + common for place, values in table.items()
        for i, value in enumerate(values)
    }  # fmt: skip
    suite = suite_of(["tf/0"], ["full", "lora"], 2)
    found = collect(rows_of(table), suite=suite, checkpoints=["a", "b"], draws=draws)
    drop = find(found["drops"], checkpoint="a", method="lora")
    assert drop["high"] - drop["low"] == pytest.approx(0, abs=1e-9)
    assert find(found["comparison"], method="lora")["certain"]
    score = find(found["scores"], checkpoint="a", method="lora")
    assert score["high"] - score["low"] == pytest.approx(2 * 1.96 * common.std(ddof=1), rel=0.01)
    # One run cannot tell whether a drop is one of its seed.
    one = {place: values[:1] for place, values in table.items()}
    suite = suite_of(["tf/0"], ["full", "lora"], 1)
    found = collect(rows_of(one), suite=suite, checkpoints=["a", "b"], draws=draws)
    assert find(found["drops"], checkpoint="a", method="lora")["interval"] == "test"
    assert not find(found["comparison"], method="lora")["certain"]


@pytest.fixture
def results():
    table = {
        ("tf/0", "DNABERT-2", "full"): [0.80, 0.90],
        ("tf/0", "DNABERT-2", "lora"): [0.60, 0.80],
        ("tf/0", "DNABERT-2", "qlora"): [0.50, 0.50],
        ("tf/1", "DNABERT-2", "full"): [0.60, 0.70],
        ("tf/1", "DNABERT-2", "lora"): [0.50, 0.50],
        ("tf/1", "DNABERT-2", "qlora"): [0.40, 0.60],
        ("tf/0", "germ", "full"): [0.82, 0.82],
        ("tf/0", "germ", "lora"): [0.72, 0.82],
        ("tf/0", "germ", "qlora"): [0.62, 0.62],
        ("tf/1", "germ", "full"): [0.60, 0.60],
        ("tf/1", "germ", "lora"): [0.60, 0.60],
        ("tf/1", "germ", "qlora"): [0.50, 0.60],
        # A task that is not whole has no part in averages.
        ("tf/2", "DNABERT-2", "full"): [0.1, 0.1],
        ("tf/2", "germ", "full"): [0.9],
    }
    suite = suite_of(["tf/0", "tf/1", "tf/2"], ["full", "lora", "qlora"], 2)
    return collect(rows_of(table), suite=suite, checkpoints=["DNABERT-2", "germ"])


def test_averages_are_of_the_tasks_that_every_column_has(results):
    assert results["common"] == ["tf/0", "tf/1"]
    full = find(results["averages"], checkpoint="DNABERT-2", method="full")
    assert full["value"] == pytest.approx(0.75)
    half = T_95[1] * statistics.stdev([0.70, 0.80]) / 2**0.5
    assert full["high"] - full["value"] == pytest.approx(half)
    assert full["median_seconds"] == 15
    assert find(results["scores"], task="tf/2", checkpoint="germ")["n"] == 1


def test_drops_and_their_reduction(results):
    drop = {row["method"]: row for row in results["drops"] if row["checkpoint"] == "DNABERT-2"}
    # Seeds: lora (.2 + .1)/2 and (.1 + .2)/2; qlora (.3 + .2)/2 and (.4 + .1)/2.
    assert drop["lora"]["value"] == pytest.approx(0.15)
    assert drop["lora"]["high"] - drop["lora"]["low"] == pytest.approx(0)
    assert drop["qlora"]["value"] == pytest.approx(0.25)
    assert drop["all"]["value"] == pytest.approx(0.20)
    germ = {row["method"]: row for row in results["drops"] if row["checkpoint"] == "germ"}
    # Seeds: lora .1/2 and 0; qlora .3/2 and .2/2.
    assert germ["lora"]["value"] == pytest.approx(0.025)
    assert germ["all"]["value"] == pytest.approx(0.075)
    share = {row["method"]: row for row in results["comparison"]}
    assert share["lora"]["reduction"] == pytest.approx(1 - 0.025 / 0.15)
    assert share["all"]["reduction"] == pytest.approx(1 - 0.075 / 0.20)
    assert share["all"]["certain"]
    assert share["all"]["published"] == 0.3798
    assert share["lora"]["published"] is None
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize(
    ("reference", "reduction", "certain"),
    [([0.5, 0.5], None, False), ([0.6, 0.6], None, False), ([0.1, 0.48], 0.9523809, False)],
)
def test_no_reduction_of_what_is_not_there(reference, reduction, certain):
    table = {
        ("tf/0", "a", "full"): [0.5, 0.5], ("tf/0", "a", "lora"): reference,
        ("tf/0", "b", "full"): [0.5, 0.5], ("tf/0", "b", "lora"): [0.49, 0.49],
    }  # fmt: skip
    suite = suite_of(["tf/0"], ["full", "lora"], 2)
    found = collect(rows_of(table), suite=suite, checkpoints=["a", "b"])
    share = find(found["comparison"], method="all")
    assert share["reduction"] == (None if reduction is None else pytest.approx(reduction))
    assert share["certain"] is certain
    assert share["published"] is None
    said = "undefined" if reduction is None else "+95.2 % (the reference's own drop cannot be told"
    assert said in render_markdown(found)
    assert "none published" in render_markdown(found)


def test_nothing_whole_is_no_average():
    suite = suite_of(["tf/0"], ["full", "lora"], 1, failed={"tf/0, a, lora": "no"})
    found = collect(rows_of({("tf/0", "a", "full"): [0.5]}), suite=suite, checkpoints=["a"])
    assert found["common"] == found["averages"] == found["drops"] == found["comparison"] == []
    assert "Failed: tf/0, a, lora" in render_text(found)
    assert "average of 0" in render_markdown(found)
    none = collect([], suite=suite, checkpoints=["a"])
    assert none["scores"] == []
    render_text(none)


def test_what_the_tables_say(results):
    text, page = render_text(results), render_markdown(results)
    assert max(map(len, text.splitlines())) <= 100
    assert "| tf/0 | 9 / 8 / 7 | 3 | 2 | 0.850 [0.215, 1.485] |" in page
    assert "0.850 ±0.635" in text
    for said in (" ".join(text.split()), " ".join(page.split())):
        assert "reduction of the mean drop from full tuning: +62.5 %; published: +37.98 %." in said
        assert "Test rows that are also in train: 6, counted, and left in." in said
        assert "3 of 28 tasks; missing: tf/4." in said
        assert "LIMITED" not in said
    assert "| germ | mean | 0.075 [" in page
    assert "| +62.5 % | +37.98 % |" in page
    limited = {**results, "limits": {"max_train": 2000, "max_steps": 20}}
    assert "LIMITED to 2,000 training rows and 20 optimizer steps a task" in render_text(limited)

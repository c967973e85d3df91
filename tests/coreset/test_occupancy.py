"""The report: every count against numpy."""

import numpy as np
import pytest

from frugalfm.coreset import Choice, write_selection
from frugalfm.coreset.report import as_text
from frugalfm.coreset.tally import Tally

STRATEGIES = ("random", "top-influence", "top-influence-by-length", "coverage", "middle-loss")


@pytest.fixture
def report_of(write_scores, tmp_path):
    def make(scores, strategy, budget, lengths=None, drop=0.1, losses=None):
        files = write_scores(scores, lengths, losses=losses)
        choice = Choice(strategy, budget, drop_hardest=drop)
        return write_selection(files, tmp_path / "selection.parquet", choice)

    return make


def test_report_counts_everything(report_of):
    rng = np.random.default_rng(1)
    scores, lengths = rng.normal(size=1000), rng.integers(1, 100, 1000)
    for strategy in STRATEGIES:
        report = report_of(scores, strategy, 100, lengths)
        assert sum(s["chosen"] for s in report["strata"]) == 100
        dropped = 100 if strategy == "coverage" else 0
        assert report["dropped"] == dropped
        assert sum(s["population"] for s in report["strata"]) == 1000 - dropped
        assert all(s["chosen"] <= s["population"] for s in report["strata"])
        assert sum(report["score_deciles"]) == 100
        assert report["pool"]["mean_loss"] == pytest.approx(1.5, abs=1e-5)
        assert report["pool"]["loss_quantiles"]["25%"] == pytest.approx(1.25, rel=0.01)
        assert report["pool"]["length_quantiles"]["50%"] == np.quantile(
            lengths, 0.5, method="inverted_cdf"
        )
        for histogram in (*report["histograms"].values(), report["length_bins"]):
            assert sum(histogram["pool"]) == 1000
            assert sum(histogram["chosen"]) == 100
            assert len(histogram["edges"]) == len(histogram["pool"]) + 1 <= 61
        assert len(as_text(report).splitlines()) <= 15


def test_histograms_are_exact(report_of):
    scores = np.random.default_rng(1).lognormal(0, 1, 5000).astype(np.float32)
    found = report_of(scores, "top-influence", 500)["histograms"]["influence"]
    edges = np.array(found["edges"])
    assert np.allclose(np.diff(np.log(edges)), np.diff(np.log(edges)).mean(), atol=0.02)
    inside = np.searchsorted(edges, scores.astype(float), side="right") - 1
    assert np.abs(np.bincount(inside, minlength=len(edges))[:-1] - found["pool"]).max() <= 1
    assert sum(found["chosen"][-10:]) == sum(found["pool"][-10:])


def test_deciles_of_top_influence_and_of_few_scores(report_of):
    assert report_of(np.arange(100), "top-influence", 15)["score_deciles"] == [0] * 8 + [5, 10]
    assert sum(report_of([3, 1, 2], "random", 2)["score_deciles"]) == 2
    assert report_of(np.ones(30), "random", 20)["score_deciles"] == [20] + [0] * 9


def test_collapsed_strata_are_reported(report_of):
    scores = np.random.default_rng(0).lognormal(0, 2, 2000)
    report = report_of(scores, "coverage", 100, drop=0)
    assert report["filled"] == sum(s["population"] > 0 for s in report["strata"])
    assert report["filled"] < 25
    assert f"warning: only {report['filled']} of 50 strata filled" in as_text(report)
    assert "coverage-log" in as_text(report)
    even = report_of(np.arange(2000), "coverage", 100)
    assert even["filled"] == 50
    assert "filled" not in as_text(even)


def test_losses_that_are_not_finite_and_very_long_sequences(report_of):
    lengths = [30, 70_000, 10_000_000, 70_000]
    report = report_of([1, 2, 3, 4], "random", 2, lengths, losses=[1, np.nan, 2, 3])
    assert report["pool"]["mean_loss"] is report["pool"]["loss_quantiles"] is None
    assert "not finite" in as_text(report)
    lengths = report["pool"]["length_quantiles"]
    assert (lengths["50%"], lengths["100%"]) == (70_000, 10_000_000)
    assert sum(report["length_bins"]["pool"]) == 4


def test_tallies_of_parts_add_up():
    rng = np.random.default_rng(0)
    columns = {
        "length": rng.integers(1, 90_000, 500).astype(np.int32),
        "loss": rng.random(500).astype(np.float32),
        "source": rng.integers(0, 3, 500),
    }
    whole, merged = Tally(3), Tally(3)
    whole.add(columns)
    for part in np.array_split(np.arange(500), 7):
        tally = Tally(3)
        tally.add({name: values[part] for name, values in columns.items()})
        merged.merge(tally)
    assert merged.composition() == whole.composition()
    assert merged.lengths() == whole.lengths()
    assert merged.sources.tolist() == np.bincount(columns["source"]).tolist()

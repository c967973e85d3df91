"""The outlier benchmark runs end to end, continues, and judges by the numbers."""

import json
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmarks.common import UNFINISHED, summarise
from benchmarks.outliers import page
from benchmarks.outliers.__main__ import main
from benchmarks.outliers.recipe import Recipe
from benchmarks.outliers.results import collect
from scipy import stats
from tiny_course import COURSE, check_arms, write_inputs

from benchmarks import common_arms
from frugalfm.errors import InputError

RECIPES = sorted((Path(__file__).parents[2] / "recipes/outliers").glob("*.toml"))
TINY = f"""{COURSE}
[measure]
bits = [8]
sequences = 10
[[arm]]
name = "vanilla"
[[arm]]
name = "Muon"
against = "vanilla"
optimizer = "muon"
[[arm]]
name = "GERM-T"
against = "vanilla"
converts = "vanilla"
attention = "softmax1"
"""


@pytest.fixture
def setting(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def call(setting, *more):
    words = [setting / "tiny.toml", "--data", setting / "pool.fasta", "--tokenizer"]
    words += [setting / "dnabert2_tokenizer", "--out", setting / "run", "--device", "cpu", *more]
    return main([str(word) for word in words])


def test_end_to_end_and_continued(setting, monkeypatch, capsys):
    pretrain = common_arms.frugalfm.pretrain
    calls = []

    def stop(*args, **options):
        calls.append(options["out"].name)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGALRM)
        return pretrain(*args, **options)

    monkeypatch.setattr(common_arms.frugalfm, "pretrain", stop, raising=False)
    assert call(setting, "--stop-after-minutes", "10") == UNFINISHED
    assert calls == ["vanilla-0", "muon-0"]
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    monkeypatch.setattr(common_arms.frugalfm, "pretrain", pretrain, raising=False)
    assert call(setting) == 0
    first = capsys.readouterr().out
    assert "GERM-T against vanilla: " in first
    content = json.loads((setting / "run/results.json").read_text())
    assert [arm["name"] for arm in content["arms"]] == ["vanilla", "Muon", "GERM-T"]
    assert pq.read_table(setting / "run/results.parquet").num_rows == 6
    losses = [row["loss"] for row in content["rows"] if row["arm"] == "Muon"]
    assert content["arms"][1]["values"]["loss"]["mean"] == pytest.approx(np.mean(losses))
    germ = next(row for row in content["rows"] if row["arm"] == "GERM-T")
    vanilla = next(row for row in content["rows"] if row["arm"] == "vanilla")
    assert germ["start_loss"] == pytest.approx(vanilla["loss"], abs=1e-4)
    assert call(setting) == 0  # Nothing is done twice.
    assert "already pretrained" in capsys.readouterr().out

    results = setting / "run/results.json"
    assert page.main([str(setting / "docs"), f"tiny={results}"]) == 0
    text = (setting / "docs/outliers.md").read_text()
    assert "## tiny" in text
    assert "outliers-tiny.png" in text
    assert (setting / "docs/outliers-tiny.png").stat().st_size > 1000


def make_rows(arm, losses, kurtosis, norms):
    return [
        {
            "arm": arm, "seed": seed, "loss": loss, "seconds": 1.0, "parameters": 1, "null": None,
            "start_loss": None, "before_loss": None, "avg_kurtosis": 3.0 + excess,
            "avg_kurtosis_gaussian": 3.0, "avg_kurtosis_excess": excess,
            "max_inf_norm": 3.4 + norm, "max_inf_norm_excess": norm,
            "max_inf_norm_layer_norm": 3.4 + norm, "max_inf_norm_layer_norm_excess": norm,
            "max_abs": 9.0, "increase": {"W4A4 fine": 0.1 * excess},
        }
        for seed, (loss, excess, norm) in enumerate(zip(losses, kurtosis, norms, strict=True))
    ]  # fmt: skip


def judge(setting, losses, kurtosis, norms, control=(1.0, 1.02), loud=(2.0, 2.04)):
    recipe = Recipe.load(setting / "tiny.toml")
    rows = make_rows("vanilla", [5.0, 5.2], control, loud)
    for name in ("Muon", "GERM-T"):
        rows += make_rows(name, losses, kurtosis, norms)
    return collect(recipe, rows)["arms"][1]


def test_verdicts_follow_the_numbers(setting):
    quiet, low = [0.05, 0.051], [0.2, 0.204]
    found = judge(setting, [4.9, 5.2], quiet, low)
    assert found["verdict"]["reached"] is True
    assert "down by 95%" in found["verdict"]["words"]
    assert "down by 90%" in found["verdict"]["words"]
    assert found["change"]["kurtosis"]["gone"]["mean"] == pytest.approx(0.95)
    assert found["change"]["loss"]["mean"] == pytest.approx(-0.05)
    # One of the three at a time.
    assert judge(setting, [5.02, 5.19], quiet, low)["verdict"]["reached"] is True
    assert judge(setting, [5.1, 5.3], quiet, low)["verdict"]["reached"] is False
    assert judge(setting, [4.9, 5.2], [0.1, 0.102], low)["verdict"]["reached"] is False
    assert judge(setting, [4.9, 5.2], quiet, [1.0, 1.0])["verdict"]["reached"] is False
    worse = judge(setting, [4.9, 5.2], [2.0, 2.04], [2.0, 4.0])["verdict"]
    assert "up by 100%" in worse["words"]
    below = judge(setting, [4.9, 5.2], [-0.2, -0.19], low)["verdict"]
    assert "down to below Gaussian" in below["words"]
    assert below["reached"] is True


def test_a_share_that_may_be_no_change_is_no_finding(setting):
    found = judge(setting, [4.9, 5.2], [0.0, 0.1], [0.2, 0.4], control=(0.1, 3.0))
    gone = found["change"]["kurtosis"]["gone"]
    differences = np.array([0.1, 2.9]) / 1.55
    low, high = stats.t.interval(0.95, 1, differences.mean(), stats.sem(differences))
    assert [gone[key] for key in ("mean", "low", "high")] == pytest.approx([1.5 / 1.55, low, high])
    assert found["verdict"]["reached"] is False
    assert "not told from no change" in found["verdict"]["words"]


def test_what_the_control_lacks_cannot_be_removed(setting):
    quiet, low = [0.05, 0.051], [0.2, 0.204]
    for lacking in ({"control": (-0.2, 0.1)}, {"loud": (-0.2, 0.01)}):
        found = judge(setting, [4.9, 5.2], quiet, low, **lacking)["verdict"]
        assert found["reached"] is None
        assert "nothing to remove" in found["words"]
        assert found["words"].endswith("goal not testable.")
    # What can be told to fail fails nevertheless.
    failed = judge(setting, [4.9, 5.2], [0.9, 0.9], low, loud=(-0.2, 0.01))
    assert failed["verdict"]["reached"] is False


def test_interval_is_students():
    values = np.random.default_rng(1).normal(2, 0.3, 4)
    found = summarise(list(values))
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert summarise([2.0]) == {"mean": 2.0, "low": None, "high": None}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_sound(path):
    """Arms that are compared differ in what they are named for, and take as many steps."""
    recipe = Recipe.load(path)
    known = check_arms(recipe)
    assert len(recipe.seeds) >= 3
    for arm in recipe.arms:
        if arm.against is not None:
            control = known[arm.against]
            assert arm.converts == control.converts
            assert (arm.attention, arm.optimizer, arm.change) != (
                control.attention,
                control.optimizer,
                control.change,
            )
            assert "steps" not in arm.change


def test_bad_recipes_are_refused(tmp_path):
    path = tmp_path / "x.toml"
    for change, words in (
        (("softmax1", "sparsemax"), "unknown attention"),
        (('against = "vanilla"', 'against = "GERM-T"'), "needs 'GERM-T' before it"),
        (('name = "Muon"', 'name = "vanilla"'), "two arms"),
        (("seeds = [0, 1]", "seeds = []"), "no seeds"),
        (('title = "tiny"', ""), "no recipe"),
        (("[pool]", "[pol]"), "no recipe"),
    ):
        path.write_text(TINY.replace(*change))
        with pytest.raises(InputError, match=words):
            Recipe.load(path)
    path.write_text(TINY)
    assert Recipe.load(path, ["train.steps=7", "seeds=[3]"]).train["steps"] == 7


def test_a_pool_that_is_too_small_is_refused(setting, capsys):
    assert call(setting, "--set", "pool.sequences=1000") == 2
    assert "holds 50 sequences, the recipe wants 1012" in capsys.readouterr().err

"""The quantization benchmark runs end to end, continues cell by cell, and judges by the numbers."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmarks.common import UNFINISHED, OutOfTime, compare_ratio, exclusively
from benchmarks.quantization import page, running
from benchmarks.quantization.__main__ import main
from benchmarks.quantization.recipe import MASKED, Recipe
from benchmarks.quantization.results import collect
from scipy import optimize, stats
from tiny_course import COURSE, check_arms, draw, write_inputs

from frugalfm.errors import InputError

RECIPES = sorted((Path(__file__).parents[2] / "recipes/quantization").glob("*.toml"))
TINY = f"""
models = ["vanilla", "GERM-T"]
tasks = ["tf/0"]
schemes = ["W8A8", "W4A4"]
headline = ["W4A4"]{COURSE}
[tune]
method = "full"
max_train = 40
max_steps = 2
[quantize]
calibration_batches = 2
limit = 6
batch_tokens = 256
[[arm]]
name = "pretrained"
[[arm]]
name = "vanilla"
converts = "pretrained"
[[arm]]
name = "GERM-T"
converts = "pretrained"
attention = "softmax1"
[[method]]
name = "min-max"
method = "minmax"
published = true
[[method]]
name = "OmniQuant"
method = "omniquant"
options = {{ epochs = 1 }}
published = true
schemes = ["W4A4"]
"""


@pytest.fixture
def setting(tmp_path):
    data = tmp_path / "data"
    (data / "GUE/tf/0").mkdir(parents=True)
    write_inputs(data)
    for split, count in (("train", 60), ("dev", 20), ("test", 20)):
        lines = (f"{text},{i % 2}\n" for i, text in enumerate(draw(count, 50)))
        (data / f"GUE/tf/0/{split}.csv").write_text("sequence,label\n" + "".join(lines))
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


def call(setting, *more):
    words = [setting / "tiny.toml", "--data", setting / "data", "--out", setting / "run"]
    return main([str(word) for word in (*words, "--device", "cpu", *more)])


def test_end_to_end_and_continued(setting, monkeypatch, capsys):
    quantize, calls, broken = running._Case.quantize, [], []

    def stop(self, plan):
        calls.append(plan.method)
        if len(calls) == 3 and not broken:
            broken.append(True)
            raise OutOfTime
        return quantize(self, plan)

    monkeypatch.setattr(running._Case, "quantize", stop)
    assert call(setting, "--set", "seeds=[0]", "--stop-after-minutes", "10") == UNFINISHED
    assert call(setting, "--set", "seeds=[0]") == 0
    rows = 3 * 2 * 2  # methods and schemes, models, the task and the masked loss
    assert len(calls) == rows + 1  # The one that was broken off is done again, no other.
    assert call(setting) == 0
    assert len(calls) == 2 * rows + 1
    printed = capsys.readouterr().out
    assert "average drop of MCC" in printed

    content = json.loads((setting / "run/results.json").read_text())
    assert pq.read_table(setting / "run/results.parquet").num_rows == 2 * rows
    for model in content["models"]:
        values = {
            (row["seed"], row["task"]): row["value"]
            for row in content["rows"]
            if row["model"] == model
        }
        assert len(values) == 4
        plain = next(found for found in content["plain"] if found["model"] == model)
        scores = [values[seed, "tf/0"] for seed in (0, 1)]
        assert plain["mcc"]["mean"] == pytest.approx(np.mean(scores))
        manifest = json.loads((setting / f"run/{model.lower()}-0/manifest.json").read_text())
        assert manifest["summary"]["steps"] == 2
    lines = (setting / "run/tasks/tf/0/train.csv").read_text().splitlines()
    original = (setting / "data/GUE/tf/0/train.csv").read_text().splitlines()
    assert len(lines) == 41
    assert set(lines) <= set(original)

    calls.clear()
    assert call(setting, "--set", "quantize.limit=5", "--set", "seeds=[0]") == 0
    assert len(calls) == rows  # Other settings, other cells.
    assert page.main([str(setting / "docs"), f"tiny={setting / 'run'}"]) == 0
    text = (setting / "docs/quantization.md").read_text()
    assert "## tiny" in text
    assert "64.34%" in text
    assert (setting / "docs/quantization-tiny.png").stat().st_size > 1000
    assert (setting / "docs/quantization-tiny.parquet").is_file()


def make_rows(recipe, drops, increases):
    """Cells with given drops and increases: by model one of each seed."""
    rows = []
    for seed in recipe.seeds:
        for model in recipe.models:
            for task in (MASKED, *recipe.tasks):
                for method, scheme in recipe.rows:
                    value = 5.0 if task == MASKED else 0.6
                    change = increases[model][seed] if task == MASKED else -drops[model][seed]
                    more = {"parameters": 1} if task == MASKED else {}
                    rows.append(
                        {"seed": seed, "model": model, "task": task, "method": method.name,
                         "scheme": scheme, "value": value, "quantized": value + change,
                         "seconds": 1.0, **more}
                    )  # fmt: skip
    return rows


def judge(setting, ours, theirs, seeds=4):
    recipe = Recipe.load(setting / "tiny.toml", [f"seeds={list(range(seeds))}"])
    values = {"vanilla": theirs, "GERM-T": ours}
    return collect(recipe, make_rows(recipe, values, values))


def test_verdicts_follow_the_numbers(setting):
    theirs = [0.10, 0.11, 0.09, 0.10]
    content = judge(setting, [0.04, 0.045, 0.035, 0.04], theirs)
    found = content["overall"][1]
    assert found["drop"]["mean"] == pytest.approx(0.04)
    assert found["spared"]["drop"]["mean"] == pytest.approx(0.6)
    assert found["spared"]["drop"]["distinct"] is True
    assert found["spared"]["drop"]["low"] < 0.6 < found["spared"]["drop"]["high"]
    assert "0.0400 (GERM-T) against 0.1000 (vanilla): 60% less" in found["verdict"]
    assert "the published 64.34%, in our reading, lies above that interval" in found["verdict"]
    assert "60%" in page.render_spared(content, "drop")

    worse = judge(setting, [0.15, 0.16, 0.14, 0.15], theirs)["overall"][1]
    assert "50% more" in worse["verdict"]
    nothing = judge(setting, theirs, [0.01, -0.02, 0.02, 0.01])
    assert "cannot be told from 0" in nothing["overall"][1]["verdict"]
    assert nothing["spared"][0]["drop"]["distinct"] is False
    assert "n.d." in page.render_spared(nothing, "drop")
    gain = judge(setting, theirs, [-0.1, -0.11, -0.09, -0.1])["overall"][1]
    assert "cannot be told from 0" in gain["verdict"]
    assert gain["spared"]["drop"]["mean"] is None
    alone = judge(setting, [0.04], [0.1], seeds=1)["overall"][1]
    assert "one seed, no interval" in alone["verdict"]
    assert alone["spared"]["drop"]["low"] is None


def test_ratio_interval_is_fiellers():
    """Its ends are the ratios r at which the mean of y - r x has p = 0.05."""
    random = np.random.default_rng(3)
    x = random.normal(1.0, 0.2, 6)
    y = 0.5 * x + random.normal(0, 0.1, 6)
    found = compare_ratio(list(y), list(x))

    def gap(ratio):
        return stats.ttest_1samp(y - ratio * x, 0).pvalue - 0.05

    middle = found["mean"]
    assert middle == pytest.approx(y.mean() / x.mean())
    assert found["low"] == pytest.approx(optimize.brentq(gap, middle - 3, middle), rel=1e-6)
    assert found["high"] == pytest.approx(optimize.brentq(gap, middle, middle + 3), rel=1e-6)
    unclear = compare_ratio([1.0, 2.0, 1.5], [-0.5, 1.0, 0.4])
    assert unclear["low"] is None
    assert unclear["mean"] is not None
    assert compare_ratio([1.0, 2.0], [-1.0, -2.0]) == {"mean": None, "low": None, "high": None}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_sound(path):
    """Measured models have had as many steps, and every cell's plan can be made."""
    recipe = Recipe.load(path)
    known = check_arms(recipe)
    for name in recipe.models:
        arm = known[name]
        assert arm.converts is not None
        assert known[arm.converts].converts is None
        assert "steps" not in arm.change
        assert "steps" not in known[arm.converts].change
    assert {"minmax", "smoothquant", "outlier-suppression", "omniquant"} <= {
        method.method for method in recipe.methods if method.published
    }
    assert {"W8A8", "W6A6", "W4A8", "W4A4"} <= set(recipe.schemes)
    for method in recipe.methods:
        if method.published:
            assert set(recipe.headline) <= set(method.schemes or recipe.schemes)


def test_bad_recipes_are_refused(tmp_path):
    path = tmp_path / "x.toml"
    for change, words in (
        (('models = ["vanilla"', 'models = ["germ"'), "no arm 'germ'"),
        (('headline = ["W4A4"]', 'headline = ["W2A2"]'), "W2A2 is not among"),
        (('"W8A8", "W4A4"', '"W8A8", "4 bits"'), "no scheme"),
        (('method = "omniquant"', 'method = "best"'), "not known"),
        (("epochs = 1", "epoch = 1"), "does nothing with"),
        (('name = "OmniQuant"', 'name = "min-max"'), "one name"),
        (("[tune]", "[tuna]"), "no recipe"),
    ):
        path.write_text(TINY.replace(*change))
        with pytest.raises(InputError, match=words):
            Recipe.load(path)


def test_missing_data_is_named(setting, capsys):
    (setting / "data/GUE/tf/0/dev.csv").unlink()
    assert call(setting) == 2
    assert "dev.csv: no such file" in capsys.readouterr().err
    (setting / "data/pool.fasta").unlink()
    assert call(setting) == 2
    assert "holds no pool.fasta" in capsys.readouterr().err


def test_a_folder_is_prepared_by_one_process_at_a_time(tmp_path):
    import fcntl

    with (
        exclusively(tmp_path / "out"),
        (tmp_path / "out/.lock").open("w") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with exclusively(tmp_path / "out"):
        pass

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmarks.common import UNFINISHED
from benchmarks.pruning import page
from benchmarks.pruning.__main__ import main
from benchmarks.pruning.intervals import Sample, adjust_holm, bootstrap, compare, summarise
from benchmarks.pruning.local import draw_pool
from benchmarks.pruning.recipe import load_recipe
from benchmarks.pruning.results import judge
from benchmarks.pruning.running import run_steps
from benchmarks.pruning.steps import Step
from scipy import stats
from sklearn import metrics

from frugalfm.errors import InputError

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes/pruning").glob("*.toml"))


@pytest.fixture
def random_values() -> np.random.Generator:
    return np.random.default_rng(5)


def no_spread(values: np.ndarray) -> Sample:
    return Sample(values, np.repeat(values[:, None], 10, axis=1))


def test_without_spread_of_the_test_set_it_is_students_interval(random_values):
    values = random_values.normal(0.7, 0.02, 5)
    found = summarise(no_spread(values))
    low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-6)


def test_differences_are_a_paired_test(random_values):
    a, b = random_values.normal(0.7, 0.02, (2, 4))
    found = compare(no_spread(a), no_spread(b))
    expected = stats.ttest_rel(a, b)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6)
    ends = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-9)


def test_without_spread_of_the_seeds_it_is_the_normal_interval(random_values):
    drawn = random_values.normal(0.5, 0.1, 20_000)
    found = summarise(Sample(np.full(3, 0.5), np.repeat(drawn[None], 3, axis=0)))
    assert (found.low, found.high) == pytest.approx(
        stats.norm.interval(0.95, 0.5, drawn.std(ddof=1))
    )


def test_both_sources_add_and_freedom_lies_between(random_values):
    values = random_values.normal(0.5, 0.05, 3)
    drawn = values[:, None] + random_values.normal(0, 0.05, 4000)
    found = summarise(Sample(values, drawn))
    assert found.se_seeds == pytest.approx(stats.sem(values))
    error = np.hypot(found.se_seeds, found.se_test)
    half = (found.high - found.low) / 2
    assert stats.norm.ppf(0.975) * error < half < stats.t.ppf(0.975, 2) * error


def test_one_seed_and_no_spread_are_no_certainty():
    assert np.isnan(summarise(no_spread(np.zeros(3))).p)
    found = compare(no_spread(np.ones(3)), no_spread(np.ones(3)))
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert summarise(no_spread(np.array([0.3]))).se_seeds == 0


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_bootstrap_of_classes_agrees_with_sklearn_on_drawn_sequences(metric, random_values):
    lengths = random_values.integers(1, 6, 30)
    true = [random_values.integers(0, 4, n) for n in lengths]
    models = [[random_values.integers(0, 4, n) for n in lengths] for _ in range(2)]
    found = bootstrap("classes", metric, true, models, resamples=5, seed=3)
    again = np.random.default_rng(3)
    for resample in range(-1, 5):
        rows = np.arange(30) if resample < 0 else again.integers(30, size=30)
        for model, sample in zip(models, found, strict=True):
            y, x = (np.concatenate([part[row] for row in rows]) for part in (true, model))
            value = sample.values[0] if resample < 0 else sample.drawn[0, resample]
            oracle = metrics.accuracy_score(y, x)
            if metric == "macro_f1":
                oracle = metrics.f1_score(y, x, average="macro", zero_division=0)
            assert value == pytest.approx(oracle, rel=1e-9)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_sequence_without_any_known_residue_counts_for_nothing(metric, random_values):
    true = [random_values.integers(0, 3, n) for n in (4, 0, 5)]
    model = [random_values.integers(0, 3, n) for n in (4, 0, 5)]
    (found,) = bootstrap("classes", metric, true, [model], resamples=20, seed=3)
    (without,) = bootstrap("classes", metric, true[::2], [model[::2]], resamples=1, seed=3)
    assert found.values[0] == without.values[0]


def test_bootstrap_of_numbers_agrees_with_scipy_on_drawn_sequences(random_values):
    true = random_values.integers(0, 20, 40).astype(float)
    model = true + random_values.normal(0, 5, 40)
    (found,) = bootstrap("numbers", "spearman", true, [model], resamples=4, seed=1)
    again = np.random.default_rng(1)
    assert found.values[0] == pytest.approx(stats.spearmanr(true, model)[0])
    for value in found.drawn[0]:
        rows = again.integers(40, size=40)
        assert value == pytest.approx(stats.spearmanr(true[rows], model[rows])[0])


def test_bootstrap_of_means_leaves_out_what_is_undefined(random_values):
    values = random_values.normal(size=30)
    values[3] = np.nan
    (found,) = bootstrap("means", "top_L", values, [values], resamples=3, seed=2)
    again = np.random.default_rng(2)
    assert found.values[0] == pytest.approx(np.nanmean(values))
    for value in found.drawn[0]:
        assert value == pytest.approx(np.nanmean(values[again.integers(30, size=30)]))


def test_holm_by_hand():
    """Holm 1979: the smallest of m times m, the next times m - 1, never below one before."""
    assert adjust_holm([0.01, None, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 1, 0.09, 0.09, 0.5])
    assert adjust_holm([0.6, 0.7]) == [1.0, 1.0]
    assert adjust_holm([]) == []


def test_pairs_are_drawn_by_their_sequences(random_values):
    members = random_values.integers(0, 8, (40, 2))
    true = [random_values.integers(0, 2, 1) for _ in members]
    model = [random_values.integers(0, 2, 1) for _ in members]
    (found,) = bootstrap("classes", "accuracy", true, [model], members, resamples=3, seed=4)
    again = np.random.default_rng(4)
    for value in found.drawn[0]:
        drawn = again.integers(8, size=8).tolist()
        weights = [
            drawn.count(a) if a == b else drawn.count(a) * drawn.count(b)
            for a, b in members.tolist()
        ]
        right = np.concatenate(true) == np.concatenate(model)
        assert value == pytest.approx(np.average(right, weights=weights))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_can_reach_the_goal(path):
    try:
        recipe = load_recipe(path)
    except InputError as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        raise
    assert len(recipe.seeds) >= 3
    assert {arm.strategy for arm in recipe.arms} >= {"untrained", "full", "random"}
    assert recipe.options("pretrain")["steps"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("pretrain.rate = 3", "rate"),
        ("arms.random.budgt = '1%'", "budgt"),
        ("arms.new.strategy = 'random'", "budget"),
        ("arms.new = { strategy = 'best', budget = '1%' }", "coverage"),
        ("arms.new = { strategy = 'random', budget = '1%', scores = 'none' }", "head"),
        ("tasks.ncrna_family.metric = 'f2'", "metric"),
        ("goal.against = 'nobody'", "nobody"),
        ("seeds = [1, 1]", "seeds"),
        ("nothing = 1", "nothing"),
        ("pool.file = ", "rna-cpu.toml"),
    ],
)
def test_mistakes_in_a_recipe_are_named(change, words):
    with pytest.raises(InputError, match=words):
        load_recipe(ROOT / "recipes/pruning/rna-cpu.toml", [change])


def interval(task, arm, value, half, **more):
    return {"task": task, "way": "probe", "arm": arm, "value": value, "low": value - half,
            "high": value + half} | more  # fmt: skip


@pytest.mark.parametrize(("better", "met"), [(0.9, ["chosen"]), (0.75, [])])
def test_the_verdict_follows_from_the_numbers(better, met):
    numbers = {"chosen": better, "random-10x": 0.7, "full": 0.91, "untrained": 0.5}
    content = {
        "goal": {"share": 0.025, "against": "random-10x", "full": "full", "within": 0.02},
        "pool": 1000,
        "seeds": [0, 1, 2],
        "arms": [
            {
                "name": name,
                "share": 0.025 if name == "chosen" else 0.25,
                "bound": name in {"full", "untrained"},
            }
            for name in numbers
        ],
        "values": [interval("t", name, value, 0.02) for name, value in numbers.items()],
        "differences": [
            interval("t", "chosen", better - 0.7, 0.03, rival="random-10x"),
            interval("t", "full", 0.41, 0.03, rival="untrained"),
        ],
    }
    verdict = judge(content)
    assert verdict["met"] == met
    assert ("not met" in verdict["words"][0]) == (not met)
    assert verdict["coresets"]["chosen"]["better"] == ["t (probe)"]


def write_data(folder: Path) -> None:
    """Two families that are told apart by their letters, in a pool and two tasks."""
    letters = random.Random(1)

    def draw(family: int) -> str:
        length = letters.randint(20, 40)
        return "".join(letters.choices("ACGU", [4, 1, 1, 4] if family else [1, 4, 4, 1], k=length))

    folder.mkdir()
    records = [f">source{i % 2}|{i}\n{draw(i % 2)}\n" for i in range(130)]
    (folder / "pool.fasta").write_text("".join(records))
    for task in ("family", "shade"):
        (folder / "tasks" / task).mkdir(parents=True)
        for split, count in (("train", 60), ("dev", 20), ("test", 30)):
            rows = ["sequence,label"]
            for i in range(count):
                sequence = draw(i % 2)
                share = sequence.count("G") / len(sequence)
                rows.append(f"{sequence},{'ab'[i % 2] if task == 'family' else f'{share:.6f}'}")
            (folder / "tasks" / task / f"{split}.csv").write_text("\n".join(rows))


RECIPE = """
title = "A test"
alphabet = "rna"
seeds = [0, 1]
[pool]
file = "pool.fasta"
sample = 120
validation = 10
[model]
name = "rna-fm-nano"
layers = 1
[pretrain]
steps = 4
batch_tokens = 512
[scores.head]
subset = 20
passes = 1
[arms]
untrained.strategy = "untrained"
full.strategy = "full"
reference.strategy = "reference"
random-10x = { strategy = "random", budget = "100%" }
top = { strategy = "top-influence", budget = "2.5%" }
[tasks.family]
probe = {}
[tasks.shade]
metric = "spearman"
tune = { method = "full", epochs = 1 }
"""


def test_a_recipe_end_to_end_and_left_on_the_way(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "run"
    write_data(data)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    words = [str(tmp_path / "recipe.toml"), "--data", str(data), "--out", str(out)]
    words += ["--device", "cpu"]
    # Every call gets somewhere, however early it is to leave.
    assert main([*words, "--stop-after-minutes", "0"]) == UNFINISHED
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "| top | 3 | 2.50% |" in output
    content = json.loads((out / "results.json").read_text())
    assert content["seeds"] == [0, 1]
    assert {arm["name"]: arm["sequences"] for arm in content["arms"]} == {
        "untrained": 0, "full": 120, "reference": 120, "random-10x": 120, "top": 3,
    }  # fmt: skip
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert len(rows) == 2 * (4 * 2 + 1)
    for row in rows:  # the same numbers as the evaluations' own
        metrics_file = out / f"evaluations/{row['arm']}-{row['seed']}/{row['task']}-{row['way']}"
        own = json.loads((metrics_file / "metrics.json").read_text())["test"]
        name = "spearman" if row["task"] == "shade" else "accuracy"
        assert row["value"] == pytest.approx(own[name]["value"])
    assert (out / "pruning.png").stat().st_size > 1000

    assert main(words) == 0  # nothing is done twice
    lines = (out / "steps.jsonl").read_text().splitlines()
    assert len(lines) == len({json.loads(line)["out"] for line in lines})

    assert page.main([str(tmp_path / "docs"), f"tiny={out}"]) == 0
    text = (tmp_path / "docs/pruning.md").read_text()
    assert "source0" in text
    assert "| arm | mean over sequences | minus random-10x's, paired | mean over sources |" in text
    (of_top,) = (
        entry["value"]
        for entry in content["losses"]["values"]
        if (entry["mean"], entry["arm"]) == ("sequences", "top")
    )
    assert f"| top | {of_top:.4f} |" in text
    assert (tmp_path / "docs/pruning-tiny.png").is_file()


def test_the_drawn_pool_is_exact_and_keeps_the_sources(tmp_path):
    write_data(tmp_path / "data")
    source = tmp_path / "data/pool.fasta"
    out = draw_pool(source, out=tmp_path / "drawn", sample=20, longest=30, validation=5)
    pool, held_out = (pq.read_table(out / f"{name}.parquet") for name in ("pool", "validation"))
    assert (len(pool), len(held_out)) == (20, 5)
    assert not set(pool["id"].to_pylist()) & set(held_out["id"].to_pylist())
    for row in pool.to_pylist():
        assert row["id"].startswith(row["source"] + "|")
        assert len(row["sequence"]) <= 30
    with pytest.raises(InputError, match="fewer"):
        draw_pool(source, out=tmp_path / "more", sample=140)


def test_a_changed_step_and_all_after_it_are_done_again(tmp_path):
    made = [Step("describe_model", "model", options={"name": "rna-fm-nano"})]
    made.append(Step("make_untrained", "one", ("model",), ("model",), {}, {"seed": 0}))
    assert run_steps(made, tmp_path) == 0
    changed = Step("describe_model", "model", options={"name": "rna-fm-nano", "layers": 1})
    with pytest.raises(InputError, match="overwrite"):
        run_steps([changed, made[1]], tmp_path)
    assert run_steps([changed, made[1]], tmp_path, overwrite=True) == 0
    assert json.loads((tmp_path / "one/config.json").read_text())["num_hidden_layers"] == 1

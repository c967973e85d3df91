"""``evaluate --suite gue``: a table of cells, checked first, resumable, the same as the verbs."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef

from frugalfm.artifacts import read_manifest
from frugalfm.cli import main
from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.dnabert2.modeling import DnaBert2ForMaskedLM
from frugalfm.errors import FrugalError, InputError
from frugalfm.suites import SuiteSettings, cells, name_checkpoints
from frugalfm.suites.cells import Cell, limit_train
from frugalfm.tasks import read_task
from frugalfm.verbs.evaluate import evaluate
from frugalfm.verbs.tune import tune

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from dnabert2_oracle import make_dna_tokenizer

NAMES = ("prom/prom_core_tata", "tf/0", "mouse/1")


def save_model(folder, attention="softmax", seed=0):
    tokenizer = make_dna_tokenizer()
    torch.manual_seed(seed)
    config = DnaBert2Config(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, attention=attention,
    )  # fmt: skip
    save_encoder(DnaBert2ForMaskedLM(config), tokenizer, folder)
    return folder


def make_task(folder, seed, sizes=(40, 16, 20)):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for name, size in zip(("train", "dev", "test"), sizes, strict=True):
        rows = ["sequence,label"]
        for index in range(size):
            letters = ["A", "G"][index % 2] * 4 + "ACGT"
            rows.append("".join(random.choice(list(letters), 14)) + f",{index % 2}")
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Half of the time of a tiny cell."""
    monkeypatch.setattr("frugalfm.suites.running.gc.collect", lambda: 0)


@pytest.fixture
def here(tmp_path):
    for seed, name in enumerate(NAMES):
        make_task(tmp_path / "GUE" / name, seed)
    save_model(tmp_path / "a")
    return tmp_path


def run(here, *checkpoints, **options):
    options = {"root": here / "GUE", "out": here / "out", "device": "cpu", **options}
    return evaluate(*(checkpoints or (here / "a",)), suite="gue", **options)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_suite_of_two_checkpoints(here, capsys):
    test = here / "GUE/tf/0/test.csv"
    train = (here / "GUE/tf/0/train.csv").read_text().splitlines()
    test.write_text("\n".join([*test.read_text().splitlines(), train[1], train[2]]) + "\n")
    (here / "GUE/other").mkdir()
    (here / "GUE/other/train.csv").write_text("x")
    save_model(here / "b", "softmax1", seed=1)
    out = run(
        here, f"dnabert2={here / 'a'}", f"germ={here / 'b'}", methods="probe, full", seeds=2,
        max_steps=2, max_train=24,
    )  # fmt: skip
    said = " ".join(capsys.readouterr().out.split())
    assert "3 of GUE's 28 tasks" in said
    assert "missing: EMP (all 10), prom/prom_core_all" in said
    assert "not of GUE, left alone: other" in said
    assert "tf/0: 40 / 16 / 22 rows; 2 test in train" in said
    assert "[18/18] mouse/1, germ, full, seed 43: MCC" in said
    assert "LIMITED to 24 training rows and 2 optimizer steps" in said
    table = pq.read_table(out / "results.parquet")
    assert table.num_rows == 2 * 3 * (1 + 2)
    assert set(table["steps"].to_pylist()) == {None, 2}
    assert set(table["train"].to_pylist()) == {24}
    results = json.loads((out / "results.json").read_text())
    assert results["tasks"]["tf/0"]["repeats"]["test_in_train"] == 2
    assert len(results["missing"]) == 25
    assert "| tf/0 | 40 / 16 / 22 | 0 | 2 |" in (out / "table.md").read_text()
    manifest = read_manifest(out, "suite")
    assert len(manifest["inputs"]) == 18
    before = contents(here / "out")
    run(
        here, f"dnabert2={here / 'a'}", f"germ={here / 'b'}", methods="probe,full", seeds=2,
        max_steps=2, max_train=24,
    )  # fmt: skip
    assert capsys.readouterr().out.count("already there") == 18
    assert contents(here / "out") == before


@pytest.mark.parametrize("method", [
    "probe", "full",
    pytest.param("lora", marks=pytest.mark.skipif(
        importlib.util.find_spec("peft") is None, reason="optional"
    )),
])  # fmt: skip
def test_a_cell_is_what_the_verbs_measure(here, method):
    task = here / "GUE/tf/0"
    run(here, methods=method)
    name = "probe" if method == "probe" else f"{method}-seed42"
    cell = here / "out/cells/a/tf-0" / name
    options = {"task": task, "out": here / "e", "kind": "classification", "device": "cpu"}
    if method == "probe":
        other = evaluate(here / "a", **options)
    else:
        other = tune(here / "a", method=method, pooling="mean", **options)
    assert pq.read_table(cell / "predictions.parquet").equals(
        pq.read_table(other / "predictions.parquet")
    )
    found, expected = (json.loads((x / "metrics.json").read_text()) for x in (cell, other))
    assert {key: value for key, value in found.items() if key != "tuning"} == {
        key: value for key, value in expected.items() if key != "tuning"
    }
    kept = {path.name for path in cell.iterdir()}
    log = set() if method == "probe" else {"log.jsonl"}
    assert kept == {"manifest.json", "metrics.json", "predictions.parquet"} | log
    if log:
        assert found["tuning"]["preset"] == "gue/tf"
        assert found["tuning"]["seed"] == 42


def test_seeds_that_give_the_same_have_the_interval_of_the_test_rows(here):
    """Where no step beats the probe on dev, every seed ends with it."""
    out = run(here, methods="full", seeds=2, max_steps=1)
    results = json.loads((out / "results.json").read_text())
    page = " ".join((out / "table.md").read_text().split())
    assert "over 2 seeds and over test rows" in page
    spreads = []
    for score in results["scores"]:
        cells = [here / "out/cells/a" / score["task"].replace("/", "-") / f"full-seed{seed}"
                 for seed in (42, 43)]  # fmt: skip
        tables = [pq.read_table(cell / "predictions.parquet") for cell in cells]
        random = np.random.default_rng(0)
        means = []
        for _ in range(400):
            rows = random.integers(20, size=20)
            means.append(np.mean([
                matthews_corrcoef(*(np.array(table[name].to_pylist())[rows]
                                    for name in ("label", "prediction"))) for table in tables
            ]))  # fmt: skip
        half = (score["high"] - score["low"]) / 2
        assert score["interval"] == "seeds and test"
        assert half >= 0.8 * 1.96 * np.std(means)
        spreads.append(np.std(means))
    assert max(spreads) > 0.05
    (average,) = results["averages"]
    assert average["high"] > average["low"]


def test_killed_between_cells_it_continues(here, monkeypatch, capsys):
    options = {"methods": "probe,full", "max_steps": 2}
    whole = run(here, out=here / "whole", **options)
    make = Cell._make
    made = []

    def dying(cell, *rest):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(cell.label)
        make(cell, *rest)

    monkeypatch.setattr(Cell, "_make", dying)
    with pytest.raises(KeyboardInterrupt):
        run(here, **options)
    assert not (here / "out/results").exists()
    before = contents(here / "out/cells/a/tf-0")
    monkeypatch.setattr(Cell, "_make", lambda cell, *rest: (made.append(cell.label),
                                                            make(cell, *rest)))  # fmt: skip
    capsys.readouterr()
    out = run(here, **options)
    assert capsys.readouterr().out.count("already there") == 4
    assert len(made) == len(set(made)) == 6
    assert contents(here / "out/cells/a/tf-0") == before
    columns = ["task", "method", "seed", "mcc", "mcc_low", "mcc_high", "best_step"]
    tables = [pq.read_table(x / "results.parquet").select(columns) for x in (whole, out)]
    assert tables[0].equals(tables[1])


def test_more_methods_and_checkpoints_add_to_what_is_there(here, capsys):
    run(here)
    save_model(here / "b", seed=1)
    out = run(here, here / "a", here / "b", methods="probe,full", max_steps=1)
    said = capsys.readouterr().out
    assert said.count("already there") == 3
    assert read_manifest(out)["summary"]["averages"][0]["checkpoint"] == "a"
    assert len(json.loads((out / "results.json").read_text())["averages"]) == 4


def test_other_settings_are_refused_before_any_work(here):
    run(here, methods="full", max_steps=1)
    (here / "out/cells/a/prom-prom_core_tata/full-seed42").rename(here / "gone")
    with pytest.raises(InputError, match="was made with another max_steps"):
        run(here, methods="full", max_steps=2)
    with pytest.raises(InputError, match="was made with another start"):
        run(here, methods="full", max_steps=1, start="random")
    assert not (here / "out/cells/a/prom-prom_core_tata/full-seed42").exists()
    out = run(here, methods="full", max_steps=2, start="random", overwrite=True)
    assert "heads start at random" in (out / "table.md").read_text()
    metrics = json.loads((here / "out/cells/a/tf-0/full-seed42/metrics.json").read_text())
    assert metrics["tuning"]["started_from"] is None
    assert set(pq.read_table(out / "results.parquet")["steps"].to_pylist()) == {2}


def test_a_failed_cell_does_not_stop_the_others(here, monkeypatch, capsys):
    tune_task = cells.tune_task

    def failing(encoder, tokenizer, task, *rest, **options):
        if task.folder.parts[-2:] == ("tf", "0"):
            raise FrugalError("the loss is no longer finite")
        return tune_task(encoder, tokenizer, task, *rest, **options)

    monkeypatch.setattr(cells, "tune_task", failing)
    with pytest.raises(FrugalError, match=r"1 of 6 cells failed.*tf/0, a, full, seed 42.*finite"):
        run(here, methods="probe,full", max_steps=1)
    page = (here / "out/results/table.md").read_text()
    assert "Failed: tf/0, a, full, seed 42." in page
    assert "average of 2" in page
    monkeypatch.setattr(cells, "tune_task", tune_task)
    capsys.readouterr()
    run(here, methods="probe,full", max_steps=1)
    assert capsys.readouterr().out.count("already there") == 5
    page = (here / "out/results/table.md").read_text()
    assert "Failed" not in page
    assert "average of 3" in page


@pytest.mark.parametrize(("row", "message"), [
    ("ACGT,", r"mouse/1/test.csv, line 4: the label is empty"),
    ("AC!T,1", r"mouse/1/test.csv, line 4"),
    ("ACGT,7", r"mouse/1/test.csv, line 4: label '7' does not occur in train.csv"),
])  # fmt: skip
def test_a_broken_task_is_named_before_any_work(here, row, message):
    path = here / "GUE/mouse/1/test.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], row, *lines[3:]]) + "\n")
    with pytest.raises(InputError, match=message):
        run(here)
    (here / "GUE/tf/0/dev.csv").unlink()
    with pytest.raises(InputError, match=r"tf/0: holds no dev file(.|\n)*" + message):
        run(here)
    assert not (here / "out").exists()


@pytest.mark.gpu
def test_on_a_gpu(here):
    out = run(here, methods="probe,full", max_steps=1, device="cuda")
    assert pq.read_table(out / "results.parquet").num_rows == 6


def test_bad_input(here):
    save_encoder(*create_encoder("rna-fm-nano"), here / "rna")
    (here / "empty").mkdir()
    for options, message in (
        ({"root": here / "empty"}, "none of GUE's 28 tasks"),
        ({"root": here / "none"}, "no such folder"),
        ({"root": None}, "needs --root"),
        ({"methods": "probe,magic"}, "there is no 'magic'"),
        ({"methods": "probe,probe"}, "name each once"),
        ({"seeds": 0}, "--seeds must be positive"),
        ({"max_train": 1}, "has 2 classes"),
        ({"max_steps": 0}, "--max-steps must be positive"),
        ({"task": here / "GUE/tf/0"}, "--task goes with --task only"),
        ({"train_pairs": 7}, "--train-pairs goes with --task only"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            run(here, **options)
    with pytest.raises(InputError, match="reads rna"):
        run(here, here / "a", here / "rna")
    with pytest.raises(InputError, match="two checkpoints are called a"):
        run(here, here / "a", here / "a")
    (here / "GUE/tf/0/dev.csv").unlink()
    with pytest.raises(InputError, match="tf/0: holds no dev file"):
        run(here)
    task = {"task": here / "GUE/tf/0", "out": here / "out"}
    for options in ({"seeds": 2}, {"root": here}, {"methods": "lora"}, {"max_train": 3}):
        with pytest.raises(InputError, match="goes with --suite only"):
            evaluate(here / "a", **task, **options)
    for checkpoints in ((), (here / "a", here / "rna")):
        with pytest.raises(InputError, match="give one checkpoint"):
            evaluate(*checkpoints, **task)
    assert not (here / "out").exists()


def test_names_of_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "x=y"
    odd.mkdir()
    found = name_checkpoints([Path("germ=~/g"), "some/model", "n=" + str(odd)])
    assert found == {"germ": tmp_path / "g", "model": Path("some/model"), "n": odd}
    with pytest.raises(InputError, match="is no name"):
        name_checkpoints([odd])
    with pytest.raises(InputError, match="at least one"):
        name_checkpoints([])


def test_seeds_of_methods():
    found = SuiteSettings(methods=("probe", "full"), seeds=3)
    assert list(found.seeds_of("probe")) == [0]
    assert list(found.seeds_of("full")) == [42, 43, 44]
    assert list(SuiteSettings(seeds=2, seed=7).seeds_of("lora")) == [7, 8]


@settings(max_examples=30)
@given(rows=st.integers(3, 45), seed=st.integers(0, 9))
def test_few_rows_hold_every_class(tmp_path_factory, rows, seed):
    folder = tmp_path_factory.mktemp("few")
    random = np.random.default_rng(seed)
    for name in ("train", "dev", "test"):
        lines = [f"{''.join(random.choice(list('ACGT'), 9))},{max(0, i - 37)}" for i in range(40)]
        (folder / f"{name}.csv").write_text("sequence,label\n" + "\n".join(lines) + "\n")
    task = read_task(folder, "dna")
    few = limit_train(task, rows).train
    assert len(few) == min(rows, 40)
    assert (np.diff(few.rows) > 0).all()
    assert set(few.targets) == {0, 1, 2}
    assert few.sequences.to_pylist() == task.train.sequences.take(few.rows).to_pylist()
    assert few.texts.to_pylist() == [str(label) for label in few.targets]
    assert limit_train(task, None) is task


def test_on_the_command_line(here, capsys):
    words = ["evaluate", "--suite", "gue", "--root", str(here / "GUE"), "--out", str(here / "out")]
    assert main([*words, f"one={here / 'a'}", "--device", "cpu"]) == 0
    assert (here / "out/results/table.md").is_file()
    assert main([*words, f"one={here / 'nowhere'}"]) == 2
    assert "nowhere" in capsys.readouterr().err

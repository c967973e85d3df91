"""The verb ``predict`` when it is killed, called again, or given what it cannot use."""

import gzip
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from predict_models import Models, run, write_fasta

from frugalfm.artifacts import open_stage
from frugalfm.errors import FrugalError, InputError
from frugalfm.training import prediction_file, prediction_run
from frugalfm.training.predicting import TaskRunner, TorchPredictor
from frugalfm.training.prediction_table import Tally
from frugalfm.verbs import predict as verb


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("predict"))


def test_the_same_call_is_done_and_another_is_refused(tuned, tmp_path, capsys):
    model, _ = tuned()
    fasta = write_fasta(tmp_path / "in.fa", 5)
    for ending in ("parquet", "csv"):
        out = run(model, fasta, tmp_path / f"p.{ending}")
        before = out.stat().st_mtime_ns
        run(model, fasta, out)
        assert "already there" in capsys.readouterr().out
        assert out.stat().st_mtime_ns == before
        with pytest.raises(InputError, match="--overwrite"):
            run(model, fasta, out, probabilities=True)
        run(model, fasta, out, probabilities=True, overwrite=True)
        assert b"probability_A" in out.read_bytes()
    out.write_text(out.read_text() + "x,A,1\n")  # no longer what was made
    with pytest.raises(InputError, match="--overwrite"):
        run(model, fasta, out, probabilities=True)
    with (
        open_stage(tmp_path / ".new.csv.parts", "predictions", {}, {}),
        pytest.raises(InputError, match="another process"),
    ):
        run(model, fasta, tmp_path / "new.csv")


class Killed(BaseException):
    """As a kill: nothing catches it."""


def kill_at(monkeypatch, owner, name, count):
    """Let a call end the run."""
    real, calls = getattr(owner, name), []

    def fake(*args, **kwargs):
        calls.append(0)
        if len(calls) > count:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, fake)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize(
    ("owner", "name", "count"),
    [
        (TaskRunner, "answer", 0),
        (TaskRunner, "answer", 3),
        (TorchPredictor, "logits", 9),
        (Tally, "add", 0),
        (prediction_file, "write_json", 0),
        (prediction_file, "_clear_parts", 0),
    ],
)
def test_killed_and_called_again(tuned, tmp_path, monkeypatch, ending, owner, name, count):
    model, _ = tuned()
    fasta = write_fasta(tmp_path / "in.fa", 90)
    monkeypatch.setattr(prediction_run, "_WINDOW", 300)
    monkeypatch.setattr(prediction_run, "_BATCHES", 1)
    options = {"batch_tokens": 120}
    whole = run(model, fasta, tmp_path / f"whole.{ending}", **options).read_bytes()
    out = tmp_path / f"p.{ending}"
    out.with_name(out.name + ".json").unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        kill_at(patch, owner, name, count)
        if ending == "parquet" and name == "write_json":
            pytest.skip("no note is written")
        with pytest.raises(Killed):
            run(model, fasta, out, **options)
    assert not out.exists() or out.read_bytes() == whole
    run(model, fasta, out, **options)
    assert out.read_bytes() == whole
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_killed_by_a_signal(tuned, tmp_path):
    model, _ = tuned()
    fasta = write_fasta(tmp_path / "in.fa", 90)
    code = f"""
import os, signal
import frugalfm
from frugalfm.training.predicting import TaskRunner
from frugalfm.training import prediction_run
prediction_run._WINDOW, prediction_run._BATCHES = 300, 1
answer, calls = TaskRunner.answer, []
def fake(*args):
    calls.append(0)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(*args)
TaskRunner.answer = fake
frugalfm.predict({str(model)!r}, {str(fasta)!r}, out="p.parquet", batch_tokens=120, device="cpu")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=tmp_path, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    out = tmp_path / "p.parquet"
    assert not out.exists()
    parts = sorted(file.name for file in tmp_path.glob(".*/.scratch/*"))
    assert parts == [f"{n:08d}.parquet" for n in range(3)]
    before = [file.stat().st_mtime_ns for file in sorted(tmp_path.glob(".*/.scratch/*"))]
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction_run, "_WINDOW", 300)
        patch.setattr(prediction_run, "_BATCHES", 1)
        real = prediction_file._clear_parts

        def look(stage):
            told.extend(f.stat().st_mtime_ns for f in sorted(stage.scratch.iterdir())[:3])
            real(stage)

        patch.setattr(prediction_file, "_clear_parts", look)
        run(model, fasta, out, batch_tokens=120)
        whole = run(model, fasta, tmp_path / "whole.parquet", batch_tokens=120)
    assert told[:3] == before
    assert out.read_bytes() == whole.read_bytes()


def test_a_change_of_settings_starts_afresh(tuned, tmp_path, monkeypatch):
    model, _ = tuned()
    fasta = write_fasta(tmp_path / "in.fa", 90)
    monkeypatch.setattr(prediction_run, "_WINDOW", 300)
    monkeypatch.setattr(prediction_run, "_BATCHES", 1)
    with monkeypatch.context() as patch:
        kill_at(patch, TaskRunner, "answer", 3)
        with pytest.raises(Killed):
            run(model, fasta, tmp_path / "p.parquet", batch_tokens=120)
    table = pq.read_table(run(model, fasta, tmp_path / "p.parquet", batch_tokens=50))
    assert table["id"].to_pylist() == [f"s{i}" for i in range(90)]


BAD = [
    (">a\nACGU\n>b\nAC!U\n", "line 4"),
    (">a\nMKLV\n", r"line 2.*this one reads rna"),
    (">a\n\n>b\nACGU\n", "line 1.*empty"),
    (">a\n" + "A" * 300 + "\n", r"'a' has 300 tokens.*at most \d+; --too-long crop"),
    ("", "is empty"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_bad_input_is_found_before_anything_is_written(
    tuned, tmp_path, monkeypatch, text, message
):
    model, _ = tuned()
    (tmp_path / "bad.fa").write_text(text)
    monkeypatch.setattr(TaskRunner, "answer", None)
    real = verb.open_runner

    def short(*args):
        runner = real(*args)
        object.__setattr__(runner.codec, "max_residues", 200)
        return runner

    monkeypatch.setattr(verb, "open_runner", short)
    with pytest.raises(InputError, match=message):
        run(model, tmp_path / "bad.fa", tmp_path / "p.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["bad.fa"]


def test_compressed_input(tuned, tmp_path):
    model, _ = tuned()
    fasta = write_fasta(tmp_path / "in.fa", 300)
    packed = gzip.compress(fasta.read_bytes())
    (tmp_path / "in.fa.gz").write_bytes(packed)
    (tmp_path / "short.fa.gz").write_bytes(packed[: len(packed) // 2])
    one, two = (
        pq.read_table(run(model, file, tmp_path / f"{file.name}.parquet"))
        for file in (fasta, tmp_path / "in.fa.gz")
    )
    assert one.equals(two)
    with pytest.raises(InputError, match=r"short\.fa\.gz: ends too early"):
        run(model, tmp_path / "short.fa.gz", tmp_path / "p.parquet")
    assert not list(tmp_path.glob("*p.parquet*"))


def test_bad_options(tuned, tmp_path):
    model, test = tuned()
    fasta = write_fasta(tmp_path / "in.fa", 3)
    out = tmp_path / "p.parquet"
    with pytest.raises(InputError, match="no known ending"):
        run(model, fasta, tmp_path / "p.txt")
    with pytest.raises(InputError, match="is a folder"):
        run(model, fasta, tmp_path)
    with pytest.raises(InputError, match=r"--base .*is a whole model"):
        run(model, fasta, out, base=tuned.checkpoint)
    with pytest.raises(InputError, match="--batch-tokens"):
        run(model, fasta, out, batch_tokens=0)
    with pytest.raises(InputError, match="frugalfm tune"):
        run(tuned.checkpoint, fasta, out)
    with pytest.raises(InputError, match="no such checkpoint folder"):
        run(tuned.folder / "none", fasta, out)
    with pytest.raises(InputError, match=r"none\.fa: no such file"):
        run(model, tmp_path / "none.fa", out)
    copy = tmp_path / "copy.csv"
    copy.write_text(test.read_text())
    with pytest.raises(InputError, match="is or lies inside the input"):
        run(model, copy, copy, overwrite=True)
    with pytest.raises(InputError, match="is or lies inside the input"):
        run(model, copy, model / "p.csv")
    assert copy.read_text() == test.read_text()
    copy.write_text("id,letters\na,ACGU\n")
    with pytest.raises(InputError, match=r"--sequence-column\. There are: id, letters"):
        run(model, copy, out)
    with pytest.raises(InputError, match="no column 'seq'"):
        run(model, copy, out, sequence_column="seq")
    with pytest.raises(InputError, match="hold lists"):
        run(tuned("token")[0], fasta, tmp_path / "p.csv", probabilities=True)
    with pytest.raises(InputError, match="have no classes"):
        run(tuned("regression")[0], fasta, out, probabilities=True)
    with pytest.raises(InputError, match="--too-long crop"):
        run(tuned("token")[0], fasta, out, too_long="crop")
    with pytest.raises(InputError, match="hold lists"):
        run(tuned("distance")[0], fasta, tmp_path / "p.csv")
    with pytest.raises(InputError, match="sequence_a and sequence_b"):
        run(tuned("interaction")[0], fasta, out)
    assert {file.name for file in tmp_path.iterdir()} == {"in.fa", "copy.csv"}


def test_what_is_named_after_its_file_is_another_under_another_name(tuned, tmp_path):
    model, _ = tuned()
    (tmp_path / "one.csv").write_text("sequence\nACGU\n")
    out = run(model, tmp_path / "one.csv", tmp_path / "p.csv")
    assert "one:1" in out.read_text()
    with pytest.raises(InputError, match="not made by this call"):
        run(model, (tmp_path / "one.csv").rename(tmp_path / "two.csv"), out)
    out.unlink()
    (tmp_path / "p").symlink_to(tmp_path / "scratch")  # a folder that is to be made
    (tmp_path / "l.csv").symlink_to("p/real.csv")
    for _ in range(2):
        run(model, tmp_path / "two.csv", tmp_path / "l.csv")
    assert {file.name for file in (tmp_path / "scratch").iterdir()} == {"real.csv", "real.csv.json"}


def test_a_bad_partner_is_named_by_line(tuned, tmp_path):
    model, _ = tuned("interaction")
    pairs = tmp_path / "pairs.csv"
    for text, message in (("ACGU,", "line 3.*sequence_b is empty"), ("ACGU,A!", "line 3")):
        pairs.write_text(f"sequence_a,sequence_b\nAC,GU\n{text}\n")
        with pytest.raises(InputError, match=message):
            run(model, pairs, tmp_path / "p.parquet")


def test_an_output_that_is_not_finite_names_the_record(tuned, tmp_path, monkeypatch):
    model, _ = tuned()
    fasta = write_fasta(tmp_path / "in.fa", 20)
    real = TorchPredictor.logits

    def broken(self, ids, attended):
        found = real(self, ids, attended)
        found[attended.sum(1) == 4] = np.nan
        return found

    (tmp_path / "in.fa").write_text(">long\nACGUACGU\n>short\nAC\n>other\nACG\n")
    with monkeypatch.context() as patch:
        patch.setattr(TorchPredictor, "logits", broken)
        with pytest.raises(FrugalError, match="'short' is not finite"):
            run(model, fasta, tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()

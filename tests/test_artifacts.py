"""Artifacts appear whole or not at all, and are recognised when they are there."""

import os
import signal
import subprocess
import sys
import time

import pytest

from frugalfm.artifacts import fingerprint, open_stage, read_manifest, write_atomically
from frugalfm.errors import InputError


def make(out, text="hello", config=None, inputs=None, **options):
    stage = open_stage(out, "thing", config or {"a": 1}, inputs or {}, **options)
    if not stage.done:
        (stage.work / "data.txt").write_text(text)
        stage.commit({"n": len(text)})
    return stage


def test_commit_makes_a_whole_artifact(tmp_path):
    make(tmp_path / "x", inputs={"none": None})
    manifest = read_manifest(tmp_path / "x", "thing")
    assert manifest["config"] == {"a": 1}
    assert manifest["summary"] == {"n": 5}
    assert manifest["files"]["data.txt"]["bytes"] == 5
    assert set(manifest["files"]) == {"data.txt"}
    assert "torch" in manifest["versions"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_same_call_finds_it_done_and_another_is_refused(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("1")
    make(tmp_path / "x", inputs={"source": source})
    assert make(tmp_path / "x", inputs={"source": source}).done
    with pytest.raises(InputError, match="--overwrite"):
        make(tmp_path / "x", config={"a": 2}, inputs={"source": source})
    source.write_text("2")
    with pytest.raises(InputError, match="--overwrite"):
        make(tmp_path / "x", inputs={"source": source})
    assert (tmp_path / "x/data.txt").read_text() == "hello"
    make(tmp_path / "x", text="new", inputs={"source": source}, overwrite=True)
    assert (tmp_path / "x/data.txt").read_text() == "new"
    assert not list(tmp_path.glob(".x.old"))


def test_a_folder_that_is_no_artifact_is_never_replaced_by_accident(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x/thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match="already exists"):
        make(tmp_path / "x")
    assert (tmp_path / "x/thesis.doc").exists()


def test_overwrite_replaces_artifacts_only(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.doc").write_text("years of work")
    with pytest.raises(InputError, match="is no artifact"):
        make(tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious/thesis.doc").exists()
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    assert read_manifest(tmp_path / "empty")["kind"] == "thing"


def test_an_output_inside_its_input_is_refused(tmp_path):
    make(tmp_path / "x")
    with pytest.raises(InputError, match="inside the input"):
        make(tmp_path / "x/y", inputs={"x": tmp_path / "x"})


@pytest.mark.parametrize("moment", ["hashing", "manifest", "rename"])
def test_killed_while_committing_it_resumes(tmp_path, monkeypatch, moment):
    """All work is done by then; it must not be done again."""
    make(tmp_path / "x", config={"old": 1})
    stage = open_stage(tmp_path / "x", "thing", {"a": 1}, {}, overwrite=True)
    (stage.work / "data.txt").write_text("hello")
    (stage.scratch / "state").write_text("dear")
    target = {"hashing": "os.fsync", "manifest": "frugalfm.artifacts.write_json"}.get(moment)

    def fail(*_, **__):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(target or "pathlib.Path.replace", fail)
        with stage, pytest.raises(OSError, match="disk full"):
            stage.commit({})
    assert read_manifest(tmp_path / "x")["config"] == {"old": 1}
    with open_stage(tmp_path / "x", "thing", {"a": 1}, {}, overwrite=True) as again:
        assert again.resumed
        assert (again.scratch / "state").read_text() == "dear"
        again.commit({})
    found = read_manifest(tmp_path / "x")
    assert found["config"] == {"a": 1}
    assert set(found["files"]) == {"data.txt"}
    assert {p.name for p in (tmp_path / "x").iterdir()} == {"data.txt", "manifest.json"}


def test_interrupted_work_is_resumed_by_the_same_call_only(tmp_path):
    first = open_stage(tmp_path / "x", "thing", {"a": 1}, {})
    (first.work / "half").write_text("1")
    first.__exit__()
    other = open_stage(tmp_path / "x", "thing", {"a": 2}, {})
    assert not other.resumed
    assert not (other.work / "half").exists()
    (other.work / "half").write_text("2")
    other.__exit__()
    again = open_stage(tmp_path / "x", "thing", {"a": 2}, {})
    assert again.resumed
    assert (again.work / "half").read_text() == "2"


def test_two_processes_do_not_write_the_same_artifact(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from frugalfm.artifacts import open_stage; "
        "s = open_stage(Path(sys.argv[1]), 'thing', {'a': 1}, {}); print('open', flush=True); "
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(InputError, match="another process"):
            make(tmp_path / "x")
        os.kill(other.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # the lock goes with the process
        try:
            make(tmp_path / "x")
            break
        except InputError:
            time.sleep(0.05)
    assert (tmp_path / "x/data.txt").exists()


@pytest.mark.parametrize("damage", ["truncate", "remove", "manifest", "no manifest", "other kind"])
def test_damage_is_noticed_and_named(tmp_path, damage):
    make(tmp_path / "x")
    data, manifest = tmp_path / "x/data.txt", tmp_path / "x/manifest.json"
    if damage == "truncate":
        data.write_text("hell")
        message = "data.txt: has 4 bytes, not 5"
    elif damage == "remove":
        data.unlink()
        message = "data.txt: is missing"
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:-20])
        message = "manifest.json: damaged"
    elif damage == "no manifest":
        manifest.unlink()
        message = "holds no manifest.json"
    else:
        message = "of kind 'thing'"
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / "x", "scores" if damage == "other kind" else "thing")


def test_fingerprint_is_of_content(tmp_path):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        make(tmp_path / name, text=text, config={"name": name})
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "c")
    with pytest.raises(InputError, match="no such file"):
        fingerprint(tmp_path / "nowhere")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.json"
    path.write_text("old")

    def fail():
        with write_atomically(path) as handle:
            handle.write("new, but cut sh")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"

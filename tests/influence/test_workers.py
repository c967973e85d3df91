"""Of processes that share a folder, one and only one does each piece of work; the dead are noticed.

Threads stand for processes here: claims do not tell them apart, except by what they hold.
"""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from frugalfm import artifacts
from frugalfm.artifacts import open_stage, read_manifest
from frugalfm.errors import InputError
from frugalfm.influence import workers
from frugalfm.influence.workers import (
    Claims,
    VanishedError,
    count_launched,
    is_first,
    share,
)


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(workers, "_POLL", 0.01)


def abandon(claims, name, *, host=None, pid=None, age=0.0):
    """Leave a claim as a process that has died does."""
    claim = claims.take(name)
    workers._held.discard(claim.path)
    owner = json.loads(claim.path.read_text())
    owner |= {"host": host or owner["host"], "pid": pid or owner["pid"]}
    claim.path.write_text(json.dumps(owner))
    then = time.time() - age
    os.utime(claim.path, (then, then))
    return claim


def dead_pid():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_only_one_of_many_gets_a_claim(tmp_path):
    everyone = [Claims(tmp_path) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda claims: claims.take("x"), everyone))
    assert sum(claim is not None for claim in taken) == 1
    assert everyone[0].take("y") is not None


def test_only_one_of_many_takes_over(tmp_path):
    everyone = [Claims(tmp_path) for _ in range(16)]
    lost = abandon(everyone[0], "x", pid=dead_pid())
    assert not lost.lost
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda claims: claims.take("x"), everyone))
    assert sum(claim is not None for claim in taken) == 1
    assert lost.lost


@pytest.mark.parametrize(
    ("age", "host", "void"),
    [(0, "elsewhere", False), (100, "elsewhere", False), (130, "elsewhere", True)],
)
def test_the_silent_are_void_on_other_machines_too(tmp_path, age, host, void):
    claims = Claims(tmp_path)
    abandon(claims, "x", host=host, age=age)
    assert (claims.take("x") is not None) == void


def test_a_process_that_lives_keeps_its_claim_and_one_of_its_number_does_not(tmp_path):
    claims = Claims(tmp_path)
    abandon(claims, "other", pid=os.getppid())
    assert claims.take("other") is None
    abandon(claims, "reused")  # our own number, in an earlier life
    assert claims.take("reused") is not None


def test_a_claim_without_content_is_judged_by_its_age(tmp_path):
    """Its owner died between making and writing it."""
    claims = Claims(tmp_path)
    (tmp_path / "x.0").touch()
    assert claims.take("x") is None
    os.utime(tmp_path / "x.0", (1, 1))
    assert claims.take("x").path.name == "x.1"


def test_a_claim_beats_while_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_BEAT", 0.01)
    claims = Claims(tmp_path)
    with claims.take("x") as claim:
        os.utime(claim.path, (1, 1))
        deadline = time.monotonic() + 10
        while claim.path.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert claim.path.stat().st_mtime > 1


def test_work_that_fails_is_free_for_others_and_work_that_is_done_is_not(tmp_path):
    claims, others = Claims(tmp_path), Claims(tmp_path)
    with pytest.raises(ZeroDivisionError), claims.take("x"):
        raise ZeroDivisionError
    with others.take("x"):
        pass
    assert claims.take("x") is not None  # of this very process, which knows that it is over
    abandon(others, "y", pid=os.getppid())
    assert claims.take("y") is None


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    claims, path = Claims(tmp_path / "claims"), tmp_path / "file"
    with pytest.raises(ZeroDivisionError), claims.take("x") as claim:  # noqa: PT012, SIM117
        with claim.write(path) as draft:
            draft.write_text("half")
            raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["claims"]
    with claims.take("x") as claim, claim.write(path) as draft:
        draft.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_a_sleeper_that_wakes_after_a_takeover_changes_nothing(tmp_path):
    claims, path = Claims(tmp_path / "claims"), tmp_path / "file"
    with claims.take("x") as sleeper:
        (tmp_path / "claims/x.1").touch()
        path.write_text("by the successor")
        with sleeper.write(path) as draft:
            draft.write_text("by the sleeper")
    assert path.read_text() == "by the successor"
    assert {p.name for p in tmp_path.iterdir()} == {"claims", "file"}


def test_waiting_says_so_once_and_ends_when_the_folder_is_gone(tmp_path, capsys):
    claims = Claims(tmp_path / "claims")
    claims.wait("finish")
    claims.wait("finish")
    assert capsys.readouterr().err == "waiting for other processes to finish\n"
    (tmp_path / "claims").rmdir()
    with pytest.raises(VanishedError):
        claims.wait("finish")
    assert claims.take("x") is None


def call(out, work=lambda claims: None, **options):
    config = options.pop("config", {"a": 1})
    with open_stage(out, "thing", config, {}, shared=True, **options) as stage:
        return stage.done or share(stage, work, lambda workers: {"workers": workers})


def test_many_share_a_stage_and_one_commits(tmp_path):
    started, done = threading.Barrier(8), []

    def work(claims):
        started.wait()
        for i in range(20):
            path = tmp_path / f".x.partial/{i}"
            claim = claims.take(f"piece-{i}")
            if claim is not None:
                with claim:
                    if path.exists():
                        continue
                    with claim.write(path) as draft:
                        draft.write_text(str(i))
                    claims.sign()
                    done.append(i)
        while len(list((tmp_path / ".x.partial").glob("[0-9]*"))) < 20:
            claims.wait("do the rest")

    with ThreadPoolExecutor(8) as pool:
        committed = list(pool.map(lambda _: call(tmp_path / "x", work), range(8)))
    assert committed.count(True) == 1
    assert sorted(done) == list(range(20))
    manifest = read_manifest(tmp_path / "x")
    assert set(manifest["files"]) == {str(i) for i in range(20)}
    assert 1 <= manifest["summary"]["workers"] <= 8
    assert {p.name for p in (tmp_path / "x").iterdir()} == {*manifest["files"], "manifest.json"}
    assert call(tmp_path / "x") is True  # a late one finds it done
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_work_of_a_committer_that_died_is_taken_over(tmp_path):
    with open_stage(tmp_path / "x", "thing", {"a": 1}, {}, shared=True) as stage:
        (stage.work / "data").write_text("1")
        abandon(Claims(stage.scratch / "claims"), "commit", pid=dead_pid())
    assert call(tmp_path / "x")
    assert set(read_manifest(tmp_path / "x")["files"]) == {"data"}


def test_one_that_comes_back_after_the_others_have_finished_is_content(tmp_path):
    def work(claims):
        assert call(tmp_path / "x")  # another commits while we are at it
        claims.wait("do the rest")

    assert call(tmp_path / "x", work) is False
    assert read_manifest(tmp_path / "x", "thing")


def test_a_folder_that_somebody_removed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_STALE", 0.05)
    with pytest.raises(VanishedError, match="run the same command again"):
        call(tmp_path / "x", lambda claims: (tmp_path / ".x.partial").rename(tmp_path / "gone"))


def test_a_file_that_is_missing_for_another_reason_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        call(tmp_path / "x", lambda claims: (tmp_path / "nowhere").read_text())


def test_only_calls_that_are_the_same_join(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "_PATIENCE", 0.2)
    shared = open_stage(tmp_path / "x", "thing", {"a": 1}, {}, shared=True)
    (shared.work / "data").write_text("1")
    with open_stage(tmp_path / "x", "thing", {"a": 1}, {}, shared=True) as other:
        assert (other.work / "data").exists()
    for options in ({"config": {"a": 2}, "shared": True}, {"config": {"a": 1}}):
        with pytest.raises(InputError, match="is writing it; wait or stop it"):
            open_stage(tmp_path / "x", "thing", inputs={}, **options)
    assert (shared.work / "data").exists()
    shared.__exit__()
    with open_stage(tmp_path / "x", "thing", {"a": 2}, {}, shared=True) as alone:
        assert not (alone.work / "data").exists()
    with open_stage(tmp_path / "x", "thing", {"a": 2}, {}):
        start = time.monotonic()
        with pytest.raises(InputError, match="another process"):
            open_stage(tmp_path / "x", "thing", {"a": 2}, {}, shared=True)
        assert time.monotonic() - start >= 0.2  # it might only have been setting up


def test_where_locks_do_nothing_the_same_calls_still_join(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(artifacts.errno.ENOSYS, "no locks here")

    monkeypatch.setattr(artifacts.fcntl, "flock", refuse)
    with ThreadPoolExecutor(8) as pool:
        stages = list(
            pool.map(
                lambda _: open_stage(tmp_path / "x", "thing", {"a": 1}, {}, shared=True), range(8)
            )
        )
    assert {p.name for p in tmp_path.iterdir()} == {".x.partial", ".x.lock"}
    for i, stage in enumerate(stages):
        (stage.work / f"{i}").touch()
    assert len(list(stages[0].work.glob("[0-9]"))) == 8


def test_what_launchers_say(monkeypatch):
    for name in ("WORLD_SIZE", "SLURM_ARRAY_TASK_COUNT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (count_launched(), is_first()) == (1, True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert (count_launched(), is_first()) == (4, False)
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")
    assert count_launched() == 12

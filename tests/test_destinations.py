"""A result never takes an input with it, and goes where links lead."""

import os

import pytest

from frugalfm.artifacts import open_stage, read_manifest
from frugalfm.destinations import find_place
from frugalfm.errors import InputError


def make(out, inputs=None, *, text="hello", **options):
    with open_stage(out, "thing", {"text": text}, inputs or {}, **options) as stage:
        if not stage.done:
            (stage.work / "data.txt").write_text(text)
            stage.commit({})
    return out


@pytest.fixture
def pool(tmp_path):
    return make(tmp_path / "n/pool")


def test_an_artifact_never_replaces_what_it_is_made_from(pool, monkeypatch):
    raw = pool / "raw.fa"
    raw.write_text("precious")
    link = pool.parent.parent / "link"
    link.symlink_to(pool.parent)
    monkeypatch.chdir(pool.parent)
    around = pool.parent / ".." / "n" / "pool"
    for out in (pool, around, link / "pool", pool.relative_to(pool.parent)):
        with pytest.raises(InputError, match="holds the input"):
            make(out, {"x": raw}, text="new", overwrite=True)
        for same in (pool, link / "pool", around):
            with pytest.raises(InputError, match="is or lies inside the input"):
                make(out, {"x": same}, text="new", overwrite=True)
    (pool.parent / "alias").symlink_to(raw)  # what is named elsewhere, and lies in there
    with pytest.raises(InputError, match="holds the input"):
        make(pool, {"x": pool.parent / "alias"}, text="new", overwrite=True)
    with pytest.raises(InputError, match="is or lies inside the input"):
        make(link / "pool/inner", {"x": pool}, text="new")
    assert raw.read_text() == "precious"
    assert read_manifest(pool)["config"] == {"text": "hello"}


def test_inputs_beside_and_above_a_result_are_no_harm(tmp_path, pool):
    for place in (tmp_path, tmp_path / "n", tmp_path / "n/pool2"):
        place.mkdir(exist_ok=True)
        (place / "raw.fa").write_text("x")
    beside = {"a": tmp_path / "raw.fa", "b": tmp_path / "n/raw.fa", "c": tmp_path / "n/pool2"}
    make(pool, beside, text="new", overwrite=True)
    assert (pool / "data.txt").read_text() == "new"
    assert find_place(tmp_path / "n/out.csv", [*beside.values(), None]) == tmp_path / "n/out.csv"


@pytest.mark.parametrize("state", ["nothing", "an empty folder", "an artifact"])
def test_a_result_goes_through_a_link(tmp_path, state):
    scratch = tmp_path / "scratch/results/x"
    if state == "an empty folder":
        scratch.mkdir(parents=True)
    elif state == "an artifact":
        make(scratch, text="old")
    link = tmp_path / "home/x"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(scratch, link.parent))
    with open_stage(link, "thing", {"text": "new"}, {}, overwrite=True) as stage:
        assert stage.work.parent == scratch.parent
    make(link, text="new", overwrite=True)
    assert link.is_symlink()
    assert (scratch / "data.txt").read_text() == "new"
    assert [path.name for path in scratch.parent.iterdir()] == ["x"]
    assert [path.name for path in link.parent.iterdir()] == ["x"]
    with open_stage(link, "thing", {"text": "new"}, {}) as stage:
        assert stage.done


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "x").symlink_to(tmp_path / "y")
    (tmp_path / "y").symlink_to(tmp_path / "x")
    with pytest.raises(InputError, match="leads to itself"):
        make(tmp_path / "x")

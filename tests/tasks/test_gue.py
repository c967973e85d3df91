"""The 28 tasks of GUE: names, presets, and where they are found."""

import pytest

from frugalfm.errors import InputError
from frugalfm.tasks.gue import GUE, find_gue, shorten_names
from frugalfm.training.presets import PRESETS, find_preset


def make(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "train.csv").write_text("sequence,label\n")


def test_all_names_have_presets_which_tune_finds_too():
    names = [task.name for task in GUE]
    assert len(set(names)) == 28
    assert {task.preset for task in GUE} == set(PRESETS)
    for task in GUE:
        assert find_preset("auto", task.name, "dna") == task.preset
    counts = {group: sum(name.startswith(group + "/") for name in names)
              for group in ("EMP", "prom", "tf", "mouse", "splice", "virus")}  # fmt: skip
    assert counts == {"EMP": 10, "prom": 6, "tf": 5, "mouse": 5, "splice": 1, "virus": 1}


@pytest.mark.parametrize("inside", ["", "GUE"])
def test_the_published_layout(tmp_path, inside):
    make(tmp_path / inside, *(task.name for task in GUE))
    found = find_gue(tmp_path)
    assert {task: path.relative_to(tmp_path / inside).as_posix()
            for task, path in found.found.items()} == {task: task.name for task in GUE}  # fmt: skip
    assert found.missing == found.strangers == ()


def test_a_flat_layout_and_what_is_missing_or_unknown(tmp_path):
    make(tmp_path, "H3", "prom_core_all", "tf_0", "mouse_0", "covid", "EMP/H4", "mine/own")
    found = find_gue(tmp_path)
    names = ["EMP/H3", "EMP/H4", "prom/prom_core_all", "tf/0", "mouse/0", "virus/covid"]
    assert [task.name for task in found.found] == names
    assert len(found.missing) == 22
    assert not set(found.missing) & set(names)
    assert found.strangers == (tmp_path / "mine/own",)


def test_bad_roots(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        find_gue(tmp_path / "none")
    make(tmp_path, "EMP")
    with pytest.raises(InputError, match="none of GUE's 28 tasks"):
        find_gue(tmp_path)
    make(tmp_path, "tf/0", "tf_0")
    with pytest.raises(InputError, match="tf/0 twice"):
        find_gue(tmp_path)


def test_whole_groups_are_one_name():
    names = [task.name for task in GUE if task.name not in {"tf/3", "virus/covid"}]
    said = "EMP (all 10), prom (all 6), tf/0, tf/1, tf/2, tf/4, mouse (all 5), splice/reconstructed"
    assert shorten_names(names) == said

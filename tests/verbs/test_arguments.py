"""From Python the verbs take what the command line takes, and refuse the rest as it does."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import frugalfm
from frugalfm.errors import InputError
from frugalfm.verbs import with_paths


@with_paths
def verb(
    *inputs: Path,
    out: Path,
    base: Path | None = None,
    name: str = "x",
    how: Literal["head", "all"] = "head",
    steps: int | None = None,
    learning_rate: float = 0.1,
    alpha: float | Literal["search"] | None = None,
    targets: list[str] | None = None,
    compiled: bool = False,
):
    """Give back what it gets."""
    return locals()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("how", "heads", "--how must be head or all, not 'heads'"),
        ("how", None, "--how must be head or all, not None"),
        ("how", ["head"], r"--how must be head or all, not \['head'\]"),
        ("how", np.array(["head"]), "--how must be head or all"),
        ("out", None, "--out must be a path, not None"),
        ("base", 3, "--base must be a path, not 3"),
        ("name", None, "--name must be text, not None"),
        ("name", 0.1, "--name must be text, not 0.1"),
        ("steps", "4", "--steps must be a whole number, not '4'"),
        ("steps", 2.5, "--steps must be a whole number, not 2.5"),
        ("steps", True, "--steps must be a whole number, not True"),
        ("learning_rate", "1e-3", "--learning-rate must be a finite number, not '1e-3'"),
        ("learning_rate", float("nan"), "--learning-rate must be a finite number, not nan"),
        ("learning_rate", np.float32("inf"), "--learning-rate must be a finite number"),
        ("learning_rate", False, "--learning-rate must be a finite number, not False"),
        ("alpha", "find", "--alpha must be a finite number or search, not 'find'"),
        ("targets", 3.5, "--targets must be a list, each text, not 3.5"),
        ("targets", ["a", None], "--targets must be a list, each text"),
        ("compiled", "no", "--compiled must be True or False, not 'no'"),
        ("compiled", 1, "--compiled must be True or False, not 1"),
    ],
)
def test_what_an_option_cannot_be_is_refused(option, value, message):
    with pytest.raises(InputError, match=f"^{message}"):
        verb(**{"out": "o", option: value})


def test_inputs_that_are_no_paths_are_refused():
    with pytest.raises(InputError, match=r"^INPUTS must be a path, not 3"):
        verb("a.fa", 3, out="o")


def test_what_does_without_doubt_is_taken(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    found = verb(
        ["~/a.fa", Path("b.fa")],
        "c.fa",
        out="~/o",
        base=None,
        name=Path("model"),
        steps=np.int64(4),
        learning_rate=1,
        alpha=np.float64(0.5),
        targets=("q", "v"),
        compiled=np.True_,
    )
    assert found["inputs"] == (Path("/home/me/a.fa"), Path("b.fa"), Path("c.fa"))
    assert found["out"] == Path("/home/me/o")
    assert found["base"] is None
    assert found["name"] == "model"
    assert found["targets"] == ["q", "v"]
    kinds = {"steps": int, "learning_rate": float, "alpha": float, "compiled": bool}
    assert all(type(found[name]) is kind for name, kind in kinds.items())
    assert verb(out="~nobody-of-that-name/o", targets="q_proj")["targets"] == ["q_proj"]
    assert verb(out="o", alpha="search", name=100)["name"] == "100"


@pytest.mark.parametrize("name", frugalfm.VERBS)
def test_every_option_of_every_verb_is_checked(name):
    """Also that each type of an option is one that is known."""
    function = getattr(frugalfm, name)
    needed = {"alphabet": "rna", "attention": "sink", "strategy": "random", "steps": 1}
    options = {
        option: parameter
        for option, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.VAR_POSITIONAL
    }
    given = {k: needed.get(k, "x") for k, found in options.items() if found.default is found.empty}
    for option in options:
        with pytest.raises(InputError, match=f"^--{option.replace('_', '-')} must be "):
            function(**given | {option: object()})


def test_the_package_and_a_verb_import_nothing_for_it():
    code = (
        "import sys, frugalfm; frugalfm.tune\n"
        "sys.exit(', '.join({'numpy', 'torch', 'cyclopts'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

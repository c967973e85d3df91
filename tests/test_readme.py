"""The README's commands work as written, on small numbers; so do the report's, being the same."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import frugalfm
from frugalfm.cli import main
from frugalfm.reporting.html import COMMANDS

ROOT = Path(__file__).parents[1]


def shrink(words):
    """The same command, on a smaller model for fewer steps."""
    for i, word in enumerate(words[:-1]):
        if word in {"--steps", "--budget"}:
            words[i + 1] = "4" if word == "--steps" else "50%"
        if word == "--model" and words[i + 1].startswith("rna-fm"):
            words[i + 1] = "rna-fm-nano"
    return words


def test_quickstart_runs(tmp_path, monkeypatch):
    assert COMMANDS in (ROOT / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    draw = lambda n: "".join(random.choice(list("ACGU"), n))  # noqa: E731
    records = [f">s{i} of mine\n{draw(random.integers(20, 60))}\n" for i in range(300)]
    Path("my-sequences.fasta").write_text("".join(records))
    Path("my-task").mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"{draw(30)},{'ab'[i % 2]}\n" for i in range(20)]
        Path(f"my-task/{split}.csv").write_text("sequence,label\n" + "".join(rows))
    for line in COMMANDS.splitlines():
        program, *words = shlex.split(line)
        assert program == "frugalfm"
        assert main(shrink(words)) == 0, line
    for name in ("coreset", "model", "evaluation", "outliers", "quantized"):
        assert (tmp_path / name / "manifest.json").is_file()


def test_every_make_target_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake (\w+)", text)) <= targets
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_named_files_exist():
    for document in ("README.md", "docs/ARCHITECTURE.md", "CONTRIBUTING.md"):
        path = ROOT / document
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{document} links to {target}"


def test_version_is_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", frugalfm.__version__)
    for path in (ROOT / "pyproject.toml", ROOT / "CITATION.cff"):
        assert not re.search(r"^version\s*[:=]", path.read_text(), re.MULTILINE), path


@pytest.mark.parametrize("name", ["build", "score"])
def test_a_verb_is_a_function(name):
    assert getattr(frugalfm, name).__module__ == f"frugalfm.verbs.{name}"

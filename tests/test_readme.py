"""The README's commands work as written, on small numbers; so do the report's, being the same."""

import re
import shlex
from pathlib import Path

import numpy as np

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
    text = (ROOT / "README.md").read_text()
    section = text.partition("## Your own data")[2].partition("\n## ")[0]
    assert COMMANDS in section
    commands = re.findall("^frugalfm .*$", section, re.MULTILINE)
    assert len(commands) > len(COMMANDS.splitlines())
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    draw = lambda n: "".join(random.choice(list("ACGU"), n))  # noqa: E731
    records = [f">s{i} of mine\n{draw(random.integers(20, 60))}\n" for i in range(300)]
    Path("my-sequences.fasta").write_text("".join(records))
    Path("my-task").mkdir()
    for split in ("train", "dev", "test"):
        rows = [f"{draw(30)},{'ab'[i % 2]}\n" for i in range(60)]
        Path(f"my-task/{split}.csv").write_text("sequence,label\n" + "".join(rows))
    for line in commands:
        program, *words = shlex.split(line)
        assert program == "frugalfm"
        assert main(shrink(words)) == 0, line
    for name in ("coreset", "model", "evaluation", "outliers", "quantized", "laptop"):
        assert (tmp_path / name / "manifest.json").is_file()
    assert (tmp_path / "predictions.parquet").is_file()


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


def test_every_tutorial_and_result_is_linked():
    linked = re.findall(r"\]\((docs/[^)#]+)\)", (ROOT / "README.md").read_text())
    for folder in ("tutorials", "results"):
        for page in (ROOT / "docs" / folder).glob("*.md"):
            assert str(page.relative_to(ROOT)) in linked, f"the README does not name {page.name}"


def test_version_is_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", frugalfm.__version__)
    for path in (ROOT / "pyproject.toml", ROOT / "CITATION.cff"):
        assert not re.search(r"^version\s*[:=]", path.read_text(), re.MULTILINE), path


def test_verbs_are_functions_that_take_strings(tmp_path, monkeypatch):
    """As the README shows them; ~ is the home folder in them too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = "".join(f">s{i}\n{'ACGU' * (5 + i)}\n" for i in range(60))
    Path("x.fasta").write_text(rows)
    Path("task").mkdir()
    for split, shift in (("train", 0), ("dev", 20), ("test", 40)):
        lines = [f"{'ACGGU' * (2 + shift + i)},{'ab'[i % 2]}\n" for i in range(20)]
        Path(f"task/{split}.csv").write_text("sequence,label\n" + "".join(lines))
    frugalfm.build("~/x.fasta", alphabet="rna", out="~/pool")
    frugalfm.pretrain("pool", model="rna-fm-nano", steps=2, out="model", batch_tokens=500)
    frugalfm.score("pool", model="model", out="scores", subset=10)
    frugalfm.select("scores", budget="30%", strategy="coverage", out="coreset")
    frugalfm.pretrain("coreset", model="model", steps=2, out="more", batch_tokens=500)
    frugalfm.embed("model", "x.fasta", out="~/x.parquet")
    frugalfm.evaluate("model", task="task", out="evaluation")
    frugalfm.outliers("model", data="x.fasta", out="outliers")
    frugalfm.quantize("model", data="x.fasta", out="quantized", calibration_batches=4)
    assert not Path("~").exists()
    assert Path("x.parquet").is_file()

"""The command line: light, complete, with errors a user can act on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import frugalfm
from frugalfm.cli import main

SOURCE = Path(frugalfm.__file__).parent
HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "pyarrow",
    "duckdb",
    "sklearn",
    "scipy",
    "matplotlib",
    "dnaio",
}


WORDS = [verb.replace("_", "-") for verb in frugalfm.VERBS]


@pytest.mark.parametrize("verb", ["", *WORDS])
def test_help_imports_nothing_heavy(verb):
    """What keeps `--help` under 0.3 s."""
    code = (
        "import sys; from frugalfm.cli import main\n"
        f"status = main({[verb, '--help'] if verb else ['--help']!r})\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), status, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[] 0"
    assert ("Usage: frugalfm " + verb).strip() in done.stdout


def test_every_verb_and_option_is_explained(capsys):
    main(["--help"])
    overview = capsys.readouterr().out
    for verb in frugalfm.VERBS:
        assert f" {verb.replace('_', '-')} " in overview
        function = getattr(frugalfm, verb)
        options = set(function.__annotations__) - {"return"}
        text = function.__doc__
        for option in options:
            assert f"\n    {option}\n" in text, f"{verb}: {option} has no help"


def test_no_verb_shows_the_overview(capsys):
    assert main([]) == 0
    assert "pretrain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "nowhere.fasta", "--alphabet", "rna", "--out", "OUT"], "nowhere.fasta"),
        (["pretrain", "nowhere", "--model", "rna-fm", "--steps", "1", "--out", "OUT"], "nowhere"),
        (["pretrain", "nowhere", "--model", "rna-fm-tiny", "--out", "OUT"], "--steps or --epochs"),
        (["pretrain", "x", "--model", "y", "--steps", "0", "--out", "OUT"], "--steps must be pos"),
        (["pretrain", "x", "--model", "y", "--steps", "1", "--weight-decay", "-1", "--out", "OUT"],
         "--weight-decay must be at least 0"),
        (["pretrain", "x", "--model", "y", "--steps", "1", "--flatten", "nan", "--out", "OUT"],
         "--flatten must be a finite number, not nan"),
        (["convert", "x", "--attention", "sink", "--data", "y", "--steps", "1",
          "--weight-decay", "inf", "--out", "OUT"], "--weight-decay must be a finite number"),
        (["convert", "x", "--attention", "sink", "--data", "y", "--steps", "1",
          "--flatten", "-0.1", "--out", "OUT"], "--flatten must be at least 0"),
        (["tune", "x", "--task", "y", "--weight-decay", "-1", "--out", "OUT"], "--weight-decay"),
        (["tune", "x", "--task", "y", "--targets", "q", "v", "--out", "OUT"], "x: no such"),
        (["score", "nowhere", "--model", "m", "--out", "OUT"], "nowhere"),
        (["score", "x", "--model", "m", "--out", "OUT", "--passes", "9"], "--mask-groups 7"),
        (["score", "x", "--model", "m", "--out", "OUT", "--seed", "-1"], "--seed"),
        (["select", "nowhere", "--budget=1%", "--strategy=random", "--out", "OUT"], "nowhere"),
        (["embed", "nowhere", "x.fasta", "--out", "OUT.parquet"], "nowhere"),
        (["predict", "nowhere", "x.fasta", "--out", "OUT.csv"], "nowhere"),
        (["evaluate", "nowhere", "--task", "x", "--out", "OUT"], "nowhere"),
        (["outliers", "nowhere", "--data", "x", "--out", "OUT"], "nowhere"),
        (["quantize", "nowhere", "--data", "x", "--out", "OUT"], "nowhere"),
        (["tune", "nowhere", "--task", "x", "--method", "lora", "--out", "OUT"], "nowhere"),
        (["import-checkpoint", "nowhere", "--out", "OUT"], "nowhere"),
        (["demo", "--steps", "0", "--out", "OUT"], "--steps must be positive"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("OUT", "out") for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [["nonsense"], ["build", "x", "--alphabet", "klingon", "--out", "o"]]
)
def test_bad_words_are_status_2(words):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2


def test_an_option_that_is_left_out_is_called_required(capsys):
    for words, message in (
        (["build", "x.fa", "--out", "o"], "--alphabet is required"),
        (["build", "x.fa", "--out", "o", "--alphabet"], "--alphabet requires an argument"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_help_shows_no_option_that_does_nothing(capsys):
    main(["tune", "--help"])
    shown = capsys.readouterr().out
    assert "--targets" in shown
    assert "--empty" not in shown


def test_traceback_on_request(tmp_path):
    from frugalfm.errors import InputError

    words = ["score", str(tmp_path / "x"), "--model", "m", "--out", "o", "--traceback"]
    with pytest.raises(InputError):
        main(words)


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(*, out: Path) -> Path:
        """Wait."""
        raise KeyboardInterrupt

    monkeypatch.setattr("frugalfm.cli.VERBS", ("demo",))
    monkeypatch.setattr(frugalfm, "demo", interrupted, raising=False)
    assert main(["demo", "--out", "x"]) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_a_bug_is_reported_as_one(monkeypatch, capsys):
    def broken(*, out: Path) -> Path:
        """Break."""
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("frugalfm.cli.VERBS", ("demo",))
    monkeypatch.setattr(frugalfm, "demo", broken, raising=False)
    assert main(["demo", "--out", "x"]) == 1
    assert "internal error: ZeroDivisionError: oops" in capsys.readouterr().err


ORDER = [
    "errors", "destinations", "artifacts", "progress", "sequences", "coreset", "tokens",
    "attention", "encoders", "tasks", "probing", "training", "influence", "quantization",
    "deployment", "suites", "reporting", "verbs", "cli",
]  # fmt: skip


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("frugalfm."):
            yield node.module.split(".")[1:]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1:] for a in node.names if a.name.startswith("frugalfm."))


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=str)
def test_imports_run_downward(path):
    """The house's order; verbs never import each other, but for the demo, which composes them."""
    place = path.relative_to(SOURCE).parts
    room = place[0].removesuffix(".py")
    if room not in ORDER:
        return
    for module in imports_of(path):
        if module[0] == room == "verbs":
            assert module == ["verbs"] or path.stem == "demo", f"{path} imports another verb"
        elif module[0] != room:
            assert ORDER.index(module[0]) < ORDER.index(room), f"{path} imports {module}"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=str)
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) < 400

import json
import subprocess
import sys

import pytest

import frugalfm
from frugalfm.cli import main
from frugalfm.errors import InputError


@pytest.fixture
def sample(tmp_path):
    path = tmp_path / "sample.fasta"
    path.write_text(">a x\nacgt\n>b\nACGU\n>a\nGGGG\n>c\nNNNN\n")
    return path


def test_command_line(sample, tmp_path, capsys):
    out = tmp_path / "shards"
    assert main(["build", str(sample), "--alphabet", "rna", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("4 records read", "1 rows dropped: duplicates", "1 rows renamed", "3 rows kept"):
        assert words in printed
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["config"]["alphabet"] == "rna"
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "part-00000.parquet"]


def test_bad_input_is_status_2(tmp_path, capsys):
    path = tmp_path / "bad.fa"
    path.write_text(">a\nAC!\n")
    out = tmp_path / "shards"
    assert main(["build", str(path), "--alphabet", "rna", "--out", str(out)]) == 2
    assert "line 2, column 3" in capsys.readouterr().err
    assert not out.exists()


def test_the_same_call_is_skipped_and_another_refused(sample, tmp_path, capsys):
    out = tmp_path / "shards"
    frugalfm.build(sample, alphabet="rna", out=out)
    before = (out / "manifest.json").stat().st_mtime_ns
    assert frugalfm.build(sample, alphabet="rna", out=out) == out
    assert "already built" in capsys.readouterr().out
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="--overwrite"):
        frugalfm.build(sample, alphabet="rna", out=out, duplicates="keep")
    frugalfm.build(sample, alphabet="rna", out=out, duplicates="keep", overwrite=True)
    assert json.loads((out / "manifest.json").read_text())["summary"]["n_sequences"] == 4


def test_all_inputs_are_checked_before_any_is_read(sample, tmp_path):
    with pytest.raises(InputError, match="no input"):
        frugalfm.build(alphabet="rna", out=tmp_path / "out")
    sample.write_text("not FASTA")  # would be refused too, were it read
    with pytest.raises(InputError, match=r"missing\.fa: no such file"):
        frugalfm.build(sample, tmp_path / "missing.fa", alphabet="rna", out=tmp_path / "out")
    assert not list(tmp_path.glob(".out*"))


def test_rows_that_are_named_after_their_file_are_others_under_another_name(tmp_path):
    (tmp_path / "one.csv").write_text("sequence\nACGU\n")
    out = frugalfm.build(tmp_path / "one.csv", alphabet="rna", out=tmp_path / "shards")
    moved = (tmp_path / "one.csv").rename(tmp_path / "two.csv")
    with pytest.raises(InputError, match="not made by this call"):
        frugalfm.build(moved, alphabet="rna", out=out)
    moved.write_text("id,sequence\na,ACGU\n")
    frugalfm.build([moved], alphabet="rna", out=out, overwrite=True)  # a list is several, too
    frugalfm.build(moved.rename(tmp_path / "one.csv"), alphabet="rna", out=out)


def test_shards_are_input_too(sample, tmp_path):
    first = frugalfm.build(sample, alphabet="rna", out=tmp_path / "first")
    again = frugalfm.build(first, alphabet="rna", out=tmp_path / "again")
    part = "part-00000.parquet"
    assert (first / part).read_bytes() == (again / part).read_bytes()
    with pytest.raises(InputError, match="use --alphabet rna"):
        frugalfm.build(first, alphabet="protein", out=tmp_path / "other")


def test_the_verb_imports_nothing_heavy():
    code = (
        "import sys, frugalfm.verbs.build\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'duckdb', 'dnaio', 'transformers'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_room_imports_no_torch():
    code = (
        "import sys, frugalfm.sequences.building\n"
        "sys.exit('torch' in sys.modules and 'torch was imported')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

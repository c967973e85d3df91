"""Users' own files: other columns and formats, letters of another alphabet, unknown ones."""

import json
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from predict_models import FAST, Models, run, write_fasta
from scipy.spatial.distance import squareform

from frugalfm.artifacts import read_manifest
from frugalfm.cli import main
from frugalfm.encoders import save_encoder
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.dnabert2.modeling import DnaBert2ForMaskedLM
from frugalfm.errors import FrugalWarning, InputError
from frugalfm.training.tuned import load_tuned
from frugalfm.verbs.build import build
from frugalfm.verbs.embed import embed
from frugalfm.verbs.evaluate import evaluate
from frugalfm.verbs.outliers import outliers
from frugalfm.verbs.quantize import quantize
from frugalfm.verbs.tune import tune

sys.path.append(str(Path(__file__).parents[1] / "encoders"))
from dnabert2_oracle import make_dna_tokenizer


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def dna(tmp_path_factory):
    """A model with tokens of several residues."""
    folder = tmp_path_factory.mktemp("dna") / "model"
    tokenizer = make_dna_tokenizer()
    torch.manual_seed(0)
    config = DnaBert2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    save_encoder(DnaBert2ForMaskedLM(config), tokenizer, folder)
    return folder


def table(rows=60, columns="rna,family"):
    random = np.random.default_rng(0)
    lines = [columns]
    for index in range(rows):
        letter = "AG"[index % 2]
        lines.append("".join(random.choice([letter] * 5 + list("CU"), 14)) + f",{letter}")
    return "\n".join(lines) + "\n"


def test_no_remedy_is_an_option_of_another_verb(tuned, tmp_path):
    """What a model reads decides the alphabet in all of these."""
    protein = tmp_path / "p.fa"
    protein.write_text("".join(f">{i}\nMKLVAAGGHILKDE\n" for i in range(40)))
    task = tmp_path / "task"
    task.mkdir()
    for name in ("train", "dev", "test"):
        (task / f"{name}.csv").write_text("sequence,label\nMKLV,0\nAKLV,1\n")
    out, model = tmp_path / "out", tuned.checkpoint
    for call in (
        lambda: embed(model, protein, out=tmp_path / "e.parquet"),
        lambda: outliers(model, data=protein, out=out),
        lambda: quantize(model, data=protein, out=out, device="cpu"),
        lambda: run(tuned()[0], protein, tmp_path / "p.parquet"),
        lambda: evaluate(model, task=task, out=out),
        lambda: tune(model, task=task, out=out),
    ):
        with pytest.raises(InputError, match=r"take a model for them \(this one reads rna\)") as e:
            call()
        assert "--alphabet" not in str(e.value)


def test_shards_of_the_other_nucleotides(tuned, tmp_path):
    """DNA shards are read as DNA files are: with the model's own letter for T."""
    fasta = write_fasta(tmp_path / "in.fa", 30)
    build(fasta, alphabet="dna", out=tmp_path / "dna", duplicates="keep")
    one, two = (
        pq.read_table(run(tuned()[0], path, tmp_path / f"{path.name}.parquet"))
        for path in (fasta, tmp_path / "dna")
    )
    assert one.equals(two)


def test_one_table_with_other_columns(tuned, tmp_path, capsys):
    path = tmp_path / "families.csv"
    path.write_text(table())
    options = {
        "task": path, "sequence_column": "rna", "label_column": "family", "dev_share": 0.2,
        "test_share": 0.3, "device": "cpu",
    }  # fmt: skip
    found = [
        evaluate(tuned.checkpoint, out=tmp_path / "probe", **options),
        tune(tuned.checkpoint, out=tmp_path / "t", method="full", **{**FAST, **options}),
    ]
    assert capsys.readouterr().out.count("dev and test held out of train by a hash") == 2
    rows = [pq.read_table(out / "predictions.parquet")["row"].to_pylist() for out in found]
    assert rows[0] == rows[1]
    for out in found:
        metrics = json.loads((out / "metrics.json").read_text())
        assert sum(metrics["n"].values()) == 60
        assert metrics["held_out"] == ["dev", "test"]
        assert read_manifest(out)["config"]["label_column"] == "family"
    # The same rows get the same predictions from the whole table.
    predicted = pq.read_table(
        run(found[1], path, tmp_path / "p.parquet", sequence_column="rna")
    ).to_pydict()
    expected = pq.read_table(found[1] / "predictions.parquet")
    assert [predicted["label"][row] for row in rows[1]] == expected["prediction"].to_pylist()
    with pytest.raises(InputError, match="--overwrite"):
        evaluate(tuned.checkpoint, out=tmp_path / "probe", **{**options, "dev_share": 0.1})
    with pytest.raises(InputError, match="--label-column goes with --task only"):
        evaluate(tuned.checkpoint, suite="gue", root=tmp_path, out=tmp_path / "s",
                 label_column="family")  # fmt: skip


def test_another_column_holds_the_sequences(tuned, tmp_path):
    """Whatever a table's column is called, results are those of the file with our name."""
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    ours.write_text(table(columns="sequence,family"))
    theirs.write_text(table())
    model = tuned.checkpoint
    for verb, more, results in (
        (outliers, {"limit": 9}, ["outliers.json", "outliers.parquet"]),
        (quantize, {"calibration_batches": 2, "limit": 9}, ["scheme.json", "scheme.safetensors"]),
    ):
        found = []
        for path, column in ((ours, None), (theirs, "rna")):
            out = tmp_path / f"{verb.__name__}-{path.stem}"
            verb(model, data=path, out=out, sequence_column=column, device="cpu", **more)
            found.append([(out / name).read_bytes() for name in results])
        assert found[0] == found[1]
        assert read_manifest(out)["config"]["sequence_column"] == "rna"
    embeddings = [
        pq.read_table(embed(model, path, out=tmp_path / f"{path.stem}.parquet", **more))
        for path, more in ((ours, {}), (theirs, {"sequence_column": "rna"}))
    ]
    assert embeddings[0]["embedding"].equals(embeddings[1]["embedding"])  # ids name the files
    with pytest.raises(InputError, match="name the right one with --sequence-column"):
        embed(model, theirs, out=tmp_path / "no.parquet")


def test_shards_have_no_other_column(tuned, tmp_path):
    shards = build(write_fasta(tmp_path / "in.fa", 8), alphabet="rna", out=tmp_path / "shards")
    with pytest.raises(InputError, match="leave out --sequence-column"):
        embed(tuned.checkpoint, shards, out=tmp_path / "e.parquet", sequence_column="rna")
    # Beside a table they may be built again: the option is the table's.
    (tmp_path / "t.csv").write_text(table())
    both = build(shards, tmp_path / "t.csv", alphabet="rna", sequence_column="rna",
                 out=tmp_path / "both")  # fmt: skip
    assert len(pq.read_table(both / "part-00000.parquet")) == 68
    with pytest.raises(InputError, match="it out"):
        quantize(tuned()[0], task=tmp_path, out=tmp_path / "q", sequence_column="rna")


def test_lines_are_predicted_as_tables_are(tuned, tmp_path):
    model, _ = tuned()
    rows = [line.split(",") for line in table(20).splitlines()[1:]]
    (tmp_path / "a.csv").write_text("id,sequence\n" + "".join(f"{y}{x},{x}\n" for x, y in rows))
    lines = "".join(json.dumps({"sequence": x, "id": y + x}) + "\n" for x, y in rows)
    (tmp_path / "a.jsonl").write_text(lines)
    one, two = (
        pq.read_table(run(model, tmp_path / name, tmp_path / f"{name}.parquet"))
        for name in ("a.csv", "a.jsonl")
    )
    assert one.equals(two)
    (tmp_path / "bad.jsonl").write_text(lines + '{"sequence": "AC"\n')
    with pytest.raises(InputError, match=r"bad\.jsonl, line 21: is no JSON"):
        run(model, tmp_path / "bad.jsonl", tmp_path / "p.parquet")


def test_pairs_by_other_names(tuned, tmp_path):
    model, test = tuned("interaction")
    other = tmp_path / "test.csv"
    other.write_text(test.read_text().replace("sequence_a,sequence_b", "protein_a,protein_b"))
    one, two = (pq.read_table(run(model, path, tmp_path / f"{i}.parquet"))
                for i, path in enumerate((test, other)))  # fmt: skip
    assert one.equals(two)
    with pytest.raises(InputError, match="is for models of single sequences"):
        run(model, test, tmp_path / "x.parquet", sequence_column="sequence_a")
    other.write_text("one,two\nAC,GU\n")
    with pytest.raises(InputError, match=r"sequence_a and sequence_b.*There are: one, two"):
        run(model, other, tmp_path / "x.parquet")


def test_distances_are_the_models(tuned, tmp_path):
    model, test = tuned("distance")
    found = pq.read_table(run(model, test, tmp_path / "p.parquet"))["distances"]
    loaded, tokenizer = load_tuned(model)
    texts = [line.split(",")[0] for line in test.read_text().splitlines()[1:]]
    for values, text in zip(found, texts, strict=True):
        with torch.no_grad():
            expected = loaded(**tokenizer(text, return_tensors="pt")).logits[0, 1:-1, 1:-1]
        matrix = squareform(np.array(values.as_py(), np.float32))
        off = ~np.eye(len(text), dtype=bool)
        np.testing.assert_allclose(matrix[off], expected.numpy()[off], atol=1e-4)
    (tmp_path / "one.fa").write_text(">a\nA\n>b\nAC\n")
    found = pq.read_table(run(model, tmp_path / "one.fa", tmp_path / "q.parquet"))["distances"]
    assert [len(values) for values in found.to_pylist()] == [0, 1]


def test_byte_pairs_are_not_told_of_residues(dna, tmp_path):
    task = tmp_path / "task"
    task.mkdir()
    for name in ("train", "dev", "test"):
        text = table(24, "sequence,label").replace("U", "T")
        (task / f"{name}.csv").write_text(text)
    model = tune(dna, task=task, out=tmp_path / "t", method="full", max_tokens=8, **FAST)
    with pytest.raises(InputError, match=r"tuned on at most 6; --too-long crop") as error:
        run(model, task / "test.csv", tmp_path / "p.parquet")
    assert "--max-length" not in str(error.value)


def test_unknown_letters_are_one_line_on_stderr(dna, tmp_path, capsys):
    path = tmp_path / "n.fa"
    path.write_text("".join(f">{i}\n{'ACGNN' * 20}\n" for i in range(40)))
    out = tmp_path / "e.parquet"
    assert main(["embed", str(dna), str(path), "--out", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    (line,) = [line for line in said.splitlines() if "unknown to the tokenizer" in line]
    assert re.match(r"warning: \d+\.\d% of the first [\d,]+ tokens are unknown", line)
    assert ".py" not in said
    out.unlink()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        embed(dna, path, out=out, device="cpu")
    (warning,) = [one for one in found if one.category is FrugalWarning]
    # The line of the caller, not one of ours.
    assert Path(warning.filename) == Path(__file__)

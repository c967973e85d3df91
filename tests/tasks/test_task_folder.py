"""Task folders: every format, every check, file and line in every message."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frugalfm.errors import InputError
from frugalfm.tasks import read_task

CLASSES = {
    "train": "sequence,label\nACGU,a\nGGGU,b\nAAAA,a\n",
    "dev": "sequence,label\nCCGU,b\n",
    "test": "sequence,label\nUUGU,a\nUUUU,b\n",
}
TOKENS = {
    "train": "sequence,structure,family\nACGUA,(...),x\nGGGUC,.[.]a,y\n",
    "dev": "sequence,structure,family\nCCGU,(())\n".replace("(())\n", "(()),z\n"),
    "test": "sequence,structure,family\nUUGU,A..a,x\n",
}


@pytest.fixture
def make(tmp_path):
    def write(files, **changes):
        for name, text in (files | changes).items():
            (tmp_path / f"{name}.csv").write_text(text)
        return tmp_path

    return write


def test_classes(make):
    task = read_task(make(CLASSES), "rna")
    assert (task.kind, task.classes) == ("classification", ("a", "b"))
    assert task.train.targets.tolist() == [0, 1, 0]
    assert task.test.sequences.to_pylist() == ["UUGU", "UUUU"]
    assert task.test.lengths.tolist() == [4, 4]
    assert task.reason == "labels are names"


def test_letters_are_normalised_and_other_columns_ignored(make):
    task = read_task(
        make(CLASSES, test="gene,label,sequence\nx,a,ttgu\ny,b,UuUt\n"),
        "rna",
    )
    assert task.test.sequences.to_pylist() == ["UUGU", "UUUU"]


def test_every_format(tmp_path, make):
    expected = read_task(make(CLASSES), "rna")
    other = tmp_path / "other"
    other.mkdir()
    (other / "train.csv.gz").write_bytes(gzip.compress(CLASSES["train"].encode()))
    (other / "dev.tsv").write_text(CLASSES["dev"].replace(",", "\t"))
    table = pa.table(
        {"sequence": ["UUGU", "UUUU"], "label": pa.array(["a", "b"]).dictionary_encode()}
    )
    pq.write_table(table, other / "test.parquet")
    found = read_task(other, "rna")
    for name, split in found.splits.items():
        assert split.sequences == expected.splits[name].sequences
        assert split.targets.tolist() == expected.splits[name].targets.tolist()


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["x", "y"], "classification"),
        (["0", "1"], "classification"),
        (["0.0", "1.0"], "classification"),
        (["0.5", "1"], "regression"),
        (["1e-3", "-2"], "regression"),
        ([str(i) for i in range(60)], "regression"),
        ([str(i) for i in range(50)], "classification"),
    ],
)
def test_kind_is_inferred(make, labels, kind):
    rows = "".join(f"ACGU,{label}\n" for label in labels)
    files = dict.fromkeys(("train", "dev", "test"), f"sequence,label\n{rows}")
    task = read_task(make(files), "rna")
    assert task.kind == kind
    if kind == "classification" and labels[0].isdigit():
        assert task.classes == tuple(labels)  # in the order of the numbers, not of the letters


def test_kind_can_be_asked_for(make):
    files = dict.fromkeys(("train", "dev", "test"), "sequence,label\nA,0\nC,1\n")
    task = read_task(make(files), "rna", kind="regression")
    assert task.train.targets.tolist() == [0.0, 1.0]
    assert task.classes == ()
    assert task.reason == "as asked for"


def test_whole_numbers_are_spelled_alike(make):
    files = {
        "train": "sequence,label\nA,0.0\nC,1.0\n",
        "dev": "sequence,label\nA,1\n",
        "test": "sequence,label\nA,0\n",
    }
    task = read_task(make(files), "rna")
    assert task.classes == ("0.0", "1.0")  # as training spells them
    assert task.dev.targets.tolist() == [1]
    assert task.dev.texts.to_pylist() == ["1.0"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["1_1", "1_2", "11"], ("11", "1_1", "1_2")),
        (["007", "7", "08"], ("007", "7", "08")),
        (["10", "1e1", "2"], ("2", "10", "1e1")),
        ([str(2**53), str(2**53 + 1)], (str(2**53), str(2**53 + 1))),
        ([str(10**20), str(10**20 + 1)], (str(10**20), str(10**20 + 1))),
        (["1.0", "1.00", "1"], ("1", "1.0", "1.00")),
        (["١", "1"], ("1", "١")),  # digits of another script
        (["1.0", "1", "-1"], ("-1", "1")),
        (["-1.0", "+1"], ("-1.0", "+1")),
    ],
)
def test_names_stay_apart_though_they_may_be_read_as_numbers(make, labels, classes):
    rows = "".join(f"ACGU,{label}\n" for label in labels)
    files = dict.fromkeys(("train", "dev", "test"), f"sequence,label\n{rows}")
    task = read_task(make(files), "rna", kind="classification")
    assert task.classes == classes
    assert set(task.train.texts.to_pylist()) == set(classes) <= set(labels)


@pytest.mark.parametrize("spell", ["1_{}", "{:04}"])
def test_many_names_are_no_numbers(make, spell):
    rows = "".join(f"ACGU,{spell.format(i)}\n" for i in range(60))
    task = read_task(
        make(dict.fromkeys(("train", "dev", "test"), f"sequence,label\n{rows}")), "rna"
    )
    assert (task.kind, len(task.classes)) == ("classification", 60)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"test": "sequence,label\nA,3\n"}, "auto", "some to training, or say --kind regression$"),
        ({"test": "sequence,label\nA,x\n"}, "classification", "some to training$"),
        ({"dev": "sequence,label\nA,nan\n"}, "regression", "finite number; take the row out$"),
        ({"dev": "sequence,label\nA,NA\n"}, "regression", "finite number; take the row out$"),
        ({"dev": "sequence,label\nA,1_1\n"}, "regression", "say --kind classification"),
        ({"train": "sequence,label\nA,1\nC,2.5\nG,nan\n"}, "auto", "most are; take the row out$"),
    ],
)
def test_labels_that_do_not_fit_come_with_a_remedy(make, changes, kind, message):
    files = dict.fromkeys(("train", "dev", "test"), "sequence,label\nA,1\nC,2\n")
    with pytest.raises(InputError, match=message):
        read_task(make(files, **changes), "rna", kind=kind)


def test_dot_bracket_notation(make):
    task = read_task(make(TOKENS), "rna")
    assert (task.kind, task.classes) == ("token", ("(", ")", "."))
    assert task.train.texts.to_pylist() == ["(...)", ".(.))"]
    assert task.train.targets.tolist() == [0, 2, 2, 2, 1, 2, 0, 2, 1, 1]
    assert task.test.texts.to_pylist() == ["(..)"]


def test_other_residue_labels_are_their_own_classes(make):
    rows = "sequence,structure\nACGU,HHEC\n"
    task = read_task(make(dict.fromkeys(("train", "dev", "test"), rows)), "rna")
    assert task.classes == ("C", "E", "H")
    assert task.train.targets.tolist() == [2, 2, 1, 0]


def test_long_sequences_are_cropped_with_their_labels(make):
    folder = make(TOKENS)
    task = read_task(folder, "rna", max_residues=4)
    assert task.cropped == {"train": 2, "dev": 0, "test": 0}
    assert task.train.sequences.to_pylist() == ["ACGU", "GGGU"]
    assert task.train.texts.to_pylist() == ["(...", ".(.)"]
    assert task.train.targets.tolist() == [0, 2, 2, 2, 2, 0, 2, 1]
    with pytest.raises(InputError, match=r"train\.csv, line 2: 5 residues.*at most 4"):
        read_task(folder, "rna", max_residues=4, too_long="error")


def test_repeats_are_counted_dropped_or_refused(make):
    files = {
        "train": "sequence,label\nACGU,a\nACGT,a\nGGGG,b\n",
        "dev": "sequence,label\nacgu,a\nCCCC,b\n",
        "test": "sequence,label\nGGGG,b\nCCCC,b\nUUUU,a\nUUUU,a\n",
    }
    task = read_task(make(files), "rna")
    assert task.repeats == {
        "duplicates_in_train": 1,
        "duplicates_in_dev": 0,
        "duplicates_in_test": 1,
        "dev_in_train": 1,
        "test_in_train": 1,
        "test_in_dev": 1,
    }
    assert len(task.test) == 4
    dropped = read_task(make(files), "rna", leaks="drop")
    assert dropped.dropped == {"train": 0, "dev": 1, "test": 2}
    assert dropped.test.sequences.to_pylist() == ["UUUU", "UUUU"]
    assert dropped.test.rows.tolist() == [2, 3]
    assert dropped.test.where(0).endswith("test.csv, line 4")
    with pytest.raises(InputError, match="1 dev in train, 1 test in train, 1 test in dev"):
        read_task(make(files), "rna", leaks="error")


def test_what_is_alike_once_cropped_is_a_leak(make):
    folder = make({"train": "sequence,label\nACGUA,a\nCC,b\n",
                   "dev": "sequence,label\nUUU,a\n",
                   "test": "sequence,label\nACGUU,a\nACGU,b\nGG,b\n"})  # fmt: skip
    assert read_task(folder, "rna").repeats["test_in_train"] == 0
    cropped = read_task(folder, "rna", max_residues=4)
    assert (cropped.repeats["test_in_train"], cropped.repeats["duplicates_in_test"]) == (2, 1)
    dropped = read_task(folder, "rna", max_residues=4, leaks="drop")
    assert dropped.test.sequences.to_pylist() == ["GG"]
    with pytest.raises(InputError, match="2 test in train"):
        read_task(folder, "rna", max_residues=4, leaks="error")


def test_dropping_everything_is_refused(make):
    rows = "sequence,label\nA,a\nC,b\n"
    with pytest.raises(InputError, match=r"dev\.csv: every sequence"):
        read_task(make(dict.fromkeys(("train", "dev", "test"), rows)), "rna", leaks="drop")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "sequence,family\nA,a\n"}, r"test\.csv: has no column 'label'.*family"),
        ({"dev": "seq,label\nA,a\n"}, r"dev\.csv: has no column 'sequence'"),
        (
            {"train": "sequence_a,sequence_b,label\nA,C,1\n"},
            r"dev\.csv: has no column .sequence_a.",
        ),
        ({"train": ""}, r"train\.csv: is empty"),
        ({"dev": "sequence,label\n"}, r"dev\.csv: holds no rows"),
        ({"dev": "sequence,label\nAC!U,a\n"}, r"dev\.csv, line 2, letter 3.*'!'"),
        ({"dev": "sequence,label\nA-U,a\n"}, r"dev\.csv, line 2, letter 2.*'-'"),
        ({"dev": "sequence,label\n,a\n"}, r"dev\.csv, line 2: the sequence is empty"),
        ({"test": "sequence,label\nA,a\nC,\n"}, r"test\.csv, line 3: the label is empty"),
        ({"test": "sequence,label\nA,a\nC\n"}, r"test\.csv, line 3: has 1 fields"),
        ({"test": "sequence,label\nA,a\nC,z\n"}, r"test\.csv, line 3: label 'z' does not occur"),
        ({"train": "sequence,label\nA,a\nC,a\n"}, r"train\.csv: all labels are the same"),
        ({"train": "sequence,label\nA,1\nC,2.5\nG,x\n"}, r"train\.csv, line 4: label 'x'"),
        ({"train": "sequence,label,structure\nA,1,.\n"}, r"choose with --kind"),
        ({"train": "sequence,label\nA,1.5\nC,2\n"}, r"dev\.csv, line 2: label 'b' is no finite"),
        ({"train": "sequence,label\nA,1.5\nC,inf\n"}, r"train\.csv, line 3: label 'inf'"),
        ({"train": "sequence,sequence,label\nA,C,1\n"}, r"two columns 'sequence'"),
    ],
)
def test_bad_tasks_are_refused(make, changes, message):
    with pytest.raises(InputError, match=message):
        read_task(make(CLASSES, **changes), "rna")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": "sequence,structure\nUUGU,(..)\nUU,...\n"}, r"line 3: 2 residues but 3 labels"),
        ({"test": "sequence,structure\nUUGU,(.1)\n"}, r"line 2: label '1' of residue 3 is no dot"),
        ({"train": "sequence,structure\nUUGU,(..1\n"}, r"line 2: label '1' of residue 4 is no dot"),
        (
            {"train": "sequence,structure\nUUGU,HHHE\n"},
            r"dev\.csv, line 2: label '\(' of residue 1",
        ),
        ({"train": "sequence,structure\nUUGU,....\n"}, r"all labels are the same"),
        ({"test": "sequence,structure\nUUG,.é.\n"}, r"line 2: labels of residues must be ASCII"),
    ],
)
def test_bad_residue_labels_are_refused(make, changes, message):
    with pytest.raises(InputError, match=message):
        read_task(make(TOKENS, **changes), "rna")


def test_missing_ambiguous_and_foreign_folders(tmp_path, make):
    with pytest.raises(InputError, match="no such folder"):
        read_task(tmp_path / "none", "rna")
    folder = make(CLASSES)
    (folder / "dev.tsv").write_text("sequence\tlabel\nA\ta\n")
    with pytest.raises(InputError, match=r"both dev\.csv and dev\.tsv"):
        read_task(folder, "rna")
    (folder / "dev.tsv").unlink()
    (folder / "dev.csv").unlink()
    with pytest.raises(InputError, match="no dev file"):
        read_task(folder, "rna")
    (folder / "dataset_dict.json").write_text("{}")
    with pytest.raises(InputError, match="Hugging Face"):
        read_task(folder, "rna")


def test_truncated_gzip_is_refused(make):
    folder = make(CLASSES)
    (folder / "test.csv").unlink()
    rows = "".join(f"{'ACGU' * (i % 97)}A,a\n" for i in range(5000))
    whole = gzip.compress(f"sequence,label\n{rows}".encode())
    for size in (12, len(whole) // 2):
        (folder / "test.csv.gz").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"test\.csv\.gz"):
            read_task(folder, "rna")


def test_damaged_gzip_and_open_quotes_are_refused(make):
    folder = make(CLASSES)
    (folder / "test.csv").unlink()
    rows = "".join(f"{'ACGU' * (i % 97)}A,a\n" for i in range(5000))
    whole = gzip.compress(f"sequence,label\n{rows}".encode())
    half = len(whole) // 2
    for damaged in (
        whole[:half] + bytes([whole[half] ^ 16]) + whole[half + 1 :],
        whole[:14] + bytes([whole[14] ^ 16]) + whole[15:],
    ):
        (folder / "test.csv.gz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"test\.csv\.gz: cannot be read"):
            read_task(folder, "rna")
    text = 'sequence,label\nACGU,a\nGGGU,"b\nAAAA,a\n'
    (folder / "test.csv.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(InputError, match=r"test\.csv\.gz, line 3: a quote is opened"):
        read_task(folder, "rna")


def test_parquet_labels_of_a_strange_type_are_refused(make):
    folder = make(CLASSES)
    (folder / "test.csv").unlink()
    pq.write_table(pa.table({"sequence": ["A"], "label": [{"x": 1}]}), folder / "test.parquet")
    with pytest.raises(InputError, match=r"test\.parquet: labels of type"):
        read_task(folder, "rna")


def test_parquet_numbers(make):
    folder = make(CLASSES)
    for name in ("train", "dev", "test"):
        (folder / f"{name}.csv").unlink()
        table = pa.table({"sequence": ["A", "C"], "label": np.array([0.25, 2.0])})
        pq.write_table(table, folder / f"{name}.parquet")
    task = read_task(folder, "rna")
    assert task.kind == "regression"
    assert task.dev.targets.tolist() == [0.25, 2.0]

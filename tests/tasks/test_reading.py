"""What users' own files need: other names of files and columns, and rows to be held out."""

import itertools

import numpy as np
import pytest

from frugalfm.errors import InputError
from frugalfm.tasks import Reading, find_splits, read_task

TABLE = "seq,y,label\nACGU,a,1\nGGGU,b,1\nAAAA,a,1\n"
LABELLED = "sequence,label\nACGU,a\nGGGU,b\nAAAA,a\n"


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


@pytest.mark.parametrize("name", ["dev", "validation", "valid", "val"])
def test_names_of_dev(tmp_path, name):
    folder = write(tmp_path / "t", train=LABELLED, test=LABELLED, **{name: LABELLED})
    assert find_splits(folder)["dev"].name == f"{name}.csv"
    assert len(read_task(folder, "rna").dev) == 3


def test_two_files_of_dev_are_named(tmp_path):
    folder = write(tmp_path / "t", train=LABELLED, test=LABELLED, val=LABELLED, validation="x")
    with pytest.raises(InputError, match=r"both validation\.csv and val\.csv; a task has one dev"):
        find_splits(folder)
    (folder / "val.csv").unlink()
    (folder / "validation.csv").unlink()
    with pytest.raises(InputError, match=r"no dev file.*validation, valid or val.*--dev-share 0.1"):
        find_splits(folder)


def test_columns_by_other_names(tmp_path):
    folder = write(tmp_path / "t", train=TABLE, dev=TABLE, test=TABLE)
    task = read_task(folder, "rna", reading=Reading("seq", "y"))
    assert task.classes == ("a", "b")
    assert task.test.sequences.to_pylist() == ["ACGU", "GGGU", "AAAA"]
    with pytest.raises(InputError, match=r"no column 'z' for --label-column. There are: seq, y"):
        read_task(folder, "rna", reading=Reading("seq", "z"))
    with pytest.raises(InputError, match=r"no column 'z' for --sequence-column. There are: seq"):
        read_task(folder, "rna", reading=Reading("z"))
    with pytest.raises(InputError, match="is the column of sequences"):
        read_task(folder, "rna", reading=Reading("y", "y"))
    with pytest.raises(InputError, match=r"no column 'sequence'.*--sequence-column.*are: seq, y"):
        read_task(folder, "rna")
    write(folder, dev="seq,label\nACGU,a\n")
    with pytest.raises(InputError, match=r"dev\.csv: has no column 'y'.*are: seq, label"):
        read_task(folder, "rna", reading=Reading("seq", "y"))


def test_columns_of_other_kinds(tmp_path):
    text = "sequence,length,dssp,structure\nACGU,1,HHEE,....\nGG,2,HE,..\n"
    folder = write(tmp_path / "t", train=text, dev=text, test=text)
    task = read_task(folder, "rna", kind="token", reading=Reading(label_column="dssp"))
    assert task.classes == ("E", "H")
    # A column that tables of sequences have anyway may be the label, too.
    task = read_task(folder, "rna", reading=Reading(label_column="length"))
    assert task.test.targets.tolist() == [0, 1]
    assert read_task(folder, "rna", kind="base-pair").kind == "base-pair"
    with pytest.raises(InputError, match="--kind base-pair go by their names"):
        read_task(folder, "rna", kind="base-pair", reading=Reading(label_column="dssp"))
    text = "sequence_a,sequence_b,y\nAC,GU,1.5\nAC,GG,2\n"
    pairs = write(tmp_path / "p", train=text, dev=text, test=text)
    assert read_task(pairs, "rna", reading=Reading(label_column="y")).kind == "affinity"
    single = Reading("sequence_a", "y")
    assert read_task(pairs, "rna", reading=single).kind == "regression"


def table(n, alphabet="ACGT", seed=0, repeats=0):
    random = np.random.default_rng(seed)
    rows = ["".join(random.choice(list(alphabet), 20)) for _ in range(n)]
    return [*rows, *random.choice(rows, repeats).tolist()]


def as_csv(rows):
    return "sequence,label\n" + "".join(f"{row},{i % 2}\n" for i, row in enumerate(rows))


def test_one_table_is_cut_by_its_sequences(tmp_path):
    rows = table(900, repeats=100)
    path = tmp_path / "all.csv"
    path.write_text(as_csv(rows))
    task = read_task(path, "dna", reading=Reading(dev_share=0.1, test_share=0.2))
    found = [set(split.rows.tolist()) for split in task.splits.values()]
    assert sorted(row for rows in found for row in rows) == list(range(1000))
    # Binomial: 100 and 200 of 1000, give or take four standard deviations.
    assert abs(len(task.dev) - 100) < 38
    assert abs(len(task.test) - 200) < 51
    assert task.held_out == ("dev", "test")
    leaks = [task.repeats[name] for name in ("dev_in_train", "test_in_train", "test_in_dev")]
    assert leaks == [0, 0, 0]
    assert sum(task.repeats.values()) > 50  # the repeats are within the splits
    assert task.test.where(0) == f"{path}, line {task.test.rows[0] + 2}"
    # Neither the order of rows, nor more of them, nor the share of dev move a row of test.
    order = np.random.default_rng(1).permutation(1000)
    more = [rows[i] for i in order] + table(50, seed=9)
    (tmp_path / "more.csv").write_text(as_csv(more))
    other = read_task(tmp_path / "more.csv", "dna", reading=Reading(dev_share=0.3, test_share=0.2))
    assert set(task.test.sequences.to_pylist()) <= set(other.test.sequences.to_pylist())
    with pytest.raises(InputError, match=r"is one table; .*--dev-share and --test-share"):
        read_task(path, "dna")


def test_both_strands_stay_together(tmp_path):
    strands = str.maketrans("ACGT", "TGCA")
    rows = table(300)
    path = tmp_path / "all.csv"
    path.write_text(as_csv([*rows, *(row[::-1].translate(strands) for row in rows)]))
    task = read_task(path, "dna", reading=Reading(dev_share=0.2, test_share=0.3))
    for split in task.splits.values():
        there = set(split.sequences.to_pylist())
        assert {row[::-1].translate(strands) for row in there} == there


def test_dev_is_held_out_of_train_alone(tmp_path):
    folder = write(tmp_path / "t", train=as_csv(table(300)), test=as_csv(table(40, seed=2)))
    task = read_task(folder, "dna", reading=Reading(dev_share=0.1))
    assert (len(task.train) + len(task.dev), len(task.test)) == (300, 40)
    assert 10 <= len(task.dev) <= 51
    assert task.held_out == ("dev",)
    assert set(find_splits(folder, Reading(dev_share=0.1))) == {"train", "test"}
    with pytest.raises(InputError, match=r"holds test\.csv.*leave --test-share out"):
        read_task(folder, "dna", reading=Reading(dev_share=0.1, test_share=0.1))
    write(folder, validation=as_csv(table(9)))
    with pytest.raises(InputError, match=r"holds validation\.csv.*leave --dev-share out"):
        read_task(folder, "dna", reading=Reading(dev_share=0.1))


def test_pairs_are_held_out_in_either_order(tmp_path):
    rows = table(200)
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    lines = [f"{a},{b},{i % 2}" for i, (a, b) in enumerate([*pairs, *((b, a) for a, b in pairs)])]
    path = tmp_path / "pairs.csv"
    path.write_text("sequence_a,sequence_b,label\n" + "\n".join(lines) + "\n")
    task = read_task(path, "dna", reading=Reading(dev_share=0.2, test_share=0.2))
    assert task.repeats["test_in_train"] == task.repeats["dev_in_train"] == 0
    assert len(task.test) % 2 == 0


def test_bad_shares(tmp_path):
    for share in (0, -0.1, 0.6, float("nan")):
        with pytest.raises(InputError, match=r"--dev-share must be .* at most 0\.5"):
            Reading(dev_share=share)
    path = tmp_path / "all.csv"
    path.write_text(as_csv(table(3)))
    with pytest.raises(InputError, match=r"--test-share 0.001 of 3 rows is none"):
        read_task(path, "dna", reading=Reading(dev_share=0.1, test_share=0.001))
    assert Reading().identity() == {}
    assert Reading("s", dev_share=0.1).identity() == {"sequence_column": "s", "dev_share": 0.1}


def test_reverse_complements_are_counted_and_left_in(tmp_path):
    text = "sequence,label\n{}\n"
    folder = write(
        tmp_path / "t",
        train=text.format("AACG,0\nACGT,1\nGGN,0\nTTT,1"),
        dev=text.format("CGTT,0\nCCCA,1"),
        # A palindrome that is there itself, both strands, a reverse complement with N, of dev.
        test=text.format("ACGT,0\nAACG,1\nCGTT,0\nNCC,1\nTGGG,0\nAAAA,1\nAAA,1"),
    )
    task = read_task(folder, "dna", leaks="drop")
    assert task.repeats == {
        "duplicates_in_train": 0, "duplicates_in_dev": 0, "duplicates_in_test": 0,
        "dev_in_train": 0, "test_in_train": 2, "test_in_dev": 1,
        "dev_reverse_complements_in_train": 1, "test_reverse_complements_in_train": 3,
        "test_reverse_complements_in_dev": 2,
    }  # fmt: skip
    assert task.dropped == {"train": 0, "dev": 0, "test": 3}
    write(folder, test=text.format("CGTA,0\nAAA,1"), dev=text.format("CCCA,1"))
    task = read_task(folder, "dna", leaks="error")  # is no reason to refuse
    assert task.repeats["test_reverse_complements_in_train"] == 1
    rna = write(tmp_path / "r", train=LABELLED, dev=LABELLED, test=LABELLED)
    assert "dev_reverse_complements_in_train" not in read_task(rna, "rna").repeats


def test_reverse_complements_agree_with_a_search(tmp_path):
    strands = str.maketrans("ACGT", "TGCA")
    random = np.random.default_rng(0)
    rows = {
        name: ["".join(random.choice(list("ACGT"), random.integers(1, 5))) for _ in range(60)]
        for name in ("train", "dev", "test")
    }
    task = read_task(write(tmp_path / "t", **{n: as_csv(r) for n, r in rows.items()}), "dna")
    for later, earlier in (("dev", "train"), ("test", "train"), ("test", "dev")):
        there = set(rows[earlier])
        found = [r for r in rows[later] if r not in there and r[::-1].translate(strands) in there]
        assert task.repeats[f"{later}_reverse_complements_in_{earlier}"] == len(found) > 0


def test_flip_and_other_files_take_no_options(tmp_path):
    path = tmp_path / "split.fasta"
    path.write_text(">a SET=train TARGET=1\nAC\n")
    with pytest.raises(InputError, match=r"FLIP's form, which tells all; leave out --dev-share"):
        find_splits(path, Reading(dev_share=0.1))
    (tmp_path / "x.xlsx").write_text("x")
    with pytest.raises(InputError, match=r"is no table or folder; .* and test, or one table"):
        find_splits(tmp_path / "x.xlsx", Reading(dev_share=0.1, test_share=0.1))


@pytest.mark.parametrize(
    ("column", "kind", "common", "rare"),
    [("label", "auto", "a", "rare"), ("label", "multilabel", "a;b", "rare"),
     ("structure", "auto", "HE", "HX")],
)  # fmt: skip
def test_a_label_that_only_held_out_rows_have(tmp_path, column, kind, common, rare):
    words = ["".join(word) for word in itertools.product("ACGU", repeat=4)]
    names = [common, common if ";" in common else "b"]
    if column == "structure":
        names = [name * 2 for name in (common, common)]
        rare *= 2
    rows = [f"{word},{names[i % 2]}" for i, word in enumerate(words)]
    table = tmp_path / "one.csv"
    table.write_text("\n".join([f"sequence,{column}", *rows, ""]))
    reading = Reading(dev_share=0.1, test_share=0.1)
    first = read_task(table, "rna", kind=kind, reading=reading).test.rows[0]
    rows[first] = f"{words[first]},{rare}"
    table.write_text("\n".join([f"sequence,{column}", *rows, ""]))
    message = rf"line {first + 2}: .* only among the rows that are held out .* add rows"
    with pytest.raises(InputError, match=message):
        read_task(table, "rna", kind=kind, reading=reading)

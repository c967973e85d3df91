"""Tasks of pairs of positions, pairs of sequences, and FLIP's folders: formats and checks."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frugalfm.errors import InputError
from frugalfm.tasks import IGNORED, find_splits, read_task
from frugalfm.tasks.map_metrics import measure_map
from frugalfm.tasks.map_results import MapBaseline, report_maps
from frugalfm.tasks.results import find_shared, report_predictions

NAMES = ("train", "dev", "test")


def write_all(folder, texts, suffix=".csv"):
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        text = texts[name] if isinstance(texts, dict) else texts
        (folder / (name + suffix)).write_text(text)
    return folder


@pytest.fixture
def chains():
    random = np.random.default_rng(0)
    found = []
    for length in (9, 14, 8):
        xyz = random.normal(scale=5, size=(length, 3)).round(1)
        xyz[2] = np.nan
        found.append(("".join(random.choice(list("ACDEFGHIKLMNPQRSTVWY"), length)), xyz))
    return found


def as_csv(chains, column):
    rows = [f"{seq},{' '.join(map(str, xyz.ravel().tolist()))}" for seq, xyz in chains]
    return f"sequence,{column}\n" + "\n".join(rows) + "\n"


def as_lines(chains):
    rows = []
    for seq, xyz in chains:
        coordinates = [None if np.isnan(row).any() else row for row in xyz.tolist()]
        rows.append(json.dumps({"sequence": seq, "coordinates": coordinates}))
    return "\n".join(rows) + "\n"


def as_parquet(chains, path):
    table = {
        "sequence": [seq for seq, _ in chains],
        "coordinates": [xyz.tolist() for _, xyz in chains],
    }
    pq.write_table(pa.table(table), path)


@pytest.mark.parametrize("kind", ["auto", "contact", "distance"])
def test_coordinates_in_every_format(tmp_path, chains, kind):
    folders = [
        write_all(tmp_path / "a", as_csv(chains, "coordinates")),
        write_all(tmp_path / "b", as_csv(chains, "cb_xyz_angstrom")),
        write_all(tmp_path / "c", as_lines(chains), ".jsonl"),
        tmp_path / "d",
        tmp_path / "e",
    ]
    for folder in folders[3:]:
        folder.mkdir()
    for name in NAMES:
        as_parquet(chains, folders[3] / f"{name}.parquet")
        (folders[4] / f"{name}.jsonl.gz").write_bytes(gzip.compress(as_lines(chains).encode()))
    for folder in folders:
        task = read_task(folder, "protein", kind=kind)
        assert task.kind == ("contact" if kind == "auto" else kind)
        assert task.classes == ()
        assert task.train.lengths.tolist() == [9, 14, 8]
        assert task.train.maps.lengths.tolist() == [9, 14, 8]
        for (_, xyz), piece in zip(chains, task.train.maps.pieces, strict=True):
            np.testing.assert_allclose(piece, xyz, atol=1e-6)
    task = read_task(folders[0], "protein", kind=kind, max_residues=8)
    assert task.cropped["train"] == 2
    assert task.train.maps.matrix(1)[0].shape == (8, 8)


def test_contacts_and_base_pairs(tmp_path):
    lines = (
        '{"sequence": "ACDEFGHIK", "contacts": [[0, 8]]}\n\n{"sequence": "ACD", "contacts": []}\n'
    )
    task = read_task(write_all(tmp_path / "a", lines, ".jsonl"), "protein")
    assert task.kind == "contact"
    assert [piece.tolist() for piece in task.test.maps.pieces] == [[[0, 8]], []]
    text = "sequence,contacts\nACDEFGHIK,0-8 1-7\n"
    assert read_task(write_all(tmp_path / "b", text), "protein").train.maps.pieces[0].shape == (
        2,
        2,
    )
    text = "sequence,structure\nGGGAAACCC,((.[.)).]\n"
    folder = write_all(tmp_path / "c", text)
    assert read_task(folder, "rna").kind == "token"
    task = read_task(folder, "rna", kind="base-pair", max_residues=7)
    assert task.dev.maps.pieces[0].tolist() == [[0, 6], [1, 5]]
    assert task.dev.texts.to_pylist() == ["((.[.))"]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (
            "sequence,coordinates\nAC,1 2 3\n",
            "auto",
            r"train\.csv, line 2: coordinates: 2 residues",
        ),
        ("sequence,contacts\nAC,0-5\n", "auto", r"train\.csv, line 2: contacts: position 5"),
        ("sequence,structure\nAC,(.\n", "base-pair", r"line 2: structure: '\(' of residue 1"),
        ("sequence,contacts\nAC,0-1\n", "distance", "has no column coordinates"),
        ("sequence,label\nAC,1\n", "contact", "has no column coordinates"),
        ("sequence,label\nAC,1\n", "interaction", "no two columns of sequences"),
        ("sequence,label,contacts\nAC,1,0-1\n", "auto", "choose with --kind"),
        ("sequence_a,sequence_b,label\nAC,,1\n", "auto", "line 2: the sequence_b is empty"),
        ("sequence_a,sequence_b,label\nAC,A1,1\n", "auto", "line 2, letter 2.*'1'"),
        ("sequence_a,sequence_b,label\nAC,A,1\n", "token", "no column 'sequence'"),
    ],
)
def test_bad_tasks_are_refused(tmp_path, text, kind, message):
    with pytest.raises(InputError, match=message):
        read_task(write_all(tmp_path / "t", text), "protein", kind=kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sequence": "AC", "label": "a"}\n[1]\n', r"train\.jsonl, line 2: is no JSON object"),
        ('{"sequence": "AC", "label": "a"}\n\n{"sequence"\n', r"train\.jsonl, line 3: is no JSON"),
        ('{"sequence": "AC", "label": "a"}\n{"label": "b"}\n', r"line 2: has no 'sequence'"),
        (
            '{"sequence": "AC", "label": "a"}\n{"sequence": "A-", "label": "b"}\n',
            r"line 2, letter 2",
        ),
        ("", "is empty"),
    ],
)
def test_bad_lines_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_task(write_all(tmp_path / "t", text, ".jsonl"), "protein")


def test_lines_hold_ordinary_labels_too(tmp_path):
    rows = [{"sequence": "AC", "label": 0.5}, {"sequence": "CC", "label": 2}]
    text = "\n".join(map(json.dumps, rows))
    task = read_task(write_all(tmp_path / "t", text, ".jsonl"), "protein")
    assert task.kind == "regression"
    assert task.test.targets.tolist() == [0.5, 2]
    assert task.test.where(1).endswith("test.jsonl, line 2")


def test_pairs_of_sequences(tmp_path):
    head = "sequence_a,sequence_b,label\n"
    texts = {
        "train": head + "AC,DE,1\nAC,FG,0\nFG,AC,0\n",
        "dev": head + "DE,AC,1\nHI,KL,0\n",
        "test": head + "FG,KL,1\nKL,HI,0\nMN,MN,1\nPQ,AC,0\n",
    }
    folder = write_all(tmp_path / "t", texts)
    task = read_task(folder, "protein")
    assert (task.kind, task.classes) == ("interaction", ("0", "1"))
    assert task.train.partners.to_pylist() == ["DE", "FG", "AC"]
    assert task.repeats == {
        "duplicates_in_train": 1,
        "duplicates_in_dev": 0,
        "duplicates_in_test": 0,
        "dev_in_train": 1,
        "test_in_train": 0,
        "test_in_dev": 1,
        "dev_sequences_seen": 2,
        "test_sequences_seen": 2,
    }
    dropped = read_task(folder, "protein", leaks="drop")
    assert dropped.test.partners.to_pylist() == ["KL", "MN", "AC"]
    assert dropped.dropped == {"train": 0, "dev": 1, "test": 1}
    with pytest.raises(InputError, match="pairs of sequences leak"):
        read_task(folder, "protein", leaks="error")
    short = read_task(folder, "protein", max_residues=1)
    assert short.cropped["test"] == 4
    assert short.test.partners.to_pylist() == ["K", "H", "M", "A"]


@pytest.mark.parametrize("names", ["sequence_1,sequence_2", "seq1,seq2", "protein_a,protein_b"])
def test_affinities_and_other_names(tmp_path, names):
    task = read_task(write_all(tmp_path / "t", f"{names},label\nAC,D,0.5\nA,D,-7\n"), "protein")
    assert task.kind == "affinity"
    assert task.train.targets.tolist() == [0.5, -7]
    assert task.train.partners.to_pylist() == ["D", "D"]


def test_shared_sequences_are_found(tmp_path):
    head = "sequence_a,sequence_b,label\n"
    apart = read_task(write_all(tmp_path / "a", head + "AC,D,1\nE,E,0\n"), "protein")
    assert find_shared(apart.test) is None
    shared = read_task(write_all(tmp_path / "b", head + "AC,D,1\nE,AC,0\n"), "protein")
    assert find_shared(shared.test).tolist() == [[0, 2], [1, 0]]
    guess = np.array([1, 0])
    for task, unit in ((apart, "pair of sequences"), (shared, "sequence; a pair")):
        found = report_predictions(
            task, guess, guess, np.ones(2), how={}, scores=(guess, guess), resamples=20
        )
        assert found.metrics["bootstrap"]["unit"].startswith(unit)
        assert found.metrics["test"]["auroc"]["value"] == 1
        assert found.metrics["baseline"]["test"]["auroc"]["value"] == 0.5


FLIP = {
    "sequences": ">a\nACDE\n>b\nFGH\n>c d\nKLMN\n>e\nPQ\n",
    "sampled": (
        ">a SET=train VALIDATION=False\nHHCC\n>b SET=train VALIDATION=True\nCHC\n"
        ">c SET=test VALIDATION=False\nCCXH\n>e SET=train VALIDATION=False\nEE\n"
    ),
    "mask": ">a\n0111\n>b\n111\n>c\n1101\n>e\n10\n",
}


@pytest.fixture
def flip(tmp_path):
    def write(**changes):
        for name, text in (FLIP | changes).items():
            if text is not None:
                (tmp_path / f"{name}.fasta").write_text(text)
        return tmp_path

    return write


def test_flip_labels_of_residues(flip):
    folder = flip()
    assert set(find_splits(folder)) == {"labels", "sequences", "mask"}
    for path in (folder, folder / "sampled.fasta"):
        task = read_task(path, "protein")
        assert (task.kind, task.classes) == ("token", ("C", "E", "H"))
        assert task.train.sequences.to_pylist() == ["ACDE", "PQ"]
        assert task.train.targets.tolist() == [IGNORED, 2, 0, 0, 1, IGNORED]
        assert task.dev.sequences.to_pylist() == ["FGH"]
        assert task.test.targets.tolist() == [0, 0, IGNORED, 2]  # X is not looked at
        assert task.test.texts.to_pylist() == ["CC?H"]
        assert task.test.where(0).endswith("record 'c'")
    predicted = np.array([0, 0, 1, 1])
    found = report_predictions(task, np.zeros(3, int), predicted, how={}, resamples=5)
    assert found.metrics["test"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert found.metrics["baseline"]["predicts"] == "C"
    assert found.predictions["prediction"].to_pylist() == ["CCEE"]
    cropped = read_task(folder, "protein", max_residues=3)
    assert cropped.test.targets.tolist() == [0, 0, IGNORED]


def test_flip_without_a_mask(flip):
    task = read_task(flip(mask=None, sampled=FLIP["sampled"].replace("X", "C")), "protein")
    assert task.train.targets.tolist() == [2, 2, 0, 0, 1, 1]


def test_flip_labels_of_sequences(tmp_path):
    rows = [("ACD", 0.5, "train", False), ("CCC", 1.5, "train", True), ("DD", 2.5, "test", False),
            ("AAA", 3.0, "train", False)]  # fmt: skip
    text = "".join(
        f">s{i} TARGET={y} SET={s} VALIDATION={v}\n{x}\n" for i, (x, y, s, v) in enumerate(rows)
    )
    (tmp_path / "low_vs_high.fasta").write_text(text)
    task = read_task(tmp_path, "protein")
    assert task.kind == "regression"
    assert task.train.targets.tolist() == [0.5, 3.0]
    assert task.test.rows.tolist() == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampled": ">a\nHHCC\n"}, "'a' says no split"),
        ({"sequences": ">a\nACDE\n"}, r"sequences\.fasta: has no record 'b'"),
        ({"mask": ">a\n0111\n"}, r"mask\.fasta: has no record 'b'"),
        ({"mask": FLIP["mask"].replace("0111", "011")}, "record 'a': the mask is not as long"),
        ({"mask": FLIP["mask"].replace("0111", "0121")}, "record 'a': the mask holds other"),
        ({"sampled": FLIP["sampled"].replace("HHCC", "HHC")}, "record 'a': 4 residues but 3"),
        ({"sampled": FLIP["sampled"].replace("SET=test", "SET=train")}, "no records of test"),
        ({"sequences": FLIP["sequences"].replace("FGH", "F1H")}, "record 'b', letter 2"),
        ({"other": FLIP["sampled"]}, r"several splits.*--task .*other\.fasta"),
    ],
)
def test_bad_flip_folders_are_refused(flip, changes, message):
    with pytest.raises(InputError, match=message):
        read_task(flip(**changes), "protein")


def test_a_mask_in_a_table(tmp_path):
    text = "sequence,structure,mask\nACGU,HHCC,1101\n"
    task = read_task(write_all(tmp_path / "t", text), "rna")
    assert task.test.targets.tolist() == [1, 1, IGNORED, 0]
    (tmp_path / "t/dev.csv").write_text(text.replace("1101", "0000"))
    with pytest.raises(InputError, match=r"dev\.csv: the masks leave out every residue"):
        read_task(tmp_path / "t", "rna")


def test_baseline_is_the_mean_by_separation(tmp_path, chains):
    task = read_task(
        write_all(tmp_path / "t", as_csv(chains, "coordinates")), "protein", kind="distance"
    )
    predicted = list(MapBaseline.fit(task.train).predict(task.test))
    by_separation = {}
    for index in range(3):
        for i, j, value in zip(*task.train.maps.pairs(index), strict=True):
            by_separation.setdefault(int(j - i), []).append(value)
    for found in predicted:
        assert (found == found.T).all()
        for apart, values in by_separation.items():
            if apart < len(found):
                assert found[0, apart] == pytest.approx(np.mean(values), rel=1e-5)
    measured = [measure_map(task.test.maps, i, x) for i, x in enumerate(predicted)]
    found = report_maps(task, measured, measured, [{}] * 3, how={"by": "hand"}, resamples=10)
    assert found.metrics["baseline"]["test"] == found.metrics["test"]
    assert found.predictions.column_names == ["row", "spearman", "mae"]
    json.dumps(found.metrics, allow_nan=False)


def test_baseline_of_base_pairs_knows_the_letters(tmp_path):
    text = "sequence,structure\nGAAAAC,(....)\nGAAAAG,......\n"
    task = read_task(write_all(tmp_path / "t", text), "rna", kind="base-pair")
    baseline = MapBaseline.fit(task.train)
    first, second = baseline.predict(task.test)
    assert first[0, 5] == first[5, 0] == 1
    assert second[0, 5] == 0
    assert "letters" in baseline.name

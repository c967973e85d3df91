"""Several labels a sequence: how they are read, scored and written."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, matthews_corrcoef

from frugalfm.errors import InputError
from frugalfm.tasks import read_task
from frugalfm.tasks.results import report_predictions, score_split


@pytest.fixture
def folder(tmp_path):
    for name, rows in {
        "train": ["ACGU,b;a", "CCGU,a", "GCGU,a; c", "UCGU,;"],
        "dev": ["ACGA,a;a", "AAAA,c;b"],
        "test": ["ACGC,c", "AAAC,a;b;c"],
    }.items():
        (tmp_path / f"{name}.csv").write_text("sequence,label\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_sets_of_labels(folder):
    task = read_task(folder, "rna", kind="multilabel")
    assert task.classes == ("a", "b", "c")
    assert task.train.targets.tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert task.train.texts.to_pylist() == ["a;b", "a", "a;c", ""]
    assert task.dev.targets.tolist() == [[1, 0, 0], [0, 1, 1]]
    assert read_task(folder, "rna", kind="multilabel", max_residues=3).cropped["train"] == 4


def test_labels_that_cannot_be_learnt(folder):
    (folder / "test.csv").write_text("sequence,label\nACGU,a\nACGU,a;d\n")
    with pytest.raises(InputError, match=r"test.csv, line 3: label 'd'"):
        read_task(folder, "rna", kind="multilabel")
    (folder / "train.csv").write_text("sequence,label\nACGU,a\nACGA,a\n")
    with pytest.raises(InputError, match="nothing to learn"):
        read_task(folder, "rna", kind="multilabel")


def test_scores_are_of_decisions(folder):
    task = read_task(folder, "rna", kind="multilabel")
    found = np.array([[1, 0, 1], [0, 1, 1]])
    scores = score_split(task, task.test, found, resamples=0)
    true = task.test.targets.ravel()
    assert scores["accuracy"].value == pytest.approx(accuracy_score(true, found.ravel()))
    assert scores["mcc"].value == pytest.approx(matthews_corrcoef(true, found.ravel()))


def test_report(folder):
    task = read_task(folder, "rna", kind="multilabel")
    found = np.array([[1, 0, 1], [0, 1, 1]])
    result = report_predictions(task, found, found, how={"by": "hand"}, resamples=10)
    assert result.metrics["by"] == "hand"
    assert result.metrics["baseline"]["predicts"] == "a"
    assert result.predictions.to_pydict() == {
        "row": [0, 1],
        "label": ["c", "a;b;c"],
        "prediction": ["a;c", "b;c"],
    }

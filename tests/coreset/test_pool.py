"""Bad scores, bad files and bad budgets are refused, by name."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frugalfm.coreset import choose_rows
from frugalfm.errors import InputError


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("strategy", ["random", "top-influence", "coverage"])
def test_a_score_that_is_not_finite_is_named(write_scores, bad, strategy):
    scores = np.ones(30)
    scores[[17, 25]] = bad
    files = write_scores(scores, parts=3)
    with pytest.raises(InputError) as caught:
        choose_rows(files, strategy, 3)
    for word in (str(files[1]), "row 17", "s17", str(bad), "2 of 30"):
        assert word in str(caught.value)


def test_a_null_is_named(write_scores):
    [file] = write_scores(np.ones(5))
    table = pq.read_table(file)
    for column, words in (("influence", "None"), ("length", "lacks its length")):
        values = pa.array([1, None, 1, 1, 1], table[column].type)
        place = table.schema.get_field_index(column)
        pq.write_table(table.set_column(place, column, values), file)
        with pytest.raises(InputError, match=words):
            choose_rows([file], "random", 1)


def test_repeated_rows_are_refused(write_scores):
    files = write_scores(np.ones(12), parts=3)
    with pytest.raises(InputError, match=r"row 0 .* more than once"):
        choose_rows([*files, files[0]], "random", 1)
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(InputError, match=r"row 4 .* more than once"):
        choose_rows(files, "random", 1)
    # Some of the pool, however, is a pool.
    assert len(choose_rows([files[0], files[2]], "random", 8)) == 8


def test_a_truncated_part_is_named(write_scores):
    files = write_scores(np.ones(3000), parts=2)
    files[1].write_bytes(files[1].read_bytes()[:-500])
    with pytest.raises(InputError, match=r"part-00001\.parquet: damaged"):
        choose_rows(files, "random", 3)


def test_a_corrupt_part_is_named(write_scores):
    files = write_scores(np.random.default_rng(0).normal(size=30_000), parts=3)
    content = bytearray(files[1].read_bytes())
    content[4:2000] = bytes(1996)
    files[1].write_bytes(content)
    with pytest.raises(InputError, match=r"part-00001\.parquet: damaged"):
        choose_rows(files, "random", 3)


def test_files_that_hold_no_scores_are_refused(write_scores, tmp_path):
    [file] = write_scores([])
    other = tmp_path / "other.parquet"
    for table, words in (
        (pa.table({"id": ["a"], "row": [1]}), "no column 'influence'"),
        (pa.table({"id": ["a"], "row": [1], "influence": [1.0]}), "holds double, not float32"),
    ):
        pq.write_table(table, other)
        with pytest.raises(InputError, match=words):
            choose_rows([other], "random", 1)
    with pytest.raises(InputError, match="nothing to select from"):
        choose_rows([file], "random", 1)
    with pytest.raises(InputError, match="nothing to select from"):
        choose_rows([], "random", 1)
    with pytest.raises(InputError, match="no such file"):
        choose_rows([tmp_path / "absent.parquet"], "random", 1)


def test_names_that_look_like_patterns(write_scores, tmp_path):
    [file] = write_scores(np.ones(9))
    odd = tmp_path / "it's [1] run*?.parquet"
    odd.write_bytes(file.read_bytes())
    assert len(choose_rows([odd], "random", 4)) == 4


@pytest.mark.parametrize("strategy", ["random", "top-influence", "top-influence-by-length"])
def test_a_budget_beyond_the_pool_is_refused(write_scores, strategy):
    files = write_scores(np.ones(9))
    assert len(choose_rows(files, strategy, 9)) == 9
    with pytest.raises(InputError, match="choose at most 9"):
        choose_rows(files, strategy, 10)


def test_a_budget_beyond_what_coverage_keeps_is_refused(write_scores):
    files = write_scores(np.ones(100))
    assert len(choose_rows(files, "coverage", 90)) == 90
    with pytest.raises(InputError, match="choose at most 90, or a smaller --drop-hardest"):
        choose_rows(files, "coverage", 91)
    # 0.29 * 100 is 28.999... in binary: 71 are left, not 72.
    assert len(choose_rows(files, "coverage", 71, drop_hardest=0.29)) == 71
    with pytest.raises(InputError, match="choose at most 71"):
        choose_rows(files, "coverage", 72, drop_hardest=0.29)


def test_bad_options_of_coverage(write_scores):
    files = write_scores(np.ones(10))
    with pytest.raises(InputError, match="--strata"):
        choose_rows(files, "coverage", 1, strata=0)
    for drop in (-0.1, 1.0):
        with pytest.raises(InputError, match="--drop-hardest"):
            choose_rows(files, "coverage", 1, drop_hardest=drop)

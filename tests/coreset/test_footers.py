"""Counts in the footers of parts: with them the same report, or they are not believed."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.coreset import Choice, write_selection
from frugalfm.coreset.footers import describe_part, read_tally
from frugalfm.coreset.tally import Tally

RNG = np.random.default_rng(3)


@pytest.fixture
def files(write_scores):
    lengths = RNG.integers(1, 90_000, 900)
    return write_scores(RNG.normal(size=900), lengths, parts=4, losses=RNG.normal(1, 3, 900))


def describe(files):
    for path in files:
        pq.write_table(describe_part(pq.read_table(path)), path)


def change(path, do):
    """Edit a part as pyarrow lets one: what the schema says of the part is kept."""
    table = do(pq.read_table(path))
    assert b"frugalfm.tally" in table.schema.metadata
    pq.write_table(table, path)


def replace(table, name, values):
    column = pa.array(values, table.schema.field(name).type)
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)


@pytest.mark.parametrize("strategy", ["random", "top-influence", "coverage"])
def test_the_report_is_the_same(files, tmp_path, strategy):
    plain = write_selection(files, tmp_path / "plain", Choice(strategy, 90))
    describe(files)
    assert read_tally(files) is not None
    found = write_selection(files, tmp_path / "known", Choice(strategy, 90))
    assert found == plain
    assert pq.read_table(tmp_path / "known").equals(pq.read_table(tmp_path / "plain"))


def test_known_counts_are_not_counted_again(files, tmp_path, monkeypatch):
    describe(files)
    counted, real = [], Tally._count

    def count(self, length, loss):
        counted.append(len(length))
        real(self, length, loss)

    monkeypatch.setattr(Tally, "_count", count)
    write_selection(files, tmp_path / "known", Choice("random", 90))
    assert sum(counted) == 90


@pytest.mark.parametrize(
    "edit",
    [
        lambda table: table.slice(1),
        lambda table: replace(table, "length", np.append(table["length"].to_numpy()[:-1], 99_999)),
        lambda table: replace(table, "loss", table["loss"].to_numpy() + 1),
    ],
)
def test_an_edited_part_is_counted(files, tmp_path, edit):
    describe(files)
    change(files[2], edit)
    assert read_tally(files) is None
    tables = [pq.read_table(path) for path in files]
    report = write_selection(files, tmp_path / "s", Choice("random", 90))
    assert report["pool"]["sequences"] == sum(map(len, tables))
    longest = max(table["length"].to_numpy().max() for table in tables)
    assert report["pool"]["length_quantiles"]["100%"] == longest


def test_a_part_without_counts_and_losses_that_are_nan(files):
    describe(files[1:])
    assert read_tally(files) is None
    assert read_tally(files[1:]) is not None
    table = pq.read_table(files[0])
    values = table["loss"].to_numpy().copy()
    values[3] = np.nan
    pq.write_table(describe_part(replace(table, "loss", values)), files[0])
    assert read_tally(files) is None


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.floats(-1e6, 1e6, width=32)), max_size=40))
def test_json_keeps_all_counts(rows):
    tally = Tally()
    tally.add({"length": np.array([n for n, _ in rows], np.int32),
               "loss": np.array([x for _, x in rows], np.float32)})  # fmt: skip
    again = Tally.from_json(tally.to_json())
    assert again.to_json() == tally.to_json()
    assert again.lengths() == tally.lengths()
    assert (again.losses == tally.losses).all()

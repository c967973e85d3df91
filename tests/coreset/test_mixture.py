"""Budgets shared among sources: exact shares, and each source a pool of its own."""

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection_oracle import STRATEGIES, Oracle

from frugalfm.coreset import Choice, SourceColumn, choose_rows, write_selection
from frugalfm.coreset.mixture import parse_mixture, share_out
from frugalfm.errors import InputError

SIZE = 800


@pytest.fixture(scope="module")
def pool(write_scores, tmp_path_factory):
    rng = np.random.default_rng(8)
    scores = rng.lognormal(0, 1, SIZE).round(1)
    lengths, losses = rng.integers(1, 300, SIZE), rng.integers(1, 40, SIZE) / 8
    sources = rng.choice(["rfam", "mirbase", "ena"], SIZE, p=[0.7, 0.2, 0.1])
    files = write_scores(scores, lengths, losses=losses, parts=3)
    folder = tmp_path_factory.mktemp("shards")
    parts = []
    for number, own in enumerate(np.array_split(sources, 4)):
        parts.append(folder / f"part-{number}.parquet")
        pq.write_table(pa.table({"source": own}), parts[-1], row_group_size=77)
    return Oracle(scores, lengths, losses), sources, files, parts


@pytest.mark.parametrize("many", [2, 64])  # of groups: more are ranked by smaller digits
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_source_is_a_pool_of_its_own(pool, strategy, many, monkeypatch):
    monkeypatch.setattr("frugalfm.coreset.order._MANY_GROUPS", many)
    oracle, sources, files, parts = pool
    found = choose_rows(
        files, strategy, 60, mixture="mirbase=2,rfam=1", sources=SourceColumn("source", parts)
    )["row"].to_pylist()
    expected = []
    for name, quota in (("mirbase", 40), ("rfam", 20)):
        expected += oracle.choose(strategy, quota, np.flatnonzero(sources == name).tolist())
    assert found == sorted(expected)


@pytest.mark.parametrize("mixture", [None, "proportional", "equal", "ena=1"])
def test_sources_are_reported(pool, tmp_path, mixture):
    _, sources, files, parts = pool
    choice = Choice("random", 30, mixture=mixture)
    path = tmp_path / "s.parquet"
    report = write_selection(files, path, choice, sources=SourceColumn("source", parts))
    rows = pq.read_table(path)["row"].to_numpy()
    assert list(report["sources"]) == ["ena", "mirbase", "rfam"]
    for name, of in report["sources"].items():
        assert of == {"pool": (sources == name).sum(), "chosen": (sources[rows] == name).sum()}
    if mixture == "equal":
        assert [of["chosen"] for of in report["sources"].values()] == [10, 10, 10]


def test_sources_from_a_table(pool, tmp_path):
    _, sources, files, parts = pool
    whole = choose_rows(files, "random", 50, mixture="equal",
                        sources=SourceColumn("source", parts))  # fmt: skip
    order = np.random.default_rng(0).permutation(SIZE)
    table = pa.table({"id": [f"s{i}" for i in order], 'it\'s "kind"': sources[order]})
    for path in (tmp_path / "t.parquet", tmp_path / "t.csv", tmp_path / "t.tsv"):
        if path.suffix == ".parquet":
            pq.write_table(table, path)
        else:
            pa.csv.write_csv(
                table, path,
                pa.csv.WriteOptions(delimiter="," if path.suffix == ".csv" else "\t"),
            )  # fmt: skip
        column = SourceColumn('it\'s "kind"', (), path)
        assert choose_rows(files, "random", 50, mixture="equal", sources=column).equals(whole)
    lines = ["id,source", *(f"s{i},a" for i in range(SIZE))]
    for change, words in (
        (lines[:-3], "lacks 3 ids of the scores, such as s797"),
        ([*lines, "s4,b"], "id s4 occurs more than once"),
        (["name,source", *lines[1:]], "needs the columns id and source"),
    ):
        bad = tmp_path / "bad.csv"
        bad.write_text("\n".join(change) + "\n")
        with pytest.raises(InputError, match=words):
            choose_rows(files, "random", 5, sources=SourceColumn("source", (), bad))


def test_bad_sources_are_refused(pool, tmp_path):
    _, _, files, parts = pool
    column = SourceColumn("source", parts)
    with pytest.raises(InputError, match="there is no source 'Rfam'; there are: ena, mirbase"):
        choose_rows(files, "random", 5, mixture="Rfam=1", sources=column)
    with pytest.raises(InputError, match="--mixture needs --source"):
        choose_rows(files, "random", 5, mixture="equal")
    with pytest.raises(InputError, match="has no column 'kind'; there are: source"):
        choose_rows(files, "random", 5, sources=SourceColumn("kind", parts))
    with pytest.raises(InputError, match=r"'ena' holds \d+ of 400.* choose at most"):
        choose_rows(files, "random", 800, mixture="ena=1,rfam=1", sources=column)
    pq.write_table(pa.table({"source": [f"d{i}" for i in range(SIZE)]}), tmp_path / "p.parquet")
    with pytest.raises(InputError, match="more than 256 different values"):
        choose_rows(files, "random", 5, sources=SourceColumn("source", [tmp_path / "p.parquet"]))


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=6),
    st.sampled_from(["proportional", "equal"]),
    st.data(),
)
def test_shares_are_exact(capacities, mixture, data):
    budget = data.draw(st.integers(0, sum(capacities)))
    names = [f"n{i}" for i in range(len(capacities))]
    quotas = share_out(budget, capacities, names, mixture)
    assert sum(quotas) == budget
    assert all(0 <= quota <= capacity for quota, capacity in zip(quotas, capacities, strict=True))
    with pytest.raises(InputError, match=f"choose at most {sum(capacities)}"):
        share_out(sum(capacities) + 1, capacities, names, mixture)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=5),
    st.integers(1, 300),
)
def test_weights_are_kept_or_refused_with_the_most_that_can_be(sources, budget):
    capacities, weights = zip(*sources, strict=True)
    names = [f"n{i}" for i in range(len(sources))]
    mixture = {name: Fraction(weight, 10) for name, weight in zip(names, weights, strict=True)}
    try:
        quotas = share_out(budget, capacities, names, mixture)
    except InputError as error:
        most = int(str(error).split("at most ")[1].split(",")[0])
        assert most < budget
        budget, quotas = most, share_out(most, capacities, names, mixture) if most else []
    assert sum(quotas) == budget
    for quota, capacity, weight in zip(quotas, capacities, weights, strict=False):
        assert quota <= capacity
        assert abs(quota - budget * weight / sum(weights)) < 1


def test_mixtures_as_written():
    assert parse_mixture("equal") == "equal"
    assert parse_mixture("a=2, b=0.5") == {"a": 2, "b": Fraction(1, 2)}
    assert parse_mixture("tr|x=y=1/3") == {"tr|x=y": Fraction(1, 3)}
    for text in ("", "a", "a=0", "a=-1", "a=b", "a=1,a=2", "=1", "a=1/0"):
        with pytest.raises(InputError, match="--mixture"):
            parse_mixture(text)

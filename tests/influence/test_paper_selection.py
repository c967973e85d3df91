"""Both selections of arXiv 2512.12932, written from its description on scores of its sign.

Its scores are negative, -I(z), so that the hardest sequences are the lowest: "Top I" takes the
lowest, and coverage-centric influence sets the lowest tenth aside. Ours are positive.
"""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frugalfm.coreset import choose_rows

SCORES = {
    "log-normal": lambda random, n: random.lognormal(0, 1, n),
    "normal": lambda random, n: 50 + random.normal(0, 5, n),
    "two humps": lambda random, n: np.where(
        random.random(n) < 0.8, random.normal(10, 1, n), random.normal(30, 3, n)
    ),
}


def top_as_published(stored, budget):
    return np.sort(np.argsort(stored, kind="stable")[:budget])


def coverage_as_published(stored, budget, strata=50, drop=0.1):
    """Return the stratum of each row (-1: set aside), and how many to draw from each stratum."""
    dropped = np.argsort(stored, kind="stable")[: int(drop * len(stored))]
    kept = np.setdiff1d(np.arange(len(stored)), dropped)
    low, high = stored[kept].min(), stored[kept].max()
    edges = np.linspace(low, high, strata + 1)
    stratum = np.full(len(stored), -1)
    stratum[kept] = np.clip(np.searchsorted(edges, stored[kept], side="right") - 1, 0, strata - 1)
    sizes = np.bincount(stratum[kept], minlength=strata)
    counts, remaining = np.zeros(strata, int), budget
    for visited, number in enumerate(np.argsort(sizes, kind="stable")):
        counts[number] = min(sizes[number], remaining // (strata - visited))
        remaining -= counts[number]
    return stratum, counts


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Influences, of float32 as they are stored, and the file that holds them."""
    folder = tmp_path_factory.mktemp("pools")
    found = {}
    for number, (name, draw) in enumerate(SCORES.items()):
        values = np.abs(draw(np.random.default_rng(number), 5000)).astype(np.float32)
        columns = {
            "id": [f"s{i}" for i in range(len(values))],
            "row": np.arange(len(values)),
            "influence": values,
            "loss": values,
            "n_tokens": np.full(len(values), 9, np.int32),
            "length": np.full(len(values), 9, np.int32),
        }
        path = folder / f"{number}.parquet"
        pq.write_table(pa.table(columns), path)
        found[name] = values.astype(np.float64), [path]
    return found


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("budget", [1, 50, 777])
def test_top_is_the_published_one(pools, name, budget):
    influence, files = pools[name]
    threshold = np.sort(influence)[-budget]
    assert (influence == threshold).sum() == 1  # ties would be drawn
    rows = choose_rows(files, "top-influence", budget)["row"].to_numpy()
    assert rows.tolist() == top_as_published(-influence, budget).tolist()


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("budget", [1, 50, 777, 4000])
def test_coverage_takes_as_many_of_each_stratum(pools, name, budget):
    influence, files = pools[name]
    stratum, counts = coverage_as_published(-influence, budget)
    assert counts.sum() == budget
    table = choose_rows(files, "coverage", budget, strata=50, drop_hardest=0.1)
    chosen = stratum[table["row"].to_numpy()]
    assert (chosen >= 0).all()
    # Strata of equal size, which the remainder of a division tells apart, may change places.
    sizes = np.bincount(stratum[stratum >= 0], minlength=50)
    taken = np.bincount(chosen, minlength=50)
    assert Counter(zip(sizes, taken, strict=True)) == Counter(zip(sizes, counts, strict=True))
    # Ours are numbered from the lowest influence, theirs from the lowest stored score.
    assert (table["stratum"].to_numpy() == 49 - chosen).all()


def test_inside_a_stratum_it_is_a_uniform_draw(pools):
    """Over many seeds, all rows of a stratum are drawn equally often."""
    influence, files = pools["two humps"]
    stratum, counts = coverage_as_published(-influence, 777)
    sizes = np.bincount(stratum[stratum >= 0], minlength=50)
    draws = 30
    times = np.zeros(len(influence))
    for seed in range(draws):
        times[choose_rows(files, "coverage", 777, seed=seed)["row"].to_numpy()] += 1
    for number in np.flatnonzero((counts > 0) & (counts < sizes) & (sizes >= 40)):
        share = counts[number] / sizes[number]
        found = times[stratum == number]
        expected = draws * share
        spread = expected * (1 - share)
        # Chi-square of n - 1 degrees: mean n - 1, variance 2 (n - 1); drawn without replacement.
        statistic = ((found - expected) ** 2).sum() / spread
        degrees = sizes[number] - 1
        assert abs(statistic - degrees) < 6 * np.sqrt(2 * degrees)

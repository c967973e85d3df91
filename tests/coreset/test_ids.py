"""The hash of ids: frozen, the same however ids are cut into arrays, and as good as random."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from selection_oracle import digest

from frugalfm.coreset.ids import hash_ids

FROZEN = {
    ("", 0, ""): 0x6D86888D51937BCD,
    ("s0", 0, ""): 0xBA358C73AF031CFA,
    ("URS0000000001_9606", 7, ""): 0xBD6C024BEC36A226,
    ("URS0000000001_9606", 7, "drop"): 0xA7F946B4F13E818B,
    ("tr|A0A024R161|A0A024R161_HUMAN", 2**31 - 1, ""): 0xF4FCE1EACAC8E19A,
}


@pytest.mark.parametrize("key", FROZEN)
def test_hashes_are_frozen(key):
    text, seed, purpose = key
    assert int(hash_ids(pa.array([text]), seed, purpose)[0]) == FROZEN[key]


@given(st.lists(st.text(max_size=40), max_size=60), st.integers(0, 2**31 - 1))
def test_agrees_with_plain_python(texts, seed):
    texts = [text.encode("utf-8", "ignore").decode() for text in texts]
    found = hash_ids(pa.array(texts, pa.string()), seed, "p")
    assert found.tolist() == [digest(text, seed, "p") for text in texts]


def test_ids_of_one_length_agree_with_plain_python():
    for length in range(41):
        texts = [f"{i:040d}"[40 - length :] for i in (0, 7, 12345678901234567890)]
        found = hash_ids(pa.array(["x", *texts], pa.string()).slice(1), 3)
        assert found.tolist() == [digest(text, 3) for text in texts]


def test_neighbours_and_offsets_do_not_matter():
    texts = [f"{'x' * (i % 23)}{i}" for i in range(40_000)]
    whole = hash_ids(pa.array(texts), 3)
    assert np.array_equal(whole[17:], hash_ids(pa.array(texts).slice(17), 3))
    assert np.array_equal(whole, hash_ids(pa.array(texts, pa.large_string()), 3))
    reverse = hash_ids(pa.array(texts[::-1]), 3)
    assert np.array_equal(whole, reverse[::-1])
    space = np.empty(50_000, np.uint64)
    assert np.array_equal(whole, hash_ids(pa.array(texts), 3, out=space))
    assert len(set(whole.tolist())) == len(texts)


KINDS = {
    "numbers": lambda i: f"s{i}",
    "padded": lambda i: f"URS{i:010X}",
    "eight": lambda i: f"{i:08d}",
    "late": lambda i: f"{'A' * 31}{i:08d}",
    "early": lambda i: f"{i:08d}{'A' * 31}",
    "two words": lambda i: f"{i % 300:08d}{i // 300:08d}",
}


@pytest.mark.parametrize("kind", KINDS)
def test_hashes_are_uniform_and_seeds_independent(kind):
    size = 1 << 16
    ids = pa.array([KINDS[kind](i) for i in range(size)])
    one, two = hash_ids(ids, 0), hash_ids(ids, 1)
    other = hash_ids(ids, 0, "drop")
    for first, second in ((one, two), (one, other)):
        # Upper bits by upper bits: 256 cells of 256 each, chi-square with 255 degrees of freedom.
        cells = (first >> np.uint64(60)) * np.uint64(16) + (second >> np.uint64(60))
        statistic = ((np.bincount(cells.astype(int), minlength=256) - 256) ** 2 / 256).sum()
        assert 255 - 5 * 22.6 < statistic < 255 + 5 * 22.6
    for values in (one, two, other):
        counts = np.bincount((values >> np.uint64(52)).astype(int), minlength=4096)
        statistic = ((counts - 16) ** 2 / 16).sum()
        assert 4095 - 5 * 90.5 < statistic < 4095 + 5 * 90.5


def test_nearby_ids_are_chosen_independently():
    """Of 2000 pairs of neighbours, as many are both under the median as chance gives."""
    hashes = hash_ids(pa.array([f"URS{i:010X}" for i in range(4000)]), 5)
    low = (hashes < np.uint64(1 << 63)).reshape(-1, 2)
    both = int(low.all(1).sum())
    assert 500 - 5 * 19.4 < both < 500 + 5 * 19.4

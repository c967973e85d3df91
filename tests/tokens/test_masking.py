"""Masks depend on what they may depend on, and on nothing else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import IGNORED, hash_sequences, mask_groups, mask_randomly
from frugalfm.tokens.vocabulary import make_rna_tokenizer

CODEC = Codec.from_tokenizer(make_rna_tokenizer())
ENCODED = st.lists(
    st.lists(st.integers(4, 7), min_size=1, max_size=30), min_size=1, max_size=6
).map(lambda rows: [np.array(row, dtype=np.uint8) for row in rows])


def collate_one_by_one(sequences):
    return [CODEC.collate([s]) for s in sequences]


@given(ENCODED, st.integers(0, 9), st.integers(0, 3))
def test_random_masks_do_not_depend_on_the_batch(sequences, seed, epoch):
    ids, lengths = CODEC.collate(sequences)
    rows = np.arange(100, 100 + len(sequences))
    masked, labels = mask_randomly(ids, lengths, rows, CODEC, seed=seed, epoch=epoch)
    for i, (one, length) in enumerate(collate_one_by_one(sequences)):
        alone = mask_randomly(one, length, rows[i : i + 1], CODEC, seed=seed, epoch=epoch)
        width = one.shape[1]
        assert np.array_equal(masked[i, :width], alone[0][0])
        assert np.array_equal(labels[i, :width], alone[1][0])
        assert (labels[i, width:] == IGNORED).all()


def test_random_masks_have_the_published_rates():
    sequences = [np.full(1000, 4, np.uint8)] * 400
    ids, lengths = CODEC.collate(sequences)
    masked, labels = mask_randomly(ids, lengths, np.arange(400), CODEC, seed=3, epoch=0)
    target = labels != IGNORED
    n = target.sum()
    assert abs(n / 400_000 - 0.15) < 5 * np.sqrt(0.15 * 0.85 / 400_000)
    assert not target[:, [0, -1]].any()
    assert np.array_equal(masked[~target], ids[~target])
    shares = {
        "mask": (masked[target] == CODEC.mask_id).mean(),
        # A replacement may draw the same nucleotide again.
        "other": ((masked[target] != CODEC.mask_id) & (masked[target] != 4)).mean(),
    }
    spread = 5 * np.sqrt(0.16 / n)
    assert abs(shares["mask"] - 0.8) < spread
    assert abs(shares["other"] - 0.1 * (1 - 1 / len(CODEC.residue_ids))) < spread
    replaced = masked[target & (masked != CODEC.mask_id) & (masked != 4)]
    assert set(replaced) == set(CODEC.residue_ids) - {4}


def test_random_masks_change_with_seed_epoch_and_row():
    ids, lengths = CODEC.collate([np.full(200, 4, np.uint8)] * 2)
    base = mask_randomly(ids, lengths, np.array([0, 1]), CODEC, seed=0, epoch=0)[1] != IGNORED
    assert not np.array_equal(base[0], base[1])
    for seed, epoch in ((1, 0), (0, 1)):
        other = mask_randomly(ids, lengths, np.array([0, 1]), CODEC, seed=seed, epoch=epoch)[1]
        overlap = ((other != IGNORED) & base).sum() / base.sum()
        assert overlap < 0.5


@given(ENCODED, st.integers(1, 9))
def test_groups_partition_the_residues(sequences, groups):
    ids, lengths = CODEC.collate(sequences)
    found = mask_groups(ids.shape[1], lengths, hash_sequences(sequences), groups)
    for row, length in zip(found, lengths, strict=True):
        inside = row[1 : length + 1]
        assert ((inside >= 0) & (inside < groups)).all()
        assert row[0] == -1
        assert (row[length + 1 :] == -1).all()
        counts = np.bincount(inside, minlength=groups)
        assert counts.max() - counts.min() <= 1


@given(ENCODED)
def test_groups_depend_on_sequence_and_position_only(sequences):
    ids, lengths = CODEC.collate(sequences)
    together = mask_groups(ids.shape[1], lengths, hash_sequences(sequences), 7)
    for row, sequence in zip(together, sequences, strict=True):
        one, length = CODEC.collate([sequence])
        alone = mask_groups(one.shape[1], length, hash_sequences([sequence]), 7)[0]
        assert np.array_equal(row[: len(alone)], alone)


def test_groups_are_spread_over_positions():
    """No period, no block: neighbours share a group as often as chance has it."""
    random = np.random.default_rng(0)
    sequences = [random.integers(4, 8, 300).astype(np.uint8) for _ in range(200)]
    ids, lengths = CODEC.collate(sequences)
    found = mask_groups(ids.shape[1], lengths, hash_sequences(sequences), 7)[:, 1:301]
    for lag in (1, 2, 7):
        same = (found[:, lag:] == found[:, :-lag]).mean()
        assert abs(same - 1 / 7) < 0.01

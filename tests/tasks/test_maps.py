"""Targets of pairs of positions equal their definition, whatever they are read from."""

import json
import math

import numpy as np
import pytest

from frugalfm.tasks.maps import CAP, MapTargets, parse_contacts, parse_coordinates


def draw_coordinates(length, seed=0, missing=()):
    xyz = np.random.default_rng(seed).normal(scale=6, size=(length, 3)).astype(np.float32)
    xyz[list(missing)] = np.nan
    return xyz


@pytest.mark.parametrize("kind", ["contact", "distance"])
def test_matrix_equals_a_loop_over_pairs(kind):
    xyz = draw_coordinates(24, missing=(3, 20))
    maps = MapTargets(kind, np.array([24]), (xyz,))
    values, valid = maps.matrix(0)
    assert (values == values.T).all()
    assert (valid == valid.T).all()
    listed = {(i, j): value for i, j, value in zip(*maps.pairs(0), strict=True)}
    for i in range(24):
        for j in range(24):
            known = abs(i - j) >= 6 and not {i, j} & {3, 20}
            assert valid[i, j] == known
            assert ((i, j) in listed) == (known and i < j)
            if known:
                apart = math.dist(xyz[i].tolist(), xyz[j].tolist())
                expected = float(apart < 8) if kind == "contact" else min(apart, CAP)
                assert values[i, j] == pytest.approx(expected, rel=1e-5)
    assert maps.resolved(0).sum() == 22
    assert 0 < values[valid].mean() < CAP


def test_pairs_make_a_matrix():
    maps = MapTargets(
        "contact", np.array([9, 4]), (np.array([[0, 8], [2, 4]]), np.empty((0, 2), int))
    )
    values, valid = maps.matrix(0)
    assert values[0, 8] == values[8, 0] == 1
    assert values.sum() == 4
    assert maps.pairs(0)[2].sum() == 1  # 2-4 is closer than 6
    assert maps.matrix(1)[1].sum() == 0
    assert valid[0, 6]
    assert not valid[0, 5]
    cropped = maps.crop(8)
    assert cropped.lengths.tolist() == [8, 4]
    assert cropped.pieces[0].tolist() == [[2, 4]]
    assert maps.take(np.array([False, True])).lengths.tolist() == [4]


def test_cropping_coordinates_crops_the_matrix():
    maps = MapTargets("distance", np.array([30]), (draw_coordinates(30),))
    values, valid = maps.matrix(0)
    small, known = maps.crop(20).matrix(0)
    np.testing.assert_array_equal(small, values[:20, :20])
    np.testing.assert_array_equal(known, valid[:20, :20])


@pytest.mark.parametrize(
    "write",
    [
        lambda x: " ".join(f"{v:.6f}" for v in x.ravel()),
        lambda x: ",".join(f"{v:.6f}" for v in x.ravel()),
        lambda x: json.dumps(x.tolist()),
        lambda x: x.tolist(),
        lambda x: x.ravel().tolist(),
        lambda x: [None if np.isnan(row).any() else row for row in x],
        lambda x: json.dumps([None if np.isnan(r).any() else r.tolist() for r in x]),
    ],
)
def test_coordinates_are_read_as_they_are_written(write):
    xyz = draw_coordinates(5, missing=(2,))
    np.testing.assert_allclose(parse_coordinates(write(xyz), 5), xyz, atol=1e-5)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1 2 3 4", r"2 residues but 1\.33"),
        ("1 2 3 4 5 x", "no number"),
        ("1 2 3 4 5 inf", "infinite"),
        ([[1, 2, 3], [1, 2]], "other than three"),
        ([None, None], "no residue has"),
        (None, "is empty"),
        ("", "2 residues but 0"),
        ([[1, 2, "x"], [1, 2, 3]], "no number"),
        ("[1, 2", None),
    ],
)
def test_bad_coordinates(value, message):
    with pytest.raises(ValueError, match=message):
        parse_coordinates(value, 2)


def test_contacts_are_read_as_they_are_written():
    for value in ("7-1 2-9 1-7", [[7, 1], [2, 9]], "[[1, 7], [9, 2]]", np.array([[1, 7], [2, 9]])):
        assert parse_contacts(value, 10).tolist() == [[1, 7], [2, 9]]
    assert parse_contacts("", 10).shape == (0, 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("1-10", "position 10 of a contact is outside of the 10"),
        ([[-1, 3]], "position -1"),
        ("3-3", "with itself"),
        ("3", "pairs of positions"),
        ("a-b", "pairs of positions"),
        ("[[1, 2, 3]]", "pairs of positions"),
        (None, "is empty"),
    ],
)
def test_bad_contacts(value, message):
    with pytest.raises(ValueError, match=message):
        parse_contacts(value, 10)

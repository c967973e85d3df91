"""Targets of each scheme: what is hidden, what is predicted, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalfm.encoders import create_encoder
from frugalfm.errors import InputError
from frugalfm.influence import MaskScheme
from frugalfm.tokens.codec import Codec

CODEC = Codec.from_tokenizer(create_encoder("rna-fm-nano")[1])
CPU = torch.device("cpu")
SEQUENCES = st.lists(
    st.lists(st.sampled_from([4, 5, 6, 7]), min_size=1, max_size=30).map(
        lambda s: np.array(s, np.uint8)
    ),
    min_size=1,
    max_size=5,
)
SCHEMES = st.one_of(
    st.integers(1, 9).flatmap(
        lambda n: st.builds(
            MaskScheme, st.just("groups"), st.just(n), st.none() | st.integers(1, n)
        )
    ),
    st.builds(MaskScheme, st.just("random"), passes=st.none() | st.integers(1, 4)),
    st.builds(MaskScheme, st.just("none"), pad_to=st.none() | st.integers(32, 40)),
)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES, SCHEMES)
def test_every_scheme(sequences, scheme):
    views = scheme.view(CODEC, sequences, CPU)
    assert views.masked.shape == (scheme.n_passes, *views.tokens.shape) == views.targets.shape
    assert torch.equal(views.counts, views.targets.sum((0, 2)))
    # Only targets differ from the truth.
    assert (views.masked == views.tokens)[~views.targets].all()
    residue = torch.zeros_like(views.tokens, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        residue[row, 1 : len(sequence) + 1] = True
    if scheme.pad_to is None:
        assert not (views.targets & ~residue).any()
        assert torch.equal(views.attention == 1, views.tokens != CODEC.pad_id)
        lengths = [len(sequence) for sequence in sequences]
        assert scheme.padded(np.array(lengths)).tolist() == lengths
    else:
        assert views.targets.all()
        assert views.attention.all()
        assert views.tokens.shape[1] == scheme.pad_to
    if scheme.masking == "groups":
        assert (views.masked[views.targets] == CODEC.mask_id).all()
        assert (views.targets.sum(0) <= 1).all()
        if scheme.passes in {None, scheme.groups}:
            assert torch.equal(views.targets.sum(0) == 1, residue)
    if scheme.masking == "none":
        assert (views.masked[0] == views.tokens).all()


@settings(max_examples=30, deadline=None)
@given(SEQUENCES, SCHEMES)
def test_a_batch_equals_its_sequences_alone(sequences, scheme):
    together = scheme.view(CODEC, sequences, CPU)
    for row, sequence in enumerate(sequences):
        alone = scheme.view(CODEC, [sequence], CPU)
        width = alone.tokens.shape[1]
        assert torch.equal(together.masked[:, row, :width], alone.masked[:, 0])
        assert torch.equal(together.targets[:, row, :width], alone.targets[:, 0])
        assert together.counts[row] == alone.counts[0]


def test_random_draws_are_independent_and_seeded():
    sequences = [np.full(1000, 4, np.uint8)]
    scheme = MaskScheme("random", passes=4)
    targets = scheme.view(CODEC, sequences, CPU).targets.float()
    assert targets.mean(2).flatten().tolist() == pytest.approx([0.15] * 4, abs=0.04)
    # Of two independent draws at 15 %, 2.25 % meet.
    assert float((targets[0] * targets[1]).mean()) == pytest.approx(0.0225, abs=0.015)
    other = MaskScheme("random", passes=4, seed=1).view(CODEC, sequences, CPU).targets.float()
    assert not torch.equal(targets, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 8}, "--passes 8 is more than --mask-groups 7"),
        ({"masking": "none", "passes": 2}, "without masks all passes are the same"),
        ({"masking": "random", "pad_to": 64}, "--masking none only, not with random"),
        ({"pad_to": 64}, "--masking none only, not with groups"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MaskScheme(**options)


def test_too_long_to_pad_is_refused():
    scheme = MaskScheme("none", pad_to=20)
    with pytest.raises(InputError, match=r"19 tokens.*--max-length 18"):
        scheme.view(CODEC, [np.full(19, 4, np.uint8)], CPU)

"""Shares of a batch: nothing lost, nothing twice, and the gradient of the whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalfm.encoders import create_encoder
from frugalfm.errors import InputError
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import IGNORED
from frugalfm.tokens.store import TokenList
from frugalfm.training import Recipe, team
from frugalfm.training.data import make_batch
from frugalfm.training.loop import _find_gradient, masked_loss
from frugalfm.training.team import ALONE, Team, join_team

MODEL, TOKENIZER = create_encoder("rna-fm-nano", seed=1)
CODEC = Codec.from_tokenizer(TOKENIZER)


def draw_batch(rows, seed=0):
    random = np.random.default_rng(seed)
    drawn = [random.integers(4, 8, random.integers(8, 30)).astype(np.uint8) for _ in range(rows)]
    return make_batch(TokenList(drawn), np.arange(rows), CODEC, seed=0, epoch=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5))
def test_shares_hold_every_target_once(rows, size):
    batch = draw_batch(rows)
    shares = [Team(rank, size).share(batch) for rank in range(size)]
    assert sum(share.count_targets() for share in shares) == batch.count_targets()
    assert all(len(share.input_ids) for share in shares)
    for share in shares:
        known = {tuple(row.tolist()) for row in batch.input_ids}
        assert all(tuple(row.tolist()) in known for row in share.input_ids)
    kept = [label for share in shares for label in share.labels[share.labels != IGNORED].tolist()]
    assert sorted(kept) == sorted(batch.labels[batch.labels != IGNORED].tolist())


@pytest.mark.parametrize(("rows", "size"), [(6, 2), (7, 3), (1, 2)])
def test_mean_gradient_of_shares_is_the_batchs(rows, size):
    """As DistributedDataParallel takes it; the oracle is the whole batch in one piece."""
    batch = draw_batch(rows, seed=rows)
    expected, total = {}, torch.zeros(())
    MODEL.zero_grad()
    out = MODEL(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    loss = masked_loss(out.logits, batch.labels)
    loss.backward()
    expected = {n: p.grad.clone() for n, p in MODEL.named_parameters() if p.grad is not None}
    MODEL.zero_grad()
    for rank in range(size):
        one = Team(rank, size)
        share, targets = one.share(batch), batch.count_targets()
        total = total + _find_gradient(MODEL, MODEL, share, targets, Recipe(steps=1), one)
    torch.testing.assert_close(total, loss.detach())
    for name, parameter in MODEL.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad / size, expected[name], rtol=1e-4, atol=1e-6)
    MODEL.zero_grad()


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_team(torch.device("cpu")) as found:
        assert found is ALONE
    # Another launcher's variable alone starts nothing that would wait for others.
    monkeypatch.setenv("WORLD_SIZE", "2")
    with join_team(torch.device("cpu")) as found:
        assert found is ALONE


def launch(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(team.dist, "is_torchelastic_launched", lambda: True)


def test_a_penalty_on_whole_batches_is_not_shared(monkeypatch):
    launch(monkeypatch)
    with pytest.raises(InputError, match="start one process"):
        join_team(torch.device("cpu"), flatten=0.02).__enter__()


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_processes_do_not_share_a_gpu(monkeypatch, device):
    launch(monkeypatch)
    with pytest.raises(InputError, match="a process for each GPU"), join_team(torch.device(device)):
        pass

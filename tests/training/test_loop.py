"""The loop learns, follows its schedule, and counts what it should."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.encoders import create_encoder
from frugalfm.errors import FrugalError
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import IGNORED
from frugalfm.tokens.store import TokenList
from frugalfm.training import Recipe, TrainingData, train
from frugalfm.training.data import make_batch
from frugalfm.training.loop import masked_loss, validate
from frugalfm.training.optimizers import make_optimizers, scale_learning_rate

CPU = torch.device("cpu")


def make_setting(attention="softmax"):
    model, tokenizer = create_encoder("rna-fm-nano", attention=attention, seed=1)
    codec = Codec.from_tokenizer(tokenizer)
    random = np.random.default_rng(0)
    rows = [np.full(random.integers(8, 25), 4 + i % 4, np.uint8) for i in range(60)]
    return model, TrainingData.split(TokenList(rows), codec, 0.1)


@pytest.mark.parametrize("attention", ["softmax", "softmax1"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_learns_homopolymers(tmp_path, optimizer, attention):
    """Any neighbour tells the nucleotide: the loss must fall far below log 4."""
    model, data = make_setting(attention=attention)
    recipe = Recipe(
        steps=150, batch_tokens=1000, optimizer=optimizer, learning_rate=4e-3, warmup=0.1
    )
    before = validate(model, data, recipe, CPU)
    found = train(model, data, recipe, tmp_path, state=tmp_path, device=CPU)
    assert before > 2.5
    assert found["validation_loss"] < 0.3
    assert not model.training
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert entries[-1]["validation_loss"] == pytest.approx(found["validation_loss"], abs=1e-5)
    assert [e["step"] for e in entries if "loss" in e] == list(range(10, 151, 10))


def test_bf16_trains_too(tmp_path):
    model, data = make_setting()
    recipe = Recipe(steps=5, batch_tokens=1000, precision="bf16")
    found = train(model, data, recipe, tmp_path, state=tmp_path, device=CPU)
    assert math.isfinite(found["validation_loss"])
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_diverging_run_is_stopped_with_a_remedy(tmp_path):
    model, data = make_setting()
    with torch.no_grad():
        model.lm_head.bias.fill_(float("nan"))
    with pytest.raises(FrugalError, match="--learning-rate"):
        train(model, data, Recipe(steps=20), tmp_path, state=tmp_path, device=CPU)


@pytest.mark.parametrize("step", [5, 6, 19])
def test_a_gradient_that_overflows_once_is_neither_saved_nor_a_result(tmp_path, step):
    """The loss stays finite there; with save_every 6, step 5 is saved right after."""
    model, data = make_setting()

    def spoil(number):
        if number == step:
            model.lm_head.dense.weight.register_hook(lambda grad: grad * math.inf)

    recipe = Recipe(steps=20, batch_tokens=400, save_every=6, log_every=100)
    with pytest.raises(FrugalError, match="gradient is not finite"):
        train(model, data, recipe, tmp_path, state=tmp_path, device=CPU, before_step=spoil)
    model, data = make_setting()
    again = train(model, data, recipe, tmp_path, state=tmp_path, device=CPU)
    assert math.isfinite(again["validation_loss"])


def test_epochs_become_steps():
    _, data = SETTING
    fixed = Recipe(steps=0, batch_tokens=300).fix_steps(data, epochs=3)
    plans = [data.plan(300, seed=0, epoch=e) for e in range(3)]
    assert fixed.steps == sum(len(plan) for plan in plans)
    for plan in plans:
        assert sorted(np.concatenate(plan).tolist()) == data.rows.tolist()


@given(st.integers(2, 200), st.floats(0.02, 0.98))
def test_split_is_a_partition(count, fraction):
    _, data = SETTING
    rows = TokenList([np.array([4, 5], np.uint8)] * count)
    split = TrainingData.split(rows, data.codec, fraction)
    both = np.concatenate([split.rows, split.held_out_rows])
    assert sorted(both.tolist()) == list(range(count))
    assert len(split.rows) >= 1
    assert len(split.held_out_rows) == min(max(1, round(fraction * count)), count - 1)


SETTING = make_setting()


@given(st.integers(1, 500), st.floats(0, 0.5))
def test_schedule_rises_then_falls(steps, warmup):
    factors = [scale_learning_rate(step, steps, warmup) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert top == max(1, round(warmup * steps)) - 1


def test_loss_is_the_mean_over_targets_only():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=random)
    labels = torch.full((2, 5), IGNORED)
    labels[0, 1], labels[1, 3] = 4, 6
    logs = logits.double().log_softmax(-1)
    expected = -(logs[0, 1, 4] + logs[1, 3, 6]) / 2
    assert masked_loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-6)
    assert masked_loss(logits, torch.full((2, 5), IGNORED)).item() == 0


def test_validation_loss_does_not_depend_on_batches():
    model, data = SETTING
    losses = [
        validate(model, data, Recipe(steps=1, batch_tokens=tokens), CPU) for tokens in (1, 60, 9999)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)


def test_pads_are_no_targets_and_change_no_gradient():
    model, data = make_setting()
    sequences = TokenList([np.full(4, 5, np.uint8), np.full(30, 6, np.uint8)])
    batch = make_batch(sequences, np.array([0, 1]), data.codec, seed=1, epoch=0, rate=0.5)
    assert (batch.labels[0, 5:] == IGNORED).all()
    gradients = []
    for masks in (slice(None), slice(0, 6)):
        model.zero_grad()
        out = model(
            input_ids=batch.input_ids[:1, masks], attention_mask=batch.attention_mask[:1, masks]
        )
        masked_loss(out.logits, batch.labels[:1, masks]).backward()
        gradients.append(model.lm_head.dense.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_muon_takes_matrices_of_the_blocks_and_adamw_the_rest():
    model, _ = make_setting()
    adamw, muon = make_optimizers(model, "muon", learning_rate=1e-3, weight_decay=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    inner = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    outer = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert inner | outer == set(names.values())
    assert not inner & outer
    assert inner == {n for n, p in model.named_parameters() if ".layer." in n and p.ndim == 2}
    undecayed = {names[id(p)] for p in adamw.param_groups[1]["params"]}
    assert "esm.embeddings.word_embeddings.weight" in undecayed
    assert all(group["weight_decay"] == 0 for group in adamw.param_groups[1:])


def test_gates_are_adamws_and_not_decayed():
    model, _ = make_setting(attention="gated")
    adamw, muon = make_optimizers(model, "muon", learning_rate=1e-3, weight_decay=0.1)
    gates = {id(p) for name, p in model.named_parameters() if "gate_" in name}
    assert len(gates) == 2 * 3
    assert gates <= {id(p) for p in adamw.param_groups[1]["params"]}
    assert adamw.param_groups[1]["weight_decay"] == 0
    assert not gates & {id(p) for group in muon.param_groups for p in group["params"]}

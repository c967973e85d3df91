"""Probes: what they predict is what everything would have taken, had it been run."""

import numpy as np
import pyarrow as pa
import pytest

from frugalfm.artifacts import open_stage
from frugalfm.encoders import create_encoder
from frugalfm.influence import HeadGradients, LayerGradients, MaskScheme, ScoreRecipe, probe
from frugalfm.influence.probe import (
    draw_sample,
    probe_scoring,
    probe_training,
    resident_bytes,
    score_shapes,
    train_shapes,
    watch_memory,
)
from frugalfm.sequences import shards as shards_room
from frugalfm.sequences.shards import ShardWriter, open_shards, shard_schema
from frugalfm.tokens.batches import plan_by_length
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.store import TokenList
from frugalfm.training.data import TrainingData
from frugalfm.training.loop import Recipe


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def made():
    model, tokenizer = create_encoder("rna-fm-nano")
    return model.eval(), Codec.from_tokenizer(tokenizer)


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_room, "GROUP_ROWS", 100)
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 300, 400)
    table = pa.table(
        {
            "id": [f"s{i}" for i in range(400)],
            "sequence": ["".join(rng.choice(list("ACGU"), n)) for n in lengths],
            "length": pa.array(lengths, pa.int32()),
        }
    )
    with open_stage(tmp_path / "shards", "shards", {"alphabet": "rna"}, {}) as stage:
        with ShardWriter(stage.work, shard_schema()) as writer:
            for batch in table.to_batches(50):
                writer.write(batch)
        return open_shards(stage.commit(writer.summary()))


def test_a_sample_is_random_rows_of_the_pool(shards, made, monkeypatch):
    clock = Clock()
    sample = draw_sample(shards, made[1], 150, 0, clock)
    ids = sample.ids.to_pylist()
    assert len(set(ids)) == len(sample.tokens) == 150
    assert ids != sorted(ids)
    rows = {row["id"]: row for b in shards.batches() for row in b.to_pylist()}
    assert [rows[i]["sequence"] for i in ids] == sample.letters.to_pylist()
    assert sample.lengths.tolist() == [rows[i]["length"] for i in ids]
    everything = draw_sample(shards, made[1], 10_000, 1, clock)
    assert sorted(everything.ids.to_pylist()) == sorted(rows)
    monkeypatch.setattr(probe, "_GROUPS", 2)
    assert len(draw_sample(shards, made[1], 10_000, 1, clock).tokens) == 200


@pytest.mark.parametrize("kind", [HeadGradients, LayerGradients])
def test_scoring_is_predicted_from_a_few_batches(shards, made, kind, monkeypatch):
    """The time of a batch is told by a formula; the prediction is its sum over all batches."""
    clock, sizes = Clock(), []
    gradients = kind(made[0], made[1], masks=MaskScheme("groups", 7, 2))

    def formula(sequences):
        width = (max(map(len, sequences)) + 2) * gradients.rows_per_sequence
        return len(sequences) * width * (1e-5 + 1e-7 * width)

    def pretend(_, __, sequences, ___):
        sizes.append(len(sequences))
        # Now and then something else keeps the machine busy.
        clock.now += formula(sequences) * (10 if len(sizes) % 11 == 0 else 1)

    monkeypatch.setattr(probe, "score_sequences", pretend)
    recipe = ScoreRecipe(batch_tokens=1000, fisher="rank-1")
    sample = draw_sample(shards, made[1], 400, 0, clock)
    rates, peak = probe_scoring(gradients, sample, recipe, 30, clock)
    shapes = score_shapes(gradients, sample.lengths, 1000)
    widths = (sample.lengths + 2) * gradients.rows_per_sequence
    plan = plan_by_length(widths - 2, 1000)
    expected = sum(formula([sample.tokens[row] for row in batch]) for batch in plan)
    assert rates.total(shapes) == pytest.approx(expected, rel=1e-3)
    assert shapes.count == len(plan) > 3
    assert len(rates.widths) <= 7
    assert 1e7 < peak.host < 1e11
    assert peak.device is None


@pytest.mark.parametrize("pack", [None, 400])
def test_training_is_predicted_from_a_few_batches(shards, made, pack, monkeypatch, tmp_path):
    clock = Clock()
    model, codec = made
    sample = draw_sample(shards, codec, 400, 0, clock)
    recipe = Recipe(steps=1, batch_tokens=2000, pack=pack)

    def formula(batch):
        rows, width = batch.input_ids.shape
        return rows * width * (1e-4 + 1e-6 * width)

    def pretend(_, data, recipe, folder, *, state, device, label, before_step):
        made = recipe.plan(data, 0)
        for step, make in enumerate(made):
            before_step(step)
            batch = make()
            clock.now += formula(batch) * (5 if step == 0 else 1)  # the first one is slow
            if step + 1 == recipe.save_every:
                (state / "saved").write_bytes(bytes(1000))
                clock.now += 0.25

    def validate(_, data, __, ___):
        clock.now += 1e-6 * sum(data.held_out.lengths[row] + 2 for row in data.held_out_rows)

    monkeypatch.setattr(probe, "train", pretend)
    monkeypatch.setattr(probe, "validate", validate)
    device = next(model.parameters()).device
    found = probe_training(model, sample, codec, recipe, device, tmp_path, 60, clock)
    store, everything = TokenList(sample.tokens), np.arange(400)
    data = TrainingData(store, everything, store, everything[:1], codec)
    expected = sum(formula(make()) for make in recipe.plan(data, 0))
    shapes = train_shapes(sample.lengths, codec, recipe)
    assert found.rates.total(shapes) == pytest.approx(expected, rel=1e-3)
    assert found.save_seconds == pytest.approx(0.25)
    assert found.save_bytes == 1000
    assert found.validation_seconds == pytest.approx(1e-6)


def test_slow_steps_are_tried_less(shards, made, monkeypatch, tmp_path):
    clock, taken = Clock(), []

    def pretend(_, data, recipe, __, *, before_step, **___):
        for step in range(recipe.steps):
            before_step(step)
            clock.now += 100
            taken.append(step)

    monkeypatch.setattr(probe, "train", pretend)
    monkeypatch.setattr(probe, "validate", lambda *_: None)
    sample = draw_sample(shards, made[1], 400, 0, clock)
    recipe = Recipe(steps=1, batch_tokens=2000)
    device = next(made[0].parameters()).device
    probe_training(made[0], sample, made[1], recipe, device, tmp_path, 10, clock)
    assert len(taken) == 3


def test_the_real_loop_can_be_probed(shards, tmp_path):
    import time

    model, tokenizer = create_encoder("rna-fm-nano")
    codec = Codec.from_tokenizer(tokenizer)
    sample = draw_sample(shards, codec, 60, 0, time.perf_counter)
    recipe = Recipe(steps=1, batch_tokens=1000)
    device = next(model.parameters()).device
    clock = time.perf_counter
    folder = tmp_path / "probe"
    folder.mkdir()
    found = probe_training(model, sample, codec, recipe, device, folder, 0.1, clock)
    parameters = sum(p.numel() for p in model.parameters())
    assert 12 * parameters < found.save_bytes < 13 * parameters + 1e5
    assert (found.rates.seconds > 0).all()
    assert found.validation_seconds > 0
    assert not any(folder.iterdir())


def test_a_peak_in_between_is_seen(made):
    import time

    device = next(made[0].parameters()).device
    before = resident_bytes()
    with watch_memory(device) as peaks:
        block = np.ones(30_000_000)
        time.sleep(0.1)
        del block
    assert peaks[0].host > before + 200e6

"""Options become a plan: presets first, options on top of them, defaults below."""

import numpy as np
import pytest
from tuning_tasks import make_maps, make_task

from frugalfm.encoders import create_encoder
from frugalfm.errors import InputError
from frugalfm.tasks import read_task
from frugalfm.tokens.codec import Codec
from frugalfm.training.settings import TuningOptions, default_rate


@pytest.fixture(scope="module")
def codec():
    return Codec.from_tokenizer(create_encoder("rna-fm-nano")[1])


@pytest.fixture
def task(tmp_path):
    return read_task(make_task(tmp_path / "t", sizes=(8, 8, 8)), "rna")


def test_preset_and_options(tmp_path, task, codec):
    options = TuningOptions(method="full", preset="gue/mouse", epochs=2)
    plan = options.plan(tmp_path, task, codec, 768)
    assert (plan.recipe.epochs, plan.recipe.max_steps, plan.recipe.warmup_steps) == (2, 1000, 30)
    assert plan.max_tokens is None  # the preset's are DNABERT-2's, of several residues each
    assert plan.preset == "gue/mouse"
    assert "save_every" not in plan.identity()
    assert plan.summarise()["effective_batch_size"] == 32
    assert "preset gue/mouse" in plan.describe()
    bare = TuningOptions().plan(tmp_path, task, codec, 768)
    assert (bare.recipe.epochs, bare.recipe.start, bare.preset) == (5, "probe", None)


def test_the_rate_goes_with_the_inverse_of_the_width():
    assert default_rate("full", 768) == 3e-5  # as published for DNABERT-2
    assert default_rate("lora", 768) == default_rate("qlora", 768) == 1e-4
    widths = np.array([64, 128, 640, 1152])
    rates = np.array([default_rate("full", int(width)) for width in widths])
    np.testing.assert_allclose(rates * widths, 3e-5 * 768, rtol=0.03)
    assert [default_rate("lora", width) for width in (64, 128, 1536)] == [1.4e-2, 3.6e-3, 5e-5]


def test_a_rate_that_is_given_is_taken(tmp_path, task, codec):
    options = TuningOptions(learning_rate=0.5, head_learning_rate=0.25)
    plan = options.plan(tmp_path, task, codec, 64)
    assert (plan.recipe.learning_rate, plan.recipe.head_learning_rate) == (0.5, 0.25)
    assert "0.5 (0.25 for the head)" in plan.describe()


def test_a_head_without_a_probe_moves_faster(tmp_path, codec):
    task = read_task(make_maps(tmp_path / "m", sizes=(4, 4, 4)), "rna")
    recipe = TuningOptions(learning_rate=1e-3).plan(tmp_path, task, codec, 64).recipe
    assert recipe.head_learning_rate == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_tokens": 20}, "--max-tokens"), ({"pooling": "cls"}, "--pooling")],
)
def test_maps_take_neither_cuts_nor_a_first_token(tmp_path, codec, options, message):
    task = read_task(make_maps(tmp_path / "m", sizes=(4, 4, 4)), "rna")
    with pytest.raises(InputError, match=message):
        TuningOptions(**options).plan(tmp_path, task, codec, 64)


@pytest.mark.parametrize("decay", [-0.1, float("nan"), float("inf")])
def test_a_weight_decay_is_finite_and_not_negative(decay):
    with pytest.raises(InputError, match="--weight-decay must be at least 0"):
        TuningOptions(weight_decay=decay)

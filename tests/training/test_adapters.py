"""Adapters: only they are trained, they merge and reload exactly, 4 bits included."""

import copy
import importlib.util

import numpy as np
import pytest
import torch
from torch import nn
from tuning_tasks import make_task

from frugalfm.encoders import create_encoder
from frugalfm.encoders.anatomy import describe_encoder
from frugalfm.encoders.heads import add_head
from frugalfm.errors import InputError
from frugalfm.tasks import read_task
from frugalfm.tokens.codec import Codec
from frugalfm.training.adapters import (
    ADAPTERS,
    add_adapter,
    check_method,
    merge_adapter,
)
from frugalfm.training.labelled import TuningData
from frugalfm.training.tuned import evaluate_tuned, make_tunable
from frugalfm.training.tuning import TuningRecipe, predict, tune

FAST = TuningRecipe(epochs=8, learning_rate=1e-2, warmup_steps=2, start="random")
METHODS = [
    pytest.param(name, marks=pytest.mark.skipif(
        any(importlib.util.find_spec(found) is None for found in needed), reason="optional"
    ))
    for name, needed in {
        "lora": ["peft"],
        "qlora": ["peft", "bitsandbytes"],
        "loftq": ["peft", "bitsandbytes"],
    }.items()
]  # fmt: skip
FOUR_BIT = METHODS[1:]


@pytest.fixture(scope="module")
def encoder():
    return create_encoder("rna-fm-nano", seed=0)


@pytest.fixture
def task(tmp_path):
    return read_task(make_task(tmp_path / "t"), "rna")


def nf4(weight):
    """The nearest of NF4's 16 levels, times the largest of each 64: plain, not doubly."""
    import bitsandbytes as bnb

    levels = bnb.functional.get_4bit_type("nf4", device="cpu").double()
    blocks = weight.double().reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / scale)[:, :, None].sub(levels).abs().argmin(-1)
    return (levels[nearest] * scale).reshape(weight.shape).float()


@pytest.mark.parametrize("method", METHODS)
def test_learns_and_trains_nothing_but_adapter_and_head(encoder, task, method):
    codec = Codec.from_tokenizer(encoder[1])
    model = make_tunable(encoder[0], task, method, FAST)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    tuned = tune(model, task, FAST, codec)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    trained = {n for n in before if "lora_" in n or "modules_to_save" in n}
    assert changed == trained
    targets = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained if "lora_" in name}
    assert targets == {"query", "key", "value"}
    assert tuned.parameters == sum(before[name].numel() for name in trained)
    result = evaluate_tuned(model, task, FAST, codec, max_tokens=None, how={}, resamples=0)
    assert result.metrics["test"]["mcc"]["value"] > 0.7


@pytest.mark.parametrize("method", METHODS)
def test_merging_changes_nothing(encoder, task, method):
    codec = Codec.from_tokenizer(encoder[1])
    recipe = TuningRecipe(max_steps=8, learning_rate=1e-2, warmup_steps=1, start="random")
    model = make_tunable(encoder[0], task, method, recipe)
    tune(model, task, recipe, codec)
    data = TuningData.encode(task.test, task.kind, codec, None)
    before = predict(model, data, recipe)
    merged = merge_adapter(model)
    assert type(merged).__name__ == "PooledEsmForSequenceClassification"
    fresh = add_head(encoder[0], "single_label", task.classes)
    assert merged.state_dict().keys() == fresh.state_dict().keys()
    np.testing.assert_allclose(predict(merged, data, recipe), before, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_adapter_starts_at_the_model(encoder, task, method):
    """LoRA exactly; in 4 bits as near as they are, with LoftQ nearer."""
    fresh = add_head(encoder[0], "single_label", task.classes, FAST.seed)
    model = make_tunable(encoder[0], task, method, FAST).eval()
    ids = torch.randint(4, 8, (4, 12))
    mask = torch.ones_like(ids)
    with torch.no_grad():
        expected, found = fresh(ids, mask).logits, model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if method == "lora" else 0.2)


@pytest.mark.parametrize("method", FOUR_BIT)
def test_gradients_survive_an_evaluation(encoder, task, method):
    """On some CPUs bitsandbytes repacks 4-bit weights in evaluation, and gradients go wrong."""
    model = make_tunable(encoder[0], task, method, FAST)
    ids = torch.randint(4, 8, (4, 12))
    mask = torch.ones_like(ids)

    def gradient(found):
        found.train()
        found.zero_grad()
        torch.manual_seed(0)
        found(input_ids=ids, attention_mask=mask).logits.square().sum().backward()
        return torch.cat([p.grad.flatten() for p in found.parameters() if p.grad is not None])

    before = gradient(model)
    model.eval()
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(gradient(model), before)


@pytest.mark.parametrize("method", FOUR_BIT)
def test_all_linears_of_the_layers_are_in_4_bits(encoder, task, method):
    import bitsandbytes as bnb

    model = make_tunable(encoder[0], task, method, FAST)
    layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 6 * 3
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="optional")
def test_qlora_rounds_as_nf4_does(encoder, task):
    from frugalfm.training.four_bit import from_nf4

    model = make_tunable(encoder[0], task, "qlora", FAST).get_base_model()
    name = describe_encoder(encoder[0]).blocks[0].ffn_in
    weight = encoder[0].get_submodule(name).weight.detach()
    found = from_nf4(model.get_submodule(name).weight)
    # Double quantization rounds the scales of blocks to 8 bits.
    torch.testing.assert_close(found, nf4(weight), rtol=0.02, atol=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="optional")
def test_loftq_is_nearer_to_the_weight_than_4_bits():
    from frugalfm.training.four_bit import from_nf4, split_weight, to_nf4

    torch.manual_seed(0)
    linear = nn.Linear(64, 64)
    with torch.no_grad():
        weight = linear.weight.copy_(torch.randn(64, 64)).detach()
    plain = (weight - from_nf4(to_nf4(weight))).norm()
    errors = []
    for iterations in (1, 5):
        kept, left, right = split_weight(linear.weight, 16, iterations)
        errors.append((weight - from_nf4(to_nf4(kept)) - left @ right).norm())
        assert left.shape == (64, 16)
    assert errors[1] < errors[0] < plain
    # One iteration is the best product for what rounding leaves: Eckart and Young.
    residual = (weight - from_nf4(to_nf4(weight))).double()
    tail = torch.linalg.svdvals(residual)[16:].norm()
    assert float(errors[0]) == pytest.approx(float(tail), rel=1e-4)


def test_recipes_and_ranks():
    assert (ADAPTERS["lora"].rank, ADAPTERS["lora"].alpha, ADAPTERS["lora"].dropout) == (
        8,
        16,
        0.05,
    )
    assert (ADAPTERS["loftq"].rank, ADAPTERS["loftq"].iterations) == (16, 5)
    assert ADAPTERS["lora"].changed(4).alpha == 8
    assert ADAPTERS["lora"].changed(None) is ADAPTERS["lora"]


def test_a_missing_library_names_the_extra(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else found(name)
    )
    check_method("full")
    for method in ("lora", "qlora", "loftq"):
        with pytest.raises(InputError, match=r"frugalfm\[tune\]"):
            check_method(method)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="optional")
def test_the_encoder_itself_is_left_alone(encoder, task):
    before = copy.deepcopy(encoder[0].state_dict())
    model = add_adapter(add_head(encoder[0], "single_label", task.classes), ADAPTERS["lora"])
    tune(model, task, TuningRecipe(max_steps=2), Codec.from_tokenizer(encoder[1]))
    for name, value in encoder[0].state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("method", METHODS)
def test_dnabert2_adapts_its_fused_projection_and_trains_its_new_pooler(method):
    from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
    from frugalfm.encoders.dnabert2.modeling import DnaBert2ForMaskedLM

    torch.manual_seed(0)
    config = DnaBert2Config(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=128,
    )  # fmt: skip
    model = add_head(DnaBert2ForMaskedLM(config), "single_label", ["0", "1"], pooling="cls")
    model = add_adapter(model, ADAPTERS[method])
    trained = {
        n.removeprefix("base_model.model.") for n, p in model.named_parameters() if p.requires_grad
    }
    fused = [f"bert.encoder.layer.{i}.attention.self.Wqkv" for i in (0, 1)]
    assert trained == {
        *(f"{name}.lora_{part}.default.weight" for name in fused for part in "AB"),
        *(f"bert.pooler.modules_to_save.default.dense.{part}" for part in ("weight", "bias")),
        *(f"classifier.modules_to_save.default.{part}" for part in ("weight", "bias")),
    }
    ids, mask = torch.randint(5, 50, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter))
        before = model.eval()(input_ids=ids, attention_mask=mask).logits
        merged = merge_adapter(model)
        torch.testing.assert_close(
            merged(input_ids=ids, attention_mask=mask).logits, before, rtol=0, atol=1e-5
        )

"""Packed batches are the padded ones without pads: the same masks, losses and gradients."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from frugalfm.attention import NAMES
from frugalfm.encoders import create_encoder
from frugalfm.encoders.catalogue import create_from_config
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.packed import make_block_mask, run_packed
from frugalfm.errors import InputError
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import IGNORED
from frugalfm.tokens.store import TokenList
from frugalfm.training import Recipe, TrainingData, train
from frugalfm.training.ahead import look_ahead
from frugalfm.training.data import make_batch, make_packed_batch
from frugalfm.training.flatten import penalise_kurtosis
from frugalfm.training.loop import masked_loss, validate

CPU = torch.device("cpu")
WIDTH = 48
PACKS = [np.array([3, 0, 5]), np.array([1]), np.array([4, 2])]
LENGTHS = (9, 40, 17, 22, 25, 6)


def make_model(kind, attention="softmax", seed=0):
    """A model without dropout whose attention looks about, and a codec that fits it."""
    if kind == "dnabert2":
        _, tokenizer = create_encoder("rna-fm-nano")
        config = DnaBert2Config(
            vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
            intermediate_size=96, hidden_dropout_prob=0.0, attention=attention,
            pad_token_id=tokenizer.pad_token_id, mask_token_id=tokenizer.mask_token_id,
        )  # fmt: skip
        model = create_from_config(config, seed)
    else:
        model, tokenizer = create_encoder(kind, attention=attention, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
            if "gate_" in name or "sink_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.train(), Codec.from_tokenizer(tokenizer)


def make_sequences(codec):
    random = np.random.default_rng(5)
    return TokenList([random.choice(codec.residue_ids, length) for length in LENGTHS])


def take(model, batch):
    """Loss and gradients of one batch."""
    model.zero_grad()
    if batch.packed:
        with run_packed(model):
            out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    else:
        out = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    loss = masked_loss(out.logits, batch.labels)
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads, out.logits.detach()


def make_both(codec, packs=PACKS, **more):
    store = make_sequences(codec)
    settings = {"seed": 3, "epoch": 1, "rate": 0.4} | more
    padded = make_batch(store, np.concatenate(packs), codec, **settings)
    return padded, make_packed_batch(store, packs, WIDTH, codec, **settings)


@pytest.mark.parametrize("attention", NAMES)
@pytest.mark.parametrize("kind", ["dnabert2", "esmc-nano", "esm2-tiny", "rna-fm-nano"])
def test_loss_and_gradients_are_the_padded_ones(kind, attention):
    """In fp64 (but for rotary angles, which are fp32 in transformers) and in fp32."""
    model, codec = make_model(kind, attention)
    padded, packed = make_both(codec)
    for dtype, limit in ((torch.float64, 1e-5), (torch.float32, 1e-4)):
        model.to(dtype)
        loss, grads, _ = take(model, padded)
        found, packed_grads, _ = take(model, packed)
        torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)
        assert grads.keys() == packed_grads.keys()
        for name, grad in grads.items():
            error = (packed_grads[name] - grad).norm() / grad.norm().clamp_min(1e-3)
            assert error < limit, (name, float(error))


@pytest.mark.parametrize("kind", ["dnabert2", "esmc-nano", "esm2-tiny", "rna-fm-nano"])
def test_a_sequence_does_not_see_its_neighbours(kind):
    """Exactly: what else is in the row changes no bit of a sequence's logits."""
    model, codec = make_model(kind)
    _, packed = make_both(codec)
    other = packed.input_ids.clone()
    strange = packed.attention_mask == 2
    other[strange] = codec.residue_ids[0]
    logits = [take(model, b)[2] for b in (packed, type(packed)(other, *_rest(packed)))]
    first = packed.attention_mask == 1
    assert torch.equal(logits[0][first], logits[1][first])
    assert not torch.equal(logits[0][strange], logits[1][strange])


def _rest(batch):
    return batch.attention_mask, batch.labels, batch.residues, batch.packed


def test_tokens_masks_and_labels_are_the_padded_ones():
    _, codec = make_model("rna-fm-nano")
    padded, packed = make_both(codec)
    assert packed.input_ids.shape == (3, WIDTH)
    assert packed.residues == padded.residues == sum(LENGTHS)
    assert packed.attention_mask.bool().sum() == padded.attention_mask.sum()
    seen = 0
    for row, pack in enumerate(PACKS):
        for number, _ in enumerate(pack, 1):
            here = packed.attention_mask[row] == number
            there = padded.attention_mask[seen].bool()
            assert torch.equal(packed.input_ids[row][here], padded.input_ids[seen][there])
            assert torch.equal(packed.labels[row][here], padded.labels[seen][there])
            seen += 1
    pads = packed.attention_mask == 0
    assert (packed.input_ids[pads] == codec.pad_id).all()
    assert (packed.labels[pads] == IGNORED).all()


def test_outside_the_context_a_model_is_as_before():
    model, codec = make_model("esm2-tiny")
    padded, packed = make_both(codec)
    before = take(model, padded)[2]
    take(model, packed)
    assert torch.equal(take(model, padded)[2], before)


def test_flattening_counts_the_same_tokens():
    found = []
    for index in (0, 1):
        model, codec = make_model("dnabert2")
        with penalise_kurtosis(model, 0.5):
            found.append(take(model, make_both(codec)[index])[1])
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-3, atol=1e-5)


def test_under_autocast_too():
    model, codec = make_model("esmc-nano", "softmax1")
    losses = []
    for batch in make_both(codec):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(take(model, batch)[0])
    assert abs(losses[0] - losses[1]) < 0.02 * losses[0]


def test_block_mask_by_hand():
    mask = make_block_mask(torch.tensor([[1, 1, 2, 0]]), torch.float32)
    expected = torch.full((4, 4), -torch.inf)
    expected[:2, :2] = expected[2, 2] = expected[3, 3] = 0
    assert torch.equal(mask, expected[None, None])


def test_other_architectures_are_refused():
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    model = AutoModelForMaskedLM.from_config(config)
    with pytest.raises(InputError, match="'bert' cannot train on packed rows"), run_packed(model):
        pass


def make_data(codec):
    random = np.random.default_rng(0)
    rows = [random.choice(codec.residue_ids, random.integers(5, 40)) for _ in range(60)]
    return TrainingData.split(TokenList(rows), codec, 0.1)


def test_training_packed_learns_and_validates_as_ever(tmp_path):
    model, tokenizer = create_encoder("rna-fm-nano", attention="softmax1", seed=1)
    codec = Codec.from_tokenizer(tokenizer)
    rows = [np.full(8 + i % 17, 4 + i % 4, np.uint8) for i in range(60)]
    data = TrainingData.split(TokenList(rows), codec, 0.1)
    recipe = Recipe(steps=60, batch_tokens=768, pack=64, learning_rate=6e-3, warmup=0.1)
    found = train(model, data, recipe, tmp_path, state=tmp_path, device=CPU)
    assert found["validation_loss"] < 0.7
    padded = Recipe(steps=1, batch_tokens=960)
    assert validate(model, data, padded, CPU) == pytest.approx(found["validation_loss"], abs=1e-6)


def test_killed_and_resumed_is_bitwise_the_same(tmp_path):
    recipe = Recipe(steps=6, batch_tokens=128, pack=64, save_every=2, log_every=1)

    def start(seed):
        model, codec = make_model("dnabert2", seed=seed)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        return model, make_data(codec)

    def kill(step):
        if step == 5:
            raise KeyboardInterrupt

    whole, data = start(1)
    (tmp_path / "whole").mkdir()
    folder = tmp_path / "whole"
    expected = train(whole, data, recipe, folder, state=folder, device=CPU)
    with pytest.raises(KeyboardInterrupt):
        train(start(1)[0], data, recipe, tmp_path, state=tmp_path, device=CPU, before_step=kill)
    resumed, _ = start(2)
    found = train(resumed, data, recipe, tmp_path, state=tmp_path, device=CPU)
    assert found["loss"] == expected["loss"]
    for name, weight in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


@pytest.mark.parametrize("attention", ["softmax", "softmax1"])
def test_compiled_layers_train_to_the_same(tmp_path, monkeypatch, attention):
    """By the compiler's front, which is quick; what its back writes is torch's own affair."""
    front = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: front(self, backend="aot_eager"))
    losses = []
    for compiled in (False, True):
        model, codec = make_model("dnabert2", attention)
        recipe = Recipe(steps=2, batch_tokens=128, pack=64, compiled=compiled, log_every=1)
        folder = tmp_path / str(compiled)
        folder.mkdir()
        found = train(model, make_data(codec), recipe, folder, state=folder, device=CPU)
        losses.append(found["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_epochs_become_steps_of_packs():
    _, codec = make_model("rna-fm-nano")
    data = make_data(codec)
    recipe = Recipe(steps=0, batch_tokens=256, pack=64)
    tokens = int((data.store.lengths[data.rows] + 2).sum())
    fixed = recipe.fix_steps(data, epochs=2)
    assert 2 * tokens / 256 <= fixed.steps <= 2 * (1.15 * tokens / 256 + 1)
    assert recipe.identity()["pack"] == 64
    assert "pack" not in Recipe(steps=0).identity()


def test_looking_ahead_changes_nothing():
    assert list(look_ahead(iter(range(9)))) == list(range(9))
    assert list(look_ahead(iter(()))) == []

    def fail():
        yield 1
        raise ValueError("made badly")

    ahead = look_ahead(fail())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="made badly"):
        next(ahead)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["dnabert2", "esmc-nano", "rna-fm-nano"])
def test_packed_on_a_gpu(kind, tmp_path):
    model, codec = make_model(kind, "softmax1")
    padded, packed = (batch.pin().to(torch.device("cuda")) for batch in make_both(codec))
    model.cuda()
    expected, found = take(model, padded)[0], take(model, packed)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    recipe = Recipe(steps=3, batch_tokens=256, pack=64, precision="bf16")
    where = torch.device("cuda")
    result = train(model, make_data(codec), recipe, tmp_path, state=tmp_path, device=where)
    assert np.isfinite(result["validation_loss"])

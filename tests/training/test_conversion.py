"""Where a swapped attention starts: at softmax's own function, to a stated distance."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, EsmConfig, EsmForMaskedLM

from frugalfm.attention.binding import find_attentions, require_attention
from frugalfm.attention.strength import get_strength, set_strength, watch_attention
from frugalfm.encoders import create_encoder
from frugalfm.encoders.catalogue import adopt_specials, create_from_config
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.errors import InputError
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.store import TokenList
from frugalfm.training.conversion import (
    check_start,
    measure_null,
    prepare_start,
    raise_strength,
    swap_attention,
)
from frugalfm.training.data import TrainingData
from frugalfm.training.loop import Recipe, validate

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from dnabert2_oracle import make_dna_tokenizer

CPU = torch.device("cpu")
SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
RECIPE = Recipe(steps=1, batch_tokens=512)


def make(kind):
    """A softmax model with scores far from zero, so that the null matters, and its data."""
    if kind == "dnabert2":
        words = make_dna_tokenizer()
        config = DnaBert2Config(vocab_size=len(words), **SIZE, attention="softmax")
        model = create_from_config(adopt_specials(config, words), 0)
    else:
        model, words = create_encoder("rna-fm-nano", seed=0)
        if kind == "rotary":
            changes = {"position_embedding_type": "rotary", "attention": "softmax"}
            model = create_from_config(EsmConfig(**(model.config.to_dict() | changes)), 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.5)
    codec = Codec.from_tokenizer(words)
    random = np.random.default_rng(0)
    top = len(words) if kind == "dnabert2" else 8
    rows = [random.integers(5, top, random.integers(3, 30)).astype(np.uint8) for _ in range(40)]
    return model.eval(), TrainingData.split(TokenList(rows), codec, 0.5)


def lose(model, data):
    return validate(model, data, RECIPE, CPU)


def look(data):
    return list(data.validation_batches(512))


@pytest.mark.parametrize("attention", ["softmax1", "sink", "clipped"])
@pytest.mark.parametrize("kind", ["absolute", "rotary", "dnabert2"])
def test_annealing_starts_at_softmax_and_ends_elsewhere(kind, attention):
    model, data = make(kind)
    before = lose(model, data)
    made = prepare_start(model, attention, "anneal", look(data))
    require_attention(made, attention)
    set_strength(made, 0.0)
    assert lose(made, data) == pytest.approx(before, abs=1e-5)
    losses = []
    for strength in (1e-6, 0.01, 0.5, 1.0):
        set_strength(made, strength)
        losses.append(abs(lose(made, data) - before))
    assert losses[0] < 2e-5  # Nothing happens all at once.
    assert losses[-1] > 1e-4
    # What is left after the run is the attention that the config names.
    fresh = swap_attention(model, attention)
    assert lose(made, data) == lose(fresh, data)


@pytest.mark.parametrize("kind", ["absolute", "rotary", "dnabert2"])
def test_gates_start_exactly_by_doubling(kind):
    model, data = make(kind)
    before = lose(model, data)
    made = prepare_start(model, "gated", "rescale", look(data))
    # sigmoid(0) and 2 are powers of two: nothing is rounded, but where fused sums differ.
    assert lose(made, data) == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("kind", ["absolute", "rotary", "dnabert2"])
def test_rescaling_is_nearer_than_swapping(kind):
    model, data = make(kind)
    outputs = run(model, data)
    plain = (run(swap_attention(model, "softmax1"), data) - outputs).norm()
    made = prepare_start(model, "softmax1", "rescale", look(data))
    assert (run(made, data) - outputs).norm() < 0.8 * plain


def run(model, data):
    """First attention output: the only one that sees the same inputs in all models."""
    batch = look(data)[0]
    found = []
    projection = next(m for n, m in model.named_modules() if n.endswith("attention.output.dense"))
    handle = projection.register_forward_hook(lambda m, i, o: found.append(o))
    with torch.no_grad():
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    handle.remove()
    return found[0][batch.attention_mask.bool()]


@pytest.mark.parametrize("kind", ["absolute", "dnabert2"])
def test_shifted_keys_leave_softmax_alone_and_hide_the_null(kind):
    model, data = make(kind)
    query_biases(model, 4.0)
    before = lose(model, data)
    plain = measure_null(swap_attention(model, "softmax1"), look(data))
    made = prepare_start(model, "softmax1", "shift", look(data))
    assert lose(model, data) == pytest.approx(before, abs=1e-5)
    null = measure_null(made, look(data))
    assert null < 2e-3 < plain
    assert lose(made, data) == pytest.approx(before, abs=5e-3)


def query_biases(model, size):
    """Queries with a common part, as trained ones have: what a shift lives on."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("query.bias"):
                parameter.fill_(size)
            if name.endswith("Wqkv.bias"):
                parameter[: len(parameter) // 3].fill_(size)


def test_shifting_rotated_keys_is_refused():
    model, data = make("rotary")
    query_biases(model, 4.0)
    with pytest.raises(InputError, match="rotate"):
        prepare_start(model, "softmax1", "shift", look(data))


def test_null_is_what_is_missing_from_the_weights():
    """Against attention over values of one: what comes out is the mass."""
    model, data = make("absolute")
    made = swap_attention(model, "sink")
    with torch.no_grad():
        for module in find_attentions(made):
            module.sink_logit.normal_()
    set_strength(made, 0.3)
    batch = look(data)[0]
    shares = []

    def see(number, module, query, key, value, bias, scale):
        powers = torch.exp((query @ key.mT * scale + bias).double())
        null = 0.3 * module.sink_logit.double().exp()[:, None]
        share = null / (null + powers.sum(-1))
        shares.append(share.transpose(0, 1)[:, batch.attention_mask.bool()].mean())

    with watch_attention(made, see), torch.no_grad():
        made(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    assert measure_null(made, [batch]) == pytest.approx(float(sum(shares)) / len(shares), rel=1e-5)
    assert measure_null(model, [batch]) is None
    assert "attention_observer" not in find_attentions(made)[0].__dict__
    assert get_strength(find_attentions(made)[0]) == 0.3


def test_strength_rises_and_stays():
    found = [raise_strength(step, 10, 0.5) for step in range(10)]
    assert found[:6] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[6:] == [1.0] * 4
    assert raise_strength(0, 1, 0.1) == 0.0
    model, _ = create_encoder("rna-fm-nano", attention="softmax1")
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        set_strength(model, 1.5)


def test_starts_that_make_no_sense_are_refused():
    assert check_start("softmax", "softmax1", None) == "anneal"
    assert check_start("softmax", "gated", None) == "rescale"
    assert check_start("sink", "sink", None) == "plain"
    with pytest.raises(InputError, match="rescale or plain"):
        check_start("softmax", "gated", "anneal")
    with pytest.raises(InputError, match="only softmax"):
        check_start("softmax1", "sink", None)
    with pytest.raises(InputError, match="already"):
        check_start("softmax", "softmax", "shift")


def test_swapping_keeps_every_weight_and_other_architectures_work():
    config = BertConfig(vocab_size=20, **SIZE, attention="softmax")
    model = create_from_config(config, 3)
    made = swap_attention(model, "sink")
    old = model.state_dict()
    for name, value in made.state_dict().items():
        if name.endswith("sink_logit"):
            assert torch.equal(value, torch.zeros(4))
        else:
            assert torch.equal(value, old[name])
    assert model.config.attention == "softmax"
    assert not isinstance(made, EsmForMaskedLM)

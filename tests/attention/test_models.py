"""Every attention in every kind of model that uses transformers' interface; others are refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    DebertaV2Model,
    EsmcConfig,
    EsmConfig,
    FNetConfig,
    FNetModel,
    ModernBertConfig,
)

from frugalfm.attention import NAMES, interface
from frugalfm.attention.binding import find_attentions, require_attention
from frugalfm.encoders import create_encoder, load_encoder, open_model, save_encoder
from frugalfm.errors import InputError

SIZE = {
    "vocab_size": 33,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 1,
}
CONFIGS = {
    "esm": lambda **more: EsmConfig(
        **SIZE, mask_token_id=32, position_embedding_type="rotary", **more
    ),
    "bert": lambda **more: BertConfig(**SIZE, **more),
    # Windows of 4 tokens to either side in all layers but every third.
    "modernbert": lambda **more: ModernBertConfig(
        **SIZE, local_attention=8, bos_token_id=0, eos_token_id=2, cls_token_id=0, sep_token_id=2,
        **more,
    ),
    "esmc": lambda **more: EsmcConfig(**SIZE, **more),
}  # fmt: skip
PARAMETERS = {"sink": ["sink_logit"], "gated": ["gate_weight", "gate_bias"]}


def make(kind, attention, **more):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(CONFIGS[kind](attention=attention, **more)).eval()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.split(".")[-1] in PARAMETERS.get(attention, []):
            torch.nn.init.normal_(parameter)
        elif parameter.ndim == 2:
            # Larger weights than at the start of training, so that attention attends to something.
            parameter.data.mul_(4)
    return model


def make_batch():
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 30, (3, 21), generator=generator)
    mask = torch.ones(3, 21, dtype=torch.long)
    for row, length in enumerate((21, 6, 13)):
        mask[row, length:] = 0
    return ids.masked_fill(mask == 0, 1), mask


def attend_as_defined(name, module, arguments):
    """The definitions, with all probabilities in memory and autograd for the backward pass."""
    query, key, value, bias, scale, dropout = arguments
    assert dropout == 0
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias
    empty = torch.isneginf(scores).all(-1, keepdim=True)
    powers = torch.exp(scores)
    total = powers.sum(-1, keepdim=True).masked_fill(empty, 1.0)
    if name == "softmax1":
        total = total + 1
    if name == "sink":
        total = total + torch.exp(module.sink_logit)[:, None, None]
    weights = powers / total
    if name == "clipped":
        gamma = 4 / (powers > 0).sum(-1, keepdim=True).clamp_min(1)
        weights = ((1 + gamma) * weights - gamma).clamp(0, 1)
    out = weights @ value
    if name == "gated":
        logits = torch.einsum("bqd,hd->bhq", module.entered, module.gate_weight)
        out = out * torch.sigmoid(logits + module.gate_bias[:, None]).unsqueeze(-1)
    return out


def note_input(module, args, kwargs):
    module.entered = args[0] if args else kwargs["hidden_states"]


def differentiate(model, ids, mask):
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask).logits
    kept = logits[mask == 1]
    kept.square().mean().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return kept.detach(), gradients


@pytest.mark.parametrize("attention", NAMES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_model_computes_the_definition(kind, attention, monkeypatch):
    model = make(kind, attention)
    require_attention(model, attention)
    ids, mask = make_batch()
    found, gradients = differentiate(model, ids, mask)
    for module in find_attentions(model):
        module.register_forward_pre_hook(note_input, with_kwargs=True)
    monkeypatch.setattr(interface, "_attend", attend_as_defined)
    expected, references = differentiate(model, ids, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == references.keys()
    for name, reference in references.items():
        assert (gradients[name] - reference).norm() <= 1e-4 * reference.norm() + 1e-7, name
    learned = [n for n in gradients if n.split(".")[-1] in PARAMETERS.get(attention, [])]
    assert len(learned) == 3 * len(PARAMETERS.get(attention, []))
    assert all(gradients[n].abs().max() > 0 for n in learned)


@pytest.mark.parametrize("attention", NAMES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_pads_are_never_attended(kind, attention):
    model = make(kind, attention)
    ids, mask = make_batch()
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).logits
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = model(input_ids=ids[row : row + 1, :length]).logits[0]
            torch.testing.assert_close(together[row, :length], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_softmax_is_the_models_own(kind):
    """Sliding windows included: the masks are transformers', only their form is ours."""
    ours, own = make(kind, "softmax"), make(kind, None, attn_implementation="sdpa")
    assert ours.config._attn_implementation == "softmax"
    assert own.config._attn_implementation == "sdpa"
    ids, mask = make_batch()
    with torch.no_grad():
        found, expected = (m(input_ids=ids, attention_mask=mask).logits for m in (ours, own))
    torch.testing.assert_close(found[mask == 1], expected[mask == 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", NAMES)
@pytest.mark.parametrize("kind", CONFIGS)
def test_round_trip(kind, attention, tmp_path):
    model = make(kind, attention)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention"] == attention
    again, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    require_attention(again, attention)
    ids, mask = make_batch()
    with torch.no_grad():
        found, expected = (m(input_ids=ids, attention_mask=mask).logits for m in (again, model))
    assert torch.equal(found, expected)
    headless = AutoModel.from_pretrained(tmp_path)
    for name in PARAMETERS.get(attention, []):
        for ours, theirs in zip(find_attentions(headless), find_attentions(model), strict=True):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))


def test_setting_is_stored_and_used(tmp_path):
    model = make("bert", "clipped", attention_alpha=1.0)
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    other = make("bert", "clipped")
    ids, mask = make_batch()
    with torch.no_grad():
        first, second, third = (
            m(input_ids=ids, attention_mask=mask).logits for m in (model, again, other)
        )
    assert torch.equal(first, second)
    assert not torch.allclose(first, third)


@pytest.mark.parametrize("attention", ["sink", "gated"])
def test_loading_is_strict_about_learned_parameters(attention, tmp_path):
    model, tokenizer = create_encoder("rna-fm-nano", attention=attention)
    save_encoder(model, tokenizer, tmp_path)
    loaded, _ = load_encoder(tmp_path)
    require_attention(loaded, attention)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if name.endswith(PARAMETERS[attention][0]))
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"1 missing keys: .*{lost.split('.')[-1]}"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("attention", ["sink", "gated"])
def test_missing_parameters_start_at_zero(attention, tmp_path):
    """Swapping the attention of a softmax checkpoint must not start from uninitialised memory."""
    make("bert", "softmax").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text()) | {"attention": attention, "attn_implementation": None}
    file.write_text(json.dumps(config))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path)
    for module in find_attentions(model):
        for name in PARAMETERS[attention]:
            assert torch.equal(getattr(module, name), torch.zeros_like(getattr(module, name)))


def test_attention_asked_for_by_name_is_stored(tmp_path):
    config = BertConfig(**SIZE, attn_implementation="sink")
    model = AutoModelForMaskedLM.from_config(config)
    require_attention(model, "sink")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention"] == "sink"
    require_attention(AutoModelForMaskedLM.from_pretrained(tmp_path), "sink")


def test_switching_a_finished_model_makes_its_parameters():
    model = AutoModelForMaskedLM.from_config(BertConfig(**SIZE))
    model.set_attn_implementation("gated")
    require_attention(model, "gated")
    assert len([n for n, _ in model.named_parameters() if n.endswith("gate_weight")]) == 3


def test_autocast_brings_inputs_to_one_dtype():
    model = make("esm", "softmax1")
    ids, mask = make_batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(input_ids=ids, attention_mask=mask).logits
    with torch.no_grad():
        exact = model(input_ids=ids, attention_mask=mask).logits
    found, exact = found[mask == 1].float(), exact[mask == 1]
    assert (found - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("attention", [name for name in NAMES if name != "softmax"])
@pytest.mark.parametrize(
    ("model_class", "config_class"), [(DebertaV2Model, DebertaV2Config), (FNetModel, FNetConfig)]
)
def test_model_outside_the_interface_is_refused(attention, model_class, config_class, tmp_path):
    with pytest.raises(InputError, match=f"{model_class.__name__} cannot run attention"):
        model_class(config_class(**SIZE, attention=attention))
    plain = model_class(config_class(**SIZE))
    with pytest.raises(InputError, match="cannot run attention"):
        require_attention(plain, attention)
    require_attention(plain, "softmax")
    plain.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention": attention}))
    with pytest.raises(InputError, match="cannot run attention"):
        AutoModel.from_pretrained(tmp_path)


def test_require_attention_tells_what_runs():
    model = make("bert", "softmax")
    with pytest.raises(InputError, match="runs softmax, not softmax1"):
        require_attention(model, "softmax1")
    with pytest.raises(InputError, match="there are: softmax, softmax1, clipped, gated, sink"):
        require_attention(model, "sparsemax")
    with pytest.raises(InputError, match="runs sink, not softmax"):
        require_attention(make("bert", "sink"), "softmax")


@pytest.mark.parametrize("attention", NAMES)
def test_open_model_takes_every_name(attention, tmp_path):
    model, tokenizer, _ = open_model("rna-fm-nano", attention=attention)
    save_encoder(model, tokenizer, tmp_path)
    again, _, _ = open_model(str(tmp_path), attention=attention)
    require_attention(again, attention)
    other = "softmax" if attention != "softmax" else "sink"
    with pytest.raises(InputError, match="cannot continue with"):
        open_model(str(tmp_path), attention=other)

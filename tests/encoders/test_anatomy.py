"""The catalogue names the modules that it says, and refuses what it does not know."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    EsmForSequenceClassification,
)

from frugalfm.encoders import create_encoder
from frugalfm.encoders.anatomy import describe_encoder
from frugalfm.encoders.devices import choose_device
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.dnabert2.modeling import (
    DnaBert2ForMaskedLM,
    DnaBert2ForSequenceClassification,
)
from frugalfm.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from architectures import DESCRIBED, make_batch, make_mlm


@pytest.fixture
def model():
    return create_encoder("rna-fm-tiny")[0]


def test_every_name_is_a_module_of_its_kind(model):
    anatomy = describe_encoder(model)
    assert len(anatomy.blocks) == model.config.num_hidden_layers
    assert anatomy.pre_norm
    for block in anatomy.blocks:
        assert len(block.linears) == 6
        assert all(isinstance(model.get_submodule(name), nn.Linear) for name in block.linears)
        assert model.get_submodule(block.ffn_in).out_features == model.config.intermediate_size
        assert model.get_submodule(block.ffn_out).in_features == model.config.intermediate_size
    assert anatomy.head == ("lm_head.dense", "lm_head.decoder")
    assert list(anatomy.unused) == ["esm.contact_head.regression"]


def test_final_layer_norm_reads_the_output_of_its_layer(model):
    """Found by running: what enters the named LayerNorm is what left the layer."""
    anatomy = describe_encoder(model)
    left, read = {}, {}
    for block in anatomy.blocks:
        model.get_submodule(block.name).register_forward_hook(
            lambda m, i, out, name=block.name: left.update({name: out})
        )
        model.get_submodule(block.output_norm).register_forward_pre_hook(
            lambda m, inputs, name=block.name: read.update({name: inputs[0]})
        )
    ids = torch.tensor([[0, 4, 5, 6, 7, 2]])
    with torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert len(left) == len(anatomy.blocks)
    for name, out in left.items():
        assert torch.equal(read[name], out)


def test_other_heads_are_found(model):
    labelled = EsmForSequenceClassification(model.config)
    assert describe_encoder(labelled).head == ("classifier.dense", "classifier.out_proj")
    assert describe_encoder(model.esm).head == ()


@pytest.mark.parametrize("kind", DESCRIBED)
def test_names_are_what_runs(kind):
    """Found by running: each linear is called with the width and in the order that is said."""
    model = make_mlm(kind)
    anatomy = describe_encoder(model)
    assert len(anatomy.blocks) == 3
    calls, left, entered = [], {}, {}

    def watch(name):
        def note(module, inputs, out):
            calls.append(name)
            entered[name] = inputs[0] if inputs else None
            left[name] = out

        return note

    for name, module in model.named_modules():
        module.register_forward_hook(watch(name))
    ids, mask = make_batch()
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    said = [name for block in anatomy.blocks for name in block.linears] + list(anatomy.head)
    assert sorted([*said, *anatomy.unused]) == sorted(linears)
    assert [name for name in calls if name in linears] == said
    for block in anatomy.blocks:
        if anatomy.pre_norm:  # what leaves the layer enters the LayerNorm
            assert torch.equal(entered[block.output_norm], left[block.name])
            assert torch.equal(entered[block.query], left[block.attention_norm])
            assert torch.equal(entered[block.ffn_in], left[block.ffn_norm])
        else:
            assert torch.equal(left[block.output_norm], left[block.name])
            assert torch.equal(entered[block.ffn_in], left[block.attention_norm])
        # What the feed-forward network adds is the last linear's output, and 48 wide inside.
        assert entered[block.ffn_out].shape == (*ids.shape, 48)
        assert left[block.ffn_out].shape == (*ids.shape, 32)


def test_a_gate_of_its_own_is_named():
    block = describe_encoder(make_mlm("esmc")).blocks[1]
    assert block.linears["esmc.layers.1.mlp.gate_proj"] == "ffn_gate"
    assert block.ffn_in == "esmc.layers.1.mlp.up_proj"
    assert describe_encoder(make_mlm("bert")).blocks[1].ffn_gate is None


@pytest.mark.parametrize("kind", ["esmc", "bert", "modernbert"])
def test_heads_for_sequences(kind):
    model = AutoModelForSequenceClassification.from_config(make_mlm(kind).config)
    head = describe_encoder(model).head
    expected = {
        "esmc": ("classifier.dense", "classifier.out_proj"),
        "bert": ("bert.pooler.dense", "classifier"),
        "modernbert": ("head.dense", "classifier"),
    }
    assert head == expected[kind]


def test_unknown_architecture_is_refused():
    with pytest.raises(InputError, match=r"'eurobert'.*known: esm, dnabert2, esmc, bert"):
        describe_encoder(make_mlm("eurobert"))
    with pytest.raises(InputError, match="Linear"):
        describe_encoder(nn.Linear(2, 2))


def test_wrapped_modules_are_refused(model):
    name = "esm.encoder.layer.1.output.dense"
    model.set_submodule(name, nn.Sequential(model.get_submodule(name)))
    with pytest.raises(InputError, match=r"layer\.1\.output\.dense is a Sequential"):
        describe_encoder(model)


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in {"cpu", "cuda"}
    with pytest.raises(InputError, match="'abacus' is not known"):
        choose_device("abacus")
    with pytest.raises(InputError, match="is not here"):
        choose_device("cuda:99")


def test_dnabert2():
    """Post-LN: a layer's last LayerNorm is its own; the projection is fused."""
    config = DnaBert2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    model = DnaBert2ForMaskedLM(config).eval()
    anatomy = describe_encoder(model)
    assert not anatomy.pre_norm
    assert anatomy.head == ("cls.predictions.transform.dense", "cls.predictions.decoder")
    for block in anatomy.blocks:
        assert block.linears == {
            block.query: "query+key+value",
            block.attention_out: "attention_out",
            block.ffn_in: "ffn_in",
            block.ffn_out: "ffn_out",
        }
        assert model.get_submodule(block.query).out_features == 48
        assert model.get_submodule(block.ffn_in).out_features == 48
        assert model.get_submodule(block.ffn_out).in_features == 24
        assert block.output_norm == block.ffn_norm
    left = {}
    for block in anatomy.blocks:
        for name in (block.name, block.output_norm):
            model.get_submodule(name).register_forward_hook(
                lambda m, i, out, name=name: left.update({name: out})
            )
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 6, 7, 8, 2]]))
    for block in anatomy.blocks:
        assert torch.equal(left[block.name], left[block.output_norm])
    labelled = DnaBert2ForSequenceClassification(config)
    assert describe_encoder(labelled).head == ("bert.pooler.dense", "classifier")

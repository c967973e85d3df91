"""Heads are found by what is called, and their gradients are autograd's, in any architecture."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from transformers import AutoModelForSequenceClassification, BertModel

from frugalfm.encoders.mlm_head import find_head, list_head_layers
from frugalfm.errors import InputError
from frugalfm.influence import HeadGradients
from frugalfm.influence.masks import MaskScheme
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import hash_sequences, mask_groups
from frugalfm.tokens.vocabulary import make_protein_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from architectures import FIRST_LAYER, MLM, make_batch, make_mlm

CODEC = Codec.from_tokenizer(make_protein_tokenizer())


@pytest.mark.parametrize("kind", MLM)
def test_first_layer_is_found(kind):
    model = make_mlm(kind)
    head, dense = find_head(model)
    assert dense is model.get_submodule(FIRST_LAYER[kind])
    layers = list_head_layers(model)
    assert next(iter(layers)) == FIRST_LAYER[kind]
    assert layers[FIRST_LAYER[kind]] == tuple(dense.weight.shape)
    assert any(module is dense for module in head.modules())
    ids, mask = make_batch()
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        trunk = getattr(model, model.base_model_prefix)
        hidden = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
        # Rows of hidden states, as scores pass them.
        torch.testing.assert_close(head(hidden[mask == 1]), out.logits[mask == 1])


def test_no_hook_is_left():
    model = make_mlm("modernbert")
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    find_head(model)
    after = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    assert before == after


def differentiate(model, name, sequence, groups, passes):
    """Gradient of one unpadded sequence's summed loss with respect to a weight, by torch.func."""
    ids, lengths = CODEC.collate([sequence])
    group = mask_groups(ids.shape[1], lengths, hash_sequences([sequence]), groups)
    ids, group = torch.from_numpy(ids), torch.from_numpy(group)

    def loss(weight):
        total = 0.0
        for number in range(passes):
            target = group == number
            inputs = {
                "input_ids": ids.masked_fill(target, CODEC.mask_id),
                "attention_mask": torch.ones_like(ids),
            }
            logits = functional_call(model, {name: weight}, (), inputs).logits
            total = total - logits.log_softmax(-1)[target].gather(1, ids[target][:, None]).sum()
        return total

    return grad(loss)(model.get_parameter(name).detach())


@pytest.mark.parametrize("kind", MLM)
def test_gradients_are_those_of_torch_func(kind):
    model = make_mlm(kind)
    random = np.random.default_rng(0)
    sequences = [random.integers(4, 24, n).astype(np.uint8) for n in (30, 3, 21)]
    found = []

    def visit(layer, inputs, deltas):
        assert layer == FIRST_LAYER[kind]
        found.extend(deltas.transpose(1, 2) @ inputs)

    HeadGradients(model, CODEC, masks=MaskScheme(groups=5, passes=3))(sequences, "sum", visit)
    for gradient, sequence in zip(found, sequences, strict=True):
        expected = differentiate(model, f"{FIRST_LAYER[kind]}.weight", sequence, 5, 3)
        assert (gradient - expected).norm() < 1e-4 * expected.norm(), kind


def test_a_layer_can_be_named():
    model = make_mlm("esmc")
    head, dense = find_head(model, "lm_head.decoder")
    assert dense is model.lm_head.decoder
    assert head is model.lm_head
    assert find_head(model, "lm_head")[1] is model.lm_head.dense
    with pytest.raises(
        InputError,
        match=r"'head' is no linear layer of its head; there are: "
        r"lm_head\.dense \(32 x 32\), lm_head\.decoder \(64 x 32\)",
    ):
        find_head(model, "head")
    with pytest.raises(InputError, match=r"'esmc\.layers\.0\.mlp\.up_proj' is no linear layer"):
        find_head(model, "esmc.layers.0.mlp.up_proj")


def test_what_has_no_head_is_refused():
    config = MLM["bert"]()
    with pytest.raises(InputError, match=r"BertModel: has no trunk 'bert'"):
        find_head(BertModel(config))
    labelled = AutoModelForSequenceClassification.from_config(config).eval()
    with pytest.raises(InputError, match="its logits are not what the modules after its trunk"):
        find_head(labelled)
    model = make_mlm("bert")
    model.cls = nn.Identity()
    with pytest.raises(InputError, match="no linear layer between trunk and logits"):
        find_head(model)


def test_a_head_that_does_more_is_refused():
    """A model that changes logits outside its modules: gradients would silently be wrong."""
    model = make_mlm("bert")
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out

    model.forward = scaled
    with pytest.raises(InputError, match="one after the other"):
        find_head(model)

"""Adapters find attention's projections in every architecture, and reload to the same outputs."""

import sys
from pathlib import Path

import pytest
import torch

from frugalfm.encoders.heads import add_head
from frugalfm.errors import InputError
from frugalfm.training.adapters import ADAPTERS, add_adapter, save_adapter
from frugalfm.training.targets import find_layer_linears, find_targets

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import make_mlm

PROJECTIONS = {
    "rna-fm": ["query", "key", "value"],
    "esm2": ["query", "key", "value"],
    "esmc": ["q_proj", "k_proj", "v_proj"],
    "bert": ["query", "key", "value"],
    "roberta": ["query", "key", "value"],
    "modernbert": ["Wqkv"],
    "dnabert2": ["Wqkv"],
}
LINEARS = {"esmc": 7, "modernbert": 4, "dnabert2": 4}  # others have six a layer
LAYERS = 3


@pytest.fixture(params=PROJECTIONS)
def kind(request):
    return request.param


def run(model):
    ids = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_defaults_are_the_projections_of_every_layer(kind):
    model = add_head(make_mlm(kind), "single_label", ["a", "b"])
    found = find_targets(model)
    assert len(found) == LAYERS * len(PROJECTIONS[kind])
    assert {name.rpartition(".")[2] for name in found} == set(PROJECTIONS[kind])
    assert len({name.rpartition(".")[0] for name in found}) == LAYERS
    assert len(find_layer_linears(model)) == LAYERS * LINEARS.get(kind, 6)


@pytest.mark.parametrize("problem", ["single_label", "token"])
def test_adapter_and_head_reload_to_the_same(kind, problem, tmp_path):
    peft = pytest.importorskip("peft")
    if (kind, problem) == ("dnabert2", "token"):
        pytest.skip("pieces have their own tests")
    encoder = make_mlm(kind)
    model = add_head(encoder, problem, ["a", "b", "c"], seed=1)
    adapted = add_adapter(
        model, ADAPTERS["lora"], task_type="TOKEN_CLS" if problem == "token" else "SEQ_CLS"
    )
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    expected = run(adapted)
    plain = run(add_head(encoder, problem, ["a", "b", "c"], seed=1))
    assert not torch.allclose(expected, plain, atol=1e-2)
    save_adapter(adapted, tmp_path, "lora")
    fresh = add_head(encoder, problem, ["a", "b", "c"], seed=2)  # another head: it is restored
    again = peft.PeftModel.from_pretrained(fresh, str(tmp_path))
    assert torch.equal(run(again), expected)


def test_others_by_the_ends_of_their_names():
    model = add_head(make_mlm("bert"), "single_label", ["a", "b"])
    found = find_targets(model, ["attention.output.dense", "value"])
    assert len(found) == 2 * LAYERS
    with pytest.raises(InputError, match=r"--targets Wqkv.*attention\.self\.query \(3x\)"):
        find_targets(model, ["query", "Wqkv"])


def test_unknown_names_list_the_candidates():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.ModuleDict({"mix": torch.nn.Linear(4, 4)}) for _ in range(2)
            )
            self.head = torch.nn.Linear(4, 2)

    with pytest.raises(InputError, match=r"--targets.*mix \(2x\)"):
        find_targets(Odd())
    assert find_targets(Odd(), ["mix"]) == ["layers.0.mix", "layers.1.mix"]

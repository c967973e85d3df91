"""Between softmax and each attention: the definition at every strength, forward and backward."""

import pytest
import torch
from torch import nn

from frugalfm.attention.interface import _attend
from frugalfm.attention.strength import get_strength


class Module(nn.Module):
    """Stands for an attention module of a model."""

    def __init__(self, heads, strength):
        super().__init__()
        self.sink_logit = nn.Parameter(torch.linspace(-1, 2, heads, dtype=torch.float64))
        if strength < 1:
            self.attention_strength = strength


def define(name, module, query, key, value, bias, strength):
    scores = query @ key.mT * query.shape[-1] ** -0.5 + bias
    powers = torch.exp(scores)
    total = powers.sum(-1, keepdim=True)
    if name == "clipped":
        gamma = -4 * strength / (powers > 0).sum(-1, keepdim=True).double()
        return ((1 - gamma) * powers / total + gamma).clamp(0, 1) @ value
    null = torch.exp(module.sink_logit)[:, None, None] if name == "sink" else 1.0
    return powers / (total + strength * null) @ value


@pytest.mark.parametrize("dropout", [0.0, 1e-12])  # The second takes the path of dropout.
@pytest.mark.parametrize("strength", [0.0, 1e-9, 0.25, 1.0])
@pytest.mark.parametrize("name", ["softmax1", "sink", "clipped"])
def test_equals_the_definition(name, strength, dropout):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 2, 3, 9, 8, generator=generator, dtype=torch.float64)
    bias = torch.zeros(2, 1, 9, 9, dtype=torch.float64)
    bias[1, ..., 6:] = -torch.inf
    module = Module(3, strength)
    assert get_strength(module) == strength
    found = []
    for function in (
        lambda q, k, v: _attend(name, module, (q, k, v, bias, None, dropout)),
        lambda q, k, v: define(name, module, q, k, v, bias, strength),
    ):
        leaves = [t.clone().requires_grad_() for t in drawn[:3]]
        module.zero_grad()
        out = function(*leaves)
        out.backward(drawn[3])
        learned = module.sink_logit.grad if name == "sink" and strength else None
        found.append([out.detach(), *(leaf.grad for leaf in leaves), learned])
    for value, reference in zip(*found, strict=True):
        if reference is not None:
            torch.testing.assert_close(value, reference, rtol=1e-8, atol=1e-10)

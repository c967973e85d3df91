"""Weights that are looked at are those that the kernels apply."""

from types import SimpleNamespace

import pytest
import torch

from frugalfm.attention import NAMES
from frugalfm.attention.clipped import attend_clipped
from frugalfm.attention.kernels import attend_sink, attend_softmax, attend_softmax1
from frugalfm.attention.weights import attention_weights


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_weights_times_values_are_the_output(name, masked):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 7, 8) * 2 for _ in range(3))
    sink, alpha = torch.tensor([0.5, -1.0, 2.0]), 2.0
    bias = None
    if masked:
        bias = torch.randn(2, 1, 7, 7)
        bias[0, ..., 5:] = -torch.inf
        bias[1] = torch.where(torch.arange(7)[:, None] == 2, -torch.inf, bias[1])
    module = SimpleNamespace(
        sink_logit=sink, config=SimpleNamespace(attention_alpha=alpha), attention_strength=1
    )
    weights = attention_weights(name, module, query, key, bias, 0.3)
    arguments = (query, key, value, bias, 0.3)
    if name == "softmax1":
        expected = attend_softmax1(*arguments)
    elif name == "clipped":
        expected = attend_clipped(*arguments, alpha=alpha)
    elif name == "sink":
        expected = attend_sink(*arguments, sink=sink)
    else:
        expected = attend_softmax(*arguments).nan_to_num(0)
    torch.testing.assert_close(weights @ value, expected, atol=2e-6, rtol=1e-5)
    assert (weights >= 0).all()
    assert (weights.sum(-1) <= 1 + 1e-5).all()
    if masked:
        assert (weights[0, ..., 5:] == 0).all()
        assert (weights[1, :, 2] == 0).all()

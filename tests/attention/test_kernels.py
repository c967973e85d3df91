"""softmax_1 against an fp64 oracle, forward and backward, on every path."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalfm.attention.kernels import attend_softmax, attend_softmax1, softmax1

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def oracle(query, key, value, bias, scale, plus_one):
    """The definition, in fp64, with autograd doing the backward pass."""
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias
    powers = torch.exp(scores)
    return (powers / (plus_one + powers.sum(-1, keepdim=True))) @ value


def make_inputs(batch, heads, length, width, *, masked, alibi, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(batch, heads, length, width, generator=generator, dtype=torch.float64) * 1.5
        for _ in range(4)
    ]
    bias = None
    if alibi:
        distance = (torch.arange(length)[:, None] - torch.arange(length)[None]).abs().double()
        slopes = 2.0 ** -torch.arange(1, heads + 1, dtype=torch.float64)
        bias = (-slopes[:, None, None] * distance)[None].expand(batch, -1, -1, -1)
    if masked:
        lengths = torch.arange(length, length - batch, -1).clamp_min(1)
        pad = torch.where(torch.arange(length)[None] < lengths[:, None], 0.0, -torch.inf)
        pad = pad.double()[:, None, None, :].expand(batch, 1, length, length)
        bias = pad if bias is None else bias + pad
    return tensors, bias


def run(function, tensors, bias, dtype, device, **options):
    query, key, value, grad = (t.to(device, dtype).detach().clone() for t in tensors)
    leaves = [t.requires_grad_() for t in (query, key, value)]
    bias = None if bias is None else bias.to(device, dtype)
    out = function(*leaves, bias, **options)
    out.backward(grad)
    return [out.detach().double().cpu(), *(leaf.grad.double().cpu() for leaf in leaves)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("masked", "alibi"), [*itertools.product([False, True], repeat=2)])
@pytest.mark.parametrize("shape", [(2, 3, 17, 16), (3, 4, 130, 32), (1, 2, 5, 20)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", ["softmax", "softmax1"])
def test_equals_fp64_definition(name, dtype, tolerance, shape, masked, alibi, device):
    tensors, bias = make_inputs(*shape, masked=masked, alibi=alibi)
    function, plus_one = (attend_softmax1, 1.0) if name == "softmax1" else (attend_softmax, 0.0)
    expected = run(lambda *args: oracle(*args, None, plus_one), tensors, bias, torch.float64, "cpu")
    found = run(function, tensors, bias, dtype, device)
    for value, reference in zip(found, expected, strict=True):
        assert (value - reference).norm() <= tolerance * reference.norm()


def test_scale_is_honoured():
    tensors, bias = make_inputs(2, 2, 9, 8, masked=True, alibi=False)
    expected = run(lambda *a: oracle(*a, 0.7, 1.0), tensors, bias, torch.float64, "cpu")
    found = run(attend_softmax1, tensors, bias, torch.float32, "cpu", scale=0.7)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-6)


def test_fully_masked_rows_are_zero_and_pass_no_gradient():
    tensors, _ = make_inputs(2, 2, 6, 8, masked=False, alibi=False)
    bias = torch.zeros(2, 1, 6, 6)
    bias[0] = -torch.inf
    found = run(attend_softmax1, tensors, bias, torch.float32, "cpu")
    for value in found:
        assert torch.equal(value[0], torch.zeros_like(value[0]))
        assert value[1].isfinite().all()


def test_trainable_bias_gets_the_right_gradient():
    (query, key, value, grad), _ = make_inputs(1, 2, 7, 8, masked=False, alibi=False)
    gradients = []
    for function, dtype in (
        (lambda q, k, v, b: oracle(q, k, v, b, None, 1.0), torch.float64),
        (attend_softmax1, torch.float32),
    ):
        bias = torch.linspace(-1, 1, 98, dtype=dtype).view(1, 2, 7, 7).requires_grad_()
        function(query.to(dtype), key.to(dtype), value.to(dtype), bias).backward(grad.to(dtype))
        gradients.append(bias.grad.double())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_dropout_keeps_the_mean_and_drops_weights():
    (query, key, value, _), _ = make_inputs(1, 1, 4, 8, masked=False, alibi=False)
    query, key, value = query.float(), key.float(), value.float()
    torch.manual_seed(0)
    draws = torch.stack([attend_softmax1(query, key, value, dropout=0.3) for _ in range(6000)])
    exact = attend_softmax1(query, key, value)
    assert draws.std(0).min() > 0
    standard_error = draws.std(0) / 6000**0.5
    assert ((draws.mean(0) - exact).abs() < 5 * standard_error).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-300, 300), min_size=1, max_size=8))
def test_softmax1_function_is_stable(scores):
    """Against Python's own arithmetic with exact big exponents."""
    from mpmath import exp, mpf

    powers = [exp(mpf(s)) for s in scores]
    expected = [float(p / (1 + sum(powers))) for p in powers]
    found = softmax1(torch.tensor(scores, dtype=torch.float64))
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-300
    )
    assert found.sum() <= 1 + 1e-12


def test_is_not_shift_invariant():
    """Unlike softmax: uniformly low scores mean attending to nothing."""
    low = softmax1(torch.full((4,), -20.0))
    assert low.sum() < 1e-7
    assert softmax1(torch.full((4,), 20.0)).sum() > 1 - 1e-7

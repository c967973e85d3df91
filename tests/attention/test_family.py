"""Clipped, gated and sink attention against fp64 definitions, forward and backward."""

import itertools
import math

import pytest
import torch

from frugalfm.attention.backends import (
    CpuFlash,
    CudaEfficient,
    CudaFlash,
    choose_backend,
    self_check,
)
from frugalfm.attention.clipped import attend_clipped
from frugalfm.attention.kernels import (
    attend_by_zero_key,
    attend_gated,
    attend_sink,
    attend_softmax,
    attend_softmax1,
)
from frugalfm.errors import InputError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ALPHA = 0.8
FAMILY = ["clipped", "gated", "sink"]


def oracle(name, query, key, value, bias, extra, scale=None):
    """The definitions, in fp64, with autograd doing the backward pass."""
    scores = query @ key.transpose(-1, -2) * (scale or query.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias
    powers = torch.exp(scores)
    total = powers.sum(-1, keepdim=True)
    if name == "sink":
        return (powers / (torch.exp(extra[0])[:, None, None] + total)) @ value
    weights = powers / total
    if name == "clipped":
        # A key of weight zero is masked, and does not count.
        gamma = -ALPHA / (powers > 0).sum(-1, keepdim=True).double()
        return ((1 - gamma) * weights + gamma).clamp(0, 1) @ value
    return weights @ value / (1 + torch.exp(-extra[0])).unsqueeze(-1)


def attend(name, query, key, value, bias, extra, **options):
    if name == "sink":
        return attend_sink(query, key, value, bias, sink=extra[0], **options)
    if name == "clipped":
        return attend_clipped(query, key, value, bias, alpha=ALPHA, **options)
    return attend_gated(query, key, value, bias, gate=extra[0], **options)


def make_inputs(batch, heads, length, width, *, masked=False, alibi=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    double = {"generator": generator, "dtype": torch.float64}
    tensors = [torch.randn(batch, heads, length, width, **double) * 1.5 for _ in range(4)]
    extra = {
        "sink": [torch.randn(heads, **double) * 2],
        "gated": [torch.randn(batch, heads, length, **double)],
        "clipped": [],
    }
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
    return tensors, bias, extra


def run(function, tensors, bias, extra, dtype, device):
    *leaves, grad = (t.to(device, dtype).detach().clone() for t in tensors)
    # Parameters stay fp32 when arithmetic is bf16, as in training.
    exact = torch.float32 if dtype == torch.bfloat16 else dtype
    extra = [t.to(device, exact).detach().clone().requires_grad_() for t in extra]
    leaves = [t.requires_grad_() for t in leaves]
    bias = None if bias is None else bias.to(device, dtype)
    out = function(*leaves, bias, extra)
    out.backward(grad)
    return [t.detach().double().cpu() for t in (out, *(leaf.grad for leaf in [*leaves, *extra]))]


def compare(found, expected, tolerance):
    for value, reference in zip(found, expected, strict=True):
        assert (value - reference).norm() <= tolerance * reference.norm()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("masked", "alibi"), [*itertools.product([False, True], repeat=2)])
@pytest.mark.parametrize("shape", [(2, 3, 17, 16), (3, 4, 130, 32), (1, 2, 5, 24)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", FAMILY)
def test_equals_fp64_definition(name, dtype, tolerance, shape, masked, alibi, device):
    tensors, bias, extra = make_inputs(*shape, masked=masked, alibi=alibi)
    # The definition sees the numbers that the kernel sees: rounding inputs is not its error.
    tensors = [t.to(dtype).double() for t in tensors]
    bias = None if bias is None else bias.to(dtype).double()
    extra = [t.float().double() for t in extra[name]]
    expected = run(lambda *a: oracle(name, *a), tensors, bias, extra, torch.float64, "cpu")
    found = run(lambda *a: attend(name, *a), tensors, bias, extra, dtype, device)
    compare(found[:4], expected[:4], tolerance)
    # A parameter's gradient sums over all rows with both signs, so rounded rows weigh more.
    compare(found[4:], expected[4:], 3 * tolerance)


@pytest.mark.parametrize("name", FAMILY)
def test_gradients_are_exact_in_fp64(name):
    tensors, bias, extra = make_inputs(2, 3, 11, 8, masked=True, alibi=True)
    expected = run(
        lambda *a: oracle(name, *a, 0.4), tensors, bias, extra[name], torch.float64, "cpu"
    )
    found = run(
        lambda *a: attend(name, *a, scale=0.4), tensors, bias, extra[name], torch.float64, "cpu"
    )
    compare(found, expected, 1e-12)


def test_sink_spans_softmax_and_softmax1():
    (query, key, value, _), bias, _ = make_inputs(2, 3, 9, 8, masked=True)
    inputs = (query, key, value, bias)
    zero = attend_sink(*inputs, sink=torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(zero, attend_softmax1(*inputs), rtol=1e-12, atol=1e-12)
    none = attend_sink(*inputs, sink=torch.full((3,), -torch.inf, dtype=torch.float64))
    torch.testing.assert_close(none, attend_softmax(*inputs), rtol=1e-12, atol=1e-12)


def test_zero_key_path_equals_the_fused_one():
    """The path of dropout, trainable biases and CUDA."""
    tensors, bias, extra = make_inputs(2, 3, 11, 8, masked=True, alibi=True)
    for mask in (bias, bias[:1], bias[:1, :1], None):
        fused = run(
            lambda q, k, v, b, e: attend("sink", q, k, v, None if b is None else b.squeeze(), e),
            tensors, mask, extra["sink"], torch.float64, "cpu",
        )  # fmt: skip
        padded = run(
            lambda q, k, v, b, e: attend_by_zero_key(q, k, v, b, sink=e[0]),
            tensors, mask, extra["sink"], torch.float64, "cpu",
        )  # fmt: skip
        compare(fused, padded, 1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_trainable_bias_gets_the_right_gradient(name):
    (query, key, value, grad), _, extra = make_inputs(1, 2, 7, 8)
    gradients = []
    for function in (oracle, attend):
        bias = torch.linspace(-1, 1, 98, dtype=torch.float64).view(1, 2, 7, 7).requires_grad_()
        function(name, query, key, value, bias, extra[name]).backward(grad)
        gradients.append(bias.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", FAMILY)
def test_fully_masked_rows_are_zero_and_pass_no_gradient(name):
    tensors, _, extra = make_inputs(2, 2, 6, 8)
    bias = torch.zeros(2, 1, 6, 6)
    bias[0] = -torch.inf
    found = run(lambda *a: attend(name, *a), tensors, bias, extra[name], torch.float32, "cpu")
    for value in found[:4]:
        assert torch.equal(value[0], torch.zeros_like(value[0]))
    assert all(value.isfinite().all() for value in found)


@pytest.mark.parametrize("name", FAMILY)
def test_dropout_keeps_the_mean_and_drops_weights(name):
    (query, key, value, _), _, extra = make_inputs(1, 2, 4, 8)
    many = [t.float().expand(6000, -1, -1, -1) for t in (query, key, value)]
    torch.manual_seed(0)
    extra = [t.float() for t in extra[name]]
    draws = attend(name, *many, None, extra, dropout=0.3)
    exact = attend(name, query.float(), key.float(), value.float(), None, extra)[0]
    assert draws.std(0).max() > 0
    standard_error = draws.std(0) / 6000**0.5
    assert ((draws.mean(0) - exact).abs() <= 5 * standard_error + 1e-6).all()


def test_clipped_pieces_do_not_change_the_result(monkeypatch):
    tensors, bias, _ = make_inputs(2, 2, 23, 8, masked=True, alibi=True)
    whole = run(lambda *a: attend("clipped", *a), tensors, bias, [], torch.float64, "cpu")
    monkeypatch.setitem(attend_clipped.__globals__["_PIECE"], "cpu", 2 * 2 * 23 * 5)
    pieces = run(lambda *a: attend("clipped", *a), tensors, bias, [], torch.float64, "cpu")
    compare(pieces, whole, 1e-12)


def test_clipped_dropout_is_the_same_when_computed_again():
    """The backward pass computes each piece anew, and must drop the same weights."""
    (query, key, value, grad), _, _ = make_inputs(1, 2, 6, 8)
    value.requires_grad_()
    torch.manual_seed(3)
    out = attend_clipped(query, key, value, dropout=0.5)
    (found,) = torch.autograd.grad(out, value, grad)
    # The output is linear in the values, so out . grad equals value . gradient exactly.
    torch.testing.assert_close((out * grad).sum(), (value * found).sum())


def test_clipped_keeps_little_for_the_backward_pass():
    query = torch.randn(1, 2, 256, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        attend_clipped(query, query, query)
    assert max(kept) < 256 * 256


def test_clipped_gives_exact_zeros():
    query = torch.zeros(1, 1, 64, 8)  # uniform weights, 1/64 < 4/(64 + 4)
    assert torch.equal(attend_clipped(query, query, torch.ones_like(query)), query)


def test_clipped_threshold_follows_the_number_of_keys():
    """Half the mean weight is clipped at α = 1, and twice the mean is not, at every length."""
    for keys in (4, 64, 1000):
        query = torch.ones(1, 1, 1, 1)
        key = torch.zeros(1, 1, keys, 1)
        key[..., 0, :], key[..., 1, :] = math.log(2), -math.log(2)
        value = torch.eye(keys)[None, None]
        out = attend_clipped(query, key, value, scale=1.0, alpha=1.0)[0, 0, 0]
        assert out[0] > 0
        assert out[1] == 0
        bias = torch.full((1, 1, 1, keys + 7), -torch.inf)
        bias[..., :keys] = 0
        more = [torch.nn.functional.pad(t, (0, 0, 0, 7)) for t in (key, value)]
        padded = attend_clipped(query, *more, bias, scale=1.0, alpha=1.0)[0, 0, 0]
        torch.testing.assert_close(padded, out)


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
def test_impossible_alpha_is_refused(alpha):
    query = torch.zeros(1, 1, 4, 8)
    with pytest.raises(InputError, match="attention_alpha"):
        attend_clipped(query, query, query, alpha=alpha)


def test_self_check_turns_down_a_kernel_that_errs():
    class Wrong(CpuFlash):
        @staticmethod
        def forward(query, key, value, bias, scale):
            out, lse, state, rest = CpuFlash.forward(query, key, value, bias, scale)
            return out, lse + 0.1, state, rest

    arguments = (torch.device("cpu"), torch.float32, 8, attend_by_zero_key)
    for with_bias in (False, True):
        assert self_check(CpuFlash, *arguments, with_bias=with_bias)
        with pytest.warns(UserWarning, match="self-check"):
            assert not self_check(Wrong, *arguments, with_bias=with_bias)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("flag", ["", "1"])
def test_cuda_paths_equal_the_definition(flag, masked, dtype, monkeypatch):
    """The zero key, and the own-lse form where it is asked for."""
    monkeypatch.setenv("FRUGALFM_FUSED_CUDA", flag)
    tensors, bias, extra = make_inputs(3, 4, 130, 32, masked=masked, alibi=masked)
    placed = [t.to("cuda", dtype) for t in tensors[:3]]
    placed_bias = None if bias is None else bias.to("cuda", dtype)
    chosen = choose_backend(*placed, placed_bias, reference=attend_by_zero_key)
    half = dtype == torch.bfloat16
    assert chosen is (None if not flag else CudaFlash if half and not masked else CudaEfficient)
    expected = run(
        lambda *a: oracle("sink", *a), tensors, bias, extra["sink"], torch.float64, "cpu"
    )
    found = run(lambda *a: attend("sink", *a), tensors, bias, extra["sink"], dtype, "cuda")
    compare(found, expected, 6e-2 if half else 1e-3)

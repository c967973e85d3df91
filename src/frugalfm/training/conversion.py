r"""Give a trained encoder another attention, starting from the function that it has learned.

softmax_1's weights are softmax's times the mass :math:`m_i = Z_i / (1 + Z_i)` that a query does
not leave to the null, with :math:`Z_i = \sum_j e^{s_{ij}}`. Swapped in, it scales every head's
output by :math:`m_i`, so that the loss jumps where scores are low. Four ways to start:

``anneal``
    The null enters with strength t, :math:`Z_i / (t + Z_i)`, and t grows from 0 to 1 while
    training goes on. At t = 0 this *is* softmax, at t = 1 softmax_1; any architecture. A clipped
    softmax starts from α = 0 in the same way.
``shift``
    A vector u added to the key bias adds :math:`q_i \cdot u` to all scores of a query: softmax
    does not notice, and the mass goes to 1 where the sum is large. u maximises the mean log mass
    over queries that are looked at, so it is exact as far as queries have a direction in common.
    Needs a key bias and positions that do not rotate keys.
``rescale``
    Every head's values are divided by its mass on average (least squares over its outputs). For
    ``gated``, where every gate starts half open, values are doubled, and the start is exact.
``plain``
    Nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from frugalfm.attention.binding import find_attentions
from frugalfm.attention.strength import get_strength, watch_attention
from frugalfm.encoders.anatomy import Block, describe_encoder
from frugalfm.encoders.catalogue import create_from_config
from frugalfm.errors import InputError
from frugalfm.training.data import Batch

__all__ = [
    "Start",
    "check_start",
    "measure_null",
    "prepare_start",
    "raise_strength",
    "swap_attention",
]

Start = Literal["anneal", "shift", "rescale", "plain"]

_STARTS: dict[str, tuple[Start, ...]] = {
    "softmax": ("plain",),
    "softmax1": ("anneal", "shift", "rescale", "plain"),
    "sink": ("anneal", "shift", "rescale", "plain"),
    "clipped": ("anneal", "plain"),
    "gated": ("rescale", "plain"),
}
"""What each attention can start from, the best first."""

_RIDGE = 1e-4
"""Price of a squared score in nats of log mass: what is added to a score is some 7 at most."""


def check_start(stored: str, attention: str, start: Start | None) -> Start:
    """Choose the start, or refuse the one that was asked for.

    Parameters
    ----------
    stored, attention
        The checkpoint's attention and the new one.
    start
        None for the best.

    Raises
    ------
    InputError
        The checkpoint has left softmax already, for another attention; or the new attention
        cannot start so.
    """
    if stored == attention:
        if start not in {None, "plain"}:
            raise InputError(f"--start {start}: the attention is {attention} already")
        return "plain"
    if stored != "softmax":
        raise InputError(
            f"the checkpoint was trained with attention {stored!r}; only softmax can be swapped"
        )
    known = _STARTS[attention]
    if start is not None and start not in known:
        raise InputError(f"--start {start}: {attention} starts from {' or '.join(known)}")
    return start or known[0]


def swap_attention(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """Make a model with the weights of another and a different attention.

    Parameters
    ----------
    model
        Trained with any attention; left as it is.
    attention
        One of ``frugalfm.attention.NAMES``. What it learns starts at zero: half-open gates, a
        null of logit 0.

    Raises
    ------
    InputError
        The architecture cannot run it.
    """
    config = copy.deepcopy(model.config)
    config.attention = attention
    config._attn_implementation = attention  # noqa: SLF001 - transformers' own convention
    config.attn_implementation = attention
    made = create_from_config(config, seed=0)
    missing, unexpected = made.load_state_dict(model.state_dict(), strict=False)
    learned = {"sink_logit", "gate_weight", "gate_bias"}
    wrong = [*unexpected, *(name for name in missing if name.split(".")[-1] not in learned)]
    if wrong:
        raise InputError(f"{type(model).__name__}: cannot be made again ({', '.join(wrong[:5])})")
    with torch.no_grad():
        for name in missing:
            made.get_parameter(name).zero_()
    return made.to(next(model.parameters()).device)


def raise_strength(step: int, steps: int, share: float) -> float:
    """Give the strength of the attention at a step: linear from 0 over a share of the steps.

    Parameters
    ----------
    step, steps
        From 0 to ``steps - 1``, and of the whole run.
    share
        In (0, 1].
    """
    return min(1.0, step / max(1.0, share * steps))


def prepare_start(
    model: PreTrainedModel, attention: str, start: Start, batches: Sequence[Batch]
) -> PreTrainedModel:
    """Swap the attention of a softmax model and adapt its weights to a start.

    Parameters
    ----------
    model
        In evaluation mode, on the device to compute on; its weights are adapted in place.
    attention
        The new one.
    start
        As :func:`check_start` chose.
    batches
        A few, to measure scores on; looked at by ``shift`` and ``rescale`` only.

    Returns
    -------
    PreTrainedModel
        With the new attention, at full strength; for ``anneal`` the caller sets the strength.
    """
    if attention == "gated" and start == "rescale":
        heads = [int(module.config.num_attention_heads) for module in find_attentions(model)]
        _scale_values(model, [torch.full((count,), 2.0) for count in heads])
    elif start == "rescale":
        found = _collect(model, batches, _weigh_outputs)
        sums = [torch.stack(parts).sum(0) for parts in found]
        _scale_values(model, [over / under for over, under in sums])
    elif start == "shift":
        _shift_keys(model, batches)
    return swap_attention(model, attention)


@torch.no_grad()
def measure_null(model: PreTrainedModel, batches: Sequence[Batch]) -> float | None:
    """Measure the attention that goes to the null, mean over real queries, heads and layers.

    None where an attention has no null (softmax, gated, clipped).
    """
    if getattr(model.config, "attention", None) not in {"softmax1", "sink"}:
        return None
    found = _collect(model, batches, _sum_null)
    sums = [torch.stack(parts).sum(0) for parts in found]
    shares = [float((null / queries).mean()) for null, queries in sums]
    return sum(shares) / len(shares)


# What is summed over the real queries of one attention: functions of the module, its query, key,
# value, the scores (batch, heads, queries, keys) and where queries are real (batch, 1, queries).


@dataclass(frozen=True)
class _Seen:
    module: nn.Module
    query: Tensor
    value: Tensor
    scores: Tensor
    real: Tensor


def _sum_null(seen: _Seen) -> Tensor:
    total = torch.logsumexp(seen.scores, -1)
    sink = getattr(seen.module, "sink_logit", None)
    level = total.new_zeros(total.shape[1]) if sink is None else sink.float()
    strength = get_strength(seen.module)
    level = level + (math.log(strength) if strength else -math.inf)
    null = torch.sigmoid(level[:, None] - total)
    real = seen.real.expand_as(total)
    return torch.stack([(null * real).sum((0, 2)), real.sum((0, 2))])


def _weigh_outputs(seen: _Seen) -> Tensor:
    """Sum up for the factor r that minimises ``|r m o - o|^2``, o being softmax's output."""
    out = torch.softmax(seen.scores, -1) @ seen.value
    mass = torch.sigmoid(torch.logsumexp(seen.scores, -1))
    power = out.square().sum(-1) * seen.real
    return torch.stack([(mass * power).sum((0, 2)), (mass.square() * power).sum((0, 2))])


def _keep_queries(seen: _Seen) -> Tensor:
    """Real queries, and the logsumexp of their scores behind: ``(heads, queries, width + 1)``."""
    total = torch.logsumexp(seen.scores, -1, keepdim=True)
    joined = torch.cat([seen.query, total], -1).transpose(0, 1)
    return joined[:, seen.real[:, 0].bool()]


@torch.no_grad()
def _collect(
    model: PreTrainedModel, batches: Sequence[Batch], reduce: Callable[[_Seen], Tensor]
) -> list[list[Tensor]]:
    """Find something on every batch: a list of tensors on the CPU for each attention module."""
    collected: dict[int, list[Tensor]] = {}
    real = torch.empty(0)

    def see(
        number: int,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        scale: float | None,
    ) -> None:
        query = query.float() * (query.shape[-1] ** -0.5 if scale is None else scale)
        scores = query @ key.float().transpose(-1, -2)
        if bias is not None:
            scores = scores + bias.float()
        found = reduce(_Seen(module, query, value.float(), scores, real[:, None]))
        collected.setdefault(number, []).append(found.double().cpu())

    with watch_attention(model, see):
        for made in batches:
            batch = made.to(next(model.parameters()).device)
            real = batch.attention_mask.float()
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    return [collected[number] for number in sorted(collected)]


def _rows(model: nn.Module, block: Block, role: str, width: int) -> tuple[nn.Linear, slice]:
    """Find the linear of a role, and which of its rows are that role's."""
    name = getattr(block, role)
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    place = ("query", "key", "value").index(role) if block.query == block.value else 0
    if linear.out_features != width * (3 if block.query == block.value else 1):
        raise InputError(f"{name}: heads share {role}s, so that they cannot be adapted one by one")
    return linear, slice(place * width, (place + 1) * width)


@torch.no_grad()
def _scale_values(model: PreTrainedModel, factors: Sequence[Tensor]) -> None:
    """Multiply the values of every head."""
    for block, found in zip(describe_encoder(model).blocks, factors, strict=True):
        width = model.get_submodule(block.attention_out).in_features
        linear, rows = _rows(model, block, "value", width)
        factor = found.to(linear.weight).repeat_interleave(width // len(found))
        linear.weight[rows] *= factor[:, None]
        if linear.bias is not None:
            linear.bias[rows] *= factor


@torch.no_grad()
def _shift_keys(model: PreTrainedModel, batches: Sequence[Batch]) -> None:
    """Add to the key biases what raises all scores of a query alike."""
    if any("rotary" in type(module).__name__.lower() for module in model.modules()):
        raise InputError(
            "--start shift: positions rotate the keys of this architecture, so that a shift would "
            "change what softmax computes; use --start anneal"
        )
    blocks = describe_encoder(model).blocks
    places = []
    for block in blocks:
        width = model.get_submodule(block.attention_out).in_features
        linear, rows = _rows(model, block, "key", width)
        if linear.bias is None:
            raise InputError("--start shift: the keys of this architecture have no bias")
        places.append((linear, rows))
    found = _collect(model, batches, _keep_queries)
    for (linear, rows), parts in zip(places, found, strict=True):
        seen = torch.cat(parts, 1)
        shift = _maximise_mass(seen[..., :-1], seen[..., -1])
        linear.bias[rows] += shift.flatten().to(linear.bias)


def _maximise_mass(queries: Tensor, totals: Tensor) -> Tensor:
    r"""Find what to add to the keys of every head: a convex problem, of one logistic each.

    Minimises :math:`\overline{\log(1 + e^{-(l_i + q_i \cdot u)})} + \frac{r}{2}
    \overline{(q_i \cdot u)^2}`, l being the logsumexp of a query's scores.

    Parameters
    ----------
    queries, totals
        Shapes ``(heads, queries, width)``, scaled as in the scores, and ``(heads, queries)``.

    Returns
    -------
    Tensor
        Shape ``(heads, width)``.
    """
    shift = torch.zeros(queries.shape[0], queries.shape[2], dtype=queries.dtype)
    shift.requires_grad_()
    optimizer = torch.optim.LBFGS([shift], max_iter=100, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        added = (queries @ shift.unsqueeze(-1)).squeeze(-1)
        lost = functional.softplus(-totals - added) + _RIDGE / 2 * added.square()
        objective = lost.mean(-1).sum()
        objective.backward()
        return objective

    with torch.enable_grad():
        optimizer.step(evaluate)
    return shift.detach()

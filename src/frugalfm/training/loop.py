"""The training loop: every batch, mask and learning rate is a function of the step."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frugalfm.artifacts import write_atomically
from frugalfm.encoders.anatomy import describe_encoder
from frugalfm.encoders.devices import Precision, autocast, limit_batch
from frugalfm.encoders.packed import run_packed
from frugalfm.errors import FrugalError
from frugalfm.progress import progress
from frugalfm.tokens.masking import IGNORED
from frugalfm.training.ahead import look_ahead
from frugalfm.training.data import Batch, TrainingData
from frugalfm.training.optimizers import OptimizerName, make_optimizers, scale_learning_rate, update
from frugalfm.training.resume import load_state, save_state
from frugalfm.training.team import ALONE, Team

__all__ = [
    "Recipe",
    "clip_gradient",
    "masked_loss",
    "mean_finite",
    "train",
    "validate",
]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    steps
        Optimizer steps.
    batch_tokens
        Tokens of a batch, pads included, at most.
    optimizer, learning_rate, weight_decay, warmup
        As in :mod:`frugalfm.training.optimizers`; the learning rate is the peak's.
    clip
        Largest norm of the gradient.
    seed
        Determines batches, masks and dropout.
    precision
        ``bf16`` runs the forward pass under autocast; weights stay fp32.
    pack
        Tokens of a row that several sequences share; None for a padded row each.
    compiled
        Whether torch compiles the layers: faster on a GPU, and rounded otherwise.
    save_every, validate_every, log_every
        Steps between saved states, validations and log lines.
    """

    steps: int
    batch_tokens: int = 16_384
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 4e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    seed: int = 0
    precision: Precision = "fp32"
    pack: int | None = None
    compiled: bool = False
    save_every: int = 500
    validate_every: int = 500
    log_every: int = 10

    def identity(self) -> dict[str, Any]:
        """All that decides the result; saving and logging do not."""
        settings = asdict(self)
        for name in ("save_every", "validate_every", "log_every"):
            del settings[name]
        # Unused, they stay out: earlier versions did not have them.
        for name in ("pack", "compiled"):
            if not settings[name]:
                del settings[name]
        return settings

    def fix_steps(self, data: TrainingData, epochs: int | None) -> Recipe:
        """Turn a number of epochs, if given, into steps."""
        if epochs is None:
            return self
        counts = (len(self.plan(data, epoch)) for epoch in range(epochs))
        return replace(self, steps=sum(counts))

    def plan(self, data: TrainingData, epoch: int) -> list[Callable[[], Batch]]:
        """All batches of one epoch, each made when it is called."""
        return data.plan_batches(self.batch_tokens, self.pack, seed=self.seed, epoch=epoch)


def train(
    model: nn.Module,
    data: TrainingData,
    recipe: Recipe,
    folder: Path,
    *,
    state: Path,
    device: torch.device,
    label: str = "pretrain",
    before_step: Callable[[int], None] | None = None,
    team: Team = ALONE,
) -> dict[str, float]:
    """Train in place, resuming from `state` if a killed run left something there.

    Parameters
    ----------
    model
        A masked-language model on `device`.
    data, recipe
        What to train on, and how.
    folder
        Gets ``log.jsonl``.
    state
        Folder for what a resumed run needs.
    device
        Where to compute.
    label
        Shown beside the progress bar.
    before_step
        Called with the number of every step about to be taken, from 0; what it does to the model
        is to depend on that number alone, so that a resumed run does the same.
    team
        Processes that take every step together, all with the same arguments; the first writes.

    Returns
    -------
    dict
        ``loss`` (mean of the last tenth of the steps), ``validation_loss``, ``steps``,
        ``epochs``, ``residues`` and ``seconds`` (of this process).

    Raises
    ------
    FrugalError
        The loss or its gradient is no longer finite; no such state is saved.
    """
    optimizers = make_optimizers(
        model,
        recipe.optimizer,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
    )
    done = load_state(state, model, optimizers)
    if recipe.compiled:
        # One by one: layers are alike, so that the first one's code serves all.
        for block in describe_encoder(model).blocks:
            model.get_submodule(block.name).compile()
    team.wait()  # before the first process writes what others still read
    log = _Log(folder / "log.jsonl", done, writes=team.leads)
    quiet = None if team.leads else True
    bar = progress(total=recipe.steps, initial=done, desc=label, unit="step", disable=quiet)
    started = time.perf_counter()
    losses: list[Tensor] = []
    model.train()
    joined = team.wrap(model, device)
    batches = _iterate(data, recipe, done, team)
    if device.type == "cuda":
        batches = look_ahead((*item[:3], item[3].pin()) for item in batches)
    for step, epoch, targets, batch in batches:
        if before_step is not None:
            before_step(step)
        factor = scale_learning_rate(step, recipe.steps, recipe.warmup)
        # Dropout depends on the step alone, so a resumed run needs no saved generator.
        torch.manual_seed((recipe.seed << 32) + (team.rank << 24) + step)
        loss = _find_gradient(model, joined, batch.to(device), targets, recipe, team)
        losses.append(clip_gradient(loss, model.parameters(), recipe.clip))
        update(optimizers, recipe.learning_rate * factor)
        last = step + 1 == recipe.steps
        bar.update()
        saves = (step + 1) % recipe.save_every == 0
        # A line before every saved state, so that resuming finds no half-filled mean.
        if (step + 1) % recipe.log_every == 0 or saves or last:
            value = mean_finite(losses, step + 1, team)
            losses.clear()
            bar.set_postfix(loss=f"{value:.3f}")
            log.write(
                step=step + 1, epoch=epoch, loss=value, factor=factor, residues=batch.residues
            )
        if (step + 1) % recipe.validate_every == 0 or last:
            found = _check_finite(validate(model, data, recipe, device, team), step + 1)
            log.write(step=step + 1, validation_loss=found)
        if saves and not last and team.leads:
            save_state(state, step + 1, model, optimizers)
    bar.close()
    model.eval()
    return log.summarise() | {"seconds": round(time.perf_counter() - started, 1)}


def masked_loss(logits: Tensor, labels: Tensor, targets: int | None = None) -> Tensor:
    """Mean cross-entropy over the targets, in nats; zero if there is none.

    Where the labels are a share of a batch's, `targets` is the number in the whole batch.
    """
    total = functional.cross_entropy(
        logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    if targets is None:
        return total / (labels != IGNORED).sum().clamp_min(1)
    return total / max(1, targets)


@torch.no_grad()
def validate(
    model: nn.Module,
    data: TrainingData,
    recipe: Recipe,
    device: torch.device,
    team: Team = ALONE,
) -> float:
    """Masked loss on the held-out rows, in nats a target; the masks are always the same."""
    was_training = model.training
    model.eval()
    total, targets = 0.0, 0
    batches = data.validation_batches(limit_batch(recipe.batch_tokens, device))
    for made in itertools.islice(batches, team.rank, None, team.size):
        batch = made.to(device)
        count = made.count_targets()
        with autocast(device, recipe.precision):
            logits = _forward(model, model, batch)
        total += float(masked_loss(logits, batch.labels)) * count
        targets += count
    model.train(was_training)
    total, counted = team.add(total, targets, device=device)
    return total / max(1, counted)


_Item = tuple[int, int, int, Batch]


def _iterate(data: TrainingData, recipe: Recipe, done: int, team: Team) -> Iterator[_Item]:
    """Yield steps from `done` on: number, epoch, targets in the batch, a process's share of it."""
    step = epoch = 0
    while step < recipe.steps:
        for make in recipe.plan(data, epoch)[: recipe.steps - step]:
            if step >= done:
                batch = make()
                yield step, epoch, batch.count_targets(), team.share(batch)
            step += 1
        epoch += 1


def _find_gradient(
    model: nn.Module, joined: nn.Module, batch: Batch, targets: int, recipe: Recipe, team: Team
) -> Tensor:
    """Give this process's share of the loss; the gradient is the team's."""
    with autocast(batch.input_ids.device, recipe.precision):
        loss = masked_loss(_forward(model, joined, batch), batch.labels, targets)
    (loss * team.size).backward()  # the mean over processes is taken
    return loss.detach()


def _forward(model: nn.Module, joined: nn.Module, batch: Batch) -> Tensor:
    with run_packed(model) if batch.packed else nullcontext():
        out = joined(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    logits: Tensor = out.logits
    return logits


def clip_gradient(loss: Tensor, parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Limit the gradient's norm; return the loss, or NaN where the gradient is not finite.

    So both are found by :func:`mean_finite`, without waiting for the device at every step.
    """
    return loss + 0 * nn.utils.clip_grad_norm_(parameters, most)


def mean_finite(losses: Sequence[Tensor], step: int, team: Team = ALONE) -> float:
    """Mean of the losses of some steps, of which `step` is the last; of a team, of their sums.

    Raises
    ------
    FrugalError
        It is not finite.
    """
    found = torch.stack(list(losses)).mean()
    return _check_finite(team.add(float(found), device=found.device)[0], step)


def _check_finite(loss: float, step: int) -> float:
    """Return the loss if it is finite.

    Raises
    ------
    FrugalError
        It is not.
    """
    if not math.isfinite(loss):
        raise FrugalError(
            f"the loss or its gradient is not finite at step {step} or shortly before; "
            "try a lower --learning-rate or --precision fp32"
        )
    return loss


class _Log:
    """JSON lines; after a resume, what the killed run wrote past its saved state is dropped."""

    def __init__(self, path: Path, done: int, *, writes: bool = True) -> None:
        self._path = path
        self._entries = []
        self._handle = None
        if path.is_file():
            lines = path.read_text().splitlines()
            # A kill may have cut the last line short.
            entries = [json.loads(line) for line in lines if line.endswith("}")]
            self._entries = [entry for entry in entries if entry["step"] <= done]
        if writes:
            with write_atomically(path) as handle:
                handle.writelines(json.dumps(entry) + "\n" for entry in self._entries)
            self._handle = path.open("a", buffering=1)

    def write(self, **entry: float) -> None:
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in entry.items()}
        self._entries.append(rounded)
        if self._handle is not None:
            self._handle.write(json.dumps(rounded) + "\n")

    def summarise(self) -> dict[str, float]:
        """Give the final numbers of the whole run, killed parts included."""
        steps = [entry for entry in self._entries if "loss" in entry]
        tail = steps[-max(1, len(steps) // 10) :]
        return {
            "steps": steps[-1]["step"],
            "epochs": steps[-1]["epoch"] + 1,
            "loss": sum(entry["loss"] for entry in tail) / len(tail),
            "validation_loss": self._entries[-1]["validation_loss"],
        }

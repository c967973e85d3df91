"""How to tune, and how it went."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from frugalfm.encoders.devices import Precision

__all__ = ["StartName", "Tuned", "TuningRecipe"]

StartName = Literal["probe", "random"]


@dataclass(frozen=True)
class TuningRecipe:
    """How to tune.

    Attributes
    ----------
    epochs, max_steps
        Passes over the training split, and optimizer steps at most.
    batch_size
        Sequences of one optimizer step: the effective batch.
    batch_tokens
        Padded tokens of one forward pass, at most; a step takes as many passes as it needs, and
        comes to the same.
    learning_rate, weight_decay, warmup_steps
        Of AdamW; the rate decays linearly after the warm-up, which takes a tenth of the steps,
        at most 50, when None.
    head_learning_rate
        Of the head, if not that of all else.
    start
        Whether the head begins as the linear probe of what it reads, or at random.
    clip
        Largest norm of the gradient.
    validate_every, patience
        Steps between scores of dev (an epoch when None), and how many of them without a better
        one end the tuning.
    save_every
        Steps between saved states to resume from.
    seed
        Determines batches and dropout.
    precision
        ``bf16`` runs the forward pass under autocast; what is trained stays fp32.
    """

    epochs: int = 5
    max_steps: int | None = None
    batch_size: int = 32
    batch_tokens: int = 16_384
    learning_rate: float = 3e-5
    head_learning_rate: float | None = None
    start: StartName = "probe"
    weight_decay: float = 0.01
    warmup_steps: int | None = None
    clip: float = 1.0
    validate_every: int | None = None
    patience: int = 5
    save_every: int = 500
    seed: int = 42
    precision: Precision = "fp32"

    def count_steps(self, sequences: int) -> int:
        """Optimizer steps of the whole run."""
        steps = self.epochs * math.ceil(sequences / self.batch_size)
        return min(steps, self.max_steps or steps)

    def warmup_share(self, steps: int) -> float:
        """Share of the steps that warm up."""
        rising = min(50, steps / 10) if self.warmup_steps is None else self.warmup_steps
        return min(rising / steps, 1)

    def identity(self) -> dict[str, Any]:
        """All that decides the result; saving does not."""
        settings = asdict(self)
        del settings["save_every"]
        return settings


@dataclass
class Tuned:
    """How tuning went.

    Attributes
    ----------
    metric
        What is compared on dev.
    steps, best_step
        Steps taken, and those after which dev was best: the weights that are kept. Step 0 is the
        model before any, where its head began as a probe.
    best
        The dev metric there.
    stopped
        Whether patience ended the tuning.
    shortened
        Training sequences cut to `max_tokens`.
    parameters, seconds
        Numbers trained, and what that took.
    history
        A line a validation: step, epoch, mean loss since the last one, dev metric.
    reached, since_reached
        The best dev metric after a step, and the validations since: what patience is about. The
        first steps may fall far below a probe, and the last ones rise above it.
    start
        The probe that the head began as: its ``setting``, its ``value`` on dev, the ``items`` it
        was fitted on and the ``seconds`` this took; None for a random one.
    """

    metric: str
    steps: int = 0
    best_step: int = 0
    best: float = -math.inf
    stopped: bool = False
    shortened: int = 0
    parameters: int = 0
    seconds: float = 0.0
    history: list[dict[str, float | None]] = field(default_factory=list)
    reached: float = -math.inf
    since_reached: int = 0
    start: dict[str, Any] | None = None

    def summarise(self) -> dict[str, Any]:
        """Give what metrics record of the tuning."""
        return {
            "steps": self.steps,
            "best_step": self.best_step,
            "stopped_early": self.stopped,
            "chosen_by": f"dev {self.metric}",
            "shortened": self.shortened,
            "trained_parameters": self.parameters,
            "started_from": self.start,
            "seconds": round(self.seconds, 1),
        }

    def note(self, epoch: int, loss: float | None, value: float) -> bool:
        """Write a validation down and say whether it is the best so far (NaN never is)."""
        metric = value if math.isfinite(value) else None
        line = {"step": self.steps, "epoch": epoch, "loss": loss, f"dev_{self.metric}": metric}
        first = not self.history
        self.history.append(line)
        if self.steps:
            further = value > self.reached
            self.since_reached = (
                0 if further or self.reached == -math.inf else self.since_reached + 1
            )
            self.reached = value if further else self.reached
        if better := value > self.best or first:
            self.best_step = self.steps
            self.best = -math.inf if metric is None else metric
        return better

"""What is decided before a tuning: the options as given, filled in with presets and defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from frugalfm.encoders.devices import Precision
from frugalfm.encoders.heads import Pooling
from frugalfm.errors import InputError, require_not_negative, require_positive
from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import PAIRS, is_map
from frugalfm.tokens.codec import Codec
from frugalfm.training.adapters import Method
from frugalfm.training.labelled import check_encodable
from frugalfm.training.pairs import PairOrder
from frugalfm.training.presets import PRESETS, find_preset
from frugalfm.training.recipes import StartName, TuningRecipe

__all__ = ["TuningOptions", "TuningPlan"]


@dataclass(frozen=True)
class TuningPlan:
    """How to tune on one task, with nothing left open.

    Attributes
    ----------
    method, merge, rank, targets
        Of the adapter; ``full`` makes none. Rank and targets are the method's own by default.
    pooling, order
        Of a head for sequences, and for pairs of sequences.
    max_tokens
        Longest sequence, special tokens counted.
    preset
        The one that was used, if any.
    recipe
        The training.
    """

    method: Method
    merge: bool
    rank: int | None
    targets: tuple[str, ...]
    pooling: Pooling
    order: PairOrder
    max_tokens: int | None
    preset: str | None
    recipe: TuningRecipe

    def identity(self) -> dict[str, Any]:
        """All that decides the result."""
        options = {name: getattr(self, name) for name in _IDENTITY}
        return options | self.recipe.identity()

    def summarise(self) -> dict[str, Any]:
        """Give what metrics record of the plan."""
        return {
            **self.identity(),
            "preset": self.preset,
            "effective_batch_size": self.recipe.batch_size,
        }

    def describe(self) -> str:
        """Say in one line what will be done."""
        recipe = self.recipe
        head = recipe.head_learning_rate
        return (
            f"{self.method}: seed {recipe.seed}, effective batch size {recipe.batch_size}, "
            f"learning rate {recipe.learning_rate:g}"
            + ("" if head is None else f" ({head:g} for the head)")
            + f", at most {recipe.epochs} epochs; preset {self.preset or 'none'}"
        )


_IDENTITY = ("method", "merge", "rank", "targets", "max_tokens", "pooling", "order")


@dataclass(frozen=True)
class TuningOptions:
    """The options of ``frugalfm tune``, checked as far as they can be alone.

    Attributes are explained there; None is what was not given.

    Raises
    ------
    InputError
        Numbers that make no sense, or options that contradict each other.
    """

    method: Method = "lora"
    merge: bool = False
    preset: str = "auto"
    pooling: Pooling = "auto"
    order: PairOrder = "symmetric"
    start: StartName = "probe"
    rank: int | None = None
    targets: tuple[str, ...] = ()
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    epochs: int | None = None
    max_steps: int | None = None
    max_tokens: int | None = None
    warmup_steps: int | None = None
    weight_decay: float = 0.01
    batch_size: int = 32
    batch_tokens: int = 16_384
    validate_every: int | None = None
    patience: int = 5
    save_every: int = 500
    precision: Precision = "fp32"
    seed: int = 42
    _positive: tuple[str, ...] = field(
        default=(
            "rank", "learning_rate", "head_learning_rate", "epochs", "max_steps", "warmup_steps",
            "batch_size", "batch_tokens", "validate_every", "patience", "save_every",
        ),
        init=False,
        repr=False,
    )  # fmt: skip

    def __post_init__(self) -> None:
        require_positive(seed=self.seed, **{name: getattr(self, name) for name in self._positive})
        require_not_negative(weight_decay=self.weight_decay)
        if self.max_tokens is not None and self.max_tokens < 3:
            raise InputError(f"--max-tokens must be at least 3, not {self.max_tokens}")
        if self.method == "full" and (self.merge or self.rank is not None or self.targets):
            raise InputError(
                "--merge, --rank and --targets belong to adapters, and --method full makes none"
            )

    def plan(self, folder: Path, task: Task, codec: Codec, width: int) -> TuningPlan:
        """Fill in what is open for one task and one encoder.

        Parameters
        ----------
        folder
            The task's, whose name may tell a preset.
        task
            What was read from it.
        codec, width
            Of the encoder.

        Raises
        ------
        InputError
            No such preset, or a task that the encoder cannot take this way.
        """
        preset = find_preset(self.preset, folder, codec.alphabet)
        known = PRESETS.get(preset or "")
        max_tokens = self.max_tokens
        by_residue = task.kind == "token" or is_map(task.kind)
        if max_tokens is not None and by_residue:
            raise InputError(
                "--max-tokens would cut the labels of residues; cut the task's sequences"
            )
        if self.pooling == "cls" and (is_map(task.kind) or task.kind in PAIRS):
            raise InputError(f"--pooling cls: a task of kind {task.kind} has no head for it")
        # The presets count DNABERT-2's tokens, of several residues each.
        if known and max_tokens is None and not codec.per_residue and not by_residue:
            max_tokens = known.max_tokens
        check_encodable(task, codec, max_tokens)
        # The preset, then the options on top of it.
        schedule = {name: (asdict(known) if known else {}).get(name) for name in _SCHEDULE}
        schedule |= {
            name: getattr(self, name) for name in _SCHEDULE if getattr(self, name) is not None
        }
        rate = self.learning_rate or default_rate(self.method, width)
        head_rate = self.head_learning_rate
        # A head that no probe can start has all of its way before it.
        if head_rate is None and (is_map(task.kind) or (by_residue and not codec.per_residue)):
            head_rate = 10 * rate
        recipe = TuningRecipe(
            **{name: value for name, value in schedule.items() if value is not None},
            **{name: getattr(self, name) for name in _AS_GIVEN},
            learning_rate=rate,
            head_learning_rate=head_rate,
        )
        return TuningPlan(
            self.method,
            self.merge,
            self.rank,
            self.targets,
            self.pooling,
            self.order,
            max_tokens,
            preset,
            recipe,
        )


_SCHEDULE = ("epochs", "max_steps", "warmup_steps")
_AS_GIVEN = (
    "batch_size", "batch_tokens", "start", "weight_decay", "validate_every",
    "patience", "save_every", "seed", "precision",
)  # fmt: skip


def default_rate(method: Method, width: int) -> float:
    """Peak learning rate: the one published for DNABERT-2, and more for narrower models.

    AdamW's rate for matrices goes with the inverse of the width (Yang et al. 2022,
    arXiv 2203.03466); at the published rate a small model hardly moves. Adapters of narrow models
    did best on dev with more still: 3e-3 at a width of 128, 1e-2 at 64.

    Parameters
    ----------
    method
        Adapters take more than a whole model.
    width
        Of the hidden states.
    """
    published = 3e-5 if method == "full" else 1e-4
    ratio = _PUBLISHED_WIDTH / width
    power = 2 if method != "full" and ratio > 1 else 1
    return float(f"{published * ratio**power:.2g}")


_PUBLISHED_WIDTH = 768

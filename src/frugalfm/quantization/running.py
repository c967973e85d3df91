"""From a model and data to a scheme and what it costs: all that ``frugalfm quantize`` computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frugalfm.errors import InputError
from frugalfm.quantization.data import draw_sequences, split_batches
from frugalfm.quantization.evaluation import Comparison, compare
from frugalfm.quantization.plan import QuantizationPlan
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.sites import Survey, survey_sites
from frugalfm.quantization.subjects import Subject
from frugalfm.quantization.task_evaluation import (
    Agreement,
    TaskComparison,
    compare_decisions,
    compare_task,
    encode_unlabelled,
    task_batches,
)
from frugalfm.tasks.folder import Task, find_splits, read_task
from frugalfm.tasks.kinds import is_map
from frugalfm.tasks.reading import Reading
from frugalfm.training.data import Batch
from frugalfm.training.labelled import TuningData
from frugalfm.training.predicting import TaskHead

__all__ = ["Quantized", "list_own_splits", "quantize_subject", "read_own_task"]

_SHOWN = 4
_PLAIN: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Quantized:
    """A scheme, where it applies, and what it costs.

    Attributes
    ----------
    scheme, survey
        What is rounded, and what is not.
    found
        What was measured.
    batches
        Some of those that it was measured on.
    """

    scheme: Scheme
    survey: Survey
    found: Comparison | Agreement
    batches: list[Batch]

    @property
    def measured(self) -> str:
        """What was measured: ``masked loss``, ``task`` or ``agreement``."""
        if isinstance(self.found, Comparison):
            return "masked loss"
        return "task" if isinstance(self.found, TaskComparison) else "agreement"

    def to_dict(self) -> dict[str, Any]:
        """Give what ``quantization.json`` holds."""
        scheme, survey = self.scheme, self.survey
        return {
            **self.found.to_dict(),
            "measured": self.measured,
            "method": scheme.method,
            "execution": "simulated",
            "weights": asdict(scheme.weights) if scheme.weights else None,
            "activations": asdict(scheme.activations) if scheme.activations else None,
            "quantized": [asdict(site) for site in survey.sites] if scheme.quantizes else [],
            "not_quantized": [asdict(place) for place in survey.left_out],
        }


def list_own_splits(folder: Path, tuning: Mapping[str, Any]) -> dict[str, Path]:
    """List the files of the task that a model was tuned on, as :func:`read_own_task` reads them."""
    with _as_tuned(tuning):
        return find_splits(folder, Reading.from_config(tuning))


@contextlib.contextmanager
def _as_tuned(tuning: Mapping[str, Any]) -> Iterator[None]:
    """Say in messages about the task where the options came from that they name."""
    try:
        yield
    except InputError as error:
        given = Reading.from_config(tuning).identity()
        if not given:
            raise
        options = ", ".join(f"--{k.replace('_', '-')} {v}" for k, v in given.items())
        raise InputError(
            f"{error} (the model was tuned with {options}: give the task as tune was given it)"
        ) from None


def read_own_task(folder: Path, subject: Subject, tuning: Mapping[str, Any] = _PLAIN) -> Task:
    """Read the task that a model was tuned on, as it was read then.

    Parameters
    ----------
    folder
        The task.
    subject
        The model.
    tuning
        What it was tuned with (:func:`~frugalfm.quantization.subjects.read_tuning`): names of
        columns, rows held out, what was done about leaks and sequences that are too long.

    Raises
    ------
    InputError
        The model has no head, or the task is another one than the head's.
    """
    head = subject.head
    if head is None:
        raise InputError(
            f"{folder}: the model has no head to predict a task with; `frugalfm tune` makes one, "
            "or leave out --task"
        )
    codec = subject.codec
    with _as_tuned(tuning):
        task = read_task(
            folder,
            codec.alphabet,
            kind=head.kind,
            max_residues=codec.max_residues,
            reading=Reading.from_config(tuning),
            **{name: tuning[name] for name in ("leaks", "too_long") if name in tuning},
        )
    if head.classes and task.classes != head.classes and not _are_placeholders(head.classes):
        raise InputError(
            f"{folder}: has the classes {', '.join(task.classes)}, the model was tuned for "
            f"{', '.join(head.classes)}; give the task that it was tuned on"
        )
    return task


def quantize_subject(
    subject: Subject, plan: QuantizationPlan, *, data: Path | None = None, task: Task | None = None
) -> Quantized:
    """Find a scheme and measure what it costs.

    Parameters
    ----------
    subject
        The model, on the device to compute on.
    plan
        How to quantize it.
    data
        Sequences to calibrate on; of a masked-language model, or without a task, the other half
        of them to evaluate on. Needed unless there is a task.
    task
        To evaluate a tuned model on; without data its training split calibrates.

    Raises
    ------
    InputError
        Data that cannot be used; see :func:`~frugalfm.quantization.data.draw_sequences`.
    """
    if subject.head is None:
        if data is None:
            raise InputError("a masked-language model is calibrated and measured on --data")
        sequences = _draw(data, subject, plan)
        with _naming(data):
            split = split_batches(
                sequences,
                subject.codec,
                calibration_batches=plan.calibration_batches,
                limit=plan.limit,
                batch_tokens=plan.batch_tokens,
                seed=plan.seed,
            )
        scheme = plan.find_scheme(subject.model, split.calibration)
        found = compare(subject.model, scheme, split.evaluation)
        some = split.evaluation[:: -(-len(split.evaluation) // _SHOWN)]  # of all lengths
        return _finish(subject, scheme, found, some)
    pool, rest, source = _read_rows(subject, subject.head, plan, data, task)
    with _naming(source):
        batches = task_batches(
            pool, plan.calibration_batches, batch_tokens=plan.batch_tokens, seed=plan.seed
        )
    scheme = plan.find_scheme(subject.model, batches)
    if task is None:
        assert rest is not None
        alike = compare_decisions(subject.model, scheme, rest, batch_tokens=plan.batch_tokens)
        return _finish(subject, scheme, alike, _show_some(rest, plan))
    on_task = compare_task(
        subject.model,
        scheme,
        task,
        subject.codec,
        max_tokens=subject.head.max_tokens,
        batch_tokens=plan.batch_tokens,
    )
    test = TuningData.encode(task.test, task.kind, subject.codec, subject.head.max_tokens)
    return _finish(subject, scheme, on_task, _show_some(test, plan))


def _read_rows(
    subject: Subject, head: TaskHead, plan: QuantizationPlan, data: Path | None, task: Task | None
) -> tuple[TuningData, TuningData | None, Path]:
    """Rows to calibrate on, rows to compare decisions on if there is no task, and their source."""
    if data is None:
        if task is None:
            raise InputError("give --task, or sequences with --data")
        rows = TuningData.encode(task.train, task.kind, subject.codec, head.max_tokens)
        return rows, None, task.train.path
    if head.of_pairs or is_map(head.kind):
        raise InputError(
            f"a model for {head.kind} is calibrated on its task's training split: give --task "
            "and leave out --data"
        )
    sequences = _draw(data, subject, plan)
    if task is not None:
        encoded = encode_unlabelled(sequences, head.kind, subject.codec, head.max_tokens)
        return encoded, None, data
    order = np.random.default_rng(plan.seed).permutation(len(sequences))
    half = len(sequences) // 2
    parts = [[sequences[row] for row in rows] for rows in (order[:half], np.sort(order[half:]))]
    if not half:
        raise InputError(f"{data}: holds one sequence; one half calibrates, the other is compared")
    pool, rest = (
        encode_unlabelled(part, head.kind, subject.codec, head.max_tokens) for part in parts
    )
    return pool, rest, data


def _draw(data: Path, subject: Subject, plan: QuantizationPlan) -> list[np.ndarray]:
    return draw_sequences(data, subject.codec, 2 * plan.limit, plan.seed, plan.sequence_column)


def _finish(
    subject: Subject, scheme: Scheme, found: Comparison | Agreement, batches: list[Batch]
) -> Quantized:
    survey = survey_sites(subject.model, scheme.extent, tables=scheme.tables)
    return Quantized(scheme, survey, found, batches)


def _show_some(rows: TuningData, plan: QuantizationPlan) -> list[Batch]:
    count = min(len(rows.sequences), _SHOWN)
    return task_batches(rows, count, batch_tokens=plan.batch_tokens, seed=plan.seed)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the input in the message of an error."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _are_placeholders(classes: Sequence[str]) -> bool:
    """Whether these are the names that transformers makes up."""
    return all(name == f"LABEL_{index}" for index, name in enumerate(classes))

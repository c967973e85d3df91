"""Answers of a model as columns that a user reads: decisions, probabilities, what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.special import expit, softmax

from frugalfm.errors import InputError
from frugalfm.tasks.brackets import write_structure
from frugalfm.tasks.kinds import CLASSES, NUMBERS, is_map
from frugalfm.tasks.labels import SEPARATOR
from frugalfm.training.predicting import TaskHead

__all__ = ["PredictionTable", "Tally"]

_CONTACTS = pa.list_(pa.struct([("i", pa.int32()), ("j", pa.int32()), ("score", pa.float32())]))
_SHOWN = 8  # labels that a summary names


@dataclass(frozen=True)
class PredictionTable:
    """Columns of predictions.

    Always ``id``; then

    - of classes: ``label`` and its ``probability``;
    - of several labels a sequence: ``label``, those of probability over a half joined by ``;``;
    - of numbers: ``value``;
    - of residues: ``label``, a character a residue; of base pairs, too (dot-bracket notation);
    - of contacts: ``contacts``, the likeliest ones, as many as residues: ``i``, ``j`` (positions
      from 0) and ``score``;
    - of distances: ``distances`` of all pairs of residues in angstrom, the upper triangle row by
      row, so that ``scipy.spatial.distance.squareform`` makes a matrix of it. Pairs closer in the
      sequence than those that were trained on (6 residues) mean little.

    With `probabilities` there is also a column ``probability_CLASS`` for each class, or for
    labels of residues ``probabilities``: of each residue those of all classes.

    Attributes
    ----------
    head
        What is predicted.
    probabilities
        Whether to give those of all classes.

    Raises
    ------
    InputError
        Predictions of this kind have no such probabilities.
    """

    head: TaskHead
    probabilities: bool = False

    def __post_init__(self) -> None:
        kind = self.head.kind
        if self.probabilities and (kind in NUMBERS or is_map(kind)):
            raise InputError(f"--probabilities: predictions of kind {kind} have no classes")

    @property
    def nested(self) -> bool:
        """Whether some column holds lists, which text files cannot."""
        return any(pa.types.is_nested(column.type) for column in self.schema())

    def schema(self, metadata: dict[str, str] | None = None) -> pa.Schema:
        """Names and types of the columns."""
        kind, classes = self.head.kind, self.head.classes
        fields: list[tuple[str, pa.DataType]] = [("id", pa.string())]
        if kind in NUMBERS:
            fields.append(("value", pa.float32()))
        elif kind == "contact":
            fields.append(("contacts", _CONTACTS))
        elif kind == "distance":
            fields.append(("distances", pa.list_(pa.float32())))
        else:
            fields.append(("label", pa.string()))
        if kind in CLASSES:
            fields.append(("probability", pa.float32()))
        if self.probabilities and kind == "token":
            fields.append(("probabilities", pa.list_(pa.list_(pa.float32(), len(classes)))))
        elif self.probabilities:
            fields += [(f"probability_{name}", pa.float32()) for name in classes]
        return pa.schema(fields, metadata=metadata)

    def fill(
        self, ids: Sequence[str], answers: Sequence[np.ndarray], lengths: np.ndarray
    ) -> pa.Table:
        """Make rows of what :meth:`~frugalfm.training.predicting.TaskRunner.answer` gave.

        Parameters
        ----------
        ids, answers
            Of each record.
        lengths
            Its tokens.
        """
        kind = self.head.kind
        if kind == "token":
            columns = self._of_residues(answers)
        elif kind == "contact":
            columns = [_list_contacts(answers)]
        elif kind == "distance":
            columns = [_as_lists(pa.array(np.concatenate(answers), pa.float32()), answers)]
        elif kind == "base-pair":
            found = [
                write_structure(answer[:, :2].astype(np.int64), int(length))
                for answer, length in zip(answers, lengths, strict=True)
            ]
            columns = [pa.array(found, pa.string())]
        else:
            columns = self._of_sequences(np.stack(answers))
        return pa.table([pa.array(ids, pa.string()), *columns], schema=self.schema())

    def _of_sequences(self, logits: np.ndarray) -> list[pa.Array]:
        kind, names = self.head.kind, np.array(self.head.classes)
        if kind in NUMBERS:
            return [pa.array(logits[:, 0], pa.float32())]
        if kind == "multilabel":
            odds = expit(logits)
            found = [SEPARATOR.join(names[flags].tolist()) for flags in logits > 0]
            columns = [pa.array(found, pa.string())]
        else:
            odds = softmax(logits, axis=1)
            columns = [
                pa.array(names[logits.argmax(1)].tolist(), pa.string()),
                pa.array(odds.max(1), pa.float32()),
            ]
        return columns + [pa.array(one, pa.float32()) for one in odds.T if self.probabilities]

    def _of_residues(self, answers: Sequence[np.ndarray]) -> list[pa.Array]:
        names = np.array(self.head.classes)
        columns = [pa.array(["".join(names[found.argmax(1)]) for found in answers], pa.string())]
        if self.probabilities:
            odds = softmax(np.concatenate(answers), axis=1).astype(np.float32)
            each = pa.FixedSizeListArray.from_arrays(pa.array(odds.ravel()), odds.shape[1])
            columns.append(_as_lists(each, answers))
        return columns


@dataclass
class Tally:
    """What was predicted, counted while it is written."""

    table: PredictionTable
    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    low: float = float("inf")
    high: float = float("-inf")
    total: float = 0.0

    def add(self, rows: pa.Table) -> None:
        """Count some rows."""
        self.rows += len(rows)
        kind = self.table.head.kind
        if kind in NUMBERS:
            values = np.asarray(rows["value"], np.float64)
            self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
            self.total += float(values.sum())
        elif kind == "token":
            for text in rows["label"].to_pylist():
                self.labels.update(text)
        elif kind == "base-pair":
            for text in rows["label"].to_pylist():
                free = text.count(".")
                self.labels.update(unpaired=free, paired=len(text) - free)
        elif kind == "multilabel":
            for text in rows["label"].to_pylist():
                self.labels.update(text.split(SEPARATOR) if text else ["none of them"])
        elif kind in CLASSES:
            for entry in pc.value_counts(rows["label"]).to_pylist():
                self.labels[entry["values"]] += entry["counts"]

    def describe(self) -> str:
        """Say in a few words what was predicted."""
        kind = self.table.head.kind
        if kind in NUMBERS:
            mean = self.total / max(1, self.rows)
            return f"{kind}, {self.low:.4g} to {self.high:.4g}, mean {mean:.4g}"
        shown = [f"{name} {count:,}" for name, count in self.labels.most_common(_SHOWN)]
        rest = len(self.labels) - len(shown)
        return f"{kind}: {', '.join(shown)}" + (f", {rest} more" if rest else "") if shown else kind


def _as_lists(values: pa.Array, answers: Sequence[np.ndarray]) -> pa.Array:
    ends = np.cumsum([0, *map(len, answers)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), values)


def _list_contacts(answers: Sequence[np.ndarray]) -> pa.Array:
    joined = np.concatenate(answers)
    parts = [joined[:, 0].astype(np.int32), joined[:, 1].astype(np.int32)]
    columns = [*map(pa.array, parts), pa.array(joined[:, 2], pa.float32())]
    return _as_lists(pa.StructArray.from_arrays(columns, names=["i", "j", "score"]), answers)

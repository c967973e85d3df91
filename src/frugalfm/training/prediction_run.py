"""All of an input through a model, window by window, in input order and bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from frugalfm.probing.embed import regroup
from frugalfm.progress import progress
from frugalfm.training.ahead import look_ahead
from frugalfm.training.predicting import TaskRunner
from frugalfm.training.prediction_input import Survey, TooLong, stream_records
from frugalfm.training.prediction_table import PredictionTable

__all__ = ["PredictionRun", "window_size"]

_WINDOW = 1 << 18
_BATCHES = 16


def window_size(batch_tokens: int) -> int:
    """Tokens that are sorted by length together, and lost by a kill: those of 16 batches or more.

    It depends on nothing else, lest a call that continues cuts the input elsewhere.
    """
    return max(_WINDOW, _BATCHES * batch_tokens)


@dataclass
class PredictionRun:
    """One input to predict.

    In memory are some windows (one is predicted, the next two are read), the answers of one, and
    one batch; nothing grows with the input.

    Attributes
    ----------
    runner, table
        How to predict, and the columns to give.
    sequences, too_long
        As in :func:`~frugalfm.training.prediction_input.stream_records`.
    survey
        What the input holds.
    window
        Tokens, from :func:`window_size`.
    sequence_column
        Of tables.
    done
        Tokens that were predicted, not counting those that were left out.
    """

    runner: TaskRunner
    table: PredictionTable
    sequences: Path
    too_long: TooLong
    survey: Survey
    window: int
    sequence_column: str | None = None
    done: int = 0

    def windows(self, first: int = 0) -> Iterator[pa.Table]:
        """Predict from window `first` on; those before it are read, and left out."""
        codec, head = self.runner.codec, self.table.head
        column = self.sequence_column
        pieces = stream_records(self.sequences, codec, head, self.too_long, column)
        total = self.survey.tokens
        with progress(total=total, desc="predict", unit="token", unit_scale=True) as bar:
            for number, records in enumerate(look_ahead(regroup(pieces, self.window))):
                tokens = int(records.lengths.sum())
                if number < first:
                    bar.update(tokens)
                    continue
                answers = self.runner.answer(records, bar.update)
                yield self.table.fill(records.ids, answers, records.lengths)
                self.done += tokens

"""What parts of scores say of themselves: counts of their lengths and losses, in their footers.

Reports on a pool then need not count them again, which took a tenth of a selection. Somebody may
have edited a part and kept its metadata: counts are believed only where they agree with the number
of rows and the extremes that the writer noted beside them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frugalfm.coreset.tally import Tally

__all__ = ["describe_part", "read_tally"]

_KEY = b"frugalfm.tally"


def describe_part(scores: pa.Table) -> pa.Table:
    """Add counts to the metadata of a part, which has the columns ``length`` and ``loss``."""
    columns = {name: scores[name].to_numpy() for name in Tally.columns}
    tally = Tally()
    tally.add(columns)
    content = tally.to_json() | {"ends": [_ends(values) for values in columns.values()]}
    return scores.replace_schema_metadata({_KEY: json.dumps(content)})


def read_tally(files: Sequence[Path]) -> Tally | None:
    """Add up the counts of all parts; None where one lacks them, or is not what they say."""
    total = Tally()
    for path in files:
        meta = pq.read_metadata(path)
        if not meta.num_rows:
            continue
        content = json.loads((meta.metadata or {}).get(_KEY, b"{}"))
        noted = [_noted_ends(meta, name) for name in Tally.columns]
        if content.get("rows") != meta.num_rows or content.get("ends") != noted:
            return None
        total.merge(Tally.from_json(content))
    return total


def _ends(values: Any) -> list[float] | None:
    return [float(np.min(values)), float(np.max(values))] if len(values) else None


def _noted_ends(meta: pq.FileMetaData, name: str) -> list[float] | None:
    """Smallest and largest value of a column by the statistics of its row groups."""
    place = meta.schema.names.index(name)
    groups = (meta.row_group(number) for number in range(meta.num_row_groups))
    found = [group.column(place).statistics for group in groups if group.num_rows]
    if any(one is None or not one.has_min_max for one in found):
        return None
    return [float(min(one.min for one in found)), float(max(one.max for one in found))]

"""What the benchmark needs beside the verbs: a drawn pool, a model's size, random weights."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.pruning.losses import measure_losses

from frugalfm.artifacts import open_stage
from frugalfm.errors import InputError

__all__ = ["describe_model", "draw_pool", "make_untrained", "measure_losses"]


def draw_pool(
    source: Path,
    *,
    out: Path,
    sample: int,
    longest: int | None = None,
    validation: int = 500,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Draw a pool and a validation set from a FASTA file, with the source of each sequence.

    The first field of a header, up to a ``|``, becomes the column ``source``. The draw keeps the
    records with the smallest hashes of seed and number, in the order of the file; those of more
    than `longest` letters are not there to be drawn.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = {"sample": sample, "longest": longest, "validation": validation, "seed": seed}
    with open_stage(out, "sample", config, {"source": source}, overwrite=overwrite) as stage:
        if stage.done:
            return out
        chosen = _choose(source, sample + validation, seed, longest)
        held_out = set(sorted(chosen, key=chosen.__getitem__)[:validation])
        tables: dict[str, list[dict[str, str]]] = {"pool": [], "validation": []}
        for number, (name, sequence) in enumerate(_read(source)):
            if number in chosen:
                source_name = name.partition("|")[0] if "|" in name else ""
                row = {"id": name, "sequence": sequence, "source": source_name}
                tables["validation" if number in held_out else "pool"].append(row)
        for table, rows in tables.items():
            pq.write_table(pa.Table.from_pylist(rows), stage.work / f"{table}.parquet")
        stage.commit({table: len(rows) for table, rows in tables.items()})
    return out


def _choose(source: Path, count: int, seed: int, longest: int | None) -> dict[int, str]:
    """Numbers and hashes of the records to keep."""
    hashed = (
        (hashlib.md5(f"{seed}:{number}".encode()).hexdigest(), number)
        for number, (_, sequence) in enumerate(_read(source))
        if longest is None or len(sequence) <= longest
    )
    chosen = heapq.nsmallest(count, hashed)
    if len(chosen) < count:
        raise InputError(f"{source}: holds {len(chosen)} records, fewer than the {count} wanted")
    return {number: found for found, number in chosen}


def _read(source: Path) -> Iterator[tuple[str, str]]:
    import dnaio

    with dnaio.open(source) as reader:
        for record in reader:
            yield record.name.split()[0], record.sequence


def describe_model(
    *,
    out: Path,
    name: str,
    layers: int | None = None,
    max_residues: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Write config and tokenizer of a named size, with other numbers of layers and residues."""
    from frugalfm.encoders import create_encoder

    config = {"name": name, "layers": layers, "max_residues": max_residues}
    with open_stage(out, "model", config, {}, overwrite=overwrite) as stage:
        if not stage.done:
            model, words = create_encoder(name)
            if layers is not None:
                model.config.num_hidden_layers = layers
            if max_residues is not None:
                words.model_max_length = min(words.model_max_length, max_residues + 2)
            model.config.save_pretrained(stage.work)
            words.save_pretrained(stage.work)
            stage.commit({"name": name, "layers": model.config.num_hidden_layers})
    return out


def make_untrained(model: Path, *, out: Path, seed: int, overwrite: bool = False) -> Path:
    """Save the weights that pretraining with this seed starts from."""
    from frugalfm.encoders import open_model, save_encoder

    config: dict[str, Any] = {"steps": 0, "seed": seed}
    with open_stage(out, "checkpoint", config, {"model": model}, overwrite=overwrite) as stage:
        if not stage.done:
            encoder, words, _ = open_model(str(model), seed=seed)
            save_encoder(encoder, words, stage.work)
            stage.commit({"steps": 0})
    return out

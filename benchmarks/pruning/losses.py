"""Masked loss on sequences that no model has seen: what pretraining itself is judged by.

Tasks are few and noisy at sizes that a CPU trains. The loss is measured on every residue of every
held-out sequence (each masked once, in seven groups), so that small differences can be told from
the luck of the seed; and also as a mean over sources, where a large family counts no more than a
small one. What knows nothing but how often each residue occurs in the pool is set beside the
models: a model that is no better has learned no more than that.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from benchmarks.pruning.intervals import Sample, bootstrap, compare, stack, summarise
from benchmarks.pruning.recipe import Arm, Recipe

from frugalfm.artifacts import open_stage

__all__ = ["FEWEST", "FREQUENCIES", "collect_losses", "loss_folder", "measure_losses"]

FREQUENCIES = "residue frequencies"
"""What the losses are compared with that any model should beat."""

FEWEST = 5
"""A source of fewer held-out sequences is left out of the mean over sources."""

_BATCH_TOKENS = 2048


def loss_folder(arm: Arm, seed: int) -> str:
    """Where the losses of an arm's model are kept."""
    return f"losses/{arm.name}-{seed}"


def measure_losses(model: Path, *, out: Path, data: Path, overwrite: bool = False) -> Path:
    """Write the mean loss of each sequence of some shards, in nats a residue.

    Writes ``losses.parquet`` with the columns ``row``, ``source`` (where the shards have it) and
    ``loss``.
    """
    import torch

    from frugalfm.encoders import load_encoder
    from frugalfm.influence import MaskScheme
    from frugalfm.sequences.shards import open_shards
    from frugalfm.tokens.batches import plan_by_length
    from frugalfm.tokens.codec import Codec

    inputs = {"model": model, "data": data}
    with open_stage(out, "losses", {}, inputs, overwrite=overwrite) as stage:
        if stage.done:
            return out
        encoder, tokenizer = load_encoder(model, device=torch.device("cpu"))
        codec, masks = Codec.from_tokenizer(tokenizer), MaskScheme()
        table = pa.Table.from_batches(open_shards(data).batches())
        tokens, lengths = codec.encode(table["sequence"])
        sequences = np.split(tokens, np.cumsum(lengths)[:-1])
        losses = np.empty(len(sequences))
        for rows in plan_by_length(np.asarray(lengths), _BATCH_TOKENS):
            views = masks.view(codec, [sequences[row] for row in rows], torch.device("cpu"))
            total = torch.zeros(len(rows))
            with torch.no_grad():
                for masked, targets in zip(views.masked, views.targets, strict=True):
                    logits = encoder(input_ids=masked, attention_mask=views.attention).logits
                    each = torch.nn.functional.cross_entropy(
                        logits.transpose(1, 2).float(), views.tokens, reduction="none"
                    )
                    total += (each * targets).sum(1)
            losses[rows] = (total / views.counts.clamp_min(1)).numpy()
        columns = {"row": np.arange(len(losses)), "loss": losses}
        if "source" in table.column_names:
            columns["source"] = table["source"]
        pq.write_table(pa.table(columns), stage.work / "losses.parquet")
        stage.commit({"n_sequences": len(losses), "loss": float(losses.mean())})
    return out


def collect_losses(recipe: Recipe, folder: Path, seeds: Sequence[int]) -> dict[str, Any] | None:
    """Losses of all arms, and their differences from the goal's rival, with intervals.

    Held-out sequences that are in the pool too, as it was built (cropped), are left out.

    Returns
    -------
    dict or None
        ``values`` and ``differences`` (arm minus rival: below zero is better), one entry for each
        arm and mean: over ``sequences``, and over ``sources`` where there are several; and
        ``by_source``, the differences within each. The arm :data:`FREQUENCIES` is there, too.
        ``sequences`` and ``left_out`` count those held out. None where the run is older than these
        losses.
    """
    arms = [(arm.name, [loss_folder(arm, seed) for seed in _seeds_of(arm, seeds)])
            for arm in recipe.arms]  # fmt: skip
    tables = {place: folder / place / "losses.parquet" for _, own in arms for place in own}
    if not all(path.is_file() for path in tables.values()):
        return None
    kept, expected = _describe_held_out(folder)
    read = {place: pq.read_table(path).filter(kept) for place, path in tables.items()}
    losses = [table["loss"].to_numpy() for table in read.values()]
    losses.append(expected)
    parts = _split_by_source(next(iter(read.values())))
    found = {"sequences": [_draw(losses)]}
    if len(parts) > 1:
        found["sources"] = [
            _draw([one[own] for one in losses], zlib.crc32(name.encode()))
            for name, own in parts.items()
        ]
    rival = recipe.goal["against"]
    entries: dict[str, Any] = {"values": [], "differences": [], "by_source": []}
    for mean, samples in found.items():
        averaged = _arrange(arms, [_average(of_one) for of_one in zip(*samples, strict=True)])
        entries["values"] += [
            {"mean": mean, "arm": name} | summarise(sample).to_json()
            for name, sample in averaged.items()
        ]
        entries["differences"] += [{"mean": mean} | e for e in _subtract(averaged, rival)]
    for name, sample in zip(parts, found.get("sources", []), strict=False):
        entries["by_source"] += [
            {"source": name, "sequences": int(parts[name].sum())} | entry
            for entry in _subtract(_arrange(arms, sample), rival)
        ]
    return entries | {"sequences": len(expected), "left_out": len(kept) - len(expected)}


def _seeds_of(arm: Arm, seeds: Sequence[int]) -> Sequence[int]:
    return seeds[:1] if arm.strategy == "reference" else seeds


def _describe_held_out(folder: Path) -> tuple[pa.Array, np.ndarray]:
    """Which held-out sequences are not in the pool, and their losses by the pool's frequencies."""
    from frugalfm.encoders.checkpoints import load_tokenizer
    from frugalfm.sequences.shards import open_shards
    from frugalfm.tokens.codec import Codec

    codec = Codec.from_tokenizer(load_tokenizer(folder / "model"))
    pool, held_out = (
        pa.Table.from_batches(open_shards(folder / name).batches())["sequence"]
        for name in ("pool", "validation")
    )
    kept = pc.invert(pc.is_in(held_out, value_set=pool.combine_chunks()))
    known, (tokens, lengths) = codec.encode(pool)[0], codec.encode(held_out.filter(kept))
    counts = np.bincount(known, minlength=1 + int(tokens.max()))
    counts[tokens] = counts[tokens].clip(1)  # what the pool lacks counts as once there
    surprise = -np.log(counts[tokens] / counts.sum())
    parts = np.split(surprise, np.cumsum(lengths)[:-1])
    return kept, np.array([part.mean() for part in parts])


def _split_by_source(table: pa.Table) -> dict[str, np.ndarray]:
    """Which sequences are of which source, those left out that have too few."""
    if "source" not in table.column_names:
        return {}
    sources = np.array(table["source"].to_pylist())
    names, counts = np.unique(sources, return_counts=True)
    return {str(name): sources == name for name in names[counts >= FEWEST]}


def _draw(losses: Sequence[np.ndarray], seed: int = 0) -> list[Sample]:
    return bootstrap("means", "loss", losses[0], list(losses), seed=seed)


def _arrange(
    arms: Sequence[tuple[str, Sequence[str]]], samples: Sequence[Sample]
) -> dict[str, Sample]:
    """Gather the seeds of each arm; the last sample, of the frequencies, is that of any seed."""
    left = iter(samples)
    by_arm = {name: stack([next(left) for _ in own]) for name, own in arms}
    return by_arm | {FREQUENCIES: stack([next(left)] * max(len(own) for _, own in arms))}


def _subtract(by_arm: dict[str, Sample], rival: str) -> list[dict[str, Any]]:
    other = by_arm[rival]
    return [
        {"arm": name} | compare(sample, other).to_json()
        for name, sample in by_arm.items()
        if name != rival and len(sample.values) == len(other.values)
    ]


def _average(samples: Sequence[Sample]) -> Sample:
    """Mean over strata."""
    return Sample(
        np.mean([one.values for one in samples], axis=0),
        np.mean([one.drawn for one in samples], axis=0),
    )

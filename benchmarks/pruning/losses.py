"""Masked loss on sequences that no model has seen: what pretraining itself is judged by.

Tasks are few and noisy at sizes that a CPU trains. The loss is measured on every residue of every
held-out sequence (each masked once, in seven groups), so that small differences can be told from
the luck of the seed; and also as a mean over sources, where a large family counts no more than a
small one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.pruning.intervals import Sample, bootstrap, compare, stack, summarise
from benchmarks.pruning.recipe import Arm, Recipe

from frugalfm.artifacts import open_stage

__all__ = ["FEWEST", "collect_losses", "loss_folder", "measure_losses"]

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

    Returns
    -------
    dict or None
        ``values`` and ``differences`` (arm minus rival: below zero is better), one entry for each
        arm and mean: over ``sequences``, and over ``sources`` where there are several. None where
        the run is older than these losses.
    """
    arms = [(arm, seeds[:1] if arm.strategy == "reference" else seeds) for arm in recipe.arms]
    places = [
        folder / loss_folder(arm, seed) / "losses.parquet" for arm, own in arms for seed in own
    ]
    if not all(place.is_file() for place in places):
        return None
    tables = [pq.read_table(place) for place in places]
    losses = [table["loss"].to_numpy() for table in tables]
    found = {"sequences": bootstrap("means", "loss", losses[0], losses)}
    if "source" in tables[0].column_names:
        sources = np.array(tables[0]["source"].to_pylist())
        names, counts = np.unique(sources, return_counts=True)
        kept = [sources == name for name in names[counts >= FEWEST]]
        parts = [
            bootstrap("means", "loss", losses[0][own], [one[own] for one in losses]) for own in kept
        ]
        if len(parts) > 1:
            found["sources"] = [_average(of_one) for of_one in zip(*parts, strict=True)]
    values, differences = [], []
    for mean, samples in found.items():
        left = iter(samples)
        by_arm = {arm.name: stack([next(left) for _ in own]) for arm, own in arms}
        rival = by_arm[recipe.goal["against"]]
        for name, sample in by_arm.items():
            entry = {"mean": mean, "arm": name}
            values.append(entry | summarise(sample).to_json())
            if name != recipe.goal["against"] and len(sample.values) == len(rival.values):
                differences.append(entry | compare(sample, rival).to_json())
    return {"values": values, "differences": differences}


def _average(samples: Sequence[Sample]) -> Sample:
    """Mean over strata."""
    return Sample(
        np.mean([one.values for one in samples], axis=0),
        np.mean([one.drawn for one in samples], axis=0),
    )

"""Pairs of positions: where a head starts, the metric of its maps on dev, and their evaluation.

A map is made, measured and dropped, so that no more than those of one batch are ever held.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from frugalfm.encoders.devices import Precision, limit_batch
from frugalfm.tasks.brackets import decode_pairs
from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import HEADLINE
from frugalfm.tasks.map_metrics import FLOOR, Measured, choose_threshold, measure_map
from frugalfm.tasks.map_results import describe_map, report_maps
from frugalfm.tasks.maps import MapTargets
from frugalfm.tasks.results import Evaluation
from frugalfm.tokens.batches import plan_by_length
from frugalfm.training.labelled import TuningData
from frugalfm.training.outputs import Standard, forward, map_of_residues
from frugalfm.training.pairs import PositionsHead

__all__ = [
    "evaluate_tuned_maps",
    "find_standard",
    "measure_maps",
    "positions_head",
    "start_from_separation",
]

_SAMPLE = 200  # training sequences that say how values depend on the separation
_CHOOSING = 200  # sequences of dev that choose, as for the frozen probe


def measure_maps(
    model: nn.Module,
    data: TuningData,
    batch_tokens: int,
    precision: Precision,
    standard: Standard,
    seed: int,
) -> tuple[float, float]:
    """Headline metric of some sequences, and the threshold of base pairs that it is best with."""
    rows = np.random.default_rng(seed).permutation(len(data.sequences))[:_CHOOSING]
    part = data.take(np.sort(rows))
    maps = _maps(part)
    found: list[Any] = [None] * len(maps)
    for row, predicted in _predict(model, part, batch_tokens, precision, standard):
        if maps.kind == "base-pair":
            found[row] = decode_pairs(predicted, FLOOR)
        else:
            found[row] = measure_map(maps, row, predicted)
    threshold = 0.5
    if maps.kind == "base-pair":
        threshold, found = choose_threshold(maps, found)
    values = np.array([one[HEADLINE[maps.kind]] for one in found])
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan"), threshold


def evaluate_tuned_maps(
    model: nn.Module,
    task: Task,
    dev: TuningData,
    test: TuningData,
    *,
    batch_tokens: int,
    precision: Precision,
    how: dict[str, Any],
    resamples: int,
    seed: int,
) -> Evaluation:
    """Measure a finished model's maps of dev and test, as the frozen probe's are measured."""
    plain: Standard = (0.0, 1.0)
    threshold = 0.5
    if task.kind == "base-pair":
        _, threshold = measure_maps(model, dev, batch_tokens, precision, plain, seed)
        how = {**how, "threshold": threshold}
    described: list[dict[str, Any]] = [{} for _ in range(len(task.test))]
    measured: dict[str, list[Measured]] = {}
    for name, data in (("dev", dev), ("test", test)):
        measured[name] = [{} for _ in data.sequences]
        for row, predicted in _predict(model, data, batch_tokens, precision, plain):
            measured[name][row] = measure_map(_maps(data), row, predicted, threshold)
            if name == "test":
                described[row] = describe_map(task.test, row, predicted, threshold)
    return report_maps(
        task,
        measured["dev"],
        measured["test"],
        described,
        how=how,
        resamples=resamples,
        seed=seed,
    )


def find_standard(maps: MapTargets) -> Standard:
    """Mean and standard deviation of distances; contacts and base pairs stay as they are."""
    if maps.kind != "distance":
        return 0.0, 1.0
    values = np.concatenate([maps.pairs(row)[2] for row in range(min(_SAMPLE, len(maps)))])
    return float(values.mean()), float(values.std()) or 1.0


@torch.no_grad()
def start_from_separation(model: nn.Module, maps: MapTargets, standard: Standard) -> None:
    """Let a head begin at the mean of each separation's bin (as log odds, unless distances)."""
    head = positions_head(model)
    bins = head.apart.shape[0]
    sums, counts = np.zeros(bins), np.zeros(bins)
    for row in range(min(_SAMPLE, len(maps))):
        i, j, values = maps.pairs(row)
        at = head.bin(torch.from_numpy(j - i).to(head.edges.device)).cpu().numpy()
        sums += np.bincount(at, values, minlength=bins)
        counts += np.bincount(at, minlength=bins)
    if maps.kind == "distance":
        shift, scale = standard
        overall = sums.sum() / max(1, counts.sum())
        means = np.divide(sums, counts, out=np.full(bins, overall), where=counts > 0)
        found = (means - shift) / scale
    else:
        # One pair in a thousand, as if it had been seen in each bin: none is impossible.
        share = (sums + 1e-3) / (counts + 1)
        found = np.log(share / (1 - share))
    head.apart.copy_(torch.from_numpy(found))


def positions_head(model: nn.Module) -> PositionsHead:
    """Find the head that is trained, in PEFT's wrapping or without."""
    heads = [module for module in model.modules() if isinstance(module, PositionsHead)]
    return next((head for head in heads if head.form.requires_grad), heads[-1])


@torch.no_grad()
def _predict(
    model: nn.Module,
    data: TuningData,
    batch_tokens: int,
    precision: Precision,
    standard: Standard,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield row and map: probabilities, or distances in angstrom; shape ``(L, L)``."""
    model.eval()
    device = next(model.parameters()).device
    shift, scale = standard
    for rows in plan_by_length(data.lengths, limit_batch(batch_tokens, device)):
        logits = forward(model, data, rows, precision)
        for at, row in enumerate(rows):
            found = map_of_residues(data, logits, at, row)
            distances = data.kind == "distance"
            values = found * scale + shift if distances else found.sigmoid()
            yield int(row), values.cpu().numpy()


def _maps(data: TuningData) -> MapTargets:
    assert data.maps is not None, "the task is not one of maps"
    return data.maps

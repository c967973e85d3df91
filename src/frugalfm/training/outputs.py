"""What a model with a head says of a split, what that costs, and what it predicts."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from frugalfm.encoders.devices import Precision, autocast, limit_batch
from frugalfm.encoders.heads import residue_logits
from frugalfm.tasks.kinds import IGNORED, NUMBERS, Kind
from frugalfm.tasks.maps import MapTargets
from frugalfm.tokens.batches import plan_by_length
from frugalfm.training.labelled import TuningData

__all__ = ["Standard", "accumulate", "decide", "forward", "map_of_residues", "run_model"]

Standard = tuple[float, float]
"""Mean and standard deviation that numbers are trained in."""


@torch.no_grad()
def run_model(
    model: nn.Module, data: TuningData, batch_tokens: int, precision: Precision
) -> np.ndarray:
    """Logits or values, fp32, in the order of the rows; the model is in evaluation mode.

    Returns
    -------
    ndarray
        Shape ``(rows, outputs)``, or ``(all residues, classes)`` for labels of residues.
    """
    model.eval()
    device = next(model.parameters()).device
    found: list[np.ndarray] = [np.empty(0)] * len(data.sequences)
    for rows in plan_by_length(data.lengths, limit_batch(batch_tokens, device)):
        outputs = _read(model, data, rows, precision).cpu().numpy()
        ends = np.cumsum(data.sizes[rows])[:-1]
        for row, part in zip(rows, np.split(outputs, ends), strict=True):
            found[row] = part
    return np.concatenate(found)


def decide(kind: Kind, outputs: np.ndarray) -> np.ndarray:
    """Turn outputs into predictions of the shape of the targets."""
    if kind in NUMBERS:
        return np.asarray(outputs[:, 0], np.float64)
    if kind == "multilabel":
        return np.asarray(outputs > 0, np.int64)
    return np.asarray(outputs.argmax(1))


def accumulate(
    model: nn.Module,
    data: TuningData,
    rows: np.ndarray,
    batch_tokens: int,
    precision: Precision,
    standard: Standard,
) -> Tensor:
    """Add up the gradient of the mean loss of some rows, in as many passes as memory asks for.

    The mean is over sequences, of residues' labels over residues. The loss of a map is the mean
    over its valid pairs: cross-entropy of contacts and base pairs, squared error of standardised
    distances; a map without any counts as zero.

    Returns
    -------
    Tensor
        The loss, on the CPU.
    """
    items = len(rows)
    if data.kind == "token":
        items = max(1, sum(int((data.targets[row] != IGNORED).sum()) for row in rows))
    total = torch.zeros(())
    for part in plan_by_length(data.lengths[rows], batch_tokens):
        outputs = _read(model, data, rows[part], precision)
        loss = _sum_losses(data, outputs, rows[part], standard) / items
        loss.backward()
        total = total + loss.detach().cpu()
    return total


def forward(model: nn.Module, data: TuningData, rows: np.ndarray, precision: Precision) -> Tensor:
    """Compute a model's logits for some rows, in fp32, as the head lays them out."""
    device = next(model.parameters()).device
    ids = data.collate(rows)
    attended = torch.from_numpy((ids != data.codec.pad_id).astype(np.int64))
    with autocast(device, precision):
        out = model(input_ids=torch.from_numpy(ids).to(device), attention_mask=attended.to(device))
    logits: Tensor = out.logits.float()
    return logits


def _read(model: nn.Module, data: TuningData, rows: np.ndarray, precision: Precision) -> Tensor:
    logits = forward(model, data, rows, precision)
    return residue_logits(logits, data.sizes[rows].tolist()) if data.kind == "token" else logits


def _sum_losses(data: TuningData, outputs: Tensor, rows: np.ndarray, standard: Standard) -> Tensor:
    if data.maps is not None:
        losses = [
            _lose_map(map_of_residues(data, outputs, at, row), data.maps, int(row), standard)
            for at, row in enumerate(rows)
        ]
        return torch.stack(losses).sum()
    found = np.concatenate([data.targets[row] for row in rows])
    if data.kind in NUMBERS:
        shift, scale = standard
        found = (found - shift) / scale
    targets = torch.from_numpy(found).to(outputs.device)
    if data.kind in NUMBERS:
        return functional.mse_loss(outputs[:, 0], targets.float(), reduction="sum")
    if data.kind == "multilabel":
        return (
            functional.binary_cross_entropy_with_logits(outputs, targets.float(), reduction="none")
            .mean(1)
            .sum()
        )
    return functional.cross_entropy(outputs, targets, ignore_index=IGNORED, reduction="sum")


def map_of_residues(data: TuningData, logits: Tensor, at: int, row: int) -> Tensor:
    """Cut the map of a row's residues out of a padded batch's."""
    end = len(data.sequences[row]) + 1
    return logits[at, 1:end, 1:end]


def _lose_map(outputs: Tensor, maps: MapTargets, row: int, standard: Standard) -> Tensor:
    i, j, values = maps.pairs(row)
    if not len(values):
        return outputs.sum() * 0
    device = outputs.device
    chosen = outputs[torch.from_numpy(i).to(device), torch.from_numpy(j).to(device)]
    targets = torch.from_numpy(values).to(device)
    if maps.kind == "distance":
        shift, scale = standard
        return functional.mse_loss(chosen, (targets - shift) / scale)
    return functional.binary_cross_entropy_with_logits(chosen, targets)

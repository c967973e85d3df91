"""What quantization costs: the same held-out positions, in floating point and simulated."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from frugalfm.errors import InputError
from frugalfm.progress import progress
from frugalfm.quantization.quantizers import Grid
from frugalfm.quantization.scheme import Scheme
from frugalfm.quantization.simulate import Simulation, simulate
from frugalfm.tokens.masking import IGNORED
from frugalfm.training.data import Batch

__all__ = ["SATURATION_LIMIT", "ClipCounter", "Comparison", "compare", "find_saturating"]

SATURATION_LIMIT = 0.01
"""A site is reported as saturating if more of its inputs than this lie outside its grid."""


@dataclass(frozen=True)
class Comparison:
    """One model in floating point and under a scheme, on the same masked positions.

    Attributes
    ----------
    label, meaning
        ``W8A8`` and the like, and whether that is weight-only or weight-and-activation.
    sequences, targets
        What was evaluated.
    loss, quantized_loss
        Mean masked cross-entropy in nats a target, in fp32 and simulated.
    increase, increase_percent
        Of the loss: in nats a target, and relative to the floating-point loss.
    increase_standard_error
        Of `increase`, from the paired differences of the sequences as clusters; NaN for one.
    accuracy, quantized_accuracy
        Fraction of targets whose most probable token is the true one.
    agreement
        Fraction of targets whose most probable token is the same in both.
    output_error
        Mean over targets of ``|quantized logits - logits| / |logits|`` (Euclidean).
    saturation
        By site with a static grid: fraction of (transformed) values, pads left out, outside it.
    """

    label: str
    meaning: str
    sequences: int
    targets: int
    loss: float
    quantized_loss: float
    increase: float
    increase_percent: float
    increase_standard_error: float
    accuracy: float
    quantized_accuracy: float
    agreement: float
    output_error: float
    saturation: dict[str, float]

    @property
    def saturating(self) -> dict[str, float]:
        """The sites beyond :data:`SATURATION_LIMIT`, worst first."""
        return find_saturating(self.saturation)

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-serialisable (NaN as None)."""
        found = asdict(self)
        if math.isnan(self.increase_standard_error):
            found["increase_standard_error"] = None
        return found


def find_saturating(saturation: dict[str, float]) -> dict[str, float]:
    """Select the sites beyond :data:`SATURATION_LIMIT`, worst first."""
    worst = sorted(saturation.items(), key=lambda item: -item[1])
    return {site: share for site, share in worst if share > SATURATION_LIMIT}


@torch.no_grad()
def compare(model: nn.Module, scheme: Scheme, batches: Sequence[Batch]) -> Comparison:
    """Evaluate a model in floating point and under a scheme.

    Parameters
    ----------
    model
        Masked-language model in evaluation mode, on the device to compute on; left as it was.
    scheme
        Found for this model.
    batches
        Masked batches that calibration has not seen; at least one target.

    Raises
    ------
    InputError
        The scheme belongs to another model, there is no target, or activations or logits are
        not finite.
    """
    device = next(model.parameters()).device
    tally = _Tally()
    counter = ClipCounter(scheme, device)
    bar = progress(batches, desc=scheme.label, unit="batch")
    with simulate(model, scheme) as simulation:
        for made in bar:
            batch = made.to(device)
            plain, rounded = _run_twice(model, simulation, batch, counter)
            tally.add(plain, rounded, batch.labels)
    return tally.finish(scheme, counter)


def _run_twice(
    model: nn.Module, simulation: Simulation, batch: Batch, counter: ClipCounter
) -> tuple[Tensor, Tensor]:
    """Logits at the targets, in floating point and simulated: fp32, ``(targets, vocabulary)``."""
    target = batch.labels != IGNORED
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    simulation.enable(False)
    plain = model(**inputs).logits[target].float()
    if not plain.isfinite().all():
        raise InputError("the model's output is not finite; the checkpoint is unusable")
    simulation.enable()
    with counter.watch(simulation):
        rounded = model(**inputs).logits[target].float()
    if not rounded.isfinite().all():
        raise InputError("the quantized model's output is not finite; use more bits")
    return plain, rounded


class ClipCounter:
    """Counts, site by site, the (transformed) values outside the static grids, pads left out.

    Parameters
    ----------
    scheme
        With the grids.
    device
        To compute on.
    """

    def __init__(self, scheme: Scheme, device: torch.device) -> None:
        self._grids: dict[str, Grid] = {
            name: grid.to(device) for name, grid in scheme.input_grids.items()
        }
        self._clipped: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    @contextlib.contextmanager
    def watch(self, simulation: Simulation) -> Iterator[None]:
        """Count while the context lasts."""
        simulation.watch(self.see)
        try:
            yield
        finally:
            simulation.watch(None)

    def see(self, name: str, values: Tensor) -> None:
        """Take in what is about to be rounded, or not, at a site.

        Raises
        ------
        InputError
            It is not finite.
        """
        if not values.numel():
            return
        ends = torch.stack(values.aminmax())
        if not ends.isfinite().all():
            raise InputError(f"the input of {name} is not finite under quantization")
        if name in self._grids:
            # Most batches are inside: their ends say so, and nothing need be counted.
            grid = self._grids[name]
            clipped = int(grid.clips(values).sum()) if grid.clips(ends).any() else 0
            self._clipped[name] = self._clipped.get(name, 0) + clipped
            self._seen[name] = self._seen.get(name, 0) + values.numel()

    def finish(self) -> dict[str, float]:
        """Fraction outside, by site."""
        return {name: self._clipped[name] / seen for name, seen in self._seen.items()}


class _Tally:
    """Running sums over the targets, in fp64."""

    def __init__(self) -> None:
        self._sums = torch.zeros(6, dtype=torch.float64)
        self._clusters: list[Tensor] = []

    def add(self, plain: Tensor, rounded: Tensor, labels: Tensor) -> None:
        """Take in one batch: logits at its targets, and all its labels."""
        target = labels != IGNORED
        truth = labels[target]
        losses = [functional.cross_entropy(x, truth, reduction="none") for x in (plain, rounded)]
        choices = [x.argmax(-1) for x in (plain, rounded)]
        error = (rounded - plain).norm(dim=-1) / plain.norm(dim=-1).clamp_min(1e-30)
        each = [
            *losses,
            choices[0] == truth,
            choices[1] == truth,
            choices[0] == choices[1],
            error,
        ]
        self._sums += torch.stack([x.double().sum() for x in each]).cpu()
        clusters = torch.zeros(len(labels), 2, dtype=torch.float64, device=labels.device)
        rows = target.nonzero()[:, 0]
        difference = (losses[1] - losses[0]).double()
        clusters.index_add_(0, rows, torch.stack([difference, torch.ones_like(difference)], -1))
        self._clusters.append(clusters.cpu())

    def finish(self, scheme: Scheme, counter: ClipCounter) -> Comparison:
        """Means over all targets."""
        clusters = torch.cat(self._clusters) if self._clusters else torch.zeros(0, 2)
        targets = int(clusters[:, 1].sum())
        if not targets:
            raise InputError("there is no masked position to evaluate on; give more data")
        loss, quantized, accuracy, quantized_accuracy, agreement, error = (
            self._sums / targets
        ).tolist()
        return Comparison(
            label=scheme.label,
            meaning=scheme.meaning,
            sequences=len(clusters),
            targets=targets,
            loss=loss,
            quantized_loss=quantized,
            increase=quantized - loss,
            increase_percent=100 * (quantized - loss) / loss,
            increase_standard_error=_cluster_error(clusters, (quantized - loss)),
            accuracy=accuracy,
            quantized_accuracy=quantized_accuracy,
            agreement=agreement,
            output_error=error,
            saturation=counter.finish(),
        )


def _cluster_error(clusters: Tensor, mean: float) -> float:
    """Find the standard error of a ratio of sums over clusters, linearised (Cochran 1977)."""
    count = len(clusters)
    if count < 2:
        return math.nan
    residuals = clusters[:, 0] - mean * clusters[:, 1]
    variance = float(residuals.square().sum()) * count / (count - 1)
    return math.sqrt(variance) / float(clusters[:, 1].sum())

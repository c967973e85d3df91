"""Outliers in activations: kurtosis and infinity norms of real tokens, layer by layer.

The measures and the places where they are taken are those of GERM (arXiv 2505.00598): the output
of each layer's second feed-forward linear, before the residual sum, and of each layer's final
LayerNorm (:class:`~frugalfm.encoders.anatomy.Block` says which one that is in a pre-LN model).
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from frugalfm.encoders.anatomy import describe_encoder
from frugalfm.encoders.devices import limit_batch
from frugalfm.errors import InputError
from frugalfm.progress import progress
from frugalfm.tokens.batches import plan_by_length
from frugalfm.tokens.codec import Codec

__all__ = [
    "OutlierReport",
    "SiteOutliers",
    "gaussian_inf_norm",
    "gaussian_kurtosis",
    "measure_outliers",
    "watch",
]

_FLOOR = 1e-6
Place = Literal["ffn_output", "layer_norm"]


@dataclass(frozen=True)
class SiteOutliers:
    """What was measured at one place of one layer.

    Attributes
    ----------
    site, layer, place, width
        The module, its layer (from 0), what it is there, and its output's width.
    tokens
        Real tokens measured: everything but pads; ``<cls>`` and ``<eos>`` count.
    kurtosis
        Mean over tokens of ``mean((x - mean)^4) / (std^4 + 1e-6)``, std with ddof 1.
    kurtosis_unfloored
        Without the 1e-6, which pulls `kurtosis` down where activations are small
        (std below about 0.1).
    gaussian_kurtosis, excess_kurtosis
        What independent Gaussian values have at this width, and `kurtosis_unfloored` above it
        (with the 1e-6, activations would only have to shrink to lose theirs).
    std
        Mean over tokens of the standard deviation.
    inf_norm
        Mean over tokens of ``max |x|``.
    inf_norm_excess
        `inf_norm` above that of independent Gaussian values of the same width and spread.
    max_abs
        Largest ``|x|`` of all.
    """

    site: str
    layer: int
    place: Place
    width: int
    tokens: int
    kurtosis: float
    gaussian_kurtosis: float
    excess_kurtosis: float
    kurtosis_unfloored: float
    std: float
    inf_norm: float
    inf_norm_excess: float
    max_abs: float


@dataclass(frozen=True)
class OutlierReport:
    """The measures of a whole encoder.

    Attributes
    ----------
    sites
        Two for each layer, first layer first.
    sequences, tokens
        What was measured, pads not counted.
    """

    sites: tuple[SiteOutliers, ...]
    sequences: int
    tokens: int

    def at(self, place: Place) -> list[SiteOutliers]:
        """Select the sites of one kind, first layer first."""
        return [site for site in self.sites if site.place == place]

    @property
    def summary(self) -> dict[str, float]:
        """Give the numbers of the encoder as a whole.

        ``avg_kurtosis`` (also ``_unfloored``, ``_gaussian``, ``_excess``) are means over the
        2 L sites; ``max_inf_norm`` is the largest of the L token means at the feed-forward
        outputs, ``max_inf_norm_layer_norm`` at the LayerNorms; both with ``_excess`` appended
        are the largest excesses, which may be another site's; ``max_abs`` is the largest single
        value anywhere.
        """
        ffn, norms = self.at("ffn_output"), self.at("layer_norm")
        return {
            "avg_kurtosis": _mean(site.kurtosis for site in self.sites),
            "avg_kurtosis_gaussian": _mean(site.gaussian_kurtosis for site in self.sites),
            "avg_kurtosis_excess": _mean(site.excess_kurtosis for site in self.sites),
            "avg_kurtosis_unfloored": _mean(site.kurtosis_unfloored for site in self.sites),
            "max_inf_norm": max(site.inf_norm for site in ffn),
            "max_inf_norm_excess": max(site.inf_norm_excess for site in ffn),
            "max_inf_norm_layer_norm": max(site.inf_norm for site in norms),
            "max_inf_norm_layer_norm_excess": max(site.inf_norm_excess for site in norms),
            "max_abs": max(site.max_abs for site in self.sites),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, JSON-serialisable."""
        return {
            **self.summary,
            "sequences": self.sequences,
            "tokens": self.tokens,
            "sites": [asdict(site) for site in self.sites],
        }


def gaussian_kurtosis(width: int) -> float:
    """Give the expected kurtosis of `width` independent Gaussian values (std with ddof 1).

    The moment ratio with ddof 0 has expectation 3 (n - 1) / (n + 1) (Fisher 1930); ddof 1
    multiplies it by ((n - 1) / n)^2. At 768 that is 2.984.
    """
    return 3.0 * (width - 1) / (width + 1) * ((width - 1) / width) ** 2


@functools.cache
def gaussian_inf_norm(width: int) -> float:
    r"""Give the expected largest :math:`|z|` of `width` independent standard Gaussian values.

    :math:`\int_0^\infty 1 - \mathrm{erf}(x / \sqrt 2)^n \, dx`, by the trapezoidal rule.
    """
    points = np.linspace(0.0, 12.0, 12_001)
    inside = np.array([math.erf(x / math.sqrt(2.0)) for x in points])
    return float(np.trapezoid(1.0 - inside**width, points))


@torch.no_grad()
def measure_outliers(
    model: nn.Module,
    codec: Codec,
    sequences: Sequence[np.ndarray],
    *,
    batch_tokens: int = 16_384,
) -> OutlierReport:
    """Run an encoder over sequences and measure its activations.

    Parameters
    ----------
    model
        A transformers encoder that :func:`~frugalfm.encoders.anatomy.describe_encoder` knows,
        in evaluation mode and fp32, on the device to compute on.
    codec
        Of its tokenizer.
    sequences
        Residue ids of each sequence (uint8); nothing is masked.
    batch_tokens
        Padded tokens of a batch, at most; the result does not depend on it beyond the rounding
        of the forward pass.

    Raises
    ------
    InputError
        An unknown architecture, no sequences, or activations that are not finite.
    """
    if not len(sequences):
        raise InputError("there are no sequences to measure activations on")
    anatomy = describe_encoder(model)
    sums = {}
    for layer, block in enumerate(anatomy.blocks):
        sums[block.ffn_out] = _Sums(layer, "ffn_output")
        sums[block.output_norm] = _Sums(layer, "layer_norm")
    device = next(model.parameters()).device
    lengths = np.array([len(sequence) for sequence in sequences])
    plan = plan_by_length(lengths, limit_batch(batch_tokens, device))
    bar = progress(plan, desc="outliers", unit="batch")
    with watch(model, list(sums), lambda name, x: sums[name].add(name, x), "output"):
        for rows in bar:
            ids, _ = codec.collate([sequences[row] for row in rows])
            attended = torch.from_numpy((ids != codec.pad_id).astype(np.int64))
            model(input_ids=torch.from_numpy(ids).to(device), attention_mask=attended.to(device))
    sites = tuple(found.finish(name) for name, found in sums.items())
    return OutlierReport(sites, sequences=len(sequences), tokens=sites[0].tokens)


@contextlib.contextmanager
def watch(
    model: nn.Module,
    names: Sequence[str],
    see: Callable[[str, Tensor], None],
    what: Literal["input", "output"],
) -> Iterator[None]:
    """Show a function what enters or leaves some modules, without the pads.

    Parameters
    ----------
    model
        Called by keyword, with ``attention_mask``, while the context lasts.
    names
        Modules whose input and output are of shape ``(batch, width, features)``.
    see
        Gets a module's name and a tensor of shape ``(real tokens, features)``.
    what
        Which side of the modules.
    """
    real: list[Tensor] = []

    def note_mask(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        if mask is None:
            raise InputError("a watched model is to be called with attention_mask=")
        real[:] = [mask.bool()]

    def make_hook(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any = None) -> None:
            see(name, (inputs[0] if what == "input" else output)[real[0]])

        return hook

    with contextlib.ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(note_mask, with_kwargs=True).remove)
        for name in names:
            module = model.get_submodule(name)
            register = (
                module.register_forward_pre_hook
                if what == "input"
                else module.register_forward_hook
            )
            stack.callback(register(make_hook(name)).remove)
        yield


class _Sums:
    """Sums over tokens at one site, in fp64, so that batching does not show."""

    def __init__(self, layer: int, place: Place) -> None:
        self.layer, self.place = layer, place
        self.width = self.tokens = 0
        self.totals: Tensor | None = None
        self.largest = 0.0

    def add(self, name: str, activations: Tensor) -> None:
        """Take in activations of shape ``(tokens, width)``."""
        x = activations.double()
        centred = x - x.mean(-1, keepdim=True)
        squares = centred.square()
        fourth = squares.square().mean(-1)
        variance = squares.sum(-1) / (x.shape[-1] - 1)
        norms = x.abs().amax(-1)
        # A constant token has no kurtosis: 0 / 0 counts as 0, as with the floor.
        exact = torch.where(variance > 0, fourth / variance.square(), 0.0)
        floored = fourth / (variance.square() + _FLOOR)
        sums = torch.stack([floored, exact, variance.sqrt(), norms]).sum(-1)
        largest = float(norms.max())
        if not np.isfinite(largest):
            raise InputError(f"activations at {name} are not finite; the checkpoint is unusable")
        self.largest = max(self.largest, largest)
        self.totals = sums if self.totals is None else self.totals + sums
        self.tokens += x.shape[0]
        self.width = x.shape[1]

    def finish(self, name: str) -> SiteOutliers:
        """Means over all tokens."""
        assert self.totals is not None
        kurtosis, exact, std, inf_norm = (self.totals / self.tokens).tolist()
        expected = gaussian_kurtosis(self.width)
        return SiteOutliers(
            site=name,
            layer=self.layer,
            place=self.place,
            width=self.width,
            tokens=self.tokens,
            kurtosis=kurtosis,
            gaussian_kurtosis=expected,
            excess_kurtosis=exact - expected,
            kurtosis_unfloored=exact,
            std=std,
            inf_norm=inf_norm,
            inf_norm_excess=inf_norm - std * gaussian_inf_norm(self.width),
            max_abs=self.largest,
        )


def _mean(values: Iterator[float]) -> float:
    return float(np.mean(list(values)))

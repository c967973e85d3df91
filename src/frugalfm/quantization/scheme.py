"""A quantization scheme: every site's grids, saved and loaded without loss."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frugalfm.artifacts import write_json
from frugalfm.errors import InputError
from frugalfm.quantization.quantizers import Format, Grid
from frugalfm.quantization.transforms import ChannelTransform

__all__ = ["FLOATING_POINT", "Scheme", "hash_weight", "load_scheme", "name_widths", "save_scheme"]

FLOATING_POINT = 16
"""The width that, by convention of the literature, means "not quantized" in a label."""

_JSON, _TENSORS = "scheme.json", "scheme.safetensors"


@dataclass(frozen=True)
class Scheme:
    """How a model's linears are quantized.

    Attributes
    ----------
    method
        What found the grids.
    weights, activations
        Formats of the sites' weights and inputs; None where they stay in floating point.
    sites
        Names of the quantized linears, in order of use.
    weight_grids
        By site; empty if weights stay.
    input_grids
        By site; empty if activations stay, or are quantized dynamically.
    weight_hashes
        By site: of the weight that the grids belong to.
    transforms
        By site, where there is one: what is done to input and weight before they are rounded; the
        grids are those of the transformed values.
    integers
        By site, where the method chose them itself: the weight's integers (int16, its shape);
        elsewhere the nearest ones are taken.
    """

    method: str
    weights: Format | None
    activations: Format | None
    sites: tuple[str, ...]
    weight_grids: dict[str, Grid]
    input_grids: dict[str, Grid]
    weight_hashes: dict[str, str]
    transforms: dict[str, ChannelTransform] = field(default_factory=dict)
    integers: dict[str, Tensor] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Both widths, such as ``W8A8``; 16 stands for floating point."""
        return name_widths(*self._widths)[0]

    @property
    def meaning(self) -> str:
        """The label in words, such as ``weight-and-activation``."""
        return name_widths(*self._widths)[1]

    @property
    def quantizes(self) -> bool:
        """Whether anything is rounded at all."""
        return self.weights is not None or self.activations is not None

    @property
    def _widths(self) -> tuple[int, int]:
        return (
            self.weights.bits if self.weights else FLOATING_POINT,
            self.activations.bits if self.activations else FLOATING_POINT,
        )

    def input_quantizer(self, site: str) -> Format | Grid | None:
        """Say what a site does to its input: fixed grid, dynamic format, or nothing."""
        if self.activations is None or self.activations.dynamic:
            return self.activations
        return self.input_grids[site]

    def quantized_weight(self, site: str, linear: nn.Linear) -> Tensor:
        """Give a site's weight as its linear multiplies by it: transformed, and on its grid."""
        weight = linear.weight.detach()
        if site in self.transforms:
            weight = self.transforms[site].to(weight.device).on_weight(weight)
        grid = self.weight_grids.get(site)
        if grid is None:
            return weight
        grid = grid.to(weight.device)
        if site in self.integers:
            return grid.to_values(self.integers[site].to(weight.device)).to(weight.dtype)
        return grid.round(weight)

    def check(self, model: nn.Module) -> None:
        """Refuse a model other than the one that the grids were found for.

        Raises
        ------
        InputError
            A site is missing or has another weight.
        """
        for site in self.sites:
            try:
                module = model.get_submodule(site)
            except AttributeError:
                raise InputError(f"the scheme quantizes {site}, which the model lacks") from None
            if not isinstance(module, nn.Linear):
                raise InputError(f"the scheme quantizes {site}, which is no plain linear here")
            if hash_weight(module) != self.weight_hashes[site]:
                raise InputError(
                    f"the scheme was found for other weights ({site} differs); "
                    "quantize this checkpoint afresh"
                )


def name_widths(weights: int, activations: int) -> tuple[str, str]:
    """Label of a pair of widths, and what it means in words.

    Weight-only results and those of weights and activations never share a label.
    """
    label = f"W{weights}A{activations}"
    if weights == activations == FLOATING_POINT:
        return label, "floating point, nothing quantized"
    if activations == FLOATING_POINT:
        return label, "weight-only: activations stay in floating point"
    if weights == FLOATING_POINT:
        return label, "activation-only: weights stay in floating point"
    return label, "weight-and-activation"


def hash_weight(module: nn.Linear) -> str:
    """64-bit hash of a linear's weight, independent of the device."""
    data = module.weight.detach().cpu().contiguous().view(torch.uint8)
    return str(xxhash.xxh3_64_hexdigest(data.numpy().tobytes()))


def save_scheme(scheme: Scheme, folder: Path) -> None:
    """Write ``scheme.json`` (formats, sites) and ``scheme.safetensors`` (grids, transforms)."""
    write_json(
        folder / _JSON,
        {
            "label": scheme.label,
            "method": scheme.method,
            "weights": asdict(scheme.weights) if scheme.weights else None,
            "activations": asdict(scheme.activations) if scheme.activations else None,
            "sites": {site: scheme.weight_hashes[site] for site in scheme.sites},
        },
    )
    tensors = {}
    for what, grids in (("weight", scheme.weight_grids), ("input", scheme.input_grids)):
        for site, grid in grids.items():
            tensors[f"{site}.{what}.scale"] = grid.scale.cpu().contiguous()
            tensors[f"{site}.{what}.zero_point"] = grid.zero_point.cpu().contiguous()
    for site, transform in scheme.transforms.items():
        tensors[f"{site}.transform.scale"] = transform.scale.cpu().contiguous()
        if transform.shift is not None:
            tensors[f"{site}.transform.shift"] = transform.shift.cpu().contiguous()
    for site, integers in scheme.integers.items():
        tensors[f"{site}.weight.integers"] = integers.cpu().contiguous()
    save_file(tensors, folder / _TENSORS)


def load_scheme(folder: Path) -> Scheme:
    """Read what :func:`save_scheme` wrote.

    Raises
    ------
    InputError
        No scheme there, or a damaged one.
    """
    path = Path(folder) / _JSON
    if not path.is_file():
        raise InputError(f"{folder}: holds no {_JSON}; make it with `frugalfm quantize`")
    try:
        content = json.loads(path.read_text())
        tensors = load_file(Path(folder) / _TENSORS)
        return _assemble(content, tensors)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: damaged ({error!r}); make the artifact again") from error


def _assemble(content: dict[str, Any], tensors: dict[str, Tensor]) -> Scheme:
    weights, activations = (
        Format(**content[what]) if content[what] else None for what in ("weights", "activations")
    )

    def find_grids(what: str, how: Format | None) -> dict[str, Grid]:
        if how is None or how.dynamic:
            return {}
        return {
            site: Grid(how, tensors[f"{site}.{what}.scale"], tensors[f"{site}.{what}.zero_point"])
            for site in content["sites"]
        }

    transforms = {
        site: ChannelTransform(
            tensors[f"{site}.transform.scale"], tensors.get(f"{site}.transform.shift")
        )
        for site in content["sites"]
        if f"{site}.transform.scale" in tensors
    }
    key = "{}.weight.integers"
    integers = {s: tensors[key.format(s)] for s in content["sites"] if key.format(s) in tensors}
    return Scheme(
        method=content["method"],
        weights=weights,
        activations=activations,
        sites=tuple(content["sites"]),
        weight_grids=find_grids("weight", weights),
        input_grids=find_grids("input", activations),
        weight_hashes=content["sites"],
        transforms=transforms,
        integers=integers,
    )

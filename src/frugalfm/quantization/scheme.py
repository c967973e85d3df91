"""A quantization scheme: every site's grids, saved and loaded without loss.

On disk it is two files. ``scheme.json`` holds the version of this form, formats, sites and hashes;
``scheme.safetensors`` the numbers, by site: ``SITE.weight.scale``, ``SITE.weight.zero_point``,
``SITE.input.scale``, ``SITE.input.zero_point``, ``SITE.transform.scale``, ``SITE.transform.shift``
and ``SITE.weight.integers``. :mod:`~frugalfm.quantization.quantizers` has the shapes of scales.
Version 1, which had no number, knew linears alone; it is still read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frugalfm.artifacts import write_json
from frugalfm.errors import InputError
from frugalfm.quantization.quantizers import Format, Grid
from frugalfm.quantization.sites import Extent, Site
from frugalfm.quantization.transforms import ChannelTransform

__all__ = ["FLOATING_POINT", "Scheme", "hash_weight", "load_scheme", "name_widths", "save_scheme"]

FLOATING_POINT = 16
"""The width that, by convention of the literature, means "not quantized" in a label."""

_JSON, _TENSORS = "scheme.json", "scheme.safetensors"
_VERSION = 2


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized.

    Attributes
    ----------
    method
        What found the grids.
    weights, activations
        Formats of the sites' weights and inputs; None where they stay in floating point.
    sites
        Names of the quantized linears, in order of use.
    weight_grids
        By site; empty if weights stay. A linear without one (a decoder that shares the table of
        embeddings, unless that is rounded) keeps its weight.
    input_grids
        By site, places included; empty if activations stay, or are quantized dynamically.
    weight_hashes
        By site: of the weight that the grids belong to.
    transforms
        By site, where there is one: what is done to input and weight before they are rounded; the
        grids are those of the transformed values. At a LayerNorm's output it is undone again.
    integers
        By site, where the method chose them itself: the weight's integers (int16, its shape);
        elsewhere the nearest ones are taken.
    places
        What else than linears is quantized: :func:`~frugalfm.quantization.extend.extend_scheme`.
    extent
        How far quantization goes, in one word.
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
    places: tuple[Site, ...] = ()
    extent: Extent = "linears"

    @property
    def label(self) -> str:
        """Both widths, such as ``W8A8``; 16 stands for floating point."""
        return name_widths(*self._widths)[0]

    @property
    def meaning(self) -> str:
        """The label in words, such as ``weight-and-activation``; of more than linears, how far."""
        words = name_widths(*self._widths)[1]
        return words if self.extent == "linears" else f"{words}; sites: {self.extent}"

    @property
    def quantizes(self) -> bool:
        """Whether anything is rounded at all."""
        return self.weights is not None or self.activations is not None

    @property
    def tables(self) -> bool:
        """Whether the table of token embeddings is rounded."""
        return any(place.kind == "table" for place in self.places)

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

    def quantized_table(self, place: str, table: nn.Embedding) -> Tensor:
        """Give a table of embeddings as it is looked up: on its grid."""
        weight = table.weight.detach()
        grid = self.weight_grids.get(place)
        return weight if grid is None else grid.to(weight.device).round(weight)

    def transformed_weight(self, site: str, linear: nn.Linear) -> Tensor:
        """Give a site's weight before it is rounded."""
        weight = linear.weight.detach()
        if site not in self.transforms:
            return weight
        return self.transforms[site].to(weight.device).on_weight(weight)

    def quantized_weight(self, site: str, linear: nn.Linear) -> Tensor:
        """Give a site's weight as its linear multiplies by it: transformed, and on its grid."""
        weight = self.transformed_weight(site, linear)
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
            module = _find(model, site)
            if not isinstance(module, nn.Linear):
                raise InputError(f"the scheme quantizes {site}, which is no plain linear here")
            self._check_weight(site, module)
        for place in self.places:
            module = _find(model, place.module)
            if place.kind == "table":
                self._check_weight(place.name, module)

    def _check_weight(self, site: str, module: nn.Module) -> None:
        if hash_weight(module) != self.weight_hashes[site]:
            raise InputError(
                f"the scheme was found for other weights ({site} differs); "
                "quantize this checkpoint afresh"
            )


def _find(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise InputError(f"the scheme quantizes {name}, which the model lacks") from None


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


def hash_weight(module: nn.Module) -> str:
    """64-bit hash of a linear's or a table's weight, independent of the device."""
    data = module.get_parameter("weight").detach().cpu().contiguous().view(torch.uint8)
    return str(xxhash.xxh3_64_hexdigest(data.numpy().tobytes()))


def save_scheme(scheme: Scheme, folder: Path) -> None:
    """Write ``scheme.json`` (formats, sites) and ``scheme.safetensors`` (grids, transforms)."""
    write_json(
        folder / _JSON,
        {
            "version": _VERSION,
            "label": scheme.label,
            "method": scheme.method,
            "weights": asdict(scheme.weights) if scheme.weights else None,
            "activations": asdict(scheme.activations) if scheme.activations else None,
            "sites": {site: scheme.weight_hashes[site] for site in scheme.sites},
            "extent": scheme.extent,
            "places": [
                asdict(place) | {"hash": scheme.weight_hashes.get(place.name)}
                for place in scheme.places
            ],
            # What there has to be in the other file, so that a loss is noticed.
            "weight_grids": list(scheme.weight_grids),
            "input_grids": list(scheme.input_grids),
        },
    )
    tensors = {}
    for what, grids in (("weight", scheme.weight_grids), ("input", scheme.input_grids)):
        for site, grid in grids.items():
            tensors[f"{site}.{what}.scale"] = grid.scale
            tensors[f"{site}.{what}.zero_point"] = grid.zero_point
    for site, transform in scheme.transforms.items():
        tensors[f"{site}.transform.scale"] = transform.scale
        if transform.shift is not None:
            tensors[f"{site}.transform.shift"] = transform.shift
    for site, integers in scheme.integers.items():
        tensors[f"{site}.weight.integers"] = integers
    # Several sites may share a tensor, which safetensors would not write twice.
    made = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(made, folder / _TENSORS)


def load_scheme(folder: Path) -> Scheme:
    """Read what :func:`save_scheme` wrote.

    Raises
    ------
    InputError
        No scheme there, a damaged one, or one of a later version.
    """
    path = Path(folder) / _JSON
    if not path.is_file():
        raise InputError(f"{folder}: holds no {_JSON}; make it with `frugalfm quantize`")
    try:
        content = json.loads(path.read_text())
        _check_version(path, content.get("version", 1))
        return _assemble(content, load_file(Path(folder) / _TENSORS))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: damaged ({error!r}); make the artifact again") from error


def _check_version(path: Path, version: int) -> None:
    if version > _VERSION:
        raise InputError(
            f"{path}: is of version {version}, this FrugalFM reads up to {_VERSION}; "
            "update it, or make the artifact again"
        )


def _assemble(content: dict[str, Any], tensors: dict[str, Tensor]) -> Scheme:
    formats = {what: _read_format(content[what]) for what in ("weights", "activations")}
    hashes = dict(content["sites"])
    known = {one.name for one in fields(Site)}
    places = []
    for found in content.get("places", ()):
        if found["hash"] is not None:
            hashes[found["name"]] = found["hash"]
        given = {key: value for key, value in found.items() if key in known}
        places.append(Site(**given | {"feeds": tuple(found["feeds"])}))

    def find_grids(what: str, how: Format | None) -> dict[str, Grid]:
        if how is None or how.dynamic:
            return {}
        return {
            site: Grid(how, tensors[f"{site}.{what}.scale"], tensors[f"{site}.{what}.zero_point"])
            for site in content.get(f"{what}_grids", content["sites"])
        }

    transforms = {
        name.removesuffix(".transform.scale"): ChannelTransform(
            scale, tensors.get(name.removesuffix("scale") + "shift")
        )
        for name, scale in tensors.items()
        if name.endswith(".transform.scale")
    }
    ending = ".weight.integers"
    return Scheme(
        method=content["method"],
        weights=formats["weights"],
        activations=formats["activations"],
        sites=tuple(content["sites"]),
        weight_grids=find_grids("weight", formats["weights"]),
        input_grids=find_grids("input", formats["activations"]),
        weight_hashes=hashes,
        transforms=transforms,
        integers={n.removesuffix(ending): t for n, t in tensors.items() if n.endswith(ending)},
        places=tuple(places),
        extent=content.get("extent", "linears"),
    )


def _read_format(content: dict[str, Any] | None) -> Format | None:
    if content is None:
        return None
    levels = content.get("levels")
    return Format(**content | {"levels": None if levels is None else tuple(levels)})

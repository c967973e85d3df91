"""From a model and calibration batches to grids: of weights, and of what passes any site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from frugalfm.errors import InputError
from frugalfm.quantization.observers import Observer, find_weight_range, make_observer
from frugalfm.quantization.quantizers import Format, Grid
from frugalfm.quantization.settings import Settings
from frugalfm.quantization.sites import Site
from frugalfm.quantization.taps import see_sites
from frugalfm.quantization.transforms import ChannelTransform
from frugalfm.training.data import Batch

__all__ = ["cover_inputs", "cover_weights"]


def cover_weights(
    values: Mapping[str, Tensor], form: Format, settings: Settings
) -> dict[str, Grid]:
    """Find the grids of weights.

    Parameters
    ----------
    values
        By site: the weight, transformed if it is to be.
    form
        Of the grids.
    settings
        With the observer.

    Raises
    ------
    InputError
        A weight is not finite, or does not divide into groups; names the site.
    """
    grids = {}
    for name, weight in values.items():
        if not bool(weight.isfinite().all()):
            raise InputError(f"the weight of {name} is not finite; the checkpoint is unusable")
        try:
            found = find_weight_range(
                weight.float(), form, settings.weight_observer, percentile=settings.percentile
            )
        except InputError as error:
            raise InputError(f"the weight of {name}: {error}") from None
        grids[name] = form.cover(*found)
    return grids


def cover_inputs(
    model: nn.Module,
    batches: Sequence[Batch],
    sites: Sequence[Site],
    form: Format,
    settings: Settings,
    transforms: Mapping[str, ChannelTransform] | None = None,
) -> dict[str, Grid]:
    """Find the static grids of what passes some sites while the model computes in floating point.

    Parameters
    ----------
    model, batches
        To run; at least one batch. Pads are left out.
    sites
        Linears or other places.
    form
        Of the grids, one for a site.
    settings
        With the observer.
    transforms
        By site, where there is one: of the values before they are rounded.

    Raises
    ------
    InputError
        No batch has shown a site, or values are not finite; names the site.
    """
    made: dict[str, Observer] = {
        site.name: make_observer(
            settings.activation_observer,
            form,
            momentum=settings.momentum,
            percentile=settings.percentile,
        )
        for site in sites
    }
    device = next(model.parameters()).device
    chosen = {name: transform.to(device) for name, transform in (transforms or {}).items()}

    def see(site: Site, values: Tensor) -> None:
        transform = chosen.get(site.name)
        made[site.name].observe(values if transform is None else transform.on_input(values))

    see_sites(model, batches, sites, see)
    grids = {}
    for name, seen in made.items():
        found = seen.range()
        if found is None:
            raise InputError(
                f"no calibration batch has shown the input of {name}; give at least one"
            )
        grids[name] = form.cover(found[0].float(), found[1].float())
    return grids

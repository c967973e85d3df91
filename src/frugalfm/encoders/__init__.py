"""The catalogue of architectures, and checkpoints loaded strictly and safely.

Names are imported when first used: transformers reads the configuration of an architecture from
here before its own models are loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frugalfm.encoders.catalogue import PRESETS, create_encoder
    from frugalfm.encoders.checkpoints import load_encoder, save_encoder
    from frugalfm.encoders.resolve import open_model

__all__ = ["PRESETS", "create_encoder", "load_encoder", "open_model", "save_encoder"]

_HOMES = {
    "PRESETS": "catalogue",
    "create_encoder": "catalogue",
    "load_encoder": "checkpoints",
    "save_encoder": "checkpoints",
    "open_model": "resolve",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

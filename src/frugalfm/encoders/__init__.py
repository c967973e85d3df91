"""The catalogue of architectures, and checkpoints loaded strictly and safely."""

from frugalfm.encoders.catalogue import PRESETS, create_encoder
from frugalfm.encoders.checkpoints import load_encoder, save_encoder
from frugalfm.encoders.resolve import open_model

__all__ = ["PRESETS", "create_encoder", "load_encoder", "open_model", "save_encoder"]

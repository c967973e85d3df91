"""The catalogue of architectures, and checkpoints loaded strictly and safely."""

from frugalfm.encoders.catalogue import PRESETS, create_encoder
from frugalfm.encoders.checkpoints import load_encoder, save_encoder

__all__ = ["PRESETS", "create_encoder", "load_encoder", "save_encoder"]

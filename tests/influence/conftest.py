import numpy as np
import pytest
import torch

from frugalfm.encoders import create_encoder
from frugalfm.tokens.codec import Codec


@pytest.fixture(scope="session")
def sharpen():
    """Random weights give near-uniform losses; sharper ones make gradients differ."""

    def change(model, scale=0.2):
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=random) * scale)
        return model

    return change


@pytest.fixture(scope="session")
def tiny(sharpen):
    """A small model in fp64, its codec, and sequences of mixed lengths."""
    model, tokenizer = create_encoder("rna-fm-nano", seed=2)
    random = np.random.default_rng(0)
    sequences = [random.integers(4, 8, n).astype(np.uint8) for n in (30, 3, 57, 22, 9)]
    return sharpen(model).double(), Codec.from_tokenizer(tokenizer), sequences

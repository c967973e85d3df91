"""Models with outliers planted, batches for them, and what quantization does to their output."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from frugalfm.encoders.anatomy import describe_encoder
from frugalfm.quantization import simulate, split_batches
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.vocabulary import make_protein_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "encoders"))
from architectures import DESCRIBED, make_mlm  # noqa: F401

CODEC = Codec.from_tokenizer(make_protein_tokenizer())


def make_sequences(count=24, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(4, 24, random.integers(5, 40)).astype(np.uint8) for _ in range(count)]


def make_split(count=24, calibration_batches=3, batch_tokens=200):
    """Batches with pads."""
    return split_batches(
        make_sequences(count),
        CODEC,
        calibration_batches=calibration_batches,
        batch_tokens=batch_tokens,
    )


def list_readers(model):
    """Pairs of a LayerNorm and the linears of the layers that read it, by the catalogue."""
    anatomy = describe_encoder(model)
    pairs = []
    for block, after in zip(anatomy.blocks, [*anatomy.blocks[1:], None], strict=True):
        feed_forward = {block.ffn_in, block.ffn_gate} - {None}
        if anatomy.pre_norm:
            pairs.append((block.attention_norm, {block.query, block.key, block.value}))
            pairs.append((block.ffn_norm, feed_forward))
        else:
            pairs.append((block.attention_norm, feed_forward))
            if after:
                pairs.append((block.ffn_norm, {after.query, after.key, after.value}))
    return pairs


@torch.no_grad()
def plant_outliers(model, channels=(3, 17), factor=30.0):
    """Make channels of LayerNorms' outputs large, and the weights that read them small.

    In a pre-LN model all LayerNorms in the layers do it, and the model computes what it did. In a
    post-LN one those after attention do it; the channels then dominate the residual sum, and the
    LayerNorm after it makes them small again (or they would grow from layer to layer).
    """
    chosen = list(channels)
    for norm, readers in _planted(model).items():
        _scale_norm(model, norm, chosen, factor)
        for name in readers:
            model.get_submodule(name).weight[:, chosen] /= factor
    anatomy = describe_encoder(model)
    if not anatomy.pre_norm:
        for block in anatomy.blocks:
            _scale_norm(model, block.ffn_norm, chosen, 1 / factor)
    return model


def keep_planted(model, scheme):
    """Leave of a scheme only the linears that read planted outliers."""
    sites = {site for readers in _planted(model).values() for site in readers}
    return replace(scheme, sites=tuple(site for site in scheme.sites if site in sites))


def _planted(model):
    anatomy = describe_encoder(model)
    norms = {block.attention_norm for block in anatomy.blocks}
    return {n: r for n, r in list_readers(model) if anatomy.pre_norm or n in norms}


def _scale_norm(model, name, channels, factor):
    norm = model.get_submodule(name)
    norm.weight[channels] *= factor
    if norm.bias is not None:
        norm.bias[channels] *= factor


@torch.no_grad()
def run(model, batch):
    """Logits of the real tokens."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits[batch.attention_mask.bool()].double()


def output_error(model, scheme, batches):
    """``|quantized - plain| / |plain|`` over all logits of real tokens."""
    plain = torch.cat([run(model, batch) for batch in batches])
    with simulate(model, scheme):
        found = torch.cat([run(model, batch) for batch in batches])
    return float((found - plain).norm() / plain.norm())

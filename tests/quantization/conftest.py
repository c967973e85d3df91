"""A tiny encoder that has learned something, and batches for it."""

import copy

import numpy as np
import pytest
import torch

from frugalfm.encoders import create_encoder
from frugalfm.quantization import split_batches
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.masking import IGNORED


def make_sequences(count, seed=0):
    """Sequences in which one letter, another each time, stands at nine places in ten."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        letters = random.integers(4, 8, size=int(random.integers(12, 40)))
        letters[random.random(len(letters)) < 0.87] = random.integers(4, 8)
        made.append(letters.astype(np.uint8))
    return made


def train_briefly(model, batches, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for step in range(steps):
        batch = batches[step % len(batches)]
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        target = batch.labels != IGNORED
        torch.nn.functional.cross_entropy(logits[target], batch.labels[target]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.fixture(scope="session")
def trained():
    torch.manual_seed(0)
    model, tokenizer = create_encoder("rna-fm-tiny", seed=4)
    codec = Codec.from_tokenizer(tokenizer)
    data = split_batches(make_sequences(600, 1), codec, calibration_batches=20, batch_tokens=640)
    train_briefly(model, data.calibration, 20)
    split = split_batches(make_sequences(160), codec, calibration_batches=16, batch_tokens=400)
    return model, codec, split


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained[0])


@pytest.fixture
def codec(trained):
    return trained[1]


@pytest.fixture
def split(trained):
    return trained[2]


@pytest.fixture
def run():
    def forward(model, batch):
        with torch.no_grad():
            return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits

    return forward

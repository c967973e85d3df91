"""A course of training that takes seconds, and what it starts from."""

import numpy as np
from dnabert2_oracle import make_dna_tokenizer

COURSE = """
title = "tiny"
seeds = [0, 1]
[pool]
sequences = 30
validation = 12
window = 80
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 16
[train]
steps = 2
batch_tokens = 512
[convert]
steps = 2
batch_tokens = 512
limit = 4
"""


def draw(count, length):
    random = np.random.default_rng(0)
    return ["".join(random.choice(list("ACGT"), length)) for _ in range(count)]


def write_inputs(folder):
    """Write ``pool.fasta`` and ``dnabert2_tokenizer``."""
    texts = (f">s{i}\n{text}\n" for i, text in enumerate(draw(50, 100)))
    (folder / "pool.fasta").write_text("".join(texts))
    words = folder / "dnabert2_tokenizer"
    make_dna_tokenizer().save_pretrained(words)
    (words / "config.json").write_text('{"model_type": "dnabert2"}')


def check_arms(recipe):
    """Refuse arms that would share a folder."""
    assert len({arm.slug for arm in recipe.arms}) == len(recipe.arms)
    return {arm.name: arm for arm in recipe.arms}

"""The score as released with arXiv 2512.12932, against torch.func on the formula.

Everything is padded to one length, nothing is masked, no attention mask is given, every token is
a target, the loss is their mean; the gradient is of one weight, the Fisher matrix its mean square.
"""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.influence import (
    HeadGradients,
    MaskScheme,
    ScoreRecipe,
    estimate_fisher,
    score_sequences,
)
from frugalfm.verbs.build import build
from frugalfm.verbs.score import score

PAPER = {"reduction": "mean", "damping": 1e-8}


def released(model, sequences, pad_to, damping=1e-8, subset=None):
    """Influence of every sequence (the released code would store the negative)."""
    start, end, pad = (model.config.bos_token_id, model.config.eos_token_id, 1)
    assert pad == model.config.pad_token_id
    ids = torch.full((len(sequences), pad_to), pad)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence) + 2] = torch.tensor([start, *sequence.tolist(), end])
    name = "lm_head.dense.weight"
    others = {k: v.detach() for k, v in model.named_parameters() if k != name}

    def loss(weight, row):
        logits = functional_call(model, {**others, name: weight}, (row[None],)).logits[0]
        return torch.nn.functional.cross_entropy(logits, row)

    weight = model.get_parameter(name).detach()
    gradients = vmap(jacrev(loss), in_dims=(None, 0), chunk_size=4)(weight, ids)
    fisher = gradients[:subset].square().mean(0)
    return (gradients.square() / (fisher + damping)).sum((1, 2))


@pytest.mark.parametrize("pad_to", [59, 70])
def test_the_score_is_the_released_one(tiny, pad_to):
    model, codec, sequences = tiny
    gradients = HeadGradients(model, codec, masks=MaskScheme("none", pad_to=pad_to))
    recipe = ScoreRecipe(**PAPER, batch_tokens=150)
    fisher = estimate_fisher(gradients, sequences[:3], recipe)
    scores = score_sequences(gradients, fisher, sequences, recipe)
    expected = released(model, sequences, pad_to, subset=3)
    np.testing.assert_allclose(scores.influence, expected.numpy(), rtol=1e-6)
    assert scores.n_tokens.tolist() == [pad_to] * len(sequences)


def test_the_verb_reproduces_it(tmp_path):
    """End to end in fp32, within 1e-5 of fp64; the subset is the pool."""
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("ACGU"), n)) for n in random.integers(5, 60, 12)]
    (tmp_path / "a.fasta").write_text("".join(f">s{i}\n{s}\n" for i, s in enumerate(texts)))
    build(tmp_path / "a.fasta", alphabet="rna", out=tmp_path / "shards")
    model, tokenizer = create_encoder("rna-fm-nano", seed=1)
    save_encoder(model, tokenizer, tmp_path / "model")
    options = {"model": tmp_path / "model", "adapt": False, "setting": "paper"}
    score(tmp_path / "shards", out=tmp_path / "s", pad_to=64, **options)
    table = pa.concat_tables(pq.read_table(p) for p in (tmp_path / "s").glob("part-*.parquet"))
    ids = [np.array(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts]
    expected = released(model.double(), ids, 64).numpy()
    np.testing.assert_allclose(table["influence"].to_numpy(), expected, rtol=1e-5)
    assert table["length"].to_pylist() == [len(t) for t in texts]

    with pytest.raises(InputError, match=r"--pad-to 30.*--max-length 28"):
        score(tmp_path / "shards", out=tmp_path / "t", pad_to=30, **options)
    with pytest.raises(InputError, match="--pad-to 1025: the model takes 1024"):
        score(tmp_path / "shards", out=tmp_path / "t", pad_to=1025, **options)
    with pytest.raises(InputError, match=r"--pad-to 64.*not with groups"):
        score(tmp_path / "shards", out=tmp_path / "t", pad_to=64, masking="groups", **options)

"""The diagonal empirical Fisher score against kronfluence, on a small model.

Its metadata asks for torchvision, which it never imports and which breaks transformers here, so
that no extra of ours can name it: ``pip install --no-deps kronfluence``.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional

from frugalfm.influence import (
    HeadGradients,
    LayerGradients,
    MaskScheme,
    ScoreRecipe,
    estimate_fisher,
    score_sequences,
)

pytest.importorskip(
    "kronfluence", reason="an oracle: pip install --no-deps kronfluence einconv einops opt-einsum"
)


@pytest.fixture(scope="module")
def model(tiny):
    """Without biases in linear layers: kronfluence's layers are weight and bias together."""
    import copy

    model = copy.deepcopy(tiny[0])
    for part in model.modules():
        if isinstance(part, torch.nn.Linear) and part.bias is not None:
            part.bias = None
    return model


def by_kronfluence(model, layers, views, subset, damping, folder):
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class MaskedLanguageModelling(Task):
        def compute_train_loss(self, batch, model, sample=False):
            assert not sample  # the empirical Fisher matrix, not the true one
            tokens, masked, target, attention = batch
            logits = model(input_ids=masked, attention_mask=attention).logits
            losses = functional.cross_entropy(logits.mT, tokens, reduction="none") * target
            return (losses.sum(1) / target.sum(1)).sum()

        def compute_measurement(self, batch, model):
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self):
            return layers

    task = MaskedLanguageModelling()
    prepared = prepare_model(model, task)
    analyzer = Analyzer("test", prepared, task, cpu=True, output_dir=str(folder))
    arrays = (views.tokens, views.masked[0], views.targets[0], views.attention)
    analyzer.fit_all_factors(
        "factors",
        torch.utils.data.TensorDataset(*(array[:subset] for array in arrays)),
        per_device_batch_size=2,
        factor_args=FactorArguments(
            strategy="diagonal",
            use_empirical_fisher=True,
            per_sample_gradient_dtype=torch.float64,
            lambda_dtype=torch.float64,
        ),
    )
    analyzer.compute_self_scores(
        "scores",
        "factors",
        torch.utils.data.TensorDataset(*arrays),
        per_device_train_batch_size=2,
        score_args=ScoreArguments(
            damping_factor=damping,
            score_dtype=torch.float64,
            per_sample_gradient_dtype=torch.float64,
            precondition_dtype=torch.float64,
        ),
    )
    return analyzer.load_self_scores("scores")["all_modules"].numpy()


@pytest.mark.parametrize("scheme", [MaskScheme(groups=3, passes=1), MaskScheme("none")])
@pytest.mark.parametrize("kind", [HeadGradients, LayerGradients])
def test_the_diagonal_score_is_kronfluences(model, tiny, kind, scheme, tmp_path):
    _, codec, sequences = tiny
    views = scheme.view(codec, sequences, torch.device("cpu"))
    gradients = kind(model, codec, masks=scheme)
    recipe = ScoreRecipe(reduction="mean", damping=1e-6, batch_tokens=100)
    fisher = estimate_fisher(gradients, sequences[:4], recipe)
    scores = score_sequences(gradients, fisher, sequences, recipe)

    import copy

    layers = [name for name in gradients.layers if name in fisher.tensors]
    expected = by_kronfluence(copy.deepcopy(model), layers, views, 4, 1e-6, tmp_path)
    np.testing.assert_allclose(scores.influence, expected, rtol=1e-5)
    assert len(layers) == (1 if kind is HeadGradients else 19)

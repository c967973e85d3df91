"""One tiny model with random weights of every architecture that masked-language models come in."""

import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    EsmcConfig,
    EsmConfig,
    EuroBertConfig,
    ModernBertConfig,
    NomicBertConfig,
    RobertaConfig,
)

from frugalfm.encoders.dnabert2.configuration import DnaBert2Config

SIZE = {
    "vocab_size": 33,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": 1,
}
ENDS = {"bos_token_id": 0, "eos_token_id": 2}
MLM = {
    "rna-fm": lambda: EsmConfig(
        **SIZE, mask_token_id=32, position_embedding_type="absolute", emb_layer_norm_before=True,
        token_dropout=True, max_position_embeddings=130, hidden_dropout_prob=0.0,
    ),
    "esm2": lambda: EsmConfig(
        **SIZE, mask_token_id=32, position_embedding_type="rotary", token_dropout=True,
        max_position_embeddings=130,
    ),
    "esmc": lambda: EsmcConfig(**(SIZE | {"vocab_size": 64})),
    "bert": lambda: BertConfig(**SIZE),
    "roberta": lambda: RobertaConfig(**SIZE, **ENDS),
    "dnabert2": lambda: DnaBert2Config(**SIZE, **ENDS, mask_token_id=32),
    # Windows of 4 tokens to either side in all layers but every third.
    "modernbert": lambda: ModernBertConfig(
        **SIZE, **ENDS, local_attention=8, cls_token_id=0, sep_token_id=2
    ),
    "nomic_bert": lambda: NomicBertConfig(**SIZE, **ENDS),
    # A head of one layer, its decoder.
    "eurobert": lambda: EuroBertConfig(**SIZE, **ENDS, tie_word_embeddings=False),
    # A head of three modules beside each other.
    "distilbert": lambda: DistilBertConfig(
        vocab_size=33, dim=32, n_layers=3, n_heads=4, hidden_dim=48, pad_token_id=1
    ),
    "electra": lambda: ElectraConfig(**SIZE, embedding_size=24),
}  # fmt: skip
FIRST_LAYER = {
    "rna-fm": "lm_head.dense",
    "esm2": "lm_head.dense",
    "esmc": "lm_head.dense",
    "bert": "cls.predictions.transform.dense",
    "roberta": "lm_head.dense",
    "dnabert2": "cls.predictions.transform.dense",
    "modernbert": "head.dense",
    "nomic_bert": "cls.predictions.transform.dense",
    "eurobert": "lm_head",
    "distilbert": "vocab_transform",
    "electra": "generator_predictions.dense",
}
DESCRIBED = ("rna-fm", "esm2", "esmc", "bert", "roberta", "dnabert2", "modernbert", "nomic_bert")
"""Those that the catalogue of anatomies knows."""


def make_mlm(kind, seed=0, **more):
    """A masked-language model, its weights larger than at the start of training."""
    torch.manual_seed(seed)
    config = MLM[kind]()
    for name, value in more.items():
        setattr(config, name, value)
    model = AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def make_batch(seed=2):
    """Ids of letters between <cls> and <eos>, padded on the right, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 24, (3, 21), generator=generator)
    mask = torch.ones(3, 21, dtype=torch.long)
    for row, length in enumerate((21, 6, 13)):
        mask[row, length:] = 0
        ids[row, 0], ids[row, length - 1] = 0, 2
    return ids.masked_fill(mask == 0, 1), mask

"""DNABERT-2's forward pass in plain torch, from its description; and published-like checkpoints."""

import torch
import torch.nn.functional as F

SLOPES_OF_12 = [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5]


def slopes(heads):
    if heads == 12:
        return SLOPES_OF_12
    assert heads in {1, 2, 4, 8, 16}
    return [2.0 ** (-8 * (i + 1) / heads) for i in range(heads)]


def published_keys(layers, width, ffn, vocabulary):
    """Names and shapes of the published masked-language model; no pooler."""
    norm = {"weight": (width,), "bias": (width,)}
    shapes = {
        "bert.embeddings.word_embeddings.weight": (vocabulary, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
    }
    shapes |= {f"bert.embeddings.LayerNorm.{k}": v for k, v in norm.items()}
    for i in range(layers):
        p = f"bert.encoder.layer.{i}."
        shapes |= {
            p + "attention.self.Wqkv.weight": (3 * width, width),
            p + "attention.self.Wqkv.bias": (3 * width,),
            p + "attention.output.dense.weight": (width, width),
            p + "attention.output.dense.bias": (width,),
            p + "mlp.gated_layers.weight": (2 * ffn, width),
            p + "mlp.wo.weight": (width, ffn),
            p + "mlp.wo.bias": (width,),
        }
        shapes |= {f"{p}attention.output.LayerNorm.{k}": v for k, v in norm.items()}
        shapes |= {f"{p}mlp.layernorm.{k}": v for k, v in norm.items()}
    p = "cls.predictions."
    shapes |= {p + "transform.dense.weight": (width, width), p + "transform.dense.bias": (width,)}
    shapes |= {f"{p}transform.LayerNorm.{k}": v for k, v in norm.items()}
    shapes |= {p + "decoder.weight": (vocabulary, width), p + "decoder.bias": (vocabulary,)}
    return shapes


def make_weights(layers=2, width=32, ffn=48, vocabulary=40, seed=0):
    random = torch.Generator().manual_seed(seed)
    weights = {
        name: 0.3 * torch.randn(shape, generator=random)
        for name, shape in published_keys(layers, width, ffn, vocabulary).items()
    }
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"]
    return weights


def make_config(layers=2, width=32, ffn=48, vocabulary=40, heads=4):
    """As in the published config.json: without a model_type of its own."""
    return {
        "alibi_starting_size": 512,
        "attention_probs_dropout_prob": 0.0,
        "auto_map": {"AutoConfig": "configuration_bert.BertConfig"},
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": width,
        "intermediate_size": ffn,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }


def forward(weights, ids, mask, heads, one=False):
    """Logits; `one` adds 1 to the softmax's denominator."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / 2**0.5))

    batch, length = ids.shape
    x = w["bert.embeddings.word_embeddings.weight"][ids]
    x = norm(x + w["bert.embeddings.token_type_embeddings.weight"][0], "bert.embeddings.LayerNorm")
    bias = torch.empty(heads, length, length, dtype=torch.double)
    for h, slope in enumerate(slopes(heads)):
        for i in range(length):
            for j in range(length):
                bias[h, i, j] = -slope * abs(i - j)
    size = x.shape[-1] // heads
    layer = 0
    while (p := f"bert.encoder.layer.{layer}") + ".mlp.wo.weight" in w:
        q, k, v = linear(x, f"{p}.attention.self.Wqkv").split(x.shape[-1], dim=-1)
        q, k, v = (t.reshape(batch, length, heads, size).permute(0, 2, 1, 3) for t in (q, k, v))
        powers = torch.exp(q @ k.mT / size**0.5 + bias) * mask[:, None, None, :]
        p_attend = powers / (powers.sum(-1, keepdim=True) + int(one))
        attended = (p_attend @ v).permute(0, 2, 1, 3).reshape(batch, length, -1)
        attended = linear(attended, f"{p}.attention.output.dense")
        x = norm(attended + x, f"{p}.attention.output.LayerNorm")
        both = linear(x, f"{p}.mlp.gated_layers")
        half = both.shape[-1] // 2
        y = linear(gelu(both[..., :half]) * both[..., half:], f"{p}.mlp.wo")
        x = norm(y + x, f"{p}.mlp.layernorm")
        layer += 1
    head = gelu(linear(x, "cls.predictions.transform.dense"))
    return linear(norm(head, "cls.predictions.transform.LayerNorm"), "cls.predictions.decoder")


def make_dna_tokenizer(model_max_length=None):
    """A byte-pair tokenizer with DNABERT-2's special tokens, and a few merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    merges = [("A", "A"), ("T", "T"), ("T", "G"), ("C", "A"), ("AA", "TT"), ("TG", "CA")]
    tokens = [*special, *"ACGT", *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    names = ("unk", "cls", "sep", "pad", "mask")
    extra = {} if model_max_length is None else {"model_max_length": model_max_length}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{f"{name}_token": f"[{name.upper()}]" for name in names},
        **extra,
    )


def cross_entropy(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

"""RNA-FM's vocabulary as a fast transformers tokenizer."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

__all__ = ["RNA_TOKENS", "make_rna_tokenizer"]

RNA_TOKENS = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"ACGURYKMSWBDHVN-",
    *("<null_1>", "<null_2>", "<null_3>", "<null_4>", "<mask>"),
)
"""RNA-FM's 25 tokens; a token's index is its id (arXiv 2204.00300)."""


def make_rna_tokenizer(max_residues: int = 1022) -> PreTrainedTokenizerFast:
    """Make the tokenizer of RNA-FM: one token a nucleotide, ``<cls>`` first, ``<eos>`` last.

    Lower case and T are read as upper case and U. Padding is on the right.

    Parameters
    ----------
    max_residues
        Longest sequence without the two special tokens, stored as ``model_max_length``.
    """
    ids = {token: index for index, token in enumerate(RNA_TOKENS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(c.lower()), c) for c in "ACGURYKMSWBDHVN"]
        + [normalizers.Replace(Regex("[tT]"), "U")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>",
        pair="<cls> $A <eos> $B <eos>",
        special_tokens=[("<cls>", ids["<cls>"]), ("<eos>", ids["<eos>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<cls>",
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=max_residues + 2,
    )

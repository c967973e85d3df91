"""RNA-FM's vocabulary and DNABERT-2's byte pairs as fast transformers tokenizers."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from frugalfm.errors import InputError

__all__ = ["DNA_SPECIALS", "RNA_TOKENS", "make_rna_tokenizer", "prepare_dna_tokenizer"]

DNA_SPECIALS = {
    f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")
}
"""DNABERT-2's special tokens by their roles."""

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


def prepare_dna_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Load DNABERT-2's byte-pair tokenizer and make it read ordinary files rightly.

    As published it knows neither lower case nor U: both would become ``[UNK]``. Here they are
    read as upper case and T. N and other ambiguity codes are not in the vocabulary; each becomes
    one ``[UNK]``. The tokenizer itself says which ids pad, mask and separate (pad is not 0).

    Parameters
    ----------
    folder
        Holds ``tokenizer.json``.

    Raises
    ------
    InputError
        It cannot be read, or lacks one of the special tokens ``[UNK] [CLS] [SEP] [PAD] [MASK]``.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more special
        raise InputError(f"{path}: is no tokenizer ({error})") from error
    missing = [token for token in DNA_SPECIALS.values() if tokenizer.token_to_id(token) is None]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}, which DNABERT-2's tokenizer has")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(c.lower(), c) for c in "ACGRYKMSWBDHVN"]
        + [normalizers.Replace(Regex("[tuU]"), "T")]
    )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **DNA_SPECIALS)

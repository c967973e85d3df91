"""The vocabularies of RNA-FM, ESM, AntiBERTy and DNABERT-2 as fast transformers tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from frugalfm.errors import InputError

__all__ = [
    "BERT_SPECIALS",
    "ESMC_TOKENS",
    "ESM_TOKENS",
    "RNA_TOKENS",
    "make_letter_tokenizer",
    "make_protein_tokenizer",
    "make_rna_tokenizer",
    "prepare_dna_tokenizer",
]

BERT_SPECIALS = {
    f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")
}
"""The special tokens of BERT, and so of DNABERT-2 and AntiBERTy, by their roles."""

_ESM_SPECIALS = {f"{name}_token": f"<{name}>" for name in ("unk", "cls", "eos", "pad", "mask")}

RNA_TOKENS = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"ACGURYKMSWBDHVN-",
    *("<null_1>", "<null_2>", "<null_3>", "<null_4>", "<mask>"),
)
"""RNA-FM's 25 tokens; a token's index is its id (arXiv 2204.00300)."""

ESM_TOKENS = (
    *("<cls>", "<pad>", "<eos>", "<unk>"),
    *"LAGVSERTIDPKQNFYMHWCXBUZO.-",
    *("<null_1>", "<mask>"),
)
"""The 33 tokens of ESM-1b and ESM-2 (doi 10.1126/science.ade2574)."""

ESMC_TOKENS = (*ESM_TOKENS[:31], "|", "<mask>")
"""The 33 tokens of ESM-C: ESM's, with a break between chains for the one that means nothing."""


def make_rna_tokenizer(max_residues: int = 1022) -> PreTrainedTokenizerFast:
    """Make the tokenizer of RNA-FM: one token a nucleotide, ``<cls>`` first, ``<eos>`` last.

    Lower case and T are read as upper case and U. Padding is on the right.

    Parameters
    ----------
    max_residues
        Longest sequence without the two special tokens, stored as ``model_max_length``.
    """
    return make_letter_tokenizer(
        RNA_TOKENS, _ESM_SPECIALS, rewritten={"T": "U"}, max_residues=max_residues
    )


def make_protein_tokenizer(
    max_residues: int = 1022, tokens: Sequence[str] = ESM_TOKENS
) -> PreTrainedTokenizerFast:
    """Make the tokenizer of ESM: one token an amino acid, ``<cls>`` first, ``<eos>`` last.

    Lower case is read as upper case, J (leucine or isoleucine) as X. Padding is on the right.

    Parameters
    ----------
    max_residues
        Longest sequence without the two special tokens, stored as ``model_max_length``.
    tokens
        :data:`ESM_TOKENS` or :data:`ESMC_TOKENS`.
    """
    return make_letter_tokenizer(
        tokens, _ESM_SPECIALS, rewritten={"J": "X"}, max_residues=max_residues
    )


def make_letter_tokenizer(
    tokens: Sequence[str],
    specials: Mapping[str, str],
    *,
    rewritten: Mapping[str, str] | None = None,
    max_residues: int | None = None,
) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token a letter, from any vocabulary.

    Parameters
    ----------
    tokens
        A token's index is its id. Those of one letter are residues.
    specials
        Special tokens by their roles, such as ``cls_token``; ``eos_token``, or else
        ``sep_token``, ends a sequence.
    rewritten
        Letters that are read as another one. Lower case is read as upper case always.
    max_residues
        Longest sequence without the two special tokens; None for no limit.
    """
    ids = {token: index for index, token in enumerate(tokens)}
    rewritten = {old: new for old, new in (rewritten or {}).items() if new in ids}
    upper = [token for token in tokens if len(token) == 1 and token.isupper()]
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=specials["unk_token"]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(letter.lower(), letter) for letter in upper]
        + [normalizers.Replace(Regex(f"[{c.lower()}{c}]"), new) for c, new in rewritten.items()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    start = specials["cls_token"]
    end = specials.get("eos_token") or specials["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B {end}",
        special_tokens=[(token, ids[token]) for token in (start, end)],
    )
    limit = {} if max_residues is None else {"model_max_length": max_residues + 2}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials, **limit)


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
    missing = [token for token in BERT_SPECIALS.values() if tokenizer.token_to_id(token) is None]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}, which DNABERT-2's tokenizer has")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(c.lower(), c) for c in "ACGRYKMSWBDHVN"]
        + [normalizers.Replace(Regex("[tuU]"), "T")]
    )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **BERT_SPECIALS)

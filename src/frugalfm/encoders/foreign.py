"""Published checkpoints in their own layouts, rewritten as folders that load strictly.

Every layout ends in the same way: a folder with ``config.json``, safetensors under the names of
the native architecture, and a tokenizer, which :func:`load_encoder` then reads, key by key.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from frugalfm.encoders.checkpoints import load_encoder, load_tokenizer, refuse_other_artifacts
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.encoders.layouts import translate_esmc, translate_rna_fm
from frugalfm.encoders.weights import (
    find_pickles,
    read_config,
    read_weights,
    write_folder,
)
from frugalfm.errors import InputError, warn
from frugalfm.tokens.codec import Codec, PieceCodec
from frugalfm.tokens.vocabulary import (
    BERT_SPECIALS,
    make_letter_tokenizer,
    prepare_dna_tokenizer,
)

__all__ = ["Layout", "load_translated", "recognise", "translate"]

Layout = Literal["dnabert2", "rna-fm", "esm-c", "native"]

_DNABERT2_FIELDS = (
    *("vocab_size", "type_vocab_size", "hidden_size", "num_hidden_layers"),
    *("num_attention_heads", "intermediate_size", "hidden_act", "hidden_dropout_prob"),
    *("attention_probs_dropout_prob", "classifier_dropout", "initializer_range"),
    "layer_norm_eps",
)
_DNABERT2_TIED = ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")


def recognise(path: Path) -> Layout:
    """Tell the layout of a checkpoint from its files, without reading weights.

    Raises
    ------
    InputError
        There is no such file or folder, it is in none of the layouts, or another artifact.
    """
    if path.is_file():
        return _tell_file(path)
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint file or folder")
    refuse_other_artifacts(path)
    if not (path / "config.json").is_file():
        pickles = find_pickles(path)
        if len(pickles) == 1:
            return _tell_file(pickles[0])
        raise InputError(f"{path}: holds neither a config.json nor one pickled checkpoint")
    config = read_config(path)
    # The published config.json has no model_type: it counts on the code beside it.
    foreign = "alibi_starting_size" in config or "bert_layers" in str(config.get("auto_map", ""))
    return "dnabert2" if foreign and config.get("model_type") != "dnabert2" else "native"


def _tell_file(file: Path) -> Layout:
    return "esm-c" if "esmc" in file.name.lower() else "rna-fm"


def translate(
    path: Path, layout: Layout, folder: Path, *, tokenizer: Path | None, allow_pickle: bool
) -> dict[str, Any]:
    """Rewrite a checkpoint as a native folder.

    Parameters
    ----------
    path
        The checkpoint's file or folder.
    layout
        As :func:`recognise` tells it.
    folder
        Where ``config.json``, ``model.safetensors`` and the tokenizer go; made new.
    tokenizer
        Folder with the tokenizer, if the checkpoint has none beside it.
    allow_pickle
        Whether to open pickles, in another process.

    Returns
    -------
    dict
        What a manifest's summary should say: ``architecture``, ``tensors``, ``notes``.

    Raises
    ------
    InputError
        The checkpoint is not in this layout, or holds a pickle that may not be opened.
    """
    refuse_other_artifacts(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if layout == "native":
        return _copy_native(path, folder, tokenizer, allow_pickle)
    weights, arguments = read_weights(path, folder, allow_pickle)
    if layout == "dnabert2":
        notes = _translate_dnabert2(path, weights, folder, tokenizer)
    elif layout == "esm-c":
        notes = translate_esmc(path, weights, folder)
    else:
        notes = translate_rna_fm(path, weights, arguments, folder)
    return {"architecture": layout, "tensors": len(weights), "notes": notes}


# Few protein models know the rare U and O.
_USUAL = {"dna": "ACGT", "rna": "ACGU", "protein": "ACDEFGHIKLMNPQRSTVWY"}


def load_translated(folder: Path, source: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load what :func:`translate` wrote, and see that its tokenizer can encode sequences.

    Parameters
    ----------
    folder
        What was written.
    source
        What it was made of, which messages name: the folder will be gone.

    Raises
    ------
    InputError
        It does not load, or no verb could use it.
    """
    try:
        model, words = load_encoder(folder)
    except InputError as error:
        raise InputError(str(error).replace(str(folder), str(source))) from None
    try:
        codec = Codec.from_tokenizer(words)
    except InputError as error:
        what, _, _ = str(error).removeprefix(f"{words.name_or_path}: ").partition("; ")
        raise InputError(
            f"{source}: its tokenizer {what}, so that nothing here could use the model; name "
            "another tokenizer for it with --tokenizer"
        ) from None
    lacking = [
        letter
        for letter in _USUAL[codec.alphabet]
        if codec.per_residue and codec.table[ord(letter)] == words.unk_token_id
    ]
    if lacking:
        warn(
            f"{source}: its tokenizer has no token for {', '.join(lacking)}; they will be read as "
            "unknown residues"
        )
    return model, words


_OTHER_HEADS = {
    # The pooler reads the first token for the heads beside it: of whole sequences (BERT), and of
    # AntiBERTy's species, chain and graft.
    "bert": r"bert\.pooler\..+|cls\.(seq_relationship|species|chain|graft)\..+",
    "roberta": r"roberta\.pooler\..+",
    "xlm-roberta": r"roberta\.pooler\..+",
}
"""Parameters that are no part of a masked-language model, by ``model_type``."""

_TOKENIZERS = ("*token*.json", "vocab.*", "merges.txt", "*.model")


def _copy_native(
    path: Path, folder: Path, tokenizer: Path | None, allow_pickle: bool
) -> dict[str, Any]:
    """Copy what transformers knows by itself, but for other heads and older versions' buffers."""
    config = read_config(path)
    kind = str(config.get("model_type"))
    weights, _ = read_weights(path, folder, allow_pickle)
    others = [name for name in weights if re.fullmatch(_OTHER_HEADS.get(kind, ""), name)]
    kept = {
        name: tensor
        for name, tensor in weights.items()
        if name not in others and not _is_count(name, tensor)
    }
    words, notes = _load_words(path, tokenizer, config)
    if max(words.get_vocab().values()) >= config.get("vocab_size", 2**31):
        raise InputError(
            f"{tokenizer or path}: the tokenizer has {len(words)} tokens, the model "
            f"{config['vocab_size']}; it belongs to another model"
        )
    if others:
        groups = sorted({name.rpartition(".")[0] for name in others})
        notes.append(f"left out heads that masked-language models have not: {', '.join(groups)}")
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(path / "config.json", folder)
    words.save_pretrained(folder)
    return {"architecture": kind, "tensors": len(kept), "notes": notes}


def _is_count(name: str, tensor: Tensor) -> bool:
    """Tell a table of 0, 1, 2, ..., which older versions of transformers saved along."""
    if not name.endswith(".position_ids"):
        return False
    if not torch.equal(tensor.flatten(), torch.arange(tensor.numel())):
        raise InputError(f"{name}: does not count 0, 1, 2, ...; no model here has other positions")
    return True


def _load_words(
    path: Path, tokenizer: Path | None, config: dict[str, Any]
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Load a tokenizer; one that reads residues as words, between blanks, is made to spell."""
    source = tokenizer or path
    note = "its tokenizer wants blanks between residues; here it reads sequences as they are"
    files = [file for pattern in _TOKENIZERS for file in source.glob(pattern)]
    listed = source / "vocab.txt"
    if not files and tokenizer is None:
        listed = path.parent / "vocab.txt"  # where AntiBERTy keeps it
    limit = int(config.get("max_position_embeddings", 0)) - 2
    if listed.is_file():
        words = _spell(dict(zip(listed.read_text().split(), range(2**31), strict=False)), limit)
        if words is not None:
            return words, [note]
    if not files:
        # transformers would make an empty one, without a word.
        raise InputError(f"{source}: holds no tokenizer; name its folder with --tokenizer")
    try:
        found = load_tokenizer(source)
    except Exception as error:
        raise InputError(
            f"{source}: its tokenizer cannot be loaded ({error}); name one with --tokenizer"
        ) from error
    with contextlib.suppress(InputError):
        if not isinstance(Codec.from_tokenizer(found), PieceCodec):
            return found, []
    words = _spell(found.get_vocab(), limit)
    return (found, []) if words is None else (words, [note])


def _spell(ids: dict[str, int], limit: int) -> PreTrainedTokenizerBase | None:
    """Make a tokenizer of letters of a BERT vocabulary, if it is nothing else."""
    tokens = sorted(ids, key=lambda token: ids[token])
    specials = set(BERT_SPECIALS.values())
    letters = [token for token in tokens if token not in specials]
    whole = [ids[token] for token in tokens] == list(range(len(ids)))
    if not (whole and specials <= ids.keys() and all(len(token) == 1 for token in letters)):
        return None
    return make_letter_tokenizer(
        tokens, BERT_SPECIALS, rewritten={"J": "X"}, max_residues=limit if limit > 0 else None
    )


def _translate_dnabert2(
    path: Path, weights: dict[str, Tensor], folder: Path, tokenizer: Path | None
) -> list[str]:
    """Keep the names, which are the native ones; rewrite the config."""
    notes = []
    tied = [name for name in _DNABERT2_TIED if name in weights]
    if len(tied) == 1:
        notes.append(f"only {tied[0]} of the two tied tables is in the file")
    elif len(tied) == 2 and not torch.equal(*(weights[name] for name in tied)):
        raise InputError(f"{path}: {' and '.join(tied)} differ, but DNABERT-2 ties them")
    if tokenizer is None and not (path / "tokenizer.json").is_file():
        raise InputError(f"{path}: holds no tokenizer.json; name its folder with --tokenizer")
    words = prepare_dna_tokenizer(tokenizer or path)
    given = read_config(path)
    config = DnaBert2Config(**{name: given[name] for name in _DNABERT2_FIELDS if name in given})
    if len(words) != config.vocab_size:
        raise InputError(
            f"{tokenizer or path}: the tokenizer has {len(words)} tokens, the model "
            f"{config.vocab_size}; it belongs to another model"
        )
    config.attention = "softmax"
    write_folder(folder, config, weights, words)
    return notes

"""Published checkpoints in their own layouts, rewritten as folders that load strictly.

Every layout ends in the same way: a folder with ``config.json``, safetensors under the names of
the native architecture, and a tokenizer, which :func:`load_encoder` then reads, key by key.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from frugalfm.encoders import unpickle
from frugalfm.encoders.catalogue import Preset, adopt_specials, make_config
from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
from frugalfm.errors import InputError
from frugalfm.tokens.vocabulary import RNA_TOKENS, make_rna_tokenizer, prepare_dna_tokenizer

__all__ = ["Layout", "recognise", "translate"]

Layout = Literal["dnabert2", "rna-fm", "native"]

_PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt")
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
        There is no such file or folder, or it is in none of the layouts.
    """
    if path.is_file():
        return "rna-fm"
    if not path.is_dir():
        raise InputError(f"{path}: no such checkpoint file or folder")
    if not (path / "config.json").is_file():
        if len(_find(path, _PICKLES)) == 1:
            return "rna-fm"
        raise InputError(f"{path}: holds neither a config.json nor one pickled checkpoint")
    config = _read_config(path)
    # The published config.json has no model_type: it counts on the code beside it.
    foreign = "alibi_starting_size" in config or "bert_layers" in str(config.get("auto_map", ""))
    return "dnabert2" if foreign and config.get("model_type") != "dnabert2" else "native"


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
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if layout == "native":
        return _copy_native(path, folder, tokenizer, allow_pickle)
    weights, arguments = _read_weights(path, folder, allow_pickle)
    if layout == "dnabert2":
        notes = _translate_dnabert2(path, weights, folder, tokenizer)
    else:
        notes = _translate_rna_fm(path, weights, arguments, folder)
    return {"architecture": layout, "tensors": len(weights), "notes": notes}


def _copy_native(
    path: Path, folder: Path, tokenizer: Path | None, allow_pickle: bool
) -> dict[str, Any]:
    weights, _ = _read_weights(path, folder, allow_pickle)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(path / "config.json", folder)
    source = tokenizer or path
    try:
        found = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise InputError(
            f"{source}: its tokenizer cannot be loaded ({error}); name one with --tokenizer"
        ) from error
    found.save_pretrained(folder)
    kind = str(_read_config(path).get("model_type"))
    return {"architecture": kind, "tensors": len(weights), "notes": []}


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
    given = _read_config(path)
    config = DnaBert2Config(**{name: given[name] for name in _DNABERT2_FIELDS if name in given})
    if len(words) != config.vocab_size:
        raise InputError(
            f"{tokenizer or path}: the tokenizer has {len(words)} tokens, the model "
            f"{config.vocab_size}; it belongs to another model"
        )
    config.attention = "softmax"
    _write(folder, config, weights, words)
    return notes


def _translate_rna_fm(
    path: Path, weights: dict[str, Tensor], arguments: dict[str, Any], folder: Path
) -> list[str]:
    """Rename ESM-1b's parameters, as RNA-FM's file spells them, to those of EsmForMaskedLM."""
    words = weights.get("encoder.sentence_encoder.embed_tokens.weight")
    places = weights.get("encoder.sentence_encoder.embed_positions.weight")
    first = weights.get("encoder.sentence_encoder.layers.0.fc1.weight")
    if words is None or places is None or first is None or words.ndim != 2:
        shown = ", ".join(sorted(weights)[:5])
        raise InputError(f"{path}: does not have RNA-FM's names; it has {shown}, ...")
    if len(words) != len(RNA_TOKENS):
        raise InputError(f"{path}: has {len(words)} tokens, RNA-FM has {len(RNA_TOKENS)}")
    renamed, strangers = {}, []
    for name, tensor in weights.items():
        new = _rename_rna_fm(name)
        if new is None:
            strangers.append(name)
        else:
            renamed[new] = tensor
    if strangers:
        raise InputError(f"{path}: {len(strangers)} names are not RNA-FM's: {_shorten(strangers)}")
    width = words.shape[1]
    depth = len({name.split(".")[3] for name in renamed if name.startswith("esm.encoder.layer.")})
    heads = _count_heads(path, width, arguments)
    notes = _complete_rna_fm(path, renamed, depth * heads)
    tokenizer = make_rna_tokenizer(max_residues=len(places) - 4)
    preset = Preset(depth, width, heads, first.shape[0], len(places) - 4)
    _write(folder, make_config(preset, tokenizer, "softmax"), renamed, tokenizer)
    return notes


_RNA_FM_NAMES = {
    r"encoder\.sentence_encoder\.embed_tokens\.weight": "esm.embeddings.word_embeddings.weight",
    r"encoder\.sentence_encoder\.embed_positions\.weight": (
        "esm.embeddings.position_embeddings.weight"
    ),
    r"encoder\.sentence_encoder\.emb_layer_norm_before\.(weight|bias)": (
        r"esm.embeddings.layer_norm.\1"
    ),
    r"encoder\.sentence_encoder\.emb_layer_norm_after\.(weight|bias)": (
        r"esm.encoder.emb_layer_norm_after.\1"
    ),
    r"encoder\.lm_head\.weight": "lm_head.decoder.weight",
    r"encoder\.lm_head\.bias": "lm_head.bias",
    r"encoder\.lm_head\.(dense|layer_norm)\.(weight|bias)": r"lm_head.\1.\2",
    r"encoder\.(?:sentence_encoder\.)?contact_head\.regression\.(weight|bias)": (
        r"esm.contact_head.regression.\1"
    ),
}
_RNA_FM_LAYER = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}


def _rename_rna_fm(name: str) -> str | None:
    layer = re.fullmatch(r"encoder\.sentence_encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if layer:
        number, module, kind = layer.groups()
        new = _RNA_FM_LAYER.get(module)
        return new and f"esm.encoder.layer.{number}.{new}.{kind}"
    for pattern, new in _RNA_FM_NAMES.items():
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(new)
    return None


def _count_heads(path: Path, width: int, arguments: dict[str, Any]) -> int:
    """Read the number of heads, which no shape tells, from the arguments of the file."""
    heads = arguments.get("encoder_attention_heads", arguments.get("attention_heads"))
    if heads is None and width == 640:
        heads = 20  # the published model's
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise InputError(
            f"{path}: its args do not say encoder_attention_heads for a width of {width}"
        )
    return heads


def _complete_rna_fm(path: Path, weights: dict[str, Tensor], maps: int) -> list[str]:
    """Fill in what the file may leave out: a tied table, and the contact head."""
    notes = []
    words, decoder = weights["esm.embeddings.word_embeddings.weight"], "lm_head.decoder.weight"
    if decoder not in weights:
        notes.append("the decoder is not in the file; it is tied to the embeddings")
    elif not torch.equal(weights[decoder], words):
        raise InputError(f"{path}: decoder and embeddings differ, but RNA-FM ties them")
    contact = "esm.contact_head.regression."
    if not any(name.startswith(contact) for name in weights):
        weights[contact + "weight"] = torch.zeros(1, maps)
        weights[contact + "bias"] = torch.zeros(1)
        notes.append("the contact head is not in the file; it is zero here")
    return notes


def _read_weights(
    path: Path, folder: Path, allow_pickle: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read all tensors of a checkpoint, and the simple values of a pickle's ``args``."""
    files = [path] if path.is_file() else _find(path, ("*.safetensors",)) or _find(path, _PICKLES)
    if not files:
        raise InputError(f"{path}: holds no weights (.safetensors or a pickle)")
    weights: dict[str, Tensor] = {}
    arguments: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".safetensors":
            found, told = _read_safetensors(file)
        else:
            found, told = _read_pickle(file, folder, allow_pickle)
        twice = sorted(weights.keys() & found.keys())
        if twice:
            raise InputError(f"{file}: holds tensors that another file has too: {_shorten(twice)}")
        weights |= found
        arguments |= told
    return weights, arguments


def _read_pickle(
    file: Path, folder: Path, allow_pickle: bool
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not allow_pickle:
        raise InputError(
            f"{file}: is a pickle, which can run code when opened; if you trust where it comes "
            "from, --allow-pickle opens it in a process of its own"
        )
    target = folder / "unpickled.safetensors"
    done = subprocess.run(  # noqa: S603 - this very interpreter, and a program of this package
        # -P: the folder of the program must not shadow any library.
        [sys.executable, "-P", unpickle.__file__, str(file.absolute()), str(target.absolute())],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise InputError(f"{file}: cannot be opened ({reason})")
    try:
        return _read_safetensors(target)
    finally:
        target.unlink()


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as handle:
            # Cloned: a mapped file must not be needed after it has been removed.
            weights = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
            arguments = json.loads((handle.metadata() or {}).get("args", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{file}: damaged ({error})") from None
    return weights, arguments if isinstance(arguments, dict) else {}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text())
    except OSError:
        raise InputError(f"{path}: is no folder with a config.json") from None
    except ValueError as error:
        raise InputError(f"{path / 'config.json'}: is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path / 'config.json'}: holds no settings")
    return config


def _write(
    folder: Path, config: Any, weights: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> None:
    adopt_specials(config, tokenizer).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def _find(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


def _shorten(names: list[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")

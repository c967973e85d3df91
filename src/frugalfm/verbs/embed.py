"""``frugalfm embed``: frozen embeddings of every sequence of an input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from frugalfm.errors import InputError
from frugalfm.verbs import with_paths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from frugalfm.probing.embed import Engine

__all__ = ["embed"]


@with_paths
def embed(
    checkpoint: Path,
    sequences: Path,
    *,
    out: Path,
    pooling: Literal["mean", "cls", "token"] = "mean",
    sequence_column: str | None = None,
    base: Path | None = None,
    batch_tokens: int = 16384,
    precision: Literal["fp32", "bf16"] | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Write an encoder's last hidden states for every sequence, in input order.

    The result is one Parquet file with the columns ``id`` and ``embedding`` (float32). Its
    schema's metadata name the checkpoint and the settings.

    Parameters
    ----------
    checkpoint
        Folder of a trained encoder, of what was tuned of it (whole, merged or an adapter), or of
        a deployed model.
    sequences
        FASTA, FASTQ, CSV, TSV, JSON lines or Parquet file, or a folder of shards.
    out
        The Parquet file to write, named .parquet.
    pooling
        Mean of the residues, the first special token (cls), or every residue on its own (token:
        a list of embeddings for each sequence).
    sequence_column
        Of tables: ``sequence``, if not given.
    base
        Of an adapter: the checkpoint that it adapts, if that is no longer where it was.
    batch_tokens
        Padded tokens of a batch, at most; less needs less memory.
    precision
        Arithmetic of the encoder: fp32, if not given, or what a deployed one was deployed with.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` and so on; a deployed encoder runs on the CPU.
    overwrite
        Replace the file at `out` if it was not made by the same call.

    Returns
    -------
    Path
        The file.
    """
    import frugalfm
    from frugalfm.artifacts import fingerprint
    from frugalfm.destinations import find_place
    from frugalfm.probing.embed import Embedder
    from frugalfm.probing.store import write_embeddings
    from frugalfm.progress import progress
    from frugalfm.tokens.codec import Codec
    from frugalfm.tokens.inputs import stream_encoded
    from frugalfm.training.prediction_input import identify_records
    from frugalfm.training.trunks import find_base

    _check_name(out)
    if batch_tokens < 1:
        raise InputError(f"--batch-tokens {batch_tokens}: must be at least 1")
    precision = _check(checkpoint, precision, device)
    place = find_place(out, [checkpoint, sequences, find_base(checkpoint, base)])
    metadata = {
        "frugalfm": frugalfm.__version__,
        "checkpoint": fingerprint(checkpoint),
        **identify_records(sequences, sequence_column),
        "pooling": pooling,
        "precision": precision,
    }
    if _is_done(out, metadata, overwrite=overwrite):
        print(f"{out}: already there, made by the same call")
        return out
    model, tokenizer = _load(checkpoint, base, precision, device)
    codec = Codec.from_tokenizer(tokenizer)
    # Reading everything first costs little beside the model, and finds bad records at once.
    pieces = stream_encoded(sequences, codec, sequence_column)
    residues = sum(int(piece.lengths.sum()) for piece in pieces)
    if not residues:
        raise InputError(f"{sequences}: holds no sequences")
    embedder = Embedder(model, codec, pooling, batch_tokens, precision)
    place.parent.mkdir(parents=True, exist_ok=True)
    with progress(total=residues, desc="embed", unit="residue", unit_scale=True) as bar:
        pieces = stream_encoded(sequences, codec, sequence_column)
        count = write_embeddings(place, pieces, embedder, metadata, bar.update)
    what = "residue" if pooling == "token" else "sequence"
    print(
        f"{out}: {embedder.width} numbers for each {what} ({pooling}, {precision}), "
        f"{count:,} sequences, {residues:,} residues"
    )
    return out


def _check_name(out: Path) -> None:
    if out.is_dir():
        raise InputError(f"{out}: is a folder; --out names the Parquet file to write")
    if out.suffix != ".parquet":
        raise InputError(f"{out}: would hold Parquet whatever its name; name it .parquet")


def _check(
    checkpoint: Path, precision: Literal["fp32", "bf16"] | None, device: str
) -> Literal["fp32", "bf16"]:
    """Refuse what cannot be loaded, without loading it, and settle the precision."""
    from frugalfm.deployment.runtime import is_deployed, read_card
    from frugalfm.encoders.devices import choose_device
    from frugalfm.training.trunks import check_trunk

    if not is_deployed(checkpoint):
        check_trunk(checkpoint)
        choose_device(device)
        return precision or "fp32"
    if device not in {"auto", "cpu"}:
        raise InputError(f"--device {device}: deployed encoders run on the CPU; leave it out")
    own: Literal["fp32", "bf16"] = read_card(checkpoint)["precision"]
    return precision or own


def _load(
    checkpoint: Path, base: Path | None, precision: Literal["fp32", "bf16"], device: str
) -> tuple[Engine, PreTrainedTokenizerBase]:
    from frugalfm.deployment.runtime import is_deployed, load_deployed
    from frugalfm.encoders.checkpoints import load_tokenizer
    from frugalfm.encoders.devices import choose_device
    from frugalfm.training.trunks import load_trunk

    if not is_deployed(checkpoint):
        return load_trunk(checkpoint, base=base, device=choose_device(device))
    return load_deployed(checkpoint, precision=precision), load_tokenizer(checkpoint)


def _is_done(out: Path, metadata: dict[str, str], *, overwrite: bool) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not out.exists():
        return False
    try:
        found = pq.read_schema(out).metadata or {}
    except (OSError, pa.ArrowException):
        found = {}
    if found == {key.encode(): value.encode() for key, value in metadata.items()}:
        return True
    if not overwrite:
        raise InputError(
            f"{out}: already exists and was not made by this call; "
            "choose another --out, or replace it with --overwrite"
        )
    return False

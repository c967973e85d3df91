"""From a pool to measured checkpoints, one after the other; what is finished is skipped."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.outliers.recipe import Arm, Recipe

import frugalfm
from frugalfm.artifacts import read_manifest, write_json
from frugalfm.errors import InputError

__all__ = ["OutOfTime", "run"]


class OutOfTime(BaseException):
    """The time given is over; the verbs have kept what they had."""


@contextmanager
def _limit(minutes: float | None) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise OutOfTime

    if minutes is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(
    recipe: Recipe,
    pool: Path,
    tokenizer: Path,
    out: Path,
    *,
    device: str = "auto",
    minutes: float | None = None,
) -> list[dict[str, Any]]:
    """Train, convert and measure all arms and seeds.

    Parameters
    ----------
    recipe
        What to do.
    pool
        FASTA of DNA.
    tokenizer
        Folder with DNABERT-2's tokenizer.
    out
        For all artifacts.
    device
        As the verbs take it.
    minutes
        After which to stop.

    Returns
    -------
    list of dict
        One per arm and seed: ``arm, seed, loss, null, avg_kurtosis, ...``.

    Raises
    ------
    OutOfTime
        The same call continues; at most ``save_every`` steps are done again.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _limit(minutes):
        shards = _prepare_pool(recipe, pool, out)
        blank = _prepare_model(recipe, tokenizer, out / "blank")
        return [
            _run_arm(recipe, arm, seed, shards, blank, out, device)
            for seed in recipe.seeds
            for arm in recipe.arms
        ]


def _prepare_pool(recipe: Recipe, pool: Path, out: Path) -> dict[str, Path]:
    """Draw sequences by the hash of their ids, and build shards to train and to validate on."""
    wanted = recipe.pool["validation"] + recipe.pool["sequences"]
    files = {name: out / f"{name}.fasta" for name in ("validation", "train")}
    if not all(file.is_file() for file in files.values()):
        from frugalfm.sequences.readers import stream_sequences

        records = [
            (hashlib.md5(name.encode()).hexdigest(), name, text)
            for batch in stream_sequences(pool, "dna")
            for name, text in zip(
                batch.column("id").to_pylist(), batch.column("sequence").to_pylist(), strict=True
            )
        ]
        if len(records) < wanted:
            raise InputError(f"{pool}: holds {len(records)} sequences, the recipe wants {wanted}")
        records = sorted(records)[:wanted]
        cut = recipe.pool["validation"]
        for name, part in (("validation", records[:cut]), ("train", records[cut:])):
            lines = (f">{identifier}\n{text}\n" for _, identifier, text in part)
            draft = files[name].with_suffix(".tmp")
            draft.write_text("".join(lines))
            draft.rename(files[name])
    window = recipe.pool["window"]
    return {
        name: frugalfm.build(
            file,
            alphabet="dna",
            out=out / f"{name}-shards",
            max_length=window,
            min_length=window // 2,
            ambiguous="drop",
        )
        for name, file in files.items()
    }


def _prepare_model(recipe: Recipe, tokenizer: Path, folder: Path) -> Path:
    """Write config and tokenizer: what a model starts from at random."""
    from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
    from frugalfm.tokens.vocabulary import prepare_dna_tokenizer

    if not (folder / "config.json").is_file():
        words = prepare_dna_tokenizer(tokenizer)
        words.save_pretrained(folder)
        DnaBert2Config(vocab_size=len(words), **recipe.model).save_pretrained(folder)
    return folder


def _run_arm(
    recipe: Recipe,
    arm: Arm,
    seed: int,
    shards: dict[str, Path],
    blank: Path,
    out: Path,
    device: str,
) -> dict[str, Any]:
    made = _folder(out, arm, seed)
    common: dict[str, Any] = {
        "attention": arm.attention,
        "optimizer": arm.optimizer,
        "validation": shards["validation"],
        "seed": seed,
        "device": device,
        "out": made,
    }
    if arm.converts is None:
        options = recipe.train | arm.change | common
        frugalfm.pretrain(shards["train"], model=str(blank), **options)
    else:
        base = _folder(out, next(a for a in recipe.arms if a.name == arm.converts), seed)
        options = recipe.convert | arm.change | common | {"start": arm.start}
        frugalfm.convert(base, data=shards["train"], **options)
    return _measure(recipe, arm, seed, made, shards["validation"], device)


def _folder(out: Path, arm: Arm, seed: int) -> Path:
    return out / f"{arm.slug}-{seed}"


def _measure(
    recipe: Recipe, arm: Arm, seed: int, checkpoint: Path, validation: Path, device: str
) -> dict[str, Any]:
    """Measure a checkpoint, once."""
    path = checkpoint.with_name(f"{checkpoint.name}.json")
    manifest = read_manifest(checkpoint, "checkpoint")
    key = {
        "measure": recipe.measure,
        "weights": manifest["files"]["model.safetensors"]["sha256"],
    }
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["key"] == key:
            return found

    from frugalfm.encoders import load_encoder
    from frugalfm.encoders.devices import choose_device
    from frugalfm.quantization.robustness import assess_robustness
    from frugalfm.tokens.codec import Codec
    from frugalfm.tokens.inputs import sample_encoded

    model, words = load_encoder(checkpoint, device=choose_device(device))
    codec = Codec.from_tokenizer(words)
    drawn = sample_encoded(validation, codec, recipe.measure["sequences"]).tokens
    summary = manifest["summary"]
    found = {
        "key": key,
        "arm": arm.name,
        "seed": seed,
        "loss": summary["validation_loss"],
        "seconds": summary["seconds"],
        "parameters": summary["parameters"],
        "null": summary.get("measures", {}).get("after", {}).get("null"),
        "start_loss": summary.get("measures", {}).get("start", {}).get("loss"),
        "before_loss": summary.get("measures", {}).get("before", {}).get("loss"),
        **assess_robustness(model, codec, drawn, bits=recipe.measure["bits"]),
    }
    write_json(path, found)
    return found

"""From a pool to measured checkpoints, one after the other; what is finished is skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.common import OutOfTime, limit_time
from benchmarks.common_arms import Arm, prepare_course, train_arm
from benchmarks.outliers.recipe import Recipe

from frugalfm.artifacts import read_manifest, write_json

__all__ = ["OutOfTime", "run"]


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
    with limit_time(minutes):
        shards, blank = prepare_course(recipe, pool, tokenizer, out)
        return [
            _run_arm(recipe, arm, seed, shards, blank, out, device)
            for seed in recipe.seeds
            for arm in recipe.arms
        ]


def _run_arm(
    recipe: Recipe,
    arm: Arm,
    seed: int,
    shards: dict[str, Path],
    blank: Path,
    out: Path,
    device: str,
) -> dict[str, Any]:
    made = train_arm(recipe, arm, seed, shards, blank, out, device)
    return _measure(recipe, arm, seed, made, shards["validation"], device)


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

"""From a pool to measured checkpoints, one after the other; what is finished is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common import remember
from benchmarks.common_arms import Arm, prepare_course, train_arm
from benchmarks.outliers.recipe import Recipe

from frugalfm.artifacts import read_manifest

__all__ = ["run"]


def run(
    recipe: Recipe,
    pool: Path,
    tokenizer: Path,
    out: Path,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Train, convert and measure all arms and seeds that are not yet.

    Broken off, it continues with the same call; at most ``save_every`` steps are done again.

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

    Returns
    -------
    list of dict
        One per arm and seed: ``arm, seed, loss, null, avg_kurtosis, ...``.
    """
    shards, blank = prepare_course(recipe, pool, tokenizer, out)
    rows = []
    for seed in recipe.seeds:
        for arm in recipe.arms:
            made = train_arm(recipe, arm, seed, shards, blank, out, device)
            rows.append(_measure(recipe, arm, seed, made, shards["validation"], device))
    return rows


def _measure(
    recipe: Recipe, arm: Arm, seed: int, checkpoint: Path, validation: Path, device: str
) -> dict[str, Any]:
    """Measure a checkpoint, once."""
    manifest = read_manifest(checkpoint, "checkpoint")
    summary = manifest["summary"]
    weights = manifest["files"]["model.safetensors"]["sha256"]

    def find() -> dict[str, Any]:
        from frugalfm.encoders import load_encoder
        from frugalfm.encoders.devices import choose_device
        from frugalfm.quantization.robustness import assess_robustness
        from frugalfm.tokens.codec import Codec
        from frugalfm.tokens.inputs import sample_encoded

        model, words = load_encoder(checkpoint, device=choose_device(device))
        codec = Codec.from_tokenizer(words)
        drawn = sample_encoded(validation, codec, recipe.measure["sequences"]).tokens
        measures = summary.get("measures", {})
        return {
            "arm": arm.name,
            "seed": seed,
            "loss": summary["validation_loss"],
            "seconds": summary["seconds"],
            "parameters": summary["parameters"],
            "null": measures.get("after", {}).get("null"),
            "start_loss": measures.get("start", {}).get("loss"),
            "before_loss": measures.get("before", {}).get("loss"),
            **assess_robustness(model, codec, drawn, bits=recipe.measure["bits"]),
        }

    path = checkpoint.with_name(f"{checkpoint.name}.json")
    return remember(path, {"measure": recipe.measure, "weights": weights}, find)

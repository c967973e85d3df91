"""``frugalfm evaluate``: what a linear probe can read off an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from frugalfm.errors import InputError
from frugalfm.verbs import with_paths

__all__ = ["evaluate"]


@with_paths
def evaluate(
    checkpoint: Path,
    *,
    task: Path,
    out: Path,
    kind: Literal["auto", "classification", "regression", "token"] = "auto",
    pooling: Literal["mean", "cls"] = "mean",
    leaks: Literal["report", "drop", "error"] = "report",
    too_long: Literal["crop", "error"] = "crop",
    train_tokens: int = 50_000,
    batch_tokens: int = 16384,
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Score a linear probe on frozen embeddings on a labelled task.

    Logistic regression for classes and for labels of residues, ridge regression for numbers. The
    penalty is chosen on dev; test is scored once, with 95 % bootstrap intervals over sequences.

    Parameters
    ----------
    checkpoint
        Folder of a trained encoder.
    task
        Folder with train, dev and test, each a .csv, .tsv (also .gz) or .parquet file with the
        columns sequence and label, or sequence and structure (a character a residue, such as
        dot-bracket notation).
    out
        Folder for ``metrics.json`` and ``predictions.parquet``.
    kind
        What is predicted. Inferred: fractional numbers, or more than 50 distinct whole ones, are
        regression; other labels are classes; a column structure is a label for each residue.
    pooling
        Mean of the residues, or the first special token (cls); not for labels of residues.
    leaks
        Dev or test sequences that also occur in an earlier split: count, drop or refuse them.
    too_long
        Sequences longer than the model takes: cut at their end, or refused.
    train_tokens
        For labels of residues: at most so many are trained on, of sequences drawn at random.
    batch_tokens
        Padded tokens of a batch, at most; less needs less memory.
    precision
        Arithmetic of the encoder.
    seed
        Determines the drawn sequences and the intervals.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` and so on.
    overwrite
        Replace a different artifact at `out`.

    Returns
    -------
    Path
        The evaluation.
    """
    import pyarrow.parquet as pq

    from frugalfm.artifacts import open_stage, write_json
    from frugalfm.encoders import load_encoder
    from frugalfm.encoders.checkpoints import check_checkpoint
    from frugalfm.encoders.devices import choose_device
    from frugalfm.probing.embed import Embedder
    from frugalfm.probing.evaluation import evaluate_task
    from frugalfm.progress import progress
    from frugalfm.tasks import find_splits, read_task
    from frugalfm.tokens.codec import Codec

    check_checkpoint(checkpoint)
    for option, value in (("--batch-tokens", batch_tokens), ("--train-tokens", train_tokens)):
        if value < 1:
            raise InputError(f"{option} {value}: must be at least 1")
    chosen = choose_device(device)
    paths = find_splits(task)
    model, tokenizer = load_encoder(checkpoint, device=chosen)
    codec = Codec.from_tokenizer(tokenizer)
    labelled = read_task(
        task,
        codec.alphabet,
        kind=kind,
        max_residues=codec.max_residues,
        too_long=too_long,
        leaks=leaks,
    )
    per_residue = labelled.kind == "token"
    config = {
        "kind": labelled.kind,
        "pooling": "token" if per_residue else pooling,
        "leaks": leaks,
        "too_long": too_long,
        "train_tokens": train_tokens if per_residue else None,
        "precision": precision,
        "seed": seed,
    }
    inputs: dict[str, Path | None] = {"checkpoint": checkpoint, **paths}
    with open_stage(out, "evaluation", config, inputs, overwrite=overwrite) as stage:
        if stage.done:
            print(f"{out}: already there, made by the same call")
            return out
        embedder = Embedder(
            model, codec, "token" if per_residue else pooling, batch_tokens, precision
        )
        residues = {name: int(split.lengths.sum()) for name, split in labelled.splits.items()}
        if per_residue:
            residues["train"] = min(residues["train"], train_tokens)
        with progress(
            total=sum(residues.values()), desc="embed", unit="residue", unit_scale=True
        ) as bar:
            result = evaluate_task(
                embedder, labelled, train_tokens=train_tokens, seed=seed, tick=bar.update
            )
        write_json(stage.work / "metrics.json", result.metrics)
        pq.write_table(result.predictions, stage.work / "predictions.parquet", compression="zstd")
        print(_summarise(out, result.metrics))
        return stage.commit(result.metrics)


def _summarise(out: Path, metrics: dict[str, Any]) -> str:
    from frugalfm.tasks.results import describe_scores, describe_task

    probe = metrics["probe"]
    setting = next(f"{key}={probe[key]:g}" for key in ("C", "alpha") if key in probe)
    lines = [
        f"{out}: {describe_task(metrics)}",
        f"  {probe['name']}, {setting} by {probe['chosen_by']}"
        + ("" if probe["converged"] else "; the solver stopped before it converged"),
    ]
    lines += describe_scores(metrics)
    return "\n".join(lines)

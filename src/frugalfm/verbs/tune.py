"""``frugalfm tune``: an encoder trained on a labelled task, as a whole or by an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from frugalfm.errors import InputError, require_positive
from frugalfm.verbs import with_paths

__all__ = ["tune"]


@with_paths
def tune(
    checkpoint: Path,
    *,
    task: Path,
    out: Path,
    method: Literal["full", "lora", "qlora", "loftq"] = "lora",
    merge: bool = False,
    kind: Literal["auto", "classification", "multilabel", "regression", "token"] = "auto",
    preset: str = "auto",
    pooling: Literal["auto", "mean", "cls"] = "auto",
    rank: int | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    max_tokens: int | None = None,
    warmup_steps: int | None = None,
    weight_decay: float = 0.01,
    batch_size: int = 32,
    batch_tokens: int = 16_384,
    validate_every: int | None = None,
    patience: int = 5,
    leaks: Literal["report", "drop", "error"] = "report",
    too_long: Literal["crop", "error"] = "crop",
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 42,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Tune an encoder on a labelled task: all of it, or a low-rank adapter.

    The weights that do best on dev are kept; test is scored once, at the end, with 95 %
    bootstrap intervals over sequences. A whole model (full, or any method with --merge) loads
    with transformers, an adapter on its checkpoint with frugalfm.training.tuned.load_tuned; both
    then predict the same as here.

    Parameters
    ----------
    checkpoint
        Folder of a pretrained encoder.
    task
        Folder with train, dev and test, each a .csv, .tsv (also .gz) or .parquet file with the
        columns sequence and label, or sequence and structure (a character a residue).
    out
        Folder for the tuned model, ``metrics.json``, ``predictions.parquet`` and ``log.jsonl``.
    method
        ``full`` trains every weight; ``lora`` an adapter on the attention's projections; ``qlora``
        the same over an encoder in 4 bits (NF4); ``loftq`` too, with the adapter starting at what
        4 bits lose. All but full need ``pip install 'frugalfm[tune]'``.
    merge
        Add the adapter to the weights and write a whole model instead of an adapter.
    kind
        What is predicted. Inferred: fractional numbers, or more than 50 distinct whole ones, are
        regression; other labels are classes; a column structure is a label for each residue.
        Several labels a sequence, separated by ``;``, are to be asked for: multilabel.
    preset
        Settings published for a task, such as ``gue/tf``; ``auto`` goes by the names of DNA
        tasks' folders, ``none`` uses the defaults. Options given explicitly come first.
    pooling
        What the head for sequences reads: the ``mean`` of the residues (ESM and RNA-FM; the
        default there) or the first token (``cls``).
    rank
        Of the adapter: 8 by default, 16 for loftq.
    learning_rate
        At its peak: 3e-5 by default for full, 1e-4 for adapters.
    epochs
        Passes over train: the preset's, else 5.
    max_steps
        Optimizer steps, at most.
    max_tokens
        Longest sequence, in tokens with the special ones; longer ones are cut at their end.
    warmup_steps
        Steps over which the learning rate rises: the preset's, else 50 (a tenth of all, at most).
    weight_decay
        Of matrices; biases, LayerNorms and embeddings have none.
    batch_size
        Sequences of one optimizer step.
    batch_tokens
        Padded tokens of a forward pass, at most; less needs less memory and gives the same.
    validate_every
        Steps between scores of dev; an epoch by default.
    patience
        Scores of dev without a better one after which to stop.
    leaks
        Dev or test sequences that also occur in an earlier split: count, drop or refuse them.
    too_long
        Sequences longer than the model takes: cut at their end, or refused.
    precision
        Arithmetic of the forward pass; what is trained is stored in fp32.
    seed
        Determines the head, the adapter, the batches, the dropout and the intervals.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` and so on.
    overwrite
        Replace a different artifact at `out`.

    Returns
    -------
    Path
        The tuned model.
    """
    require_positive(
        seed=seed,
        rank=rank,
        learning_rate=learning_rate,
        epochs=epochs,
        max_steps=max_steps,
        warmup_steps=warmup_steps,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        validate_every=validate_every,
        patience=patience,
    )
    _check(method, merge, rank, max_tokens, weight_decay)

    from dataclasses import asdict

    from frugalfm.artifacts import open_stage
    from frugalfm.encoders import load_encoder
    from frugalfm.encoders.checkpoints import check_checkpoint
    from frugalfm.encoders.devices import choose_device
    from frugalfm.tasks import find_splits, read_task
    from frugalfm.tokens.codec import Codec
    from frugalfm.training.adapters import check_method, merge_adapter
    from frugalfm.training.labelled import check_encodable
    from frugalfm.training.presets import PRESETS, find_preset
    from frugalfm.training.tuned import (
        evaluate_tuned,
        make_tunable,
        save_tuned,
        write_evaluation,
    )
    from frugalfm.training.tuning import TuningRecipe
    from frugalfm.training.tuning import tune as train

    check_checkpoint(checkpoint)
    check_method(method)
    place = choose_device(device)
    paths = find_splits(task)
    encoder, tokenizer = load_encoder(checkpoint)
    codec = Codec.from_tokenizer(tokenizer)
    chosen = find_preset(preset, task, codec.alphabet)
    known = PRESETS.get(chosen or "")
    labelled = read_task(
        task,
        codec.alphabet,
        kind=kind,
        max_residues=codec.max_residues,
        too_long=too_long,
        leaks=leaks,
    )
    if labelled.kind == "token" and max_tokens is not None:
        raise InputError("--max-tokens would cut the labels of residues; cut the task's sequences")
    # The presets count DNABERT-2's tokens, of several residues each.
    if known and max_tokens is None and not codec.per_residue:
        max_tokens = known.max_tokens
    check_encodable(labelled, codec, max_tokens)
    # The preset, then the options on top of it.
    asked = {"epochs": epochs, "max_steps": max_steps, "warmup_steps": warmup_steps}
    schedule = asdict(known) if known else {}
    schedule = {
        name: schedule.get(name) if value is None else value for name, value in asked.items()
    }
    recipe = TuningRecipe(
        **{name: value for name, value in schedule.items() if value is not None},
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate or (3e-5 if method == "full" else 1e-4),
        weight_decay=weight_decay,
        validate_every=validate_every,
        patience=patience,
        seed=seed,
        precision=precision,
    )
    options = {
        "method": method,
        "merge": merge,
        "rank": rank,
        "max_tokens": max_tokens,
        "pooling": pooling,
    }
    policies = {"kind": labelled.kind, "leaks": leaks, "too_long": too_long}
    with open_stage(
        out,
        "tuned",
        policies | options | recipe.identity(),
        {"checkpoint": checkpoint, **paths},
        overwrite=overwrite,
    ) as stage:
        if stage.done:
            print(f"{out}: already there, made by the same call")
            return out
        print(_announce(method, recipe, chosen))
        model = make_tunable(
            encoder, labelled, method, recipe, pooling=pooling, rank=rank, device=place
        )
        tuned = train(model, labelled, recipe, codec, max_tokens)
        if merge:
            model = merge_adapter(model)
        how: dict[str, Any] = {
            **options,
            **recipe.identity(),
            "preset": chosen,
            "effective_batch_size": batch_size,
            **tuned.summarise(),
            "device": str(place),
        }
        result = evaluate_tuned(
            model, labelled, recipe, codec, max_tokens=max_tokens, how={"tuning": how}
        )
        save_tuned(model, tokenizer, stage.work, method)
        write_evaluation(stage.work, result, tuned.history)
        print(_summarise(out, result.metrics))
        return stage.commit(result.metrics)


def _check(
    method: str, merge: bool, rank: int | None, max_tokens: int | None, weight_decay: float
) -> None:
    if weight_decay < 0:
        raise InputError(f"--weight-decay must be at least 0, not {weight_decay}")
    if max_tokens is not None and max_tokens < 3:
        raise InputError(f"--max-tokens must be at least 3, not {max_tokens}")
    if method == "full" and (merge or rank is not None):
        raise InputError("--merge and --rank belong to adapters, and --method full makes none")


def _announce(method: str, recipe: Any, preset: str | None) -> str:
    return (
        f"{method}: seed {recipe.seed}, effective batch size {recipe.batch_size}, "
        f"learning rate {recipe.learning_rate:g}, at most {recipe.epochs} epochs; "
        f"preset {preset or 'none'}"
    )


def _summarise(out: Path, metrics: dict[str, Any]) -> str:
    from frugalfm.tasks.results import describe_scores, describe_task

    tuning = metrics["tuning"]
    lines = [
        f"{out}: {describe_task(metrics)}",
        f"  {tuning['method']}, {tuning['trained_parameters']:,} parameters trained, "
        f"best by {tuning['chosen_by']} at step {tuning['best_step']:,} of {tuning['steps']:,}"
        + (", stopped early" if tuning["stopped_early"] else "")
        + f", {tuning['seconds']:.0f} s",
    ]
    lines += describe_scores(metrics)
    if tuning["shortened"]:
        lines.append(f"  cut to {tuning['max_tokens']} tokens: {tuning['shortened']:,} of train")
    return "\n".join(lines)

"""``frugalfm tune``: an encoder trained on a labelled task, as a whole or by an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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
    kind: Literal[
        "auto",
        "classification",
        "multilabel",
        "regression",
        "token",
        "contact",
        "distance",
        "base-pair",
        "interaction",
        "affinity",
    ] = "auto",
    preset: str = "auto",
    pooling: Literal["auto", "mean", "cls"] = "auto",
    order: Literal["symmetric", "ordered"] = "symmetric",
    start: Literal["probe", "random"] = "probe",
    rank: int | None = None,
    targets: list[str] | None = None,
    learning_rate: float | None = None,
    head_learning_rate: float | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    max_tokens: int | None = None,
    warmup_steps: int | None = None,
    weight_decay: float = 0.01,
    batch_size: int = 32,
    batch_tokens: int = 16_384,
    validate_every: int | None = None,
    patience: int = 5,
    save_every: int = 500,
    sequence_column: str | None = None,
    label_column: str | None = None,
    dev_share: float | None = None,
    test_share: float | None = None,
    leaks: Literal["report", "drop", "error"] = "report",
    too_long: Literal["crop", "error"] = "crop",
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 42,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Tune an encoder on a labelled task: all of it, or a low-rank adapter.

    The head starts as the linear probe of what it reads, so that tuning never ends below that
    probe on dev. The weights that do best on dev are kept; test is scored once, at the end, with
    95 % bootstrap intervals over sequences. A killed tuning continues when the same command is
    given again, and ends with the very weights it would have had.

    A whole model (full, or any method with --merge) loads with transformers, an adapter on its
    checkpoint, and anything for pairs, with frugalfm.training.tuned.load_tuned; all then predict
    the same as here.

    Parameters
    ----------
    checkpoint
        Folder of a pretrained encoder.
    task
        Folder with train, dev (or validation) and test, as for ``frugalfm evaluate``: tables with
        the columns sequence and label; sequence and structure (a character a residue); sequence and
        coordinates or contacts; or sequence_a, sequence_b and label. Or one such table, of which
        shares are held out.
    out
        Folder for the tuned model, ``metrics.json``, ``predictions.parquet`` and ``log.jsonl``.
    method
        ``full`` trains every weight; ``lora`` an adapter on the attention's projections; ``qlora``
        the same over an encoder in 4 bits (NF4); ``loftq`` too, with the adapter starting at what
        4 bits lose. All but full need ``pip install 'frugalfm[tune]'``.
    merge
        Add the adapter to the weights and write a whole model instead of an adapter.
    kind
        What is predicted. Inferred: fractional numbers, or more than 50 distinct whole ones (none
        padded as 007 is), are regression; other labels are classes; a column structure is a label
        for each residue, unless base-pair is asked for; coordinates are contacts, unless distance
        is. Several labels a sequence, separated by ``;``, are to be asked for: multilabel.
    preset
        Settings published for a task, such as ``gue/tf``; ``auto`` goes by the names of DNA
        tasks' folders, ``none`` uses the defaults. Options given explicitly come first.
    pooling
        What the head for sequences reads: the ``mean`` of the residues through a linear layer
        (the default of ESM, RNA-FM, ESM-C, DNABERT-2 and ModernBERT), or the first token through
        the small network that the architecture was published with (``cls``).
    order
        Pairs of sequences: whether the two may be exchanged.
    start
        Where the head starts: at the best linear ``probe`` of what it reads (one pass over at
        most 20,000 training sequences or residues, and some fits), or at ``random``, as published.
        Pairs of positions start at the mean of their separation, labels of residues from tokens
        of several at random.
    rank
        Of the adapter: 8 by default, 16 for loftq.
    targets
        Linears to adapt, by the ends of their names; the attention's projections by default.
    learning_rate
        At its peak. By default those published for a width of 768, times 768 over the model's
        width: 3e-5 for full, 1e-4 for adapters (of narrower models times the square).
    head_learning_rate
        Of the head: by default that of the rest, and ten times as much where no probe starts the
        head (pairs of positions, residues of tokens of several).
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
        Scores of dev without a better one (the start's aside) after which to stop.
    save_every
        Steps between saved states; a kill costs at most so many.
    sequence_column
        Column of the sequences, if it has another name.
    label_column
        Column of the labels, likewise.
    dev_share
        Where there is no file of dev, or one table is all: hold out this share of the training
        rows, such as 0.1, chosen by a hash of each sequence (of either strand of DNA).
    test_share
        The same for test.
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
    from frugalfm.artifacts import open_stage
    from frugalfm.encoders import load_encoder
    from frugalfm.encoders.checkpoints import check_checkpoint
    from frugalfm.encoders.devices import choose_device
    from frugalfm.tasks import Reading, find_splits, read_task
    from frugalfm.tokens.codec import Codec
    from frugalfm.training.adapters import check_method
    from frugalfm.training.settings import TuningOptions
    from frugalfm.training.tuned import tune_task

    options = TuningOptions(
        method=method,
        merge=merge,
        preset=preset,
        pooling=pooling,
        order=order,
        start=start,
        rank=rank,
        targets=tuple(targets or ()),
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        epochs=epochs,
        max_steps=max_steps,
        max_tokens=max_tokens,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        validate_every=validate_every,
        patience=patience,
        save_every=save_every,
        precision=precision,
        seed=seed,
    )
    reading = Reading(sequence_column, label_column, dev_share, test_share)
    check_checkpoint(checkpoint)
    check_method(method)
    place = choose_device(device)
    paths = find_splits(task, reading)
    encoder, tokenizer = load_encoder(checkpoint)
    codec = Codec.from_tokenizer(tokenizer)
    labelled = read_task(
        task,
        codec.alphabet,
        kind=kind,
        max_residues=codec.max_residues,
        too_long=too_long,
        leaks=leaks,
        reading=reading,
    )
    plan = options.plan(task, labelled, codec, encoder.config.hidden_size)
    config: dict[str, Any] = {"kind": labelled.kind, "leaks": leaks, "too_long": too_long}
    config |= {**plan.identity(), **reading.identity()}
    inputs = {"checkpoint": checkpoint, **paths}
    with open_stage(out, "tuned", config, inputs, overwrite=overwrite) as stage:
        if stage.done:
            print(f"{out}: already there, made by the same call")
            return out
        print(plan.describe())
        result = tune_task(
            encoder, tokenizer, labelled, plan, stage.work, state=stage.scratch, device=place
        )
        print(_summarise(out, result.metrics))
        return stage.commit(result.metrics)


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
    if start := tuning["started_from"]:
        metric = tuning["chosen_by"].split()[-1]
        lines.append(
            f"  dev {metric} {metrics['dev'][metric]['value']:.4f}; the probe that the head "
            f"started as had {start['value']:.4f} ({start['seconds']:.0f} s)"
        )
    lines += describe_scores(metrics)
    if tuning["shortened"]:
        lines.append(f"  cut to {tuning['max_tokens']} tokens: {tuning['shortened']:,} of train")
    return "\n".join(lines)

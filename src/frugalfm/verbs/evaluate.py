"""``frugalfm evaluate``: what a linear probe can read off an encoder, on one task or on a suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from frugalfm.errors import InputError, require_positive
from frugalfm.verbs import with_paths

__all__ = ["evaluate"]


@with_paths
def evaluate(
    *checkpoints: Path,
    out: Path,
    task: Path | None = None,
    suite: Literal["gue"] | None = None,
    root: Path | None = None,
    methods: str | None = None,
    seeds: int | None = None,
    max_train: int | None = None,
    max_steps: int | None = None,
    start: Literal["probe", "random"] | None = None,
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
    pooling: Literal["auto", "mean", "cls"] = "auto",
    order: Literal["symmetric", "ordered"] = "symmetric",
    probe: Literal["auto", "attention", "pairs", "both"] = "auto",
    sequence_column: str | None = None,
    label_column: str | None = None,
    dev_share: float | None = None,
    test_share: float | None = None,
    leaks: Literal["report", "drop", "error"] = "report",
    too_long: Literal["crop", "error"] = "crop",
    train_tokens: int = 50_000,
    train_sequences: int | None = None,
    train_pairs: int = 50_000,
    batch_tokens: int = 16384,
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Score a linear probe on frozen embeddings on a labelled task, or probe and tune on a suite.

    Logistic regression for classes, labels of residues, contacts and base pairs, ridge regression
    for numbers and distances. The penalty is chosen on dev; test is scored once, with 95 %
    bootstrap intervals over sequences. Of pairs that share sequences, sequences are drawn, too.

    With --suite gue and --root, every task of GUE that is found there, for each checkpoint, method
    and seed, as one table of Matthews correlations, with what adapters lose against full tuning.
    Everything is checked first. Each cell of the table is an artifact: a killed suite continues,
    and one with more methods, seeds or checkpoints adds to what is there.

    Parameters
    ----------
    checkpoints
        Folder of a trained encoder; for a suite, any number of them, each FOLDER or NAME=FOLDER.
        The others are compared with the first; call them dnabert2, germ and so on to see what
        is published beside.
    task
        Folder with train, dev (or validation) and test, each a .csv, .tsv, .jsonl (also .gz) or
        .parquet file; or one such file, of which shares are held out.
        Columns: sequence and label; sequence and structure (a character a residue, such as
        dot-bracket notation; with it perhaps mask, 1 where the character counts); sequence and
        coordinates (x y z of each residue's C-beta in angstrom, NaN where missing) or contacts
        (pairs of positions from 0); sequence_a, sequence_b and label. Or a folder as FLIP
        publishes it, or the FASTA file of one of its splits.
    out
        Folder for ``metrics.json`` and ``predictions.parquet``; of a suite for ``cells``, each
        with these two, and ``results`` with ``table.md``, ``results.json`` and
        ``results.parquet``.
    suite
        Benchmark to run instead of one task.
    root
        Folder of the suite's tasks, as published (EMP/H3, prom/prom_core_all, tf/0 ...) or flat.
    methods
        For a suite: of probe, full, lora, qlora, loftq, one or several, apart by commas; probe by
        default. All but probe tune as ``frugalfm tune`` does, with the tasks' published presets.
    seeds
        For a suite: tunings of each task, from seed 42 on; 1 by default. From two on, intervals
        are over seeds and test rows, else over test rows alone.
    max_train
        For a suite: training rows of a task, at most, drawn at random.
    max_steps
        For a suite: optimizer steps of a tuning, at most.
    start
        For a suite: where tuned heads start, as for ``frugalfm tune``; the probe by default.
        Published scores are of random starts, from which adapters may lose more.
    kind
        What is predicted. Inferred: fractional numbers, or more than 50 distinct whole ones (none
        padded as 007 is), are regression (of pairs: affinity); other labels are classes (of pairs:
        interaction); a column structure is a label for each residue; coordinates are contacts. To
        be asked for: multilabel (labels apart by ;), distance, and base-pair (from structure).
    pooling
        Mean of the residues, or the first special token (cls); not for labels of residues or
        pairs of them. Auto is the mean, but where a suite tunes an architecture whose own head
        reads the first token only.
    order
        Whether the two of a pair of sequences may be exchanged (features a+b, a*b, |a-b|) or
        their order means something (a, b, a*b).
    probe
        Features of pairs of residues: attention maps (symmetrised, APC), products of embeddings
        (pairs), or both. Auto is attention for contacts, pairs for distances, both for base pairs.
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
        Dev or test sequences (or pairs of them, in either order) that also occur in an earlier
        split: count, drop or refuse them.
    too_long
        Sequences longer than the model takes: cut at their end, or refused.
    train_tokens
        For labels of residues: at most so many are trained on, of sequences drawn at random.
    train_sequences
        For pairs of residues: trained on so many sequences, drawn at random. 20 for attention
        maps alone, as in Rao et al. (2020), and 500 otherwise.
    train_pairs
        For pairs of residues: trained on at most so many, drawn evenly from these sequences.
    batch_tokens
        Padded tokens of a batch, at most; less needs less memory.
    precision
        Arithmetic of the encoder.
    seed
        Determines the drawn sequences and pairs, and the intervals; 0 by default. For a suite the
        first of the seeds.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` and so on.
    overwrite
        Replace a different artifact at `out`.

    Returns
    -------
    Path
        The evaluation, or the suite's results.
    """
    if suite is not None:
        _refuse(
            "--task",
            task=task,
            kind=None if kind == "auto" else kind,
            order=None if order == "symmetric" else order,
            probe=None if probe == "auto" else probe,
            train_tokens=None if train_tokens == 50_000 else train_tokens,
            train_sequences=train_sequences,
            train_pairs=None if train_pairs == 50_000 else train_pairs,
            sequence_column=sequence_column,
            label_column=label_column,
            dev_share=dev_share,
            test_share=test_share,
        )
        return _evaluate_suite(
            checkpoints,
            root,
            out,
            device,
            overwrite,
            methods=tuple(name.strip() for name in (methods or "probe").split(",")),
            seeds=1 if seeds is None else seeds,
            seed=seed,
            max_train=max_train,
            max_steps=max_steps,
            start=start or "probe",
            leaks=leaks,
            too_long=too_long,
            pooling=pooling,
            batch_tokens=batch_tokens,
            precision=precision,
        )
    _refuse(
        "--suite",
        root=root,
        methods=methods,
        seeds=seeds,
        max_train=max_train,
        max_steps=max_steps,
        start=start,
    )
    if task is None or len(checkpoints) != 1:
        raise InputError(
            "give one checkpoint and --task FOLDER, or any number of checkpoints, --suite gue "
            "and --root FOLDER"
        )
    checkpoint = checkpoints[0]
    seed = 0 if seed is None else seed

    import pyarrow.parquet as pq

    from frugalfm.artifacts import open_stage, write_json
    from frugalfm.encoders import load_encoder
    from frugalfm.encoders.checkpoints import check_checkpoint
    from frugalfm.encoders.devices import choose_device
    from frugalfm.probing.embed import Embedder
    from frugalfm.probing.evaluation import count_residues, evaluate_task
    from frugalfm.probing.map_probes import MapPlan, evaluate_maps
    from frugalfm.progress import progress
    from frugalfm.tasks import MAPS, PAIRS, Reading, find_splits, read_task
    from frugalfm.tokens.codec import Codec

    reading = Reading(sequence_column, label_column, dev_share, test_share)
    check_checkpoint(checkpoint)
    require_positive(
        seed=seed,
        batch_tokens=batch_tokens,
        train_tokens=train_tokens,
        train_sequences=train_sequences,
        train_pairs=train_pairs,
    )
    chosen = choose_device(device)
    paths = find_splits(task, reading)
    model, tokenizer = load_encoder(checkpoint, device=chosen)
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
    plan = None
    if labelled.kind in MAPS:
        plan = MapPlan.draw(
            labelled, probe, train_sequences=train_sequences, train_pairs=train_pairs, seed=seed
        )
    config: dict[str, Any] = {
        "kind": labelled.kind,
        "pooling": _choose_pooling(
            pooling, per_residue=labelled.kind == "token" or plan is not None
        ),
        "leaks": leaks,
        "too_long": too_long,
        "train_tokens": train_tokens if labelled.kind == "token" else None,
        "precision": precision,
        "seed": seed,
        **reading.identity(),
    }
    if labelled.kind in PAIRS:
        config["order"] = order
    if plan is not None:
        config |= {"probe": plan.probe, "train_pairs": plan.pairs}
        config["train_sequences"] = len(plan.train)
    inputs: dict[str, Path | None] = {"checkpoint": checkpoint, **paths}
    with open_stage(out, "evaluation", config, inputs, overwrite=overwrite) as stage:
        if stage.done:
            print(f"{out}: already there, made by the same call")
            return out
        embedder = Embedder(model, codec, config["pooling"], batch_tokens, precision)
        residues = plan.count_residues(labelled) if plan else count_residues(labelled, train_tokens)
        with progress(total=residues, desc="embed", unit="residue", unit_scale=True) as bar:
            if plan is not None:
                result = evaluate_maps(embedder, labelled, plan, tick=bar.update)
            else:
                result = evaluate_task(
                    embedder,
                    labelled,
                    train_tokens=train_tokens,
                    order=order,
                    seed=seed,
                    tick=bar.update,
                )
        write_json(stage.work / "metrics.json", result.metrics)
        pq.write_table(result.predictions, stage.work / "predictions.parquet", compression="zstd")
        print(_summarise(out, result.metrics))
        return stage.commit(result.metrics)


def _choose_pooling(asked: Literal["auto", "mean", "cls"], *, per_residue: bool) -> str:
    if per_residue:
        return "token"
    return "mean" if asked == "auto" else asked


def _refuse(where: str, **options: object) -> None:
    """Refuse what was given and belongs elsewhere, rather than ignoring it."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} goes with {where} only")


def _evaluate_suite(
    checkpoints: tuple[Path, ...],
    root: Path | None,
    out: Path,
    device: str,
    overwrite: bool,
    **options: Any,
) -> Path:
    from frugalfm.encoders.devices import choose_device
    from frugalfm.suites import SuiteSettings, name_checkpoints, run_suite

    if root is None:
        raise InputError("--suite gue needs --root, the folder that GUE was unpacked to")
    settings, place = SuiteSettings(**options), choose_device(device)
    named = name_checkpoints(checkpoints)
    return run_suite(named, root, out, settings, device=place, overwrite=overwrite)


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

"""``frugalfm predict``: what a tuned model says of every sequence of an input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from frugalfm.errors import InputError, require_positive
from frugalfm.verbs import with_paths

if TYPE_CHECKING:
    import torch

    from frugalfm.training.predicting import TaskHead, TaskRunner
    from frugalfm.training.prediction_run import PredictionRun

__all__ = ["open_runner", "predict", "read_head"]


@with_paths
def predict(
    checkpoint: Path,
    sequences: Path,
    *,
    out: Path,
    probabilities: bool = False,
    sequence_column: str | None = None,
    too_long: Literal["error", "crop"] = "error",
    base: Path | None = None,
    batch_tokens: int = 16384,
    precision: Literal["fp32", "bf16"] | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Predict with a tuned model, for every sequence and in input order.

    The result has one row a record: its ``id``, and the ``label`` and its ``probability``
    (classes), the labels (several a sequence, joined by ``;``), the ``value`` (numbers), a
    character a residue (labels of residues, base pairs), the likeliest ``contacts``, or the
    ``distances`` of all pairs of residues (angstrom; the upper triangle row by row). Parquet
    names the model, the input and the settings in its schema's metadata; a text file has them
    beside it, in ``FILE.json``.

    The whole input is read and checked first; nothing is kept of it, so that it may be of any
    size. A killed call continues when it is given again, and ends with the very same file.

    Parameters
    ----------
    checkpoint
        What ``frugalfm tune`` made (whole, adapter or merged), a Hugging Face folder of a model
        that classifies sequences or residues (or gives a number), or what was deployed of either.
    sequences
        FASTA, FASTQ, CSV, TSV, JSON lines or Parquet file, or a folder of shards. For pairs of
        sequences a table with the columns ``sequence_a`` and ``sequence_b``, and ``id`` if they
        have names.
    out
        The file to write: .parquet, .csv or .tsv.
    probabilities
        Give those of all classes, too: a column ``probability_CLASS`` each; for labels of residues
        a column of lists, which only Parquet holds.
    sequence_column
        Of tables: ``sequence``, if not given.
    too_long
        Sequences longer than the model takes, or than it was tuned on with --max-tokens: refused,
        or cut at their end, as tuning does.
    base
        Of an adapter: the checkpoint that it adapts, if that is no longer where it was.
    batch_tokens
        Padded tokens of a batch, at most; less needs less memory.
    precision
        Arithmetic of the model: fp32, if not given, or what a deployed one was deployed with.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` and so on; a deployed model runs on the CPU.
    overwrite
        Replace the file at `out` if it was not made by the same call.

    Returns
    -------
    Path
        The file.
    """
    import time

    import frugalfm
    from frugalfm.artifacts import fingerprint
    from frugalfm.destinations import find_place
    from frugalfm.encoders.devices import choose_device
    from frugalfm.training.prediction_file import (
        check_name,
        clear_leftovers,
        is_made,
        make_file,
        open_parts,
    )
    from frugalfm.training.prediction_input import identify_records, survey_records
    from frugalfm.training.prediction_run import PredictionRun, window_size
    from frugalfm.training.prediction_table import PredictionTable
    from frugalfm.training.trunks import find_base

    check_name(out)
    require_positive(batch_tokens=batch_tokens)
    head, own_precision = read_head(checkpoint)
    table = PredictionTable(head, probabilities)
    if table.nested and out.suffix != ".parquet":
        raise InputError(f"{out}: these predictions hold lists; only .parquet does, too")
    if too_long == "crop" and head.by_residue:
        raise InputError("--too-long crop would leave residues without a label; use error")
    written = find_place(out, [checkpoint, sequences, find_base(checkpoint, base)])
    out = written if out.is_symlink() else out
    place = choose_device(_check_device(checkpoint, device))
    settings = {
        "frugalfm": frugalfm.__version__,
        "checkpoint": fingerprint(checkpoint),
        **identify_records(sequences, sequence_column),
        "kind": head.kind,
        "probabilities": str(probabilities),
        "too_long": too_long,
        "batch_tokens": str(batch_tokens),
        "precision": precision or own_precision,
    }
    if is_made(out, settings, overwrite=overwrite):
        clear_leftovers(out)
        print(f"{out}: already there, made by the same call")
        return out
    runner = open_runner(checkpoint, base, head, batch_tokens, precision, place)
    # Reading everything first costs little beside the model, and finds bad records at once.
    survey = survey_records(sequences, runner.codec, head, too_long, sequence_column)
    window = window_size(batch_tokens)
    run = PredictionRun(runner, table, sequences, too_long, survey, window, sequence_column)
    started = time.perf_counter()
    with open_parts(out, settings | {"device": place.type}) as stage:
        tally = make_file(stage, out, table, settings, run.windows)
    print(_describe(out, run, time.perf_counter() - started))
    print(f"  {tally.describe()}")
    return out


def _describe(out: Path, run: PredictionRun, seconds: float) -> str:
    survey = run.survey
    what = "pairs" if run.table.head.of_pairs else "sequences"
    rate = survey.residues * run.done / survey.tokens / seconds
    said = f"{out}: {survey.records:,} {what}, {survey.residues:,} residues, {rate:,.0f} residues/s"
    if run.done < survey.tokens:
        said += f" ({1 - run.done / survey.tokens:.0%} was done before)"
    if survey.cropped:
        said += f"; {survey.cropped:,} sequences cut at their end"
    return said


def read_head(checkpoint: Path) -> tuple[TaskHead, Literal["fp32", "bf16"]]:
    """Tell what a checkpoint predicts and in which precision, before anything heavy is loaded."""
    from frugalfm.deployment.runtime import is_deployed, read_card
    from frugalfm.quantization.subjects import check_subject
    from frugalfm.training.predicting import TaskHead

    remedy = (
        f"{checkpoint}: has no head for a task; `frugalfm tune CHECKPOINT --task DIR --out TUNED` "
        "makes a model that predicts, `frugalfm embed` gives embeddings"
    )
    if is_deployed(checkpoint):
        card = read_card(checkpoint)
        if card["task"] is None:
            raise InputError(f"{remedy}; then deploy the tuned model")
        return _check_names(checkpoint, TaskHead.from_task(card["task"])), card["precision"]
    head = check_subject(checkpoint)
    if head is None:
        raise InputError(remedy)
    return _check_names(checkpoint, head), "fp32"


def _check_names(checkpoint: Path, head: TaskHead) -> TaskHead:
    """Refuse names of residues' classes that a string of one character a residue cannot hold."""
    long = [name for name in head.classes if len(name) != 1]
    if head.kind == "token" and long:
        raise InputError(
            f"{checkpoint}: labels residues as {long[0]!r}, and predictions are a character a "
            "residue; name the classes so, under id2label in its config.json (and then deploy)"
        )
    return head


def _check_device(checkpoint: Path, device: str) -> str:
    from frugalfm.deployment.runtime import is_deployed

    if not is_deployed(checkpoint):
        return device
    if device not in {"auto", "cpu"}:
        raise InputError(f"--device {device}: deployed models run on the CPU; leave it out")
    return "cpu"


def open_runner(
    checkpoint: Path,
    base: Path | None,
    head: TaskHead,
    batch_tokens: int,
    precision: Literal["fp32", "bf16"] | None,
    place: torch.device,
) -> TaskRunner:
    """Load whatever predicts: what was tuned, a foreign model with a head, or one deployed."""
    from frugalfm.deployment.runtime import is_deployed, load_deployed
    from frugalfm.encoders.checkpoints import load_tokenizer, read_kind
    from frugalfm.encoders.devices import limit_batch
    from frugalfm.quantization.subjects import load_subject
    from frugalfm.tokens.codec import Codec
    from frugalfm.training.predicting import (
        DeployedPredictor,
        Predictor,
        TaskRunner,
        TorchPredictor,
    )
    from frugalfm.training.tuned import load_tuned

    predictor: Predictor
    if is_deployed(checkpoint):
        engine = load_deployed(checkpoint, outputs=("logits",), precision=precision)
        predictor = DeployedPredictor(engine)
        tokenizer = load_tokenizer(checkpoint)
    else:
        if read_kind(checkpoint) == "tuned":
            model, tokenizer = load_tuned(checkpoint, base=base, device=place)
        else:
            found = load_subject(checkpoint, device=place)
            model, tokenizer = found.model, found.tokenizer
        predictor = TorchPredictor(model.eval(), precision or "fp32")
    codec = Codec.from_tokenizer(tokenizer)
    return TaskRunner(predictor, head, codec, limit_batch(batch_tokens, place))

"""Quantize an encoder and say what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frugalfm.errors import InputError
from frugalfm.verbs import with_paths

if TYPE_CHECKING:
    import torch

    from frugalfm.quantization.plan import QuantizationPlan
    from frugalfm.quantization.running import Quantized
    from frugalfm.quantization.sites import Site
    from frugalfm.quantization.subjects import Subject
    from frugalfm.tasks.folder import Task

__all__ = ["quantize"]


@with_paths
def quantize(
    checkpoint: Path,
    *,
    data: Path | None = None,
    task: Path | None = None,
    sequence_column: str | None = None,
    out: Path,
    weights: int | None = None,
    activations: int | None = None,
    method: Literal[
        "minmax", "smoothquant", "outlier-suppression", "omniquant", "rtn", "gptq", "nf4"
    ]
    | None = None,
    sites: Literal["linears", "attention", "all"] = "linears",
    tables: bool = False,
    weight_granularity: Literal["tensor", "channel", "group"] | None = None,
    activation_granularity: Literal["tensor", "token", "sequence"] | None = None,
    group_size: int | None = None,
    symmetric_activations: bool | None = None,
    weight_observer: Literal["minmax", "percentile", "mse"] | None = None,
    activation_observer: Literal["minmax", "running", "percentile", "mse"] | None = None,
    percentile: float | None = None,
    rounding: Literal["nearest", "gptq"] | None = None,
    alpha: float | Literal["search"] | None = None,
    epochs: int | None = None,
    deploy: bool = False,
    precision: Literal["fp32", "bf16"] = "bf16",
    calibration_batches: int = 16,
    limit: int = 1024,
    batch_tokens: int = 8192,
    seed: int = 0,
    base: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Find a low-bit scheme for an encoder and measure what it costs.

    Weights and inputs of the linears in the layers and a masked-language head are quantized, and
    more if asked for; everything else stays in floating point and is listed with the reason.
    Execution is simulated (values are rounded to the grid, arithmetic is fp32), so the cost in
    quality is exact and nothing gets faster; --deploy writes a model that is smaller, and faster on
    a CPU. Of a masked-language model the masked loss is measured, on the same held-out positions
    before and after; of a tuned one its task's metrics, or without labels how often it decides
    alike.

    Parameters
    ----------
    checkpoint
        A Hugging Face folder with safetensors weights, or what ``frugalfm tune`` made; an adapter
        is merged in memory.
    data
        Sequences: FASTA, FASTQ, CSV, TSV, Parquet, or a folder of shards. At most twice --limit
        are drawn: one half to calibrate with, the other to evaluate on; with --task all of them
        calibrate.
    task
        Of a tuned model: the folder of its task, to evaluate on, read as tune was told to (names
        of columns, rows held out, leaks). Without --data its training split calibrates.
    sequence_column
        Of tables that --data names: ``sequence``, if not given.
    out
        Folder for quantization.json, scheme.json and scheme.safetensors; with --deploy for the
        deployed model instead of the latter two.
    weights
        Bits of a weight, 2 to 15; 16 leaves weights in floating point. By default 8, with rtn,
        gptq and nf4 4.
    activations
        Bits of a linear's input, 2 to 15; 16 leaves activations in floating point. By default 8,
        with rtn, gptq and nf4 16.
    method
        minmax: ranges alone, as the paper of GERM calls traditional. smoothquant,
        outlier-suppression, omniquant: as published, but for what each module says. rtn, gptq, nf4:
        weights alone. By default minmax; with --deploy smoothquant, which is as fast and loses
        less, if weights and activations both have fewer than 16 bits.
    sites
        linears: what int8 engines run. attention: also queries, keys, probabilities and values.
        all: also embeddings, LayerNorms' outputs, residual sums, the input of a decoder that
        shares the table of embeddings, and the head of a tuned model.
    tables
        Round the table of token embeddings, and with it the weight of a decoder that shares it.
    weight_granularity
        One scale for a whole weight, for each of its output channels, or for each group of a
        channel's inputs. By default tensor with minmax, group with rtn and nf4, else channel.
    activation_granularity
        One fixed scale for a site, or one for each token or sequence, found as it passes. By
        default tensor with minmax, outlier-suppression and --deploy (the fastest), else token.
    group_size
        Inputs that share a scale; they have to divide each weight's inputs. By default the largest
        of 128 (with nf4 64), 64 and 32 that does; if none does, each channel has one scale.
    symmetric_activations
        Leave out zero points of activations, too; weights have none.
    weight_observer
        What a weight's scale is found by: all of its values, all but few, or the least squared
        error.
    activation_observer
        The same for fixed scales of activations; running averages the batches' ranges. By default
        running, with --deploy minmax.
    percentile
        Of the observer percentile: share of the values to keep, in percent; 99.99 by default.
    rounding
        Of weights: each number to the nearest, or by gptq, so that the errors of a row make up for
        each other. By default nearest, with --deploy gptq.
    alpha
        Of smoothquant and omniquant: how much of the difficulty goes to weights, 0 to 1; with
        smoothquant also search, the default with --deploy; else 0.5.
    epochs
        Of omniquant; 10 by default.
    deploy
        Write a folder that holds real low-bit weights and runs on a CPU (OpenVINO), for
        ``frugalfm embed`` and ``frugalfm predict``, instead of the scheme alone. Sums of products
        of 8-bit integers may saturate, and answers be wrong, on x86 CPUs without VNNI (Intel's
        until about 2019, AMD's before Zen 4); for those give --weights 7, which runs as 8 bits
        and cannot, or --weights 16 --activations 16.
    precision
        Of a deployed model, what is not computed with integers: bf16 is faster, fp32 more exact,
        and what a CPU without bf16 computes with anyway. With --weights 16 --activations 16 the
        whole model; bf16 also halves its size.
    calibration_batches
        Batches that the ranges of activations are found with.
    limit
        Sequences to evaluate on, at most.
    batch_tokens
        Padded tokens of a batch, at most; lower it if memory runs out.
    seed
        Determines which sequences are drawn, their split, and the masks.
    base
        Of an adapter: the checkpoint that it adapts, if that has moved.
    device
        auto, cpu, cuda or cuda:N.
    overwrite
        Replace what other settings left in the output folder.

    Returns
    -------
    Path
        The artifact: `out`.

    Raises
    ------
    InputError
        A checkpoint, data or option that cannot be used; too few sequences, or of another
        alphabet than the model's; weights or activations that are not finite.
    """
    from frugalfm.artifacts import open_stage
    from frugalfm.deployment.describing import describe_deployed
    from frugalfm.deployment.support import check_options, choose_method, fit_options
    from frugalfm.deployment.tracing import trace
    from frugalfm.destinations import find_place
    from frugalfm.encoders.devices import choose_device
    from frugalfm.quantization.describing import summarise
    from frugalfm.quantization.methods import METHODS
    from frugalfm.quantization.plan import QuantizationPlan
    from frugalfm.quantization.running import list_own_splits, read_own_task
    from frugalfm.quantization.subjects import check_subject, load_subject, read_tuning
    from frugalfm.training.trunks import find_base

    options: dict[str, Any] = {
        "weights": weights,
        "activations": activations,
        "weight_granularity": weight_granularity,
        "activation_granularity": activation_granularity,
        "group_size": group_size,
        "symmetric_activations": symmetric_activations,
        "weight_observer": weight_observer,
        "activation_observer": activation_observer,
        "percentile": percentile,
        "rounding": rounding,
        "alpha": alpha,
        "epochs": epochs,
    }
    chosen = method or (choose_method(options) if deploy else "minmax")
    if deploy and chosen in METHODS:
        options = fit_options(chosen, options)
    plan = QuantizationPlan(
        method=chosen,
        options=options,
        sites=sites,
        tables=tables,
        calibration_batches=calibration_batches,
        limit=limit,
        batch_tokens=batch_tokens,
        seed=seed,
        sequence_column=sequence_column,
    )
    if deploy:
        check_options(plan.method, plan.settings, plan.sites)
    tuned = check_subject(checkpoint) is not None
    find_place(out, [find_base(checkpoint, base)])
    _check_inputs(tuned, data, task, sequence_column)
    where = choose_device(device)
    tuning = read_tuning(checkpoint)
    splits = {} if task is None else list_own_splits(task, tuning)
    inputs = {"checkpoint": checkpoint, "data": data, **splits}
    given = {name: path for name, path in inputs.items() if path is not None}
    config = plan.identity() | ({"deploy": precision} if deploy else {})
    with open_stage(out, "quantization", config, given, overwrite=overwrite) as stage:
        if stage.done:
            print(f"{out}: already quantized; {summarise(stage.summary)}")
            _repeat(stage.out)
            return stage.out
        subject = load_subject(checkpoint, base=base, device="cpu" if deploy else where)
        # What the engine cannot convert is to fail here, not after the long work.
        graph = trace(subject.model) if deploy else None
        labelled = None if task is None else read_own_task(task, subject, tuning)
        result = _work(subject, plan, data, labelled, where)
        deployed = None
        if deploy:
            deployed = _deploy(subject, graph, result, stage.work, precision)
            deployed |= _score(subject, plan, result, stage.work, labelled)
        content = _write(result, stage.work, deployed)
        del content["quantized"], content["not_quantized"]
        worst = max([0.0, *content.pop("saturation").values()])
        stage.commit(content | {"max_saturation": worst})
    _show(result)
    if deployed:
        print(*describe_deployed(deployed), sep="\n")
    print(f"{out}: written")
    return stage.out


def _check_inputs(tuned: bool, data: Path | None, task: Path | None, column: str | None) -> None:
    if data is None and column is not None:
        raise InputError(
            "--sequence-column is for --data; a task is read as tune was told to: leave it out"
        )
    if not tuned and task is not None:
        raise InputError(
            f"--task {task}: the checkpoint has no head to predict it with; quantize what "
            "`frugalfm tune` makes of it, or give --data alone"
        )
    if data is None and task is None:
        ways = "--task, or sequences with --data" if tuned else "sequences with --data"
        raise InputError(f"there is nothing to calibrate on; give {ways}")


def _work(
    subject: Subject,
    plan: QuantizationPlan,
    data: Path | None,
    task: Task | None,
    device: torch.device,
) -> Quantized:
    import copy
    from dataclasses import replace

    from frugalfm.quantization.running import quantize_subject

    if next(subject.model.parameters()).device.type != device.type:
        # A copy: the engine's graph reads the weights where they are.
        subject = replace(subject, model=copy.deepcopy(subject.model).to(device))
    return quantize_subject(subject, plan, data=data, task=task)


def _deploy(
    subject: Subject,
    graph: Any,
    result: Quantized,
    folder: Path,
    precision: Literal["fp32", "bf16"],
) -> dict[str, Any]:
    from frugalfm.deployment import deploy_scheme
    from frugalfm.deployment.runtime import DEPLOYMENT

    (folder / DEPLOYMENT).unlink(missing_ok=True)  # of a call that was killed
    return deploy_scheme(
        subject.model,
        subject.tokenizer,
        result.scheme,
        folder,
        result.batches,
        precision=precision,
        task=None if subject.head is None else subject.head.describe(),
        graph=graph,
    )


def _score(
    subject: Subject, plan: QuantizationPlan, result: Quantized, folder: Path, task: Task | None
) -> dict[str, Any]:
    """Score what was deployed on the task, as the simulation was."""
    from frugalfm.deployment.measure import measure_task
    from frugalfm.deployment.runtime import load_deployed
    from frugalfm.quantization.task_evaluation import TaskComparison

    if task is None or not isinstance(result.found, TaskComparison) or subject.head is None:
        return {}
    engine = load_deployed(folder, outputs=("logits",))
    longest, most = subject.head.max_tokens, plan.batch_tokens
    found = measure_task(engine, task, subject.codec, max_tokens=longest, batch_tokens=most)
    metric, numbers = result.found.metric, result.found.to_dict()
    own = {"metric": metric, "value": found["test"][metric]["value"]}
    beside = {"fp32": numbers["value"], "simulated": numbers["quantized_value"]}
    return {"task": own | beside | found}


def _write(result: Quantized, folder: Path, deployed: dict[str, Any] | None) -> dict[str, Any]:
    from frugalfm.artifacts import write_json
    from frugalfm.quantization import save_scheme

    content = result.to_dict()
    if deployed is None:
        save_scheme(result.scheme, folder)
    else:
        content["deployed"] = deployed
    write_json(folder / "quantization.json", content)
    return content


def _show(result: Quantized) -> None:
    from frugalfm.quantization.describing import summarise
    from frugalfm.quantization.sites import abbreviate

    scheme, found = result.scheme, result.found
    operands = " and ".join(
        f"{what} {form.bits} bits per {form.granularity}"
        + (f" of {form.group_size}" if form.group_size else "")
        for what, form in (("weight", scheme.weights), ("input", scheme.activations))
        if form
    )
    print(f"quantized ({operands or 'nothing'}):")
    kept = result.survey.sites if scheme.quantizes else ()
    for name in abbreviate(_name_site(site) for site in kept):
        print(f"  {name}")
    print("not quantized:")
    reasons: dict[str, list[str]] = {}
    for place in result.survey.left_out:
        reasons.setdefault(place.reason, []).append(place.name)
    for reason, names in reasons.items():
        print(f"  {reason}:")
        for name in abbreviate(names):
            print(f"    {name}")
    print(summarise(found.to_dict() | {"measured": result.measured}))
    _warn(found.saturating)


def _repeat(folder: Path) -> None:
    """Say again of a finished artifact what its summary line does not."""
    import json

    from frugalfm.deployment.describing import describe_deployed
    from frugalfm.quantization.evaluation import find_saturating

    content = json.loads((folder / "quantization.json").read_text())
    _warn(find_saturating(content["saturation"]))
    if "deployed" in content:
        print(*describe_deployed(content["deployed"]), sep="\n")


def _warn(saturating: dict[str, float]) -> None:
    if saturating:
        site, share = next(iter(saturating.items()))
        print(
            f"warning: {len(saturating)} site(s) saturate on the evaluation data, worst "
            f"{site} with {share:.1%} of its inputs clipped; calibrate on more or other data"
        )


def _name_site(site: Site) -> str:
    """Name a site; where its input has a name of its own, with that."""
    return (
        f"{site.name} (reads the {site.reads})" if site.reads not in {"", "states"} else site.name
    )

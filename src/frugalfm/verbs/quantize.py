"""Quantize an encoder and say what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frugalfm.errors import InputError
from frugalfm.verbs import with_paths

if TYPE_CHECKING:
    from frugalfm.quantization import Comparison, Scheme, Survey

__all__ = ["quantize"]


@with_paths
def quantize(
    checkpoint: Path,
    *,
    data: Path,
    out: Path,
    weights: int = 8,
    activations: int = 8,
    method: Literal["minmax"] = "minmax",
    calibration_batches: int = 16,
    limit: int = 1024,
    batch_tokens: int = 8192,
    seed: int = 0,
    weight_granularity: Literal["tensor", "channel"] = "tensor",
    activation_granularity: Literal["tensor", "token"] = "tensor",
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Find a low-bit scheme for an encoder and measure what it costs.

    Weights and inputs of the linears in the layers and the head are quantized; everything else
    stays in floating point and is listed with the reason. Execution is simulated (values are
    rounded to the grid, arithmetic is fp32), so the cost in quality is exact and nothing gets
    faster. The masked loss is measured on the same held-out positions before and after.

    Parameters
    ----------
    checkpoint
        A Hugging Face folder with safetensors weights.
    data
        Sequences: FASTA, FASTQ, CSV, TSV, Parquet, or a folder of shards. At most twice --limit
        are drawn: one half to calibrate with, the other to evaluate on.
    out
        Folder for quantization.json, scheme.json and scheme.safetensors.
    weights
        Bits of a weight, 2 to 15; 16 leaves weights in floating point.
    activations
        Bits of a linear's input, 2 to 15; 16 leaves activations in floating point.
    method
        minmax: weights symmetric, activations asymmetric, ranges by a running min-max.
    calibration_batches
        Batches that the ranges of activations are found with.
    limit
        Sequences to evaluate on, at most.
    batch_tokens
        Padded tokens of a batch, at most; lower it if memory runs out.
    seed
        Determines which sequences are drawn, their split, and the masks.
    weight_granularity
        One scale for a whole weight, or one for each of its output channels.
    activation_granularity
        One fixed scale for a site, or one for each token, found as it passes.
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
        A checkpoint, data or option that cannot be used; too few sequences; weights or
        activations that are not finite.
    """
    from frugalfm.artifacts import open_stage
    from frugalfm.encoders.checkpoints import check_checkpoint
    from frugalfm.encoders.devices import choose_device

    settings: dict[str, Any] = {
        "weights": weights,
        "activations": activations,
        "weight_granularity": weight_granularity,
        "activation_granularity": activation_granularity,
    }
    sampling = {
        "calibration_batches": calibration_batches,
        "limit": limit,
        "batch_tokens": batch_tokens,
        "seed": seed,
    }
    _check_options(method, **settings)
    if min(calibration_batches, limit, batch_tokens) < 1:
        raise InputError("--calibration-batches, --limit and --batch-tokens are to be at least 1")
    check_checkpoint(checkpoint)
    where = choose_device(device)
    config = {"method": method, **settings, **sampling}
    inputs = {"checkpoint": checkpoint, "data": data}
    stage = open_stage(out, "quantization", config, inputs, overwrite=overwrite)
    with stage:
        if stage.done:
            print(f"{out}: already quantized; {_summarise(stage.summary)}")
            return stage.out
        scheme, survey, found = _work(checkpoint, data, settings, sampling, str(where))
        _write(scheme, survey, found, stage.work)
        content = found.to_dict()
        saturation = content.pop("saturation")
        stage.commit(
            content | {"method": method, "max_saturation": max([0.0, *saturation.values()])}
        )
    _show(scheme, survey, found)
    print(f"{out}: written")
    return stage.out


def _check_options(
    method: str,
    weights: int,
    activations: int,
    weight_granularity: str,
    activation_granularity: str,
) -> None:
    if method != "minmax":
        raise InputError(f"--method {method} is not known; there is: minmax")
    for option, bits in (("weights", weights), ("activations", activations)):
        if not 2 <= bits <= 16:
            raise InputError(f"--{option} {bits}: use 2 to 15 bits, or 16 for floating point")
    if weight_granularity not in {"tensor", "channel"}:
        raise InputError(f"--weight-granularity {weight_granularity}: use tensor or channel")
    if activation_granularity not in {"tensor", "token"}:
        raise InputError(f"--activation-granularity {activation_granularity}: use tensor or token")


def _work(
    checkpoint: Path, data: Path, settings: dict[str, Any], sampling: dict[str, int], device: str
) -> tuple[Scheme, Survey, Comparison]:
    from frugalfm.encoders.checkpoints import load_encoder
    from frugalfm.quantization import compare, quantize_minmax, split_batches, survey_sites
    from frugalfm.tokens.codec import Codec
    from frugalfm.tokens.inputs import sample_encoded

    model, tokenizer = load_encoder(checkpoint, device=device)
    survey = survey_sites(model)
    codec = Codec.from_tokenizer(tokenizer)
    drawn = sample_encoded(data, codec, 2 * sampling["limit"], sampling["seed"])
    try:
        split = split_batches(drawn.tokens, codec, **sampling)
    except InputError as error:
        raise InputError(f"{data}: {error}") from None
    scheme = quantize_minmax(model, split.calibration, **settings)
    return scheme, survey, compare(model, scheme, split.evaluation)


def _write(scheme: Scheme, survey: Survey, found: Comparison, folder: Path) -> None:
    from dataclasses import asdict

    from frugalfm.artifacts import write_json
    from frugalfm.quantization import save_scheme

    save_scheme(scheme, folder)
    content = {
        **found.to_dict(),
        "method": scheme.method,
        "execution": "simulated",
        "weights": asdict(scheme.weights) if scheme.weights else None,
        "activations": asdict(scheme.activations) if scheme.activations else None,
        "quantized": [asdict(site) for site in survey.sites] if scheme.quantizes else [],
        "not_quantized": [asdict(place) for place in survey.left_out],
    }
    write_json(folder / "quantization.json", content)


def _show(scheme: Scheme, survey: Survey, found: Comparison) -> None:
    from frugalfm.quantization.sites import abbreviate

    operands = " and ".join(
        f"{what} {form.bits} bits per {form.granularity}"
        for what, form in (("weight", scheme.weights), ("input", scheme.activations))
        if form
    )
    print(f"quantized ({operands or 'nothing'}):")
    for name in abbreviate(site.name for site in survey.sites) if scheme.quantizes else ():
        print(f"  {name}")
    print("not quantized:")
    reasons: dict[str, list[str]] = {}
    for place in survey.left_out:
        reasons.setdefault(place.reason, []).append(place.name)
    for reason, names in reasons.items():
        print(f"  {reason}:")
        for name in abbreviate(names):
            print(f"    {name}")
    print(_summarise(found.to_dict()))
    if found.saturating:
        site, share = next(iter(found.saturating.items()))
        print(
            f"warning: {len(found.saturating)} site(s) saturate on the evaluation data, worst "
            f"{site} with {share:.1%} of its inputs clipped; calibrate on more or other data"
        )


def _summarise(found: dict[str, Any]) -> str:
    error = found["increase_standard_error"]
    spread = "" if error is None else f" ± {error:.4f}"
    return (
        f"{found['label']} ({found['meaning']}): masked loss {found['loss']:.4f} -> "
        f"{found['quantized_loss']:.4f} nats ({found['increase']:+.4f}{spread}, "
        f"{found['increase_percent']:+.2f} %) on {found['targets']:,} positions of "
        f"{found['sequences']:,} sequences; same choice {found['agreement']:.1%}, "
        f"relative output error {found['output_error']:.4f}"
    )

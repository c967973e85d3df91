"""``frugalfm score``: self-influence of every sequence of some shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from frugalfm.errors import InputError, require_positive
from frugalfm.verbs import with_paths

__all__ = ["score"]

# What a setting decides where an option does not; all else has one default.
_SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"masking": "groups", "reduction": "sqrt", "pad_to": None},
    "paper": {"masking": "none", "reduction": "mean", "pad_to": 1024},
}


@with_paths
def score(
    data: Path,
    *,
    model: Path,
    out: Path,
    setting: Literal["default", "paper"] = "default",
    layers: Literal["head", "all"] = "head",
    head: str | None = None,
    fisher: Literal["diagonal", "rank-1", "projection"] | None = None,
    projection: int = 64,
    subset: int = 2000,
    adapt: bool = True,
    adapt_learning_rate: float = 1e-4,
    masking: Literal["groups", "random", "none"] | None = None,
    mask_groups: int = 7,
    passes: int | None = None,
    pad_to: int | None = None,
    reduction: Literal["sqrt", "mean", "sum"] | None = None,
    damping: float = 1e-8,
    batch_tokens: int = 16_384,
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Score every sequence by its self-influence under a pretrained model.

    The score of a sequence is large where its gradient is large compared with those of a random
    subset (arXiv 2512.12932). Scores are positive, and larger is more influential (the paper's
    released code stores them negative). By default it needs forward passes only. The same command
    continues a killed run. Started more than once at a time (torchrun --nproc-per-node N -m
    frugalfm score ..., or the tasks of an array job), it shares the work, some million residues
    at a time, and gives the same scores; docs/scaling.md tells more.

    Parameters
    ----------
    data
        Shards.
    model
        Checkpoint of a masked-language model.
    out
        The scores: id, row, influence, loss, n_tokens, length of every sequence.
    setting
        default: --masking groups --reduction sqrt. paper: the score as the paper's released code
        computes it, --masking none --reduction mean --pad-to 1024; pads are then most of what
        is scored. Options that are given come before the setting's.
    layers
        head: the weight of the head's first linear layer, which costs no more than forward
        passes. all: all linear layers of trunk and head (an embedding that doubles as decoder is
        left out), which costs a backward pass too and changes much of the top 1 %.
    head
        With --layers head: name of another of the head's linear layers, or of what holds it.
    fisher
        diagonal: as in the paper; the default for the head. rank-1: that diagonal, factored into
        rows and columns; the default for all layers, whose diagonal is as large as the model.
        projection: an estimate of the score under rank-1 by random projections of gradients.
    projection
        With --fisher projection: dimensions that either side of a layer is projected to. More
        cost more, and estimate better.
    subset
        Sequences drawn at random for the Fisher matrix and for the adaptation. More make scores
        steadier; the paper's formula holds for any number.
    adapt
        First train the model for one epoch on the subset, as the paper does. Without it, scores
        of a model that has not seen such data rank worse.
    adapt_learning_rate
        Peak learning rate of that epoch.
    masking
        groups: residues are split into --mask-groups groups, hashed from sequence and position,
        and masked one group at a time: repeats itself exactly. random: each pass masks another
        random 15 %, as in training; one draw ranks noisily, and a sequence without a target
        scores 0. none: nothing is masked, and the model predicts what it sees.
    mask_groups
        With --masking groups: more groups hide less at a time, and cost more passes. 7 hides the
        usual 15 %.
    passes
        Evaluate only so many of the groups (cheaper, but ranks agree less), or draw random masks
        so often (1 by default).
    pad_to
        With --masking none: pad all sequences to so many tokens, attend to the pads, and let
        them and the special tokens count in the loss, as the paper's code does.
    reduction
        A sequence's loss is its sum divided by sqrt(n) (neutral to length), by n (mean: short
        sequences win) or by nothing (sum: long ones win).
    damping
        Added to the Fisher diagonal; a larger one lets common directions weigh more.
    batch_tokens
        Tokens of a batch, pads included; does not change scores beyond rounding.
    precision
        Of the forward passes; bf16 keeps ranks and is faster where the hardware has it.
    seed
        Determines the subset.
    device
        auto (a GPU if there is one; under torchrun and srun one for each process), cpu, cuda,
        cuda:1, ...
    overwrite
        Replace a different artifact at --out.
    """
    require_positive(
        projection=projection,
        subset=subset,
        mask_groups=mask_groups,
        passes=passes,
        pad_to=pad_to,
        damping=damping,
        batch_tokens=batch_tokens,
        adapt_learning_rate=adapt_learning_rate,
        seed=seed,
    )
    if head is not None and layers == "all":
        raise InputError(f"--head {head} names one layer; leave it or --layers all out")
    chosen = _choose(setting, masking=masking, reduction=reduction, pad_to=pad_to)

    import time

    from frugalfm.artifacts import open_stage
    from frugalfm.encoders import load_encoder
    from frugalfm.encoders.devices import assign_device, choose_device
    from frugalfm.influence import (
        Gradients,
        HeadGradients,
        LayerGradients,
        MaskScheme,
        ScoreRecipe,
        score_pool,
    )
    from frugalfm.influence.pool import summarise
    from frugalfm.influence.workers import Claims, share
    from frugalfm.sequences.shards import open_shards
    from frugalfm.tokens.codec import Codec
    from frugalfm.training.data import check_fits

    masks = MaskScheme(chosen["masking"], mask_groups, passes, chosen["pad_to"], seed)
    recipe = ScoreRecipe(
        subset=subset,
        adapt=adapt_learning_rate if adapt else None,
        reduction=chosen["reduction"],
        damping=damping,
        fisher=fisher or ("diagonal" if layers == "head" else "rank-1"),
        projection=projection,
        seed=seed,
        batch_tokens=batch_tokens,
    )
    place = choose_device(assign_device(device))
    shards = open_shards(data)
    encoder, tokenizer = load_encoder(model, device=place)
    codec = Codec.from_tokenizer(tokenizer)
    check_fits(shards, codec)
    masks.check(shards.max_length, codec)
    gradients: Gradients = (
        HeadGradients(encoder, codec, masks=masks, precision=precision, head=head)
        if layers == "head"
        else LayerGradients(encoder, codec, masks=masks, precision=precision)
    )
    identity = {"layers": layers if head is None else head, "precision": precision}
    stage = open_stage(
        out,
        "scores",
        recipe.identity() | masks.identity() | identity,
        {"shards": data, "model": model},
        overwrite=overwrite,
        shared=True,
    )
    with stage:
        if stage.done:
            print(f"{out}: already scored, {_describe(stage.summary)}")
            return out
        started = time.perf_counter()
        scored = 0

        def work(claims: Claims) -> None:
            nonlocal scored
            scored = score_pool(gradients, shards, recipe, stage.work, stage.scratch, claims)

        def describe(workers: int) -> dict[str, Any]:
            return summarise(stage.work) | {
                "subset": min(subset, shards.n_sequences),
                "workers": workers,
                "device": str(place),
                "layers": gradients.layers,
                "seconds": round(time.perf_counter() - started, 1),
            }

        if not share(stage, work, describe):
            print(f"{out}: scored, {scored:,} sequences of it by this process")
            return out
    summary = stage.summary
    together = f"by {summary['workers']} processes, " if summary["workers"] > 1 else ""
    print(f"{out}: scored, {_describe(summary)}, {together}{summary['seconds']:.0f} s")
    return out


def _choose(setting: str, **options: Any) -> dict[str, Any]:
    """Fill options that were not given from the setting; other masks have no use for pads."""
    chosen = {key: _SETTINGS[setting][key] if v is None else v for key, v in options.items()}
    if chosen["masking"] != "none" and options["pad_to"] is None:
        chosen["pad_to"] = None
    return chosen


def _describe(summary: dict[str, Any]) -> str:
    low, middle, high = (summary["influence"][key] for key in ("p10", "p50", "p90"))
    return (
        f"{summary['n_sequences']:,} sequences, influence median {middle:.3g} "
        f"(10th to 90th percentile {low:.3g} to {high:.3g}), mean loss {summary['loss']:.3f}"
    )

"""``frugalfm score``: self-influence of every sequence of some shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from frugalfm.errors import InputError, require_positive
from frugalfm.verbs import with_paths

__all__ = ["score"]


@with_paths
def score(
    data: Path,
    *,
    model: Path,
    out: Path,
    subset: int = 2000,
    adapt: bool = True,
    adapt_learning_rate: float = 1e-4,
    mask_groups: int = 7,
    passes: int | None = None,
    reduction: Literal["sqrt", "mean", "sum"] = "sqrt",
    damping: float = 1e-8,
    batch_tokens: int = 16_384,
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Score every sequence by its self-influence under a pretrained model.

    The score of a sequence is large where its gradient is large compared with those of a random
    subset (arXiv 2512.12932). It needs forward passes only. A killed run continues with the first
    part that it had not finished.

    Parameters
    ----------
    data
        Shards.
    model
        Checkpoint of a masked-language model.
    out
        The scores: id, row, influence, loss, n_tokens, length of every sequence.
    subset
        Sequences drawn at random for the Fisher matrix and for the adaptation. More make scores
        steadier; the paper's formula holds for any number.
    adapt
        First train the model for one epoch on the subset, as the paper does. Without it, scores
        of a model that has not seen such data rank worse.
    adapt_learning_rate
        Peak learning rate of that epoch.
    mask_groups
        Residues are split into so many groups, hashed from sequence and position, and masked one
        group at a time. 7 masks the usual 15 % and repeats itself exactly.
    passes
        Evaluate only so many of the groups: cheaper, but ranks agree less.
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
        auto, cpu, cuda, cuda:1, ...
    overwrite
        Replace a different artifact at --out.
    """
    require_positive(
        subset=subset,
        mask_groups=mask_groups,
        passes=passes,
        damping=damping,
        batch_tokens=batch_tokens,
        adapt_learning_rate=adapt_learning_rate,
        seed=seed,
    )
    if passes is not None and passes > mask_groups:
        raise InputError(f"--passes {passes} is more than --mask-groups {mask_groups}")

    from frugalfm.artifacts import open_stage
    from frugalfm.encoders import load_encoder
    from frugalfm.encoders.devices import choose_device
    from frugalfm.influence import HeadGradients, ScoreRecipe, score_pool
    from frugalfm.sequences.shards import open_shards
    from frugalfm.tokens.codec import Codec
    from frugalfm.training.data import check_fits

    place = choose_device(device)
    shards = open_shards(data)
    encoder, tokenizer = load_encoder(model, device=place)
    codec = Codec.from_tokenizer(tokenizer)
    check_fits(shards, codec)
    gradients = HeadGradients(
        encoder, codec, groups=mask_groups, passes=passes, precision=precision
    )
    recipe = ScoreRecipe(
        subset=subset,
        adapt=adapt_learning_rate if adapt else None,
        reduction=reduction,
        damping=damping,
        seed=seed,
        batch_tokens=batch_tokens,
    )
    stage = open_stage(
        out,
        "scores",
        recipe.identity()
        | {"mask_groups": mask_groups, "passes": gradients.passes, "precision": precision},
        {"shards": data, "model": model},
        overwrite=overwrite,
    )
    with stage:
        if stage.done:
            print(f"{out}: already scored, {_describe(stage.summary)}")
            return out
        summary = score_pool(gradients, shards, recipe, stage.work, stage.scratch)
        summary["device"] = str(place)
        stage.commit(summary)
    print(f"{out}: scored, {_describe(summary)}, {summary['seconds']:.0f} s")
    return out


def _describe(summary: dict[str, Any]) -> str:
    low, middle, high = (summary["influence"][key] for key in ("p10", "p50", "p90"))
    return (
        f"{summary['n_sequences']:,} sequences, influence median {middle:.3g} "
        f"(10th to 90th percentile {low:.3g} to {high:.3g}), mean loss {summary['loss']:.3f}"
    )

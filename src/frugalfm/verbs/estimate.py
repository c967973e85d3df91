"""``frugalfm estimate``: what scoring and pretraining will take on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from frugalfm.errors import InputError, require_positive
from frugalfm.verbs import with_paths

__all__ = ["estimate"]

_EPOCHS = 10


@with_paths
def estimate(
    data: Path,
    *,
    model: str,
    out: Path | None = None,
    sequences: int | None = None,
    budget: str = "1%",
    steps: int | None = None,
    epochs: int | None = None,
    tokenizer: Path | None = None,
    attention: Literal["softmax", "softmax1", "clipped", "gated", "sink"] | None = None,
    layers: Literal["head", "all"] = "head",
    subset: int = 2000,
    mask_groups: int = 7,
    passes: int | None = None,
    adapt: bool = True,
    score_batch_tokens: int = 16_384,
    batch_tokens: int = 16_384,
    pack: int | None = None,
    optimizer: Literal["adamw", "muon"] = "adamw",
    precision: Literal["fp32", "bf16"] = "fp32",
    price_per_hour: float | None = None,
    seconds: float = 30,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Path | None:
    """Estimate time, memory, disk and cost of scoring and pretraining, by trying.

    Runs a few real batches of the pool, of several lengths, through the very code of `score` and
    `pretrain`, and adds up what all batches will take; then prints the way by a coreset beside
    pretraining on the full pool. Run it on the machine that is to do the work, with nothing else
    on it. One process and one device are assumed; pretraining the model to score with is not
    included.

    Parameters
    ----------
    data
        Shards: the pool, or a part of it that is like the rest (then give --sequences).
    model
        What to score with and to pretrain: anything that `pretrain` takes.
    out
        Folder for estimate.json; by default, the table is only printed.
    sequences
        Plan for a pool of so many sequences like these. By default, as many as there are.
    budget
        Of the coreset: a number of sequences, or a percentage of the pool such as 1%.
    steps
        Optimizer steps of pretraining.
    epochs
        Passes over the data, instead of --steps; 10, as in the paper, if neither is given.
    tokenizer
        Folder with the tokenizer of a named size of DNABERT-2.
    attention
        As of `pretrain`.
    layers
        As of `score`, as are all up to --score-batch-tokens.
    subset
        Sequences for the Fisher matrix and the adaptation.
    mask_groups
        Groups that residues are split into.
    passes
        How many of the groups are evaluated.
    adapt
        Whether the model is first adapted to the subset.
    score_batch_tokens
        --batch-tokens of `score`.
    batch_tokens
        Of `pretrain`, as are --pack and --optimizer.
    pack
        Tokens of a row that sequences share.
    optimizer
        AdamW or Muon.
    precision
        Of both.
    price_per_hour
        Of the machine, in any currency; adds a column.
    seconds
        How long to try scoring and training, each; longer where a few batches take longer. More
        is steadier.
    seed
        Of the sample and of random weights.
    device
        auto, cpu, cuda, cuda:1, ...
    overwrite
        Replace a different artifact at --out.

    Returns
    -------
    Path or None
        `out`.

    Raises
    ------
    InputError
        Shards, a model or options that cannot be used.
    """
    require_positive(
        seed=seed,
        sequences=sequences,
        steps=steps,
        epochs=epochs,
        subset=subset,
        mask_groups=mask_groups,
        passes=passes,
        score_batch_tokens=score_batch_tokens,
        batch_tokens=batch_tokens,
        pack=pack,
        price_per_hour=price_per_hour,
        seconds=seconds,
    )
    _check(steps, epochs, pack, batch_tokens)

    from frugalfm.artifacts import open_stage, write_json
    from frugalfm.coreset import parse_budget
    from frugalfm.encoders import open_model
    from frugalfm.encoders.devices import choose_device
    from frugalfm.encoders.packed import check_packable
    from frugalfm.influence import (
        Gradients,
        HeadGradients,
        LayerGradients,
        MaskScheme,
        ScoreRecipe,
    )
    from frugalfm.influence.costs import Cost, as_table
    from frugalfm.influence.estimate import Plan, measure, predict
    from frugalfm.sequences.shards import open_shards
    from frugalfm.tokens.codec import Codec
    from frugalfm.training import Recipe
    from frugalfm.training.data import check_fits

    place = choose_device(device)
    shards = open_shards(data)
    size = sequences or shards.n_sequences
    plan = Plan(
        size,
        parse_budget(budget, size),
        steps,
        epochs if steps or epochs else _EPOCHS,
        subset=subset,
        adapt=adapt,
    )
    if min(plan.budget, shards.n_sequences) < 2:
        raise InputError(f"--budget {budget}: too few sequences to train and validate on")
    masks = MaskScheme("groups", mask_groups, passes)
    encoder, words, source = open_model(model, attention=attention, seed=seed, tokenizer=tokenizer)
    codec = Codec.from_tokenizer(words)
    check_fits(shards, codec)
    if pack is not None:
        check_packable(encoder)
    del encoder
    recipe = ScoreRecipe(
        subset=subset,
        fisher="diagonal" if layers == "head" else "rank-1",
        batch_tokens=score_batch_tokens,
    )
    training = Recipe(
        steps=1,
        batch_tokens=batch_tokens,
        pack=pack,
        optimizer=optimizer,
        precision=precision,
        seed=seed,
    )

    def open_again() -> tuple[Any, Any]:
        made, tokens, _ = open_model(model, attention=attention, seed=seed, tokenizer=tokenizer)
        return made.to(place).eval(), tokens

    def make_gradients(made: Any) -> Gradients:
        kind = HeadGradients if layers == "head" else LayerGradients
        return kind(made, codec, masks=masks, precision=precision)

    def work() -> list[Cost]:
        measured = measure(
            shards, open_again, make_gradients, recipe, training, seconds=seconds, seed=seed
        )
        costs = predict(plan, measured)
        print(f"{size:,} sequences through {model} on {place}:\n{as_table(costs, price_per_hour)}")
        return costs

    if out is None:
        work()
        return None
    config = recipe.identity() | training.identity() | masks.identity()
    config |= vars(plan) | {
        "model": "checkpoint" if source else model,
        "attention": attention,
        "layers": layers,
        "score_batch_tokens": score_batch_tokens,
        "seconds": seconds,
        "price_per_hour": price_per_hour,
        "device": str(place),
    }
    inputs = {"shards": data, "model": source, "tokenizer": tokenizer}
    with open_stage(out, "estimate", config, inputs, overwrite=overwrite) as stage:
        if stage.done:
            print(f"{out}: already estimated; remove it, or choose another --out, to try again")
            return out
        found = {"stages": [cost.as_record(price_per_hour) for cost in work()]}
        write_json(stage.work / "estimate.json", found)
        stage.commit(found)
    return out


def _check(steps: int | None, epochs: int | None, pack: int | None, batch_tokens: int) -> None:
    if steps is not None and epochs is not None:
        raise InputError("give --steps or --epochs, not both")
    if pack is not None and pack > batch_tokens:
        raise InputError(f"--pack {pack} is more than --batch-tokens {batch_tokens}")

"""``frugalfm pretrain``: masked-language modelling on shards or a coreset."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from frugalfm.errors import InputError, require_not_negative, require_positive
from frugalfm.verbs import with_paths

__all__ = ["pretrain"]


@with_paths
def pretrain(
    data: Path,
    *,
    model: str,
    out: Path,
    tokenizer: Path | None = None,
    attention: Literal["softmax", "softmax1", "clipped", "gated", "sink"] | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    batch_tokens: int = 16_384,
    pack: int | None = None,
    optimizer: Literal["adamw", "muon"] = "adamw",
    learning_rate: float = 4e-4,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    flatten: float = 0.0,
    validation: Path | None = None,
    validation_fraction: float = 0.01,
    validate_every: int = 500,
    save_every: int = 500,
    precision: Literal["fp32", "bf16"] = "fp32",
    compiled: bool = False,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Pretrain an encoder by masked-language modelling.

    Give either --steps or --epochs. A killed run continues when the same command is given
    again, and ends with the very weights it would have had.

    Parameters
    ----------
    data
        Shards or a coreset.
    model
        A named size, a transformers config.json, a checkpoint folder to continue from, or a
        folder with config.json and tokenizer only, to start from random weights. RNA: rna-fm,
        rna-fm-small, rna-fm-tiny, rna-fm-nano. Protein: esmc-600m, esmc-300m, esmc-small,
        esmc-tiny, esmc-nano, esm2-650m, esm2-150m, esm2-35m, esm2-8m, esm2-tiny. DNA: dnabert2
        and dnabert2-tiny, which need --tokenizer.
    out
        The checkpoint: weights, config, tokenizer, log.jsonl, model card.
    tokenizer
        Folder with the tokenizer of a named size of DNABERT-2.
    attention
        softmax, or one of those that may attend to nothing: softmax1, sink (softmax1 with a
        learned share per head), gated (softmax with a learned gate per head), clipped (softmax
        with exact zeros, slower). By default the checkpoint's own, else softmax.
    steps
        Optimizer steps.
    epochs
        Passes over the data, instead of --steps.
    batch_tokens
        Tokens of a batch, pads included. Sequences of like length share a batch.
    pack
        Tokens of a row that several sequences share, each attending to itself alone, e.g. 512:
        for a GPU, and for sequences of very different lengths. By default every sequence has a
        row of its own.
    optimizer
        AdamW, or Muon for the matrices inside the blocks and AdamW for the rest.
    learning_rate
        At its peak.
    weight_decay
        Of matrices; biases, LayerNorms and embeddings have none.
    warmup
        Share of the steps over which the learning rate rises; then it decays linearly.
    flatten
        Weight of a penalty on outliers, in nats per excess kurtosis (0.05 is much); 0 for none.
    validation
        Shards to validate on. By default a part of the data is held out.
    validation_fraction
        Share of the data that is held out, at most 2,000 sequences.
    validate_every
        Steps between validations.
    save_every
        Steps between saved states; a kill costs at most so many.
    precision
        Of the arithmetic; weights are fp32 always.
    compiled
        Let torch compile the layers, best with --pack: a minute more at the start, faster on a
        GPU.
    seed
        Determines initial weights, batches and masks.
    device
        auto (a GPU if there is one; under torchrun one for each process), cpu, cuda, cuda:1, ...
    overwrite
        Replace a different artifact at --out.
    """
    if (steps is None) == (epochs is None):
        raise InputError("give either --steps or --epochs")
    require_positive(
        steps=steps,
        epochs=epochs,
        batch_tokens=batch_tokens,
        pack=pack,
        learning_rate=learning_rate,
        validate_every=validate_every,
        save_every=save_every,
        seed=seed,
    )
    if not 0 <= warmup < 1 or not 0 < validation_fraction < 1:
        raise InputError("--warmup must be in [0, 1) and --validation-fraction in (0, 1)")
    require_not_negative(weight_decay=weight_decay, flatten=flatten)
    if compiled and flatten:
        raise InputError("--compiled layers cannot be watched by --flatten; give one of them")
    if pack is not None and pack > batch_tokens:
        raise InputError(f"--pack {pack} is more than --batch-tokens {batch_tokens}")

    from frugalfm.encoders import open_model, save_encoder
    from frugalfm.encoders.anatomy import describe_encoder
    from frugalfm.encoders.devices import assign_device, choose_device
    from frugalfm.encoders.packed import check_packable
    from frugalfm.sequences.shards import open_shards
    from frugalfm.training import Recipe, prepare_data, train
    from frugalfm.training.flatten import penalise_kurtosis
    from frugalfm.training.team import join_team

    place = choose_device(assign_device(device))
    pools = [open_shards(folder) for folder in (data, validation) if folder is not None]
    encoder, words, source = open_model(model, attention=attention, seed=seed, tokenizer=tokenizer)
    if pack is not None:
        check_packable(encoder)
    if compiled:
        describe_encoder(encoder)  # refuses what has no layers that it knows
    recipe = Recipe(
        steps=steps or 0,
        batch_tokens=batch_tokens,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        seed=seed,
        precision=precision,
        pack=pack,
        compiled=compiled,
        save_every=save_every,
        validate_every=validate_every,
    )
    config = recipe.identity() | {
        "model": "checkpoint" if source else model,
        "attention": encoder.config.attention,
        "epochs": epochs,
        "validation_fraction": validation_fraction,
    }
    config |= {"flatten": flatten} if flatten else {}
    inputs = {"data": data, "model": source, "validation": validation, "tokenizer": tokenizer}
    with (
        join_team(place, flatten=flatten) as team,
        team.open(out, "checkpoint", config, inputs, overwrite=overwrite) as stage,
    ):
        if stage.done:
            team.say(f"{out}: already pretrained, {describe_training(stage.summary)}")
            return out
        prepared = team.follow(
            lambda: prepare_data(stage.scratch, words, pools, validation_fraction)
        )
        recipe = recipe.fix_steps(prepared, epochs)
        with penalise_kurtosis(encoder, flatten):
            numbers = train(
                encoder.to(place),
                prepared,
                recipe,
                stage.work,
                state=stage.scratch,
                device=place,
                label=out.name,
                team=team,
            )
        summary = {
            **numbers,
            "parameters": sum(p.numel() for p in encoder.parameters()),
            "device": str(place),
        }
        if team.leads:
            card = _write_card(encoder.config, data, summary)
            save_encoder(encoder.cpu(), words, stage.work, card)
            stage.commit(summary)
            print(f"{out}: pretrained, {describe_training(summary)}, {summary['seconds']:.0f} s")
        team.wait()
    return out


def describe_training(summary: dict[str, Any]) -> str:
    """Say in one line what a finished run came to."""
    return (
        f"{summary['parameters'] / 1e6:.1f}M parameters, {summary['steps']} steps in "
        f"{summary['epochs']} epoch(s), loss {summary['loss']:.4f}, "
        f"validation loss {summary['validation_loss']:.4f}"
    )


def _write_card(config: Any, data: Path, summary: dict[str, Any]) -> str:
    return f"""---
library_name: frugalfm
license: unknown
tags: [biology, masked-language-modelling, {config.attention}]
---
# {config.model_type} encoder pretrained with FrugalFM

{describe_training(summary)}, on `{data.name}`. Attention: `{config.attention}`.

```python
import frugalfm  # registers the attention
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```

Options, inputs and versions are in `manifest.json`, the course of training in `log.jsonl`.
"""

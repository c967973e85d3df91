"""``frugalfm convert``: another attention for a trained encoder, and a short while of training."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frugalfm.errors import InputError, require_not_negative, require_positive
from frugalfm.verbs import with_paths

if TYPE_CHECKING:
    from frugalfm.artifacts import Stage
    from frugalfm.training import Recipe, TrainingData
    from frugalfm.training.team import Team

__all__ = ["convert"]

_MEASURES = "conversion.json"
_LOOKED_AT = 4
"""Batches on which scores are measured for a start, and the null afterwards."""


@with_paths
def convert(
    checkpoint: Path,
    *,
    attention: Literal["softmax", "softmax1", "clipped", "gated", "sink"],
    data: Path,
    steps: int,
    out: Path,
    start: Literal["anneal", "shift", "rescale", "plain"] | None = None,
    anneal: float = 0.5,
    batch_tokens: int = 16_384,
    optimizer: Literal["adamw", "muon"] = "adamw",
    learning_rate: float = 1e-4,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    flatten: float = 0.0,
    validation: Path | None = None,
    validation_fraction: float = 0.01,
    validate_every: int = 500,
    save_every: int = 500,
    limit: int = 256,
    precision: Literal["fp32", "bf16"] = "fp32",
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Path:
    """Give a trained encoder another attention and continue its pretraining for a short while.

    Outliers, masked loss and quantized loss are measured before, at the start, half way and
    after, on sequences that are held out. A killed run continues when the same command is given
    again, and ends with the very weights it would have had. With the checkpoint's own attention
    this is plain continued training: the control at equal compute.

    Parameters
    ----------
    checkpoint
        A Hugging Face folder with safetensors weights, trained with softmax.
    attention
        softmax1 (GERM's, which may attend to nothing), sink (softmax1 with a learned share per
        head), gated (softmax with a learned gate per head), clipped (softmax with exact zeros),
        or softmax for the control.
    data
        Shards or a coreset to continue on.
    steps
        Optimizer steps.
    out
        The checkpoint: weights, config, tokenizer, log.jsonl, conversion.json, model card.
    start
        anneal: from softmax itself, the new attention enters little by little (the default;
        exact, any architecture). shift: key biases that hide the null (exact up to the null that
        is left; not for rotary positions). rescale: values make up for the null on average
        (gated: exact, the default there). plain: swap and see.
    anneal
        Share of the steps over which it enters.
    batch_tokens
        Tokens of a batch, pads included. Sequences of like length share a batch.
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
        Shards to validate and measure on. By default a part of the data is held out.
    validation_fraction
        Share of the data that is held out, at most 2,000 sequences.
    validate_every
        Steps between validations.
    save_every
        Steps between saved states; a kill costs at most so many.
    limit
        Held-out sequences to measure outliers and quantization on, at most; one half calibrates.
    precision
        Of the arithmetic; weights are fp32 always.
    seed
        Determines batches and masks.
    device
        auto (a GPU if there is one; under torchrun one for each process), cpu, cuda, cuda:1, ...
    overwrite
        Replace a different artifact at --out.
    """
    require_positive(
        steps=steps,
        anneal=anneal,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
        validate_every=validate_every,
        save_every=save_every,
        limit=limit,
        seed=seed,
    )
    if not 0 <= warmup < 1 or not 0 < validation_fraction < 1 or anneal > 1:
        raise InputError(
            "--warmup must be in [0, 1), --validation-fraction in (0, 1) and --anneal in (0, 1]"
        )
    require_not_negative(weight_decay=weight_decay, flatten=flatten)

    from frugalfm.encoders import open_model, save_encoder
    from frugalfm.encoders.checkpoints import check_checkpoint
    from frugalfm.encoders.devices import assign_device, choose_device
    from frugalfm.sequences.shards import open_shards
    from frugalfm.training import Recipe, prepare_data
    from frugalfm.training.conversion import check_start
    from frugalfm.training.team import join_team

    place = choose_device(assign_device(device))
    check_checkpoint(checkpoint)
    pools = [open_shards(folder) for folder in (data, validation) if folder is not None]
    model, words, _ = open_model(str(checkpoint))
    stored = model.config.attention
    chosen = check_start(stored, attention, start)
    recipe = Recipe(
        steps=steps,
        batch_tokens=batch_tokens,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        warmup=warmup,
        seed=seed,
        precision=precision,
        save_every=save_every,
        validate_every=validate_every,
    )
    settings: dict[str, Any] = {"attention": attention, "start": chosen, "limit": limit}
    settings |= {"anneal": anneal} if chosen == "anneal" else {}
    settings |= {"flatten": flatten} if flatten else {}
    config = recipe.identity() | settings | {"validation_fraction": validation_fraction}
    inputs = {"checkpoint": checkpoint, "data": data, "validation": validation}
    with (
        join_team(place, flatten=flatten) as team,
        team.open(out, "checkpoint", config, inputs, overwrite=overwrite) as stage,
    ):
        if stage.done:
            team.say(f"{out}: already converted\n{_tabulate(stage.summary)}")
            return out
        prepared = team.follow(
            lambda: prepare_data(stage.scratch, words, pools, validation_fraction)
        )
        made, numbers = _work(model.to(place), prepared, recipe, settings, stage, team)
        summary = {
            **numbers,
            "from": stored,
            "parameters": sum(p.numel() for p in made.parameters()),
            "device": str(place),
        }
        if team.leads:
            card = _write_card(made.config, stored, data, summary)
            save_encoder(made.cpu(), words, stage.work, card)
            stage.commit(summary)
            print(f"{out}: {stored} to {attention}, {steps} steps, {summary['seconds']:.0f} s")
            print(_tabulate(summary))
        team.wait()
    return out


def _work(
    model: Any,
    data: TrainingData,
    recipe: Recipe,
    settings: dict[str, Any],
    stage: Stage,
    team: Team,
) -> tuple[Any, dict[str, Any]]:
    """Swap, train, and measure four times; gives the model and what it came to."""
    from frugalfm.attention.strength import set_strength
    from frugalfm.training import train
    from frugalfm.training.conversion import prepare_start, raise_strength
    from frugalfm.training.flatten import penalise_kurtosis

    kit = _Kit(data, recipe, settings["limit"], stage.work / _MEASURES, measures=team.leads)
    kit.measure("before", model)
    start = settings["start"]
    if settings["attention"] != model.config.attention:
        model = prepare_start(model, settings["attention"], start, kit.batches)
        if start == "anneal":
            # What annealing spares: the new attention at full strength, untrained.
            kit.measure("swapped", model, briefly=True)
    steps = recipe.steps

    def prepare(step: int) -> None:
        if start == "anneal":
            set_strength(model, raise_strength(step, steps, settings["anneal"]))
        if step in {0, steps // 2}:
            kit.measure("start" if step == 0 else "middle", model, briefly=step == 0)

    with penalise_kurtosis(model, settings.get("flatten", 0.0)):
        numbers: dict[str, Any] = train(
            model,
            data,
            recipe,
            stage.work,
            state=stage.scratch,
            device=next(model.parameters()).device,
            label=stage.out.name,
            before_step=prepare,
            team=team,
        )
    set_strength(model, 1.0)
    kit.measure("after", model)
    return model, {**numbers, "measures": kit.found}


class _Kit:
    """What a conversion measures, always on the same sequences; kept on disk as it is found.

    Of several processes one `measures`, while the others wait for it in the next step.
    """

    def __init__(
        self, data: TrainingData, recipe: Recipe, limit: int, path: Path, *, measures: bool
    ) -> None:
        import json

        self._data, self._recipe, self._path, self._measures = data, recipe, path, measures
        rows = data.held_out_rows[:limit]
        self._sequences = [data.held_out[row] for row in rows]
        self.found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    @functools.cached_property
    def batches(self) -> list[Any]:
        """A few batches of held-out sequences."""
        import itertools

        # Scores are held whole for these, so small batches on any device.
        made = self._data.validation_batches(min(self._recipe.batch_tokens, 2048))
        return list(itertools.islice(made, _LOOKED_AT))

    def measure(self, moment: str, model: Any, *, briefly: bool = False) -> None:
        """Measure once; a resumed run finds it done."""
        from frugalfm.artifacts import write_json
        from frugalfm.quantization.robustness import assess_robustness
        from frugalfm.training.conversion import measure_null
        from frugalfm.training.loop import validate

        if moment in self.found or not self._measures:
            return
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        found: dict[str, Any] = {
            "loss": validate(model, self._data, self._recipe, device),
            "null": measure_null(model, self.batches),
        }
        if not briefly:
            found |= assess_robustness(model, self._data.codec, self._sequences)
        model.train(was_training)
        self.found[moment] = found
        write_json(self._path, self.found)


_ROWS = (
    ("masked loss", "loss", ".4f"),
    ("attention to the null", "null", ".4f"),
    ("average kurtosis", "avg_kurtosis", ".3f"),
    ("excess kurtosis", "avg_kurtosis_excess", ".3f"),
    ("max inf-norm, FFN", "max_inf_norm", ".3f"),
    ("excess inf-norm, FFN", "max_inf_norm_excess", ".3f"),
    ("max inf-norm, LayerNorm", "max_inf_norm_layer_norm", ".3f"),
)


def _tabulate(summary: dict[str, Any]) -> str:
    """One column per moment, one row per measure."""
    measures = summary["measures"]
    lines = [f"{'':<24}" + "".join(f"{moment:>10}" for moment in measures)]

    def add(label: str, values: list[float | None], form: str) -> None:
        cells = "".join(f"{'' if v is None else format(v, form):>10}" for v in values)
        lines.append(f"{label:<24}{cells}")

    for label, key, form in _ROWS:
        values = [found.get(key) for found in measures.values()]
        if any(value is not None for value in values):
            add(label, values, form)
    for name in measures["before"]["increase"]:
        values = [found.get("increase", {}).get(name) for found in measures.values()]
        add(f"loss added, {name}", values, "+z.4f")
    return "\n".join(lines)


def _write_card(config: Any, stored: str, data: Path, summary: dict[str, Any]) -> str:
    return f"""---
library_name: frugalfm
license: unknown
tags: [biology, masked-language-modelling, {config.attention}]
---
# {config.model_type} encoder, converted from {stored} to {config.attention} with FrugalFM

Continued for {summary["steps"]} steps on `{data.name}`.

```
{_tabulate(summary)}
```

Rows "loss added" are simulated min-max quantization of weights and activations, in nats a masked
target; coarse is one grid per tensor, fine one per weight channel and token.

```python
import frugalfm  # registers the attention
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```

Options, inputs and versions are in `manifest.json`, the course of training in `log.jsonl`.
"""

"""A tuned model from making to loading: head and adapter on, test scored once, written, read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from frugalfm.artifacts import read_manifest, write_atomically, write_json
from frugalfm.encoders.checkpoints import load_tokenizer, save_encoder
from frugalfm.encoders.heads import Pooling, load_head
from frugalfm.tasks.folder import Task
from frugalfm.tasks.kinds import CLASSES, is_map
from frugalfm.tasks.results import Evaluation, report_predictions
from frugalfm.tokens.codec import Codec
from frugalfm.training.adapters import (
    ADAPTERS,
    Method,
    add_adapter,
    find_misreading,
    load_adapter,
    merge_adapter,
    put_head,
    save_adapter,
    task_type,
)
from frugalfm.training.cards import write_card
from frugalfm.training.labelled import TuningData
from frugalfm.training.map_outputs import evaluate_tuned_maps
from frugalfm.training.pairs import (
    PairModel,
    PairOrder,
    is_pair_folder,
    load_pair_model,
    save_pair_model,
)
from frugalfm.training.quiet import quiet_libraries
from frugalfm.training.settings import TuningPlan
from frugalfm.training.tuning import TuningRecipe, decide, predict, tune

__all__ = [
    "evaluate_tuned",
    "load_tuned",
    "make_tunable",
    "save_tuned",
    "tune_task",
    "write_evaluation",
]


def tune_task(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    plan: TuningPlan,
    folder: Path,
    *,
    state: Path | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Tune an encoder on a task by a plan: all that ``frugalfm tune`` does but for its manifest.

    Parameters
    ----------
    encoder, tokenizer
        Of a checkpoint; the encoder is left as it is.
    task, plan
        What to tune on, and how.
    folder
        Gets the tuned model, ``metrics.json``, ``predictions.parquet`` and ``log.jsonl``.
    state
        Folder for what a killed run resumes from, if it is to be resumed.
    device
        Where to compute.

    Returns
    -------
    Evaluation
        Its metrics have an entry ``tuning``.
    """
    codec = Codec.from_tokenizer(tokenizer)
    recipe = plan.recipe
    with quiet_libraries():
        model = make_tunable(
            encoder,
            task,
            plan.method,
            recipe,
            pooling=plan.pooling,
            rank=plan.rank,
            targets=plan.targets,
            order=plan.order,
            codec=codec,
            device=device,
        )
        tuned = tune(model, task, recipe, codec, plan.max_tokens, state=state)
        if plan.merge:
            model = merge_adapter(model)
        how = {**plan.summarise(), **tuned.summarise(), "device": str(device)}
        result = evaluate_tuned(
            model, task, recipe, codec, max_tokens=plan.max_tokens, how={"tuning": how}
        )
        save_tuned(model, tokenizer, folder, plan.method, encoder.config, result.metrics)
    write_evaluation(folder, result, tuned.history)
    return result


def make_tunable(
    encoder: PreTrainedModel,
    task: Task,
    method: Method,
    recipe: TuningRecipe,
    *,
    pooling: Pooling = "auto",
    rank: int | None = None,
    targets: Sequence[str] = (),
    order: PairOrder = "symmetric",
    codec: Codec | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Give an encoder a head for a task and, but for ``full``, an adapter.

    Parameters
    ----------
    encoder
        A masked-language model; left as it is.
    task, method, recipe
        What to tune on, and how.
    pooling
        Of a head for sequences, as in :func:`~frugalfm.encoders.heads.add_head`.
    rank
        Of the adapter, if not the method's own.
    targets
        Ends of the names of the linears to adapt, if not attention's projections.
    order
        Of pairs of sequences: whether the two may be exchanged.
    codec
        Of the encoder's tokenizer; needed for labels of residues if its tokens hold several.
    device
        Where the model goes.
    """
    model = put_head(encoder, task.kind, task.classes, pooling, order, codec, recipe.seed)
    if method == "full":
        model.to(device)
        return model
    adapted: nn.Module = add_adapter(
        model,
        ADAPTERS[method].changed(rank),
        task_type=task_type(task.kind),
        targets=targets,
        seed=recipe.seed,
        compute=torch.bfloat16 if recipe.precision == "bf16" else torch.float32,
    )
    adapted.to(device)
    return adapted


def evaluate_tuned(
    model: nn.Module,
    task: Task,
    recipe: TuningRecipe,
    codec: Codec,
    *,
    max_tokens: int | None,
    how: dict[str, Any],
    resamples: int = 1000,
) -> Evaluation:
    """Predict dev and test with a finished model; nothing else reads the test split.

    Parameters
    ----------
    model, task, recipe, codec, max_tokens
        As given to :func:`~frugalfm.training.tuning.tune`.
    how
        Entries for the metrics that say how the model was tuned.
    resamples
        Of the bootstrap.
    """
    data = [TuningData.encode(s, task.kind, codec, max_tokens) for s in (task.dev, task.test)]
    if is_map(task.kind):
        return evaluate_tuned_maps(
            model,
            task,
            *data,
            batch_tokens=recipe.batch_tokens,
            precision=recipe.precision,
            how=how,
            resamples=resamples,
            seed=recipe.seed,
        )
    dev, test = (predict(model, part, recipe) for part in data)
    return report_predictions(
        task,
        decide(task.kind, dev),
        decide(task.kind, test),
        _largest_probability(test),
        how=how,
        scores=_rank(task, dev, test),
        resamples=resamples,
        seed=recipe.seed,
    )


def save_tuned(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    method: Method,
    checkpoint: PreTrainedConfig,
    metrics: dict[str, Any],
) -> None:
    """Write a whole model as a Hugging Face folder, an adapter as one of PEFT's, with a card.

    Parameters
    ----------
    model, tokenizer
        What was tuned.
    folder
        Where it goes.
    method
        How it was tuned.
    checkpoint
        Config of the encoder that it was tuned from.
    metrics
        What it achieved, as :func:`evaluate_tuned` tells, for the card.
    """
    model.cpu()
    misreading = None
    if isinstance(model, PreTrainedModel):
        save_encoder(model, tokenizer, folder)
    elif isinstance(model, PairModel):
        save_pair_model(model, tokenizer, folder)
    else:
        misreading = find_misreading(model, checkpoint, method)
        save_adapter(model, folder, method, misreading)
        tokenizer.save_pretrained(folder)
    write_card(folder, model, checkpoint, metrics, misreading)


def write_evaluation(folder: Path, result: Evaluation, history: list[dict[str, Any]]) -> None:
    """Write ``metrics.json``, ``predictions.parquet`` and ``log.jsonl``."""
    write_json(folder / "metrics.json", result.metrics)
    pq.write_table(result.predictions, folder / "predictions.parquet", compression="zstd")
    with write_atomically(folder / "log.jsonl") as handle:
        handle.writelines(json.dumps(line) + "\n" for line in history)


def load_tuned(
    folder: Path, *, base: Path | None = None, device: torch.device | str = "cpu"
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """Load what ``frugalfm tune`` wrote, whole or adapter, ready to predict.

    Parameters
    ----------
    folder
        The tuned model.
    base
        For an adapter: the checkpoint it was trained on, if that has moved since.
    device
        Where the model goes.

    Raises
    ------
    InputError
        No tuned model, or an adapter whose checkpoint is gone or another one.
    """
    read_manifest(folder, "tuned")
    if (Path(folder) / "adapter_config.json").is_file():
        with quiet_libraries():
            return load_adapter(folder, base=base, device=device)
    if is_pair_folder(folder):
        pair, words = load_pair_model(folder)
        return pair.to(device), words
    model = load_head(folder)
    model.to(device)
    return model, load_tokenizer(folder)


def _rank(task: Task, dev: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores that put likelier ones higher: of the second of two classes, or of each label."""
    if task.kind == "multilabel":
        return dev, test
    if task.kind in CLASSES and len(task.classes) == 2:
        return dev[:, 1] - dev[:, 0], test[:, 1] - test[:, 0]
    return None


def _largest_probability(logits: np.ndarray) -> np.ndarray:
    """Softmax of the class that is predicted, shape ``(items,)``."""
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(1 / odds.sum(1), np.float32)

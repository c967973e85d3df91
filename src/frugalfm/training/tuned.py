"""A tuned model from making to loading: head and adapter on, test scored once, written, read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from frugalfm.artifacts import read_manifest, write_atomically, write_json
from frugalfm.encoders.checkpoints import save_encoder
from frugalfm.encoders.heads import Pooling, add_head, load_head
from frugalfm.tasks.folder import Task
from frugalfm.tasks.results import Evaluation, report_predictions
from frugalfm.tasks.splits import Split
from frugalfm.tokens.codec import Codec
from frugalfm.training.adapters import (
    ADAPTERS,
    Method,
    add_adapter,
    load_adapter,
    problem_of,
    save_adapter,
)
from frugalfm.training.labelled import TuningData
from frugalfm.training.tuning import TuningRecipe, decide, predict

__all__ = ["evaluate_tuned", "load_tuned", "make_tunable", "save_tuned", "write_evaluation"]


def make_tunable(
    encoder: PreTrainedModel,
    task: Task,
    method: Method,
    recipe: TuningRecipe,
    *,
    pooling: Pooling = "auto",
    rank: int | None = None,
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
    device
        Where the model goes.
    """
    model: nn.Module = add_head(encoder, problem_of(task.kind), task.classes, recipe.seed, pooling)
    if method == "full":
        model.to(device)
        return model
    adapted: nn.Module = add_adapter(
        model,
        ADAPTERS[method].changed(rank),
        token=task.kind == "token",
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

    def outputs(split: Split) -> np.ndarray:
        return predict(model, TuningData.encode(split, task.kind, codec, max_tokens), recipe)

    test = outputs(task.test)
    return report_predictions(
        task,
        decide(task.kind, outputs(task.dev)),
        decide(task.kind, test),
        _largest_probability(test),
        how=how,
        resamples=resamples,
        seed=recipe.seed,
    )


def save_tuned(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, method: Method
) -> None:
    """Write a whole model as a Hugging Face folder, an adapter as one of PEFT's."""
    model.cpu()
    if isinstance(model, PreTrainedModel):
        save_encoder(model, tokenizer, folder)
    else:
        save_adapter(model, folder, method)
        tokenizer.save_pretrained(folder)


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
        return load_adapter(folder, base=base, device=device)
    tokenizer = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    model = load_head(folder)
    model.to(device)
    return model, tokenizer


def _largest_probability(logits: np.ndarray) -> np.ndarray:
    """Softmax of the class that is predicted, shape ``(items,)``."""
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(1 / odds.sum(1), np.float32)

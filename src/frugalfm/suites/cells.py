"""One cell of a suite: one task, checkpoint, method and seed, probed or tuned into an artifact.

What is run is what ``frugalfm evaluate`` and ``frugalfm tune`` run. Of a tuning the scores, the
predictions and the log are kept, not the model: a suite has hundreds.
"""

from __future__ import annotations

import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from frugalfm.artifacts import Stage, open_stage, read_manifest, write_json
from frugalfm.encoders import load_encoder
from frugalfm.errors import InputError
from frugalfm.probing.embed import Embedder
from frugalfm.probing.evaluation import count_residues, evaluate_task
from frugalfm.progress import progress
from frugalfm.suites.settings import PROBE, SuiteSettings
from frugalfm.tasks import Task, find_splits
from frugalfm.tasks.gue import GueTask
from frugalfm.tasks.metrics import sample_classes
from frugalfm.tasks.results import Evaluation
from frugalfm.tokens.codec import Codec
from frugalfm.training.adapters import Method
from frugalfm.training.presets import PRESETS
from frugalfm.training.settings import TuningOptions
from frugalfm.training.tuned import tune_task

__all__ = ["Cell", "limit_train"]

Reader = Callable[[Codec], Task]


@dataclass(frozen=True)
class Cell:
    """Where a cell is in the table, and where its parts lie.

    Attributes
    ----------
    checkpoint, folder
        Name and folder of the checkpoint.
    task, data
        The task and its folder.
    method, seed
        How, and with which seed.
    settings
        What is the same for all cells.
    out
        The artifact to be.
    """

    checkpoint: str
    folder: Path
    task: GueTask
    data: Path
    method: str
    seed: int
    settings: SuiteSettings
    out: Path

    @property
    def label(self) -> str:
        """Name the cell, for messages."""
        seed = "" if self.method == PROBE else f", seed {self.seed}"
        return f"{self.task.name}, {self.checkpoint}, {self.method}{seed}"

    @property
    def place(self) -> tuple[str, str, str, int]:
        """Where it is in the table."""
        return self.task.name, self.checkpoint, self.method, self.seed

    @property
    def config(self) -> dict[str, Any]:
        """All that decides the result, but for the inputs' content."""
        own = {"task": self.task.name, "method": self.method, "seed": self.seed}
        preset = {} if self.method == PROBE else {"preset": asdict(PRESETS[self.task.preset])}
        return {**own, **preset, **self.settings.identity(self.method)}

    def is_here(self) -> bool:
        """Whether the cell is done, as far as its settings tell.

        Raises
        ------
        InputError
            It was done with other settings.
        """
        if not self.out.exists():
            return False
        found = read_manifest(self.out, "evaluation")["config"]
        other = [key for key, value in self.config.items() if found.get(key) != value]
        if other:
            raise InputError(
                f"{self.out}: was made with another {', '.join(other)}; choose another --out, or "
                "replace what is there with --overwrite"
            )
        return True

    def run(
        self, read: Reader, device: torch.device, *, overwrite: bool
    ) -> tuple[dict[str, Any], bool]:
        """Make the artifact, or find it, or finish it.

        Parameters
        ----------
        read
            Gives the task, checked, for a codec.
        device
            Where to compute.
        overwrite
            Replace one that was made with other settings.

        Returns
        -------
        row : dict
            Of the table; see :func:`frugalfm.suites.results.collect`.
        there : bool
            Whether it was done before.
        """
        inputs = {"checkpoint": self.folder, **find_splits(self.data)}
        with open_stage(self.out, "evaluation", self.config, inputs, overwrite=overwrite) as stage:
            there = stage.done
            if not there:
                self._make(stage, read, device)
            return self._row(stage.summary), there

    def draw(self, resamples: int = 1000) -> np.ndarray:
        """MCC on resampled test rows, shape ``(resamples,)``, of what is done.

        The rows are the same for all cells of a task, and independent of those of other tasks.
        """
        table = pq.read_table(self.out / "predictions.parquet", columns=["label", "prediction"])
        texts = pa.concat_arrays([table[name].combine_chunks() for name in table.column_names])
        true, predicted = np.asarray(texts.dictionary_encode().indices).reshape(2, -1)
        seed = zlib.crc32(self.task.name.encode())
        return sample_classes(true, predicted, resamples=resamples, seed=seed)["mcc"]

    def _make(self, stage: Stage, read: Reader, device: torch.device) -> None:
        started = time.perf_counter()
        if self.method == PROBE:
            result = self._probe(read, device)
        else:
            result = self._tune(stage, read, device)
        write_json(stage.work / "metrics.json", result.metrics)
        pq.write_table(result.predictions, stage.work / "predictions.parquet", compression="zstd")
        seconds = time.perf_counter() - started
        if "tuning" in result.metrics:
            seconds = result.metrics["tuning"]["seconds"]  # before a kill, too
        cell = {"checkpoint": self.checkpoint, "task": self.task.name, "seconds": round(seconds, 1)}
        stage.commit(result.metrics | {"cell": cell})

    def _probe(self, read: Reader, device: torch.device) -> Evaluation:
        settings = self.settings
        model, tokenizer = load_encoder(self.folder, device=device)
        codec = Codec.from_tokenizer(tokenizer)
        task = limit_train(read(codec), settings.max_train)
        embedder = Embedder(
            model, codec, settings.probe_pooling, settings.batch_tokens, settings.precision
        )
        residues = count_residues(task, 0)
        with progress(total=residues, desc="embed", unit="residue", unit_scale=True) as bar:
            return evaluate_task(embedder, task, seed=self.seed, tick=bar.update)

    def _tune(self, stage: Stage, read: Reader, device: torch.device) -> Evaluation:
        settings, preset = self.settings, PRESETS[self.task.preset]
        limits = [n for n in (preset.max_steps, settings.max_steps) if n is not None]
        options = TuningOptions(
            method=cast("Method", self.method),
            preset=self.task.preset,
            pooling=settings.pooling,
            start=settings.start,
            max_steps=min(limits, default=None),
            batch_tokens=settings.batch_tokens,
            precision=settings.precision,
            seed=self.seed,
        )
        encoder, tokenizer = load_encoder(self.folder)
        codec = Codec.from_tokenizer(tokenizer)
        task = limit_train(read(codec), settings.max_train)
        plan = options.plan(self.data, task, codec, encoder.config.hidden_size)
        model = stage.scratch / "model"
        model.mkdir(exist_ok=True)
        result = tune_task(
            encoder, tokenizer, task, plan, model, state=stage.scratch, device=device
        )
        shutil.copy(model / "log.jsonl", stage.work)
        return result

    def _row(self, found: dict[str, Any]) -> dict[str, Any]:
        test, tuning = found["test"], found.get("tuning", {})
        return {
            "task": self.task.name,
            "checkpoint": self.checkpoint,
            "method": self.method,
            "seed": self.seed,
            **{
                f"mcc{end}": test["mcc"][key]
                for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
            },
            "accuracy": test["accuracy"]["value"],
            "macro_f1": test["macro_f1"]["value"],
            "dev_mcc": found["dev"]["mcc"]["value"],
            "train": found["n"]["train"],
            "test": found["n"]["test"],
            "steps": tuning.get("steps"),
            "best_step": tuning.get("best_step"),
            "seconds": found["cell"]["seconds"],
        }


def limit_train(task: Task, rows: int | None, seed: int = 0) -> Task:
    """Keep so many training rows, drawn at random, with at least one of every class.

    What was counted of the whole task stays as it is.

    Raises
    ------
    InputError
        Fewer rows than classes.
    """
    if rows is None or rows >= len(task.train):
        return task
    train, classes = task.train, len(task.classes)
    if rows < classes:
        raise InputError(f"--max-train {rows}: {train.path} has {classes} classes; keep more rows")
    order = np.random.default_rng(seed).permutation(len(train))
    first = np.unique(train.targets[order], return_index=True)[1]
    chosen = np.sort(order[np.concatenate([first, np.delete(np.arange(len(order)), first)])[:rows]])
    few = replace(
        train,
        rows=train.rows[chosen],
        sequences=train.sequences.take(pa.array(chosen)),
        texts=train.texts.take(pa.array(chosen)),
        targets=train.targets[chosen],
    )
    return replace(task, train=few)

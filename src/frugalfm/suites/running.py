"""A suite from folders to a table: all checked first, then a cell at a time, each resumable."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from frugalfm.artifacts import open_stage, write_atomically, write_json
from frugalfm.encoders import load_encoder
from frugalfm.errors import FrugalError, InputError
from frugalfm.progress import progress
from frugalfm.suites.cells import Cell, limit_train
from frugalfm.suites.results import collect
from frugalfm.suites.settings import PROBE, SuiteSettings
from frugalfm.suites.table import describe_findings, render_markdown, render_text
from frugalfm.tasks import Task, read_task
from frugalfm.tasks.gue import GUE, GueFolders, find_gue
from frugalfm.tokens.codec import Codec

__all__ = ["run_suite"]


def run_suite(
    checkpoints: Mapping[str, Path],
    root: Path,
    out: Path,
    settings: SuiteSettings,
    *,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
) -> Path:
    """Run GUE: every task, checkpoint, method and seed that is not done yet.

    Parameters
    ----------
    checkpoints
        By name; the first is what the others are compared with.
    root
        Holds the tasks; see :func:`~frugalfm.tasks.gue.find_gue`.
    out
        Gets ``cells/CHECKPOINT/TASK/METHOD``, each an evaluation, and ``results`` with
        ``table.md``, ``results.json`` and ``results.parquet`` (a row a cell). Another call with
        more methods, seeds or checkpoints adds to the cells.
    settings
        What to run.
    device
        Where to compute.
    overwrite
        Replace cells that were made with other settings.

    Returns
    -------
    Path
        The results.

    Raises
    ------
    InputError
        Anything wrong with a checkpoint or a task, before any of the work; or cells that were
        made with other settings.
    FrugalError
        Some cells failed; the others are done, and in the table.
    """
    folders = find_gue(root)
    longest = {name: _check_checkpoint(folder) for name, folder in checkpoints.items()}
    facts = _check_tasks(folders, min(longest.values()), settings)
    print("\n".join(describe_findings(root, facts, folders)))
    cells = _list_cells(checkpoints, folders, out, settings)
    if not overwrite:
        for cell in cells:
            cell.is_here()
    rows, failed = _run(cells, settings, torch.device(device), overwrite=overwrite)
    done = [cell for cell in cells if cell.label not in failed]
    results = collect(
        rows,
        draws={cell.place: cell.draw() for cell in done},
        suite={
            "suite": "gue",
            "of": len(GUE),
            "tasks": facts,
            "missing": list(folders.missing),
            "strangers": [path.relative_to(root).as_posix() for path in folders.strangers],
            "methods": list(settings.methods),
            "seeds": settings.seeds,
            "limits": settings.limits,
            "leaks": settings.leaks,
            "start": settings.start,
            "failed": failed,
        },
        checkpoints=list(checkpoints),
    )
    folder = _write(out / "results", results, rows, done)
    print(f"\n{render_text(results)}\n{folder / 'table.md'}: written")
    if failed:
        label, error = next(iter(failed.items()))
        raise FrugalError(
            f"{len(failed)} of {len(cells)} cells failed, the first being {label} ({error}); "
            "the same command tries them again"
        )
    return folder


def _check_checkpoint(folder: Path) -> int:
    """Load a checkpoint to see that it can be; return the longest sequence that it takes."""
    model, tokenizer = load_encoder(folder)
    del model
    codec = Codec.from_tokenizer(tokenizer)
    if codec.alphabet != "dna":
        raise InputError(f"{folder}: reads {codec.alphabet}, and GUE is DNA")
    return codec.max_residues


def _check_tasks(
    folders: GueFolders, max_residues: int, settings: SuiteSettings
) -> dict[str, dict[str, Any]]:
    """Read every task to the last line; keep what is to be told of each."""
    facts, wrong = {}, []
    with progress(folders.found.items(), desc="check", unit="task") as bar:
        for task, folder in bar:
            try:
                found = _read(folder, max_residues, settings)
                limit_train(found, settings.max_train)
            except InputError as error:
                wrong.append(str(error))
                continue
            facts[task.name] = {
                "folder": str(folder),
                "preset": task.preset,
                "classes": len(found.classes),
                "n": {name: len(split) for name, split in found.splits.items()},
                "repeats": found.repeats,
                "dropped": found.dropped,
                "cropped": found.cropped,
            }
    _read.cache_clear()
    if wrong:
        raise InputError("\n".join(wrong))
    return facts


@lru_cache(maxsize=1)
def _read(folder: Path, max_residues: int, settings: SuiteSettings) -> Task:
    return read_task(
        folder,
        "dna",
        kind="classification",
        max_residues=max_residues,
        too_long=settings.too_long,
        leaks=settings.leaks,
    )


def _list_cells(
    checkpoints: Mapping[str, Path], folders: GueFolders, out: Path, settings: SuiteSettings
) -> list[Cell]:
    """Task by task, so that what is done so far can be compared."""
    return [
        Cell(
            name,
            folder,
            task,
            data,
            method,
            seed,
            settings,
            out
            / "cells"
            / name
            / task.name.replace("/", "-")
            / (PROBE if method == PROBE else f"{method}-seed{seed}"),
        )
        for task, data in folders.found.items()
        for name, folder in checkpoints.items()
        for method in settings.methods
        for seed in settings.seeds_of(method)
    ]


def _run(
    cells: list[Cell], settings: SuiteSettings, device: torch.device, *, overwrite: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run all cells; one that fails is left out, and told."""
    rows, failed = [], {}
    for number, cell in enumerate(cells, 1):
        start = f"[{number:{len(str(len(cells)))}}/{len(cells)}] {cell.label}:"

        def read(codec: Codec, data: Path = cell.data) -> Task:
            return _read(data, codec.max_residues, settings)

        try:
            row, there = cell.run(read, device, overwrite=overwrite)
        except InputError:
            raise
        except FrugalError as error:
            failed[cell.label] = str(error)
            print(f"{start} failed: {error}", flush=True)
            continue
        rows.append(row)
        how = "already there" if there else f"{row['seconds']:.0f} s"
        print(f"{start} MCC {row['mcc']:.3f} ({how})", flush=True)
        if not there:
            gc.collect()  # models are full of cycles, and would pile up on the device
    _read.cache_clear()
    return rows, failed


def _write(
    out: Path, results: dict[str, Any], rows: list[dict[str, Any]], cells: list[Cell]
) -> Path:
    """Write what the cells add up to; that is always replaced."""
    config = {key: results[key] for key in ("checkpoints", "missing", "failed")}
    inputs: dict[str, Path | None] = {cell.label: cell.out for cell in cells}
    with open_stage(out, "suite", config, inputs, overwrite=True) as stage:
        if stage.done:
            return stage.out
        write_json(stage.work / "results.json", results)
        if rows:
            pq.write_table(pa.Table.from_pylist(rows), stage.work / "results.parquet")
        with write_atomically(stage.work / "table.md") as handle:
            handle.write(render_markdown(results))
        return stage.commit({"averages": results["averages"], "comparison": results["comparison"]})

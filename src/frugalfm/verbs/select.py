"""``frugalfm select``: choose a coreset by its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from frugalfm.artifacts import fingerprint, open_stage, read_manifest, write_json
from frugalfm.errors import InputError
from frugalfm.verbs import with_paths

__all__ = ["select"]

_REPORT = "occupancy.json"


@with_paths
def select(
    scores: Path,
    *,
    budget: str,
    strategy: Literal["top-influence", "top-influence-by-length", "coverage", "random"],
    out: Path,
    data: Path | None = None,
    seed: int = 0,
    strata: int = 50,
    drop_hardest: float = 0.1,
    overwrite: bool = False,
) -> Path:
    """Choose a coreset: exactly the budget, by the scores of the sequences.

    The result is again shards, for any command that takes shards. Beside them lie
    selection.parquet (id, row, influence, stratum) and occupancy.json, which says how much was
    taken from which part of the pool; a short form of it is printed. The choice depends on ids,
    scores and seed only, and 200 million scores take less than 2 GB of memory.

    Parameters
    ----------
    scores
        Folder that `score` made.
    budget
        How many sequences: a number, or a percentage of the pool such as 1%.
    strategy
        top-influence: the highest influence. top-influence-by-length: the same inside length bins
        (each sqrt(2) times as long as the one before), in proportion to the bins, so that short
        sequences do not win by being short. coverage: an even draw from equal-width strata of the
        influence, without the hardest sequences (coverage-centric influence, arXiv 2512.12932).
        random: uniform, whatever the scores.
    out
        Folder to make.
    data
        The shards that were scored, if they are no longer where they were.
    seed
        Seed of the draws, also of those among equal influences.
    strata
        Of coverage: number of strata.
    drop_hardest
        Of coverage: share of the pool, of highest influence, that is set aside first.
    overwrite
        Replace whatever is at `out`.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        Scores that are damaged, not finite or not of these shards; a budget that cannot be met.
    """
    from frugalfm.coreset import copy_rows, parse_budget, write_selection
    from frugalfm.coreset.report import as_text
    from frugalfm.sequences.shards import open_shards

    manifest = read_manifest(scores, "scores")
    files = _score_files(scores, manifest)
    data = _scored_shards(scores, manifest, data)
    shards = open_shards(data)
    options: dict[str, Any] = {
        "strategy": strategy,
        "budget": parse_budget(budget, shards.n_sequences),
        "seed": seed,
        "strata": strata,
        "drop_hardest": drop_hardest,
    }
    config = options | {"alphabet": shards.alphabet}
    inputs = {"scores": scores, "shards": data}
    stage = open_stage(out, "coreset", config, inputs, overwrite=overwrite)
    with stage:
        if stage.done:
            print(f"{out}: already there, made by this call")
            print(as_text(json.loads((out / _REPORT).read_text())))
            return out
        selection = stage.work / "selection.parquet"
        report = write_selection(files, selection, **options, scratch=stage.scratch)
        if report["pool"]["sequences"] != shards.n_sequences:
            raise InputError(
                f"{scores}: holds {report['pool']['sequences']} scores for the "
                f"{shards.n_sequences} sequences of {data}; score them again"
            )
        summary = copy_rows(shards, selection, stage.work)
        write_json(stage.work / _REPORT, report)
        text = as_text(report)
        stage.commit(summary | {"strategy": strategy, "report": text.splitlines()})
    print(text)
    return out


def _score_files(scores: Path, manifest: dict[str, Any]) -> list[Path]:
    """List the parts, all of them intact: a changed bit in a score would go unnoticed later."""
    files = []
    for name in sorted(manifest["files"]):
        if name.endswith(".parquet"):
            files.append(scores / name)
            if fingerprint(files[-1]) != manifest["files"][name]["sha256"]:
                raise InputError(f"{files[-1]}: changed since it was made; score again")
    return files


def _scored_shards(scores: Path, manifest: dict[str, Any], data: Path | None) -> Path:
    """Find the shards that were scored, and make sure that they are the same still."""
    recorded = manifest["inputs"].get("shards")
    if recorded is None:
        raise InputError(f"{scores}: does not say which shards were scored; score again")
    folder = Path(recorded["path"]) if data is None else Path(data)
    if not folder.is_dir():
        raise InputError(f"{folder}: the scored shards are not there; say where with --data")
    if fingerprint(folder) != recorded["sha256"]:
        raise InputError(
            f"{folder}: not the shards that {scores} was made from, or changed since; "
            "give those with --data, or score these"
        )
    return folder

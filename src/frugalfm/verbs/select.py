"""``frugalfm select``: choose a coreset by its scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frugalfm.artifacts import fingerprint, open_stage, read_manifest, write_json
from frugalfm.errors import InputError, require_positive
from frugalfm.verbs import with_paths

if TYPE_CHECKING:
    from frugalfm.coreset import SourceColumn
    from frugalfm.sequences.shards import Shards

__all__ = ["select"]

_REPORT, _FIGURE = "occupancy.json", "selection.png"
_COMPOSITION = (
    "pool", "chosen", "score_deciles", "length_bins", "sources", "clusters", "not_eligible"
)  # fmt: skip


@with_paths
def select(
    scores: Path,
    *,
    budget: str,
    strategy: Literal[
        "top-influence",
        "top-influence-by-length",
        "coverage",
        "coverage-log",
        "top-loss",
        "middle-loss",
        "bottom-loss",
        "random",
    ],
    out: Path,
    data: Path | None = None,
    seed: int = 0,
    strata: int = 50,
    drop_hardest: float = 0.1,
    clusters: Path | None = None,
    max_per_cluster: int | None = None,
    min_complexity: float | None = None,
    source: str | None = None,
    groups: Path | None = None,
    mixture: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Choose a coreset: exactly the budget, by the scores of the sequences.

    The result is again shards, for any command that takes shards. Beside them lie
    selection.parquet (id, row, influence, stratum), occupancy.json, which says how much was taken
    from which part of the pool, and selection.png, which shows it; a short form is printed. First
    what may not be chosen is taken out (--min-complexity, --max-per-cluster), then the budget is
    shared among sources (--mixture), then the strategy chooses from what remains of each. The
    choice depends on ids, scores and seed only, and 200 million scores take less than 2 GB of
    memory.

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
        coverage-log: the same with strata of the logarithm; influences have heavy tails, and
        then equal-width strata are nearly all empty. top-loss, middle-loss, bottom-loss: the
        highest losses, those around the median, the lowest: what a model's own loss chooses,
        without gradients, as a baseline. random: uniform, whatever the scores.
    out
        Folder to make.
    data
        The shards that were scored, if they are no longer where they were.
    seed
        Seed of the draws, also of those among equal values.
    strata
        Of coverage and coverage-log: number of strata.
    drop_hardest
        Of coverage and coverage-log: share of the pool, of highest influence, that is set aside
        first.
    clusters
        Folder that `cluster` made of the same shards.
    max_per_cluster
        Choose at most so many of a cluster of similar sequences, so that one large family cannot
        fill the coreset: the best by the strategy's own score where it takes the highest (or
        lowest), else at random.
    min_complexity
        Choose no sequence of lower complexity (0 to 1), such as repeats; needs --clusters.
    source
        Column that says where a sequence comes from, of the shards or of --groups; the report
        then counts sources too.
    groups
        CSV, TSV or Parquet file with the columns id and --source, if the shards lack that column.
    mixture
        How sources share the budget: proportional to what they hold; equal; or weights such as
        rfam=2,mirbase=1. By default sources do not matter.
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
    require_positive(seed=seed, max_per_cluster=max_per_cluster)
    if groups is not None and source is None:
        raise InputError("--groups needs --source, the column of that file to use")

    from frugalfm.coreset import Choice, copy_rows, parse_budget, write_selection
    from frugalfm.coreset.report import as_text
    from frugalfm.reporting.selection_figure import draw_selection
    from frugalfm.sequences.shards import open_shards

    manifest = read_manifest(scores, "scores")
    files = _intact_parts(scores, manifest)
    data = _scored_shards(scores, manifest, data)
    shards = open_shards(data)
    options: dict[str, Any] = {
        "strategy": strategy,
        "budget": parse_budget(budget, shards.n_sequences),
        "seed": seed,
        "strata": strata,
        "drop_hardest": drop_hardest,
        "max_per_cluster": max_per_cluster,
        "min_complexity": min_complexity,
        "mixture": mixture,
    }
    cluster_files = [] if clusters is None else _cluster_parts(clusters, data)
    inputs = {"scores": scores, "shards": data, "clusters": clusters, "groups": groups}
    config = options | {"source": source, "alphabet": shards.alphabet}
    with open_stage(out, "coreset", config, inputs, overwrite=overwrite) as stage:
        if stage.done:
            print(f"{out}: already there, made by this call")
            print(as_text(json.loads((out / _REPORT).read_text())))
            return out
        selection = stage.work / "selection.parquet"
        report = write_selection(
            files,
            selection,
            Choice(**options),
            clusters=cluster_files,
            sources=None if source is None else _sources(shards, source, groups),
            scratch=stage.scratch,
            rows=shards.n_sequences,
        )
        summary = copy_rows(shards, selection, stage.work)
        write_json(stage.work / _REPORT, report)
        draw_selection(report, stage.work / _FIGURE)
        text = as_text(report)
        summary |= {"strategy": strategy, "report": text.splitlines()}
        stage.commit(summary | {"composition": {name: report[name] for name in _COMPOSITION}})
    print(text)
    return out


def _intact_parts(folder: Path, manifest: dict[str, Any]) -> list[Path]:
    """List the parts, all of them intact: a changed bit would go unnoticed later."""
    files = []
    for name in sorted(manifest["files"]):
        if name.endswith(".parquet"):
            files.append(folder / name)
            if fingerprint(files[-1]) != manifest["files"][name]["sha256"]:
                raise InputError(f"{files[-1]}: changed since it was made; make {folder} again")
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


def _cluster_parts(clusters: Path, data: Path) -> list[Path]:
    """List the parts of some clusters, which must be those of the scored shards."""
    manifest = read_manifest(clusters, "clusters")
    recorded = manifest["inputs"].get("shards")
    if recorded is not None and recorded["sha256"] != fingerprint(data):
        raise InputError(f"{clusters}: not made from the shards that were scored; cluster {data}")
    parts = _intact_parts(clusters, manifest)
    return [part for part in parts if part.name.startswith("part-")]


def _sources(shards: Shards, column: str, table: Path | None) -> SourceColumn:
    from frugalfm.coreset import SourceColumn

    if table is not None and not table.is_file():
        raise InputError(f"{table}: no such file (--groups)")
    return SourceColumn(column, [part.path for part in shards.parts], table)

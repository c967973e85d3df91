"""``frugalfm cluster``: homology clusters and complexity of every sequence of some shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from frugalfm.errors import InputError, require_positive
from frugalfm.verbs import with_paths

__all__ = ["cluster"]


@with_paths
def cluster(
    data: Path,
    *,
    out: Path,
    method: Literal["auto", "minhash", "mmseqs"] = "auto",
    min_identity: float | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Group sequences by homology, and measure how repetitive each is.

    What `select --clusters` reads, to keep one family, or low-complexity sequences, from filling
    a coreset. Every member of a cluster is like its longest sequence; a sequence that is like none
    is a cluster of its own. Needs no model.

    Parameters
    ----------
    data
        Shards.
    out
        The clusters: row, id, cluster (0 is the largest) and complexity (0 for a run of one
        letter, 1 for no repetition at all) of every sequence.
    method
        mmseqs runs the linclust of MMseqs2, which aligns; minhash is FrugalFM's own, which
        compares along shared k-mers and is faster; auto is mmseqs where it is on the PATH.
    min_identity
        Share of letters that a member has in common with its cluster's longest sequence: with
        minhash of all the member's letters, with mmseqs of those that align, which must be 80 %.
        By default 0.7 for nucleotides and 0.4 for proteins.
    seed
        Of minhash: decides which k-mers are looked at.
    overwrite
        Replace a different artifact at --out.

    Returns
    -------
    Path
        The clusters: `out`.

    Raises
    ------
    InputError
        Data or options that cannot be used, or mmseqs asked for and not there.
    """
    require_positive(min_identity=min_identity, seed=seed)
    if min_identity is not None and min_identity > 1:
        raise InputError(f"--min-identity must be at most 1, not {min_identity}")

    from frugalfm.artifacts import open_stage
    from frugalfm.sequences.clusters import IDENTITY, write_clusters
    from frugalfm.sequences.mmseqs import find_mmseqs, mmseqs_version
    from frugalfm.sequences.shards import open_shards

    shards = open_shards(data)
    identity = IDENTITY[shards.alphabet] if min_identity is None else min_identity
    config: dict[str, Any] = {"min_identity": identity}
    if method == "minhash" or (method == "auto" and find_mmseqs() is None):
        config |= {"method": "minhash", "seed": seed}
    else:
        config |= {"method": "mmseqs", "mmseqs": mmseqs_version()}
    with open_stage(out, "clusters", config, {"shards": data}, overwrite=overwrite) as stage:
        if stage.done:
            print(f"{out}: already clustered, {_describe(stage.summary)}")
            return out
        summary = write_clusters(
            shards,
            stage.work,
            stage.scratch,
            method=config["method"],
            identity=identity,
            seed=seed,
        )
        summary["method"] = config["method"]
        stage.commit(summary)
    print(f"{out}: clustered, {_describe(summary)}, {summary['seconds']:.0f} s")
    return out


def _describe(summary: dict[str, Any]) -> str:
    return (
        f"{summary['n_sequences']:,} sequences in {summary['clusters']:,} clusters "
        f"({summary['singletons']:,} of one sequence, the largest of {summary['largest']:,}, half "
        f"of all in {summary['covering_half']:,}) by {summary['method']}, "
        f"median complexity {summary['complexity']['p50']:.2f}"
    )

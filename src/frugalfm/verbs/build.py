"""Turn sequence files into validated, deduplicated Parquet shards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from frugalfm.artifacts import open_stage
from frugalfm.errors import InputError
from frugalfm.verbs import with_paths

__all__ = ["build"]


@with_paths
def build(
    *inputs: Path,
    alphabet: Literal["dna", "rna", "protein"],
    out: Path,
    max_length: int = 1022,
    too_long: Literal["window", "crop", "error"] = "window",
    min_length: int = 1,
    gaps: Literal["error", "remove", "keep"] = "error",
    ambiguous: Literal["keep", "drop", "error"] = "keep",
    duplicates: Literal["drop", "keep"] = "drop",
    reverse_complements: bool = False,
    repeated_ids: Literal["rename", "error"] = "rename",
    id_column: str | None = None,
    sequence_column: str = "sequence",
    overwrite: bool = False,
) -> Path:
    """Turn sequence files into validated, deduplicated Parquet shards.

    Lower case becomes upper case, T becomes U in RNA and U becomes T in DNA, J becomes X in
    proteins, and a protein's last * is stripped. IUPAC ambiguity codes are kept. Any other
    character is an error that names its file and line. The columns of tables and the descriptions
    of FASTA and FASTQ headers are kept; base qualities are not. Memory does not grow with the
    input, except for the longest record, which is held whole.

    Parameters
    ----------
    inputs
        FASTA, FASTQ, CSV, TSV, JSON lines or Parquet files, plain or compressed (gz, bz2, xz;
        FASTA and FASTQ also zst), or folders of shards; rows keep their order.
    alphabet
        What the sequences are made of.
    out
        Folder for the shards.
    max_length
        Residues that a row may have; 1022 fill the context of RNA-FM and ESM.
    too_long
        Cut longer sequences into windows called ID/FIRST-LAST, crop them, or refuse them.
    min_length
        Shorter sequences and windows are dropped and counted.
    gaps
        What to do with - and . in sequences.
    ambiguous
        Keep rows with ambiguity codes (such as N, or X in proteins), drop them, or refuse them.
    duplicates
        Drop rows whose sequence an earlier row has, or keep them.
    reverse_complements
        DNA only: an earlier row's reverse complement is a duplicate too.
    repeated_ids
        Rename the second and later rows of an id (ID_2, ID_3), or refuse them.
    id_column
        Of tables; by default id, or FILE:ROW where there is no such column.
    sequence_column
        Of tables.
    overwrite
        Replace what other settings left in the output folder.

    Returns
    -------
    Path
        The shards: `out`.

    Raises
    ------
    InputError
        Input or options that cannot be used; names the file, the line and the remedy.
    """
    from frugalfm.sequences.alphabets import get_alphabet
    from frugalfm.sequences.building import merge_fields, write_shards
    from frugalfm.sequences.cutting import Policies
    from frugalfm.sequences.readers import open_sources

    letters = get_alphabet(alphabet)
    policies = Policies(max_length, too_long, min_length, gaps, ambiguous)
    if reverse_complements and (alphabet != "dna" or duplicates == "keep"):
        raise InputError("--reverse-complements is for --alphabet dna with --duplicates drop")
    if not inputs:
        raise InputError("no input; name at least one file of sequences")
    opened = [open_sources(path, alphabet, id_column, sequence_column) for path in inputs]
    sources = [source for group in opened for source in group]
    merge_fields(sources)
    config: dict[str, Any] = {
        "alphabet": alphabet,
        "max_length": max_length,
        "too_long": too_long,
        "min_length": min_length,
        "gaps": gaps,
        "ambiguous": ambiguous,
        "duplicates": duplicates,
        "reverse_complements": reverse_complements,
        "repeated_ids": repeated_ids,
        "id_column": id_column,
        "sequence_column": sequence_column,
    }
    nameless = [s.path.name for s in sources if s.columns is not None and s.columns.id is None]
    if nameless:
        config["named_after"] = nameless  # their rows are FILE:ROW
    named = {f"input_{number}": Path(path) for number, path in enumerate(inputs)}
    if any(source.format == "fastq" for source in sources):
        print("note: the base qualities of FASTQ files are not kept")
    stage = open_stage(out, "shards", config, named, overwrite=overwrite)
    with stage:
        if stage.done:
            print(f"{out}: already built\n{_describe(stage.summary, alphabet)}")
            return stage.out
        summary = write_shards(
            sources,
            stage.work,
            letters,
            policies,
            drop_duplicates=duplicates == "drop",
            reverse_complements=reverse_complements,
            repeated_ids=repeated_ids,
        )
        stage.commit(summary)
    print(f"{out}: built\n{_describe(summary, alphabet)}")
    return stage.out


def _describe(summary: Mapping[str, Any], alphabet: str) -> str:
    """One short account: what came in, what was done to it (if anything), what came out."""
    rewritten = {"dna": "U read as T", "rna": "T read as U", "protein": "J read as X"}[alphabet]
    done = {
        "lower_case": "letters in lower case read as upper case",
        "rewritten": f"letters {rewritten}",
        "ambiguous": "ambiguous letters found",
        "gaps_kept": "gaps kept",
        "gaps_removed": "gaps removed",
        "blanks": "blanks inside sequences removed",
        "stops": "stops (*) at the end removed",
        "too_long": "records over the maximum length",
        "windows": "windows made of them",
        "residues_cropped": "residues cropped from them",
        "too_short": "records dropped: too short",
        "short_windows": "windows dropped: too short",
        "ambiguous_dropped": "rows dropped: ambiguous",
        "duplicates": "rows dropped: duplicates",
        "renamed": "rows renamed: repeated ids",
    }
    lines = [f"{summary['records']:>15,} records read, {summary['residues']:,} letters"]
    lines += [f"{summary[name]:>15,} {words}" for name, words in done.items() if summary[name]]
    extent = f"of {summary['min_length']:,} to {summary['max_length']:,} letters"
    total, parts = f"{summary['n_residues']:,} in all", len(summary["parts"])
    lines.append(f"{summary['n_sequences']:>15,} rows kept {extent}, {total}, in {parts} part(s)")
    return "\n".join(lines)

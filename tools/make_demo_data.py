"""Make the bundled demo data from a pool of RNA whose headers begin with the source.

The output is committed; this script says how it came about. Only sources that may be
redistributed are used: Rfam 5S and 5.8S rRNA (CC0), miRBase hairpins (public domain), NCBI's
rRNA references (public domain), and windows of microbial coding sequences (MIT).

    python tools/make_demo_data.py pool.fasta.gz src/frugalfm/data/demo
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import sys
from collections import defaultdict
from pathlib import Path

import dnaio

Record = tuple[str, str]

# Source in the pool: (family, sequences for pretraining, sequences for validation).
SOURCES = {
    "mirbase_hairpin": ("miRNA hairpin", 1300, 120),
    "sortmerna_rfam-5s_old": ("5S rRNA", 900, 80),
    "sortmerna_rfam-5.8s_old": ("5.8S rRNA", 250, 25),
    "microbial_cds": ("coding sequence", 700, 60),
    "ncbi_rrna_Combined16SrRNA": ("SSU rRNA", 90, 8),
    "ncbi_rrna_LSURef_93": ("LSU rRNA", 70, 6),
}
SPLITS = {"train": 200, "dev": 70, "test": 150}  # labelled fragments of each family
FRAGMENT = 60


def order(text: str) -> float:
    """Map a text to a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def read_sources(source: Path) -> dict[str, list[Record]]:
    """Read all usable records by source, each source in an order of its own."""
    records = defaultdict(list)
    with dnaio.open(source) as reader:
        for record in reader:
            origin, _, name = record.name.partition("|")
            if origin in SOURCES and len(record.sequence) >= FRAGMENT:
                records[origin].append((name, record.sequence))
    for found in records.values():
        found.sort(key=lambda record: order(record[0]))
    return records


def cut_fragment(record: Record) -> str:
    """Cut one fragment out of a sequence, at a place that its name decides."""
    name, sequence = record
    start = int(order("start:" + name) * (len(sequence) - FRAGMENT + 1))
    return sequence[start : start + FRAGMENT]


def write_fasta(path: Path, records: list[Record]) -> None:
    """Write gzipped FASTA without a time stamp: the same input gives the same bytes."""
    records.sort(key=lambda record: order(record[0]))
    text = "".join(f">{name}\n{sequence}\n" for name, sequence in records)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(path.name, len(records), "sequences", sum(len(s) for _, s in records), "nucleotides")


def main(source: Path, out: Path) -> None:
    """Write pool.fasta.gz, validation.fasta.gz and families/{train,dev,test}.csv."""
    pool: list[Record] = []
    validation: list[Record] = []
    labelled = defaultdict(list)
    seen: set[str] = set()
    for origin, records in read_sources(source).items():
        family, train, held_out = SOURCES[origin]
        prefix = family.replace(" ", "_")
        named = [(f"{prefix}|{name}", sequence) for name, sequence in records]
        pool += named[:train]
        validation += named[train : train + held_out]
        # Conserved regions give the same fragment again: each is used once.
        cut = map(cut_fragment, named[train + held_out :])
        fresh = (fragment for fragment in cut if fragment not in seen)
        for split, count in SPLITS.items():
            for _ in range(count):
                fragment = next(fresh)
                seen.add(fragment)
                labelled[split].append((fragment, family))
    (out / "families").mkdir(parents=True, exist_ok=True)
    for split, rows in labelled.items():
        with (out / "families" / f"{split}.csv").open("w", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(["sequence", "label"])
            writer.writerows(sorted(rows, key=lambda row: order(row[0])))
        print(split, len(rows), "fragments")
    write_fasta(out / "pool.fasta.gz", pool)
    write_fasta(out / "validation.fasta.gz", validation)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

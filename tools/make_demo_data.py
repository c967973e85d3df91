"""Make the bundled demo data from a pool of RNA whose headers begin with the source.

The output is committed; this script says how it came about. Only sources that may be
redistributed are used: Rfam 5S and 5.8S rRNA (CC0), miRBase hairpins (public domain), and
windows of microbial coding sequences (MIT).

    python tools/make_demo_data.py pool.fasta.gz src/frugalfm/data/demo
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import sys
from collections import defaultdict
from pathlib import Path

import dnaio

FAMILIES = 20  # the most populous miRNA gene families
PER_FAMILY = 90
SPLITS = {"train": 0.6, "dev": 0.75, "test": 1.0}  # cumulative shares of the species
POOL = {
    "mirbase_hairpin": 2300,
    "sortmerna_rfam-5s_old": 1100,
    "sortmerna_rfam-5.8s_old": 300,
    "microbial_cds": 900,
}
LONGEST = 220
VALIDATION = 400


def order(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) / 2**56


def find_family(name: str) -> str | None:
    """Name the miRNA gene family: hsa-mir-17a-2 is of mir-17, hsa-let-7b of let-7."""
    found = re.match(r"[a-z0-9]+-(?:mir-?(\d+)|(let)-7)", name, re.IGNORECASE)
    if not found:
        return None
    return "let-7" if found[2] else f"mir-{int(found[1])}"


def choose_labelled(hairpins: list[tuple[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Choose labelled hairpins; the species of train, dev and test are disjoint."""
    families = defaultdict(list)
    for name, sequence in hairpins:
        if family := find_family(name):
            families[family].append((name, sequence))
    largest = sorted(families, key=lambda family: (-len(families[family]), family))[:FAMILIES]
    chosen = defaultdict(list)
    for family in sorted(largest):
        members = sorted(families[family], key=lambda member: order(member[0]))[:PER_FAMILY]
        for name, sequence in members:
            place = order("species:" + name.split("-")[0])
            split = next(split for split, share in SPLITS.items() if place < share)
            chosen[split].append((sequence, family))
    return chosen


def write_fasta(path: Path, records: list[tuple[str, str]]) -> None:
    """Write gzipped FASTA without a time stamp: the same input gives the same bytes."""
    text = "".join(f">{name}\n{sequence}\n" for name, sequence in records)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(path.name, len(records), "sequences", sum(len(s) for _, s in records), "nucleotides")


def main(source: Path, out: Path) -> None:
    """Write pool.fasta.gz, validation.fasta.gz and families/{train,dev,test}.csv."""
    records = defaultdict(list)
    with dnaio.open(source) as reader:
        for record in reader:
            origin, _, name = record.name.partition("|")
            if origin in POOL and 40 <= len(record.sequence) <= LONGEST:
                records[origin].append((name, record.sequence))
    labelled = choose_labelled(records["mirbase_hairpin"])
    taken = {sequence for rows in labelled.values() for sequence, _ in rows}
    (out / "families").mkdir(parents=True, exist_ok=True)
    for split, rows in labelled.items():
        with (out / "families" / f"{split}.csv").open("w", newline="") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(["sequence", "label"])
            writer.writerows(sorted(rows, key=lambda row: order(row[0])))
    pool = []
    for origin, count in POOL.items():
        free = [record for record in records[origin] if record[1] not in taken]
        free.sort(key=lambda record: order(record[0]))
        pool += [(f"{origin.removeprefix('sortmerna_')}|{name}", s) for name, s in free[:count]]
    pool.sort(key=lambda record: order(record[0]))
    write_fasta(out / "validation.fasta.gz", pool[:VALIDATION])
    write_fasta(out / "pool.fasta.gz", pool[VALIDATION:])
    for split, rows in sorted(labelled.items()):
        print(split, len(rows), "sequences", len({label for _, label in rows}), "families")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

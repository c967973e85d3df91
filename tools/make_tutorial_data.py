"""Make the tutorials' proteins from a FASTA of Swiss-Prot sequences (UniProt, CC BY 4.0).

The output is committed; this script says how it came about.

    python tools/make_tutorial_data.py pool.fasta.gz docs/tutorials/data/proteins.fasta.gz
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import dnaio
from make_demo_data import order

SEQUENCES = 1500
RESIDUES = set("ACDEFGHIKLMNPQRSTVWY")


def main(source: Path, target: Path) -> None:
    """Draw the sequences and write them."""
    with dnaio.open(source) as reader:
        whole = (r for r in reader if set(r.sequence) <= RESIDUES)
        records = [(r.name, r.sequence) for r in whole if 50 <= len(r.sequence) <= 250]
    records.sort(key=lambda record: order(record[0]))
    with gzip.GzipFile(target, "wb", 9, mtime=0) as out:
        for name, sequence in records[:SEQUENCES]:
            out.write(f">{name}\n{sequence}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

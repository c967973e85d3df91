"""placeholder"""
from pathlib import Path
from typing import Literal
def build(
    *inputs: Path, alphabet: Literal["dna","rna","protein"], out: Path, max_length: int = 1022, drop_duplicates: bool=True) -> Path:
    """Turn sequence files into validated Parquet shards.

    More text.

    Parameters
    ----------
    inputs
        Files to read.
    alphabet
        Which.
    out
        Where to.
    """
    print(inputs, alphabet, out)
    return out

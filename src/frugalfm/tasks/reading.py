"""How a user's labelled files are to be read, where their names alone do not tell."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from frugalfm.errors import InputError
from frugalfm.sequences.alphabets import get_alphabet
from frugalfm.tasks.splits import Split

__all__ = ["Reading", "hold_out"]

_MOST = 0.5  # of the rows that are held out for dev and for test


@dataclass(frozen=True)
class Reading:
    """Options of verbs that read tasks; None is what was not given.

    Attributes
    ----------
    sequence_column, label_column
        Columns of the tables.
    dev_share, test_share
        Share of the training rows to hold out, where there is no file of dev or test.

    Raises
    ------
    InputError
        A share that is none, or too large.
    """

    sequence_column: str | None = None
    label_column: str | None = None
    dev_share: float | None = None
    test_share: float | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Reading:
        """Read back what :meth:`identity` put into a manifest's configuration."""
        return cls(**{field.name: config.get(field.name) for field in fields(cls)})

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if share is not None and not 0 < share <= _MOST:
                raise InputError(
                    f"--{name}-share must be above 0 and at most {_MOST:g}, not {share:g}"
                )

    @property
    def shares(self) -> dict[str, float | None]:
        """Share of each split that may be held out."""
        return {"dev": self.dev_share, "test": self.test_share}

    def identity(self) -> dict[str, str | float]:
        """Give what was given, for manifests."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def hold_out(train: Split, shares: Mapping[str, float | None], alphabet: str) -> dict[str, Split]:
    """Cut dev, test or both out of the training rows.

    A row's place is decided by a hash of its sequence alone (of a pair: of both, in either order;
    of DNA: of either strand), so that equal sequences stay together, the order of rows does not
    matter, and rows that are added later move none.

    Parameters
    ----------
    train
        All rows.
    shares
        About so many of the rows, of each split to cut out.
    alphabet
        Of the sequences.

    Returns
    -------
    dict
        ``train``, and the keys of `shares` whose share is not None.

    Raises
    ------
    InputError
        A split would be empty.
    """
    if all(share is None for share in shares.values()):
        return {"train": train}
    keys = train.keys.to_pylist()
    if alphabet == "dna" and train.partners is None:
        letters = get_alphabet(alphabet)
        keys = [min(key, letters.reverse_complement(key.encode()).decode()) for key in keys]
    places = np.array([_place(key) for key in keys])
    found, start = {}, 0.0
    # Test first, so that it stays the same whatever share dev has.
    for name in ("test", "dev"):
        share = shares.get(name)
        if share is None:
            continue
        found[name] = train.take((places >= start) & (places < start + share))
        start += share
        if not len(found[name]):
            raise InputError(
                f"{train.path}: --{name}-share {share:g} of {len(train)} rows is none; choose more"
            )
    rest = train.take(places >= start)
    if not len(rest):
        raise InputError(f"{train.path}: nothing is left to train on; hold out less")
    return {"train": rest, **found}


def _place(key: str) -> float:
    """Map a text to [0, 1), evenly and everywhere alike."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64

"""Which columns of a task's files are what, told by their names, and what follows for the kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from frugalfm.errors import InputError
from frugalfm.tasks.kinds import MAPS, PAIRS, Kind

__all__ = ["COORDINATES", "PARTNERS", "Layout", "choose_layout"]

PARTNERS = (
    ("sequence_a", "sequence_b"),
    ("sequence_1", "sequence_2"),
    ("sequence1", "sequence2"),
    ("seq_a", "seq_b"),
    ("seq1", "seq2"),
    ("protein_a", "protein_b"),
)
"""Names of the two columns of pairs of sequences; the first is what the others stand for."""
COORDINATES = ("coordinates", "coords", "cb_xyz_angstrom")
"""Names of the column of coordinates, likewise."""
_TARGETS = {"label", "structure", "contacts", *COORDINATES}


@dataclass(frozen=True)
class Layout:
    """The columns of a task's files.

    Attributes
    ----------
    label
        What is predicted.
    sequence, partner
        The sequence, and the other one of a pair.
    mask
        For each residue 1 if its label counts and 0 if not; a file need not have it.
    """

    label: str
    sequence: str = "sequence"
    partner: str | None = None
    mask: str | None = None

    @property
    def needed(self) -> list[str]:
        """Columns that every file must have."""
        return [name for name in (self.sequence, self.partner, self.label) if name is not None]


def choose_layout(
    path: Path,
    header: Sequence[str],
    kind: str,
    sequence_column: str | None = None,
    label_column: str | None = None,
) -> tuple[Layout, Kind | None]:
    """Find the columns of a task, and the kind if they tell it.

    Parameters
    ----------
    path
        The training file, for messages.
    header
        Its columns.
    kind
        Asked for, or ``"auto"``.
    sequence_column, label_column
        Asked for; if not, they go by their names.

    Returns
    -------
    layout
        The columns.
    kind
        None if the labels must tell: classes or numbers, of sequences or of pairs.

    Raises
    ------
    InputError
        No columns for the kind asked for, or several for none; or none of the names asked for.
    """
    given = {"--sequence-column": sequence_column, "--label-column": label_column}
    for option, name in given.items():
        if name is not None and name not in header:
            there = ", ".join(header)
            raise InputError(f"{path}: has no column {name!r} for {option}. There are: {there}")
    if sequence_column is not None and sequence_column == label_column:
        raise InputError(f"--label-column {label_column}: is the column of sequences; name another")
    partners = next((pair for pair in PARTNERS if set(pair) <= set(header)), None)
    if partners is not None and kind in {"auto", *PAIRS} and sequence_column is None:
        return Layout(label_column or "label", *partners), None
    if kind in PAIRS:
        raise InputError(
            f"{path}: has no two columns of sequences for --kind {kind}; call them "
            f"{PARTNERS[0][0]} and {PARTNERS[0][1]}"
        )
    sequence = sequence_column or "sequence"
    telling = label_column in _TARGETS - {"label"} and kind in {"auto", "token", *MAPS}
    if label_column is not None and not telling:
        if kind in MAPS:
            raise InputError(
                f"--label-column {label_column}: columns for --kind {kind} go by their names, "
                f"structure, contacts and {COORDINATES[0]}; rename it"
            )
        token = kind == "token"
        mask = "mask" if token else None
        return Layout(label_column, sequence, mask=mask), "token" if token else None
    if label_column is not None:
        header = [name for name in header if name == label_column or name not in _TARGETS]
    found, told = _choose_target(path, header, kind)
    return replace(found, sequence=sequence), told


def _choose_target(path: Path, header: Sequence[str], kind: str) -> tuple[Layout, Kind | None]:
    """Find the column of labels by its name."""
    coordinates = next((name for name in COORDINATES if name in header), None)
    targets = {
        "label": "label" in header,
        "structure": "structure" in header,
        "contacts": coordinates is not None or "contacts" in header,
    }
    if kind == "auto":
        if sum(targets.values()) > 1:
            found = " and a column ".join(name for name, there in targets.items() if there)
            raise InputError(f"{path}: has a column {found}; choose with --kind")
        if targets["contacts"]:
            return Layout(coordinates or "contacts"), "contact"
        if targets["structure"]:
            return Layout("structure", mask="mask"), "token"
        return Layout("label"), None
    if kind not in MAPS:
        return (
            (Layout("structure", mask="mask"), "token")
            if kind == "token"
            else (
                Layout("label"),
                None,
            )
        )
    return _choose_map(path, header, kind, coordinates)


def _choose_map(
    path: Path, header: Sequence[str], kind: str, coordinates: str | None
) -> tuple[Layout, Kind]:
    if kind == "base-pair" and "structure" in header:
        return Layout("structure"), "base-pair"
    if kind == "contact" and (coordinates or "contacts" in header):
        return Layout(coordinates or "contacts"), "contact"
    if kind == "distance" and coordinates:
        return Layout(coordinates), "distance"
    wanted = {
        "base-pair": "structure (dot-bracket notation)",
        "contact": "coordinates (x y z of each residue) or contacts (pairs of positions)",
        "distance": "coordinates (x y z of each residue)",
    }
    raise InputError(
        f"{path}: has no column {wanted[kind]} for --kind {kind}. There are: {', '.join(header)}"
    )

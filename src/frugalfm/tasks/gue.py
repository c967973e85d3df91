"""The 28 tasks of GUE (Zhou et al. 2024, arXiv 2306.15006): their names, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frugalfm.errors import InputError

__all__ = ["GUE", "GueFolders", "GueTask", "find_gue", "shorten_names"]

_MARKS = (
    "H3", "H3K14ac", "H3K36me3", "H3K4me1", "H3K4me2", "H3K4me3", "H3K79me3", "H3K9ac", "H4",
    "H4ac",
)  # fmt: skip


@dataclass(frozen=True)
class GueTask:
    """One task.

    Attributes
    ----------
    name
        Its folder in the published archive, such as ``EMP/H3``.
    preset
        Name of its settings for tuning.
    """

    name: str
    preset: str

    @property
    def places(self) -> list[str]:
        """Where it may lie in a suite's folder: as published, or all tasks side by side."""
        last = self.name.rpartition("/")[2]
        flat = [self.name.replace("/", "_")] + ([] if last.isdigit() else [last])
        return [self.name, *flat]


GUE = (
    *(GueTask(f"EMP/{mark}", "gue/emp") for mark in _MARKS),
    *(
        GueTask(f"prom/{part}_{kind}", f"gue/{part}_{kind}")
        for part in ("prom_core", "prom_300")
        for kind in ("all", "notata", "tata")
    ),
    *(GueTask(f"tf/{number}", "gue/tf") for number in range(5)),
    *(GueTask(f"mouse/{number}", "gue/mouse") for number in range(5)),
    GueTask("splice/reconstructed", "gue/splice"),
    GueTask("virus/covid", "gue/covid"),
)
"""All tasks, in the order of the tables."""


@dataclass(frozen=True)
class GueFolders:
    """What of GUE a folder holds.

    Attributes
    ----------
    found
        Folder of each task that is there, in the order of :data:`GUE`.
    missing
        Names of the others.
    strangers
        Folders with a training split that are none of GUE's.
    """

    found: dict[GueTask, Path]
    missing: tuple[str, ...]
    strangers: tuple[Path, ...]


def find_gue(root: Path) -> GueFolders:
    """Find the tasks of GUE in a folder, or in a folder ``GUE`` in it.

    Raises
    ------
    InputError
        No such folder, none of the tasks in it, or one of them twice.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; --root is the folder that GUE was unpacked to")
    found: dict[GueTask, Path] = {}
    for task in GUE:
        places = [base / place for base in (root, root / "GUE") for place in task.places]
        there = [place for place in places if place.is_dir()]
        if len(there) > 1:
            raise InputError(f"{root}: holds {task.name} twice: {there[0]} and {there[1]}")
        if there:
            found[task] = there[0]
    if not found:
        raise InputError(
            f"{root}: holds none of GUE's {len(GUE)} tasks; they are folders such as "
            "EMP/H3, prom/prom_core_all, tf/0, mouse/0, splice/reconstructed and virus/covid"
        )
    missing = tuple(task.name for task in GUE if task not in found)
    strangers = {path.parent for path in root.rglob("train.*")} - set(found.values())
    return GueFolders(found, missing, tuple(sorted(strangers)))


def shorten_names(names: Sequence[str]) -> str:
    """List tasks, with groups that are there as a whole as one."""
    groups: dict[str, list[str]] = {}
    for task in GUE:
        groups.setdefault(task.name.partition("/")[0], []).append(task.name)
    parts = []
    for group, members in groups.items():
        there = [name for name in members if name in names]
        whole = len(there) == len(members) > 1
        parts += [f"{group} (all {len(there)})"] if whole else there
    return ", ".join(parts)

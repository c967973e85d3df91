"""Published settings for known tasks: those of GUE as GERM tunes on them (arXiv 2505.00598)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from frugalfm.errors import InputError

__all__ = ["PRESETS", "TaskPreset", "find_preset"]


@dataclass(frozen=True)
class TaskPreset:
    """How long to tune on a task.

    Attributes
    ----------
    max_tokens
        Longest sequence, in tokens of DNABERT-2's vocabulary with the special ones.
    epochs, warmup_steps, max_steps
        Of the training.
    """

    max_tokens: int
    epochs: int
    warmup_steps: int = 50
    max_steps: int | None = None


PRESETS: dict[str, TaskPreset] = {
    "gue/emp": TaskPreset(128, 3),
    "gue/prom_core_all": TaskPreset(20, 4),
    "gue/prom_core_notata": TaskPreset(20, 4),
    "gue/prom_core_tata": TaskPreset(20, 10),
    "gue/prom_300_all": TaskPreset(70, 4),
    "gue/prom_300_notata": TaskPreset(70, 4),
    "gue/prom_300_tata": TaskPreset(70, 10),
    "gue/tf": TaskPreset(30, 3, 30),
    "gue/mouse": TaskPreset(30, 5, 30, max_steps=1000),
    "gue/splice": TaskPreset(80, 5),
    "gue/covid": TaskPreset(256, 8),
}
"""By the name of a task's folder, or of the folder that it is in."""


def find_preset(name: str, task: Path, alphabet: str) -> str | None:
    """Choose the preset of a task.

    Parameters
    ----------
    name
        A key of :data:`PRESETS`, ``"none"``, or ``"auto"``: told by the names of the task's
        folder and the one around it, for DNA.
    task
        The task's folder.
    alphabet
        Of the model.

    Raises
    ------
    InputError
        No such preset.
    """
    if name == "none":
        return None
    if name != "auto":
        if name not in PRESETS:
            raise InputError(
                f"--preset {name}: there is none of this name; there are auto, none, "
                f"{', '.join(PRESETS)}"
            )
        return name
    folder = Path(task).resolve()
    keys = [f"gue/{part.lower()}" for part in (folder.name, folder.parent.name)]
    return next((key for key in keys if key in PRESETS and alphabet == "dna"), None)

"""What the benchmarks of several recipes share: time limits, intervals, dots and pages."""

from __future__ import annotations

import fcntl
import json
import math
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from frugalfm.artifacts import write_json
from frugalfm.errors import InputError

__all__ = [
    "UNFINISHED",
    "Dot",
    "OutOfTime",
    "Page",
    "compare_ratio",
    "draw_dots",
    "exclusively",
    "keep_settings",
    "limit_time",
    "read_toml",
    "show_mean",
    "summarise",
]

UNFINISHED = 3
"""Exit status of a run that ended before all was done."""

Content = dict[str, Any]


class OutOfTime(BaseException):
    """The time given is over; the verbs have kept what they had."""


@contextmanager
def limit_time(minutes: float | None) -> Iterator[None]:
    """Raise :class:`OutOfTime` after so many minutes; None for no limit."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    if minutes is None:
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def exclusively(folder: Path) -> Iterator[None]:
    """Let one process at a time do what several seeds' processes would all begin with."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def read_toml(path: Path, changes: Sequence[str] | None = None) -> Content:
    """Read a recipe with changes of the form ``table.key=value`` or ``key=value``, in TOML.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError
        No such file, or no such table.
    """
    content = tomllib.loads(path.read_text())
    for change in changes or []:
        key, _, value = change.partition("=")
        *tables, last = key.strip().split(".")
        place = content
        for table in tables:
            place = place[table]
        place[last] = tomllib.loads(f"value = {value}")["value"]
    return content


def summarise(values: Sequence[float]) -> dict[str, float | None]:
    """Mean over seeds with Student's 95 % interval; no interval from one seed."""
    found = np.asarray(values, dtype=float)
    mean = float(found.mean())
    if len(found) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / math.sqrt(len(found))
    return {"mean": mean, "low": mean - float(half), "high": mean + float(half)}


def compare_ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float | None]:
    """Ratio of two means, paired by seed, with Fieller's (1954) 95 % interval.

    Returns
    -------
    dict
        ``mean``, None if the lower mean is not positive; ``low`` and ``high``, None where the
        lower mean cannot be told from 0 or there is one seed: no interval then has an end.
    """
    x, y = np.asarray(below, float), np.asarray(above, float)
    mean = float(y.mean() / x.mean()) if x.mean() > 0 else None
    nothing: dict[str, float | None] = {"mean": mean, "low": None, "high": None}
    if len(x) < 2 or mean is None:
        return nothing
    covariance = np.cov(x, y) / len(x)
    t = stats.t.ppf(0.975, len(x) - 1) ** 2
    # Ratios r for which the mean of y - r x is not told from 0: a r^2 - 2 b r + c <= 0.
    a = x.mean() ** 2 - t * covariance[0, 0]
    b = x.mean() * y.mean() - t * covariance[0, 1]
    c = y.mean() ** 2 - t * covariance[1, 1]
    if a <= 0:
        return nothing
    half = math.sqrt(max(0.0, b * b - a * c))
    return {"mean": mean, "low": float((b - half) / a), "high": float((b + half) / a)}


def show_mean(found: dict[str, Any] | None, form: str) -> str:
    """Write a mean, and ± half of its interval if it has one."""
    if found is None or found["mean"] is None:
        return ""
    text = format(found["mean"], form)
    if found["low"] is None:
        return text
    return f"{text} ± {format(found['high'] - found['mean'], form.lstrip('+'))}"


@dataclass(frozen=True)
class Dot:
    """A mean on a line of a figure, its interval (None for none), and the single values."""

    mean: float
    low: float | None
    high: float | None
    single: Sequence[float]
    color: str


def draw_dots(panels: Sequence[tuple[str, list[Dot]]], names: Sequence[str], path: Path) -> None:
    """Draw one panel a measure and one line a name, the first on top.

    Parameters
    ----------
    panels
        Title, and a dot for each name.
    names
        Of the lines.
    path
        Of the image.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "font.size": 9}):
        size = (2.2 + 2.4 * len(panels), 0.9 + 0.28 * len(names))
        figure = Figure(figsize=size, layout="constrained")
        found = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, (title, dots) in zip(found, panels, strict=True):
            for height, dot in enumerate(reversed(dots)):
                if dot.low is not None:
                    panel.plot([dot.low, dot.high], [height] * 2, color=dot.color, lw=2)
                at = [height] * len(dot.single)
                panel.plot(dot.single, at, "|", color=dot.color, ms=7, alpha=0.6)
                panel.plot(dot.mean, height, "o", color=dot.color, ms=4)
            panel.set_title(title, fontsize=9)
            panel.grid(axis="x", alpha=0.3)
        found[0].set_yticks(range(len(names)), list(names)[::-1])
        figure.savefig(path, dpi=130, metadata={"Software": None})


@dataclass(frozen=True)
class Page:
    """A page of finished recipes: figures and files beside one Markdown file.

    Attributes
    ----------
    stem
        Of all files.
    introduction
        What comes first.
    draw, write
        Of a content: its figure into a file; its numbers, to a path without ending.
    describe
        Of a short name and a content: a section.
    """

    stem: str
    introduction: str
    draw: Callable[[Content, Path], None]
    write: Callable[[Content, Path], None]
    describe: Callable[[str, Content], str]

    def save(self, contents: Sequence[tuple[str, Content]], folder: Path) -> Path:
        """Write the page of several contents, each with a short name for its files."""
        folder.mkdir(parents=True, exist_ok=True)
        parts = [self.introduction]
        for name, content in contents:
            self.draw(content, folder / f"{self.stem}-{name}.png")
            self.write(content, folder / f"{self.stem}-{name}")
            parts.append(self.describe(name, content))
        page = folder / f"{self.stem}.md"
        page.write_text("\n\n".join(parts) + "\n")
        return page

    def run(self, words: Sequence[str]) -> int:
        """Do as the command line says: ``FOLDER NAME=RESULTS ...``; returns the exit status.

        RESULTS is a ``results.json`` or the folder that holds one.
        """
        if len(words) < 2 or not all("=" in word for word in words[1:]):
            usage = f"usage: python -m benchmarks.{self.stem}.page FOLDER NAME=RESULTS ..."
            print(usage, file=sys.stderr)
            return 2
        contents = []
        for word in words[1:]:
            name, _, given = word.partition("=")
            path = Path(given) / "results.json" if Path(given).is_dir() else Path(given)
            try:
                contents.append((name, json.loads(path.read_text())))
            except (OSError, ValueError) as error:
                raise InputError(f"{path}: no results; finish the run first ({error})") from None
        print(f"{self.save(contents, Path(words[0]))}: written")
        return 0


def keep_settings(out: Path, settings: dict[str, Any]) -> None:
    """Bind a folder to what is made in it first.

    Raises
    ------
    InputError
        It was made with other settings.
    """
    path = out / "settings.json"
    given = json.loads(json.dumps(settings))
    if not path.is_file():
        write_json(path, given)
        return
    found = json.loads(path.read_text())
    other = [name for name in given if found.get(name) != given[name]]
    if other:
        raise InputError(f"{out}: was made with another {', '.join(other)}; name another folder")

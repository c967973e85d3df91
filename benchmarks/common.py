"""What benchmarks share: options, time limits, recipes, intervals, tables, dots and pages."""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import signal
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from frugalfm.artifacts import write_json
from frugalfm.errors import FrugalError, InputError

__all__ = [
    "UNFINISHED",
    "Dot",
    "OutOfTime",
    "Page",
    "compare_ratio",
    "draw_dots",
    "exclusively",
    "guard",
    "keep_settings",
    "limit_time",
    "make_parser",
    "read_toml",
    "remember",
    "show_mean",
    "summarise",
    "tabulate",
    "write_files",
]

UNFINISHED = 3
"""Exit status of a run that ended before all was done."""

Content = dict[str, Any]


class OutOfTime(BaseException):
    """The time given is over; the verbs have kept what they had."""


def make_parser(benchmark: str, doc: str | None, data: str) -> argparse.ArgumentParser:
    """Make the command line of a benchmark of recipes.

    Parameters
    ----------
    benchmark, doc
        Its folder, and what it says of itself.
    data
        What ``--data`` is.
    """
    summary = (doc or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"benchmarks.{benchmark}", description=summary)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--out", type=Path, required=True, help="for all artifacts and results")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--stop-after-minutes", type=float)
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change the recipe")
    return parser


def guard(work: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Do the work of a command line; bad input and the end of the time become exit statuses."""
    try:
        return work(options)
    except OutOfTime:
        print("out of time; the same command continues", file=sys.stderr)
        return UNFINISHED
    except FrugalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


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
    OSError, ValueError
        No such file, or no TOML.
    """
    content = tomllib.loads(path.read_text())
    for change in changes or []:
        _merge(content, tomllib.loads(change))
    return content


def _merge(content: Content, change: Content) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            _merge(content[key], value)
        else:
            content[key] = value


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


def tabulate(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def write_files(content: Content, rows: Sequence[Content], stem: Path) -> None:
    """Write all of a content to ``STEM.json``, and some rows of it to ``STEM.parquet``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stem.parent.mkdir(parents=True, exist_ok=True)
    write_json(stem.with_name(f"{stem.name}.json"), content)
    pq.write_table(pa.Table.from_pylist(list(rows)), stem.with_name(f"{stem.name}.parquet"))


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

    def run(self, words: Sequence[str] | None = None) -> int:
        """Do as the command line says: ``FOLDER NAME=RESULTS ...``; returns the exit status.

        RESULTS is a ``results.json`` or the folder that holds one.
        """
        words = sys.argv[1:] if words is None else words
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


def remember(path: Path, key: Content, find: Callable[[], Content]) -> Content:
    """Give what was found before for the same key, or find it and keep it in a file."""
    key = json.loads(json.dumps(key))
    if path.is_file():
        kept: Content = json.loads(path.read_text())
        if kept.pop("key") == key:
            return kept
    found = find()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found | {"key": key})
    return found


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

"""A suite's results as Markdown, and shorter for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frugalfm.suites.results import FULL
from frugalfm.tasks.gue import GUE, GueFolders, shorten_names

__all__ = ["describe_findings", "render_markdown", "render_text"]

_WIDTH = 100
_BLOCK = 4  # columns side by side in a terminal
_CELL = 17
_TASK = 24


def describe_findings(
    root: Path, facts: Mapping[str, Mapping[str, Any]], folders: GueFolders
) -> list[str]:
    """Say what is there, what is missing, and what occurs twice."""
    lines = [f"{root}: {len(facts)} of GUE's {len(GUE)} tasks"]
    if folders.missing:
        lines.append(f"  missing: {shorten_names(folders.missing)}")
    if folders.strangers:
        names = ", ".join(path.relative_to(root).as_posix() for path in folders.strangers)
        lines.append(f"  not of GUE, left alone: {names}")
    for name, fact in facts.items():
        sizes = " / ".join(f"{count:,}" for count in fact["n"].values())
        twice = [
            f"{count:,} {key.replace('_', ' ')}" for key, count in fact["repeats"].items() if count
        ]
        lines.append(f"  {name}: {sizes} rows" + "".join(f"; {what}" for what in twice))
    return lines


def render_text(results: dict[str, Any]) -> str:
    """Render scores, averages and comparisons as text of at most 100 columns.

    Parameters
    ----------
    results
        As :func:`~frugalfm.suites.results.collect` makes them.
    """
    columns = _columns(results)
    lines = []
    for start in range(0, len(columns), _BLOCK):
        block = columns[start : start + _BLOCK]
        for part in (0, 1):
            names = "".join(f"{_cut(column[part]):>{_CELL}}" for column in block)
            lines.append(f"{'MCC' if part else '':{_TASK}}{names}")
        lines.append("-" * (_TASK + _CELL * len(block)))
        for label, cells in _score_rows(results, block, _plus_minus):
            lines.append(f"{label:{_TASK}}" + "".join(f"{cell:>{_CELL}}" for cell in cells))
        lines.append("")
    for note in (*_notes(results), *_comparison_lines(results)):
        lines += textwrap.wrap(note, _WIDTH, initial_indent="- ", subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def render_markdown(results: dict[str, Any]) -> str:
    """Render everything as Markdown; arguments as in :func:`render_text`."""
    columns = _columns(results)
    header = ["task", "train / dev / test", "twice in train", "test in train"]
    rows = []
    for label, cells in _score_rows(results, columns, _bracket):
        fact = results["tasks"].get(label)
        known = ["", "", ""]
        if fact:
            sizes = " / ".join(f"{count:,}" for count in fact["n"].values())
            repeats = fact["repeats"]
            known = [sizes, f"{repeats['duplicates_in_train']:,}", f"{repeats['test_in_train']:,}"]
        rows.append([label, *known, *cells])
    names = [f"{name}, {method}" for name, method in columns]
    lines = ["# GUE", "", *_items(_notes(results)), ""]
    lines += ["Matthews correlation on test:", "", *_grid([*header, *names], rows)]
    if results["drops"]:
        lines += ["", "## What adapters lose", "", *_drop_table(results)]
        lines += ["", *_items(_comparison_lines(results))]
    times = [
        [row["checkpoint"], row["method"], f"{row['median_seconds']:.0f}"]
        for row in results["averages"]
    ]
    if times:
        lines += ["", "## Time", "", *_grid(["checkpoint", "method", "median s a cell"], times)]
    return "\n".join(lines) + "\n"


def _columns(results: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, method) for name in results["checkpoints"] for method in results["methods"]]


def _score_rows(
    results: dict[str, Any], columns: list[tuple[str, str]], show: Any
) -> list[tuple[str, list[str]]]:
    """Label and cells of each task, and of the average."""
    found = {(row["task"], row["checkpoint"], row["method"]): row for row in results["scores"]}
    rows = [(task, [show(found.get((task, *c))) for c in columns]) for task in results["tasks"]]
    means = {(row["checkpoint"], row["method"]): row for row in results["averages"]}
    label = f"average of {len(results['common'])}"
    return [*rows, (label, [show(means.get(c)) for c in columns])]


def _notes(results: dict[str, Any]) -> list[str]:
    """Say what the numbers are, and what they are not."""
    notes = []
    if results["limits"]:
        what = {"max_train": "training rows", "max_steps": "optimizer steps"}
        limits = " and ".join(f"{value:,} {what[key]}" for key, value in results["limits"].items())
        notes.append(f"LIMITED to {limits} a task: not comparable with published scores.")
    if results["missing"]:
        notes.append(
            f"{len(results['tasks'])} of {results['of']} tasks; missing: "
            f"{shorten_names(results['missing'])}."
        )
    if results["failed"]:
        notes.append(f"Failed: {'; '.join(results['failed'])}.")
    kinds = {row["interval"] for row in results["scores"]}
    if "seeds and test" in kinds:
        notes.append(
            f"95 % intervals over {results['seeds']} seeds and over test rows: the variance of "
            "the seeds' mean plus that of the bootstrap."
        )
    if "test" in kinds:
        who = "Probes, which have no seed" if "seeds and test" in kinds else "One run each"
        notes.append(f"{who}: 95 % intervals over test rows (bootstrap).")
    leaks = sum(fact["repeats"]["test_in_train"] for fact in results["tasks"].values())
    policy = {"report": "counted, and left in", "drop": "taken out of test"}
    if leaks:
        notes.append(f"Test rows that are also in train: {leaks:,}, {policy[results['leaks']]}.")
    opposite = sum(
        fact["repeats"].get("test_reverse_complements_in_train", 0)
        for fact in results["tasks"].values()
    )
    if opposite:
        notes.append(f"Test rows whose reverse complement is in train: {opposite:,} more, left in.")
    if set(results["methods"]) - {"probe"}:
        notes.append(
            "Tuned heads start at random."
            if results["start"] == "random"
            else "Tuned heads start as linear probes, below which no tuning ends on dev, so drops "
            "may be smaller than from the published random starts (--start random)."
        )
    return notes


def _comparison_lines(results: dict[str, Any]) -> list[str]:
    """Set what is gone of the reference's drop beside what is published."""
    lines = []
    for row in results["comparison"]:
        if row["method"] != "all":
            continue
        value = row["reduction"]
        said = "undefined, as the reference's is not positive"
        if value is not None:
            said = f"{100 * value:+.1f} %"
            if not row["certain"]:
                said += " (the reference's own drop cannot be told from none)"
        published = row["published"]
        beside = "none published" if published is None else f"published: {100 * published:+.2f} %"
        lines.append(
            f"{row['checkpoint']} against {results['checkpoints'][0]}: reduction of the mean drop "
            f"from full tuning: {said}; {beside}."
        )
    if lines:
        lines.append(
            "Drop: MCC(full) - MCC(adapter), the mean over tasks and adapters. Reduction: 1 - drop "
            "/ drop of the reference, which is our reading of the published headline."
        )
    return lines


def _drop_table(results: dict[str, Any]) -> list[str]:
    shares = {(row["checkpoint"], row["method"]): row for row in results["comparison"]}
    rows = []
    for row in results["drops"]:
        share = shares.get((row["checkpoint"], row["method"]), {})
        rows.append(
            [
                row["checkpoint"],
                "mean" if row["method"] == "all" else row["method"],
                _bracket(row),
                _percent(share.get("reduction"), 1),
                _percent(share.get("published"), 2),
            ]
        )
    header = ["checkpoint", "method", f"drop from {FULL}", "reduction", "published"]
    return _grid(header, rows)


def _grid(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def _items(notes: list[str]) -> list[str]:
    return [f"- {note}" for note in notes]


def _percent(value: float | None, digits: int) -> str:
    return "" if value is None else f"{100 * value:+.{digits}f} %"


def _bracket(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def _plus_minus(found: dict[str, Any] | None) -> str:
    """Give half of the interval, to save room."""
    if found is None:
        return "-"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ±{(found['high'] - found['low']) / 2:.3f}"


def _cut(name: str) -> str:
    return name if len(name) < _CELL else name[: _CELL - 2] + "…"

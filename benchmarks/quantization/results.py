"""Drops over tasks and seeds, and how much of the reference's drop the other models are spared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common import compare_ratio, summarise, write_files
from benchmarks.quantization.recipe import MASKED, Recipe

__all__ = ["PUBLISHED", "collect", "write_results"]

PUBLISHED = 0.6434
"""GERM's headline (arXiv 2505.00598). How it is computed is not published; our reading is the
relative reduction of the average drop of MCC, over tasks, methods and widths, against DNABERT-2."""

Row = dict[str, Any]


def collect(recipe: Recipe, rows: Sequence[Row]) -> dict[str, Any]:
    """Bring measured cells into one JSON-serialisable whole.

    Parameters
    ----------
    recipe
        Of the table.
    rows
        As :func:`~benchmarks.quantization.running.run` returns them: all cells of all seeds.

    Returns
    -------
    dict
        ``title, seeds, models, tasks, schemes, methods, headline, published, settings``;
        ``plain`` (a model each: average ``mcc`` and masked ``loss`` in floating point), ``cells``
        (a method, scheme and model each: ``mcc``, ``drop``, ``loss``, ``increase``), ``spared``
        (a method, scheme and model but the first: the shares of the first model's drop and
        increase that are gone), ``overall`` (a model each: average ``drop`` and ``increase`` over
        the published methods and headline schemes, and, but for the first, ``spared`` and
        ``verdict``), ``seconds`` and ``rows``.
    """
    table = _Table(recipe, rows)
    reference, *others = recipe.models
    pairs = [(method.name, scheme) for method, scheme in recipe.rows]
    published = [method.name for method in recipe.methods if method.published]
    counted = [(m, s) for m, s in pairs if m in published and s in recipe.headline]
    return {
        "title": recipe.title,
        "seeds": list(recipe.seeds),
        "models": list(recipe.models),
        "tasks": list(recipe.tasks),
        "schemes": list(recipe.schemes),
        "methods": [method.name for method in recipe.methods],
        "headline": {"methods": published, "schemes": list(recipe.headline)},
        "published": PUBLISHED,
        "parameters": next(row["parameters"] for row in rows if "parameters" in row),
        "settings": {
            name: getattr(recipe, name)
            for name in ("pool", "model", "train", "convert", "tune", "quantize")
        },
        "plain": [_describe_plain(table, model) for model in recipe.models],
        "cells": [_describe(table, *pair, model) for pair in pairs for model in recipe.models],
        "spared": [
            {"method": pair[0], "scheme": pair[1], "model": model}
            | _compare(table, [pair], model, reference)
            for pair in pairs
            for model in others
        ],
        "overall": [_sum_up(table, counted, model, reference) for model in recipe.models],
        "seconds": sum(row["seconds"] for row in rows),
        "rows": list(rows),
    }


class _Table:
    """Values by seed of every model, method and scheme."""

    def __init__(self, recipe: Recipe, rows: Iterable[Row]) -> None:
        self.seeds, self.tasks = recipe.seeds, recipe.tasks
        self._rows = {
            (row["seed"], row["model"], row["task"], row["method"], row["scheme"]): row
            for row in rows
        }
        self.first = next((method.name, scheme) for method, scheme in recipe.rows)

    def mean(self, model: str, pair: tuple[str, str], key: str) -> np.ndarray:
        """Average over tasks, one value a seed."""
        return np.mean([self.of(model, task, pair, key) for task in self.tasks], 0)

    def of(self, model: str, task: str, pair: tuple[str, str], key: str) -> np.ndarray:
        """One value a seed."""
        return np.array([float(self._rows[s, model, task, *pair][key]) for s in self.seeds])

    def drop(self, model: str, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Average drop of MCC over tasks and rows, one value a seed."""
        found = [self.mean(model, p, "value") - self.mean(model, p, "quantized") for p in pairs]
        return np.mean(found, 0)

    def increase(self, model: str, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Average increase of the masked loss, one value a seed."""
        found = [
            self.of(model, MASKED, p, "quantized") - self.of(model, MASKED, p, "value")
            for p in pairs
        ]
        return np.mean(found, 0)


def _describe_plain(table: _Table, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "mcc": summarise(table.mean(model, table.first, "value")),
        "loss": summarise(table.of(model, MASKED, table.first, "value")),
    }


def _describe(table: _Table, method: str, scheme: str, model: str) -> dict[str, Any]:
    pair = method, scheme
    return {
        "method": method,
        "scheme": scheme,
        "model": model,
        "mcc": summarise(table.mean(model, pair, "quantized")),
        "drop": summarise(table.drop(model, [pair])),
        "loss": summarise(table.of(model, MASKED, pair, "quantized")),
        "increase": summarise(table.increase(model, [pair])),
    }


def _compare(
    table: _Table, pairs: Sequence[tuple[str, str]], model: str, reference: str
) -> dict[str, Any]:
    """Find the shares of the reference's drop and increase that are gone."""
    return {
        name: _spare(find(model, pairs), find(reference, pairs))
        for name, find in (("drop", table.drop), ("increase", table.increase))
    }


def _spare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Find 1 minus the ratio, its interval, and whether there is anything to be spared.

    ``distinct`` says that the reference's own value is above 0 by its interval over seeds; None
    for a single seed.
    """
    found = compare_ratio(ours, theirs)
    low = summarise(theirs)["low"]
    turn = {"mean": "mean", "low": "high", "high": "low"}
    share = {name: None if found[of] is None else 1 - found[of] for name, of in turn.items()}
    return share | {"distinct": None if low is None else low > 0}


def _sum_up(
    table: _Table, pairs: Sequence[tuple[str, str]], model: str, reference: str
) -> dict[str, Any]:
    if not pairs:
        return {"model": model}
    drop, increase = table.drop(model, pairs), table.increase(model, pairs)
    found: dict[str, Any] = {
        "model": model,
        "drop": summarise(drop),
        "increase": summarise(increase),
    }
    if model != reference:
        found["spared"] = _compare(table, pairs, model, reference)
        before = {
            "drop": table.drop(reference, pairs),
            "increase": table.increase(reference, pairs),
        }
        found["verdict"] = "; ".join(
            _say(words, model, reference, values.mean(), before[name].mean(), found["spared"][name])
            for name, words, values in (
                ("drop", "average drop of MCC", drop),
                ("increase", "masked loss added", increase),
            )
        )
    return found


def _say(
    what: str, model: str, reference: str, ours: float, theirs: float, spared: dict[str, Any]
) -> str:
    """Say what was measured, and nothing of a share where there is nothing to be shared."""
    words = f"{what} {ours:.4f} ({model}) against {theirs:.4f} ({reference})"
    if spared["mean"] is None or spared["distinct"] is False:
        return f"{words}: {reference}'s cannot be told from 0, so that a share of it means nothing"
    words += f": {_down(spared['mean'])}"
    if spared["distinct"] is None:
        return f"{words} (one seed, no interval)"
    words += f" (95 % interval {spared['low']:.0%} to {spared['high']:.0%})"
    if what.endswith("MCC"):
        inside = spared["low"] <= PUBLISHED <= spared["high"]
        side = "in" if inside else "below" if spared["low"] > PUBLISHED else "above"
        words += f"; the published {PUBLISHED:.2%}, in our reading, lies {side} that interval"
    return words


def _down(share: float) -> str:
    return f"{share:.0%} less" if share >= 0 else f"{-share:.0%} more"


def write_results(content: dict[str, Any], stem: Path) -> None:
    """Write ``STEM.json`` and ``STEM.parquet`` (one row a cell)."""
    write_files(content, [{"parameters": None, **row} for row in content["rows"]], stem)

"""Means and intervals over seeds, and the verdict of every arm against its control."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common import summarise, write_files
from benchmarks.common_arms import Arm
from benchmarks.outliers.recipe import Recipe

__all__ = ["GOAL", "collect", "write_results"]

GOAL = {"kurtosis": 0.92, "inf_norm": 0.82}
"""Shares of the control's excess over Gaussian values that are to go, at no worse loss."""

_LEAST = {"kurtosis": 0.1, "inf_norm": 0.05}
"""Excesses of a control below which there is nothing to remove."""

_LOST = 0.5
"""Nats above the control's loss at which an arm did not learn."""

_EXCESSES = {
    "kurtosis": "avg_kurtosis_excess",
    "inf_norm": "max_inf_norm_excess",
    "inf_norm_layer_norm": "max_inf_norm_layer_norm_excess",
}
_PLAIN = (
    "loss",
    "avg_kurtosis",
    "avg_kurtosis_excess",
    "max_inf_norm",
    "max_inf_norm_excess",
    "max_inf_norm_layer_norm",
    "max_inf_norm_layer_norm_excess",
    "max_abs",
)


def collect(recipe: Recipe, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Bring measured arms into one JSON-serialisable whole.

    Parameters
    ----------
    recipe
        Of the table.
    rows
        As :func:`~benchmarks.outliers.running.run` returns them, all seeds of all arms.

    Returns
    -------
    dict
        ``title, seeds, goal, settings, arms`` (each with ``values`` and, against a control,
        ``change`` and ``verdict``) and ``rows``.
    """
    by_arm = {arm.name: [row for row in rows if row["arm"] == arm.name] for arm in recipe.arms}
    arms = []
    for arm in recipe.arms:
        mine = by_arm[arm.name]
        values = {key: summarise([row[key] for row in mine]) for key in _PLAIN}
        for name in mine[0]["increase"]:
            values[name] = summarise([row["increase"][name] for row in mine])
        if all(row["null"] is not None for row in mine):
            values["null"] = summarise([row["null"] for row in mine])
        found: dict[str, Any] = {"name": arm.name, "against": arm.against, "values": values}
        if arm.against is not None:
            found["change"] = _compare(mine, by_arm[arm.against])
            found["verdict"] = _judge(arm, found["change"])
        arms.append(found)
    return {
        "title": recipe.title,
        "seeds": list(recipe.seeds),
        "goal": GOAL,
        "parameters": rows[0]["parameters"],
        "settings": {
            "pool": recipe.pool,
            "model": recipe.model,
            "train": recipe.train,
            "convert": recipe.convert,
            "measure": recipe.measure,
        },
        "seconds": sum(row["seconds"] for row in rows),
        "arms": arms,
        "rows": list(rows),
    }


def _compare(mine: list[dict[str, Any]], control: list[dict[str, Any]]) -> dict[str, Any]:
    """Differences of losses, paired by seed, and the share of each excess that is gone."""
    change: dict[str, Any] = {
        "loss": summarise([a["loss"] - b["loss"] for a, b in zip(mine, control, strict=True)])
    }
    for name in mine[0]["increase"]:
        change[name] = summarise(
            [a["increase"][name] - b["increase"][name] for a, b in zip(mine, control, strict=True)]
        )
    for name, key in _EXCESSES.items():
        ours, theirs = (np.array([row[key] for row in rows]) for rows in (mine, control))
        gone = None
        # A share of nothing, or of a negative excess, says nothing.
        if theirs.mean() > 0:
            gone = summarise(((theirs - ours) / theirs.mean()).tolist())
        change[name] = {"control": float(theirs.mean()), "arm": float(ours.mean()), "gone": gone}
    return change


def _judge(arm: Arm, change: dict[str, Any]) -> dict[str, Any]:
    """Hold an arm against the goal; the sentence says what was measured."""
    loss = change["loss"]
    no_worse = loss["mean"] <= 0 or (loss["low"] is not None and loss["low"] <= 0)
    halves = [
        _judge_half("excess kurtosis", "kurtosis", change["kurtosis"]),
        _judge_half("inf-norm above Gaussian", "inf_norm", change["inf_norm"]),
    ]
    found = [met for met, _ in halves]
    reached = False if not no_worse or False in found else None if None in found else True
    significant = loss["low"] is not None and not loss["low"] <= 0 <= loss["high"]
    tone = "" if significant or loss["low"] is None else ", within the spread of seeds"
    words = f"{arm.name} against {arm.against}: {'; '.join(words for _, words in halves)}"
    words += f"; loss {loss['mean']:+.4f} nats{tone}"
    if loss["mean"] > _LOST:
        words += ", so that it did not learn and its outliers say nothing"
    outcome = {None: "not testable", True: "reached", False: "not reached"}[reached]
    return {"reached": reached, "no_worse": bool(no_worse), "words": f"{words}: goal {outcome}."}


def _judge_half(what: str, name: str, change: dict[str, Any]) -> tuple[bool | None, str]:
    """Tell whether one of the excesses went down as far as the goal, for certain; None: unknown."""
    gone = change["gone"]
    if change["control"] < _LEAST[name] or gone is None:
        return None, f"{what} of the control {change['control']:.2f}, nothing to remove"
    words = f"{what} {_down(gone['mean'])} (goal {GOAL[name]:.0%} down"
    certain = gone["low"] is None or gone["low"] > 0
    if gone["low"] is not None:
        words += f"; 95 % interval {gone['low']:.0%} to {gone['high']:.0%} down"
    if not certain and gone["high"] > 0:
        words += ", not told from no change"
    return certain and gone["mean"] >= GOAL[name], f"{words})"


def _down(share: float) -> str:
    if share > 1:
        return "down to below Gaussian"
    return f"down by {share:.0%}" if share >= 0 else f"up by {-share:.0%}"


def write_results(content: dict[str, Any], stem: Path) -> None:
    """Write ``STEM.json`` and ``STEM.parquet`` (one row per arm and seed)."""
    flat = [
        {k: v for k, v in row.items() if k != "increase"}
        | {f"increase {name}": value for name, value in row["increase"].items()}
        for row in content["rows"]
    ]
    write_files(content, flat, stem)

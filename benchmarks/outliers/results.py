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

_LEAST_EXCESS = 0.1
"""Excess kurtosis of a control below which there is nothing to remove."""

_LOST = 0.5
"""Nats above the control's loss at which an arm did not learn."""

_EXCESSES = {
    "kurtosis": ("avg_kurtosis", "avg_kurtosis_gaussian"),
    "inf_norm": ("max_inf_norm", "max_inf_norm_gaussian"),
    "inf_norm_layer_norm": ("max_inf_norm_layer_norm", "max_inf_norm_layer_norm_gaussian"),
}
_PLAIN = (
    "loss",
    "avg_kurtosis",
    "avg_kurtosis_excess",
    "max_inf_norm",
    "max_inf_norm_layer_norm",
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
    for name, (key, expected) in _EXCESSES.items():
        ours, theirs = (
            np.array([row[key] - row[expected] for row in rows]) for rows in (mine, control)
        )
        shares = None
        # A share of nothing, or of a negative excess, says nothing.
        if theirs.mean() > 0:
            shares = {"mean": float(1 - ours.mean() / theirs.mean()), "low": None, "high": None}
            if len(ours) > 1 and (theirs > 0).all():
                spread = summarise((1 - ours / theirs).tolist())
                shares |= {"low": spread["low"], "high": spread["high"]}
        change[name] = {"control": float(theirs.mean()), "arm": float(ours.mean()), "gone": shares}
    return change


def _judge(arm: Arm, change: dict[str, Any]) -> dict[str, Any]:
    """Hold an arm against the goal; the sentence says what was measured."""
    kurtosis, norm, loss = change["kurtosis"], change["inf_norm"], change["loss"]
    no_worse = loss["mean"] <= 0 or (loss["low"] is not None and loss["low"] <= 0)
    words = f"{arm.name} against {arm.against}: "
    if kurtosis["control"] < _LEAST_EXCESS:
        words += (
            f"the control has an excess kurtosis of {kurtosis['control']:.2f} only, so that there "
            "is nothing to remove at this size and budget"
        )
        reached = None
    else:
        gone = {"kurtosis": kurtosis["gone"]["mean"]}
        words += f"excess kurtosis {_down(gone['kurtosis'])} (goal {GOAL['kurtosis']:.0%} down), "
        if norm["gone"] is None:
            words += "inf-norm of the control not above Gaussian"
        else:
            gone["inf_norm"] = norm["gone"]["mean"]
            words += (
                f"inf-norm above Gaussian {_down(gone['inf_norm'])} "
                f"(goal {GOAL['inf_norm']:.0%} down)"
            )
        reached = no_worse and all(share >= GOAL[name] for name, share in gone.items())
    significant = loss["low"] is not None and not loss["low"] <= 0 <= loss["high"]
    tone = "" if significant or loss["low"] is None else ", within the spread of seeds"
    words += f"; loss {loss['mean']:+.4f} nats{tone}"
    if loss["mean"] > _LOST:
        words += ", so that it did not learn and its outliers say nothing"
    outcome = {None: "not testable", True: "reached", False: "not reached"}[reached]
    return {"reached": reached, "no_worse": bool(no_worse), "words": f"{words}: goal {outcome}."}


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

"""Gather a report's records from finished artifacts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frugalfm.artifacts import fingerprint, read_manifest
from frugalfm.errors import InputError
from frugalfm.reporting.records import (
    Coreset,
    Interval,
    Model,
    Outliers,
    Pool,
    Probe,
    Quantization,
    Results,
    Run,
    Site,
    Stratum,
)

__all__ = ["collect_demo"]

LABELS = {
    "random": "random",
    "top-influence": "Top I",
    "top-influence-by-length": "Top I by length",
    "coverage": "CCI (coverage)",
}
# Of the bundled sequences: each source and its licence.
SOURCES = (
    ("5S and 5.8S rRNA: Rfam (RF00001, RF00002), as distributed with SortMeRNA", "CC0"),
    ("microRNA hairpins: miRBase (Kozomara, Birgaoanu, Griffiths-Jones 2019)", "public domain"),
    ("small and large subunit rRNA: NCBI rRNA references", "public domain"),
    ("coding sequences of bacteria and archaea, as distributed with MetaPhlAn 2", "MIT"),
)
FULL = ("full-softmax", "full-softmax1")
CHAIN = ("shards", "scores", "coreset", "checkpoint", "evaluation", "outliers", "quantization")
SCHEMES = ("w8a8", "w6a6", "w4a4")


def collect_demo(out: Path) -> Results:
    """Gather what `frugalfm demo` left in its folder.

    Parameters
    ----------
    out
        The folder, with ``pool``, ``validation``, ``scores``, ``coresets``, ``models``,
        ``evaluations``, ``outliers`` and ``quantization``.

    Raises
    ------
    InputError
        An artifact is missing, damaged, or made of other data than lies in this folder.
    """
    out = Path(out)
    pool = read_pool(out / "scores", out / "pool")
    coresets = tuple(
        read_coreset(out / "coresets" / name, label, pool) for name, label in LABELS.items()
    )
    trained_on = {fingerprint(out / "pool"): pool.size}
    trained_on |= {fingerprint(out / "coresets" / c.name): len(c.rows) for c in coresets}
    names = {**LABELS, FULL[0]: "full pool", FULL[1]: "full pool, softmax1"}
    names["untrained"] = "untrained"
    models = tuple(
        read_model(out / "models" / name, out / "evaluations" / name, label, trained_on, pool.size)
        for name, label in names.items()
    )
    attention = {model.name: model.attention for model in models}
    runs, manifests = _read_runs(out)
    checkpoints = [m for m in manifests if m["kind"] == "checkpoint"]
    return Results(
        title="FrugalFM demo",
        sources=SOURCES,
        pool=pool,
        models=models,
        coresets=coresets,
        outliers=tuple(read_outliers(out / "outliers" / name, attention[name]) for name in FULL),
        quantizations=tuple(
            read_quantization(out / "quantization" / f"{name}-{scheme}", attention[name])
            for name in FULL
            for scheme in SCHEMES
        ),
        runs=runs,
        versions={"frugalfm": manifests[-1]["frugalfm"], **manifests[-1]["versions"]},
        created=max(m["created"] for m in manifests),
        device=", ".join(sorted({m["summary"].get("device", "") for m in checkpoints} - {""})),
        validation_sequences=_count(out / "validation"),
        architecture=", ".join(sorted({str(m["config"].get("model")) for m in checkpoints})),
        seeds=tuple(sorted({int(m["config"].get("seed", 0)) for m in checkpoints})),
    )


def read_pool(scores: Path, shards: Path) -> Pool:
    """Read the scores of a pool; a family is what an id says before its first ``|``."""
    read_manifest(shards, ("shards", "coreset"))
    manifest = read_manifest(scores, "scores")
    parts = sorted(name for name in manifest["files"] if name.endswith(".parquet"))
    with _reading(scores):
        columns = ["id", "row", "influence", "length"]
        table = pa.concat_tables([pq.read_table(scores / part, columns=columns) for part in parts])
        order = np.argsort(table["row"].to_numpy(), kind="stable")
        ids = np.array(table["id"].to_pylist(), dtype=object)[order]
        family = [str(i).split("|", 1)[0].replace("_", " ") if "|" in str(i) else "" for i in ids]
        return Pool(
            influence=table["influence"].to_numpy()[order].astype(float),
            length=table["length"].to_numpy()[order],
            family=np.array(family, dtype=object),
        )


def read_coreset(folder: Path, label: str, pool: Pool) -> Coreset:
    """Read which rows of the pool a coreset holds, and the strata it was drawn from."""
    read_manifest(folder, "coreset")
    with _reading(folder):
        occupancy = _read_json(folder / "occupancy.json")
        rows = pq.read_table(folder / "selection.parquet", columns=["row"])["row"].to_numpy()
        strata = tuple(
            Stratum(float(s["low"]), float(s["high"]), int(s["population"]), int(s["chosen"]))
            for s in occupancy["strata"]
        )
        dropped = int(occupancy["dropped"])
    if len(rows) and not 0 <= rows.min() <= rows.max() < pool.size:
        raise InputError(f"{folder}: holds rows that the scores do not have; select again")
    return Coreset(folder.name, label, rows, dropped, strata)


def read_model(
    folder: Path, evaluation: Path, label: str, trained_on: dict[str, int], pool_size: int
) -> Model:
    """Read a checkpoint's pretraining and its evaluation.

    Parameters
    ----------
    folder, evaluation
        The two artifacts.
    label
        How the report calls the model.
    trained_on
        Number of sequences of every data set in reach, by its fingerprint.
    pool_size
        Number of sequences of the whole pool.

    Raises
    ------
    InputError
        An artifact is missing or damaged; the evaluation is of another checkpoint, or the
        checkpoint was trained on data that is not in reach.
    """
    manifest = read_manifest(folder, "checkpoint")
    measured = read_manifest(evaluation, "evaluation")
    with _reading(evaluation):
        matches = measured["inputs"]["checkpoint"]["sha256"] == fingerprint(folder)
    if not matches:
        raise InputError(f"{evaluation}: is of another checkpoint than {folder}; evaluate again")
    with _reading(folder):
        config, summary = manifest["config"], manifest["summary"]
        steps = int(summary["steps"])
        source = manifest["inputs"].get("data", {}).get("sha256")
        encoder = _read_json(folder / "config.json")
    if steps and source not in trained_on:
        raise InputError(f"{folder}: was trained on data that is not in this folder; train again")
    sequences = trained_on[source] if steps else 0
    role = "untrained" if not steps else "full" if sequences == pool_size else "strategy"
    with _reading(folder):
        return Model(
            name=folder.name,
            label=label,
            attention=config.get("attention") or encoder.get("attn_implementation") or "softmax",
            role=role,
            sequences=sequences,
            share=sequences / pool_size,
            epochs=int(summary.get("epochs", 0)),
            steps=steps,
            seconds=summary.get("seconds"),
            validation_loss=summary.get("validation_loss"),
            parameters=summary.get("parameters"),
            curve=_read_curve(folder / "log.jsonl") if steps else (),
            probe=_read_probe(evaluation),
        )


def read_outliers(folder: Path, attention: str) -> Outliers:
    """Read the outlier statistics of one model."""
    read_manifest(folder, "outliers")
    with _reading(folder):
        found = _read_json(folder / "outliers.json")
        fields = ("layer", "place", "kurtosis", "gaussian_kurtosis", "inf_norm")
        return Outliers(
            name=folder.name,
            attention=attention,
            avg_kurtosis=found["avg_kurtosis"],
            gaussian_kurtosis=found["avg_kurtosis_gaussian"],
            max_inf_norm=found["max_inf_norm"],
            max_inf_norm_layer_norm=found["max_inf_norm_layer_norm"],
            sequences=found["sequences"],
            sites=tuple(Site(*(site[field] for field in fields)) for site in found["sites"]),
        )


def read_quantization(folder: Path, attention: str) -> Quantization:
    """Read what a quantization scheme cost one model."""
    read_manifest(folder, "quantization")
    with _reading(folder):
        found = _read_json(folder / "quantization.json")
        return Quantization(
            name=folder.name,
            attention=attention,
            label=found["label"],
            meaning=found["meaning"],
            method=found["method"],
            execution=found["execution"],
            bits=found["weights"]["bits"],
            loss=found["loss"],
            increase=found["increase"],
            standard_error=found["increase_standard_error"],
            sequences=found["sequences"],
        )


def _read_probe(folder: Path) -> Probe:
    with _reading(folder):
        found = _read_json(folder / "metrics.json")
        predictions = pq.read_table(folder / "predictions.parquet")
        order = np.argsort(predictions["row"].to_numpy(), kind="stable")
        label = np.array(predictions["label"].to_pylist(), dtype=object)
        predicted = np.array(predictions["prediction"].to_pylist(), dtype=object)
        test = found["test"]
        return Probe(
            task=found["task"],
            classes=len(found["classes"]),
            accuracy=Interval(*(test["accuracy"][key] for key in ("value", "low", "high"))),
            macro_f1=Interval(*(test["macro_f1"][key] for key in ("value", "low", "high"))),
            chance=found["baseline"]["test"]["accuracy"]["value"],
            correct=(label == predicted)[order],
        )


def _read_curve(path: Path) -> tuple[tuple[int, float], ...]:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return tuple((int(line["step"]), float(line["loss"])) for line in lines if "loss" in line)


def _read_runs(out: Path) -> tuple[tuple[Run, ...], list[dict[str, Any]]]:
    """List every finished stage below a folder, in the order in which they were finished."""
    found = []
    for path in sorted(out.rglob("manifest.json")):
        relative = path.parent.relative_to(out)
        if not any(part.startswith(".") for part in relative.parts):
            found.append((read_manifest(path.parent), relative.as_posix()))
    # Several stages may finish in one second: then in the order of the chain.
    found.sort(key=lambda pair: (pair[0]["created"], _place(pair[0]["kind"]), pair[1]))
    runs = tuple(
        Run(name, manifest["kind"], manifest["config"], manifest["summary"].get("seconds"))
        for manifest, name in found
    )
    return runs, [manifest for manifest, _ in found]


def _place(kind: str) -> int:
    return CHAIN.index(kind) if kind in CHAIN else len(CHAIN)


def _count(folder: Path) -> int:
    manifest = read_manifest(folder, ("shards", "coreset"))
    with _reading(folder):
        return int(manifest["summary"]["n_sequences"])


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn whatever goes wrong inside an artifact into an error that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, IndexError, pa.ArrowException) as error:
        raise InputError(
            f"{folder}: cannot be read ({type(error).__name__}: {error}); make the artifact again"
        ) from None

"""A tiny stand-in for the folder that `frugalfm demo` leaves behind, with the same layout."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frugalfm.artifacts import open_stage, write_json

POOL, BUDGET, TEST, STEPS = 60, 12, 80, 100
STRATEGIES = ("random", "top-influence", "top-influence-by-length", "coverage")
FULL = ("full-softmax", "full-softmax1")
HOSTILE = '<script>alert("&")</script>'


def make_demo(out: Path) -> Path:
    """Write all artifacts below `out`."""
    rng = np.random.default_rng(0)
    influence = np.exp(rng.normal(5, 1.5, POOL)).astype(np.float32)
    length = rng.integers(20, 220, POOL).astype(np.int32)
    ids = [f"{('5S_rRNA', HOSTILE, 'tRNA')[i % 3]}|{i}" for i in range(POOL)]
    shards(out / "pool", ids)
    shards(out / "validation", ids[:9])
    columns = {"id": ids, "row": np.arange(POOL), "influence": influence, "length": length}
    stage(out / "scores", "scores", {"part-00000.parquet": columns}, {"seconds": 4.0})
    for index, name in enumerate(STRATEGIES):
        rows = np.argsort(influence)[::-1][index : index + BUDGET].copy()
        coreset(out / "coresets" / name, rows, influence)
        model(out, name, out / "coresets" / name, loss=1.5 - 0.1 * index)
    for name in FULL:
        model(out, name, out / "pool", loss=1.3)
        outliers(out / "outliers" / name)
        for bits in (8, 6, 4):
            quantization(out / "quantization" / f"{name}-w{bits}a{bits}", bits)
    model(out, "untrained", None, loss=None)
    return out


def stage(folder, kind, files, summary, config=None, inputs=None):
    made = open_stage(folder, kind, config or {"seed": 0}, inputs or {})
    for name, content in files.items():
        if name.endswith(".parquet"):
            pq.write_table(pa.table(content), made.work / name)
        elif name.endswith(".jsonl"):
            (made.work / name).write_text("".join(json.dumps(line) + "\n" for line in content))
        else:
            write_json(made.work / name, content)
    made.commit(summary)


def shards(folder, ids):
    table = {"id": ids, "sequence": ["ACGU"] * len(ids), "length": [4] * len(ids)}
    stage(folder, "shards", {"part-00000.parquet": table}, {"n_sequences": len(ids)})


def coreset(folder, rows, influence):
    occupancy = {
        "dropped": 6,
        "strata": [
            {"stratum": 0, "low": 1.0, "high": 100.0, "population": 30, "chosen": 6},
            {"stratum": 1, "low": 100.0, "high": 199.0, "population": 24, "chosen": 6},
        ],
    }
    selection = {"row": rows, "influence": influence[rows]}
    files = {"occupancy.json": occupancy, "selection.parquet": selection}
    config = {"strategy": folder.name, "seed": 0}
    stage(folder, "coreset", files, {"n_sequences": len(rows)}, config)


def model(out, name, data, loss):
    folder = out / "models" / name
    attention = "softmax1" if name.endswith("1") else "softmax"
    config = {"model": "rna-fm-nano", "seed": 0, "steps": STEPS if data else 0}
    files = {"config.json": {"attn_implementation": attention}}
    if data:
        config["attention"] = attention
        files["log.jsonl"] = [
            *({"step": step, "loss": 3 - step / 60} for step in range(10, STEPS + 1, 10)),
            {"step": STEPS, "validation_loss": loss},
        ]
        summary = {"steps": STEPS, "epochs": 3, "validation_loss": loss, "seconds": 5.0}
        summary |= {"parameters": 1000, "device": "cpu"}
    else:
        summary = {"steps": 0}
    stage(folder, "checkpoint", files, summary, config, {"data": data})
    right = 20 if name == "untrained" else 40
    label = np.array(["a"] * TEST)
    prediction = np.where(np.arange(TEST) < right, "a", "b")
    metric = {"value": right / TEST, "low": right / TEST - 0.1, "high": right / TEST + 0.1}
    metrics = {
        "task": "families",
        "classes": ["a", "b"],
        "test": {"accuracy": metric, "macro_f1": metric},
        "baseline": {"test": {"accuracy": {"value": 0.5}}},
    }
    predictions = {"row": np.arange(TEST), "label": label, "prediction": prediction}
    files = {"metrics.json": metrics, "predictions.parquet": predictions}
    stage(out / "evaluations" / name, "evaluation", files, {}, inputs={"checkpoint": folder})


def outliers(folder):
    sites = [
        {"layer": layer, "place": place, "kurtosis": 4.0 + layer, "gaussian_kurtosis": 2.8,
         "inf_norm": 5.0}
        for layer in (0, 1)
        for place in ("ffn_output", "layer_norm")
    ]  # fmt: skip
    found = {"avg_kurtosis": 4.5, "avg_kurtosis_gaussian": 2.8, "max_inf_norm": 5.0}
    found |= {"max_inf_norm_layer_norm": 3.0, "sequences": 9, "sites": sites}
    stage(folder, "outliers", {"outliers.json": found}, {})


def quantization(folder, bits):
    found = {
        "label": f"W{bits}A{bits}",
        "meaning": "weight-and-activation",
        "method": "minmax",
        "execution": "simulated",
        "weights": {"bits": bits},
        "loss": 1.3,
        "increase": 0.08 / bits**2,
        "increase_standard_error": 0.0001,
        "sequences": 10,
    }
    stage(folder, "quantization", {"quantization.json": found}, {}, {"seed": 0, "weights": bits})

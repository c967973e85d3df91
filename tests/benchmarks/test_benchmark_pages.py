"""Pages of costs are computed from the benchmarks' JSON, goals that were not reached included."""

import json

import pytest
from benchmarks.pages import EXACT, HEAD, RELEASED, main

OPTIONS = {
    "pool": "somewhere/pool.fasta.gz", "model_size": "rna-fm-tiny", "checkpoint": "None",
    "train_steps": "200", "sequences": "300", "subset": "150", "batch_tokens": "16384",
    "precision": "fp32", "device": "cpu",
}  # fmt: skip


def make_scoring(precision="fp32", *, head_only=False):
    exact = {} if head_only else {EXACT: [0.5, 0.25]}
    scores = {
        "head, 1 group": {"passes": 1, "seconds": 2.0, "ratio": 1.01},
        HEAD: {"passes": 7, "seconds": 10.0, "ratio": 1.2},
        EXACT: {"passes": 7, "seconds": 40.0, "ratio": 3.0},
    }
    agreement = {"head, 1 group": {HEAD: [0.9, 0.5]} | exact, HEAD: {HEAD: [1.0, 1.0]} | exact}
    agreement[EXACT] = {HEAD: [0.5, 0.25], EXACT: [1.0, 1.0]}
    found = {name: row | {"agreement": agreement[name]} for name, row in scores.items()}
    if head_only:
        del found[EXACT]
    found[RELEASED] = {"passes": 2, "seconds": 50.0, "ratio": 9.0}
    return {
        "options": OPTIONS | {"precision": precision},
        "scores": found,
        "shares": {"trunk": 0.9, "the rest": 0.1},
        "memory_mb": {"5,000 sequences": 400.0, "40,000 sequences": 404.0},
    }


def predict(stage, what, predicted, measured, judged=True):
    return {"stage": stage, "what": what, "predicted": predicted, "measured": measured,
            "ratio": predicted / measured, "judged": judged}  # fmt: skip


ESTIMATE = {
    "options": OPTIONS | {"model": "rna-fm-nano", "budget": "10%", "steps": "200"},
    "probe_seconds": 31.2,
    "rows": [
        predict("score", "seconds", 12.0, 10.0),
        predict("score", "device_memory", 2e9, 1e9),
        predict("select", "seconds", 0.1, 1.0, judged=False),
    ],
}
SELECTION = {
    "rows": 200_000_000, "budget": "1%", "memory_limit": "1GB", "rounds": 1, "cpus": 2,
    "versions": {"duckdb": "1.4"},
    "results": [
        {"what": "scan", "seconds": 10.0, "cpu_seconds": 20.0, "peak_mb": 300.0},
        *(
            {"what": what, "seconds": 10 * times, "cpu_seconds": 9.0, "times_scan": times,
             "times_scan_cpu": 0.5, "peak_mb": peak}
            for what, times, peak in (("random", 1.2, 900.0), ("coverage", 1.6, 1000.0),
                                      ("released: top", 9.0, 9e3))
        ),
    ],
}  # fmt: skip


def write(tmp_path, benchmark, *contents, note=()):
    files = [tmp_path / f"{number}.json" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(json.dumps(content))
    page = tmp_path / "page.md"
    status = main([benchmark, str(page), *map(str, files), *note])
    return page.read_text() if status == 0 else status


def test_scores_of_two_precisions(tmp_path):
    contents = make_scoring(), make_scoring("bf16", head_only=True)
    text = write(tmp_path, "scoring", *contents, note=("--note", "on one core"))
    assert "benchmarks.scoring`, on one core: " in text
    assert "somewhere" not in text
    first, second = text.split("## bf16")
    assert f"| {HEAD} | 7 | 10.00 | 1.200 | 5.0 | 1.000, 1.00 | 0.500, 0.25 |" in first
    assert f"the worst of 2 (*{HEAD}*) | at most 1.05 | 1.2 | **not reached** |" in first
    assert "a mask group of *head, 1 group* | at least 12 | 25 | reached |" in first
    assert f"a mask group of *{HEAD}* | at least 12 | 35 | reached |" in first
    assert "at least 30 | 25 | **not reached** |" in second
    assert "an eighth of the pool | at most 1.05 | 1.01 | reached |" in second
    assert f"*{EXACT}*: head, 1 group (0.500 for 5.0% of its time).\n" in first
    assert f"*{HEAD}*: head, 1 group (0.900 for 20.0% of its time).\n" in second


def test_what_was_not_measured_is_said(tmp_path):
    content = make_scoring(head_only=True)
    del content["scores"]["head, 1 group"]
    content["memory_mb"].popitem()
    text = write(tmp_path, "scoring", content)
    assert "of *head, 1 group* | at least 12 |  | not measured |" in text
    assert "an eighth of the pool | at most 1.05 |  | not measured |" in text
    nothing = write(tmp_path, "selection", SELECTION | {"results": SELECTION["results"][:1]})
    assert nothing.count("not measured") == 2


def test_predictions_beside_what_happened(tmp_path):
    text = write(tmp_path, "estimate", ESTIMATE)
    assert "| score | time | 12.0 s | 10.0 s | 1.20 |  |" in text
    assert "| score | device memory | 2,000.0 MB | 1,000.0 MB | 2.00 | **outside** |" in text
    assert "| select | time | 0.1 s | 1.0 s | 0.10 | not judged |" in text
    assert "the worst of 2; 1 are within | at most 0.25 | 1 | **not reached** |" in text
    assert "The estimate took 31 s, the plan 11 s." in text


def test_the_worst_strategy_is_judged(tmp_path):
    text = write(tmp_path, "selection", SELECTION)
    assert "## 200,000,000 scores" in text
    assert "| scan | 10.0 | 20.0 |  |  | 300 |" in text
    worst = "the worst of 2 strategies (*coverage*)"
    assert f"{worst}; 1 are within | at most 1.5 | 1.6 | **not reached** |" in text
    assert f"{worst}; 2 are within | at most 2 | 1.049 | reached |" in text


@pytest.mark.parametrize("benchmark", ["scoring", "estimate", "selection"])
def test_other_files_are_refused(tmp_path, capsys, benchmark):
    assert write(tmp_path, benchmark, {"results": []}) == 2
    assert "0.json: no results of the benchmark" in capsys.readouterr().err
    (tmp_path / "0.json").write_text("{")
    assert main([benchmark, str(tmp_path / "page.md"), str(tmp_path / "0.json")]) == 2
    assert "0.json: no results; finish the run first" in capsys.readouterr().err

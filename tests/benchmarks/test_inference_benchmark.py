"""The inference benchmark makes and times a contender, and judges by the numbers."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

pytest.importorskip("openvino")

from benchmarks.inference_contenders import BASE, ENGINE, OURS, PEER, SMALL  # noqa: E402

from benchmarks import inference  # noqa: E402

TINY = [
    *("--layers", "1", "--width", "32", "--heads", "2", "--feed-forward", "48"),
    *(
        "--shapes",
        "1x8",
        "2x16",
        "--tokens",
        "16",
        "--rounds",
        "1",
        "--seconds",
        "0.01",
        "--calibration",
        "3",
    ),
]


def test_turns(tmp_path):
    options = inference.parse(["--work", str(tmp_path), "--attention", "softmax1", *TINY])
    inference.make_model(options, tmp_path)
    options.ids = 4096
    assert inference.take_turn(BASE, "make", options) == {"made": True}
    base = inference.take_turn(BASE, "run", options)
    assert base["error"] < 1e-6
    inference.take_turn(OURS, "make", options)
    ours = inference.take_turn(OURS, "run", options)
    assert 0 < ours["error"] < 0.1
    assert set(ours["ms"]) == {"1x8", "2x16"}
    assert min(ours["ms"].values()) > 0
    assert inference.read_parameters(tmp_path) > 4096 * 32


def test_what_cannot_run_is_listed_with_its_reason(tmp_path):
    options = inference.parse(["--work", str(tmp_path), "--only", BASE, ENGINE, *TINY])
    options.ids = 9
    found = inference.ask(ENGINE, "run", options)
    assert str(tmp_path) in found["failed"]
    rows = {BASE: row(4, 100, 0.0), ENGINE: found}
    assert f"{ENGINE}: not measured" in inference.tabulate(rows, ["1x8"])
    assert inference.judge(rows, ["1x8"]) == {}


def row(size, ms, error):
    return {
        "bytes": size,
        "ms": {"1x8": ms},
        "sequences_per_s": {"1x8": 1e3 / ms},
        "error": error,
    }


def test_goals():
    rows = {
        BASE: row(400, 80.0, 0.0),
        ENGINE: row(400, 30.0, 0.0),
        PEER: row(100, 11.0, 0.1),
        "torch bf16": row(200, 40.0, 0.02),
        OURS: row(100, 10.0, 0.04),
        SMALL: row(50, 30.0, 0.3),
    }
    assert inference.judge(rows, ["1x8"]) == pytest.approx(
        {
            f"1x8: times faster than {BASE} (>= 7)": 8.0,
            f"1x8: times faster than {ENGINE} (>= 2.5)": 3.0,
            f"1x8: times faster than the fastest peer, {PEER} (>= 1)": 1.1,
            "times smaller than fp32 (>= 3.9)": 4.0,
            "4-bit weights: times smaller than fp32 (>= 7)": 8.0,
            f"error beside {PEER}'s (<= 0.5)": 0.4,
        }
    )
    assert "| ours W8A8 smoothquant | 0 | 10.0 (100.0) | 0.0400 |" in inference.tabulate(
        rows, ["1x8"]
    )

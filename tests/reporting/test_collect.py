import json
import shutil

import numpy as np
import pytest
from demo_folder import BUDGET, HOSTILE, POOL, STEPS, TEST

from frugalfm.errors import InputError
from frugalfm.reporting import collect_demo


def test_everything_is_gathered(results):
    assert results.pool.size == POOL
    assert set(results.pool.family) == {"5S rRNA", HOSTILE, "tRNA"}
    assert [model.role for model in results.models] == ["strategy"] * 4 + ["full"] * 2 + [
        "untrained"
    ]
    first, *_, full, untrained = results.models
    assert (first.sequences, first.share, first.steps) == (BUDGET, BUDGET / POOL, STEPS)
    assert (full.sequences, full.attention, full.validation_loss) == (POOL, "softmax1", 1.3)
    assert (untrained.sequences, untrained.validation_loss, untrained.curve) == (0, None, ())
    assert first.probe.correct.sum() == 40
    assert len(first.probe.correct) == TEST
    assert len(first.curve) == 10
    assert len(results.outliers[0].sites) == 4
    assert [q.label for q in results.quantizations] == ["W8A8", "W6A6", "W4A4"] * 2
    assert results.validation_sequences == 9
    assert len(results.runs) == 2 + 1 + 4 + 7 + 7 + 2 + 6


def test_coreset_rows_are_positions_in_the_pool(results):
    top = next(c for c in results.coresets if c.name == "random")
    chosen = set(results.pool.influence[top.rows])
    assert chosen == set(np.sort(results.pool.influence)[-BUDGET:])


@pytest.mark.parametrize(
    "missing",
    [
        "pool",
        "validation",
        "scores",
        "coresets/coverage",
        "models/untrained",
        "evaluations/random",
        "outliers/full-softmax1",
        "quantization/full-softmax-w4a4",
        "models/random/log.jsonl",
    ],
)
def test_what_is_missing_is_named(demo, tmp_path, missing):
    copy = tmp_path / "demo"
    shutil.copytree(demo, copy)
    found = copy / missing
    if found.is_dir():
        shutil.rmtree(found)
    else:
        found.unlink()
    with pytest.raises(InputError, match=missing):
        collect_demo(copy)


def test_damaged_content_is_named(demo, tmp_path):
    copy = tmp_path / "demo"
    shutil.copytree(demo, copy)
    path = copy / "evaluations/random/metrics.json"
    path.write_text(path.read_text().replace('"accuracy"', '"accurate"'))
    with pytest.raises(InputError, match="evaluations/random"):
        collect_demo(copy)


@pytest.mark.parametrize(
    ("folder", "key", "message"),
    [
        ("models/random", "data", "trained on data that is not"),
        ("evaluations/random", "checkpoint", "of another checkpoint"),
    ],
)
def test_artifacts_that_do_not_belong_together(demo, tmp_path, folder, key, message):
    copy = tmp_path / "demo"
    shutil.copytree(demo, copy)
    path = copy / folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"][key]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=message):
        collect_demo(copy)

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from benchmarks.pruning.losses import FEWEST, FREQUENCIES, collect_losses, measure_losses
from benchmarks.pruning.recipe import Arm, Recipe
from benchmarks.pruning.results import judge

from frugalfm.encoders import create_encoder, load_encoder, save_encoder
from frugalfm.verbs.build import build

COUNTS = {"large": 12, "small": FEWEST, "single": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A rival and a coreset's model with two seeds, measured on sequences of three sources."""
    folder = tmp_path_factory.mktemp("losses")
    random = np.random.default_rng(0)
    rows = ["id,sequence,source"]
    for source, count in COUNTS.items():
        for i in range(count):
            letters = "".join(random.choice(list("ACGU"), random.integers(8, 40)))
            rows.append(f"{source}{i},{letters},{source}")
    (folder / "held-out.csv").write_text("\n".join(rows))
    build(folder / "held-out.csv", alphabet="rna", out=folder / "validation")
    # A pool rich in A, with one of the sequences held out.
    (folder / "pool.csv").write_text(f"{rows[0]}\np,{'AAC' * 9}G,x\n{rows[3]}\n")
    build(folder / "pool.csv", alphabet="rna", out=folder / "pool")
    save_encoder(*create_encoder("rna-fm-nano"), folder / "model")
    for number, name in enumerate(["rival-0", "rival-1", "chosen-0", "chosen-1"]):
        save_encoder(*create_encoder("rna-fm-nano", seed=number), folder / name)
        measure_losses(folder / name, out=folder / "losses" / name, data=folder / "validation")
    return folder


def read(folder, name):
    return pq.read_table(folder / "losses" / name / "losses.parquet").to_pylist()


def test_every_residue_is_predicted_once_without_being_seen(folder):
    """By hand: each sequence alone, one residue hidden at a time in its group's company."""
    from frugalfm.tokens.codec import Codec
    from frugalfm.tokens.masking import hash_sequences, mask_groups

    model, tokenizer = load_encoder(folder / "rival-0")
    codec = Codec.from_tokenizer(tokenizer)
    lines = (folder / "held-out.csv").read_text().splitlines()[1:]
    for row in (0, 7, len(lines) - 1):
        sequence = lines[row].split(",")[1]
        ids = torch.tensor(tokenizer(sequence)["input_ids"])
        one = [ids[1:-1].numpy().astype(codec.dtype)]
        groups = mask_groups(len(ids), np.array([len(sequence)]), hash_sequences(one), 7)[0]
        losses = []
        for position in range(1, len(ids) - 1):
            hidden = torch.from_numpy(groups == groups[position])
            with torch.no_grad():
                logits = model(input_ids=ids.where(~hidden, codec.mask_id)[None]).logits[0]
            losses.append(-logits[position].double().log_softmax(-1)[ids[position]])
        found = read(folder, "rival-0")[row]
        assert found["loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_means_are_over_sequences_and_over_sources_that_have_enough(folder):
    arms = tuple(Arm(name, "random", {}) for name in ("rival", "chosen"))
    recipe = Recipe(Path(), {}, arms, (), {"against": "rival"})
    found = collect_losses(recipe, folder, [0, 1])
    values = {(entry["mean"], entry["arm"]): entry["value"] for entry in found["values"]}
    assert (found["sequences"], found["left_out"]) == (sum(COUNTS.values()) - 1, 1)
    for arm in ("rival", "chosen"):
        both = [read(folder, f"{arm}-{seed}") for seed in (0, 1)]
        for rows in both:
            del rows[2]  # in the pool, too
        assert values["sequences", arm] == pytest.approx(
            np.mean([row["loss"] for rows in both for row in rows])
        )
        by_source = [
            [row["loss"] for rows in both for row in rows if row["source"] == source]
            for source, count in COUNTS.items()
            if count >= FEWEST
        ]
        assert values["sources", arm] == pytest.approx(np.mean([np.mean(s) for s in by_source]))
    for entry in found["differences"]:
        assert entry["arm"] in {"chosen", FREQUENCIES}
        gap = values[entry["mean"], entry["arm"]] - values[entry["mean"], "rival"]
        assert entry["value"] == pytest.approx(gap)
        assert entry["low"] < entry["value"] < entry["high"]
    inside = {e["source"]: e for e in found["by_source"] if e["arm"] == "chosen"}
    assert {name: entry["sequences"] for name, entry in inside.items()} == {
        "large": COUNTS["large"] - 1, "small": FEWEST,
    }  # fmt: skip
    over = values["sources", "chosen"] - values["sources", "rival"]
    assert np.mean([entry["value"] for entry in inside.values()]) == pytest.approx(over)


def test_residue_frequencies_are_those_of_the_pool(folder):
    recipe = Recipe(Path(), {}, (Arm("rival", "random", {}),), (), {"against": "rival"})
    found = collect_losses(recipe, folder, [0])
    lines = [line.split(",")[1] for line in (folder / "held-out.csv").read_text().splitlines()[1:]]
    pool = "AAC" * 9 + "G" + lines[2]
    known = lines[:2] + lines[3:]
    losses = [-np.mean([np.log(pool.count(x) / len(pool)) for x in line]) for line in known]
    own = [v for v in found["values"] if v["arm"] == FREQUENCIES and v["mean"] == "sequences"]
    assert own[0]["value"] == pytest.approx(np.mean(losses))


def test_runs_of_before_have_no_losses(tmp_path):
    arms = (Arm("rival", "random", {}),)
    recipe = Recipe(Path(), {}, arms, (), {"against": "rival"})
    assert collect_losses(recipe, tmp_path, [0]) is None


@pytest.mark.parametrize(("low", "high", "said"), [(-0.2, -0.1, "lower"), (0.1, 0.2, "higher")])
def test_the_verdict_says_which_losses_differ(low, high, said):
    entry = {"mean": "sequences", "arm": "chosen", "low": low, "high": high, "p_holm": 0.2}
    values = [{"mean": "sequences", "arm": name, "value": value}
              for name, value in (("rival", 1.5), (FREQUENCIES, 1.25))]  # fmt: skip
    content = {
        "goal": {"share": 0.025, "against": "rival", "full": "rival", "within": 0.02},
        "pool": 100,
        "seeds": [0, 1, 2],
        "arms": [{"name": name, "share": 1.0, "bound": False} for name in ("chosen", "rival")],
        "values": [],
        "differences": [],
        "losses": {"values": values, "differences": [entry]},
    }
    said_all = judge(content)["words"]
    assert any("+0.2500 nats from that of residue frequencies" in line for line in said_all)
    words = [line for line in said_all if line.startswith("Held-out")]
    assert len(words) == 1
    assert "chosen*" not in words[0]
    lower, higher = words[0].split(";")
    assert ("chosen" in lower) == (said == "lower")
    assert ("chosen" in higher) == (said == "higher")

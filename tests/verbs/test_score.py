"""The verb: resumable by part, independent of shards and batches, repeatable."""

import itertools
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frugalfm.artifacts import read_manifest
from frugalfm.coreset.footers import read_tally
from frugalfm.encoders import create_encoder, save_encoder
from frugalfm.errors import InputError
from frugalfm.influence import HeadGradients, ScoreRecipe, estimate_fisher, score_sequences
from frugalfm.influence.pool import _cut, draw_subset
from frugalfm.sequences import shards as shards_module
from frugalfm.sequences.shards import open_shards
from frugalfm.tokens.codec import Codec
from frugalfm.verbs.build import build
from frugalfm.verbs.score import score


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A pool of 60 sequences in one part and the same in several, and a checkpoint."""
    folder = tmp_path_factory.mktemp("score")
    random = np.random.default_rng(0)
    files = [folder / f"{i}.fasta" for i in range(4)]
    for i in range(60):
        with files[i // 15].open("a") as handle:
            handle.write(f">s{i}\n{''.join(random.choice(list('ACGU'), random.integers(5, 90)))}\n")
    build(*files, alphabet="rna", out=folder / "one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "PART_ROWS", 15)
        build(*files, alphabet="rna", out=folder / "several")
    model, tokenizer = create_encoder("rna-fm-nano", seed=1)
    save_encoder(model, tokenizer, folder / "model")
    return folder


def read(folder):
    return pa.concat_tables(pq.read_table(p) for p in sorted(folder.glob("part-*.parquet")))


def run(setting, out, /, data="one", **options):
    options = {"subset": 20, **options}
    return read(score(setting / data, model=setting / "model", out=out, **options))


def test_the_pool_is_split_as_meant(setting):
    assert len(open_shards(setting / "one").parts) == 1
    assert len(open_shards(setting / "several").parts) == 4


def test_columns_and_summary(setting, tmp_path):
    table = run(setting, tmp_path / "s")
    assert {f.name: str(f.type) for f in table.schema} == {
        "id": "string", "row": "int64", "influence": "float", "loss": "float",
        "n_tokens": "int32", "length": "int32",
    }  # fmt: skip
    assert table["id"].to_pylist() == [f"s{i}" for i in range(60)]
    assert table["row"].to_pylist() == list(range(60))
    assert table["n_tokens"].to_pylist() == table["length"].to_pylist()
    assert min(table["influence"].to_pylist()) > 0
    summary = read_manifest(tmp_path / "s", "scores")["summary"]
    assert summary["n_sequences"] == 60
    assert summary["subset"] == 20
    assert summary["loss"] == pytest.approx(np.mean(table["loss"].to_numpy()), rel=1e-5)
    names = {p.name for p in (tmp_path / "s").iterdir()}
    assert names == {"part-00000.parquet", "fisher.safetensors", "manifest.json"}
    known = read_tally([tmp_path / "s/part-00000.parquet"])
    assert known.composition()["mean_loss"] == pytest.approx(summary["loss"], rel=1e-5)


def test_parts_and_batches_do_not_matter(setting, tmp_path):
    """Invariant 2."""
    base = run(setting, tmp_path / "a")
    for i, options in enumerate([{"data": "several"}, {"batch_tokens": 150}]):
        other = run(setting, tmp_path / f"b{i}", **options)
        assert other["id"] == base["id"]
        np.testing.assert_allclose(
            other["influence"].to_numpy(), base["influence"].to_numpy(), rtol=1e-5
        )


def test_without_adaptation_it_is_the_formula_on_the_model_as_it_is(setting, tmp_path):
    table = run(setting, tmp_path / "s", adapt=False)
    model, tokenizer = create_encoder("rna-fm-nano", seed=1)
    codec = Codec.from_tokenizer(tokenizer)
    pool = open_shards(setting / "one")
    encoded = [
        codec.table[np.frombuffer(s.encode(), np.uint8)]
        for batch in pool.batches(["sequence"])
        for s in batch.column("sequence").to_pylist()
    ]
    gradients, recipe = HeadGradients(model, codec), ScoreRecipe()
    subset = draw_subset(pool, codec, 20, 0)
    assert len({s.tobytes() for s in subset}) == 20
    assert {s.tobytes() for s in subset} <= {s.tobytes() for s in encoded}
    fisher = estimate_fisher(gradients, subset, recipe)
    expected = score_sequences(gradients, fisher, encoded, recipe)
    np.testing.assert_allclose(table["influence"].to_numpy(), expected.influence, rtol=1e-5)


def test_options_that_should_matter_do(setting, tmp_path):
    base = run(setting, tmp_path / "a")["influence"].to_numpy()
    for i, options in enumerate(
        [{"seed": 1}, {"adapt": False}, {"reduction": "mean"}, {"passes": 3}, {"subset": 30}]
    ):
        other = run(setting, tmp_path / f"b{i}", **options)["influence"].to_numpy()
        assert np.abs(other / base - 1).max() > 1e-3, options


def test_killed_between_parts_it_redoes_only_the_unfinished(setting, tmp_path, monkeypatch):
    whole = run(setting, tmp_path / "whole", data="several")
    from frugalfm.influence import pool

    done = []
    original = pool.score_sequences

    def fail_at_third(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return original(*args)

    monkeypatch.setattr(pool, "score_sequences", fail_at_third)
    with pytest.raises(KeyboardInterrupt):
        run(setting, tmp_path / "cut", data="several")
    assert not (tmp_path / "cut").exists()
    partial = tmp_path / ".cut.partial"
    before = {p.name: p.stat().st_mtime_ns for p in partial.glob("part-*.parquet")}
    assert len(before) == 2
    monkeypatch.setattr(pool, "score_sequences", original)
    monkeypatch.setattr(pool, "_adapt", None)  # neither adapted nor estimated again
    monkeypatch.setattr(pool, "estimate_fisher", None)
    resumed = run(setting, tmp_path / "cut", data="several")
    assert resumed.equals(whole)
    after = {name: (tmp_path / "cut" / name).stat().st_mtime_ns for name in before}
    assert after == before


def test_a_second_call_finds_it_done(setting, tmp_path, capsys):
    run(setting, tmp_path / "s")
    run(setting, tmp_path / "s", batch_tokens=99)  # changes nothing, so it is the same artifact
    assert "already scored" in capsys.readouterr().out
    with pytest.raises(InputError, match="--overwrite"):
        run(setting, tmp_path / "s", seed=3)


def test_misfits_are_refused_before_any_work(setting, tmp_path):
    (tmp_path / "p.fasta").write_text(">a\nMKLV\n")
    build(tmp_path / "p.fasta", alphabet="protein", out=tmp_path / "protein")
    with pytest.raises(InputError, match=r"model reads rna; choose a model of protein$"):
        score(tmp_path / "protein", model=setting / "model", out=tmp_path / "s")
    (tmp_path / "l.fasta").write_text(">a\n" + "A" * 2000 + "\n")
    build(tmp_path / "l.fasta", alphabet="rna", max_length=3000, out=tmp_path / "long")
    with pytest.raises(InputError, match="--max-length 1022"):
        score(tmp_path / "long", model=setting / "model", out=tmp_path / "s")
    shutil.copytree(setting / "several", tmp_path / "broken")
    part = sorted((tmp_path / "broken").glob("part-*.parquet"))[1]
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(InputError, match=part.name):
        score(tmp_path / "broken", model=setting / "model", out=tmp_path / "s")


def test_pieces_cover_all_rows_once():
    random = np.random.default_rng(0)
    for lengths in ([5], [1 << 25], random.integers(1, 1 << 23, 50), [1 << 24] * 4):
        ranges = _cut(np.array(lengths))
        assert ranges[0][0] == 0
        assert ranges[-1][1] == len(lengths)
        assert all(a[1] == b[0] and a[0] < a[1] for a, b in itertools.pairwise(ranges))


@pytest.mark.parametrize(
    "options",
    [
        {"layers": "all"},
        {"layers": "all", "fisher": "diagonal"},
        {"layers": "all", "fisher": "projection", "projection": 16},
        {"fisher": "rank-1"},
        {"masking": "random", "passes": 2},
        {"masking": "none"},
        {"setting": "paper", "pad_to": 100},
    ],
    ids=str,
)
def test_every_choice_is_independent_of_parts(setting, tmp_path, options):
    base = run(setting, tmp_path / "a", adapt=False, **options)
    other = run(setting, tmp_path / "b", data="several", adapt=False, batch_tokens=300, **options)
    influence = base["influence"].to_numpy()
    np.testing.assert_allclose(other["influence"].to_numpy(), influence, rtol=3e-5)
    assert np.isfinite(influence).all()
    assert influence.max() > 0
    # A run that was killed after the Fisher matrix: it is read back.
    manifest = read_manifest(tmp_path / "b", "scores")
    assert manifest["summary"]["layers"][-1].endswith("lm_head.dense")
    for name, value in options.items():
        if name not in {"setting", "layers"}:
            assert manifest["config"][name] == value


def test_the_fisher_matrix_of_any_kind_is_read_back(setting, tmp_path, monkeypatch):
    from frugalfm.influence import pool

    whole = run(setting, tmp_path / "whole", layers="all")
    original = pool.score_sequences
    monkeypatch.setattr(pool, "score_sequences", None)
    with pytest.raises(TypeError):
        run(setting, tmp_path / "cut", layers="all")
    monkeypatch.setattr(pool, "score_sequences", original)
    monkeypatch.setattr(pool, "estimate_fisher", None)
    assert run(setting, tmp_path / "cut", layers="all").equals(whole)


def test_settings_are_defaults_that_options_replace(setting, tmp_path):
    def config(name, **options):
        run(setting, tmp_path / name, adapt=False, **options)
        return read_manifest(tmp_path / name, "scores")["config"]

    ours = config("a")
    assert (ours["masking"], ours["mask_groups"], ours["reduction"]) == ("groups", 7, "sqrt")
    paper = config("b", setting="paper", pad_to=92)
    assert (paper["masking"], paper["pad_to"], paper["passes"]) == ("none", 92, 1)
    assert (paper["reduction"], paper["damping"], paper["fisher"]) == ("mean", 1e-8, "diagonal")
    mixed = config("c", setting="paper", masking="groups", reduction="sum")
    assert (mixed["masking"], mixed["reduction"], mixed["pad_to"]) == ("groups", "sum", None)


def test_contradictory_options_are_refused(setting, tmp_path):
    for options, message in [
        ({"head": "x", "layers": "all"}, "--head x names one layer"),
        ({"head": "x"}, "lm_head.dense"),
        ({"pad_to": 100}, "--masking none only"),
        ({"masking": "none", "passes": 2}, "all passes are the same"),
        ({"projection": 0}, "--projection must be positive"),
    ]:
        with pytest.raises(InputError, match=message):
            run(setting, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_the_paper_setting_pads_to_what_the_model_takes(setting, tmp_path):
    run(setting, tmp_path / "s", setting="paper", adapt=False, subset=3)
    assert read_manifest(tmp_path / "s", "scores")["config"]["pad_to"] == 1024

"""Encoders have the published size; checkpoints load strictly and safely."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from frugalfm.deployment.runtime import DEPLOYMENT
from frugalfm.encoders import PRESETS, create_encoder, load_encoder, open_model, save_encoder
from frugalfm.encoders.checkpoints import check_checkpoint
from frugalfm.encoders.heads import add_head
from frugalfm.errors import InputError


@pytest.fixture
def folder(tmp_path):
    model, tokenizer = create_encoder("rna-fm-tiny", seed=3)
    save_encoder(model, tokenizer, tmp_path / "model", card="# A test\n")
    return tmp_path / "model"


def test_rna_fm_has_the_published_size():
    """99.5M parameters; the table of positions is 1026 x 640 (arXiv 2204.00300)."""
    with torch.device("meta"):
        model, tokenizer = create_encoder("rna-fm")
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6, 1) == 99.5
    assert tuple(model.esm.embeddings.position_embeddings.weight.shape) == (1026, 640)
    assert len(tokenizer) == 25
    assert model.config.emb_layer_norm_before
    assert model.config.token_dropout


def test_longest_sequence_fits_every_preset():
    for name, preset in PRESETS.items():
        if preset.layers > 6:
            continue
        model, tokenizer = create_encoder(name)
        ids = tokenizer("A" * preset.max_residues, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            assert model(input_ids=ids).logits.isfinite().all()


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    first, _ = create_encoder("rna-fm-tiny", seed=1)
    assert torch.equal(torch.rand(1), before)
    same, _ = create_encoder("rna-fm-tiny", seed=1)
    other, _ = create_encoder("rna-fm-tiny", seed=2)
    name = "esm.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(first.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_round_trip_is_exact(folder):
    model, _ = create_encoder("rna-fm-tiny", seed=3)
    again, tokenizer = load_encoder(folder)
    for (name, a), (other, b) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    assert tokenizer("ACGU")["input_ids"] == [0, 4, 5, 6, 7, 2]
    assert (folder / "README.md").read_text() == "# A test\n"


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_unmatched_keys_are_refused(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    if change == "missing":
        del weights["esm.encoder.layer.1.output.dense.weight"]
    elif change == "unexpected":
        weights["esm.encoder.layer.9.output.dense.weight"] = torch.zeros(2, 2)
    else:
        weights["esm.encoder.layer.1.output.dense.weight"] = torch.zeros(3, 3)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layer\.[19]\.output\.dense\.weight"):
        load_encoder(folder)


def test_truncated_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_encoder(folder)


def test_pickles_and_other_folders_are_refused(tmp_path, folder):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no config\.json"):
        load_encoder(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="is a pickle"):
        load_encoder(folder)


def test_remote_code_is_not_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForMaskedLM": "evil.Model", "AutoConfig": "evil.Config"}
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_encoder(folder)


def test_unknown_name_lists_the_known():
    with pytest.raises(InputError, match="rna-fm-tiny"):
        create_encoder("rna-fm-huge")


def make_artifact(folder, kind, *files, config=True):
    """What other verbs leave, as far as it can be told from outside."""
    folder.mkdir()
    inputs = {"checkpoint": {"path": "runs/mine", "sha256": ""}}
    content = {"kind": kind, "files": {}, "inputs": inputs, "summary": {}}
    (folder / "manifest.json").write_text(json.dumps(content))
    if config:
        (folder / "config.json").write_text('{"architectures": ["EsmForTokenClassification"]}')
    for name in files:
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("kind", "files", "config", "message"),
    [
        ("tuned", ["model.safetensors"], True, "is a tuned model.*`embed`"),
        ("tuned", ["adapter_model.safetensors"], False, "is a tuned model.*`embed`"),
        ("quantization", [DEPLOYMENT, "model.bin"], True, "is a deployed model.*predict"),
        ("quantization", ["scheme.safetensors"], False, "repeat that with --deploy"),
    ],
)
def test_other_artifacts_are_named_and_their_checkpoint_too(tmp_path, kind, files, config, message):
    found = make_artifact(tmp_path / "x", kind, *files, config=config)
    for read in (check_checkpoint, load_encoder, lambda path: open_model(str(path))):
        with pytest.raises(InputError, match=rf"{message}.*\(runs/mine\)"):
            read(found)


def test_artifacts_that_hold_no_model_are_named(tmp_path):
    with pytest.raises(InputError, match="of kind 'shards', and no checkpoint"):
        check_checkpoint(make_artifact(tmp_path / "x", "shards", config=False))


def test_a_damaged_manifest_is_not_in_the_way(folder):
    (folder / "manifest.json").write_text("[")
    load_encoder(folder)


def test_a_model_with_a_head_is_not_called_damaged(tmp_path):
    encoder, tokenizer = create_encoder("rna-fm-nano")
    save_encoder(add_head(encoder, "single_label", ["a", "b"]), tokenizer, tmp_path / "x")
    with pytest.raises(InputError, match=r"with a head for a task.*`embed`"):
        load_encoder(tmp_path / "x")


def test_what_is_missing_may_be_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"named size.*`frugalfm pretrain --model rna-fm-nano`"):
        check_checkpoint("rna-fm-nano")
    with pytest.raises(InputError, match="hf download zhihan1996/DNABERT-2-117M --local-dir"):
        check_checkpoint("zhihan1996/DNABERT-2-117M")
    (tmp_path / "runs").mkdir()
    for path in ("runs/mine", "./mine", "/nowhere/mine", "mine"):
        with pytest.raises(InputError, match=r"no such checkpoint folder$"):
            check_checkpoint(path)

"""Every verb that computes, on the emulated device; run by ``test_emulated_device.py``.

``python rooms.py FOLDER [ROOM ...]`` prints a line of JSON for each room: its name, its
seconds of processor time and, if it failed, the traceback.
"""

import contextlib
import importlib.util
import io
import json
import os
import sys
import time
import traceback
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import emulated
import numpy as np
import pyarrow.parquet as pq
import torch

import frugalfm
from frugalfm.encoders import catalogue, create_encoder, devices, save_encoder
from frugalfm.influence import MaskScheme, ScoreRecipe, estimate_fisher, score_sequences
from frugalfm.influence.layers import LayerGradients
from frugalfm.probing.activations import measure_outliers
from frugalfm.quantization import (
    METHODS,
    compare,
    extend_scheme,
    load_scheme,
    save_scheme,
    split_batches,
)
from frugalfm.quantization.methods.rounding import round_weights
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.vocabulary import make_protein_tokenizer
from frugalfm.training import loop
from frugalfm.training.data import Batch

sys.path += [str(Path(__file__).parents[1] / name) for name in ("encoders", "training")]
from architectures import make_batch, make_mlm
from tuning_tasks import make_maps, make_pairs, make_task

emulated.install()
FAR = torch.device(emulated.NAME)  # without an index, as "cuda" is
ON = {"device": emulated.NAME}
_known = devices.choose_device
devices.choose_device = lambda name="auto": FAR if name == emulated.NAME else _known(name)
CODEC = Codec.from_tokenizer(make_protein_tokenizer())
# One layer: every operation passes through Python here.
catalogue.PRESETS["rna-fm-nano"] = catalogue.Preset(layers=1, width=32, heads=2, feed_forward=64)
SHORT = {"steps": 2, "batch_tokens": 160, "validation_fraction": 0.3}
ROOMS = {}


def room(*cases, needs=None):
    """List a function, or each of its cases, of which it gets the name."""

    def note(function):
        if needs is None or importlib.util.find_spec(needs) is not None:
            for case in cases or ("",):
                name = f"{function.__name__} {case}".strip()
                given = (case,) if cases else ()
                ROOMS[name] = (function, given)
        return function

    return note


class Place:
    """Sequences, shards, checkpoints and tasks, each made when it is first asked for."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.count = 0

    def new(self, ending=""):
        self.count += 1
        return self.folder / f"out-{self.count}{ending}"

    def fasta(self):
        path = self.folder / "pool.fasta"
        if not path.exists():
            random = np.random.default_rng(0)
            texts = ("".join(random.choice(list("ACGU"), 8 + i)) for i in range(16))
            path.write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(texts)))
        return path

    def shards(self):
        out = self.folder / "shards"
        return out if out.exists() else frugalfm.build(self.fasta(), alphabet="rna", out=out)

    def model(self, attention="softmax"):
        out = self.folder / f"model-{attention}"
        if not out.exists():
            save_encoder(*create_encoder("rna-fm-nano", attention=attention, seed=1), out)
        return out

    def task(self, kind):
        out = self.folder / f"task-{kind}"
        makers = {"interaction": make_pairs, "contact": make_maps, "base-pair": make_maps}
        if not out.exists():
            makers.get(kind, make_task)(out, kind, sizes=(16, 6, 6))
        return out

    def tuned(self, kind, method="full", **options):
        out = self.folder / f"tuned-{kind}-{method}"
        if not out.exists():
            frugalfm.tune(
                self.model(), task=self.task(kind), out=out, method=method, kind=kind,
                max_steps=2, validate_every=1, batch_size=4, **ON, **options,
            )  # fmt: skip
        return out


@room("muon bf16", "packed bf16", "clipped", "sink packed", "gated flat")
def pretrain(place, case):
    words = case.split()
    attention = words[0] if words[0] in {"clipped", "sink", "gated"} else "softmax1"
    frugalfm.pretrain(
        place.shards(), model="rna-fm-nano", attention=attention, out=place.new(),
        optimizer="muon" if "muon" in words else "adamw",
        pack=80 if "packed" in words else None,
        precision="bf16" if "bf16" in words else "fp32",
        flatten=0.1 if "flat" in words else 0.0,
        **SHORT, **ON,
    )  # fmt: skip


@room()
def resume(place):
    """Killed and resumed, and never killed: the same weights."""
    options = {"model": "rna-fm-nano", "save_every": 1, "optimizer": "muon"} | SHORT | ON
    cut, whole = place.new(), place.new()
    write = loop._Log.write

    def fail(self, **entry):
        if entry["step"] == 2:
            raise KeyboardInterrupt
        write(self, **entry)

    loop._Log.write = fail
    try:
        with contextlib.suppress(KeyboardInterrupt):
            frugalfm.pretrain(place.shards(), out=cut, **options)
    finally:
        loop._Log.write = write
    assert not cut.exists()
    for out in (cut, whole):
        frugalfm.pretrain(place.shards(), out=out, **options)
    weights = [(out / "model.safetensors").read_bytes() for out in (cut, whole)]
    assert weights[0] == weights[1]


@room("sink shift fp32", "clipped anneal bf16")
def convert(place, case):
    attention, start, precision = case.split()
    frugalfm.convert(
        place.model(), attention=attention, data=place.shards(), start=start, limit=8,
        precision=precision, out=place.new(), **SHORT, **ON,
    )  # fmt: skip


SCORES = {
    "head": {},
    "paper": {"setting": "paper", "pad_to": 64, "adapt": False},
    "rank-1": {"fisher": "rank-1", "masking": "none", "reduction": "mean", "adapt": False},
    "projection": {"fisher": "projection", "projection": 8, "layers": "all"},
    "random bf16": {"masking": "random", "passes": 2, "precision": "bf16"},
    "all bf16": {"layers": "all", "passes": 2, "precision": "bf16", "adapt": False},
}


@room(*SCORES)
def score(place, case):
    options = {"model": place.model(), "subset": 8, "batch_tokens": 200} | SCORES[case]
    where = [emulated.NAME, "cpu"] if "bf16" not in case else [emulated.NAME]
    outs = [frugalfm.score(place.shards(), out=place.new(), device=x, **options) for x in where]
    found = [pq.read_table(x / "part-00000.parquet")["influence"].to_numpy() for x in outs]
    np.testing.assert_allclose(found[0], found[-1], rtol=1e-3)


@room("classification", "token", "regression bf16", "interaction", "contact")
def tune(place, case, method="full"):
    kind, *rest = case.split()
    model = place.tuned(kind, method, **({"precision": "bf16"} if rest else {}))
    frugalfm.predict(model, place.task(kind) / "test.csv", out=place.new(".parquet"), **ON)


@room("classification", needs="peft")
def lora(place, case):
    tune(place, case, "lora")


@room()
def estimate(place):
    frugalfm.estimate(
        place.shards(), model="rna-fm-nano", layers="all", pack=80, batch_tokens=160, steps=3,
        budget="50%", subset=4, seconds=0.01, **ON,
    )  # fmt: skip


@room("token", "regression", "interaction", "contact", "base-pair")
def evaluate(place, case):
    options = {"regression": {"precision": "bf16"}, "contact": {"probe": "both"}}.get(case, {})
    frugalfm.evaluate(
        place.model(), task=place.task(case), kind=case, out=place.new(), **ON, **options
    )


SCHEMES = {
    "places": {"sites": "all", "tables": True, "activation_granularity": "token"},
    "observers": {"activation_observer": "mse", "weight_observer": "percentile"},
    "running": {"activation_observer": "running", "rounding": "gptq"},
    "smoothquant": {"method": "smoothquant", "alpha": "search"},
    "outlier-suppression": {"method": "outlier-suppression"},
    "omniquant": {"method": "omniquant", "epochs": 1},
    "nf4": {"method": "nf4"},
}


@room(*SCHEMES)
def quantize(place, case):
    frugalfm.quantize(
        place.model(), data=place.fasta(), out=place.new(), calibration_batches=1, limit=4,
        batch_tokens=60, **SCHEMES[case], **ON,
    )  # fmt: skip


@room("classification", "contact")
def quantize_task(place, case):
    frugalfm.quantize(
        place.tuned(case), task=place.task(case), out=place.new(), calibration_batches=1,
        batch_tokens=100, **ON,
    )  # fmt: skip


@room("mean", "token", "cls bf16")
def embed(place, case):
    pooling, *rest = case.split()
    options = {"precision": "bf16"} if rest else {}
    out = place.new(".parquet")
    frugalfm.embed(place.model(), place.fasta(), out=out, pooling=pooling, **ON, **options)


@room("softmax", "gated")
def outliers(place, case):
    frugalfm.outliers(place.model(case), data=place.fasta(), limit=6, **ON)


def make_sequences():
    random = np.random.default_rng(0)
    return [random.integers(4, 24, random.integers(5, 30)).astype(np.uint8) for _ in range(12)]


@room("esmc", "dnabert2", "modernbert")
def architecture(place, case):
    """A step in bf16, scores that are the CPU's, outliers and a scheme."""
    sequences, recipe = make_sequences(), ScoreRecipe(batch_tokens=200, fisher="rank-1")
    found = []
    for where, precision in ((FAR, "bf16"), (FAR, "fp32"), ("cpu", "fp32")):
        model = make_mlm(case).to(where)
        gradients = LayerGradients(model, CODEC, masks=MaskScheme(passes=1), precision=precision)
        fisher = estimate_fisher(gradients, sequences[:6], recipe)
        found.append(score_sequences(gradients, fisher, sequences, recipe).influence)
    np.testing.assert_allclose(found[1], found[2], rtol=1e-2)
    model = make_mlm(case).to(FAR)
    measure_outliers(model, CODEC, sequences)
    split = split_batches(sequences, CODEC, calibration_batches=2, batch_tokens=200)
    scheme = METHODS["minmax"](model, split.calibration)
    scheme = extend_scheme(model, split.calibration, scheme, "all", tables=True)
    compare(model, scheme, split.evaluation)
    ids, mask = (tensor.to(FAR) for tensor in make_batch())
    with devices.autocast(FAR, "bf16"):
        loss = model.train()(input_ids=ids, attention_mask=mask).logits.float().sum()
    loss.backward()


@room()
def scheme_of_another_device(place):
    """What was found on one device serves on the other, and can be gone on with there."""
    for start, end in (("cpu", FAR), (FAR, "cpu")):
        model = make_mlm("esmc").to(start)
        split = split_batches(make_sequences(), CODEC, calibration_batches=2, batch_tokens=200)
        scheme = METHODS["outlier-suppression"](model, split.calibration, weights=4)
        folder = place.new()
        folder.mkdir()
        save_scheme(scheme, folder)
        model.to(end)
        for found in (scheme, load_scheme(folder)):
            rounded = round_weights(model, split.calibration, found, sequential=True)
            whole = extend_scheme(model, split.calibration, rounded, "all", tables=True)
            compare(model, whole, split.evaluation)


@room()
def refusals(place):
    """What CUDA refuses, and what it lets pass; then a verb with a mistake planted."""
    near, number = torch.ones(2, 2), torch.tensor(2.0)
    far, whole = near.to(FAR), torch.ones(2, 2, dtype=torch.long, device=FAR)
    wrong = [
        lambda: far + near,
        lambda: torch.cat([far, near]),
        lambda: near @ far,
        lambda: torch.stack([far.sum(), number]),
        lambda: near.add_(far),
        lambda: number.add_(far.sum()),
        lambda: near[whole[0]],
        lambda: far.__setitem__(far > 0, near.flatten()),
        lambda: torch.nn.functional.embedding(whole.cpu(), far),
        lambda: torch.randn(2, device=FAR, generator=torch.Generator()),
        lambda: far.uniform_(generator=torch.Generator()),
        far.numpy,
        lambda: np.asarray(far),
        far.pin_memory,
        lambda: whole @ whole,
    ]
    for place_of, action in enumerate(wrong):
        try:
            action()
        except emulated.MixedDevicesError:
            continue
        raise AssertionError(f"mistake {place_of} was let pass")
    assert (far * number).tolist() == [[2, 2], [2, 2]]
    assert far[torch.tensor([0])].device.type == emulated.NAME
    far[0] = near[0] * 3
    near.copy_(far)
    assert near[0].tolist() == [3, 3]
    assert float(torch.where(far > 2, far, number).sum()) == 10

    move, Batch.to = Batch.to, lambda self, device: self
    try:
        frugalfm.pretrain(place.shards(), model="rna-fm-nano", out=place.new(), **SHORT, **ON)
    except emulated.MixedDevicesError:
        return
    finally:
        Batch.to = move
    raise AssertionError("a model of one device read batches of another")


def main(folder, *names):
    place = Place(folder)
    for name in names or ROOMS:
        function, case = ROOMS[name]
        problem, began = None, time.process_time()
        try:
            quiet = io.StringIO()
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                function(place, *case)
        except BaseException:  # noqa: BLE001 - whatever it is, the other rooms are to be seen
            problem = traceback.format_exc()
        seconds = round(time.process_time() - began, 2)
        print(json.dumps({"room": name, "seconds": seconds, "problem": problem}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

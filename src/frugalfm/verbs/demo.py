"""``frugalfm demo``: the whole chain on bundled real RNA, in minutes on two cores."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from frugalfm.errors import InputError, require_positive
from frugalfm.verbs import with_paths

__all__ = ["demo"]

MODEL = "rna-fm-nano"
STRATEGIES = ("random", "top-influence", "top-influence-by-length", "coverage")
SCHEMES = (8, 6, 4)
MAX_LENGTH, MIN_LENGTH = 220, 20  # longer sequences (rRNA) become windows
# Muon trains so small a model steadily at a rate that AdamW does not stand.
TRAINING: dict[str, Any] = {"batch_tokens": 2048, "optimizer": "muon", "learning_rate": 8e-3}


@with_paths
def demo(
    *,
    out: Path = Path("frugalfm-demo"),
    steps: int = 600,
    budget: str = "10%",
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Score, prune, pretrain, probe, check, quantize and report on bundled real RNA.

    Runs every verb on 3,310 real RNA sequences and compares coresets chosen at random, by
    influence, by influence inside length bins and by coverage, at equal optimizer steps, with an
    untrained model and the full pool as bounds, and softmax beside softmax1. Prints one table and
    writes report.html. A second run finds everything done; a killed run continues.

    Parameters
    ----------
    out
        Folder for all artifacts and the report.
    steps
        Optimizer steps of every pretraining.
    budget
        Size of a coreset, as for `select`.
    seed
        Of everything random.
    overwrite
        Replace artifacts that were made with other options.
    """
    require_positive(steps=steps, seed=seed)
    out.resolve().mkdir(parents=True, exist_ok=True)
    chain = _Chain(out, steps, budget, seed, overwrite)
    started = time.perf_counter()
    stages = chain.stages()
    with (out / "log.txt").open("a") as log:
        for number, (label, run) in enumerate(stages, 1):
            print(f"[{number:2}/{len(stages)}] {label}", end=" ", flush=True)
            begun = time.perf_counter()
            with contextlib.redirect_stdout(log):
                run()
            print(f"({time.perf_counter() - begun:.1f} s)", flush=True)

    from frugalfm.reporting import collect_demo, render_table, write_report

    results = collect_demo(out)
    write_report(results, out / "report.html")
    print(f"\n{render_table(results)}\n")
    print(f"{out / 'report.html'}: written, {time.perf_counter() - started:.0f} s in all")
    return out


class _Chain:
    """The stages of the demo, each a verb that reads and writes folders under `out`."""

    def __init__(self, out: Path, steps: int, budget: str, seed: int, overwrite: bool) -> None:
        self.out = out
        self.steps = steps
        self.budget = budget
        self.overwrite = overwrite
        self.common: dict[str, Any] = {"seed": seed, "overwrite": overwrite}

    def stages(self) -> list[tuple[str, Callable[[], object]]]:
        """List all stages in order, with their labels."""
        return [
            ("build the pool", self.build_pool),
            ("build the validation set", partial(self.build, "validation")),
            ("save an untrained model", self.save_untrained),
            *self.pretraining("full-softmax", "pool", "softmax"),
            *self.pretraining("full-softmax1", "pool", "softmax1"),
            ("score the pool", self.score),
            *((f"select by {name}", partial(self.select, name)) for name in STRATEGIES),
            *(
                stage
                for name in STRATEGIES
                for stage in self.pretraining(name, f"coresets/{name}", "softmax")
            ),
            *((f"probe {name}", partial(self.evaluate, name)) for name in self.models),
            *((f"embed with {name}", partial(self.embed, name)) for name in ("full-softmax",)),
            *((f"outliers of {name}", partial(self.outliers, name)) for name in self.full),
            *(
                (f"quantize {name} to W{bits}A{bits}", partial(self.quantize, name, bits))
                for name in self.full
                for bits in SCHEMES
            ),
        ]

    @property
    def full(self) -> tuple[str, ...]:
        """Models pretrained on the whole pool."""
        return ("full-softmax", "full-softmax1")

    @property
    def models(self) -> tuple[str, ...]:
        """All models, the untrained one first."""
        return ("untrained", *STRATEGIES, *self.full)

    def build_pool(self) -> None:
        from frugalfm.coreset import parse_budget
        from frugalfm.sequences.shards import open_shards

        self.build("pool")
        size = open_shards(self.out / "pool").n_sequences
        if parse_budget(self.budget, size) > 0.9 * size:
            raise InputError(f"--budget {self.budget}: coverage leaves out a tenth of the pool")

    def build(self, name: str) -> None:
        from frugalfm.verbs.build import build

        source = find_data() / f"{name}.fasta.gz"
        build(
            source,
            alphabet="rna",
            max_length=MAX_LENGTH,
            min_length=MIN_LENGTH,
            out=self.out / name,
            overwrite=self.overwrite,
        )

    def save_untrained(self) -> None:
        from frugalfm.artifacts import open_stage
        from frugalfm.encoders import create_encoder, save_encoder

        config = {"model": MODEL, "seed": self.common["seed"], "steps": 0}
        folder = self.out / "models/untrained"
        with open_stage(folder, "checkpoint", config, {}, overwrite=self.overwrite) as stage:
            if not stage.done:
                save_encoder(*create_encoder(MODEL, seed=self.common["seed"]), stage.work)
                stage.commit({"steps": 0})

    def pretraining(
        self, name: str, data: str, attention: Literal["softmax", "softmax1"]
    ) -> list[tuple[str, Callable[[], object]]]:
        from frugalfm.verbs.pretrain import pretrain

        run = partial(
            pretrain,
            self.out / data,
            model=MODEL,
            attention=attention,
            steps=self.steps,
            validation=self.out / "validation",
            out=self.out / "models" / name,
            **TRAINING,
            **self.common,
        )
        return [(f"pretrain on {data} with {attention}", run)]

    def score(self) -> None:
        from frugalfm.verbs.score import score

        score(
            self.out / "pool",
            model=self.out / "models/full-softmax",
            out=self.out / "scores",
            subset=1000,
            **self.common,
        )

    def select(self, strategy: Any) -> None:
        from frugalfm.verbs.select import select

        select(
            self.out / "scores",
            budget=self.budget,
            strategy=strategy,
            data=self.out / "pool",
            out=self.out / "coresets" / strategy,
            **self.common,
        )

    def evaluate(self, name: str) -> None:
        from frugalfm.verbs.evaluate import evaluate

        evaluate(
            self.out / "models" / name,
            task=find_data() / "families",
            out=self.out / "evaluations" / name,
            **self.common,
        )

    def embed(self, name: str) -> None:
        from frugalfm.verbs.embed import embed

        embed(
            self.out / "models" / name,
            find_data() / "families/test.csv",
            out=self.out / f"embeddings-{name}.parquet",
            overwrite=self.overwrite,
        )

    def outliers(self, name: str) -> None:
        from frugalfm.verbs.outliers import outliers

        outliers(
            self.out / "models" / name,
            data=self.out / "validation",
            out=self.out / "outliers" / name,
            **self.common,
        )

    def quantize(self, name: str, bits: int) -> None:
        from frugalfm.verbs.quantize import quantize

        quantize(
            self.out / "models" / name,
            weights=bits,
            activations=bits,
            data=self.out / "validation",
            out=self.out / "quantization" / f"{name}-w{bits}a{bits}",
            **self.common,
        )


def find_data() -> Path:
    """Find the bundled data; its README says where the sequences are from."""
    from importlib.resources import files

    folder = Path(str(files("frugalfm"))) / "data/demo"
    if not folder.is_dir():
        raise InputError(f"{folder}: the demo's data is missing; install frugalfm again")
    return folder

"""Small DNABERT-2 models from scratch and converted: the arms that several benchmarks compare."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.common import exclusively, keep_settings, read_toml

import frugalfm
from frugalfm.artifacts import fingerprint
from frugalfm.attention import NAMES
from frugalfm.errors import InputError

__all__ = ["Arm", "Course", "name_folder", "prepare_course", "train_arm"]


@dataclass(frozen=True)
class Arm:
    """One way to come by a model.

    Attributes
    ----------
    name
        Of the row.
    against
        The arm it is compared with, of as many steps; None for those that others are compared
        with.
    attention, optimizer
        As the verbs take them.
    converts
        The arm whose checkpoints are converted; None for training from scratch.
    start
        Of a conversion; None for the best.
    change
        Options of the verb that differ from the recipe's.
    """

    name: str
    against: str | None = None
    attention: str = "softmax"
    optimizer: str = "adamw"
    converts: str | None = None
    start: str | None = None
    change: dict[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as a folder."""
        kept = "".join(c if c.isalnum() else "-" for c in self.name.lower())
        return "-".join(part for part in kept.split("-") if part)


@dataclass(frozen=True)
class Course:
    """The part of a recipe that says how models are trained.

    Attributes
    ----------
    title
        Of the table.
    seeds
        One model of every arm for each.
    pool
        ``sequences`` to train on, ``validation`` sequences, ``window`` in nucleotides.
    model
        Fields of DNABERT-2's config that differ from the published model's.
    train, convert
        Options of the verbs.
    arms
        Those that are converted come before what converts them.
    """

    title: str
    seeds: tuple[int, ...]
    pool: dict[str, int]
    model: dict[str, Any]
    train: dict[str, Any]
    convert: dict[str, Any]
    arms: tuple[Arm, ...]

    @classmethod
    def load(cls, path: Path, changes: Sequence[str] | None = None) -> Self:
        """Read a recipe.

        Parameters
        ----------
        path
            A TOML file.
        changes
            ``table.key=value`` or ``key=value``, the value in TOML.

        Raises
        ------
        InputError
            A recipe that cannot be run.
        """
        try:
            recipe = cls(**cls.read(read_toml(path, changes)))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}: is no recipe of this benchmark ({error})") from None
        try:
            recipe.check()
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        return recipe

    @classmethod
    def read(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Turn what a TOML file says into fields."""
        arms = tuple(Arm(**arm) for arm in content.pop("arm"))
        return content | {"arms": arms, "seeds": tuple(content["seeds"])}

    def check(self) -> None:
        """Refuse arms that cannot be run one after the other."""
        known: set[str] = set()
        for arm in self.arms:
            if arm.name in known:
                raise InputError(f"two arms are called {arm.name!r}")
            if arm.attention not in NAMES:
                raise InputError(f"arm {arm.name!r} has an unknown attention {arm.attention!r}")
            for other in (arm.against, arm.converts):
                if other is not None and other not in known:
                    raise InputError(f"arm {arm.name!r} needs {other!r} before it")
            known.add(arm.name)
        if not self.arms or not self.seeds:
            raise InputError("has no arms or no seeds")


def prepare_course(
    course: Course, pool: Path, tokenizer: Path, out: Path
) -> tuple[dict[str, Path], Path]:
    """Make shards to train and to validate on, and what a model starts from at random.

    Parameters
    ----------
    course
        Of the models.
    pool
        FASTA of DNA.
    tokenizer
        Folder with DNABERT-2's tokenizer.
    out
        For all artifacts.

    Returns
    -------
    tuple
        Shards by name, ``train`` and ``validation``; and the folder of the blank model.
    """
    with exclusively(out):
        keep_settings(
            out, {"pool": course.pool, "model": course.model, "source": fingerprint(pool)}
        )
        return _prepare_pool(course, pool, out), _prepare_model(course, tokenizer, out / "blank")


def _prepare_pool(course: Course, pool: Path, out: Path) -> dict[str, Path]:
    """Draw sequences by the hash of their ids, and build shards to train and to validate on."""
    wanted = course.pool["validation"] + course.pool["sequences"]
    files = {name: out / f"{name}.fasta" for name in ("validation", "train")}
    if not all(file.is_file() for file in files.values()):
        from frugalfm.sequences.readers import stream_sequences

        records = [
            (hashlib.md5(name.encode()).hexdigest(), name, text)
            for batch in stream_sequences(pool, "dna")
            for name, text in zip(
                batch.column("id").to_pylist(), batch.column("sequence").to_pylist(), strict=True
            )
        ]
        if len(records) < wanted:
            raise InputError(f"{pool}: holds {len(records)} sequences, the recipe wants {wanted}")
        records = sorted(records)[:wanted]
        cut = course.pool["validation"]
        for name, part in (("validation", records[:cut]), ("train", records[cut:])):
            lines = (f">{identifier}\n{text}\n" for _, identifier, text in part)
            draft = files[name].with_suffix(".tmp")
            draft.write_text("".join(lines))
            draft.rename(files[name])
    window = course.pool["window"]
    return {
        name: frugalfm.build(
            file,
            alphabet="dna",
            out=out / f"{name}-shards",
            max_length=window,
            min_length=window // 2,
            ambiguous="drop",
        )
        for name, file in files.items()
    }


def _prepare_model(course: Course, tokenizer: Path, folder: Path) -> Path:
    """Write config and tokenizer: what a model starts from at random."""
    from frugalfm.encoders.dnabert2.configuration import DnaBert2Config
    from frugalfm.tokens.vocabulary import prepare_dna_tokenizer

    if not (folder / "config.json").is_file():
        words = prepare_dna_tokenizer(tokenizer)
        words.save_pretrained(folder)
        DnaBert2Config(vocab_size=len(words), **course.model).save_pretrained(folder)
    return folder


def name_folder(out: Path, arm: Arm, seed: int) -> Path:
    """Name the folder of an arm's checkpoint."""
    return out / f"{arm.slug}-{seed}"


def train_arm(
    course: Course,
    arm: Arm,
    seed: int,
    shards: dict[str, Path],
    blank: Path,
    out: Path,
    device: str,
) -> Path:
    """Train or convert one arm; what is finished is skipped. Gives the checkpoint."""
    made = name_folder(out, arm, seed)
    common: dict[str, Any] = {
        "attention": arm.attention,
        "optimizer": arm.optimizer,
        "validation": shards["validation"],
        "seed": seed,
        "device": device,
        "out": made,
    }
    if arm.converts is None:
        options = course.train | arm.change | common
        return frugalfm.pretrain(shards["train"], model=str(blank), **options)
    base = name_folder(out, next(a for a in course.arms if a.name == arm.converts), seed)
    options = course.convert | arm.change | common | {"start": arm.start}
    return frugalfm.convert(base, data=shards["train"], **options)

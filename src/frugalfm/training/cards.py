"""The model card of what was tuned: what it is, what it achieved, and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from frugalfm.artifacts import write_atomically
from frugalfm.tasks.kinds import PAIRS, Kind
from frugalfm.tasks.results import describe_scores, describe_task

__all__ = ["write_card"]


def write_card(
    folder: Path,
    model: nn.Module,
    checkpoint: PreTrainedConfig,
    metrics: dict[str, Any],
    misreading: str | None = None,
) -> None:
    """Write ``README.md`` beside a tuned model, in the place of PEFT's empty form.

    Parameters
    ----------
    folder
        The tuned model's.
    model
        The model, with or without an adapter.
    checkpoint
        Config of the encoder that it was tuned from.
    metrics
        What it achieved, and how it was tuned.
    misreading
        Of an adapter: why PEFT alone would predict otherwise, if it would.
    """
    tuning = metrics["tuning"]
    given: Any = model
    bare = given.get_base_model() if hasattr(model, "get_base_model") else model
    adapter = bare is not model
    source = Path(checkpoint._name_or_path).name or checkpoint.model_type  # noqa: SLF001
    whole = "merged into a whole model" if tuning["merge"] else "a whole model"
    lines = [
        "---",
        "library_name: frugalfm",
        "license: unknown",
        f"tags: [biology, {metrics['kind']}, {tuning['method']}]",
        "---",
        f"# {checkpoint.model_type} encoder tuned on {metrics['task']} with FrugalFM",
        "",
        f"- Task: {describe_task(metrics)}.",
        f"- Tuned from: `{source}`.",
        f"- Method: {tuning['method']}, {'an adapter' if adapter else whole}; "
        f"{tuning['trained_parameters']:,} parameters trained, seed {tuning['seed']}, best by "
        f"{tuning['chosen_by']} at step {tuning['best_step']:,} of {tuning['steps']:,}.",
        f"- Head: {_describe_head(bare, metrics['kind'])}.",
        "",
        "```",
        *(line.strip() for line in describe_scores(metrics)),
        "```",
        "",
        *_tell_loading(bare, metrics["kind"], source, adapter=adapter, misreading=misreading),
        "Options, inputs and versions are in `manifest.json`, all metrics in `metrics.json`, the "
        "course of the tuning in `log.jsonl`.",
        "",
    ]
    with write_atomically(Path(folder) / "README.md") as handle:
        handle.write("\n".join(lines))


def _describe_head(bare: nn.Module, kind: Kind) -> str:
    if not isinstance(bare, PreTrainedModel):
        return "for pairs, beside the encoder"
    if kind == "token":
        return "a linear layer on each residue"
    config: Any = bare.config
    pooling = getattr(config, "pooling", None) or getattr(config, "classifier_pooling", None)
    if pooling == "mean":
        return "on the mean of the residues' states (`--pooling mean`)"
    return "the architecture's own, on the first token's state (`--pooling cls`)"


def _tell_loading(
    bare: nn.Module, kind: Kind, source: str, *, adapter: bool, misreading: str | None
) -> list[str]:
    """Say how to predict with it, and what else loads it or does not."""
    given = "pairs.csv" if kind in PAIRS else "sequences.fasta"
    lines = [
        "```bash",
        f"frugalfm predict this/folder {given} --out predictions.parquet",
        "```",
        "```python",
        "from frugalfm.training.tuned import load_tuned",
        "",
        'model, tokenizer = load_tuned("this/folder")',
        "```",
        "",
    ]
    if adapter:
        lines += [
            f"This is an adapter: loading it needs `{source}` where it was, or its new place as "
            "`base=` or `--base`. `frugalfm tune --merge` writes a whole model instead.",
            "",
        ]
    return [*lines, _tell_others(bare, kind, adapter=adapter, misreading=misreading), ""]


def _tell_others(bare: nn.Module, kind: Kind, *, adapter: bool, misreading: str | None) -> str:
    """Say what becomes of it in PEFT or transformers without this library's loader."""
    if misreading is not None:
        return (
            f"PEFT alone would predict otherwise, without a word, as {misreading}; so "
            "`adapter_config.json` makes it refuse. `load_tuned` gives PEFT's model, made right."
        )
    if not isinstance(bare, PreTrainedModel):
        return (
            "transformers alone loads the encoder without the head: "
            '`AutoModelForMaskedLM.from_pretrained("this/folder")`, after `import frugalfm`.'
        )
    name = f"For{'Token' if kind == 'token' else 'Sequence'}Classification.from_pretrained"
    call = f'AutoModel{name}("this/folder")'
    if adapter:
        call = f'AutoPeftModel{name}("this/folder", num_labels={bare.config.num_labels})'
    return (
        f"{'PEFT' if adapter else 'transformers'} alone loads it as well, after "
        f"`import frugalfm`, which registers attention and head: `{call}`."
    )

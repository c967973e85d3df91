"""``frugalfm import-checkpoint``: a published checkpoint, made safe and native."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from frugalfm.errors import InputError
from frugalfm.verbs import with_paths

__all__ = ["import_checkpoint"]


@with_paths
def import_checkpoint(
    path: Path,
    *,
    out: Path,
    architecture: Literal["auto", "dnabert2", "rna-fm", "esm-c"] = "auto",
    tokenizer: Path | None = None,
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> Path:
    """Turn a published checkpoint into one that every verb here reads.

    Reads DNABERT-2's folder, RNA-FM's RNA-FM_pretrained.pth, ESM-C's esmc_*_v0.pth, and folders
    that transformers knows by itself (ESM-2, ESM-C, BERT and AntiBERTy, ModernBERT). Every tensor
    must be matched by name and shape; what is not is named and refused. Nothing is downloaded,
    and Python files beside a checkpoint are not run.

    Parameters
    ----------
    path
        The checkpoint's folder or file.
    out
        The checkpoint: weights (safetensors), config, tokenizer.
    architecture
        dnabert2, rna-fm or esm-c; auto tells it from the files and their names.
    tokenizer
        Folder with the tokenizer, where the checkpoint has none beside it.
    allow_pickle
        Open .bin, .pt and .pth files. First without running any code in them; if that fails,
        fully, in a process of its own, which has your rights: only for files that you trust.
    overwrite
        Replace a different artifact at --out.
    """
    from frugalfm.artifacts import open_stage
    from frugalfm.encoders import save_encoder
    from frugalfm.encoders.checkpoints import hint_at_hub
    from frugalfm.encoders.foreign import load_translated, recognise, translate

    if not path.exists():
        raise InputError(f"{path}: no such checkpoint file or folder{hint_at_hub(path)}")
    layout = recognise(path) if architecture == "auto" else architecture
    stage = open_stage(
        out,
        "checkpoint",
        {"imported": layout},
        {"checkpoint": path, "tokenizer": tokenizer},
        overwrite=overwrite,
    )
    with stage:
        if stage.done:
            print(f"{out}: already imported, {_describe(stage.summary)}")
            return out
        native = stage.scratch / "native"
        summary = translate(path, layout, native, tokenizer=tokenizer, allow_pickle=allow_pickle)
        model, words = load_translated(native, path)
        summary["parameters"] = sum(p.numel() for p in model.parameters())
        save_encoder(model, words, stage.work, _write_card(path, summary))
        stage.commit(summary)
    print(f"{out}: imported, {_describe(summary)}")
    return out


def _write_card(path: Path, summary: dict[str, Any]) -> str:
    return f"""---
library_name: frugalfm
license: unknown
tags: [biology, masked-language-modelling]
---
# {summary["architecture"]} encoder, imported from `{path.name}` with FrugalFM

{_describe(summary)}. Its weights and licence are its authors'.

```python
import frugalfm  # registers architectures and attentions
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("this/folder")
tokenizer = AutoTokenizer.from_pretrained("this/folder")
```
"""


def _describe(summary: dict[str, Any]) -> str:
    words = f"{summary['architecture']}, {summary['parameters'] / 1e6:.1f}M parameters"
    return "; ".join([words, *summary["notes"]])

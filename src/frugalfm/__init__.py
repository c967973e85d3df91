"""FrugalFM: biological foundation models at a fraction of the data, compute and memory.

Every verb of the command line is a function here: ``frugalfm.score(...)`` is ``frugalfm score``.
Importing the package is light; from then on, transformers knows FrugalFM's attentions, and
``AutoModel.from_pretrained`` loads FrugalFM's checkpoints.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from frugalfm.attention.interface import install_with_transformers

__version__ = "0.1.0"

VERBS = (
    "build",
    "pretrain",
    "score",
    "select",
    "embed",
    "evaluate",
    "outliers",
    "quantize",
    "demo",
)

if TYPE_CHECKING:
    from frugalfm.verbs.build import build as build
    from frugalfm.verbs.demo import demo as demo
    from frugalfm.verbs.embed import embed as embed
    from frugalfm.verbs.evaluate import evaluate as evaluate
    from frugalfm.verbs.outliers import outliers as outliers
    from frugalfm.verbs.pretrain import pretrain as pretrain
    from frugalfm.verbs.quantize import quantize as quantize
    from frugalfm.verbs.score import score as score
    from frugalfm.verbs.select import select as select

__all__ = [*VERBS, "VERBS", "__version__"]  # noqa: PLE0604 - VERBS are names


def __getattr__(name: str) -> Any:
    if name in VERBS:
        return getattr(importlib.import_module(f"frugalfm.verbs.{name}"), name)
    raise AttributeError(f"module 'frugalfm' has no attribute {name!r}")


install_with_transformers()

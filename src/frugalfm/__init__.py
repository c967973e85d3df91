"""FrugalFM: biological foundation models at a fraction of the data, compute and memory.

Every verb of the command line is a function here: ``frugalfm.score(...)`` is ``frugalfm score``.
Importing the package is light; from then on, transformers knows FrugalFM's attentions and
architectures, and ``AutoModel.from_pretrained`` loads FrugalFM's checkpoints.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

from frugalfm.attention.interface import call_after_import, install_with_transformers

__version__ = "0.1.0"

VERBS = (
    "build",
    "import_checkpoint",
    "pretrain",
    "convert",
    "score",
    "estimate",
    "cluster",
    "select",
    "tune",
    "predict",
    "embed",
    "evaluate",
    "outliers",
    "quantize",
    "demo",
)

if TYPE_CHECKING:
    from frugalfm.verbs.build import build as build
    from frugalfm.verbs.cluster import cluster as cluster
    from frugalfm.verbs.convert import convert as convert
    from frugalfm.verbs.demo import demo as demo
    from frugalfm.verbs.embed import embed as embed
    from frugalfm.verbs.estimate import estimate as estimate
    from frugalfm.verbs.evaluate import evaluate as evaluate
    from frugalfm.verbs.import_checkpoint import import_checkpoint as import_checkpoint
    from frugalfm.verbs.outliers import outliers as outliers
    from frugalfm.verbs.predict import predict as predict
    from frugalfm.verbs.pretrain import pretrain as pretrain
    from frugalfm.verbs.quantize import quantize as quantize
    from frugalfm.verbs.score import score as score
    from frugalfm.verbs.select import select as select
    from frugalfm.verbs.tune import tune as tune

__all__ = [*VERBS, "VERBS", "__version__"]  # noqa: PLE0604 - VERBS are names


def __getattr__(name: str) -> Any:
    if name in VERBS:
        return getattr(importlib.import_module(f"frugalfm.verbs.{name}"), name)
    raise AttributeError(f"module 'frugalfm' has no attribute {name!r}")


def _register_config() -> None:
    from frugalfm.encoders.dnabert2.register import register_config

    register_config()


def _register_models() -> None:
    from frugalfm.encoders.dnabert2.register import register_models
    from frugalfm.encoders.pooled import register_pooled

    register_models()
    register_pooled()


def _finish(module: str) -> None:
    # transformers may import the one module in the middle of the other, and whoever imports our
    # model code first does so in the middle of that; the last to be finished registers.
    _whole.add(module)
    if _AUTO in _whole and _LAYERS not in sys.modules:
        importlib.import_module(_LAYERS)
    elif _whole >= {_AUTO, _LAYERS} and not any(
        name in sys.modules and name not in _whole for name in _MODELS
    ):
        _register_models()


_AUTO = "transformers.models.auto.modeling_auto"
_LAYERS = "transformers.modeling_layers"
# What registering imports: not to be found half imported.
_MODELS = (
    "transformers.models.esm.configuration_esm",
    "transformers.models.esm.modeling_esm",
    "transformers.models.esmc.configuration_esmc",
    "transformers.models.esmc.modeling_esmc",
    "frugalfm.encoders.dnabert2.layers",
    "frugalfm.encoders.dnabert2.modeling",
    "frugalfm.encoders.pieces",
    "frugalfm.encoders.pooled",
)
_whole: set[str] = set()

install_with_transformers()
call_after_import("transformers.models.auto.configuration_auto", _register_config)
for _module in (_LAYERS, _AUTO, *_MODELS):
    call_after_import(_module, functools.partial(_finish, _module))

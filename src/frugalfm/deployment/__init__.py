"""Models that run on a CPU with real low-bit weights, without torch: OpenVINO holds and runs them.

:func:`deploy` writes a folder; :func:`load_deployed` runs it with openvino and numpy alone. Names
are imported when first used, so that running needs no torch. (The verbs ``embed`` and ``predict``
import it all the same, to tokenise and to make batches.)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frugalfm.deployment.measure import deploy_scheme
    from frugalfm.deployment.runtime import DeployedEncoder, is_deployed, load_deployed
    from frugalfm.deployment.support import plan_execution
    from frugalfm.deployment.writing import deploy

__all__ = [
    "DeployedEncoder",
    "deploy",
    "deploy_scheme",
    "is_deployed",
    "load_deployed",
    "plan_execution",
]

_HOMES = {
    "DeployedEncoder": "runtime",
    "deploy": "writing",
    "deploy_scheme": "measure",
    "is_deployed": "runtime",
    "load_deployed": "runtime",
    "plan_execution": "support",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

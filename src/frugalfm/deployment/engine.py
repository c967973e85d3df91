"""OpenVINO, if it is installed: the engine that was chosen by measurement."""

from __future__ import annotations

from typing import Any, Literal

from frugalfm.errors import InputError

__all__ = ["ENGINE", "OUTPUTS", "Precision", "engine_version", "require_engine"]

ENGINE = "openvino"
OUTPUTS = ("last_hidden_state", "logits")
Precision = Literal["fp32", "bf16"]


def require_engine() -> Any:
    """Import OpenVINO; gives the module.

    Raises
    ------
    InputError
        It is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            f'deployed models run on OpenVINO ({error}); pip install "frugalfm[deploy]"'
        ) from None
    return openvino


def engine_version() -> str:
    """Version of the installed engine, such as ``2026.4.1``."""
    return str(require_engine().__version__).split("-", maxsplit=1)[0]

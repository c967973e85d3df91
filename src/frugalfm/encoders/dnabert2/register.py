"""Makes ``AutoConfig``, ``AutoModel`` and its siblings know DNABERT-2."""

from __future__ import annotations

__all__ = ["register_config", "register_models"]


def register_config() -> None:
    """Register the configuration alone, which needs no model code."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from frugalfm.encoders.dnabert2.configuration import DnaBert2Config

    AutoConfig.register(DnaBert2Config.model_type, DnaBert2Config, exist_ok=True)


def register_models() -> None:
    """Register the models by their tasks."""
    from transformers.models.auto import modeling_auto as auto

    from frugalfm.encoders.dnabert2 import modeling
    from frugalfm.encoders.dnabert2.configuration import DnaBert2Config

    for factory, model in (
        (auto.AutoModel, modeling.DnaBert2Model),
        (auto.AutoModelForMaskedLM, modeling.DnaBert2ForMaskedLM),
        (auto.AutoModelForSequenceClassification, modeling.DnaBert2ForSequenceClassification),
    ):
        factory.register(DnaBert2Config, model, exist_ok=True)

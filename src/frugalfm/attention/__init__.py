"""Attention by name (`softmax`, `softmax1`) for every model that uses transformers' interface."""

NAMES = ("softmax", "softmax1")

__all__ = ["NAMES"]

"""Attention by name for every model that uses transformers' interface.

``softmax``; ``softmax1``, one more in the denominator; ``sink``, a learned share in it per head;
``gated``, a learned gate per head on the output; ``clipped``, probabilities stretched below zero
and clipped.
"""

NAMES = ("softmax", "softmax1", "clipped", "gated", "sink")

__all__ = ["NAMES"]

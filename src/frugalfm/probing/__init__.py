"""Frozen encoders looked into: embeddings, linear probes, statistics of activations."""

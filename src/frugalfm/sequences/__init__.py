"""Alphabets, readers, checks, deduplication and shards; no torch."""

"""Sequences as token ids: vocabulary, masks and length-bucketed batches, all reproducible."""

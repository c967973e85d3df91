"""DNABERT-2 as a native transformers model: no remote code, no length limit, any attention."""

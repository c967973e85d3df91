"""Which part removes outliers: attention, optimizer, or converting what is there already?

``python -m benchmarks.outliers recipes/outliers/cpu.toml --data POOL --tokenizer DIR --out RUN``
"""

"""The pruning claim, tested: does a small coreset pretrain better than ten times the random data?

``python -m benchmarks.pruning recipes/pruning/rna-cpu.toml --data DATA --out FOLDER``
"""

"""What low-bit schemes cost tasks: methods, widths, and models with and without outliers.

``python -m benchmarks.quantization recipes/quantization/cpu.toml --data ../shared/data/dna --out
RUN``
"""

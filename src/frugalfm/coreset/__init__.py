"""Coresets: exact, streaming selection of sequences by their scores; no torch."""

from frugalfm.coreset.aligned import SourceColumn
from frugalfm.coreset.budgets import parse_budget
from frugalfm.coreset.choose import Choice, choose_rows, write_selection
from frugalfm.coreset.extract import copy_rows
from frugalfm.coreset.strategies import Strategy

__all__ = [
    "Choice",
    "SourceColumn",
    "Strategy",
    "choose_rows",
    "copy_rows",
    "parse_budget",
    "write_selection",
]

"""Benchmark suites: every task, checkpoint, method and seed a cell of one table."""

from frugalfm.suites.running import run_suite
from frugalfm.suites.settings import SuiteSettings, name_checkpoints

__all__ = ["SuiteSettings", "name_checkpoints", "run_suite"]

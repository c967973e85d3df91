"""Shared by all tests."""

import os

# Models in tests are tiny, and threads that wait for each other cost more than they bring, most of
# all in the processes that two workers start at a time. Said before torch is there, and inherited.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from hypothesis import settings

# The same examples at every run: a failure on CI is a failure here.
settings.register_profile("frugalfm", derandomize=True, deadline=None)
settings.load_profile("frugalfm")


def pytest_runtest_setup(item: pytest.Item) -> None:
    # Before every test: sums differ with the number of threads, so one test that changes it would
    # spoil those that compare with another process to the last bit.
    torch.set_num_threads(1)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

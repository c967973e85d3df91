"""Shared by all tests."""

import pytest
import torch
from hypothesis import settings

# The same examples at every run: a failure on CI is a failure here.
settings.register_profile("frugalfm", derandomize=True, deadline=None)
settings.load_profile("frugalfm")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

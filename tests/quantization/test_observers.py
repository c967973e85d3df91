"""Ranges: of everything, and as a running average."""

import numpy as np
import torch

from frugalfm.quantization.observers import MinMax, RunningMinMax, find_range


def make_batches(count=5):
    random = np.random.default_rng(0)
    return [random.normal(size=(7, 4)).astype(np.float32) * (i + 1) for i in range(count)]


def test_min_max_sees_everything():
    batches = make_batches()
    observer = MinMax()
    assert observer.range() is None
    for batch in batches:
        observer.observe(torch.from_numpy(batch))
    whole = np.concatenate(batches)
    assert [float(x) for x in observer.range()] == [whole.min(), whole.max()]


def test_min_max_by_row():
    batches = make_batches()
    observer = MinMax(per_row=True)
    for batch in batches:
        observer.observe(torch.from_numpy(batch))
    low, high = observer.range()
    assert low.shape == high.shape == (7, 1)
    stacked = np.stack(batches)
    assert np.array_equal(low[:, 0].numpy(), stacked.min((0, 2)))
    assert np.array_equal(high[:, 0].numpy(), stacked.max((0, 2)))


def test_running_min_max_is_the_average_with_momentum():
    batches = make_batches()
    observer = RunningMinMax(0.9)
    assert observer.range() is None
    low, high = None, None
    for batch in batches:
        observer.observe(torch.from_numpy(batch))
        low = batch.min() if low is None else 0.9 * low + 0.1 * float(batch.min())
        high = batch.max() if high is None else 0.9 * high + 0.1 * float(batch.max())
    found = [float(x) for x in observer.range()]
    assert np.allclose(found, [low, high], rtol=1e-6)


def test_find_range():
    x = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    assert [float(v) for v in find_range(x, per_row=False)] == [-2, 3]
    assert [v.tolist() for v in find_range(x, per_row=True)] == [[[-2], [0.5]], [[1], [3]]]

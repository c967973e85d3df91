"""The arithmetic of estimates, with clocks that tell what they are told to."""

import numpy as np
import pytest

from frugalfm.influence import costs
from frugalfm.influence.costs import Cost, Rates, Shapes, as_table, choose_widths, repeat_measures
from frugalfm.influence.estimate import Measured, Plan, count_steps, predict
from frugalfm.influence.probe import Peak, Trained


class Clock:
    """Stands still unless it is told to go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def cost_of(tokens, width):
    """What a batch takes, linear and quadratic in length."""
    return tokens * (2e-6 + 3e-9 * width)


def test_between_measured_widths_the_rate_is_interpolated():
    widths = np.array([20.0, 100, 600, 1000])
    tokens = np.array([2000.0, 1900, 1800, 2000])
    rates = Rates.fit(
        widths, tokens, [[cost_of(t, w)] for t, w in zip(tokens, widths, strict=True)]
    )
    rng = np.random.default_rng(0)
    to_come = Shapes(rng.uniform(10, 2000, 50), rng.uniform(20, 1000, 50), weight=7)
    expected = 7 * sum(map(cost_of, to_come.tokens, to_come.widths))
    assert rates.total(to_come) == pytest.approx(expected)
    assert rates.total(to_come.scale(3)) == pytest.approx(3 * expected)
    beyond = Shapes(np.array([100.0]), np.array([5000.0]))
    assert rates.total(beyond) == pytest.approx(cost_of(100, 1000))


def test_a_disturbed_measure_does_not_count():
    rates = Rates.fit([10, 20, 20], [100, 100, 50], [[1, 1.1, 99, 0.9], [2, 2, 2], []])
    np.testing.assert_allclose(rates.widths, [10, 20])
    np.testing.assert_allclose(rates.seconds, [0.0105, 0.02])


def test_batches_are_chosen_from_the_widest_to_the_narrowest():
    widths = np.array([1000.0, 900, 500, 250, 120, 60, 30, 20])
    shapes = Shapes(np.array([2000.0] * 7 + [20]), widths)  # the last is a rest
    assert choose_widths(shapes, 3).tolist() == [0, 3, 6]
    assert choose_widths(shapes, 50).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert choose_widths(Shapes(np.array([5.0]), np.array([5.0])), 7).tolist() == [0]


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 2), (7.5, 3), (10.5, 4), (1e9, 50)])
def test_things_take_turns_until_the_time_is_over(seconds, rounds):
    clock, done = Clock(), []

    def run(number):
        done.append(number)
        clock.now += number + 1

    found = repeat_measures(run, 2, seconds, clock)
    assert done == [0] + [0, 1] * rounds
    assert found == [[1] * rounds, [2] * rounds]


@pytest.fixture
def measured():
    return Measured(
        residues=100,
        tokens=102,
        build_seconds=1e-8,
        read_seconds=1e-9,
        encode_seconds=2e-9,
        load_seconds=3,
        shard_bytes=60,
        score_bytes=20,
        token_bytes=108,
        checkpoint_bytes=4e6,
        scoring=Rates(np.array([102.0]), np.array([1e-5])),
        scoring_peak=Peak(1e9, 5e9),
        training=Trained(Rates(np.array([102.0]), np.array([1e-4])), 3e-5, 2, 12e6, Peak(2e9, 3e9)),
        adapting_peak=Peak(1.5e9, 2.5e9),
        score_shapes=lambda n: Shapes(np.array([102.0]), np.array([102.0]), n),
        train_shapes=lambda n: Shapes(np.array([1020.0]), np.array([102.0]), n / 10),
    )


def test_a_plan_adds_up(measured):
    plan = Plan(1_000_000, 10_000, None, 10, subset=2000)
    build, score, select, coreset, together, full = predict(plan, measured)
    assert build.seconds == pytest.approx(1)
    assert build.disk == 60e6
    # Load; read twice and encode; 102 tokens at 10 us for pool and subset; the adaptation.
    assert score.seconds == pytest.approx(3 + 0.2 + 0.2 + 1_002_000 * 102e-5 + 2000 * 102e-4)
    assert score.memory == 1.5e9
    assert score.device_memory == 5e9
    assert score.disk == 20e6 + 4e6
    assert select.seconds == pytest.approx(0.1)
    # 100 rows are held out; ten epochs of 990 steps, a step of 1,020 tokens at 100 us.
    assert count_steps(plan, measured, 10_000) == 9900
    training = 9900 * 0.102 + 20 * 100 * 102 * 3e-5 + 19 * 2
    assert coreset.seconds == pytest.approx(3 + 1e6 * 3e-9 + training)
    assert coreset.disk == pytest.approx(10_000 * 108 + 4e6 + 2 * 12e6)
    assert coreset.memory == pytest.approx(2e9 + 10_000 * 28)
    assert together.seconds == pytest.approx(score.seconds + select.seconds + coreset.seconds)
    assert together.memory == coreset.memory
    assert together.device_memory == 5e9
    steps = 10 * (1_000_000 - 2000) // 10
    training = steps * 0.102 + -(-steps // 500) * 2000 * 102 * 3e-5 + (steps - 1) // 500 * 2
    assert full.seconds == pytest.approx(3 + 1e8 * 3e-9 + training)
    assert "998,000 steps" in full.stage


def test_equal_steps_cost_the_same_but_for_reading(measured):
    plan = Plan(1_000_000, 10_000, 200, None, adapt=False)
    _, score, _, coreset, _, full = predict(plan, measured)
    assert score.seconds == pytest.approx(3 + 0.4 + 1_002_000 * 102e-5)
    assert score.memory == 1e9
    held_out = (2000 - 100) * 102 * 3e-5
    assert full.seconds - coreset.seconds == pytest.approx(990_000 * 100 * 3e-9 + held_out)
    assert coreset.disk == pytest.approx(10_000 * 108 + 4e6)  # no state is saved on the way


def test_the_table_leaves_out_what_is_not_known():
    rows = [Cost("score", 7200, 1.5e9, None, 2e6), Cost("select", None, None, None, 900)]
    text = as_table(rows, None)
    assert "GPU" not in text
    assert "cost" not in text
    assert text.splitlines()[1].split() == ["score", "2.0", "h", "1.5", "GB", "2.0", "MB"]
    assert as_table(rows, 3.0).splitlines()[1].endswith("6.00")
    assert rows[0].as_record(3.0)["hours"] == 2
    assert rows[1].as_record(3.0)["cost"] is None


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.25, "0.2 s"), (42, "42 s"), (600, "10 min"), (36e4, "100.0 h")]
)
def test_times_have_their_unit(seconds, words):
    assert costs.say_time(seconds) == words


def test_smaller_batches_take_less_of_what_grows_with_them():
    """By hand: 1 GB before, 3 GB more, of which 1 GB is gradients and the optimizer's state."""
    found = Peak(4e9, 5e9, 1e9, 0.0).scale(0.5, 1e9)
    assert found.host == pytest.approx(1e9 + 1e9 + 0.5 * 2e9)
    assert found.device == pytest.approx(1e9 + 0.5 * 4e9)
    assert Peak(4e9, None, 1e9).scale(1.0, 1e9) == Peak(4e9, None)
    # No more is taken off than there was.
    assert Peak(1.2e9, None, 1e9).scale(0.5, 1e9).host == pytest.approx(1.2e9)

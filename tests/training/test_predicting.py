"""The loop of predictions by itself: any engine, any order, in bounded memory."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalfm.encoders import create_encoder
from frugalfm.tokens.codec import Codec
from frugalfm.tokens.inputs import Encoded
from frugalfm.training.predicting import DeployedPredictor, TaskHead, TaskRunner
from frugalfm.training.prediction_file import make_file, open_parts
from frugalfm.training.prediction_input import Survey, stream_records, survey_records
from frugalfm.training.prediction_run import PredictionRun, window_size
from frugalfm.training.prediction_table import PredictionTable, Tally

CODEC = Codec.from_tokenizer(create_encoder("rna-fm-nano", seed=1)[1])


class Counts:
    """An engine whose logits are known: how often each of two letters is attended."""

    def __init__(self, kind="classification"):
        self.kind, self.shapes = kind, []

    def logits(self, ids, attended):
        self.shapes.append(ids.shape)
        assert (attended == (ids != CODEC.pad_id)).all()
        first, second = CODEC.residue_ids[:2]
        found = np.stack([ids == first, ids == second], -1).astype(np.float32)
        if self.kind == "token":
            return found
        if self.kind == "contact":
            return found[..., :1] + found[..., 0][:, None, :]
        sums = found.sum(1)
        if self.kind == "interaction":
            half = len(sums) // 2
            return sums[:half] - sums[half:]
        return sums


class Silent:
    """An engine that costs nothing."""

    def logits(self, ids, attended):
        return np.zeros((len(ids), 2), np.float32)


def draw(random, lengths):
    return [random.choice(CODEC.residue_ids, n).astype(np.uint8) for n in lengths]


def count(tokens):
    return [(tokens == letter).sum() for letter in CODEC.residue_ids[:2]]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 300))
def test_answers_are_in_order_whatever_the_batches(lengths, batch_tokens):
    sequences = draw(np.random.default_rng(0), lengths)
    engine, told = Counts(), []
    runner = TaskRunner(engine, TaskHead("classification", ("x", "y")), CODEC, batch_tokens)
    answers = runner.answer(Encoded(list(map(str, lengths)), sequences), told.append)
    np.testing.assert_array_equal(answers, [count(tokens) for tokens in sequences])
    assert sum(told) == sum(lengths)
    for rows, width in engine.shapes:
        assert rows == 1 or rows * width <= batch_tokens


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=20),
    st.integers(1, 300),
)
def test_pairs_meet_their_partners(lengths, batch_tokens):
    random = np.random.default_rng(0)
    pairs = [draw(random, both) for both in lengths]
    between = np.array([CODEC.eos_id], np.uint8)
    joined = [np.concatenate([a, between, b]) for a, b in pairs]
    engine = Counts("interaction")
    runner = TaskRunner(engine, TaskHead("interaction", ("0", "1")), CODEC, batch_tokens)
    answers = runner.answer(Encoded(["x"] * len(joined), joined))
    expected = [np.subtract(count(a), count(b)) for a, b in pairs]
    np.testing.assert_array_equal(answers, expected)
    for rows, width in engine.shapes:
        assert rows == 2 or rows * width <= batch_tokens


def test_residues_are_cut_out_of_the_batch():
    sequences = draw(np.random.default_rng(0), [3, 30, 7])
    runner = TaskRunner(Counts("token"), TaskHead("token", ("x", "y")), CODEC, 1000)
    for tokens, found in zip(
        sequences, runner.answer(Encoded(["a", "b", "c"], sequences)), strict=True
    ):
        expected = np.stack([tokens == letter for letter in CODEC.residue_ids[:2]], 1)
        np.testing.assert_array_equal(found, expected)


def test_contacts_are_as_many_as_residues_and_far_enough_apart():
    sequences = draw(np.random.default_rng(0), [3, 30, 7])
    runner = TaskRunner(Counts("contact"), TaskHead("contact"), CODEC, 1000)
    few, many, one = runner.answer(Encoded(["a", "b", "c"], sequences))
    assert (len(few), len(many), len(one)) == (0, 30, 1)
    assert (many[:, 1] - many[:, 0] >= 6).all()
    assert (np.diff(many[:, 2]) <= 0).all()
    own = sequences[1] == CODEC.residue_ids[0]
    place = many[0, :2].astype(int)
    assert many[0, 2] == pytest.approx(1 / (1 + np.exp(-own[place].sum())))
    table = PredictionTable(runner.head).fill("abc", [few, many, one], np.array([3, 30, 7]))
    assert [len(row) for row in table["contacts"].to_pylist()] == [0, 30, 1]


def test_a_deployed_engine_is_asked_for_its_logits():
    class Engine:
        def run(self, input_ids, attention_mask):
            return {"logits": Counts().logits(input_ids, attention_mask).astype(np.float64)}

    sequences = draw(np.random.default_rng(0), [3, 30, 7])
    head = TaskHead("classification", ("x", "y"))
    answers = TaskRunner(DeployedPredictor(Engine()), head, CODEC, 64).answer(
        Encoded(["a", "b", "c"], sequences)
    )
    np.testing.assert_array_equal(answers, [count(tokens) for tokens in sequences])
    assert answers[0].dtype == np.float32


def test_what_was_predicted_is_counted():
    table = PredictionTable(TaskHead("regression"))
    tally = Tally(table)
    for values in ([1.0, 5.0], [3.0]):
        tally.add(table.fill("ab"[: len(values)], [np.array([v]) for v in values], np.ones(2)))
    assert tally.describe() == "regression, 1 to 5, mean 3"
    table = PredictionTable(TaskHead("multilabel", ("x", "y")))
    tally = Tally(table)
    tally.add(table.fill("abc", np.array([[1, 1], [-1, -1], [-1, 2]]), np.ones(3)))
    assert tally.describe() == "multilabel: y 2, x 1, none of them 1"
    table = PredictionTable(TaskHead("classification", tuple(map(str, range(20)))))
    tally = Tally(table)
    tally.add(table.fill(list(map(str, range(20))), np.eye(20, dtype=np.float32), np.ones(20)))
    assert tally.describe().endswith(", 12 more")


def test_pairs_are_read_from_tables(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("id\tsequence_b\tsequence_a\nx\tGGT\tac\ny\tC\tAUUA\n")
    head = TaskHead("interaction", ("0", "1"))
    (piece,) = stream_records(path, CODEC, head)
    assert piece.ids == ["x", "y"]
    assert piece.residues == 10
    letters = dict(zip(CODEC.table[list(b"ACGU")].tolist(), "ACGU", strict=True))
    letters[CODEC.eos_id] = "|"
    texts = ["".join(letters[token] for token in tokens.tolist()) for tokens in piece.tokens]
    assert texts == ["AC|GGU", "AUUA|C"]
    assert survey_records(path, CODEC, head, "error") == Survey(2, 10, 12, 0)


def test_memory_does_not_grow_with_the_input(tmp_path):
    """Ten times the input (3 and 30 MB), the same peak; Arrow gives back what it took."""
    head = TaskHead("classification", ("x", "y"))
    table = PredictionTable(head, probabilities=True)
    runner = TaskRunner(Silent(), head, CODEC, 16_384)
    line = "ACGU" * 250
    peaks = []
    for count in (3_000, 30_000):
        fasta = tmp_path / f"{count}.fa"
        with fasta.open("w") as handle:
            handle.writelines(f">s{i}\n{line}\n" for i in range(count))
        tracemalloc.start()
        arrow = pa.total_allocated_bytes()
        survey = survey_records(fasta, CODEC, head, "error")
        out = tmp_path / f"{count}.parquet"
        run = PredictionRun(runner, table, fasta, "error", survey, window_size(16_384))
        with open_parts(out, {}) as stage:
            make_file(stage, out, table, {}, run.windows)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pa.total_allocated_bytes() - arrow < 1 << 20
        assert pq.read_metadata(out).num_rows == count
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 24 << 20, peaks

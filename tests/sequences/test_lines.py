"""JSON lines: the same records as from a table, and the line of every mistake."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalfm.errors import InputError
from frugalfm.sequences import lines
from frugalfm.sequences.readers import column_names, open_sources, stream_sequences

TEXT = st.text(max_size=9)
ROWS = st.lists(
    st.fixed_dictionaries({
        "id": st.text("abc.:é", min_size=1, max_size=5),
        "sequence": st.text("ACGU", min_size=1, max_size=9),
        "note": TEXT | st.integers() | st.lists(st.floats(0, 1), max_size=3) | st.none(),
    }),
    min_size=1, max_size=30,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lines")


def rows_of(path, columns=(), alphabet="rna", **options):
    batches = stream_sequences(path, alphabet, columns, **options)
    return [row for batch in batches for row in batch.to_pylist()]


@given(ROWS, st.booleans(), st.integers(1, 9))
def test_round_trip(folder, rows, packed, size):
    text = "\n\n".join(json.dumps(row, ensure_ascii=size % 2 == 0) for row in rows).encode()
    path = folder / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(text) if packed else text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_ROWS", size)
        found = rows_of(path, ["note"])
    assert [(row["id"], row["sequence"]) for row in found] == [
        (row["id"], row["sequence"]) for row in rows
    ]
    for row, expected in zip(found, rows, strict=True):
        value = expected["note"]
        assert row["note"] == (
            value if isinstance(value, str) else "" if value is None else json.dumps(value)
        )
    assert set(column_names(path)) == {"id", "sequence", "note"}


def test_build_takes_lines(built):
    rows, _ = built('{"seq": "acgt", "gene": 7}\n{"seq": "GG", "gene": null}\n', suffix=".jsonl",
                    sequence_column="seq")  # fmt: skip
    assert [(row["id"], row["sequence"], row["gene"]) for row in rows] == [
        ("in0:1", "ACGU", "7"), ("in0:2", "GG", ""),
    ]  # fmt: skip
    with pytest.raises(InputError, match="line 2: has 'gene', and the first line has not"):
        built('{"sequence": "AC"}\n{"sequence": "GG", "gene": 7}\n', suffix=".jsonl", out="b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sequence": "AC"}\n["AC"]\n', r"line 2: is no JSON object"),
        ('{"sequence": "AC"}\n\n{"sequence"\n', r"line 3: is no JSON \("),
        ('{"sequence": "AC", "id": "x"}\n{"id": "y"}\n', r"line 2: has no 'sequence'"),
        ('{"sequence": "AC"}\n{"sequence": 7}\n', r"line 2: 'sequence' is no text"),
        ('{"sequence": "AC"}\n{"sequence": "A!"}\n', r"line 2, letter 2"),
        ('{"sequence": "AC"}\n{"sequence": null}\n', r"line 2: the sequence is empty"),
        ('{"letters": "AC"}\n', r"no column 'sequence'; name the right one.*are: letters"),
        (b'{"sequence": "\xff"}\n', r"is not UTF-8"),
        ("", r"is empty"),
        (gzip.compress(b'{"sequence": "AC"}\n' * 999, mtime=0)[:30], r"bad\.jsonl"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    if isinstance(text, bytes) and text[:2] == b"\x1f\x8b":
        path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=rf"{path.name}.*{message}" if "bad" not in message
                       else message):  # fmt: skip
        rows_of(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_only_the_wanted_columns_are_read(tmp_path, suffix):
    """So that other columns may be called as ours are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = {"seq": ["AC"], "sequence": ["?"], "length": ["x"], "id": ["a"], "id2": ["b"]}
    path = tmp_path / f"t{suffix}"
    if suffix == ".csv":
        path.write_text("seq,sequence,length,id,id2\nAC,?,x,a,b\n")
    elif suffix == ".jsonl":
        path.write_text(json.dumps({name: value[0] for name, value in table.items()}))
    else:
        pq.write_table(pa.table(table), path)
    (source,) = open_sources(path, "rna", sequence_column="seq", columns=["length", "id"])
    (records,) = source.read()
    assert (records.data, records.columns.column("length").to_pylist()) == (b"AC", ["x"])
    assert records.columns.column("id").to_pylist() == ["a"]
    assert [row["sequence"] for row in rows_of(path, sequence_column="seq")] == ["AC"]
    # All columns beside those that the options name, under names of their own.
    (source,) = open_sources(path, "rna", id_column="id2", sequence_column="seq")
    (records,) = source.read()
    kept = {"id": ["b"], "sequence_2": ["?"], "id_2": ["a"]}
    assert (records.data, records.columns.to_pydict(), source.replaced) == (b"AC", kept, True)
    assert [field.name for field in source.fields] == ["sequence_2", "id_2"]
    with pytest.raises(InputError, match="no column 'no'; there are: seq, sequence"):
        rows_of(path, ["no"], sequence_column="seq")


@pytest.mark.parametrize(
    ("alphabet", "text", "message"),
    [
        ("rna", "MKLV", r"is this protein\? then take a model for them \(this one reads rna\)"),
        ("dna", "AC-T", r"take gaps out first, as `frugalfm build --gaps remove` does"),
        ("protein", "ACGT" * 300, r"nucleotides\? then take a model .*this one reads protein"),
    ],
)
def test_a_model_fixes_the_alphabet(tmp_path, alphabet, text, message):
    """No remedy that names an option of another verb."""
    path = tmp_path / "x.fa"
    path.write_text(f">a\n{text}\n")
    with pytest.raises(InputError, match=message) as error:
        rows_of(path, alphabet=alphabet)
    assert "--alphabet" not in str(error.value)

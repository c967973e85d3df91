import bz2
import gzip
import io
import itertools
import lzma
import random

import dnaio
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frugalfm.errors import InputError
from frugalfm.sequences import fasta
from frugalfm.sequences.readers import open_sources, stream_sequences

IDS = st.text("abcXYZ019_|.:é", min_size=1, max_size=12)
DESCRIPTIONS = st.text("ab >;=β", max_size=9).map(str.strip)
SEQUENCES = st.text("ACGU", min_size=1, max_size=60)
RECORDS = st.lists(st.tuples(IDS, DESCRIPTIONS, SEQUENCES), min_size=1, max_size=20)


def rows(path, alphabet="rna", columns=None):
    batches = list(stream_sequences(path, alphabet, columns))
    for batch in batches:
        batch.validate(full=True)
    return [row for batch in batches for row in batch.to_pylist()]


def pairs(path, alphabet="rna"):
    found = rows(path, alphabet)
    assert all(row["length"] == len(row["sequence"]) for row in found)
    return [(row["id"], row["sequence"]) for row in found]


def wrap(text, width):
    return "\n".join(text[i : i + width] for i in range(0, len(text), width))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readers")


@given(RECORDS, st.integers(1, 70), st.sampled_from(["\n", "\r\n", "\n\n"]), st.integers(1, 200))
def test_fasta_round_trip(folder, records, width, end, chunk):
    text = "".join(f">{i} {d}\n{wrap(s, width)}\n" for i, d, s in records).replace("\n", end)
    path = folder / "round.fasta"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "CHUNK", chunk)
        found = rows(path, columns=["description"])
    expected = [(i, d or None, s) for i, d, s in records]
    assert [(row["id"], row["description"], row["sequence"]) for row in found] == expected


@given(
    st.lists(st.sampled_from([">", "> ", ">a", "a b", "AC", "ac GU", "", " ", "\t", "U\r"])),
    st.integers(1, 30),
)
def test_fasta_agrees_with_dnaio(folder, lines, chunk):
    text = ">first\n" + "\n".join(lines)
    if "a b" in text.replace(">a b", ""):
        text = text.replace("a b", "ac")
    path = folder / "dnaio.fasta"
    path.write_bytes(text.encode())
    with dnaio.open(io.BytesIO(text.encode()), fileformat="fasta") as reader:
        expected = ["".join(record.sequence.split()) for record in reader]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "CHUNK", chunk)
        (source,) = open_sources(path, "rna")
        found = []
        for records in source.read():
            bounds = records.offsets.tolist()
            for start, stop in itertools.pairwise(bounds):
                found.append("".join(records.data[start:stop].decode().split()))
    assert found == expected


@given(RECORDS, st.sampled_from([".csv", ".tsv", ".parquet"]))
def test_table_round_trip(folder, records, suffix):
    path = folder / f"round{suffix}"
    if suffix == ".parquet":
        columns = [list(column) for column in zip(*records, strict=True)]
        names = ["id", "note", "sequence"]
        pq.write_table(pa.table(dict(zip(names, columns, strict=True))), path, row_group_size=7)
    else:
        comma = "," if suffix == ".csv" else "\t"
        lines = [f'"{i}"{comma}"{d}"{comma}{s}' for i, d, s in records]
        path.write_text("\n".join([comma.join(["id", "note", "sequence"]), *lines, ""]))
    found = rows(path, columns=["note"])
    assert [(row["id"], row["note"], row["sequence"]) for row in found] == records


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, bytes])
def test_compression_is_recognised_by_content(tmp_path, pack):
    ending = {gzip.compress: ".gz", bz2.compress: ".bz2", lzma.compress: ".xz"}.get(pack, "")
    path = tmp_path / f"a.fa{ending}"
    path.write_bytes(pack(b">a\nACGU\n>b\nGG\n"))
    assert pairs(path) == [("a", "ACGU"), ("b", "GG")]


def test_gzip_of_several_members(tmp_path):
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(b">a\nAC") + gzip.compress(b"GU\n>b\nGG\n"))
    assert pairs(path) == [("a", "ACGU"), ("b", "GG")]


def test_fastq(tmp_path):
    path = tmp_path / "reads.fq.gz"
    path.write_bytes(gzip.compress(b"@a first\nACGT\n+\nIIII\n@b\nNN\n+\n@@\n"))
    assert pairs(path, "dna") == [("a", "ACGT"), ("b", "NN")]
    assert [row["description"] for row in rows(path, "dna", ["description"])] == ["first", None]


@pytest.mark.parametrize("start", [">a\nAC\n", "@a\nAC\n+\nII\n", "\n\n>a\nAC\n", "\ufeff>a\nAC"])
def test_unknown_suffix_and_odd_starts(tmp_path, start):
    path = tmp_path / ("sequences.txt" if start[0] != "\ufeff" else "bom.fa")
    path.write_text(start, encoding="utf-8")
    assert pairs(path) == [("a", "AC")]


def test_missing_ids_are_the_file_and_number(tmp_path):
    path = tmp_path / "pool.v2.csv.gz"
    path.write_bytes(gzip.compress(b"sequence\nAC\nGU\n"))
    assert pairs(path) == [("pool.v2:1", "AC"), ("pool.v2:2", "GU")]
    path = tmp_path / "x.fa"
    path.write_text(">\nAC\n>b\nGU\n")
    assert pairs(path) == [("x:1", "AC"), ("b", "GU")]


def test_a_record_longer_than_many_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(fasta, "CHUNK", 100)
    path = tmp_path / "long.fa"
    path.write_text(">a\n" + wrap("ACGU" * 5000, 61) + "\n>b\nGG\n")
    assert pairs(path) == [("a", "ACGU" * 5000), ("b", "GG")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(RECORDS, st.integers(1, 30), st.data())
def test_the_place_of_a_bad_letter_is_told(folder, records, width, data):
    number = data.draw(st.integers(0, len(records) - 1))
    place = data.draw(st.integers(0, len(records[number][2]) - 1))
    lines, expected = [], None
    for i, (name, note, sequence) in enumerate(records):
        lines.append(f">{name} {note}")
        if i == number:
            expected = (len(lines) + 1 + place // width, place % width + 1)
            lines += wrap(sequence[:place] + "!" + sequence[place + 1 :], width).split("\n")
        else:
            lines += wrap(sequence, width).split("\n")
    path = folder / "bad.fasta"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"line (\d+), column (\d+)") as error:
        rows(path)
    assert f"bad.fasta, line {expected[0]}, column {expected[1]} (" in str(error.value)


def test_stream_takes_shards_and_wants_their_alphabet(tmp_path, built):
    built(">a\nACGU\n>b\nGG\n")
    assert pairs(tmp_path / "out") == [("a", "ACGU"), ("b", "GG")]
    # A model's own letter is read for T and U, as it is from files.
    assert pairs(tmp_path / "out", "dna") == [("a", "ACGT"), ("b", "GG")]
    with pytest.raises(InputError, match=r"holds rna sequences; take a model .*reads protein\)"):
        rows(tmp_path / "out", "protein")
    with pytest.raises(InputError, match="use --alphabet rna"):
        open_sources(tmp_path / "out", "dna")
    with pytest.raises(InputError, match="no column 'label'"):
        rows(tmp_path / "out", columns=["label"])


def test_stream_refuses_empty_sequences(tmp_path):
    path = tmp_path / "a.fa"
    path.write_text(">a\nAC\n>b\n\n>c\nGG\n")
    with pytest.raises(InputError, match="line 3: the sequence is empty"):
        rows(path)


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize(
    ("start", "line"),
    [
        ('"AC,x\nGU,y\n', 2),
        ('AC,"x\nGU,y\n', 2),
        ('AC,x\nGU,"y', 3),
        ('"AC","x\n\n"\nGU,"y\nGG,\n', 5),
        ('"A\nC","y\nGG,\n', 3),
    ],
)
def test_a_quote_that_is_not_closed(tmp_path, start, line, ending):
    path = tmp_path / f"a.csv{ending}"
    text = f"sequence,note\n{start}".encode()
    path.write_bytes(gzip.compress(text) if ending else text)
    for columns in (None, ["note"]):
        with pytest.raises(InputError, match=rf"csv{ending}, line {line}: a quote is opened and"):
            rows(path, columns=columns)


def test_a_header_whose_quote_is_not_closed(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('id,"sequence\na,AC\n')
    with pytest.raises(InputError, match="line 1: a quote is opened and not closed"):
        rows(path)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_quotes_within_fields_are_letters(tmp_path, end):
    path = tmp_path / "a.csv"
    path.write_text(f'sequence,note\nAC,5" long\n"GU","a ""b"" c"{end}', newline="")
    notes = [row["note"] for row in rows(path, columns=["note"])]
    assert notes == ['5" long', 'a "b" c']


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_tables_in_utf_16(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_text("sequence,note\nAC,x\n", encoding=encoding)
    with pytest.raises(InputError, match=r"a\.csv: is not UTF-8 but UTF-16"):
        rows(path)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.fa.gz", "a.jsonl.gz", "a.fq.gz"])
def test_damaged_gzip(tmp_path, name):
    kinds = {
        "csv": "sequence\n" + "{}\n",
        "fa": ">a\n{}\n",
        "jsonl": '{{"sequence": "{}"}}\n',
        "fq": "@a\n{0}\n+\n{0}\n",
    }
    letters = random.Random(0)
    text = kinds[name.split(".")[1]].format("".join(letters.choices("ACGU", k=900)))
    whole = gzip.compress(text.encode())
    path = tmp_path / name
    path.write_bytes(whole + bytes(8))  # padding is allowed
    assert len(rows(path)) == 1
    messages = set()
    for place in range(40, len(whole) - 8, 9):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(InputError) as error:
            rows(path)
        messages.add(str(error.value).partition(" (")[0])
    assert f"{path}: cannot be read" in messages
    for tail in (b"x", b"some text that was appended\n", bytes(4) + b"x"):
        path.write_bytes(whole + tail)
        with pytest.raises(InputError, match="holds something else after its gzip content"):
            rows(path)
    path.write_bytes(whole + whole[:40])
    with pytest.raises(InputError, match="ends too early"):
        rows(path)

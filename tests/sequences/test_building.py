"""What build does to records, against a naive reading of the same policies."""

import json
import re
import warnings
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import frugalfm
from frugalfm.errors import FrugalWarning, InputError
from frugalfm.sequences import fasta, repeats
from frugalfm.sequences.readers import stream_sequences
from frugalfm.sequences.shards import open_shards

PAIRS = dict(zip("ACGTRYKMBVDHSWN-", "TGCAYRMKVBHDSWN-", strict=True))


def reverse_complement(text):
    return "".join(PAIRS[letter] for letter in reversed(text))


def naive(records, max_length, too_long, min_length, gaps, ambiguous, duplicates, both):
    """Rows and counts that build should make of DNA records, one at a time."""
    kept, seen, counts = [], set(), Counter()
    for name, written in records:
        text = written.upper().translate(str.maketrans("U.", "T-"))
        text = "".join(letter for letter in text if letter != "-" or gaps == "keep")
        starts = range(0, max(len(text), 1), max_length)
        counts["too_long"] += len(starts) > 1
        if too_long == "crop":
            starts = starts[:1]
        for start in starts:
            window = len(text) > max_length and too_long == "window"
            piece = text[start : start + max_length]
            row = f"{name}/{start + 1}-{start + len(piece)}" if window else name
            counts["windows"] += window
            if len(piece) < min_length:
                counts["short_windows" if window else "too_short"] += 1
            elif ambiguous == "drop" and set(piece) - set("ACGT-"):
                counts["ambiguous_dropped"] += 1
            elif duplicates == "drop" and piece in seen:
                counts["duplicates"] += 1
            else:
                seen |= {piece, reverse_complement(piece)} if both else {piece}
                kept.append((row, piece))
    return kept, counts


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "a_2", "a_3", "b__2", "c"]),
            st.one_of(st.text("ACGTacgu", max_size=7), st.text("ACGTnRy-.uU", max_size=30)),
        ),
        min_size=1,
        max_size=25,
    ),
    st.fixed_dictionaries(
        {
            "max_length": st.integers(3, 12),
            "too_long": st.sampled_from(["window", "crop"]),
            "min_length": st.integers(1, 3),
            "gaps": st.sampled_from(["remove", "keep"]),
            "ambiguous": st.sampled_from(["keep", "drop"]),
            "duplicates": st.sampled_from(["drop", "keep"]),
        }
    ),
    st.booleans(),
    st.integers(5, 100),
)
def test_build_agrees_with_the_naive_oracle(tmp_path_factory, records, options, both, chunk):
    folder = tmp_path_factory.mktemp("oracle")
    half = len(records) // 2
    files = []
    for number, some in enumerate((records[:half], records[half:])):
        if some:
            files.append(folder / f"in{number}.fa")
            files[-1].write_text("".join(f">{name}\n{text}\n" for name, text in some))
    both = both and options["duplicates"] == "drop"
    expected, counts = naive(records, **options, both=both)

    def build():
        return frugalfm.build(
            *files, alphabet="dna", out=folder / "out", reverse_complements=both, **options
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "CHUNK", chunk)
        patch.setattr(repeats, "_ROWS", 4)
        if not expected:
            with pytest.raises(InputError, match="no sequence is left"):
                build()
            return
        shards = open_shards(build())
    rows = [row for batch in shards.batches() for row in batch.to_pylist()]
    assert [row["sequence"] for row in rows] == [piece for _, piece in expected]
    assert [row["length"] for row in rows] == [len(piece) for _, piece in expected]
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids)
    first = set()
    for found, (name, _) in zip(ids, expected, strict=True):
        # The first row of an id keeps it, the others keep it as the beginning of theirs.
        assert (
            found == name
            if name not in first
            else re.fullmatch(re.escape(name) + "_+[0-9]+", found)
        )
        first.add(name)
    summary = frugalfm.artifacts.read_manifest(folder / "out")["summary"]
    assert summary["records"] == len(records)
    assert summary["renamed"] == len(ids) - len(first)
    assert {key: summary[key] for key in counts} == counts
    made = summary["windows"] - summary["too_long"] if summary["windows"] else 0
    lost = sum(
        summary[key] for key in ("too_short", "short_windows", "ambiguous_dropped", "duplicates")
    )
    assert summary["records"] + made - lost == summary["n_sequences"] == len(rows)
    assert summary["n_residues"] == sum(len(piece) for _, piece in expected)


def test_letters_are_counted(built):
    rows, summary = built(">a\nacguT n-N.\n>b\n\n>c\nGG\n", gaps="keep")
    assert [row["sequence"] for row in rows] == ["ACGUUN-N-", "GG"]
    found = {key: summary[key] for key in ("lower_case", "rewritten", "ambiguous", "gaps_kept")}
    assert found == {"lower_case": 5, "rewritten": 1, "ambiguous": 2, "gaps_kept": 2}
    assert (summary["blanks"], summary["too_short"], summary["residues"]) == (1, 1, 11)


def test_protein_spelling(built):
    rows, summary = built(">a\nMKJou*\n>b\nmkvbzx\n", alphabet="protein")
    assert [row["sequence"] for row in rows] == ["MKXOU", "MKVBZX"]
    assert (summary["stops"], summary["rewritten"], summary["ambiguous"]) == (1, 1, 3)


@pytest.mark.parametrize(
    ("text", "alphabet", "options", "message"),
    [
        (">a\nAC\nGU-A\n", "rna", {}, r"in0.fasta, line 3, column 3 .*'-'.*--gaps remove"),
        (">a\nACNN\n", "rna", {"ambiguous": "error"}, r"line 2, column 3.*--ambiguous keep"),
        (">a\nAC\n>b\nMKVL\n", "rna", {}, r"line 4, column 3.*'V'|'L'.*--alphabet protein"),
        (">a\nAC\0U\n", "rna", {}, "line 2: holds a NUL byte"),
        (">a\nACG\u00e9\n", "rna", {}, r"line 2, column 4 .*'é'"),
        (">a\nAC1\n", "dna", {}, "line 2, column 3 .*'1'"),
        (">a\nMK*V\n", "protein", {}, r"line 2, column 3.*'\*' inside"),
        (">a\nMK V**\n", "protein", {}, r"line 2, column 5.*'\*' inside"),
        (">a\nMKV\n>b\nM-K*V*\n", "protein", {"gaps": "remove"}, "line 4, column 4"),
        (">a\n" + "ACGU" * 300, "protein", {}, "line 1: .*--alphabet rna"),
        (">a\nAC\n>b\nACGU\n", "rna", {"max_length": 3, "too_long": "error"}, "line 3: .* 4 res"),
        (">a\nAC\n>b\nGG\n>a\nGU\n", "rna", {"repeated_ids": "error"}, "line 5: the id 'a'.* 1;"),
        ("ACGU\n", "rna", {}, "line 1: 'ACGU' where a FASTA header"),
        ("\n\n ACGU\n>a\nAC", "rna", {}, "line 3: 'ACGU' where a FASTA header"),
        (b">a\nAC\n>\xe9\nAC\n", "rna", {}, "line 3: the header is not UTF-8"),
        (">a\n\n", "rna", {}, "no sequence is left of 1 records: 1 are too short"),
        ("", "rna", {}, "in0.fasta: is empty"),
        (">a\nAC", "rna", {"min_length": 0}, "--min-length 0"),
        (">a\nAC", "rna", {"reverse_complements": True}, "--alphabet dna"),
    ],
)
def test_refusals_name_the_place_and_the_remedy(built, text, alphabet, options, message):
    with pytest.raises(InputError, match=message):
        built(text, alphabet=alphabet, **options)


@pytest.mark.parametrize(
    ("text", "suffix", "message"),
    [
        ("@a\nAC\n+\nII\n@b\nAX\n+\nII\n", ".fastq", "line 6, column 2"),
        ("@a\nAC\n+\nII\n@b\nA\u00e9\n+\nIII\n", ".fastq", "line 6: .*ASCII"),
        ("@a\nAC\n+\nII\n@b\nAC", ".fastq", "line 6: .*Premature end"),
        ('id,sequence\na,AC\n\n"b\nb",GX\n', ".csv", "line 4, letter 2"),
        ("id,sequence\na,AC\nb,AC,1\n", ".csv", "line 3: has 3 fields where the header has 2"),
        (b"id,sequence\na,AC\n\xe9,AC\n", ".csv", "line 3: is not UTF-8"),
        ("id\tseq\na\tAC\n", ".tsv", "no column 'sequence'.*--sequence-column.*id, seq"),
        ("id,sequence,sequence\na,AC,GG\n", ".csv", "two columns 'sequence'"),
        ("PAR1 but no more", ".parquet", "not a whole Parquet file"),
        ("what is it?", ".seqs", "of no known format"),
    ],
)
def test_refusals_of_other_formats(built, text, suffix, message):
    with pytest.raises(InputError, match=message):
        built(text, suffix=suffix)


def test_duplicate_record_with_its_id_is_no_repeated_id(built):
    rows, summary = built(">a\nAC\n>a\nac\n", repeated_ids="error")
    assert [row["id"] for row in rows] == ["a"]
    assert (summary["duplicates"], summary["renamed"]) == (1, 0)


def test_windows_cover_the_sequence(built):
    text = "ACGU" * 700 + "G"
    rows, summary = built(f">a some text\n{text}\n", duplicates="keep", max_length=1000)
    assert "".join(row["sequence"] for row in rows) == text
    assert [row["id"] for row in rows] == ["a/1-1000", "a/1001-2000", "a/2001-2801"]
    assert {row["description"] for row in rows} == {"some text"}
    assert (summary["too_long"], summary["windows"]) == (1, 3)


def test_user_columns_are_united(tmp_path):
    (tmp_path / "a.csv").write_text("id,sequence,label,length\n007,ACGU,01,9\n")
    (tmp_path / "b.fa").write_text(">b about\nGG\n")
    (tmp_path / "c.tsv").write_text("name\tid2\tsequence\nc\tx\tUU\n")
    files = [tmp_path / name for name in ("a.csv", "b.fa", "c.tsv")]
    with pytest.warns(FrugalWarning, match=r"a\.csv: the column 'length' is not kept"):
        out = frugalfm.build(*files, alphabet="rna", out=tmp_path / "out")
    shards = open_shards(out)
    rows = [row for batch in shards.batches() for row in batch.to_pylist()]
    empty = {"label": None, "description": None, "name": None, "id2": None}
    assert rows == [
        {"id": "007", "sequence": "ACGU", "length": 4, **empty, "label": "01"},
        {"id": "b", "sequence": "GG", "length": 2, **empty, "description": "about"},
        {"id": "c:1", "sequence": "UU", "length": 2, **empty, "name": "c", "id2": "x"},
    ]


def test_conflicting_columns_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_text("sequence,label\nACGU,1\n")
    pq.write_table(pa.table({"sequence": ["AC"], "label": [1]}), tmp_path / "b.parquet")
    with pytest.raises(
        InputError, match=r"b.parquet: column 'label' is int64, but string in .*a.csv"
    ):
        frugalfm.build(
            tmp_path / "a.csv", tmp_path / "b.parquet", alphabet="rna", out=tmp_path / "out"
        )


def test_parquet_of_other_types(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    sequences = pa.array(["AC", None, "GU"])
    table = pa.table({"id": [1, None, 3], "sequence": sequences.dictionary_encode()})
    pq.write_table(table.append_column("tags", pa.array([[1], [], None])), tmp_path / "a.parquet")
    out = frugalfm.build(tmp_path / "a.parquet", alphabet="rna", out=tmp_path / "out")
    rows = [row for batch in open_shards(out).batches() for row in batch.to_pylist()]
    assert rows == [
        {"id": "1", "sequence": "AC", "length": 2, "tags": [1]},
        {"id": "3", "sequence": "GU", "length": 2, "tags": None},
    ]
    pq.write_table(pa.table({"sequence": [1.5]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="holds double, not text"):
        frugalfm.build(tmp_path / "b.parquet", alphabet="rna", out=tmp_path / "other")


def test_named_columns(tmp_path):
    (tmp_path / "a.csv").write_text("name,seq,note\nx,ACGU,hello\n")
    options = {"alphabet": "rna", "id_column": "name", "sequence_column": "seq"}
    shards = open_shards(frugalfm.build(tmp_path / "a.csv", out=tmp_path / "out", **options))
    (batch,) = shards.batches()
    row = {"id": "x", "sequence": "ACGU", "length": 4, "note": "hello"}
    assert batch.to_pylist() == [row]
    # Shards have lengths of their own, which are not the user's.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frugalfm.build(tmp_path / "out", alphabet="rna", out=tmp_path / "again")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_columns_that_are_called_as_ours_are_kept(tmp_path, suffix):
    """As embed and predict take them."""
    header = ["gene", "other", "sequence", "id", "sequence_2"]
    rows = [["x", "ACGU", "a note", "7", ""], ["y", "GG", "", "8", "9"]]
    lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    if suffix == "csv":
        lines = [",".join(row) for row in [header, *rows]]
    (tmp_path / f"a.{suffix}").write_text("\n".join(lines))
    options = {"alphabet": "rna", "id_column": "gene", "sequence_column": "other"}
    shards = open_shards(frugalfm.build(tmp_path / f"a.{suffix}", out=tmp_path / "o", **options))
    (batch,) = shards.batches()
    assert batch.to_pylist() == [
        {
            "id": "x",
            "sequence": "ACGU",
            "length": 4,
            "sequence_3": "a note",
            "id_2": "7",
            "sequence_2": "",
        },
        {
            "id": "y",
            "sequence": "GG",
            "length": 2,
            "sequence_3": "",
            "id_2": "8",
            "sequence_2": "9",
        },
    ]


def test_a_folder_of_files_is_to_be_named_by_its_files(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    for name in ("b.fa.gz", "a.fa.gz", "notes.txt"):
        (folder / name).write_text("")
    with pytest.raises(
        InputError, match=r"and not of shards; name the files, such as .*/d/\*\.fa\.gz$"
    ):
        frugalfm.build(folder, alphabet="rna", out=tmp_path / "out")
    with pytest.raises(InputError, match=r"name one of them, such as .*/d/a\.fa\.gz$"):
        next(stream_sequences(folder, "rna"))

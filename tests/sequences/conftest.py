import json

import pyarrow.parquet as pq
import pytest

import frugalfm


@pytest.fixture
def built(tmp_path, capsys):
    """Build text files and return the rows and the summary."""

    def build(*texts, alphabet="rna", suffix=".fasta", out="out", **options):
        files = []
        for number, text in enumerate(texts):
            file = tmp_path / f"in{number}{suffix}"
            file.write_bytes(text if isinstance(text, bytes) else text.encode())
            files.append(file)
        folder = frugalfm.build(*files, alphabet=alphabet, out=tmp_path / out, **options)
        manifest = json.loads((folder / "manifest.json").read_text())
        parts = [folder / part["file"] for part in manifest["summary"]["parts"]]
        rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
        return rows, manifest["summary"]

    return build

"""Damaged files, kills, and memory."""

import gzip
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import frugalfm
from frugalfm.errors import FrugalError, InputError
from frugalfm.sequences import cutting


def fasta(count, length=200, seed=0):
    draw = random.Random(seed)
    return "".join(
        f">s{i}\n{''.join(draw.choices('ACGU', k=length))}\n" for i in range(count)
    ).encode()


def run(code, *arguments, **environment):
    code = textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("suffix", [".fasta", ".fastq", ".csv"])
@pytest.mark.parametrize("damage", ["cut", "header", "middle", "checksum"])
def test_damaged_gzip(tmp_path, suffix, damage):
    text = {
        ".fasta": fasta(3000),
        ".fastq": b"".join(b"@s%d\nACGU\n+\nIIII\n" % i for i in range(20000)),
        ".csv": b"id,sequence\n" + b"".join(b"s%d,ACGU\n" % i for i in range(20000)),
    }[suffix]
    data = gzip.compress(text)
    half = len(data) // 2
    data = {
        "cut": data[:half],
        "header": data[:7],
        "middle": data[:half] + bytes(200) + data[half + 200 :],
        "checksum": data[:-8] + bytes(8),
    }[damage]
    path = tmp_path / f"a{suffix}.gz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"a{suffix}.gz"):
        frugalfm.build(path, alphabet="rna", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_parquet(tmp_path):
    (tmp_path / "a.fa").write_bytes(fasta(100))
    part = frugalfm.build(tmp_path / "a.fa", alphabet="rna", out=tmp_path / "out")
    data = (part / "part-00000.parquet").read_bytes()
    path = tmp_path / "cut.parquet"
    path.write_bytes(data[:-100])
    with pytest.raises(InputError, match=r"cut\.parquet: is not a whole Parquet file"):
        frugalfm.build(path, alphabet="rna", out=tmp_path / "again")
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(InputError, match=r"cut\.parquet"):
        frugalfm.build(path, alphabet="rna", out=tmp_path / "again")


KILL = """
    import os, signal, sys
    from pathlib import Path
    import frugalfm
    from frugalfm.sequences import fasta, shards
    fasta.CHUNK = 10_000
    shards.GROUP_ROWS = 200
    shards.PART_ROWS = 1000
    calls, write = [], shards.ShardWriter._write
    def dying(self, *rest):
        write(self, *rest)
        calls.append(None)
        if len(calls) == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
    shards.ShardWriter._write = dying
    frugalfm.build(Path(sys.argv[1]), alphabet="rna", out=Path(sys.argv[2]))
"""


def test_killed_and_run_again_is_the_same(tmp_path):
    path = tmp_path / "a.fa"
    path.write_bytes(fasta(4000) + fasta(50))
    assert run(KILL, path, tmp_path / "whole", -1).returncode == 0
    out = tmp_path / "out"
    assert run(KILL, path, out, 12).returncode == -signal.SIGKILL
    assert not out.exists()
    assert len(list((tmp_path / ".out.partial").glob("part-*"))) >= 2
    assert run(KILL, path, out, -1).returncode == 0
    names = sorted(file.name for file in out.iterdir())
    assert names == ["manifest.json", *(f"part-0000{i}.parquet" for i in range(4))]
    for name in names[1:]:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_input_that_changes_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "a.fa"
    path.write_bytes(fasta(10))
    find = cutting.Cutter.rows

    def rows(self, sources, tick=None):
        yield from find(self, sources, tick)
        path.write_bytes(fasta(11))

    monkeypatch.setattr(cutting.Cutter, "rows", rows)
    with pytest.raises(FrugalError, match="changed while it was read"):
        frugalfm.build(path, alphabet="rna", out=tmp_path / "out")


def test_a_corrupt_shard_is_found_when_read(tmp_path):
    (tmp_path / "a.fa").write_bytes(fasta(1000))
    out = frugalfm.build(tmp_path / "a.fa", alphabet="rna", out=tmp_path / "out")
    part = out / "part-00000.parquet"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 4
    part.write_bytes(data)
    with pytest.raises(InputError, match=r"part-00000\.parquet"):
        frugalfm.build(out, alphabet="rna", out=tmp_path / "again")


MEMORY = """
    import re, sys
    from pathlib import Path
    import frugalfm
    from frugalfm.sequences import fasta, shards
    fasta.CHUNK = 1 << 18
    shards.GROUP_RESIDUES = 1 << 20
    shards.PART_RESIDUES = 16 << 20
    def peak():
        # Not getrusage: its peak includes that of the process which started this one.
        return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    peaks = []
    for given in sys.argv[2:]:
        frugalfm.build(Path(given), alphabet="rna", out=Path(sys.argv[1]) / Path(given).stem)
        peaks.append(peak())
    print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_input(tmp_path):
    block = fasta(5000, 1000).decode()
    # Both larger than a part and than what libraries keep for themselves: 25 MB and 75 MB.
    medium, large = tmp_path / "medium.fa", tmp_path / "large.fa"
    for path, copies in [(medium, 5), (large, 15)]:
        with path.open("w") as handle:  # every record another
            for i in range(copies):
                turned = block.translate(str.maketrans("ACGU", "ACGU"[i % 4 :] + "ACGU"[: i % 4]))
                handle.write(turned.replace(">s", f">{i}_").replace("\n>", f"{'ACGU'[i // 4]}\n>"))
    # Allocators that hoard what was freed, each thread for itself, would be measured too.
    plain = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    done = run(MEMORY, tmp_path, medium, large, **plain)
    assert done.returncode == 0, done.stderr
    assert "rows kept" in done.stdout
    # Half of what the second has more: a pool held in memory, even once, would be above it.
    assert float(done.stdout.splitlines()[-1]) < 25

"""Every tutorial runs as written, from its first block to its last, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable, "-"]}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path):
    (tmp_path / "frugalfm").symlink_to(ROOT)
    # The program that belongs to this interpreter, whatever else is installed.
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": search}
    blocks = BLOCK.findall(path.read_text())
    assert blocks
    for language, text in blocks:
        done = subprocess.run(
            COMMANDS[language],
            input=text,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_the_tutorials_are_found():
    assert TUTORIALS

"""The rooms that compute, on an emulated device that refuses what CUDA refuses.

In a process of its own: a device is for good, and changes what torch does elsewhere.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

ROOMS = Path(__file__).with_name("rooms.py")


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices in Python",
)
def test_no_room_mixes_devices(tmp_path):
    command = [sys.executable, str(ROOMS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 40
    failed = {one["room"]: one["problem"] for one in found if one["problem"]}
    assert not failed, "\n".join(f"--- {room}\n{problem}" for room, problem in failed.items())

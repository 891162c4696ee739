"""Two gloo processes, forked once, against one: the cases are in `two_processes.py`."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")
CASES = re.findall(r"^def (test_\w+)", SCRIPT.read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def said():
    """What the processes printed; a hang ends after two minutes."""
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=150, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    return done.stdout + done.stderr


@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", CASES)
def test_on_two_processes(said, case):
    assert f"{case} ok" in said, said[-6000:]

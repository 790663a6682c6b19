"""Steps on the `meta` device, in a process of their own: where they have been made, no process can be forked."""

import subprocess
import sys
from pathlib import Path


def test_steps_wait_for_no_value():
    steps = Path(__file__).with_name("on_meta.py")
    made = subprocess.run([sys.executable, "-m", "pytest", "-q", steps], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout

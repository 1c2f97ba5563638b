"""The examples run, and hold what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.thorough
@pytest.mark.parametrize(("naive", "code"), [(False, 0), (True, 1)])
def test_two_lean_processes_have_the_loss_curve_of_one_plain_one(naive: bool, code: int) -> None:
    command = [sys.executable, "-m", "examples.language_model", "--steps", "3", "--width", "16", "--layers", "1"]
    done = subprocess.run(
        [*command, "--naive"] if naive else command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, done.stderr
    curve = re.findall(r"^ +\d+ +(\d\.\d{9}) +(\d\.\d{9})", done.stdout, re.MULTILINE)
    assert len(curve) == 3
    assert (curve[-1][0] == curve[-1][1]) != naive
    assert float(curve[-1][0]) < float(curve[0][0])

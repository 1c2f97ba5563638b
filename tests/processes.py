"""Runs checks of `tests.distributed_cases` in several processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys
import tests.distributed_cases as cases
cases.main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
"""


def assert_all_pass(
    processes: int,
    folder: Path,
    *checks: str,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """All checks, or those that are named. What goes wrong in a process is left in `folder`."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(processes), str(folder), *checks],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    failures = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("failure-*"))]
    assert not failures, failures[0]
    assert all(process.returncode == 0 for process in started), errors

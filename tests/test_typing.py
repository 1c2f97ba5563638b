"""What type checkers in strict mode make of a user's program, and that they would tell."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PROGRAM = CHECKOUT / "tests" / "typed_program.py"
# Two lines that are wrong: a call that gives a tensor, and one whose option has the wrong type.
WRONG = """# pyright: strict
import torch
from typing_extensions import assert_type
from torchlosses import CrossEntropyLoss

assert_type(CrossEntropyLoss()(torch.ones(1, 2), torch.zeros(1).long()), int)
CrossEntropyLoss(z_loss="1")
"""


@pytest.mark.parametrize("checker", ["pyright", "mypy"])
def test_a_program(checker: str, tmp_path: Path) -> None:
    if find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    wrong = tmp_path / "wrong_program.py"
    wrong.write_text(WRONG)
    options: list[str] = []
    if checker == "mypy":
        # What mypy knows of torch takes it minutes to find out, and is kept.
        cache = Path(tempfile.gettempdir()) / f"torchlosses-mypy-{os.getuid()}"
        options = ["--strict", "--follow-imports=silent", f"--cache-dir={cache}"]
    result = subprocess.run(
        [sys.executable, "-m", checker, *options, str(PROGRAM), str(wrong)],
        cwd=CHECKOUT,
        env=os.environ | {"MYPYPATH": str(CHECKOUT), "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    errors = re.findall(r"(\w+)\.py:(\d+).*error", result.stdout)
    assert {line for file, line in errors if file == wrong.stem} == {"6", "7"}, result.stdout + result.stderr
    assert not [file for file, _ in errors if file != wrong.stem], result.stdout

"""The error of a loss is no larger than torch's own, against a wider computation: random calls of every loss.

Which of two sums of rounding errors is the larger is chance in a single call, so there ours may be half as large again,
or 2 units in the last place of the tensor's largest number. On the average over a loss's calls chance evens out: there
it is a tenth, or 1 unit.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests import accuracy
from torchlosses import kernels

CHECKOUT = Path(__file__).parents[1]
# The averages of a thousand calls vary by less than they may. The interpreter takes longer for each.
SEED, COUNT, THOROUGH_COUNT, THOROUGH_INTERPRETED = 20261130, 12, 1000, 20


@pytest.mark.parametrize("backend", kernels.available())
def test_of_random_calls(backend: str) -> None:
    with kernels.use(backend):
        found = accuracy.worse(SEED, COUNT)
    assert not found, "\n".join(found)


def interpreted(seed: int, count: int) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "TORCHLOSSES_BACKEND": "triton"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.accuracy", str(seed), str(count)]
    result = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr
    assert not result.stdout.strip(), f"seed {seed}:\n{result.stdout}"


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


@needs_triton
def test_of_random_calls_in_triton() -> None:
    interpreted(SEED, 2)


@pytest.mark.thorough
@pytest.mark.parametrize("backend", [*kernels.available(), pytest.param("triton", marks=needs_triton)])
def test_of_new_random_calls(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    seed = time.time_ns() % 2**32
    with capsys.disabled():
        print(f"\n{backend}: random calls of seed {seed}")
    if backend == "triton" and backend not in kernels.available():
        interpreted(seed, THOROUGH_INTERPRETED)
        return
    with kernels.use(backend):
        found = accuracy.worse(seed, THOROUGH_COUNT)
    assert not found, f"seed {seed}:\n" + "\n".join(found)


def test_it_finds_what_it_looks_for() -> None:
    """A loss with one digit less."""
    (first, *_) = accuracy.draws(SEED, 1)
    coarse = first._replace(ours=lambda x: first.ours(x) * (1 + 16 * np.finfo(np.float32).eps))
    for call, expected in ((first, False), (coarse, first.input.dtype.itemsize > 2)):
        assert any(found.is_worse() for found in accuracy.compare(call)) is expected

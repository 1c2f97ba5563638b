"""Which backend runs, and what each value of TORCHLOSSES_BACKEND does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import torchlosses.kernels
from torchlosses.kernels import backend


@pytest.mark.parametrize(
    ("value", "reason"), [(None, "no compiled"), ("auto", "no compiled"), ("eager", "asks for it")]
)
def test_eager(value: str | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(backend.VARIABLE, value)
    chosen = backend.choose()
    assert chosen.name == "eager"
    assert reason in chosen.reason


def test_native_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "native")
    with pytest.raises(ImportError, match="does not have: set TORCHLOSSES_BACKEND to auto or eager"):
        backend.choose()


def test_an_unknown_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "fast")
    with pytest.raises(ValueError, match="'fast' is not a backend: expected one of auto, native, eager"):
        backend.choose()


@pytest.mark.parametrize(("value", "code", "shown"), [("eager", 0, "backend: eager"), ("fast", 1, "'fast' is not")])
def test_command(value: str, code: int, shown: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "torchlosses.kernels"],
        env={**os.environ, backend.VARIABLE: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code
    assert shown in run.stdout + run.stderr
    assert torchlosses.kernels.BACKEND.name == "eager"

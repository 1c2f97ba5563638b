"""Which backend runs, and what each value of TORCHLOSSES_BACKEND does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import torchlosses.kernels
from torchlosses.kernels import backend


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "without compiled"), ("", "without compiled"), ("auto", "without compiled"), ("eager", "asks for it")],
)
def test_eager(value: str | None, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(backend.VARIABLE, value)
    chosen, native = backend.choose(tmp_path / "absent.so")
    assert chosen.name == "eager"
    assert native is None
    assert reason in chosen.reason


def test_native_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(backend.VARIABLE, "native")
    with pytest.raises(ImportError, match="does not have: build them with"):
        backend.choose(tmp_path / "absent.so")


@pytest.mark.parametrize("value", ["auto", "native"])
def test_a_broken_library_is_not_passed_over(value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setenv(backend.VARIABLE, value)
    with pytest.raises(ImportError, match=r"cannot be loaded: .*broken\.so"):
        backend.choose(broken)


def test_an_unknown_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.VARIABLE, "fast")
    with pytest.raises(ValueError, match="'fast' is not a backend: expected one of auto, native, triton, eager"):
        backend.choose()


def test_a_backend_can_be_used_for_a_while() -> None:
    before = torchlosses.kernels.BACKEND
    with torchlosses.kernels.use("eager"):
        assert torchlosses.kernels.BACKEND.name == "eager"
    assert before == torchlosses.kernels.BACKEND
    with pytest.raises(ValueError, match="'fast' is not an available backend"), torchlosses.kernels.use("fast"):
        pass


@pytest.mark.parametrize(
    ("value", "code", "shown"),
    [
        ("fast", 1, "'fast' is not"),
        pytest.param("eager", 0, "backend: eager", marks=pytest.mark.thorough),
    ],
)
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


def test_triton_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert backend.choose_for_gpu() == ("eager", "Triton is not installed")
    monkeypatch.setenv(backend.VARIABLE, "triton")
    with pytest.raises(ImportError, match="asks for Triton, which is not installed"):
        backend.choose_for_gpu()
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: name)
    assert backend.choose_for_gpu().name == "triton"
    monkeypatch.setenv(backend.VARIABLE, "eager")
    assert backend.choose_for_gpu().name == "eager"


def test_public_functions_run_the_kernels_in_tritons_interpreter() -> None:
    """In a process of its own: what interprets is chosen at import."""
    pytest.importorskip("triton")
    program = (
        "import torch, torchlosses, torch.nn.functional as F\n"
        "from torchlosses import kernels\n"
        "assert kernels.BACKEND.name == 'triton', kernels.BACKEND\n"
        "x = torch.randn(7, 33, requires_grad=True)\n"
        "t = torch.arange(7) % 33\n"
        "from torchlosses.kernels.triton import cross_entropy as module\n"
        "calls, run = [], module.forward\n"
        "module.forward = lambda *a: calls.append(a) or run(*a)\n"
        "loss = torchlosses.cross_entropy(x, t)\n"
        "torch.testing.assert_close(loss, F.cross_entropy(x, t))\n"
        "torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(F.cross_entropy(x, t), x))\n"
        "assert len(calls) == 1\n"
        "with kernels.use('eager'):\n"
        "    torchlosses.cross_entropy(x, t)\n"
        "assert len(calls) == 1\n"
    )
    environment = {**os.environ, backend.VARIABLE: "triton", "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

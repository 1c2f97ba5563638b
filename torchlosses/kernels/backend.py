"""Which implementation of the operators runs, and why; and the compiled library that may be one of them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

VARIABLE = "TORCHLOSSES_BACKEND"
CHOICES = ("auto", "native", "triton", "eager")
LIBRARY = Path(__file__).parents[1] / "lib" / "libtorchlosses.so"
# In its place where building it failed; it says why.
NOTICE = "not-built.txt"
# Losses that have an operator for a few rows.
FEW = ("cross_entropy", "mse_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")


class Backend(NamedTuple):
    """The implementation that runs, and the reason for it."""

    name: str
    reason: str


class Native:
    """The compiled operators: loading registers them for the CPU, in front of the operators in PyTorch operations.

    Raises:
        ImportError: The library is there but cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        try:
            torch.ops.load_library(path)
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise ImportError(
                f"the compiled operators of torchlosses cannot be loaded: {error.__cause__ or error}. "
                f"Build them again with `pip install --no-build-isolation -e .`, or set {VARIABLE}=eager to run "
                "without them."
            ) from error
        self._library.torchlosses_instruction_set.restype = ctypes.c_char_p
        # By the name of a loss, the operator for a few rows: f(input, target, whether it is a mean, incoming gradient,
        # memory for the gradient, *options) gives loss and gradient; None where it does not cover the call, no gradient
        # is wanted, or it went where it was told to.
        self.few: dict[str, Callable[..., tuple[Tensor | None, Tensor | None]]] = {
            name: getattr(torch.ops.torchlosses, f"{name}_few").default for name in FEW
        }

    @property
    def instruction_set(self) -> str:
        """What the kernels were compiled for: 'avx512', 'avx2' or 'baseline'."""
        return self._library.torchlosses_instruction_set().decode()

    def enable(self, value: bool) -> None:
        """Whether the kernels run, or pass everything on."""
        self._library.torchlosses_enable(int(value))


def choose(library: Path = LIBRARY) -> tuple[Backend, Native | None]:
    """What runs on the CPU, by TORCHLOSSES_BACKEND: 'auto' (default, of an empty one too), 'native', 'triton', 'eager'.

    'triton' is about GPUs; only where Triton interprets (TRITON_INTERPRET=1) does it run on the CPU.

    Where the installation was meant to have compiled operators and could not build them, 'auto' warns.

    Raises:
        ValueError: The variable has another value.
        ImportError: 'native' is asked for and this installation has no compiled operators; or it has, and they cannot
            be loaded.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted not in CHOICES:
        raise ValueError(f"{VARIABLE}={wanted!r} is not a backend: expected one of {', '.join(CHOICES)}.")
    if wanted == "eager":
        return Backend("eager", f"{VARIABLE}=eager asks for it"), None
    if wanted == "triton" and interprets():
        return Backend("triton", f"{VARIABLE}=triton and TRITON_INTERPRET=1 ask for it"), None
    if library.exists():
        reason = f"{VARIABLE}=native asks for it" if wanted == "native" else "this installation has compiled operators"
        return Backend("native", reason), Native(library)
    if wanted == "native":
        raise ImportError(
            f"{VARIABLE}=native asks for compiled operators, which this installation does not have: build them with "
            f"`pip install --no-build-isolation -e .` and a C++ compiler, or set {VARIABLE} to auto or eager."
        )
    notice = library.with_name(NOTICE)
    if not notice.exists():
        return Backend("eager", "this installation was made without compiled operators"), None
    cause = notice.read_text(encoding="utf-8").strip()
    warnings.warn(
        f"torchlosses was installed without its compiled operators and runs on slower PyTorch operations: {cause}\n"
        f"Install it again without pip's cache (pip install --no-cache-dir --force-reinstall --no-deps ...) once that "
        f"is mended, or set {VARIABLE}=eager to keep it so.",
        stacklevel=2,
    )
    return Backend("eager", f"the compiled operators could not be built: {cause}"), None


def interprets() -> bool:
    """Whether Triton runs its kernels in an interpreter, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose_for_gpu() -> Backend:
    """What runs on GPUs, under the same variable: Triton where it can be imported, and nobody wants another.

    Raises:
        ImportError: 'triton' is asked for and cannot be imported.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    if wanted == "eager":
        return Backend("eager", f"{VARIABLE}=eager asks for it")
    if importlib.util.find_spec("triton") is not None:
        return Backend("triton", f"{VARIABLE}=triton asks for it" if wanted == "triton" else "Triton is installed")
    if wanted == "triton":
        raise ImportError(
            f"{VARIABLE}=triton asks for Triton, which is not installed; PyTorch brings it along on Linux. Install it, "
            f"or set {VARIABLE} to auto or eager."
        )
    return Backend("eager", "Triton is not installed")

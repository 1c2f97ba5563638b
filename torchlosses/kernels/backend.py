"""Which implementation of the operators runs, and why; and the compiled library that may be one of them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

VARIABLE = "TORCHLOSSES_BACKEND"
CHOICES = ("auto", "native", "triton", "eager")
LIBRARY = Path(__file__).parents[1] / "lib" / "libtorchlosses.so"
# In its place where building it failed; it says why.
NOTICE = "not-built.txt"
_MOST = (1 << 63) - 1  # of an int64; ctypes would cut off the rest


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
        integer, real, pointer = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p
        self._cross_entropy = self._library.torchlosses_cross_entropy
        self._cross_entropy.argtypes = [
            *(pointer, pointer, integer, integer, ctypes.c_int, ctypes.c_int),
            *(real, integer, real, real, pointer, pointer),
        ]
        self._elementwise = self._library.torchlosses_elementwise
        self._elementwise.argtypes = [
            *(ctypes.c_int, pointer, pointer, integer, ctypes.c_int, ctypes.c_int),
            *(real, real, ctypes.c_int, integer, real, pointer, pointer),
        ]
        # By the name of a loss, what computes it for a few rows past the dispatcher: f(input, target, options,
        # grad_output, gradient or None) gives the loss, and fills in the gradient; None where an operator has to look,
        # as at tensors that wrap others or are zeros by their nature, and have no memory.
        self.few: dict[str, Callable[..., Tensor | None]] = {
            "cross_entropy": self._few_cross_entropy,
            "mse_loss": partial(self._few_elements, 0),
            "huber_loss": partial(self._few_elements, 1),
            "smooth_l1_loss": partial(self._few_elements, 2),
            "binary_cross_entropy_with_logits": partial(self._few_elements, 3),
        }

    @property
    def instruction_set(self) -> str:
        """What the kernels were compiled for: 'avx512', 'avx2' or 'baseline'."""
        return self._library.torchlosses_instruction_set().decode()

    def enable(self, value: bool) -> None:
        """Whether the kernels run, or pass everything on."""
        self._library.torchlosses_enable(int(value))

    def _few_cross_entropy(
        self, input: Tensor, target: Tensor, options: Any, grad_output: float, gradient: Tensor | None
    ) -> Tensor | None:
        logits, indices = address(input), address(target)
        if not (logits and indices) or not -_MOST <= options.ignore_index <= _MOST:
            return None
        loss = input.new_empty(())
        rows, classes = input.shape
        found = self._cross_entropy(
            logits,
            indices,
            rows,
            classes,
            options.dtype is torch.float64,
            options.reduction == "mean",
            options.empty,
            options.ignore_index,
            options.label_smoothing,
            grad_output,
            loss.data_ptr(),
            None if gradient is None else gradient.data_ptr(),
        )
        return loss if found else None

    def _few_elements(
        self,
        which: int,
        input: Tensor,
        target: Tensor,
        options: Any,
        grad_output: float,
        gradient: Tensor | None,
    ) -> Tensor | None:
        # The last option is δ of huber, β of smooth_l1, and the label smoothing.
        parameter = options[-1] if which else 0.0
        ignore_index = options.ignore_index if which == 3 else None
        if ignore_index is not None and not -_MOST <= ignore_index <= _MOST:
            return None
        predicted, true = address(input), address(target)
        if not (predicted and true):
            return None
        loss = input.new_empty(())
        found = self._elementwise(
            which,
            predicted,
            true,
            input.numel(),
            options.dtype is torch.float64,
            options.reduction == "mean",
            options.empty,
            parameter,
            ignore_index is not None,
            ignore_index or 0,
            grad_output,
            loss.data_ptr(),
            None if gradient is None else gradient.data_ptr(),
        )
        return loss if found else None


def address(tensor: Tensor) -> int:
    """Where the first element is; 0 where a tensor has no memory, whose address counts from 0."""
    address = tensor.data_ptr()
    if address >> 31 or address != tensor.storage_offset() * tensor.element_size():
        return address
    return 0


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

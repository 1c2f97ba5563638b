"""The backends of the operators: which one runs on which device, and why.

The declarations of the losses (`torchlosses._declare`) make the operators of the torch.library namespace `torchlosses`,
and register for every device the PyTorch operations that a loss is written in: `eager`. Two backends stand in front of
it: the compiled one, `native`, registers itself for the CPU and passes on what it does not cover, and `triton` takes
the tensors of GPUs where Triton can be imported. `BACKEND` and `GPU_BACKEND` say which one runs, and why; the
environment variable TORCHLOSSES_BACKEND chooses, and `use` chooses for a while.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from torchlosses.kernels import eager as eager
from torchlosses.kernels.backend import choose, choose_for_gpu

BACKEND, _native = choose()
INSTRUCTION_SET = None if _native is None else _native.instruction_set


GPU_BACKEND = choose_for_gpu()
# Triton's kernels serve these dispatch keys; CUDA is also that of ROCm.
_TRITON_KEYS = (() if GPU_BACKEND.name != "triton" else ("CUDA",)) + (("CPU",) if BACKEND.name == "triton" else ())
_TRITON_DEVICES = {key.lower() for key in _TRITON_KEYS}
_TRITON_ON_CPU = "CPU" in _TRITON_KEYS
_TRITON_LOSSES = (
    "mse_loss",
    "huber_loss",
    "smooth_l1_loss",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "cee_loss",
    "log_probs",
)
_triton_runs = True
# The operators for a few rows, by the name of the loss.
few: dict[str, Callable[..., Any]] = {} if _native is None else _native.few


def available() -> tuple[str, ...]:
    """The backends that this process can run, the first one by default."""
    found = [] if _native is None else ["native"]
    if _TRITON_ON_CPU or ("CUDA" in _TRITON_KEYS and torch.cuda.is_available()):
        found.append("triton")
    return (*found, "eager")


@contextmanager
def use(name: str) -> Iterator[None]:
    """Run another backend for a while, in all threads: for tests and measurements that compare them.

    'eager' is for all devices; 'native' and 'triton' are for their own, on which the others do not run.

    Raises:
        ValueError: The backend is not available.

    Example:
        >>> from torchlosses import kernels
        >>> with kernels.use("eager"):
        ...     pass
    """
    global BACKEND, GPU_BACKEND
    if name not in available():
        raise ValueError(f"{name!r} is not an available backend: expected one of {', '.join(available())}.")
    before, before_on_gpu, reason = BACKEND, GPU_BACKEND, "torchlosses.kernels.use asks for it"
    if name in ("native", "eager") and before.name != name:
        BACKEND = before._replace(name=name, reason=reason)
    if name in ("triton", "eager") and before_on_gpu.name != name:
        GPU_BACKEND = before_on_gpu._replace(name=name, reason=reason)
    _switch()
    try:
        yield
    finally:
        BACKEND, GPU_BACKEND = before, before_on_gpu
        _switch()


def _switch() -> None:
    global _triton_runs, few
    if _native is not None:
        _native.enable(BACKEND.name == "native")
        few = _native.few if BACKEND.name == "native" else {}
    _triton_runs = "triton" in (BACKEND.name, GPU_BACKEND.name)


@functools.cache
def _triton() -> Any:
    """The backend, which takes longer to import than all the rest."""
    from torchlosses.kernels import triton

    return triton


def _past_dispatcher(loss: str, device: torch.device) -> Any:
    """What the operators of a loss would do no more than call; None where Triton does not run on the device.

    The dispatcher takes longer than a launch.
    """
    if _triton_runs and device.type in _TRITON_DEVICES and loss in _TRITON_LOSSES:
        return _triton().LOSSES[loss]
    return None


def _multiplies(input: Tensor, reduction: str) -> bool:
    """Whether, in Triton, the gradient that came along with the loss is multiplied, and no kernel launched again."""
    return _triton().unit_first(input, reduction)


def _multiply(gradient: Tensor, grad_output: Tensor, *tensors: Tensor) -> None:
    """Do that, in place; 0 stays 0."""
    _triton().scale_in_place(gradient, grad_output, *tensors)


def _in_triton(loss: Any) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """The three operators of a declared loss in Triton: (what its name ends with, dispatch key, kernel)."""
    if loss.name not in _TRITON_LOSSES:
        return
    n, m = loss.count, loss.count + loss.keeps

    def forward(*a: Any) -> Any:
        options = loss.options(*a[n:])
        if not _triton_runs:
            return loss.kernels.forward(loss, a[:n], options)
        return _triton().LOSSES[loss.name].forward(*a[:n], options)

    def backward(grad_output: Any, *a: Any) -> Any:
        options = loss.options(*a[m:])
        if not _triton_runs:
            return loss.kernels.backward(loss, grad_output, a[:n], options, *a[n:m])
        gradient = torch.empty_like(a[0])
        _triton().LOSSES[loss.name].backward(grad_output, gradient, *a[:m], options._replace(gradients=0))
        return gradient

    def backward_(grad_output: Any, gradient: Any, *a: Any) -> None:
        options = loss.options(*a[m:])
        if _triton_runs:
            _triton().LOSSES[loss.name].backward(grad_output, gradient, *a[:m], options)
        else:
            loss.kernels.backward_(loss, grad_output, gradient, a[:n], options, *a[n:m])

    for key in _TRITON_KEYS:
        yield from (("", key, forward), ("_backward", key, backward), ("_backward_", key, backward_))


def _local_in_triton(name: str, device: torch.device) -> Any:
    """What a process does by itself for the loss of that name, in Triton; None where that does not run on the device.

    Between forward and backward the processes talk, which is not a matter of kernels: the loss calls these itself.
    """
    if not _triton_runs or device.type not in _TRITON_DEVICES:
        return None
    return _triton().LOCAL[name]


def _forward_over(loss: Any, device: torch.device) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """What finds rows' losses and writes the gradient over the input in one launch; None where nothing does."""
    return getattr(_past_dispatcher(loss.name, device), "forward_over", None)


def warm_up(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Compile the Triton kernels of a call and its backward ahead; see `torchlosses.kernels.triton.warm_up`."""
    from torchlosses.kernels.triton.warm_up import warm_up

    return warm_up(function, *arguments, **options)

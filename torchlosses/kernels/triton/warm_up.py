"""Compile ahead what a call would compile when it is first made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from torchlosses.kernels.triton.launch import INTERPRETED, Rehearsal, rehearsing


def warm_up(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Compile the kernels of `function(*arguments, **options)` and of its backward, and start none of them.

    Compiling takes some seconds, once for each combination of dtypes, options and kind of size; Triton keeps the
    result on disk. Where the first step must not wait, or is captured in a CUDA graph, call this before. What the
    tensors hold is neither read nor written.

    Args:
        function: A loss such as `torchlosses.cross_entropy`, or a module.
        arguments: What it is called with: tensors on the GPU, of the shape, dtype and requires_grad they will have.
        options: Its keyword arguments.

    Returns:
        How many kernels it takes; 0 where the arguments do not lie on a GPU, so that the call is simply made.

    Example:
        >>> import torch, torchlosses
        >>> from torchlosses.kernels.triton.warm_up import warm_up
        >>> if torch.cuda.is_available():
        ...     logits = torch.empty(8192, 32000, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        ...     target = torch.empty(8192, dtype=torch.int64, device="cuda")
        ...     kernels = warm_up(torchlosses.cross_entropy, logits, target, label_smoothing=0.1)
    """
    started = 0

    def start(
        kernel: Any,
        device: torch.device,
        programs: int,
        warps: int,
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
    ) -> None:
        nonlocal started
        started += 1
        if INTERPRETED:
            return
        with torch.cuda.device(device):
            kernel.warmup(*arguments, grid=(programs,), num_warps=warps, **constants)

    def detached(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_(tensor.requires_grad)

    arguments, options = tree_map_only(Tensor, detached, (arguments, options))
    # In the thread that knows of the rehearsal.
    with rehearsing(Rehearsal(start)), torch.autograd.set_multithreading_enabled(False):
        output = function(*arguments, **options)
        loss = output[0] if isinstance(output, tuple) else output
        if loss.requires_grad:
            loss.backward(torch.ones_like(loss))
    return started

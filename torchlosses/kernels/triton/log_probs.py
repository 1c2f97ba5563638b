"""Log-probability of the target, entropy and top-1 hit of rows of logits on a GPU, and the gradient by the logits.

For logits y of a row with the largest m, rest = Σ exp(y - m) - 1 without the 1 of the largest, and D = Σ p (m - y)

    log p_t  = (y_t - m) - log1p(rest)         H = log1p(rest) + D
    gradient = g (1[c = t] - p_c) - h p_c (y_c - m + D)
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchlosses.kernels.called import called
from torchlosses.kernels.triton import launch as launches
from torchlosses.kernels.triton.cross_entropy import alike, row_steps, size_along
from torchlosses.kernels.triton.launch import launch
from torchlosses.kernels.triton.log_probs_rows import log_probs_kernel
from torchlosses.kernels.triton.plan import empty, planned

_ORDER = (0, 2)


def forward(input: Tensor, target: Tensor, normalizer: Tensor | None, options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Both numbers of each row where the classes were, no gradient, and the rows' state."""
    return _forward(called("log_probs"), input, target, options)


@planned
def _forward(name: str, input: Tensor, target: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
    compute, _ = launches.compute_type(input)
    behind = input.shape[2:]
    values = empty((input.shape[0], 2, *behind), options.dtype, input.device)
    state = empty((4, input.shape[0], *behind), compute, input.device)
    _run(name, None, None, input, target, state, values, options)
    return values, empty((0,), input.dtype, input.device), state


def backward(
    grad_output: Tensor,
    gradient: Tensor,
    input: Tensor,
    target: Tensor,
    normalizer: Tensor | None,
    state: Tensor,
    options: Any,
) -> None:
    """Write the gradient by the input, which may take the input's memory."""
    _run_by_plan(called("log_probs"), grad_output, gradient, input, target, state, None, options)


def _run(
    name: str,
    grad_output: Tensor | None,
    gradient: Tensor | None,
    input: Tensor,
    target: Tensor,
    state: Tensor,
    values: Tensor | None,
    options: Any,
) -> None:
    device, classes, forward = input.device, input.shape[1], values is not None
    outer, inner = (size_along(input, dimension) for dimension in _ORDER)
    adjacent = classes == 1 or (input.stride(1) == 1 and (gradient is None or gradient.stride(1) == 1))
    vector = launches.VECTOR // input.element_size()
    input_steps, gradient_steps = row_steps(input, _ORDER, True), row_steps(gradient, _ORDER, True)
    offset = input.data_ptr() // input.element_size() % vector
    aligned = not adjacent or not any(number % vector for number in (offset, classes, *input_steps))
    choice = launches.rows(device, outer * inner, classes, input.element_size(), aligned, not forward, forward)
    launch(
        log_probs_kernel, device, choice.programs, choice.warps,
        input, target, grad_output, state, values, gradient,
        outer, inner, classes, *input_steps, input.stride(1), offset, *row_steps(target, _ORDER, False),
        *row_steps(grad_output, _ORDER, True), 0 if grad_output is None else grad_output.stride(1),
        *gradient_steps, 0 if gradient is None else gradient.stride(1),
        options.ignore_index, options.logit_scale, options.logit_softcap or 1.0,
        NAME=name, COMPUTE=launches.compute_type(input)[1], SCALED=options.logit_scale != 1,
        CAPPED=options.logit_softcap is not None, FORWARD=forward, ADJACENT=adjacent, ALIGNED=aligned,
        GRADIENT_ALIKE=0 if gradient is None else alike(input, gradient, vector), BLOCK=choice.block, VEC=vector,
        SINGLE=choice.single,
    )  # fmt: skip


_run_by_plan = planned(_run)

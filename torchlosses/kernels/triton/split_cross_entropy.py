"""What a process does on a GPU for the cross-entropy of rows of whose classes it has some.

Before the processes talk, `parts` reads the logits once. After it, `backward` reads them once more and writes the
gradient. Both are the kernels of the cross-entropy, told that a row has more classes elsewhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlosses.kernels.called import called
from torchlosses.kernels.triton import cross_entropy
from torchlosses.kernels.triton import launch as launches
from torchlosses.kernels.triton.cross_entropy import Split, run
from torchlosses.kernels.triton.plan import planned


class Parts(NamedTuple):
    """What is known of each row from this process's classes; only what the options need is filled in.

    With m the largest logit here, -inf where there is none, and inf where one is nan; a the shares and t the target's
    probabilities. A row that is ignored or has no weight has zeros.
    """

    maximum: Tensor  # m
    rest: Tensor  # Σ exp(y - m) - 1; 0 if m is -inf
    at_target: Tensor  # y at the class index, if it is here
    total: Tensor  # Σ a, for class indices Σ w: with smoothing, or of probabilities
    weighed: Tensor  # Σ a (y - m), with w in place of a as above
    beside: Tensor  # Σ a without the share of the largest logit: of probabilities
    product: Tensor  # Σ exp(y - m) (y - m): for statistics, like all that follow
    raw: Tensor  # Σ t
    raw_weighed: Tensor  # Σ t (y - m)
    most: Tensor  # max t
    largest: Tensor  # the place of m here
    most_likely: Tensor  # the place of max t here


def parts(input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, options: Any) -> Parts:
    """This process's part of the forward."""
    rows = (input.shape[0], *input.shape[2:])
    compute, _ = launches.compute_type(input, target, weight, sample_weight)
    numbers = input.new_empty((10, *rows), dtype=compute)
    largest = input.new_zeros((2, *rows), dtype=torch.int32)
    without = options._replace(reduction="none", z_loss=0.0)
    name = called("class_parallel_cross_entropy")
    _find(name, input, target, weight, sample_weight, numbers, largest, without)
    return Parts(*numbers.unbind(), *largest.unbind())


@planned
def _find(
    name: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    numbers: Tensor,
    largest: Tensor,
    options: Any,
) -> None:
    split = Split(options.first, options.total, largest)
    run(name, split, None, None, input, target, weight, sample_weight, None, numbers, None, options)


def backward(
    grad_output: Tensor,
    gradient: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    normalizer: Tensor | None,
    state: Tensor,
    options: Any,
) -> None:
    """Write the gradient by this process's logits, over them if it has their memory.

    `state` has for each row the maximum, the rest, the sum of all shares, that of those beside the special one, and
    whether the row leaves no trace. Where options.gradients says that the gradient is there for an incoming gradient of
    1, it is written if grad_output is not 1.
    """
    split = Split(options.first, options.total)
    cross_entropy.backward(
        grad_output, gradient, input, target, weight, sample_weight, normalizer, state, options, split
    )

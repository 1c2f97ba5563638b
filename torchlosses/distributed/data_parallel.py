"""The denominator of a mean over the rows of all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from torchlosses import _validation
from torchlosses._options import class_indices_denominator, rows_denominator
from torchlosses.distributed import _groups


def global_normalizer(
    target: Tensor,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    sample_weight: Tensor | None = None,
    dim: int = 1,
) -> Tensor:
    r"""What each process divides by so that the average over the processes is the mean over all their rows; no unit.

    .. math:: D = \frac{1}{P} \sum_{\text{processes}} \sum_n s_n w_{y_n}

    over the rows that are not ignored, for P processes. With each process's loss being its own sum over D, their
    average is the sum over all rows, divided by what a single process would divide it by; and so are the gradients,
    which DistributedDataParallel averages. Without `normalizer=`, each process's mean has its own denominator, and the
    average of the means is not the mean: it favours rows in processes that have few.

    Every process of the group has to call this, also one whose rows are all ignored, or that has none. For gradient
    accumulation, give the targets of all micro-batches of the step at once.

    Args:
        target: This process's class indices of any shape and integer dtype; or class probabilities, whose class
            dimension is `dim`, or the only one.
        ignore_index: Rows with this class index do not count.
        weight: One factor a class, of shape (C), as it is given to the loss. Not used with class probabilities.
        group: The processes that take part. None is all of them, or this process alone where torch.distributed is not
            in use.
        sample_weight: One weight a row, of a shape that broadcasts to the rows'.
        dim: The class dimension of class probabilities.

    Returns:
        A tensor without dimensions, float64 (float32 where the device has no float64), the same in each process, which
        takes no gradient. It is 0 if no row counts in any process.

    Raises:
        TypeError: `target` is not a tensor.
        ValueError: `sample_weight` does not broadcast to the rows.

    Example:
        >>> import torch
        >>> from torchlosses.distributed import global_normalizer
        >>> global_normalizer(torch.tensor([3, 1, -100]))
        tensor(2., dtype=torch.float64)

    Source: the mean of `torchlosses.cross_entropy`, over all processes.
    """
    _validation.check_tensors("global_normalizer", target=target)
    dtype = torch.float32 if target.device.type == "mps" else torch.float64
    rows = target
    if target.is_floating_point():
        # One entry a row; what it holds does not matter.
        rows = target.sum(dim if target.dim() > 1 else 0)
    if sample_weight is not None:
        _validation.check_sample_weight("global_normalizer", sample_weight, rows.shape)
        sample_weight = sample_weight.expand(rows.shape)
    with torch.no_grad():
        if target.is_floating_point():
            own = rows_denominator(rows, sample_weight, dtype)
        else:
            own = class_indices_denominator(target.to(torch.int64), ignore_index, weight, sample_weight, dtype)
        return _groups.sum_of(own, group) / _groups.size(group)

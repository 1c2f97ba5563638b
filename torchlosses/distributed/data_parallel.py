"""The denominator of a mean over the rows of all processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from torchlosses import _validation
from torchlosses._rows import class_indices_denominator
from torchlosses.distributed import _dtensors, _groups


def global_normalizer(
    target: Tensor,
    ignore_index: int = -100,
    weight: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    sample_weight: Tensor | None = None,
    dim: int | None = None,
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
        target: This process's class indices of any shape and integer dtype; or class probabilities.
        ignore_index: Rows with this class index do not count.
        weight: One factor a class, of shape (C), as it is given to the loss. Not used with class probabilities.
        group: The processes that take part. None is all of them, or this process alone where torch.distributed is not
            in use.
        sample_weight: One weight a row, of a shape that broadcasts to the rows'.
        dim: The class dimension of class probabilities. With more than two dimensions it has to be given, as
            `cross_entropy` has the classes in dimension 1, and `linear_cross_entropy` in the last.

    Returns:
        A tensor without dimensions, float64 (float32 where the device has no float64), the same in each process, which
        takes no gradient. It is 0 if no row counts in any process.

    Raises:
        TypeError: `target` is not a tensor.
        ValueError: `sample_weight` does not broadcast to the rows; `dim` is left out where there are several; `target`
            is a DTensor, whose rows are those of all processes already; this process is none of the group.
        IndexError: `dim` is no dimension of `target`.
        RuntimeError: An argument is wrong in another process.

    Example:
        >>> import torch
        >>> from torchlosses.distributed import global_normalizer
        >>> global_normalizer(torch.tensor([3, 1, -100]))
        tensor(2., dtype=torch.float64)

    Source: the mean of `torchlosses.cross_entropy`, over all processes.
    """
    name = "global_normalizer"
    _groups.check_member(name, group)
    error: Exception | None = None
    device = target.device if isinstance(target, Tensor) else torch.device("cpu")
    own = torch.zeros((), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    try:
        own = _own(name, target, ignore_index, weight, sample_weight, dim, own.dtype).to(own)
    except Exception as caught:
        error = caught
    # The others would wait for a process that says nothing.
    told = torch.stack([own, torch.full_like(own, error is not None)])
    total, wrong = _groups.reduced(told, "sum", group).unbind()
    if error is not None:
        raise error
    if _groups.size(group) > 1 and wrong != 0:
        raise RuntimeError(f"{name}: an argument is wrong in another process of the group; the error there says which.")
    return total / _groups.size(group)


@torch.no_grad()
def _own(
    name: str,
    target: Tensor,
    ignore_index: int,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    dim: int | None,
    wide: torch.dtype,
) -> Tensor:
    """This process's part of the sum."""
    _validation.check_tensors(name, target=target)
    if _dtensors.any_of(target, weight, sample_weight):
        raise ValueError(
            f"{name}: expected each process's own target, weight and sample_weight, but got a DTensor, which stands "
            "for those of all: a loss of DTensors divides by the whole's denominator by itself, so leave normalizer "
            "out. For a loss of each process's own rows, give target.to_local()."
        )
    shape, probabilities = target.shape, target.is_floating_point()
    if probabilities:
        if dim is None:
            if target.dim() > 2:
                raise ValueError(
                    f"{name}: dim must say which dimension of target, of shape {tuple(shape)}, has the classes: 1 as "
                    "in cross_entropy, or -1 as in linear_cross_entropy."
                )
            dim = -1
        classes = _validation.check_dimension(name, target, dim)
        shape = torch.Size([*shape[:classes], *shape[classes + 1 :]])
    if sample_weight is not None:
        _validation.check_sample_weight(name, sample_weight, shape)
        sample_weight = sample_weight.expand(shape)
    if probabilities:
        if sample_weight is not None:
            return sample_weight.to(wide).sum()
        return torch.tensor(shape.numel() if target.numel() else 0)
    if sample_weight is not None:
        sample_weight = sample_weight.to(wide)
    own = class_indices_denominator(target.to(torch.int64), weight, sample_weight, ignore_index, wide)
    return (target != ignore_index).sum() if own is None else own

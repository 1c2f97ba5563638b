"""The class-parallel losses as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torchlosses import _validation
from torchlosses._module import LossModule, Result_co
from torchlosses._options import RowStatistics
from torchlosses.distributed.class_parallel import (
    ModuleOptions,
    class_parallel_cross_entropy,
    class_parallel_linear_cross_entropy,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ClassParallelCrossEntropyLoss(LossModule[Result_co], nn.Module):
    r"""Cross-entropy of logits whose classes are split over processes, as a module, in nats.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp x_{nc}}{\sum_j \exp x_{nj}}

    over the classes of all processes: :func:`class_parallel_cross_entropy` with its options kept.

    Args:
        weight: One factor a class, of shape (C), for all classes, in each process; kept as a buffer.
        group: The processes that have the classes. None is all of them; for DTensors, those of their mesh. A module
            with a group of its own cannot be pickled or copied, as a group cannot.

    Shape:
        input (C_p), (N, C_p) or (N, C_p, d1, ...), this process's classes; target class indices (), (N) or
        (N, d1, ...), or this process's class probabilities; a scalar comes out, or with 'none' one loss a row. Dtypes
        as in `torchlosses.cross_entropy`.

    Example:
        >>> import torch
        >>> from torchlosses.distributed import ClassParallelCrossEntropyLoss
        >>> criterion = ClassParallelCrossEntropyLoss(ignore_index=255)
        >>> criterion(torch.zeros(2, 4), torch.tensor([3, 255]))  # one process that has all classes
        tensor(1.3863)
    """

    function = staticmethod(class_parallel_cross_entropy)
    shown = ("ignore_index", "reduction", "label_smoothing")

    weight: Tensor | None

    @overload
    def __init__(
        self: ClassParallelCrossEntropyLoss[Tensor],
        weight: Tensor | None = None,
        *,
        return_stats: Literal[False] = False,
        **options: Unpack[ModuleOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: ClassParallelCrossEntropyLoss[tuple[Tensor, RowStatistics]],
        weight: Tensor | None = None,
        *,
        return_stats: Literal[True],
        **options: Unpack[ModuleOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: ClassParallelCrossEntropyLoss[Tensor | tuple[Tensor, RowStatistics]],
        weight: Tensor | None = None,
        *,
        return_stats: bool,
        **options: Unpack[ModuleOptions],
    ) -> None: ...

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        group: dist.ProcessGroup | None = None,
        ignore_index: int = -100,
        reduction: _validation.Reduction = "mean",
        label_smoothing: float = 0.0,
        empty: _validation.Empty = "nan",
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        loss_dtype: torch.dtype | None = None,
        return_stats: bool = False,
        gradient: _validation.Gradient = "forward",
    ) -> None:
        options = {name: value for name, value in locals().items() if name in type(self).kept}
        super().__init__()
        self.register_buffer("weight", weight)
        self.keep(**options)


class _LinearOptions(ModuleOptions, total=False):
    block_rows: int | None


class ClassParallelLinearCrossEntropyLoss(LossModule[Result_co], nn.Module):
    r"""A linear layer whose classes are split over processes and the cross-entropy of its logits, in nats.

    .. math:: \text{loss}_n = -\sum_c w_c \left((1-\varepsilon)\, t_{nc} + \frac{\varepsilon}{C}\right)
        \log \frac{\exp y_{nc}}{\sum_j \exp y_{nj}}, \qquad y_n = W x_n + b

    over the classes of all processes: :func:`class_parallel_linear_cross_entropy` with its options kept.

    Args:
        linear: A layer with this process's classes, the classes in the order of the processes; or one whose weight is a
            DTensor with `Shard(0)`, as `parallelize_module` with `ColwiseParallel` makes it. It is shared, not copied.
        weight: One factor a class, of shape (C), for all classes, in each process; kept as a buffer.
        group: The processes that have the classes. None is all of them; for DTensors, those of their mesh. A module
            with a group of its own cannot be pickled or copied, as a group cannot.

    Shape:
        input (..., features); target class indices (...), or this process's class probabilities (..., C_p); a scalar
        comes out, or with 'none' one loss a row. Dtypes as in `torchlosses.linear_cross_entropy`.

    Example:
        >>> import torch
        >>> from torchlosses.distributed import ClassParallelLinearCrossEntropyLoss
        >>> criterion = ClassParallelLinearCrossEntropyLoss(torch.nn.Linear(16, 1000, bias=False))
        >>> loss = criterion(torch.zeros(2, 5, 16), torch.zeros(2, 5, dtype=torch.int64))
        >>> round(loss.item(), 4)
        6.9078
    """

    function = staticmethod(class_parallel_linear_cross_entropy)
    shown = ("ignore_index", "reduction", "label_smoothing")

    weight: Tensor | None

    @overload
    def __init__(
        self: ClassParallelLinearCrossEntropyLoss[Tensor],
        linear: nn.Linear,
        weight: Tensor | None = None,
        *,
        return_stats: Literal[False] = False,
        **options: Unpack[_LinearOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: ClassParallelLinearCrossEntropyLoss[tuple[Tensor, RowStatistics]],
        linear: nn.Linear,
        weight: Tensor | None = None,
        *,
        return_stats: Literal[True],
        **options: Unpack[_LinearOptions],
    ) -> None: ...

    @overload
    def __init__(
        self: ClassParallelLinearCrossEntropyLoss[Tensor | tuple[Tensor, RowStatistics]],
        linear: nn.Linear,
        weight: Tensor | None = None,
        *,
        return_stats: bool,
        **options: Unpack[_LinearOptions],
    ) -> None: ...

    def __init__(
        self,
        linear: nn.Linear,
        weight: Tensor | None = None,
        *,
        group: dist.ProcessGroup | None = None,
        ignore_index: int = -100,
        reduction: _validation.Reduction = "mean",
        label_smoothing: float = 0.0,
        empty: _validation.Empty = "nan",
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        logit_softcap: float | None = None,
        loss_dtype: torch.dtype | None = None,
        return_stats: bool = False,
        block_rows: int | None = None,
        gradient: _validation.Gradient = "forward",
    ) -> None:
        options = {name: value for name, value in locals().items() if name in type(self).kept}
        super().__init__()
        self.register_buffer("weight", weight)
        self.keep(**options | {"block_rows": _validation.check_block_rows(block_rows)})
        self.linear = linear

    def tensors(self) -> dict[str, Tensor | None]:
        """With those of the layer."""
        return {**super().tensors(), "linear_weight": self.linear.weight, "linear_bias": self.linear.bias}

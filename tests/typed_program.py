# pyright: strict
"""A user's program: what a type checker makes of the losses. It is checked, not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torchlosses import (
    BCEWithLogitsLoss,
    CEELoss,
    CrossEntropyLoss,
    HuberLoss,
    LinearCrossEntropyLoss,
    MSELoss,
    RowStatistics,
    SmoothL1Loss,
    binary_cross_entropy_with_logits,
    cee_loss,
    cross_entropy,
    huber_loss,
    linear_cross_entropy,
    mse_loss,
    smooth_l1_loss,
)
from torchlosses.distributed import (
    ClassParallelCrossEntropyLoss,
    ClassParallelLinearCrossEntropyLoss,
    class_parallel_cross_entropy,
    class_parallel_linear_cross_entropy,
    global_normalizer,
)

if TYPE_CHECKING:
    from typing_extensions import assert_type


def functions(x: Tensor, t: Tensor, w: Tensor) -> None:
    assert_type(mse_loss(x, t, reduction="sum", sample_weight=w), Tensor)
    assert_type(huber_loss(x, t, delta=0.5), Tensor)
    assert_type(smooth_l1_loss(x, t, beta=0.5), Tensor)
    assert_type(binary_cross_entropy_with_logits(x, t, pos_weight=w), Tensor)
    assert_type(cee_loss(x, t, delta=0.0), Tensor)
    assert_type(cross_entropy(x, t, label_smoothing=0.1, normalizer=global_normalizer(t)), Tensor)
    assert_type(linear_cross_entropy(x, w, t, low_rank=(x, w, 0.5)), Tensor)
    assert_type(class_parallel_cross_entropy(x, t), Tensor)
    assert_type(class_parallel_linear_cross_entropy(x, w, t), Tensor)


def statistics(x: Tensor, t: Tensor, w: Tensor, asked: bool) -> None:
    loss, rows = cross_entropy(x, t, return_stats=True)
    assert_type(loss, Tensor)
    assert_type(rows, RowStatistics)
    assert_type(rows.correct, Tensor)
    assert_type(linear_cross_entropy(x, w, t, return_stats=True), tuple[Tensor, RowStatistics])
    assert_type(class_parallel_cross_entropy(x, t, return_stats=True), tuple[Tensor, RowStatistics])
    assert_type(class_parallel_linear_cross_entropy(x, w, t, return_stats=True), tuple[Tensor, RowStatistics])
    assert_type(cross_entropy(x, t, return_stats=asked), Tensor | tuple[Tensor, RowStatistics])
    assert_type(
        cross_entropy(x, t, w, None, -1, None, "sum", 0.1, dim=-1, sample_weight=w, z_loss=0.1, return_stats=True),
        tuple[Tensor, RowStatistics],
    )
    assert_type(
        linear_cross_entropy(x, w, t, low_rank=(x, w, 0.5), normalizer=3.0, loss_dtype=x.dtype, return_stats=asked),
        Tensor | tuple[Tensor, RowStatistics],
    )
    assert_type(linear_cross_entropy(x, w, t, return_stats=asked), Tensor | tuple[Tensor, RowStatistics])
    assert_type(class_parallel_cross_entropy(x, t, return_stats=asked), Tensor | tuple[Tensor, RowStatistics])
    either = class_parallel_linear_cross_entropy(x, w, t, return_stats=asked)
    assert_type(either, Tensor | tuple[Tensor, RowStatistics])


def modules(x: Tensor, t: Tensor, w: Tensor) -> None:
    assert_type(MSELoss(reduction="none")(x, t, sample_weight=w), Tensor)
    assert_type(HuberLoss(delta=0.5)(x, t, normalizer=3.0), Tensor)
    assert_type(SmoothL1Loss(beta=0.5)(x, t), Tensor)
    assert_type(BCEWithLogitsLoss(pos_weight=w)(x, t), Tensor)
    assert_type(CEELoss(delta=0.0)(x, t), Tensor)
    assert_type(CrossEntropyLoss(w, ignore_index=0, z_loss=1e-4, dim=-1)(x, t), Tensor)
    assert_type(LinearCrossEntropyLoss(4, 3, block_rows=8)(x, t), Tensor)
    assert_type(LinearCrossEntropyLoss.of(nn.Linear(4, 3), logit_scale=2.0)(x, t), Tensor)
    assert_type(ClassParallelCrossEntropyLoss(loss_dtype=torch.float32)(x, t), Tensor)
    assert_type(ClassParallelLinearCrossEntropyLoss(nn.Linear(4, 3))(x, t), Tensor)


def modules_with_statistics(x: Tensor, t: Tensor, asked: bool) -> None:
    linear = nn.Linear(4, 3)
    assert_type(CrossEntropyLoss(return_stats=True)(x, t), tuple[Tensor, RowStatistics])
    assert_type(LinearCrossEntropyLoss(4, 3, return_stats=True)(x, t), tuple[Tensor, RowStatistics])
    assert_type(LinearCrossEntropyLoss.of(linear, return_stats=True)(x, t), tuple[Tensor, RowStatistics])
    assert_type(ClassParallelCrossEntropyLoss(return_stats=True)(x, t), tuple[Tensor, RowStatistics])
    assert_type(ClassParallelLinearCrossEntropyLoss(linear, return_stats=True)(x, t), tuple[Tensor, RowStatistics])
    assert_type(CrossEntropyLoss(return_stats=asked)(x, t), Tensor | tuple[Tensor, RowStatistics])
    assert_type(LinearCrossEntropyLoss(4, 3, return_stats=asked)(x, t), Tensor | tuple[Tensor, RowStatistics])
    assert_type(LinearCrossEntropyLoss.of(linear, return_stats=asked)(x, t), Tensor | tuple[Tensor, RowStatistics])
    assert_type(ClassParallelCrossEntropyLoss(return_stats=asked)(x, t), Tensor | tuple[Tensor, RowStatistics])
    either = ClassParallelLinearCrossEntropyLoss(linear, return_stats=asked)(x, t)
    assert_type(either, Tensor | tuple[Tensor, RowStatistics])


class Model(nn.Module):
    """A criterion as an attribute; its class without a parameter is one that gives a tensor."""

    def __init__(self, criterion: CrossEntropyLoss) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.criterion = criterion

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        logits: Tensor = self.layer(x)
        return self.criterion(logits, t)


def training(model: Model, x: Tensor, t: Tensor) -> float:
    criteria: list[nn.Module] = [CrossEntropyLoss(), MSELoss(), LinearCrossEntropyLoss(4, 3)]
    as_torch: nn.CrossEntropyLoss = CrossEntropyLoss()
    loss = Model(CrossEntropyLoss()).forward(x, t) + mse_loss(x, t)
    return loss.item() + len(criteria) + as_torch.label_smoothing

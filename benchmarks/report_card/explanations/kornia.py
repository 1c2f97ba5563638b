"""Findings on kornia."""

from __future__ import annotations

from benchmarks.report_card.findings import Finding

FINDINGS = (
    Finding(
        "kornia.losses.FocalLoss",
        (
            "values.masked_classes",
            "laws.reductions_agree",
            "laws.ignored_row_is_a_removed_row",
            "laws.ignored_row_may_hold_anything",
            "laws.weight_zero_is_a_removed_row",
            "laws.micro_batches_add_up",
        ),
        "choice",
        "The mean divides by every entry of a (N, C) map",
        """
        Documented at length: 'none' gives a map with one entry for each class, 'mean' divides by all of its
        entries, ignored rows and weights included. So the mean is C times smaller than torch.nn's, and
        ignored rows make it smaller still.
        """,
        """
        >>> import torch
        >>> from kornia.losses import FocalLoss
        >>> logits, target = torch.zeros(2, 4), torch.tensor([0, -100])
        >>> FocalLoss(alpha=None, gamma=0.0, reduction="mean")(logits, target) * 2 * 4
        tensor(1.3863)
        >>> torch.nn.functional.cross_entropy(logits, target)
        tensor(1.3863)
        """,
    ),
    Finding(
        "kornia.losses.FocalLoss",
        ("values.confident_tail",),
        "limit",
        "Small losses are rounded to 0",
        """
        Both factors, -log p and (1 - p)², come from a log-probability that log_softmax has rounded.
        """,
        """
        >>> import torch
        >>> from kornia.losses import FocalLoss
        >>> logits, target = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
        >>> criterion = FocalLoss(alpha=None, reduction="sum")
        >>> criterion(logits, target) == 0, criterion(logits.double(), target)
        (tensor(True), tensor(8.7565e-27, dtype=torch.float64))
        """,
    ),
    Finding(
        "kornia.losses.FocalLoss",
        ("integration.state_dict",),
        "choice",
        "The class weights are not in the state_dict",
        """
        `weight` is a buffer with `persistent=False`: it moves with the model and is set again by whoever
        builds the loss.
        """,
        """
        >>> import torch
        >>> from kornia.losses import FocalLoss
        >>> criterion = FocalLoss(alpha=None, weight=torch.tensor([1.0, 2.0]))
        >>> [name for name, _ in criterion.named_buffers()], list(criterion.state_dict())
        (['weight'], [])
        """,
    ),
)

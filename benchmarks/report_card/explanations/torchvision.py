"""Findings on torchvision."""

from __future__ import annotations

from benchmarks.report_card.findings import Finding

FINDINGS = (
    Finding(
        "torchvision.ops.sigmoid_focal_loss",
        ("values.confident_tail",),
        "limit",
        "Small losses are rounded to 0",
        """
        The factor (1 - p)² is computed from p, which is 1 in float32 from a logit of about 17 on. Focal
        losses down-weight such examples in any case.
        """,
        """
        >>> import torch
        >>> from torchvision.ops import sigmoid_focal_loss
        >>> logit, label = torch.tensor([20.0]), torch.tensor([1.0])
        >>> sigmoid_focal_loss(logit, label), sigmoid_focal_loss(logit.double(), label.double())
        (tensor([0.]), tensor([2.1891e-27], dtype=torch.float64))
        """,
    ),
    Finding(
        "torchvision.ops.sigmoid_focal_loss",
        (),
        "limit",
        "A gradient of nan for exponents below 1",
        """
        For the same reason the base of the power is exactly 0 at a confident example, and the derivative of a
        root is infinite there. The paper tries exponents from 0.5 to 5; the default of 2 is not concerned.
        """,
        """
        >>> import torch
        >>> from torchvision.ops import sigmoid_focal_loss
        >>> logit = torch.tensor([20.0], requires_grad=True)
        >>> sigmoid_focal_loss(logit, torch.tensor([1.0]), gamma=0.5).backward()
        >>> logit.grad
        tensor([nan])
        """,
    ),
)

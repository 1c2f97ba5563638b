"""Findings on timm."""

from __future__ import annotations

from benchmarks.report_card.findings import Finding

FINDINGS = (
    Finding(
        "timm.loss.LabelSmoothingCrossEntropy",
        ("errors.label_smoothing",),
        "limit",
        "The smoothing's range is an assertion without a message",
        """
        A smoothing of 1 or more raises an AssertionError without a word, and a negative one is accepted.
        """,
        """
        >>> from timm.loss import LabelSmoothingCrossEntropy
        >>> LabelSmoothingCrossEntropy(smoothing=1.5)
        Traceback (most recent call last):
        AssertionError
        >>> LabelSmoothingCrossEntropy(smoothing=-3.0)
        LabelSmoothingCrossEntropy()
        """,
    ),
    Finding(
        "timm.loss.LabelSmoothingCrossEntropy",
        ("values.float16_range",),
        "limit",
        "Logits whose difference leaves float16",
        """
        Log-probabilities are kept in the dtype of the logits. Autocast computes log_softmax in float32.
        """,
        """
        >>> import torch
        >>> from timm.loss import LabelSmoothingCrossEntropy
        >>> logits = torch.tensor([[40000.0, -40000.0]])
        >>> criterion, target = LabelSmoothingCrossEntropy(), torch.tensor([0])
        >>> criterion(logits, target), criterion(logits.half(), target)
        (tensor(4000.), tensor(inf, dtype=torch.float16))
        """,
    ),
    Finding(
        "timm.loss.LabelSmoothingCrossEntropy",
        ("values.masked_classes",),
        "limit",
        "No smoothing is smoothing times 0",
        """
        The mean of all log-probabilities is taken also for a smoothing of 0, and multiplied by 0: with a logit of
        -inf, which masks a class, the loss is nan. (With a smoothing above 0 the loss is infinite by definition.)
        """,
        """
        >>> import torch
        >>> from timm.loss import LabelSmoothingCrossEntropy
        >>> logits = torch.tensor([[1.0, 0.0, -float("inf")]])
        >>> LabelSmoothingCrossEntropy(smoothing=0.0)(logits, torch.tensor([0]))
        tensor(nan)
        """,
    ),
    Finding(
        "timm.loss.LabelSmoothingCrossEntropy",
        ("values.confident_tail",),
        "limit",
        "Small losses are rounded to 0",
        """
        Without smoothing, as in torch.nn.CrossEntropyLoss. Smoothing keeps the loss away from 0.
        """,
        """
        >>> import torch
        >>> from timm.loss import LabelSmoothingCrossEntropy
        >>> logits, target = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
        >>> criterion = LabelSmoothingCrossEntropy(smoothing=0.0)
        >>> criterion(logits, target) == 0, criterion(logits.double(), target)
        (tensor(True), tensor(2.0612e-09, dtype=torch.float64))
        """,
    ),
    Finding(
        "timm.loss.SoftTargetCrossEntropy",
        ("values.masked_classes",),
        "limit",
        "A masked class with probability 0",
        """
        A logit of -inf where the target is 0 contributes 0 · inf = nan, as in torch.nn.CrossEntropyLoss.
        """,
        """
        >>> import torch
        >>> from timm.loss import SoftTargetCrossEntropy
        >>> SoftTargetCrossEntropy()(torch.tensor([[1.0, 0.0, -float("inf")]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor(nan)
        """,
    ),
    Finding(
        "timm.loss.SoftTargetCrossEntropy",
        ("values.float16_range",),
        "limit",
        "Logits whose difference leaves float16",
        """
        As for LabelSmoothingCrossEntropy.
        """,
        """
        >>> import torch
        >>> from timm.loss import SoftTargetCrossEntropy
        >>> logits, target = torch.tensor([[40000.0, -40000.0]]), torch.tensor([[0.75, 0.25]])
        >>> SoftTargetCrossEntropy()(logits, target), SoftTargetCrossEntropy()(logits.half(), target.half())
        (tensor(20000.), tensor(inf, dtype=torch.float16))
        """,
    ),
    Finding(
        "timm.loss.SoftTargetCrossEntropy",
        ("inputs.images",),
        "choice",
        "Classes are in the last dimension",
        """
        torch.nn.CrossEntropyLoss has them in dimension 1. For logits of shape (N, C) that is the same; for
        images of shape (N, C, H, W) the softmax runs over W, without an error. timm uses the loss for whole
        images.
        """,
        """
        >>> import torch
        >>> from timm.loss import SoftTargetCrossEntropy
        >>> logits, target = torch.zeros(1, 2, 1, 1), torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
        >>> SoftTargetCrossEntropy()(logits, target), torch.nn.functional.cross_entropy(logits, target)
        (tensor(0.), tensor(0.6931))
        """,
    ),
)

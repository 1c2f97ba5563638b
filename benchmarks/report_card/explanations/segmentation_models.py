"""Findings on segmentation_models_pytorch."""

from __future__ import annotations

from benchmarks.report_card.findings import Finding

NAME = "segmentation_models_pytorch.losses.SoftCrossEntropyLoss"

FINDINGS = (
    Finding(
        NAME,
        (),
        "error",
        "The default does not run",
        """
        The documentation: "Drop-in replacement for torch.nn.CrossEntropyLoss with label_smoothing". The
        default of `smooth_factor` is None, which is divided by the number of classes.
        """,
        """
        >>> import torch
        >>> from segmentation_models_pytorch.losses import SoftCrossEntropyLoss
        >>> SoftCrossEntropyLoss()(torch.zeros(2, 3), torch.tensor([0, 1]))
        Traceback (most recent call last):
        TypeError: unsupported operand type(s) for /: 'NoneType' and 'int'
        """,
    ),
    Finding(
        NAME,
        (
            "values.reference",
            "values.float32",
            "values.bfloat16",
            "values.float16",
            "values.extreme_inputs",
            "values.one_class",
            "values.many_classes",
        ),
        "error",
        "'none' gives a dimension more",
        """
        With an `ignore_index`, and the default is one, 'none' gives (N, 1), where the class that it replaces
        gives (N): a product with weights of shape (N) becomes (N, N). Without one it gives (N).
        """,
        """
        >>> import torch
        >>> from segmentation_models_pytorch.losses import SoftCrossEntropyLoss
        >>> logits, target = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
        >>> losses = SoftCrossEntropyLoss(smooth_factor=0.0, reduction="none")(logits, target)
        >>> losses.shape, (losses * torch.ones(4)).shape
        (torch.Size([4, 1]), torch.Size([4, 4]))
        """,
    ),
    Finding(
        NAME,
        (
            "values.reference_gradients",
            "laws.reductions_agree",
            "laws.ignored_row_is_a_removed_row",
            "laws.ignored_row_may_hold_anything",
            "laws.micro_batches_add_up",
        ),
        "error",
        "The mean counts ignored rows",
        """
        The class that it replaces divides by the rows that are not ignored. Here padding makes loss and
        gradient smaller.
        """,
        """
        >>> import torch
        >>> from segmentation_models_pytorch.losses import SoftCrossEntropyLoss
        >>> logits, target = torch.zeros(4, 3), torch.tensor([0, -100, -100, -100])
        >>> SoftCrossEntropyLoss(smooth_factor=0.0)(logits, target), torch.nn.CrossEntropyLoss()(logits, target)
        (tensor(0.2747), tensor(1.0986))
        """,
    ),
    Finding(
        NAME,
        (),
        "error",
        "The smoothing is not the one documented",
        """
        The documentation: "if smooth_factor=0.1 then [1, 0, 0] -> [0.9, 0.05, 0.05]". What is computed is
        torch.nn's smoothing, [0.9333, 0.0333, 0.0333]: the formula is fine, the sentence is not.
        """,
        """
        >>> import torch
        >>> from segmentation_models_pytorch.losses import SoftCrossEntropyLoss
        >>> logits = torch.tensor([[1.0, 0.0, 0.0]])
        >>> documented = torch.nn.functional.cross_entropy(logits, torch.tensor([[0.9, 0.05, 0.05]]))
        >>> SoftCrossEntropyLoss(smooth_factor=0.1)(logits, torch.tensor([0])), documented
        (tensor(0.6181), tensor(0.6514))
        """,
    ),
    Finding(
        NAME,
        ("errors.reduction",),
        "error",
        "A misspelt reduction reduces nothing",
        """
        The class that it replaces raises. Here one loss a row comes back.
        """,
        """
        >>> import torch
        >>> from segmentation_models_pytorch.losses import SoftCrossEntropyLoss
        >>> SoftCrossEntropyLoss(smooth_factor=0.0, reduction="average")(torch.zeros(2, 3), torch.tensor([0, 1])).shape
        torch.Size([2, 1])
        """,
    ),
    Finding(
        NAME,
        ("values.masked_classes", "values.float16_range"),
        "limit",
        "No smoothing is smoothing times 0",
        """
        The sum of all log-probabilities is taken also for a `smooth_factor` of 0, and multiplied by 0. Where
        it is infinite, by a mask of -inf or because the sum leaves float16, the loss is nan.
        """,
        """
        >>> import torch
        >>> from segmentation_models_pytorch.losses import SoftCrossEntropyLoss
        >>> criterion, target = SoftCrossEntropyLoss(smooth_factor=0.0), torch.tensor([0])
        >>> criterion(torch.tensor([[1.0, 0.0, -float("inf")]]), target)
        tensor(nan)
        >>> criterion(torch.zeros(1, 10000).half(), target)
        tensor(nan, dtype=torch.float16)
        """,
    ),
    Finding(
        NAME,
        ("values.confident_tail",),
        "limit",
        "Small losses are rounded to 0",
        """
        As in torch.nn.CrossEntropyLoss.
        """,
        """
        >>> import torch
        >>> from segmentation_models_pytorch.losses import SoftCrossEntropyLoss
        >>> criterion = SoftCrossEntropyLoss(smooth_factor=0.0)
        >>> logits, target = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
        >>> abs(criterion(logits, target)), criterion(logits.double(), target)
        (tensor(0.), tensor(2.0612e-09, dtype=torch.float64))
        """,
    ),
)

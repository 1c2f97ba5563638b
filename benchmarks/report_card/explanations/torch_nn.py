"""Findings on the losses of torch.nn."""

from __future__ import annotations

from benchmarks.report_card.findings import Finding

FINDINGS = (
    Finding(
        "torch.nn.MSELoss",
        ("values.float16_range",),
        "limit",
        "A square that leaves float16",
        """
        On a CPU the squares are kept in float16, which ends at 65504. Nothing else is promised, and a model
        in float16 is rarely trained without autocast, which computes this loss in float32.
        """,
        """
        >>> import torch
        >>> input, target = torch.tensor([300.0, 0.0]).half(), torch.zeros(2).half()
        >>> torch.nn.MSELoss()(input, target)  # 300² / 2 = 45000
        tensor(inf, dtype=torch.float16)
        """,
    ),
    Finding(
        "torch.nn.CrossEntropyLoss",
        ("values.float16_range",),
        "limit",
        "Sums that leave float16",
        """
        With label smoothing the log-probabilities of all classes and rows are added up in float16 on a CPU,
        before the division. Autocast computes this loss in float32.
        """,
        """
        >>> import torch
        >>> logits, target = torch.zeros(10, 1000), torch.zeros(10, dtype=torch.long)
        >>> criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        >>> criterion(logits, target), criterion(logits.half(), target)
        (tensor(6.9078), tensor(inf, dtype=torch.float16))
        """,
    ),
    Finding(
        "torch.nn.CrossEntropyLoss",
        ("values.confident_tail",),
        "limit",
        "Small losses are rounded to 0",
        """
        The log-sum-exp is rounded before the target's logit is subtracted. From a margin of about 17 on, the
        loss in float32 is 0, and so is the gradient of the target's logit.
        """,
        """
        >>> import torch
        >>> logits, target = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
        >>> criterion = torch.nn.CrossEntropyLoss()
        >>> criterion(logits, target), criterion(logits.double(), target)
        (tensor(0.), tensor(2.0612e-09, dtype=torch.float64))
        """,
    ),
    Finding(
        "torch.nn.CrossEntropyLoss",
        ("values.masked_classes",),
        "limit",
        "A masked class under a probability target",
        """
        A class that is masked out by a logit of -inf and has probability 0 in the target contributes 0 · inf
        = nan. With class indices the same mask works. The documentation does not speak of masks.
        """,
        """
        >>> import torch
        >>> logits = torch.tensor([[1.0, 0.0, -float("inf")]])
        >>> torch.nn.functional.cross_entropy(logits, torch.tensor([[1.0, 0.0, 0.0]]))
        tensor(nan)
        >>> torch.nn.functional.cross_entropy(logits, torch.tensor([0]))
        tensor(0.3133)
        """,
    ),
    Finding(
        "torch.nn.CrossEntropyLoss",
        ("laws.ignored_row_may_hold_anything",),
        "error",
        "An ignored row that holds nan gets a gradient of nan",
        """
        The documentation: `ignore_index` is "a target value that is ignored and does not contribute to the
        input gradient". The loss leaves the row out, but its gradient is 0 · nan, and reaches the weights.
        """,
        """
        >>> import torch
        >>> logits = torch.tensor([[float("nan"), 0.0], [1.0, 0.0]], requires_grad=True)
        >>> loss = torch.nn.functional.cross_entropy(logits, torch.tensor([-100, 0]))
        >>> loss.backward()
        >>> loss.item(), logits.grad
        (0.31326..., tensor([[    nan,     nan],
                [-0.2689,  0.2689]]))
        """,
    ),
    Finding(
        "torch.nn.CrossEntropyLoss",
        ("errors.label_smoothing",),
        "limit",
        "A negative label smoothing is taken for none",
        """
        The documentation asks for "a float in [0.0, 1.0]". Above 1 there is an error; below 0 there is none.
        """,
        """
        >>> import torch
        >>> logits, target = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> torch.nn.functional.cross_entropy(logits, target, label_smoothing=-5.0)
        tensor(0.3133)
        >>> torch.nn.functional.cross_entropy(logits, target)
        tensor(0.3133)
        """,
    ),
    Finding(
        "torch.nn.BCEWithLogitsLoss",
        ("values.confident_tail",),
        "limit",
        "Small losses of confident negatives are rounded",
        """
        For a target of 0 the loss is x - logsigmoid(x), where two numbers of the size of x cancel. For a
        target of 1 nothing does. The documentation calls the loss "more numerically stable than using a plain
        Sigmoid followed by a BCELoss", which holds.
        """,
        """
        >>> import torch
        >>> logits, target = torch.tensor([-10.0, -20.0]), torch.zeros(2)
        >>> criterion = torch.nn.BCEWithLogitsLoss(reduction="none")
        >>> criterion(logits, target), criterion(logits.double(), target.double())
        (tensor([4.5776e-05, 0.0000e+00]), tensor([4.5399e-05, 2.0612e-09], dtype=torch.float64))
        >>> criterion(-logits, 1 - target)
        tensor([4.5399e-05, 2.0612e-09])
        """,
    ),
)

"""Findings on entmax."""

from __future__ import annotations

from benchmarks.report_card.findings import Finding

FINDINGS = (
    Finding(
        "entmax.Entmax15Loss",
        ("derivatives.gradgradcheck", "derivatives.no_dropped_second_derivative"),
        "error",
        "A gradient penalty is dropped, without an error",
        """
        The backward multiplies by probabilities that the forward has saved, which autograd takes for
        constants. The gradient is right; its derivative is 0. `once_differentiable` would make it an error.
        """,
        """
        >>> import torch
        >>> from entmax import Entmax15Loss
        >>> logits = torch.tensor([[1.0, 0.5]], requires_grad=True)
        >>> loss = Entmax15Loss()(logits, torch.tensor([1]))
        >>> gradient, = torch.autograd.grad(loss, logits, create_graph=True)
        >>> penalised, = torch.autograd.grad(loss + 10 * gradient.square().sum(), logits)
        >>> gradient, penalised
        (tensor([[ 0.6740, -0.6740]]), tensor([[ 0.6740, -0.6740]]))
        """,
    ),
    Finding(
        "entmax.Entmax15Loss",
        ("values.masked_classes",),
        "limit",
        "A masked class",
        """
        The loss contains the product of probabilities and logits, which is 0 · -inf = nan for a masked class;
        the gradient is right.
        """,
        """
        >>> import torch
        >>> from entmax import Entmax15Loss
        >>> Entmax15Loss()(torch.tensor([[1.0, 0.0, -float("inf")]]), torch.tensor([0]))
        tensor(nan)
        """,
    ),
    Finding(
        "entmax.Entmax15Loss",
        ("values.bfloat16", "values.float16"),
        "limit",
        "The threshold is found in low precision",
        """
        The sums behind the threshold are taken in the dtype of the logits. Small probabilities, which are squares
        of differences to it, keep fewer digits than the dtype has: 20 roundings of float16 here.
        """,
        """
        >>> import torch
        >>> from entmax import Entmax15Loss
        >>> def gradient(dtype):
        ...     logits = torch.tensor([[1.2890625, 0.5302734375, 1.6689453125, 2.98828125]]).to(dtype)
        ...     Entmax15Loss()(logits.requires_grad_(), torch.tensor([1])).backward()
        ...     return logits.grad[0, 0].item()
        >>> round(gradient(torch.float16) / gradient(torch.float32), 2)
        1.02
        """,
    ),
    Finding(
        "entmax.Entmax15Loss",
        ("integration.compile",),
        "limit",
        "torch.compile breaks the graph",
        """
        Nothing is promised.
        """,
        """
        >>> import torch
        >>> from entmax import Entmax15Loss
        >>> step = torch.compile(Entmax15Loss(), fullgraph=True, backend="eager")
        >>> step(torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 1]))
        Traceback (most recent call last):
        torch._dynamo.exc.Unsupported: ...
        """,
    ),
    Finding(
        "entmax.Entmax15Loss",
        ("errors.rows", "errors.reduction"),
        "limit",
        "Assertions without a message",
        """
        A target of another length, and a reduction that does not exist, raise an AssertionError without a
        word. The mean is called 'elementwise_mean', as in early versions of PyTorch.
        """,
        """
        >>> import torch
        >>> from entmax import Entmax15Loss
        >>> Entmax15Loss(reduction="mean")
        Traceback (most recent call last):
        AssertionError
        >>> Entmax15Loss()(torch.zeros(3, 2), torch.tensor([0, 1]))
        Traceback (most recent call last):
        AssertionError
        """,
    ),
)

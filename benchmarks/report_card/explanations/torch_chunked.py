"""Findings on PyTorch's chunked linear cross-entropy."""

from __future__ import annotations

from benchmarks.report_card.findings import Finding

NAME = "torch.nn.functional.linear_cross_entropy"

FINDINGS = (
    Finding(
        NAME,
        ("laws.all_rows_ignored",),
        "error",
        "A batch of ignored rows gives nan gradients",
        """
        The chunked path is documented to be equivalent to the one on full logits, which gives 0 here. One
        batch of padding makes every weight nan.
        """,
        """
        >>> import torch
        >>> def gradient(options):
        ...     input = torch.zeros(1, 2, requires_grad=True)
        ...     target = torch.tensor([-100])
        ...     torch.nn.functional.linear_cross_entropy(input, torch.eye(2), target, options=options).backward()
        ...     return input.grad
        >>> gradient(None), gradient(torch.nn.LinearCrossEntropyOptions())
        (tensor([[0., 0.]]), tensor([[nan, nan]]))
        """,
    ),
    Finding(
        NAME,
        ("laws.ignored_row_may_hold_anything",),
        "error",
        "An ignored row that holds nan makes the loss nan",
        """
        The documentation: `ignore_index` is "a target value that is ignored and does not contribute to the
        input gradient". On the full logits the row is left out of the loss.
        """,
        """
        >>> import torch
        >>> input, target = torch.tensor([[float("nan"), 0.0], [0.0, 0.0]]), torch.tensor([-100, 0])
        >>> torch.nn.functional.linear_cross_entropy(input, torch.eye(2), target)
        tensor(0.6931)
        >>> options = torch.nn.LinearCrossEntropyOptions()
        >>> torch.nn.functional.linear_cross_entropy(input, torch.eye(2), target, options=options)
        tensor(nan)
        """,
    ),
    Finding(
        NAME,
        (
            "derivatives.forward_ad",
            "derivatives.no_silent_zero_tangent",
            "transforms.jvp_equals_vjp",
            "transforms.forward_over_forward",
        ),
        "error",
        "Forward-mode derivatives are 0, without an error",
        """
        The documentation lists forward mode as unsupported on the chunked path; nothing says so at the call.
        """,
        """
        >>> import torch
        >>> def directional(options):
        ...     def loss(input):
        ...         target = torch.tensor([0])
        ...         return torch.nn.functional.linear_cross_entropy(input, torch.eye(2), target, options=options)
        ...     return torch.func.jvp(loss, (torch.tensor([[1.0, 2.0]]),), (torch.tensor([[1.0, 0.0]]),))[1]
        >>> directional(None), directional(torch.nn.LinearCrossEntropyOptions())
        (tensor(-0.7311), tensor(0.))
        """,
    ),
    Finding(
        NAME,
        ("derivatives.gradgradcheck", "derivatives.no_dropped_second_derivative"),
        "limit",
        "The gradient is a constant",
        """
        The documentation lists `create_graph=True` as unsupported on the chunked path. It is accepted, and
        the gradient comes back without a graph: a penalty on it raises where it is alone or added to this
        loss, and has no effect, without an error, where it is added to another one.
        """,
        """
        >>> import torch
        >>> def gradient(options):
        ...     input, target = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([0])
        ...     loss = torch.nn.functional.linear_cross_entropy(input, torch.eye(2), target, options=options)
        ...     return torch.autograd.grad(loss, input, create_graph=True)[0]
        >>> gradient(None).requires_grad, gradient(torch.nn.LinearCrossEntropyOptions()).requires_grad
        (True, False)
        """,
    ),
    Finding(
        NAME,
        ("gradients.by_weights",),
        "error",
        "A class weight that requires grad gets none, without an error",
        """
        On the full logits this raises. On the chunked path the weight silently stays as it is.
        """,
        """
        >>> import torch
        >>> def gradient_of_weight(options):
        ...     input, weight = torch.zeros(1, 2, requires_grad=True), torch.ones(2, requires_grad=True)
        ...     loss = torch.nn.functional.linear_cross_entropy(
        ...         input, torch.eye(2), torch.tensor([0]), weight=weight, options=options)
        ...     loss.backward()
        ...     return weight.grad
        >>> print(gradient_of_weight(torch.nn.LinearCrossEntropyOptions()))
        None
        >>> gradient_of_weight(None)
        Traceback (most recent call last):
        RuntimeError: The function 'nll_loss_forward' is not differentiable with respect to argument 'weight'...
        """,
    ),
    Finding(
        NAME,
        ("integration.compile",),
        "limit",
        "torch.compile breaks the graph",
        """
        Documented: "torch.compile falls back to eager at the chunked op". With `fullgraph=True` it cannot.
        """,
        """
        >>> import torch
        >>> def loss(input):
        ...     options = torch.nn.LinearCrossEntropyOptions()
        ...     return torch.nn.functional.linear_cross_entropy(input, torch.eye(2), torch.tensor([0]), options=options)
        >>> torch.compile(loss, fullgraph=True, backend="eager")(torch.zeros(1, 2, requires_grad=True))
        Traceback (most recent call last):
        torch._dynamo.exc.Unsupported: Attempted to call function marked as skipped...
        """,
    ),
    Finding(
        NAME,
        ("errors.weight",),
        "limit",
        "A class weight that is too short is not named",
        """
        There is an error, but one that leads elsewhere; on the full logits it names the weight.
        """,
        """
        >>> import torch
        >>> options = torch.nn.LinearCrossEntropyOptions()
        >>> torch.nn.functional.linear_cross_entropy(
        ...     torch.zeros(1, 2), torch.eye(2), torch.tensor([1]), weight=torch.ones(1), options=options)
        Traceback (most recent call last):
        IndexError: index out of range in self
        """,
    ),
)

"""The findings of the report card, loss by loss."""

from __future__ import annotations

from benchmarks.report_card.findings import Finding

TORCH = (
    Finding(
        "torch.nn.MSELoss",
        ("values.float16_range",),
        "limit",
        "A square that leaves float16",
        """
        On a CPU the squares are kept in float16, which ends at 65504. Nothing else is promised, and a model in float16 is
        rarely trained without autocast, which computes this loss in float32.
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
        With label smoothing the log-probabilities of all classes and rows are added up in float16 on a CPU, before the division.
        Autocast computes this loss in float32.
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
        The log-sum-exp is rounded before the target's logit is subtracted. From a margin of about 17 on, the loss in float32 is
        0, and so is the gradient of the target's logit.
        """,
        """
        >>> import torch
        >>> logits, target = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
        >>> torch.nn.functional.cross_entropy(logits, target), torch.nn.functional.cross_entropy(logits.double(), target)
        (tensor(0.), tensor(2.0612e-09, dtype=torch.float64))
        """,
    ),
    Finding(
        "torch.nn.CrossEntropyLoss",
        ("values.masked_classes",),
        "limit",
        "A masked class under a probability target",
        """
        A class that is masked out by a logit of -inf and has probability 0 in the target contributes 0 · inf = nan. With class
        indices the same mask works. The documentation does not speak of masks.
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
        The documentation: `ignore_index` is "a target value that is ignored and does not contribute to the input gradient". The
        loss leaves the row out, but its gradient is 0 · nan, and reaches the weights.
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
        For a target of 0 the loss is x - logsigmoid(x), where two numbers of the size of x cancel. For a target of 1 nothing does.
        The documentation calls the loss "more numerically stable than using a plain Sigmoid followed by a BCELoss", which holds.
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

CHUNKED = "torch.nn.functional.linear_cross_entropy"

TORCH_CHUNKED = (
    Finding(
        CHUNKED,
        ("laws.all_rows_ignored",),
        "error",
        "A batch of ignored rows gives nan gradients",
        """
        The chunked path is documented to be equivalent to the one on full logits, which gives 0 here. One batch of padding
        makes every weight nan.
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
        CHUNKED,
        ("laws.ignored_row_may_hold_anything",),
        "error",
        "An ignored row that holds nan makes the loss nan",
        """
        The documentation: `ignore_index` is "a target value that is ignored and does not contribute to the input gradient". On
        the full logits the row is left out of the loss.
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
        CHUNKED,
        ("derivatives.forward_ad", "transforms.jvp_equals_vjp", "transforms.forward_over_forward"),
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
        CHUNKED,
        ("derivatives.gradgradcheck", "derivatives.no_dropped_second_derivative"),
        "limit",
        "The gradient is a constant",
        """
        The documentation lists `create_graph=True` as unsupported on the chunked path. It is accepted, and the gradient comes
        back without a graph: a penalty on it raises where it is alone or added to this loss, and has no effect, without an
        error, where it is added to another one.
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
        CHUNKED,
        (
            "derivatives.gradcheck",
            "derivatives.ties",
            "derivatives.batched_gradient",
            "gradients.scale_with_the_incoming_one",
            "gradients.one_for_each_loss",
            "gradients.retain_graph",
            "gradients.of_some_arguments",
            "gradients.by_weights",
            "inputs.unmodified",
            "inputs.non_contiguous",
        ),
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
        CHUNKED,
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
        CHUNKED,
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

TORCHVISION = (
    Finding(
        "torchvision.ops.sigmoid_focal_loss",
        ("values.confident_tail",),
        "limit",
        "Small losses are rounded to 0",
        """
        The factor (1 - p)² is computed from p, which is 1 in float32 from a logit of about 17 on. Focal losses down-weight such
        examples in any case.
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
        "A gradient of nan for γ below 1",
        """
        For the same reason the base of the power is exactly 0 at a confident example, and the derivative of a root is infinite
        there. The paper uses γ from 0.5 to 5; the default of 2 is not concerned.
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

TIMM = (
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
        torch.nn.CrossEntropyLoss has them in dimension 1. For logits of shape (N, C) that is the same; for images of shape
        (N, C, H, W) the softmax runs over W, without an error. timm uses the loss for whole images.
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

KORNIA = (
    Finding(
        "kornia.losses.FocalLoss",
        (
            "laws.reductions_agree",
            "laws.ignored_row_is_a_removed_row",
            "laws.ignored_row_may_hold_anything",
            "laws.weight_zero_is_a_removed_row",
            "laws.micro_batches_add_up",
        ),
        "choice",
        "The mean divides by every entry of a (N, C) map",
        """
        Documented at length: 'none' gives a map with one entry for each class, 'mean' divides by all of its entries, ignored
        rows and weights included. So the mean is C times smaller than torch.nn's, and ignored rows make it smaller still.
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
        `weight` is a buffer with `persistent=False`: it moves with the model and is set again by whoever builds the loss.
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

MONAI = (
    Finding(
        "monai.losses.FocalLoss",
        (
            "values.reference",
            "values.extreme_inputs",
            "laws.reductions_agree",
            "inputs.images",
            "inputs.empty",
        ),
        "error",
        "'sum' does not sum",
        """
        The documentation: "sum: the output will be summed". A comment in the code says that the mean over the spatial dimensions
        is taken first, for compatibility. On (N, C) input, the documentation's own example, there is no such dimension, the
        list of dimensions is empty, and PyTorch takes that for all of them: 'sum' is the mean.
        """,
        """
        >>> import torch
        >>> from monai.losses import FocalLoss
        >>> for shape in ((2, 3), (1, 1, 10, 10)):
        ...     input, target = torch.zeros(shape), torch.ones(shape)
        ...     losses = FocalLoss(reduction="none")(input, target)
        ...     print(FocalLoss(reduction="sum")(input, target), losses.sum(), losses.mean())
        tensor(0.1733) tensor(1.0397) tensor(0.1733)
        tensor(0.1733) tensor(17.3287) tensor(0.1733)
        """,
    ),
    Finding(
        "monai.losses.FocalLoss",
        (
            "values.runs",
            "values.reference_gradients",
            "derivatives.gradcheck",
            "derivatives.ties",
            "derivatives.gradgradcheck",
            "derivatives.forward_ad",
            "derivatives.forward_over_reverse",
            "derivatives.no_silent_zero_tangent",
            "derivatives.no_dropped_second_derivative",
            "transforms.jvp_equals_vjp",
            "transforms.hessian",
            "transforms.reverse_over_reverse",
            "transforms.forward_over_forward",
            "gradients.scale_with_the_incoming_one",
            "gradients.one_for_each_loss",
            "gradients.retain_graph",
            "laws.micro_batches_add_up",
        ),
        "limit",
        "Everything is computed in float32",
        """
        The input is cast to float32, whatever it was. That is a virtue for float16 and bfloat16, where no digit is lost. From
        float64 comes float32, without a word, and no check by finite differences can pass: all of these checks compare
        float64 numbers, and find differences of the size of float32's rounding.
        """,
        """
        >>> import torch
        >>> from monai.losses import FocalLoss
        >>> logit, label = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        >>> FocalLoss()(logit, label).dtype
        torch.float32
        """,
    ),
    Finding(
        "monai.losses.FocalLoss",
        ("values.confident_tail",),
        "limit",
        "Small losses of confident negatives are rounded",
        """
        For a label of 0 the loss is computed as x - logsigmoid(x), as in torch.nn.BCEWithLogitsLoss, where digits cancel.
        """,
        """
        >>> import torch
        >>> from monai.losses import FocalLoss
        >>> criterion = FocalLoss(gamma=0.0)
        >>> criterion(torch.tensor([[-20.0]]), torch.zeros(1, 1)), criterion(torch.tensor([[20.0]]), torch.ones(1, 1))
        (tensor(0.), tensor(2.0612e-09))
        """,
    ),
    Finding(
        "monai.losses.FocalLoss",
        ("errors.input_dtype",),
        "choice",
        "Integer inputs are taken for logits",
        """
        They are cast to float32 like everything else. torch.nn refuses them, as integers in the place of logits are mostly an
        argmax or swapped arguments.
        """,
        """
        >>> import torch
        >>> from monai.losses import FocalLoss
        >>> FocalLoss()(torch.tensor([[1]]), torch.tensor([[1]]))
        tensor(0.0227)
        """,
    ),
)

SEGMENTATION = "segmentation_models_pytorch.losses.SoftCrossEntropyLoss"

SEGMENTATION_MODELS = (
    Finding(
        SEGMENTATION,
        (),
        "error",
        "The default does not run",
        """
        The documentation: "Drop-in replacement for torch.nn.CrossEntropyLoss with label_smoothing". The default of
        `smooth_factor` is None, which is divided by the number of classes.
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
        SEGMENTATION,
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
        With an `ignore_index`, and the default is one, 'none' gives (N, 1), where the class that it replaces gives (N): a product
        with weights of shape (N) becomes (N, N). Without one it gives (N).
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
        SEGMENTATION,
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
        The class that it replaces divides by the rows that are not ignored. Here padding makes loss and gradient smaller.
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
        SEGMENTATION,
        (),
        "error",
        "The smoothing is not the one documented",
        """
        The documentation: "if smooth_factor=0.1 then [1, 0, 0] -> [0.9, 0.05, 0.05]". What is computed is torch.nn's smoothing,
        [0.9333, 0.0333, 0.0333]: the formula is fine, the sentence is not.
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
        SEGMENTATION,
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
        SEGMENTATION,
        ("values.masked_classes", "values.float16_range"),
        "limit",
        "No smoothing is smoothing times 0",
        """
        The sum of all log-probabilities is taken also for a `smooth_factor` of 0, and multiplied by 0. Where it is infinite,
        by a mask of -inf or because the sum leaves float16, the loss is nan.
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
        SEGMENTATION,
        ("values.confident_tail",),
        "limit",
        "Small losses are rounded to 0",
        """
        As in torch.nn.CrossEntropyLoss.
        """,
        """
        >>> import torch
        >>> from segmentation_models_pytorch.losses import SoftCrossEntropyLoss
        >>> criterion, logits, target = SoftCrossEntropyLoss(smooth_factor=0.0), torch.tensor([[20.0, 0.0]]), torch.tensor([0])
        >>> abs(criterion(logits, target)), criterion(logits.double(), target)
        (tensor(0.), tensor(2.0612e-09, dtype=torch.float64))
        """,
    ),
)

ENTMAX = (
    Finding(
        "entmax.Entmax15Loss",
        ("derivatives.gradgradcheck", "derivatives.no_dropped_second_derivative"),
        "error",
        "A gradient penalty is dropped, without an error",
        """
        The backward multiplies by probabilities that the forward has saved, which autograd takes for constants. The gradient is
        right; its derivative is 0. `once_differentiable` would make it an error.
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
        The loss contains the product of probabilities and logits, which is 0 · -inf = nan for a masked class; the gradient is
        right.
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
        A target of another length, and a reduction that does not exist, raise an AssertionError without a word. The mean is called
        'elementwise_mean', as in early versions of PyTorch.
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

FINDINGS: tuple[Finding, ...] = (
    *TORCH,
    *TORCH_CHUNKED,
    *TORCHVISION,
    *TIMM,
    *KORNIA,
    *MONAI,
    *SEGMENTATION_MODELS,
    *ENTMAX,
)

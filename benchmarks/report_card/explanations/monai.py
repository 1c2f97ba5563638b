"""Findings on MONAI."""

from __future__ import annotations

from benchmarks.report_card.findings import Finding

FINDINGS = (
    Finding(
        "monai.losses.FocalLoss",
        (
            "values.reference",
            "values.float32",
            "values.bfloat16",
            "values.float16",
            "values.extreme_inputs",
            "laws.reductions_agree",
            "inputs.images",
            "inputs.empty",
        ),
        "error",
        "'sum' does not sum",
        """
        The documentation: "sum: the output will be summed". A comment in the code says that the mean over the
        spatial dimensions is taken first, for compatibility. On (N, C) input, the documentation's own
        example, there is no such dimension, the list of dimensions is empty, and PyTorch takes that for all
        of them: 'sum' is the mean.
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
            "laws.micro_batches_add_up",
        ),
        "limit",
        "Everything is computed in float32",
        """
        The input is cast to float32, whatever it was. That is a virtue for float16 and bfloat16, where no
        digit is lost. From float64 comes float32, without a word: these checks compare with numbers in
        float64, and find another dtype, or differences of the size of float32's rounding.
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
        For a label of 0 the loss is computed as x - logsigmoid(x), as in torch.nn.BCEWithLogitsLoss, where
        digits cancel.
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
        They are cast to float32 like everything else. torch.nn refuses them, as integers in the place of
        logits are mostly an argmax or swapped arguments.
        """,
        """
        >>> import torch
        >>> from monai.losses import FocalLoss
        >>> FocalLoss()(torch.tensor([[1]]), torch.tensor([[1]]))
        tensor(0.0227)
        """,
    ),
)

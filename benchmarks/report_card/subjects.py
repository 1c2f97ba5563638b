"""The losses of the report card: where each comes from, and how the kit is to call it."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from benchmarks.report_card.references import (
    focal_map,
    linear_cross_entropy,
    sigmoid_focal,
    sigmoid_focal_unreduced,
    smoothed_cross_entropy,
    textbook_cross_entropy,
)
from torchlosses import LinearCrossEntropyLoss
from torchlosses.testing import KINDS, Kind


@dataclass(frozen=True)
class Subject:
    """A loss of the report card.

    Args:
        name: The heading: how users import it.
        distribution: The installed distribution whose version is shown.
        path: package.module:Name.
        kind: As for `check_loss`.
        reference: As for `check_loss`.
        options: As for `check_loss`.
        rename: As for `check_loss`.
        called: How it is called, where that needs a word.
    """

    name: str
    distribution: str
    path: str
    kind: str | Kind
    reference: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    called: str = ""

    def load(self) -> Any:
        """The loss; only now its library is imported."""
        return pkgutil.resolve_name(self.path)


def chunked_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """torch's, on the path that keeps the logits out of memory."""
    return nn.functional.linear_cross_entropy(
        input,
        linear_weight,
        target,
        linear_bias=linear_bias,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        options=nn.LinearCrossEntropyOptions(),
    )


class _Layer(NamedTuple):
    weight: Tensor
    bias: Tensor | None


class _WithLayer:
    """A module with another layer in place of its own."""

    def __init__(self, module: nn.Module, linear: _Layer) -> None:
        self.module, self.linear = module, linear

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


class LinearCrossEntropyLossOfOperands(LinearCrossEntropyLoss):
    """The module as a function of what its layer holds, which the kit draws."""

    def __init__(
        self,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        reduction: Literal["none", "mean", "sum"] = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(
            0,
            1 if weight is None else len(weight),
            weight=weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        self.linear.register_parameter("weight", None)

    def forward(  # type: ignore[override]
        self, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None
    ) -> Any:
        """The loss of features and a layer's operands."""
        with_layer: Any = _WithLayer(self, _Layer(linear_weight, linear_bias))
        return LinearCrossEntropyLoss.forward(with_layer, input, target)


# The focal losses define their formula for labels of 0 and 1; MONAI's `weight` is one number a class, not an element.
LABELS = replace(
    KINDS["binary"],
    forms={"labels": KINDS["binary"].forms["labels"]},
    differentiable=("input",),
    weight=None,
)

SUBJECTS = (
    Subject("torchlosses.MSELoss", "hand-derived-losses", "torchlosses:MSELoss", "regression", nn.MSELoss),
    Subject(
        "torchlosses.CrossEntropyLoss",
        "hand-derived-losses",
        "torchlosses:CrossEntropyLoss",
        "classification",
        nn.CrossEntropyLoss,
    ),
    Subject(
        "torchlosses.CEELoss", "hand-derived-losses", "torchlosses:CEELoss", "probabilities", textbook_cross_entropy
    ),
    *(
        Subject(f"torchlosses.{name}", "hand-derived-losses", f"torchlosses:{name}", kind, getattr(nn, name))
        for name, kind in (("BCEWithLogitsLoss", "binary"), ("HuberLoss", "regression"), ("SmoothL1Loss", "regression"))
    ),
    Subject(
        "torchlosses.linear_cross_entropy",
        "hand-derived-losses",
        "torchlosses:linear_cross_entropy",
        "linear classification",
        linear_cross_entropy,
    ),
    Subject(
        "torchlosses.LinearCrossEntropyLoss",
        "hand-derived-losses",
        "benchmarks.report_card.subjects:LinearCrossEntropyLossOfOperands",
        "linear classification",
        linear_cross_entropy,
        called="with the weight and the bias of its layer as arguments",
    ),
    Subject("torch.nn.MSELoss", "torch", "torch.nn:MSELoss", "regression"),
    Subject("torch.nn.CrossEntropyLoss", "torch", "torch.nn:CrossEntropyLoss", "classification"),
    Subject("torch.nn.BCEWithLogitsLoss", "torch", "torch.nn:BCEWithLogitsLoss", "binary"),
    Subject(
        "torch.nn.functional.linear_cross_entropy",
        "torch",
        "benchmarks.report_card.subjects:chunked_linear_cross_entropy",
        "linear classification",
        linear_cross_entropy,
        called="chunked, with `options=torch.nn.LinearCrossEntropyOptions()`",
    ),
    Subject(
        "torchvision.ops.sigmoid_focal_loss",
        "torchvision",
        "torchvision.ops:sigmoid_focal_loss",
        LABELS,
        sigmoid_focal_unreduced,
        options={"alpha": -1},
        called="with labels of 0 and 1, and `alpha=-1`, which switches the balance of positives and negatives off",
    ),
    Subject(
        "timm.loss.LabelSmoothingCrossEntropy",
        "timm",
        "timm.loss:LabelSmoothingCrossEntropy",
        "classification",
        smoothed_cross_entropy,
        rename={"label_smoothing": "smoothing"},
    ),
    Subject(
        "timm.loss.SoftTargetCrossEntropy",
        "timm",
        "timm.loss:SoftTargetCrossEntropy",
        "classification",
        nn.CrossEntropyLoss,
    ),
    Subject(
        "kornia.losses.FocalLoss",
        "kornia",
        "kornia.losses:FocalLoss",
        "classification",
        focal_map,
        options={"alpha": None},
        called="with `alpha=None`, which weights every class by 1",
    ),
    Subject(
        "monai.losses.FocalLoss",
        "monai",
        "monai.losses:FocalLoss",
        LABELS,
        sigmoid_focal,
        called="with labels of 0 and 1",
    ),
    Subject(
        "segmentation_models_pytorch.losses.SoftCrossEntropyLoss",
        "segmentation-models-pytorch",
        "segmentation_models_pytorch.losses:SoftCrossEntropyLoss",
        "classification",
        nn.CrossEntropyLoss,
        options={"smooth_factor": 0.0},
        called="with `smooth_factor=0.0`, because the default does not run",
    ),
    Subject("entmax.Entmax15Loss", "entmax", "entmax:Entmax15Loss", "classification"),
)

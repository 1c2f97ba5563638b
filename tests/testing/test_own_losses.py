"""The conformance kit applied to the losses of this package: every check is a test, on every backend."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch.nn.functional as F
from torch import nn

import torchlosses
from tests.testing.shaped import PAIRS, next_token, of_images, of_single_rows
from tests.torchs_losses import torchs_linear_cross_entropy
from tests.turns import in_turn, is_slow
from torchlosses import kernels
from torchlosses.testing import CHECKS, BoundCheck, bound_checks

FUNCTION = {f"integration.{name}" for name in ("pickle", "deepcopy", "state_dict", "moves_its_weight", "repr")}
NO_WEIGHT = {
    "gradients.by_weights",
    "laws.weight_zero_is_a_removed_row",
    "laws.weights_of_one_are_no_weights",
    "errors.weight",
}
NO_WEIGHT_TO_KEEP = {"integration.state_dict", "integration.moves_its_weight"}
NO_IGNORED_ROWS = {
    "laws.ignored_row_is_a_removed_row",
    "laws.ignored_row_may_hold_anything",
    "laws.all_rows_ignored",
}
NO_SMOOTHING = {
    "laws.smoothing_of_zero_is_none",
    "laws.smoothing_of_one_forgets_the_target",
    "laws.smoothing_interpolates",
    "errors.label_smoothing",
}
NO_LOGITS = {
    "values.confident_mistake",
    "values.confident_tail",
    "values.masked_classes",
    "laws.logits_may_be_shifted",
}
NO_CLASSES = {
    "values.one_class",
    "values.many_classes",
    "laws.classes_may_be_permuted",
    "laws.one_hot_is_an_index",
    "errors.target_dtype",
    "errors.target_range",
}
BOUNDED = {"values.float16_range", "values.extreme_inputs", "laws.nonnegative"}
NO_REFERENCE = {"values.reference", "values.reference_gradients"}
ANY_SHAPES = {"inputs.broadcasting"}
NOT_SHIFTED = {"laws.labels_are_shifted"}
NO_POSITIVE_WEIGHT = {"laws.pos_weight_scales_the_positives"}

BEHIND_A_PRODUCT = {
    "values.float16_range",
    "values.confident_mistake",
    "values.confident_tail",
    "values.masked_classes",
    "inputs.images",
    "inputs.channels_last",
    "laws.logits_may_be_shifted",
    "laws.gradient_vanishes_at_the_optimum",
}

CLASSIFICATION = ANY_SHAPES | NOT_SHIFTED | NO_POSITIVE_WEIGHT
REGRESSION = NO_IGNORED_ROWS | NO_SMOOTHING | NO_LOGITS | NO_CLASSES | NOT_SHIFTED | NO_POSITIVE_WEIGHT
PROBABILITIES = CLASSIFICATION | NO_IGNORED_ROWS | NO_SMOOTHING | NO_LOGITS | NO_WEIGHT | BOUNDED | NO_REFERENCE
BINARY = NO_IGNORED_ROWS | NO_CLASSES | NOT_SHIFTED | {"values.masked_classes", "laws.logits_may_be_shifted"}
LANGUAGE = (
    NO_POSITIVE_WEIGHT
    | ANY_SHAPES
    | {
        "gradients.by_targets",
        "inputs.images",
        "inputs.channels_last",
        "inputs.unbatched",
        "laws.one_hot_is_an_index",
        "errors.classes",
    }
)


@dataclass(frozen=True)
class Audited:
    """A loss, and the checks that do not apply to it: all others must pass."""

    loss: Any
    kind: str
    reference: Any
    not_applicable: set[str]


# All that the losses claim.
DTYPES = ("float64", "float32", "bfloat16", "float16")

LOSSES = {
    "mse_loss": Audited(torchlosses.mse_loss, "regression", F.mse_loss, REGRESSION | FUNCTION),
    "MSELoss": Audited(torchlosses.MSELoss, "regression", nn.MSELoss, REGRESSION | NO_WEIGHT | NO_WEIGHT_TO_KEEP),
    "huber_loss": Audited(torchlosses.huber_loss, "regression", F.huber_loss, REGRESSION | FUNCTION),
    "HuberLoss": Audited(torchlosses.HuberLoss, "regression", nn.HuberLoss, REGRESSION | NO_WEIGHT | NO_WEIGHT_TO_KEEP),
    "smooth_l1_loss": Audited(
        torchlosses.smooth_l1_loss, "regression", F.smooth_l1_loss, REGRESSION | FUNCTION | NO_WEIGHT
    ),
    "SmoothL1Loss": Audited(
        torchlosses.SmoothL1Loss, "regression", nn.SmoothL1Loss, REGRESSION | NO_WEIGHT | NO_WEIGHT_TO_KEEP
    ),
    "binary_cross_entropy_with_logits": Audited(
        torchlosses.binary_cross_entropy_with_logits, "binary", F.binary_cross_entropy_with_logits, BINARY | FUNCTION
    ),
    "BCEWithLogitsLoss": Audited(torchlosses.BCEWithLogitsLoss, "binary", nn.BCEWithLogitsLoss, BINARY),
    "cross_entropy": Audited(torchlosses.cross_entropy, "classification", F.cross_entropy, CLASSIFICATION | FUNCTION),
    "CrossEntropyLoss": Audited(torchlosses.CrossEntropyLoss, "classification", nn.CrossEntropyLoss, CLASSIFICATION),
    "cross_entropy of the next token": Audited(
        next_token(torchlosses.cross_entropy), "language modelling", next_token(F.cross_entropy), LANGUAGE | FUNCTION
    ),
    "linear_cross_entropy": Audited(
        torchlosses.linear_cross_entropy,
        "linear classification",
        torchs_linear_cross_entropy,
        BEHIND_A_PRODUCT | CLASSIFICATION | FUNCTION,
    ),
    "cee_loss": Audited(torchlosses.cee_loss, "probabilities", None, PROBABILITIES | FUNCTION),
    "CEELoss": Audited(torchlosses.CEELoss, "probabilities", None, PROBABILITIES | NO_WEIGHT_TO_KEEP),
}


@functools.cache
def _checks(name: str, backend: str) -> dict[str, BoundCheck]:
    """What trying a loss out shows is kept for all of its checks, for each backend."""
    audited = LOSSES[name]
    found = bound_checks(audited.loss, kind=audited.kind, reference=audited.reference, dtypes=DTYPES)
    return {check.name: check for check in found}


# One loss of each declaration: of elements, of logits, of probabilities.
REPRESENTATIVES = ("mse_loss", "cross_entropy", "cee_loss")
# Second derivatives of every loss on every backend are compared with formulas in tests/test_transforms.py.
SECOND_ORDER = ("derivatives.forward_over_reverse", "derivatives.gradgradcheck")


def audits() -> Iterator[Any]:
    """Every check of every loss on every backend, of which `make test` has each check of each loss once.

    Finite differences of the gradient are on one backend, and so is what is slow of Modules, which call the functions.
    Except for what is slow, which follows from the declaration: there it is asked of the representatives. Numbers and
    laws of Modules, which call the functions, are left out.
    """
    backends = kernels.available()
    for (turn, name), (number, check) in itertools.product(enumerate(LOSSES), enumerate(CHECKS)):
        on_one = check in SECOND_ORDER or (is_slow(check) and name.endswith("Loss"))
        for place, backend in enumerate(backends):
            everyday = place == (turn + number) % len(backends)
            if on_one and not everyday:
                continue
            if is_slow(check):
                # The one that takes longest is asked of elements alone.
                few = REPRESENTATIVES[:1] if check == "derivatives.forward_over_reverse" else REPRESENTATIVES
                everyday = everyday and name in few
            elif check.startswith(("values.", "laws.", "gradients.", "inputs.")):
                everyday = everyday and not name.endswith("Loss")
            marks = () if everyday else (pytest.mark.thorough,)
            yield pytest.param(backend, name, check, id=f"{backend}-{name}-{check}", marks=marks)


@pytest.mark.parametrize(("backend", "name", "check"), list(audits()))
def test_conforms(backend: str, name: str, check: str) -> None:
    with kernels.use(backend):
        result = _checks(name, backend)[check].run()
    if check in LOSSES[name].not_applicable:
        assert result.status == "not applicable", result
        return
    assert result.status == ("measured" if check.startswith("cost.") else "passed"), result
    # Nor does it refuse a part of what is asked.
    assert not result.reason, result
    assert result.cases > 0


SHAPED = {
    "cross_entropy of images": (torchlosses.cross_entropy, of_images(probabilities=False), {}),
    "cross_entropy of single rows": (torchlosses.cross_entropy, of_single_rows(probabilities=False), {}),
    "cee_loss of images": (torchlosses.cee_loss, of_images(probabilities=True), {}),
    "cee_loss of single rows": (torchlosses.cee_loss, of_single_rows(probabilities=True), {}),
    "mse_loss": (torchlosses.mse_loss, PAIRS, {"broadcast": "allow"}),
}
DERIVATIVES = [name for name in CHECKS if name.partition(".")[0] in ("derivatives", "transforms", "gradients")]
SLOWEST = tuple(f"derivatives.{name}" for name in ("forward_over_reverse", "gradgradcheck", "forward_ad"))
SLOWEST += ("transforms.forward_over_forward",)
# Which losses a check applies to, where not to all: those with a model in front, with a tensor for an option, or rows.
APPLIES = {
    "transforms.per_sample_gradients": (),
    "gradients.by_weights": ("cross_entropy", "mse_loss"),
    "gradients.one_for_each_loss": ("cross_entropy of images", "cee_loss of images", "mse_loss"),
}


@functools.cache
def _shaped_checks(name: str, backend: str) -> dict[str, BoundCheck]:
    loss, kind, options = SHAPED[name]
    return {check.name: check for check in bound_checks(loss, kind=kind, options=options)}


def of_other_shapes(backends: Sequence[str], checks: Iterable[str]) -> list[Any]:
    """Those of images are the slowest by far, and single rows of logits go the same ways."""
    return in_turn(
        backends,
        {f"{name}-{check}": (name, check) for name, check in itertools.product(SHAPED, checks)},
        lambda name, check: (
            name in ("mse_loss", "cross_entropy of single rows")
            or (check not in SLOWEST and name == "cee_loss of single rows")
            or (check.startswith("gradients.") and name == "cross_entropy of images")
        ),
    )


@pytest.mark.parametrize(
    ("backend", "name", "check"),
    of_other_shapes(kernels.available(), [check for check in DERIVATIVES if check not in SECOND_ORDER])
    + of_other_shapes(kernels.available()[:1], SECOND_ORDER),
)
def test_derivatives_of_other_shapes(backend: str, name: str, check: str) -> None:
    with kernels.use(backend):
        result = _shaped_checks(name, backend)[check].run()
    applies = name.startswith(APPLIES.get(check, ("",)))
    assert result.status == ("passed" if applies else "not applicable"), result
    if applies:
        assert not result.reason, result

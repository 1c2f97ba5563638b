"""Bad input raises, and the message names the problem."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

from torchlosses.testing.audit import SETTINGS, Audit
from torchlosses.testing.comparing import shown
from torchlosses.testing.kinds import Case
from torchlosses.testing.outcomes import Failure, NotApplicable
from torchlosses.testing.registry import check

SHAPE = r"shape|size|dim|1D|broadcast|match|length|elements|numel|batch|expand"
DTYPE = r"dtype|type|float|long|int|not implemented|bool|complex"
RANGE = r"range|bound|index|indices|class|target|label"


def _plain(audit: Audit) -> list[Case]:
    return audit.cases(without=SETTINGS, reductions=("mean", None))[:4]


def _must_raise(audit: Audit, case: Case, call: Callable[[], Any], what: str, names: str, cause: str) -> None:
    """Fail unless the call raises an error whose message has a word of `names`."""
    text = audit.call_text(case)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = call()
        except Exception as error:
            message = str(error)
            if re.search(names, message, re.IGNORECASE):
                return
            got = f"{type(error).__name__}: {message[:300]}"
            expected = "a message with one of the words " + names.replace("|", ", ")
            raise Failure(f"{what}: the message does not name the problem", got, expected, cause, text) from error
    if any(re.search(names, str(warning.message), re.IGNORECASE) for warning in caught):
        return
    raise Failure(f"{what}: accepted in silence", f"a loss of {shown(value)}", "an error", cause, text)


@check("errors.rows", _plain)
def rows_must_match(audit: Audit, case: Case) -> None:
    """A target that is one row short comes from a bug in the data loader, and must not be cut or repeated to fit."""
    if len(audit.kind.rows) < 2 or audit.kind.size(case) < 3:
        raise NotApplicable("needs two arguments with rows")
    name = audit.kind.rows[-1]
    short = case.with_tensors(**{name: case.tensors[name][:-1]})
    _must_raise(audit, short, lambda: audit.loss(short), "another number of rows", SHAPE, "shapes are not checked")


@check("errors.classes", _plain)
def classes_must_match(audit: Audit, case: Case) -> None:
    """A soft target with another number of classes belongs to another model."""
    target, dimension = case.tensors.get("target"), audit.kind.class_dimensions(case).get("target")
    if target is None or dimension is None or target.shape[dimension] < 3:
        raise NotApplicable("the target has no class dimension")
    short = case.with_tensors(target=target.narrow(dimension, 0, target.shape[dimension] - 1))
    _must_raise(audit, short, lambda: audit.loss(short), "another number of classes", SHAPE, "shapes are not checked")


@check("errors.input_dtype", _plain)
def input_must_be_floating_point(audit: Audit, case: Case) -> None:
    """An integer input cannot be trained; it is a target in the wrong place."""
    given = {name: (3 * tensor).long() for name, tensor in case.tensors.items() if tensor.is_floating_point()}
    integer = case.with_tensors(**given)
    call: Callable[[], Any] = lambda: audit.loss.bind(case.options)(*integer.tensors.values())  # noqa: E731
    _must_raise(audit, integer, call, "integer inputs", DTYPE + "|prob", "dtypes are not checked")


@check("errors.target_dtype", _plain)
def class_indices_must_be_integers(audit: Audit, case: Case) -> None:
    """Class indices in float32 come from NumPy or a CSV file, and round to the wrong class when they are cast."""
    if not audit.kind.has_indices(case):
        raise NotApplicable("the target is no class indices")
    name = audit.kind.indices[0]
    floating = case.with_tensors(**{name: case.tensors[name].double() + 0.4})
    cause = "the target is cast with .long()"
    _must_raise(audit, floating, lambda: audit.loss(floating), "class indices of 0.4", f"{DTYPE}|{SHAPE}", cause)


@check("errors.target_range", _plain)
def class_indices_must_be_in_range(audit: Audit, case: Case) -> None:
    """Labels from 1 to C, or 255 for 'ignore', must not read the wrong class or the memory behind it."""
    if not audit.kind.has_indices(case):
        raise NotApplicable("the target is no class indices")
    if audit.device.type != "cpu":
        raise NotApplicable(f"on {audit.device.type} it may be an assertion that ends the use of the device")
    name = audit.kind.indices[0]
    for wrong in (audit.kind.number_of_classes(case), 255, -1):
        target = case.tensors[name].clone()
        target[-1] = wrong
        outside = case.with_tensors(**{name: target})
        what, cause = f"class index {wrong}", "indices wrap around, are clamped, or are read from beyond the row"
        _must_raise(audit, outside, lambda c=outside: audit.loss(c), what, RANGE, cause)


@check("errors.reduction", _plain)
def reduction_must_be_known(audit: Audit, case: Case) -> None:
    """A misspelt reduction must not fall through to another one."""
    if "reduction" not in audit.loss.options:
        raise NotApplicable("the loss has no option reduction")
    wrong = case.with_options(reduction="average")
    cause = "the last branch is 'else'"
    _must_raise(audit, wrong, lambda: audit.loss(wrong), "reduction='average'", "reduction|average", cause)


@check("errors.label_smoothing", _plain)
def smoothing_must_be_a_share(audit: Audit, case: Case) -> None:
    """Smoothing is a share between 0 and 1; beyond, the loss is that of a target that is no distribution."""
    if "label_smoothing" not in audit.loss.options:
        raise NotApplicable("the loss has no option label_smoothing")
    for value in (1.5, -0.1):
        wrong = case.with_options(label_smoothing=value)
        names = "smoothing|between|range|0"
        what, cause = f"label_smoothing={value}", "the option is not checked"
        _must_raise(audit, wrong, lambda c=wrong: audit.loss(c), what, names, cause)


def _with_weights(audit: Audit) -> list[Case]:
    return [
        case
        for name in audit.weights or ["weight"]
        for case in audit.cases(needs=(name,), few=True, reductions=("mean", None))
    ]


@check("errors.weight", _with_weights)
def weight_must_fit(audit: Audit, case: Case) -> None:
    """A weight for another number of classes was made for other data."""
    wrong = {name: case.options[name][:-1] for name in audit.weights if name in case.options}
    if not wrong or any(len(weight) < 1 for weight in wrong.values()):
        raise NotApplicable("there is no weight")
    cause = "the weight is indexed or broadcast without a look at its shape"
    for name, weight in wrong.items():
        given = case.with_options(**{name: weight})
        what = f"a {name} that is one short"
        _must_raise(audit, given, lambda c=given: audit.loss(c), what, f"{SHAPE}|weight", cause)

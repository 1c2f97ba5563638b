"""Errors have the types of torch's own, of every version: what catches those catches ours.

error_types.json has the types, by call and version of torch; `python -m tests.test_error_types` adds those of the
installed one.
"""

from __future__ import annotations

import builtins
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

import torchlosses

X, Y = torch.linspace(-2, 2, 12).reshape(4, 3), torch.linspace(0, 1, 12).reshape(4, 3)
INDICES = torch.tensor([0, 2, 1, 1])
FEATURES, MATRIX = X[:, :2], X[:3, :2]
IMAGES = torch.zeros(2, 3, 4)
ELEMENTWISE = ("mse_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
RECORD = Path(__file__).with_name("error_types.json")
# {call: {version: type}}; null where that torch takes the call, nothing where it has no such loss.
RECORDED: dict[str, dict[str, str | None]] = json.loads(RECORD.read_text(encoding="utf-8"))
VERSION = torch.__version__.partition("+")[0]
NO_TENSORS: tuple[Any, ...] = ([1.0, 2.0], None, 1.0, "x", X.numpy())


def of_every_loss(name: str) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Bad arguments, by what is wrong with them."""
    y = INDICES if name == "cross_entropy" else Y
    weights = ("weight", "pos_weight") if name == "binary_cross_entropy_with_logits" else ("weight",)
    like_weight = X if name in ("mse_loss", "huber_loss") else X[0]
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "nothing": ((), {}),
        "no target": ((X,), {}),
        "too many": ((X, y, *[None] * 20), {}),
        "unknown": ((X, y), {"unknown": 1}),
        "integer input": ((X.long(), y.long()), {}),
        "bool input": ((X.bool(), y), {}),
        "complex input": ((X.to(torch.complex64), y), {}),
        "complex both": ((X.to(torch.complex64), y.to(torch.complex64)), {}),
        "complex target": ((X, y.to(torch.complex64)), {}),
        "bool target": ((X, y.bool()), {}),
        "meta input": ((X.to("meta"), y), {}),
        "meta target": ((X, y.to("meta")), {}),
        "sparse input": ((X.to_sparse(), y), {}),
        "sparse target": ((X, y.to_sparse()), {}),
        "other shape": ((X, y[:3]), {}),
        "other shape of images": ((IMAGES, y), {}),
    }
    for value in ("average", None, 1, ["mean"], ""):
        calls[f"reduction {value!r}"] = ((X, y), {"reduction": value})
    for value in NO_TENSORS:
        kind = type(value).__name__
        calls[f"input {kind}"] = ((value, y), {})
        calls[f"target {kind}"] = ((X, value), {})
        if value is not None and name != "smooth_l1_loss":
            calls |= {f"{weight} {kind}": ((X, y), {weight: value}) for weight in weights}
    if name != "smooth_l1_loss":
        for weight in weights:
            calls[f"{weight} of other shape"] = ((X, y), {weight: torch.ones(7)})
            calls[f"{weight} of more dimensions"] = ((X, y), {weight: torch.ones(3, 3)})
            calls[f"{weight} without dimensions"] = ((X, y), {weight: torch.ones(())})
            for dtype in (torch.float64, torch.float16, torch.int64):
                calls[f"{weight} {dtype}"] = ((X, y), {weight: like_weight.to(dtype)})
            calls[f"{weight} meta"] = ((X, y), {weight: like_weight.to("meta")})
    return calls


def calls() -> list[Any]:
    found = {
        (name, what): call for name in (*ELEMENTWISE, "cross_entropy") for what, call in of_every_loss(name).items()
    }
    for name, option, values in (
        ("huber_loss", "delta", (0.0, -1.0, -float("inf"), float("nan"), "1", None, [1.0], 1j)),
        ("smooth_l1_loss", "beta", (-1.0, -float("inf"), float("nan"), "1", None, [1.0], 1j)),
    ):
        found |= {(name, f"{option} {value!r}"): ((X, Y), {option: value}) for value in values}
    for value in (1.5, float("inf"), "0.1", None, [0.1], 1j):
        for target in (INDICES, Y):
            found["cross_entropy", f"label_smoothing {value!r} {target.dtype}"] = (
                (X, target),
                {"label_smoothing": value},
            )
    for value in (1.5, "0", None, [0], 1j, True, 2**70):
        found["cross_entropy", f"ignore_index {value!r}"] = (X, INDICES), {"ignore_index": value}
    tensor = torch.tensor
    pairs: dict[str, tuple[Any, ...]] = {
        "no dimensions": (tensor(1.0), tensor(0)),
        "no dimensions at all": (tensor(1.0), tensor(1.0)),
        "one row, two targets": (X[0], INDICES[:2]),
        "one row, no target": (X[0], INDICES[:0]),
        "one row, a matrix": (X[0], INDICES[:1].reshape(1, 1)),
        "out of bounds": (X, tensor([0, 1, 2, 3])),
        "negative": (X, tensor([0, 1, 2, -1])),
        "out of bounds, images": (IMAGES, tensor([[0, 1, 2, 0], [0, 0, 5, 0]])),
        "out of bounds, one row": (X[0], tensor(4)),
        "floating indices": (X, X[:, 0]),
        "integer one-hot": (X, torch.ones(4, 3).long()),
        "bool indices": (X, INDICES.bool()),
        "one probability row less": (X, Y[:3]),
        "one probability less": (X, Y[:, :2]),
        "images, one index each": (IMAGES, INDICES[:2]),
        "images, indices with classes": (IMAGES, torch.zeros(2, 1, 4).long()),
        "indices with a dimension too many": (X, INDICES.unsqueeze(1)),
        "no classes": (X[:, :0], INDICES),
    }
    found |= {("cross_entropy", what): (pair, {}) for what, pair in pairs.items()}
    found["cross_entropy", "ignored probabilities"] = (X, Y), {"ignore_index": 1}
    found["cross_entropy", "weight of probabilities"] = (X, Y), {"weight": torch.ones(4)}
    found["cross_entropy", "a matrix of weights"] = (X, INDICES), {"weight": torch.ones(1, 3)}
    found["cross_entropy", "weight of images"] = (IMAGES, torch.zeros(2, 4).long()), {"weight": torch.ones(4)}
    found["binary_cross_entropy_with_logits", "broadcasting target"] = (X, Y[0]), {}
    found |= {("linear_cross_entropy", what): call for what, call in of_the_linear_loss().items()}
    return [pytest.param(name, *call, id=f"{name}-{what}") for (name, what), call in found.items()]


def of_the_linear_loss() -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    places = (FEATURES, MATRIX, INDICES)
    found: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "features": ((X, MATRIX, INDICES), {}),
        "rows": ((FEATURES, MATRIX, INDICES[:3]), {}),
        "other dtypes": ((FEATURES, MATRIX.double(), INDICES), {}),
        "integers": ((FEATURES.long(), MATRIX.long(), INDICES), {}),
        "complex": ((FEATURES.to(torch.complex64), MATRIX.to(torch.complex64), INDICES), {}),
        "out of bounds": ((FEATURES, MATRIX, INDICES + 1), {}),
        "no dimensions": ((torch.tensor(1.0), MATRIX, INDICES), {}),
        "a vector of weights": ((FEATURES, MATRIX[0], INDICES), {}),
        "a number for weights": ((FEATURES, torch.tensor(1.0), INDICES), {}),
        "floating indices": ((FEATURES, MATRIX, X[:, 0]), {}),
        "integer probabilities": ((FEATURES, MATRIX, Y.long()), {}),
        "a probability less": ((FEATURES, MATRIX, Y[:, :2]), {}),
    }
    for place, value in enumerate(places):
        for wrong in NO_TENSORS:
            changed = (*places[:place], wrong, *places[place + 1 :])
            found[f"argument {place} {type(wrong).__name__}"] = changed, {}
        assert isinstance(value, Tensor)
    for option, values in {
        "reduction": ("average", None),
        "label_smoothing": (1.5, "0.1"),
        "ignore_index": ("0", 1.5),
        "weight": (torch.ones(4), [1.0], X[0].double()),
        "linear_bias": (torch.ones(4), [1.0]),
        "options": (3,),
        "unknown": (1,),
    }.items():
        found |= {f"{option} {value!r}": (places, {option: value}) for value in values}
    found["ignored probabilities"] = (FEATURES, MATRIX, Y), {"ignore_index": 1}
    return found


# Ours take these.
TAKEN = {"huber_loss-bool input", "cross_entropy-ignore_index True"}


def raised_by(function: Callable[..., Tensor], arguments: tuple[Any, ...], options: dict[str, Any]) -> Exception | None:
    try:
        function(*arguments, **options)
    except Exception as error:
        return error
    return None


def types_of(call: str, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, str | None]:
    """What is recorded of a call, and what the installed torch raises."""
    types = dict(RECORDED.get(call, {}))
    # Up to torch 2.12 there is no linear_cross_entropy.
    if (function := getattr(F, name, None)) is not None:
        error = raised_by(function, arguments, options)
        types[VERSION] = None if error is None else type(error).__name__
    return types


@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
@pytest.mark.parametrize(("name", "arguments", "options"), calls())
def test_the_type(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Whatever a torch raises is a base of what ours raise; the message of ours says what is wrong."""
    call = request.node.callspec.id
    types = types_of(call, name, arguments, options)
    if VERSION in {version for recorded in RECORDED.values() for version in recorded}:
        assert RECORDED.get(call) == types, "`python -m tests.test_error_types` records the types of this torch"
    if types.get(VERSION, "") is None:
        pytest.skip("torch takes it")
    raised = raised_by(getattr(torchlosses, name), arguments, options)
    if call in TAKEN:
        assert raised is None
        return
    for builtin in filter(None, types.values()):
        assert isinstance(raised, getattr(builtins, builtin)), builtin
    assert len(str(raised)) > 20


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MSELoss", {"reduction": "average"}),
        ("MSELoss", {"unknown": 1}),
        ("CrossEntropyLoss", {"label_smoothing": 2.0}),
        ("CrossEntropyLoss", {"weight": [1.0, 2.0, 3.0]}),
        ("CrossEntropyLoss", {"ignore_index": "0"}),
        ("HuberLoss", {"delta": -1.0}),
        ("SmoothL1Loss", {"beta": -1.0}),
        ("BCEWithLogitsLoss", {"weight": [1.0]}),
        ("BCEWithLogitsLoss", {"pos_weight": [1.0]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_of_a_module(name: str, options: dict[str, Any]) -> None:
    target = INDICES if name == "CrossEntropyLoss" else Y
    with pytest.raises(Exception) as builtin:  # noqa: PT011
        getattr(nn, name)(**options)(X, target)
    with pytest.raises(builtin.type):
        getattr(torchlosses, name)(**options)(X, target)


def in_a_dual_level(x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return torchlosses.cee_loss(forward_ad.make_dual(x, x), INDICES)


WAYS: dict[str, Callable[[Tensor], Any]] = {
    "plain": lambda x: torchlosses.cee_loss(x, INDICES),
    "with gradient": lambda x: torchlosses.cee_loss(x.clone().requires_grad_(), INDICES),
    "grad": torch.func.grad(lambda x: torchlosses.cee_loss(x, INDICES)),
    "jvp": lambda x: torch.func.jvp(lambda x: torchlosses.cee_loss(x, INDICES), (x,), (x,)),
    "vmap": torch.func.vmap(lambda x: torchlosses.cee_loss(x.unsqueeze(0), INDICES[:1])),
    "dual tensors": in_a_dual_level,
}


@pytest.mark.usefixtures("each_backend")
@pytest.mark.parametrize("way", WAYS)
def test_of_values_that_are_no_probabilities(way: str) -> None:
    """A ValueError that says which, also where LibTorch has another type for what a compiled operator throws."""
    with pytest.raises(ValueError, match=r"^cee_loss: .*ranges from -2 to "):
        WAYS[way](X)


def record() -> None:
    """Put the types of the installed torch beside those of others."""
    types = {call.id: dict(sorted(types_of(call.id, *call.values).items())) for call in calls()}
    lines = (f"{json.dumps(call)}: {json.dumps(by_version)}" for call, by_version in types.items())
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    record()

"""Nothing waits for a device: where there is no memory, whoever asks for a value gets an error.

Tensors stand on the device `meta`, which is not the CPU, so that all takes the way of a GPU: the public functions with
their autograd, whose operators give shapes; and the operators' own steps in Python, which launch nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import torchlosses
from tests.kernels.on_meta import Steps
from torchlosses.distributed import class_parallel_cross_entropy, class_parallel_linear_cross_entropy

ROWS, CLASSES, FEATURES = 6, 5, 3

COMMON: list[dict[str, Any]] = [{}, {"reduction": "sum"}, {"reduction": "none"}, {"gradient": "backward"}]
OF_ROWS = [
    *COMMON,
    {"label_smoothing": 0.1, "z_loss": 0.1, "logit_scale": 0.5, "logit_softcap": 3.0, "return_stats": True},
    {"weight": True, "sample_weight": True, "empty": "zero"},
    {"normalizer": True, "loss_dtype": torch.float64},
    {"normalizer": 3.0},
]
OF_SAMPLES = [*COMMON, {"sample_weight": True, "empty": "zero"}, {"normalizer": True}]
OF_ELEMENTS = [*COMMON, {"sample_weight": "column", "empty": "zero"}, {"normalizer": True}]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def leaf(*shape: int) -> Tensor:
    return meta(*shape).requires_grad_()


INDICES, PROBABILITIES = meta(ROWS, dtype=torch.int64), meta(ROWS, CLASSES)
OPTIONAL = {"weight": meta(CLASSES), "sample_weight": meta(ROWS), "normalizer": meta()}


def given(options: dict[str, Any]) -> dict[str, Any]:
    found = {name: OPTIONAL[name] if value is True and name in OPTIONAL else value for name, value in options.items()}
    return {**found, "sample_weight": meta(ROWS, 1)} if found.get("sample_weight") == "column" else found


def of(function: Callable[..., Any], *shapes: tuple[int, ...], **names: tuple[int, ...]) -> Callable[..., Any]:
    """A call on leaves of these shapes: gives them, and what the function gives."""

    def call(target: Tensor, **options: Any) -> tuple[list[Tensor], Any]:
        leaves, named = [leaf(*shape) for shape in shapes], {name: leaf(*shape) for name, shape in names.items()}
        return [*leaves, *named.values()], function(*leaves, target=target, **named, **options)

    return call


LOGITS = (ROWS, CLASSES)
LAYER = {"linear_weight": (CLASSES, FEATURES), "linear_bias": (CLASSES,)}


def of_indices(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *leaves, target, **options: function(*leaves, target=INDICES, **options)


def of_layer(logits: Tensor, target: Tensor, **options: Any) -> Any:
    """Of logits that may be written over."""
    return torchlosses.cross_entropy(logits * 2, target, **options)


def of_elements(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *leaves, target, **options: function(*leaves, target=PROBABILITIES, **options)


def of_teacher(*leaves: Tensor, target: Tensor, **options: Any) -> Any:
    return torchlosses.linear_kl_div(*leaves, teacher_logits=meta(*LOGITS), **options)


CALLS: dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]] = {
    "cross_entropy": (of(of_layer, LOGITS), [*OF_ROWS, {"inplace_backward": True}]),
    "class_parallel_cross_entropy": (of(class_parallel_cross_entropy, LOGITS), OF_ROWS),
    "linear_cross_entropy": (
        of(torchlosses.linear_cross_entropy, (ROWS, FEATURES), **LAYER),
        [*OF_ROWS, {"low_rank": (meta(2, FEATURES), meta(CLASSES, 2), 0.5), "block_rows": 2}],
    ),
    "class_parallel_linear_cross_entropy": (
        of(class_parallel_linear_cross_entropy, (ROWS, FEATURES), **LAYER),
        OF_ROWS,
    ),
    # `validate_args` is there to look.
    "cee_loss": (of(partial(torchlosses.cee_loss, validate_args=False), LOGITS), OF_SAMPLES),
    "log_probs": (of(of_indices(torchlosses.log_probs), LOGITS), [{}, {"logit_softcap": 2.0}]),
    "linear_log_probs": (
        of(of_indices(torchlosses.linear_log_probs), (ROWS, FEATURES), **LAYER),
        [{}, {"block_rows": 2, "logit_softcap": 2.0}],
    ),
    "linear_kl_div": (
        of(of_teacher, (ROWS, FEATURES), (CLASSES, FEATURES)),
        [{}, {"sample_weight": True, "block_rows": 2, "reduction": "none"}],
    ),
    **{
        name: (of(of_elements(getattr(torchlosses, name)), LOGITS), OF_ELEMENTS)
        for name in ("mse_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits")
    },
}


@pytest.fixture(params=["shapes", "eager", "triton"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps | None]:
    """How far down the calls go: to the operators, or to the kernels, whose launches come to nothing."""
    if request.param == "shapes":
        yield None
        return
    steps = Steps()
    if request.param == "eager":
        with steps:
            yield steps
        return
    pytest.importorskip("triton")
    with steps.in_triton(monkeypatch):
        yield steps


@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("name", CALLS)
def test_no_value_is_read(name: str, kind: str, steps: Steps | None) -> None:
    call, sets = CALLS[name]
    target = INDICES if kind == "indices" else PROBABILITIES
    for options in sets:
        for further in (False, True)[: 1 if "inplace_backward" in options else 2]:
            leaves, output = call(target, **given(options))
            loss = output if isinstance(output, Tensor) else output[0]
            gradients = torch.autograd.grad(loss, leaves, meta().expand(loss.shape), create_graph=further)
            assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in leaves]
    assert steps is None or {name, f"{name}_backward"} <= steps.taken
    # An assertion on the device names the function that was called.
    assert steps is None or steps.named - {""} <= {name}


@pytest.mark.parametrize("steps", ["triton"], indirect=True)
@pytest.mark.parametrize("name", [name for name in CALLS if name.endswith(("cross_entropy", "log_probs"))])
def test_what_is_asserted_names_the_function(name: str, steps: Steps) -> None:
    CALLS[name][0](INDICES)
    assert steps.named - {""} == {name}


def test_asking_for_a_value_would_be_an_error() -> None:
    for ask in (Tensor.item, Tensor.tolist, Tensor.nonzero, Tensor.cpu, bool, lambda tensor: meta(3)[meta(3) > 0]):
        with pytest.raises((RuntimeError, NotImplementedError)):
            ask(meta(1))

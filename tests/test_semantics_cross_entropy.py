"""The behaviour of cross_entropy and CrossEntropyLoss, corner by corner, beside that of torch.nn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchlosses import CrossEntropyLoss, cee_loss, cross_entropy, mse_loss

pytestmark = pytest.mark.usefixtures("each_backend")

INF, NAN = math.inf, math.nan


def _logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _loss_and_gradient(input: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = input.clone().requires_grad_()
    loss = cross_entropy(leaf, *arguments, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 3.0])])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_all_rows_ignored(reduction: Any, weight: Tensor | None, label_smoothing: float) -> None:
    options = {"reduction": reduction, "weight": weight, "label_smoothing": label_smoothing}
    loss, gradient = _loss_and_gradient(_logits(4, 3), torch.full((4,), -100), **options)
    expected = F.cross_entropy(_logits(4, 3), torch.full((4,), -100), **options)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    assert loss.isnan().all() == (reduction == "mean")
    assert (gradient == 0).all()


def test_all_weights_zero() -> None:
    loss, gradient = _loss_and_gradient(_logits(2, 3), torch.tensor([0, 1]), torch.zeros(3))
    assert loss.isnan()
    assert (gradient == 0).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (0, 3, 4, 5), (0, 0)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("soft", [False, True])
def test_empty_batch(shape: tuple[int, ...], reduction: Any, soft: bool) -> None:
    target = torch.zeros(shape) if soft else torch.zeros(shape[0], *shape[2:], dtype=torch.long)
    loss, gradient = _loss_and_gradient(torch.zeros(shape), target, reduction=reduction)
    expected = F.cross_entropy(torch.zeros(shape), target, reduction=reduction)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    assert gradient.shape == shape


def test_no_classes() -> None:
    with pytest.raises(IndexError, match="Target 0 is out of bounds"):
        cross_entropy(torch.zeros(2, 0), torch.zeros(2, dtype=torch.long))
    assert cross_entropy(torch.zeros(2, 0), torch.zeros(2, 0)).isnan()
    assert cross_entropy(torch.zeros(2, 0), torch.zeros(2, 0), reduction="sum") == 0


@pytest.mark.parametrize(
    ("target", "ignore_index", "message"),
    [
        ([1, 2, 3], -100, r"Target 3 is out of bounds.*position \(2,\).*3 classes.*target - 1"),
        ([0, 255, 1], -100, r"Target 255 is out of bounds.*position \(1,\).*ignore_index=255"),
        ([0, -1, 1], -100, r"Target -1 is out of bounds.*position \(1,\).*ignore_index=-1"),
        ([0, 7, -100], -100, r"Target 7 is out of bounds.*0 to 2.*as many classes"),
        ([0, -100, 1], 255, r"Target -100 is out of bounds"),
    ],
)
def test_target_out_of_range(target: list[int], ignore_index: int, message: str) -> None:
    with pytest.raises(IndexError, match=message):
        cross_entropy(_logits(3, 3), torch.tensor(target), ignore_index=ignore_index)


def test_target_out_of_range_names_the_position_in_an_image() -> None:
    target = torch.zeros(2, 4, 5, dtype=torch.long)
    target[1, 2, 3] = 9
    with pytest.raises(IndexError, match="Target 9 is out of bounds"):
        cross_entropy(_logits(2, 3, 4, 5), target)


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64],
)
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 3, 5)])
def test_every_integer_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    rows = () if len(shape) == 1 else (shape[0], *shape[2:])
    target = torch.ones(rows, dtype=torch.long)
    expected = F.cross_entropy(_logits(*shape), target)
    torch.testing.assert_close(cross_entropy(_logits(*shape), target.to(dtype)), expected)


def test_ignore_index_in_range_of_the_classes() -> None:
    target = torch.tensor([0, 1, 2, 1])
    expected = F.cross_entropy(_logits(4, 3), target, ignore_index=1)
    torch.testing.assert_close(cross_entropy(_logits(4, 3), target, ignore_index=1), expected)


WRONG_CALLS: dict[str, tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = {
    "input without dimensions": (RuntimeError, "without dimensions", (torch.tensor(0.0), torch.tensor(0)), {}),
    "integer target of the input's shape": (
        RuntimeError,
        "Expected floating point type for target with class probabilities, got Long.*one-hot",
        (_logits(2, 3), torch.zeros(2, 3, dtype=torch.long)),
        {},
    ),
    "floating target of the indices' shape": (
        RuntimeError,
        "expected target dtype to be Long or Byte.*got Float",
        (_logits(2, 3), torch.zeros(2)),
        {},
    ),
    "bool target": (RuntimeError, "got Bool", (_logits(2, 3), torch.zeros(2, dtype=torch.bool)), {}),
    "ignore_index with probabilities": (
        RuntimeError,
        "ignore_index is not supported for floating point target",
        (_logits(2, 3), torch.full((2, 3), 1 / 3)),
        {"ignore_index": 1},
    ),
    "batch sizes differ": (
        ValueError,
        r"Expected input batch_size \(5\) to match target batch_size \(3\)",
        (_logits(5, 3), torch.zeros(3, dtype=torch.long)),
        {},
    ),
    "target without dimensions for a batch": (
        ValueError,
        r"Expected input batch_size \(2\) to match target batch_size \(0\)",
        (_logits(2, 3), torch.tensor(1)),
        {},
    ),
    "two targets for one vector": (
        ValueError,
        "For 1D input, 1D target must have size 1",
        (_logits(3), torch.tensor([1, 1])),
        {},
    ),
    "sizes of the positions differ": (
        RuntimeError,
        r"Expected target size \[2, 5\].*got \[2, 4\]",
        (_logits(2, 3, 5), torch.zeros(2, 4, dtype=torch.long)),
        {},
    ),
    "one index too many dimensions": (
        RuntimeError,
        r"Expected target size \[2\].*got \[2, 1\]",
        (_logits(2, 3), torch.zeros(2, 1, dtype=torch.long)),
        {},
    ),
    "weight of the wrong length": (
        RuntimeError,
        r"weight tensor should be defined either for all 3 classes or no classes but got weight tensor of shape: \[2\]",
        (_logits(2, 3), torch.tensor([0, 1]), torch.ones(2)),
        {},
    ),
    "weight of the wrong dtype with indices": (
        RuntimeError,
        "expected scalar type Float but found Double",
        (_logits(2, 3), torch.tensor([0, 1]), torch.ones(3, dtype=torch.float64)),
        {},
    ),
    "unknown reduction": (
        ValueError,
        "'avg' is not a valid value for reduction",
        (_logits(2, 3), torch.tensor([0, 1])),
        {"reduction": "avg"},
    ),
    "integer input": (
        NotImplementedError,
        "not implemented for Long input",
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 1])),
        {},
    ),
    "complex input": (
        NotImplementedError,
        "not implemented for ComplexFloat input",
        (torch.zeros(2, 3, dtype=torch.complex64), torch.tensor([0, 1])),
        {},
    ),
    "target on another device": (
        RuntimeError,
        "input is on cpu and target on meta",
        (_logits(2, 3), torch.zeros(2, dtype=torch.long, device="meta")),
        {},
    ),
    "target that is no tensor": (TypeError, "target must be a Tensor, but got list", (_logits(2, 3), [0, 1]), {}),
}


@pytest.mark.parametrize(("error", "message", "arguments", "options"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_wrong_call(error: type[Exception], message: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """The error is of torch's own type, and says what is wrong."""
    with pytest.raises(error, match=message):
        cross_entropy(*arguments, **options)
    with pytest.raises(error):
        F.cross_entropy(*arguments, **options)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.1, NAN, INF])
def test_label_smoothing_outside_its_range(label_smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must be between 0.0 and 1.0, but got"):
        cross_entropy(_logits(2, 3), torch.tensor([0, 1]), label_smoothing=label_smoothing)
    with pytest.raises(ValueError, match=r"label_smoothing must be between 0.0 and 1.0, but got"):
        CrossEntropyLoss(label_smoothing=label_smoothing)


def test_options_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match="label_smoothing must be a float"):
        CrossEntropyLoss(label_smoothing="0.1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ignore_index must be an int"):
        CrossEntropyLoss(ignore_index=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ignore_index must be an int"):
        CrossEntropyLoss(ignore_index=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'avg' is not a valid value for reduction"):
        CrossEntropyLoss(reduction="avg")  # type: ignore[arg-type]
    for z_loss in (None, "", []):
        with pytest.raises(TypeError, match="z_loss must be a float"):
            cross_entropy(_logits(4, 3), torch.tensor([0, 1, 2, 0]), z_loss=z_loss)  # type: ignore[call-overload]


@pytest.mark.parametrize("legacy", [{"size_average": True}, {"size_average": False}, {"reduce": False}])
def test_legacy_options_name_reduction(legacy: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="reduction="):
        CrossEntropyLoss(**legacy)
    with pytest.raises(TypeError, match="reduction="):
        cross_entropy(_logits(2, 3), torch.tensor([0, 1]), **legacy)


def test_positional_arguments_keep_the_places_they_have_in_torch() -> None:
    arguments = (torch.tensor([1.0, 2.0, 3.0]), None, 1, None, "sum", 0.1)
    target = torch.tensor([0, 1, 2, 2])
    expected = F.cross_entropy(_logits(4, 3), target, *arguments)
    torch.testing.assert_close(cross_entropy(_logits(4, 3), target, *arguments), expected)
    torch.testing.assert_close(CrossEntropyLoss(*arguments)(_logits(4, 3), target), expected)


def test_vector_with_a_target_of_one_element() -> None:
    for reduction in ("mean", "sum", "none"):
        ours = cross_entropy(_logits(3), torch.tensor([1]), reduction=reduction)  # type: ignore[arg-type]
        expected = F.cross_entropy(_logits(3), torch.tensor([1]), reduction=reduction)
        assert ours.shape == expected.shape == ()
        torch.testing.assert_close(ours, expected)


def test_minus_infinity_away_from_the_target_rules_a_class_out() -> None:
    loss, gradient = _loss_and_gradient(torch.tensor([[1.0, -INF, 0.5]]), torch.tensor([0]))
    kept, kept_gradient = _loss_and_gradient(torch.tensor([[1.0, 0.5]]), torch.tensor([0]))
    torch.testing.assert_close(loss, kept)
    torch.testing.assert_close(gradient[:, [0, 2]], kept_gradient)
    assert gradient[0, 1] == 0


def test_minus_infinity_at_the_target() -> None:
    for target in (torch.tensor([1]), torch.tensor([[0.0, 1.0, 0.0]])):
        loss, gradient = _loss_and_gradient(torch.tensor([[1.0, -INF, 0.5]]), target)
        assert loss == INF
        assert gradient.isfinite().all()
        assert gradient[0, 1] == -1


def test_minus_infinity_where_a_probability_target_is_zero() -> None:
    """torch gives nan here: 0 · log 0."""
    logits, target = torch.tensor([[1.0, -INF, 0.5]]), torch.tensor([[0.75, 0.0, 0.25]])
    loss, gradient = _loss_and_gradient(logits, target)
    kept, kept_gradient = _loss_and_gradient(logits[:, [0, 2]], target[:, [0, 2]])
    torch.testing.assert_close(loss, kept)
    torch.testing.assert_close(gradient[:, [0, 2]], kept_gradient)
    assert F.cross_entropy(logits, target).isnan()


@pytest.mark.parametrize("value", [INF, NAN])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_infinity_and_nan_give_nan(value: float, place: int, soft: bool, label_smoothing: float) -> None:
    logits = _logits(2, 3)
    logits[0, place] = value
    target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]) if soft else torch.tensor([0, 1])
    loss, gradient = _loss_and_gradient(logits, target, reduction="none", label_smoothing=label_smoothing)
    assert loss.isnan().tolist() == [True, False]
    assert gradient[0].isnan().all()
    assert gradient[1].isfinite().all()


@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_one_class(value: float) -> None:
    for target in (torch.tensor([0]), torch.tensor([[1.0]])):
        loss, gradient = _loss_and_gradient(torch.tensor([[5.0]]), target)
        assert loss == 0
        assert gradient == 0
        loss, gradient = _loss_and_gradient(torch.tensor([[value]]), target)
        assert loss.isnan()
        assert gradient.isnan()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 3.0])])
def test_ignored_row_equals_a_removed_row_whatever_it_holds(
    value: float, weight: Tensor | None, label_smoothing: float
) -> None:
    logits, target = _logits(4, 3), torch.tensor([0, 1, -100, 2])
    logits[2] = value
    options = {"weight": weight, "label_smoothing": label_smoothing}
    loss, gradient = _loss_and_gradient(logits, target, **options)
    keep = [0, 1, 3]
    kept, kept_gradient = _loss_and_gradient(logits[keep], target[keep], **options)
    torch.testing.assert_close(loss, kept)
    torch.testing.assert_close(gradient[keep], kept_gradient)
    assert (gradient[2] == 0).all()


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("weightless", [False, True])
@pytest.mark.parametrize(
    "options", [{"logit_softcap": 5.0}, {"logit_scale": 0.0}, {"logit_scale": -2.0, "logit_softcap": 5.0}], ids=str
)
def test_hidden_rows_leave_no_trace_under_a_scale_and_a_soft_cap(
    value: float, weightless: bool, options: dict[str, Any]
) -> None:
    logits, target = _logits(4, 3, dtype=torch.float64), torch.tensor([0, 1, -100, 2])
    logits[2] = value
    if weightless:
        target[2] = 1
        options = {**options, "sample_weight": torch.tensor([1.0, 1.0, 0.0, 1.0])}

    def loss(logits: Tensor) -> Tensor:
        return cross_entropy(logits, target, **options)

    keep = [0, 1, 3]
    plain = {name: option for name, option in options.items() if name != "sample_weight"}
    for derivative in (torch.func.grad, torch.func.hessian):
        found = derivative(loss)(logits)
        expected = derivative(lambda kept: cross_entropy(kept, target[keep], **plain))(logits[keep])
        if derivative is torch.func.hessian:
            assert (found[2] == 0).all()
            assert (found[:, :, 2] == 0).all()
            found = found[keep][:, :, keep]
        else:
            assert (found[2] == 0).all()
            found = found[keep]
        torch.testing.assert_close(found, expected)
    _, gradient = _loss_and_gradient(logits, target, **options)
    assert (gradient[2] == 0).all()


def test_row_of_weight_zero_equals_a_removed_row() -> None:
    logits, target = _logits(4, 3), torch.tensor([0, 1, 2, 1])
    logits[2] = NAN
    weight = torch.tensor([1.0, 2.0, 0.0])
    loss, gradient = _loss_and_gradient(logits, target, weight)
    keep = [0, 1, 3]
    kept, kept_gradient = _loss_and_gradient(logits[keep], target[keep], weight)
    torch.testing.assert_close(loss, kept)
    torch.testing.assert_close(gradient[keep], kept_gradient)
    assert (gradient[2] == 0).all()


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_large_logits(soft: bool, weighted: bool) -> None:
    """The loss does not depend on a shift of the row, however large."""
    logits = torch.tensor([[1e4, 9.999e3, -1e4], [0.0, 1.0, 2.0]], dtype=torch.float64)
    target = torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]]).double() if soft else torch.tensor([1, 0])
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64) if weighted else None
    shift = torch.tensor([[1e4], [-3e3]], dtype=torch.float64)
    for label_smoothing in (0.0, 0.1):
        options = {"weight": weight, "label_smoothing": label_smoothing}
        loss, gradient = _loss_and_gradient(logits, target, **options)
        shifted_loss, shifted_gradient = _loss_and_gradient(logits - shift, target, **options)
        torch.testing.assert_close(loss, shifted_loss)
        torch.testing.assert_close(gradient, shifted_gradient)
        assert gradient.isfinite().all()


def test_mixed_floating_dtypes_of_logits_and_probabilities() -> None:
    for input_dtype, target_dtype in (
        (torch.float32, torch.float64),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
    ):
        input = _logits(4, 3, dtype=input_dtype).requires_grad_()
        target = _logits(4, 3).flip(0).softmax(1).to(target_dtype)
        loss = cross_entropy(input, target)
        expected = F.cross_entropy(_logits(4, 3, dtype=input_dtype), target)
        assert loss.dtype == expected.dtype == torch.promote_types(input_dtype, target_dtype)
        loss.backward()
        assert input.grad is not None
        assert input.grad.dtype == input_dtype
        torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-3, atol=1e-3)


def test_class_weight_takes_a_gradient_with_class_indices() -> None:
    """torch raises here; by hand: the weighted mean's derivative by w_c is (Σ_{y=c} nll - n_c loss) / Σ w_y."""
    logits, target = _logits(5, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 2, -100])
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    loss = cross_entropy(logits, target, weight)
    loss.backward()
    nll = cross_entropy(logits[:4], target[:4], reduction="none")
    total = weight.detach()[target[:4]].sum()
    for c in range(3):
        chosen = target[:4] == c
        expected = (nll[chosen].sum() - chosen.sum() * loss.detach()) / total
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad[c], expected)
    with pytest.raises(RuntimeError):
        F.cross_entropy(logits, target, weight).backward()


def test_probability_target_equals_index_target_for_one_hot() -> None:
    logits, target = _logits(6, 5) * 30, torch.arange(6) % 5
    for options in ({}, {"label_smoothing": 0.2}, {"reduction": "sum", "weight": torch.rand(5)}):
        index = _loss_and_gradient(logits, target, **options)
        one_hot = _loss_and_gradient(logits, F.one_hot(target, 5).float(), **options)
        torch.testing.assert_close(index, one_hot, rtol=1e-5, atol=0)


def test_smoothing_of_one_ignores_the_target() -> None:
    logits = _logits(4, 3)
    first = cross_entropy(logits, torch.tensor([0, 1, 2, 0]), label_smoothing=1.0)
    second = cross_entropy(logits, torch.tensor([2, 2, 2, 2]), label_smoothing=1.0)
    torch.testing.assert_close(first, second)


def test_module_shows_its_options() -> None:
    module = CrossEntropyLoss(torch.ones(3), ignore_index=2, label_smoothing=0.1)
    assert repr(module) == ("CrossEntropyLoss(weight=(3,), ignore_index=2, reduction='mean', label_smoothing=0.1)")
    assert list(module.state_dict()) == list(torch.nn.CrossEntropyLoss(torch.ones(3)).state_dict()) == ["weight"]


def test_options_of_numpy_and_tensor_type() -> None:
    """torch takes whatever counts as an int or a float."""
    logits, target = _logits(4, 3), torch.tensor([0, 1, 2, 1])
    expected = F.cross_entropy(logits, target, ignore_index=1, label_smoothing=0.5)
    pairs: list[tuple[Any, Any]] = [(np.int64(1), np.float32(0.5)), (torch.tensor(1), torch.tensor(0.5)), (True, 0.5)]
    for index, smoothing in pairs:
        torch.testing.assert_close(
            cross_entropy(logits, target, ignore_index=index, label_smoothing=smoothing), expected
        )
        module = CrossEntropyLoss(ignore_index=index, label_smoothing=smoothing)
        torch.testing.assert_close(module(logits, target), expected)
        assert (type(module.ignore_index), type(module.label_smoothing)) in ((int, float), (bool, float))


def test_no_classes_with_weights() -> None:
    for label_smoothing in (0.0, 0.1):
        loss = cross_entropy(torch.zeros(2, 0), torch.full((2,), -100), torch.zeros(0), label_smoothing=label_smoothing)
        assert loss.isnan()


@pytest.mark.parametrize("shape", [(0,), (4, 0), (4, 0, 3), (0, 0)])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
def test_every_derivative_without_classes(shape: tuple[int, ...], soft: bool, reduction: Any, options: Any) -> None:
    rows = (shape[0], *shape[2:]) if len(shape) > 1 else ()
    input, weight = torch.zeros(shape, requires_grad=True), torch.zeros(0, requires_grad=True)
    target = torch.zeros(shape, requires_grad=True) if soft else torch.full(rows, -100)
    sample_weight = torch.ones(rows, requires_grad=True)
    loss = cross_entropy(input, target, weight, reduction=reduction, sample_weight=sample_weight, **options)
    assert loss.isnan() if reduction == "mean" else (loss == 0).all()
    followed = [tensor for tensor in (input, target, weight, sample_weight) if tensor.requires_grad]
    first = torch.autograd.grad(loss.sum(), followed, create_graph=True)
    second = torch.autograd.grad(torch.stack([part.sum() for part in first]).sum(), followed, materialize_grads=True)
    for tensor, *gradients in zip(followed, first, second, strict=True):
        for gradient in gradients:
            torch.testing.assert_close(gradient.detach(), torch.zeros_like(tensor.detach()))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(NotImplementedError, match=r"not implemented for float8.*expected float32"):
        cross_entropy(torch.zeros(2, 3).to(dtype), torch.tensor([0, 1]))
    with pytest.raises(NotImplementedError, match="expected float32"):
        cee_loss(torch.zeros(2, 3).to(dtype), torch.tensor([0, 1]))
    with pytest.raises(NotImplementedError, match="expected float32"):
        mse_loss(torch.zeros(2, 3).to(dtype), torch.zeros(2, 3).to(dtype))


def test_tensor_subclasses_and_symbolic_tracing() -> None:
    """The functions take part in __torch_function__, as torch's do: a subclass sees them, torch.fx records them."""
    seen = []

    class Watched(Tensor):
        @classmethod
        def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(function)
            return super().__torch_function__(function, types, args, kwargs or {})

    logits, target = _logits(2, 3).as_subclass(Watched), torch.tensor([0, 1])
    probabilities = _logits(2, 3).softmax(1).as_subclass(Watched)
    cross_entropy(logits, target, torch.ones(3), ignore_index=1, reduction="sum", label_smoothing=0.1)
    mse_loss(logits, _logits(2, 3), reduction="sum")
    cee_loss(probabilities, target, reduction="sum")
    assert [f for f in seen if f in (cross_entropy, mse_loss, cee_loss)] == [cross_entropy, mse_loss, cee_loss]
    traced = torch.fx.symbolic_trace(CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1))
    assert cross_entropy in [node.target for node in traced.graph.nodes]
    expected = F.cross_entropy(_logits(2, 3), target, torch.tensor([1.0, 2.0, 3.0]), label_smoothing=0.1)
    torch.testing.assert_close(traced(_logits(2, 3), target), expected)

"""Values and gradients against NumPy float64 and mpmath, over the cases and over what hypothesis finds."""

from __future__ import annotations

import hypothesis.extra.numpy as numpy_strategies
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import oracles
from tests.cases import CASES_WITH_BUILTIN, ComparedLoss, identifier
from torchlosses import cee_loss, cross_entropy, mse_loss, reference

pytestmark = pytest.mark.usefixtures("each_backend")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES_WITH_BUILTIN, ids=identifier)
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_equals_the_builtin(case: ComparedLoss, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    options = {name: value for name, value in case.options.items() if name != "broadcast"}
    # torch has no gradient for class weights with class indices; the other gradients are compared.
    names = [n for n in case.differentiable if n != "weight" or tensors["target"].is_floating_point()]
    values, gradients = [], []
    for loss, arguments in ((case.ours, case.options), (case.builtin, options)):
        assert loss is not None
        leaves = {name: tensors[name].clone().requires_grad_() for name in names}
        value = loss(**{**tensors, **leaves}, **arguments)
        values.append(value.detach())
        # The same incoming gradient for both, and another for each loss.
        incoming = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
        gradients.append(torch.autograd.grad(value, tuple(leaves.values()), incoming))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@st.composite
def _rows(draw: st.DrawFn, bound: float = 50.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows, classes = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    logits = draw(
        numpy_strategies.arrays(np.float64, (rows, classes), elements=st.floats(-bound, bound, allow_subnormal=False))
    )
    target = draw(numpy_strategies.arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    weight = draw(numpy_strategies.arrays(np.float64, classes, elements=st.floats(0.1, 10)))
    return logits, target, weight


@given(_rows(), st.booleans(), st.booleans(), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from(["mean", "sum"]))
def test_cross_entropy_follows_the_definition(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray], weighted: bool, soft: bool, smoothing: float, reduction: str
) -> None:
    logits, target, weight = rows
    class_weight = weight if weighted else None
    if soft:
        target = reference.softmax(logits[:, ::-1] / 3)
    losses, gradients = oracles.cross_entropy_rows(logits, target, class_weight, label_smoothing=smoothing)
    denominator = oracles.cross_entropy_denominator(target, class_weight) if reduction == "mean" else 1.0
    input = torch.tensor(logits, requires_grad=True)
    loss = cross_entropy(
        input,
        torch.tensor(target),
        None if class_weight is None else torch.tensor(class_weight),
        reduction=reduction,  # type: ignore[arg-type]
        label_smoothing=smoothing,
    )
    loss.backward()
    assert input.grad is not None
    np.testing.assert_allclose(loss.item(), losses.sum() / denominator, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(input.grad.numpy(), gradients / denominator, rtol=1e-10, atol=1e-13)


@given(_rows(bound=700.0), st.sampled_from([np.float32, np.float64]))
def test_cross_entropy_is_right_relative_to_its_own_size(rows, dtype: type[np.floating]) -> None:
    """Every row's loss and target gradient, down to the smallest, against mpmath.

    exp(d) magnifies the rounding of d = x_j - max x by |d|, in any method; that much is allowed on top of 8 ulp.
    """
    logits, target, _ = rows
    logits = logits.astype(dtype)
    input = torch.tensor(logits, requires_grad=True)
    losses = cross_entropy(input, torch.tensor(target), reduction="none")
    losses.sum().backward()
    assert input.grad is not None
    smallest = float(np.finfo(dtype).tiny)
    for n, index in enumerate(target):
        truth, gradient = oracles.exact_cross_entropy(list(logits[n]), int(index))
        allowed = 8 + float(logits[n].max() - logits[n].min())
        if truth > smallest:
            assert oracles.ulps(losses[n].item(), truth, dtype) <= allowed
        at_target = -gradient[index]
        if at_target > smallest:
            assert oracles.ulps(-input.grad[n, index].item(), at_target, dtype) <= allowed


def test_confident_tail_in_float32() -> None:
    """torch.nn gives exactly 0 here."""
    for margin in (10.0, 20.0, 40.0, 80.0):
        input = torch.tensor([margin, 0.0, 0.5], requires_grad=True)
        for target in (torch.tensor(0), torch.tensor([1.0, 0.0, 0.0])):
            loss = cross_entropy(input, target)
            (grad,) = torch.autograd.grad(loss, input)
            truth, gradient = oracles.exact_cross_entropy([margin, 0.0, 0.5], 0)
            assert oracles.ulps(loss.item(), truth, np.float32) <= 8
            assert oracles.ulps(grad[0].item(), gradient[0], np.float32) <= 8


@given(
    st.integers(1, 40).flatmap(
        lambda n: st.tuples(*[numpy_strategies.arrays(np.float64, n, elements=st.floats(-1e3, 1e3))] * 2)
    )
)
def test_mse_follows_the_definition(pair: tuple[np.ndarray, np.ndarray]) -> None:
    y, t = pair
    input, target = torch.tensor(y, requires_grad=True), torch.tensor(t, requires_grad=True)
    loss = mse_loss(input, target)
    loss.backward()
    assert input.grad is not None
    assert target.grad is not None
    np.testing.assert_allclose(loss.item(), reference.mean_squared_error(y, t), rtol=1e-13)
    np.testing.assert_allclose(input.grad.numpy(), reference.mean_squared_error_gradient(y, t), rtol=1e-13)
    np.testing.assert_allclose(target.grad.numpy(), -reference.mean_squared_error_gradient(y, t), rtol=1e-13)


@given(_rows(), st.sampled_from([1e-7, 1e-3, 0.0]), st.booleans())
def test_cee_follows_the_definition(rows, delta: float, one_hot: bool) -> None:
    logits, target, _ = rows
    probabilities = reference.softmax(logits / 10)
    given_target = np.eye(logits.shape[1])[target] if one_hot else target
    input = torch.tensor(probabilities, requires_grad=True)
    loss = cee_loss(input, torch.tensor(given_target), delta=delta)
    loss.backward()
    assert input.grad is not None
    np.testing.assert_allclose(
        loss.item(), reference.cross_entropy_error(probabilities, target, delta), rtol=1e-11, atol=1e-15
    )
    np.testing.assert_allclose(
        input.grad.numpy(), reference.cross_entropy_error_gradient(probabilities, target, delta), rtol=1e-12
    )


@given(st.floats(0, 1, width=32), st.sampled_from([1e-7, 1e-3]))
def test_cee_keeps_delta_next_to_one(probability: float, delta: float) -> None:
    """p + δ would lose δ's digits in float32; log1p((p - 1) + δ) does not."""
    loss = cee_loss(torch.tensor([probability]), torch.tensor(0), delta=delta).item()
    truth = oracles.exact_textbook_cross_entropy(probability, delta)
    assert abs(loss - truth) <= 4 * float(np.finfo(np.float32).eps) * abs(truth) + 1e-7 * delta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES_WITH_BUILTIN, ids=identifier)
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_low_precision_rounds_once(case: ComparedLoss, dtype: torch.dtype) -> None:
    """The loss is the float32 loss of the same numbers, rounded to the dtype; so are the gradients."""
    tensors = case.tensors(dtype)
    wide = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    narrow_leaves, wide_leaves = case.leaves(tensors), case.leaves(wide)
    narrow_loss, wide_loss = case.function(tensors)(*narrow_leaves), case.function(wide)(*wide_leaves)
    assert narrow_loss.dtype == dtype
    torch.testing.assert_close(narrow_loss, wide_loss.to(dtype), rtol=0, atol=0)
    weights = torch.cos(wide_loss.detach() * 3)
    for narrow, exact in zip(
        torch.autograd.grad(narrow_loss, narrow_leaves, weights.to(dtype)),
        torch.autograd.grad(wide_loss, wide_leaves, weights.to(dtype).float()),
        strict=True,
    ):
        assert narrow.dtype == dtype
        # Where an input was broadcast, autograd adds up gradients that are rounded already.
        tolerance = 2 * torch.finfo(dtype).eps
        smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        absolute = tolerance * exact.abs().max().item() + smallest
        torch.testing.assert_close(narrow.float(), exact, rtol=tolerance, atol=absolute)


def test_low_precision_mean_over_many_rows() -> None:
    """torch accumulates in bfloat16 here and is off by almost one percent."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4096, 1000, generator=generator).bfloat16()
    target = torch.randint(1000, (4096,), generator=generator)
    truth = oracles.cross_entropy_rows(logits.double().numpy(), target.numpy())[0].mean()
    assert abs(cross_entropy(logits, target).item() - truth) <= torch.finfo(torch.bfloat16).eps * truth / 2
    half = torch.full((4, 1000), 5.0, dtype=torch.float16)
    assert cross_entropy(half, target[:4], label_smoothing=0.5).item() == pytest.approx(np.log(1000), rel=1e-3)


def test_wide_rows_lose_no_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 128256, generator=generator) * 3
    target = torch.randint(128256, (4,), generator=generator)
    truth, gradient = oracles.cross_entropy_rows(logits.double().numpy(), target.numpy())
    input = logits.requires_grad_()
    losses = cross_entropy(input, target, reduction="none")
    losses.sum().backward()
    assert input.grad is not None
    np.testing.assert_allclose(losses.detach().numpy(), truth, rtol=4e-7)
    np.testing.assert_allclose(input.grad.numpy(), gradient, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gradient_of_a_mean_over_many_is_rounded_once(dtype: torch.dtype) -> None:
    """1/n is rounded to float32, not to the dtype: in float16, 1e-5 has seven bits left."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(100_003, 2, generator=generator)
    probabilities, target = (logits.softmax(1) * 0.01).to(dtype), torch.ones(100_003, 2).to(dtype)
    errors = (500 * logits).to(dtype)
    for loss, input, other, expected in (
        (mse_loss, errors, torch.zeros_like(errors), 2 * errors.double() / errors.numel()),
        (cee_loss, probabilities, target, -1 / (probabilities.double() + 1e-7) / len(probabilities)),
    ):
        leaf = input.clone().requires_grad_()
        loss(leaf, other).backward()
        assert leaf.grad is not None
        half_ulp = torch.finfo(dtype).eps / 2
        smallest = torch.finfo(dtype).tiny * torch.finfo(dtype).eps
        torch.testing.assert_close(leaf.grad.double(), expected, rtol=1.01 * half_ulp, atol=smallest)

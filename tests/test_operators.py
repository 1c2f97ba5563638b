"""The operators of the torch.library namespace `torchlosses`: their registration, their blocks and their memory."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import torchlosses
from tests.turns import in_turn
from torchlosses import kernels
from torchlosses._declare import LIBRARY, Loss
from torchlosses.binary_cross_entropy import BinaryCrossEntropy
from torchlosses.cee import TextbookCrossEntropy
from torchlosses.cross_entropy import CrossEntropy
from torchlosses.huber import Huber, SmoothL1
from torchlosses.kernels import eager
from torchlosses.log_probs import LogProbabilities
from torchlosses.mse import SquaredError
from torchlosses.testing.checks.cost import peak_bytes

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("mean", "sum", "none")
SHAPES = ((4, 3), (2, 3, 5), (1, 1), (0, 3), (3, 2, 0))


def rows_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:1] + shape[2:]


def logits_of(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def probabilities_of(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.softmax(logits_of(shape, torch.float64).flip(0), 1).to(dtype)


def indices_of(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, shape[1], rows_of(shape), generator=torch.Generator().manual_seed(1))


def incoming_gradient(shape: tuple[int, ...], reduction: str, dtype: torch.dtype) -> Tensor:
    return torch.full(shape if reduction == "none" else (), 0.75, dtype=dtype)


Call = tuple[Any, tuple[Any, ...]]
OPERATORS = torch.ops.torchlosses


def calls_of(loss: type[Loss], tensors: tuple[Tensor | None, ...], reduction: str, *own: Any) -> Iterator[Call]:
    """The loss with and without its gradient, and the gradient in its two forms."""
    input = tensors[0]
    assert input is not None
    results = tuple(loss.results(input))
    for normalizer in (None, torch.tensor(2.5)) if reduction == "mean" else (None,):
        plain = loss.options(reduction, math.nan, input.dtype, 0, *own)
        for gradients in (0, 1) if reduction != "none" else (0,):
            yield loss.operator, (*tensors, normalizer, *plain._replace(gradients=gradients))
        state = loss.operator(*tensors, normalizer, *plain)[2:]
        grad = incoming_gradient(results, reduction, torch.float32)
        yield loss.backward_operator, (grad, *tensors, normalizer, *state, *plain)
        yield loss.backward_operator_, (grad, input.clone(), *tensors, normalizer, *state, *plain)


def elementwise_calls(loss: type[Loss], *own: Any) -> Callable[..., Iterator[Call]]:
    def calls(shape: tuple[int, ...], dtype: torch.dtype, reduction: str) -> Iterator[Call]:
        input, target = logits_of(shape, dtype), probabilities_of(shape, dtype)
        for weights in ((None, None), (probabilities_of(shape, dtype), None), (None, logits_of(shape, dtype).abs())):
            others = (None,) * (len(loss.tensors) - 4)
            yield from calls_of(loss, (input, target, *weights, *others), reduction, *own)

    return calls


def binary_calls(shape: tuple[int, ...], dtype: torch.dtype, reduction: str) -> Iterator[Call]:
    input, target = logits_of(shape, dtype), probabilities_of(shape, dtype)
    yield from calls_of(BinaryCrossEntropy, (input, target, None, None, None), reduction, None, 0.0)
    weights = (target, input.abs(), target + 1)
    yield from calls_of(BinaryCrossEntropy, (input, target, *weights), reduction, 0, 0.2)


def cross_entropy_calls(shape: tuple[int, ...], dtype: torch.dtype, reduction: str) -> Iterator[Call]:
    input = logits_of(shape, dtype)
    weight = torch.linspace(0.5, 2, shape[1], dtype=dtype)
    samples = torch.linspace(0, 1, math.prod(rows_of(shape))).reshape(rows_of(shape)).to(dtype)
    ignored = 1 if shape[1] > 1 else -100
    for target, weights, own in (
        (indices_of(shape), (None, None), (ignored, 0.0, 0.0, 1.0, None, False, False)),
        (indices_of(shape), (weight, None), (-100, 0.25, 0.0, 1.0, None, True, False)),
        (indices_of(shape), (None, samples), (ignored, 0.0, 0.1, 0.5, 1.5, True, False)),
        (probabilities_of(shape, dtype), (None, None), (-100, 0.0, 0.0, 1.0, None, False, False)),
        (probabilities_of(shape, dtype), (weight, samples), (-100, 0.25, 0.1, 2.0, 1.5, True, False)),
    ):
        yield from calls_of(CrossEntropy, (input, target, *weights), reduction, *own)


def cee_calls(shape: tuple[int, ...], dtype: torch.dtype, reduction: str) -> Iterator[Call]:
    input = probabilities_of(shape, dtype)
    one_hot = torch.zeros(shape, dtype=torch.int64).scatter_(1, indices_of(shape).unsqueeze(1), 1)
    samples = torch.linspace(0, 1, math.prod(rows_of(shape))).reshape(rows_of(shape)).to(dtype)
    for target in (indices_of(shape), one_hot, one_hot.to(dtype)):
        for delta, weights in ((1e-7, None), (0.0, samples)):
            yield from calls_of(TextbookCrossEntropy, (input, target, weights), reduction, delta, True)


def log_probs_calls(shape: tuple[int, ...], dtype: torch.dtype, reduction: str) -> Iterator[Call]:
    """Nothing is reduced, whatever is asked for."""
    for own in ((-100, 1.0, None), (1 if shape[1] > 1 else -100, 0.5, 1.5)):
        yield from calls_of(LogProbabilities, (logits_of(shape, dtype), indices_of(shape)), "none", *own)


CALLS: dict[str, Callable[..., Iterator[Call]]] = {
    "mse_loss": elementwise_calls(SquaredError),
    "huber_loss": elementwise_calls(Huber, 0.5),
    "smooth_l1_loss": elementwise_calls(SmoothL1, 0.5),
    "binary_cross_entropy_with_logits": binary_calls,
    "cross_entropy": cross_entropy_calls,
    "cee_loss": cee_calls,
    "log_probs": log_probs_calls,
}


every_loss_in_turn = pytest.mark.parametrize(
    ("each_backend", "loss"),
    in_turn(kernels.available(), {loss: (loss,) for loss in CALLS}),
    indirect=["each_backend"],
)


def result_of(operator: Any, arguments: Any) -> Any:
    """What an operator returns, or what it leaves in a copy of the input that it writes over."""
    if not operator.name().endswith("_"):
        return operator(*arguments)
    # An expanded input has no memory of its own to write to.
    written = torch.empty_strided(arguments[1].shape, dense_strides(arguments[1]), dtype=arguments[1].dtype)
    written.copy_(arguments[1])
    assert operator(arguments[0], written, *arguments[2:]) is None
    return written


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    return torch.empty_like(tensor).stride()


@pytest.mark.usefixtures("each_backend")
class TestRegistration:
    def test_every_operator_is_put_to_the_checks(self) -> None:
        checked = {
            operator.name().removeprefix("torchlosses::")
            for calls in CALLS.values()
            for operator, _ in calls((4, 3), torch.float32, "mean")
        }
        defined = {name.removeprefix("torchlosses::").partition(".")[0] for name in LIBRARY._op_defs}
        linear = {
            f"linear_{name}{end}" for name in ("cross_entropy", "log_probs", "kl_div") for end in ("", "_backward")
        }
        assert checked | linear | {"scaled_gradient"} == {
            # Those over processes have tests of their own.
            name
            for name in defined
            if not name.startswith(("eager_", "class_parallel")) and not name.endswith("_processes")
        }

    @pytest.mark.parametrize(
        ("each_backend", "loss", "shape", "reduction"),
        in_turn(
            kernels.available(),
            {
                f"{loss}-{shape}-{reduction}": (loss, shape, reduction)
                for loss, shape, reduction in itertools.product(CALLS, SHAPES, REDUCTIONS)
                # opcheck takes two nan for different, and the mean of nothing is nan.
                if reduction != "mean" or math.prod(shape)
            },
            lambda loss, shape, reduction: (
                reduction == REDUCTIONS[len(loss) % 3]
                if shape == (4, 3)
                else reduction == ("sum", "none")[len(shape) % 2] and SHAPES.index(shape) % 2 == len(loss) % 2
            ),
        ),
        indirect=["each_backend"],
    )
    def test_opcheck(self, loss: str, shape: tuple[int, ...], reduction: str) -> None:
        """Schema, autograd registration, fake tensors, and static and dynamic tracing, as torch.library checks them."""
        # Tracing is slow, and shapes, reductions and options do not interact.
        for operator, arguments in list(CALLS[loss](shape, torch.float32, reduction))[::5]:
            torch.library.opcheck(operator, arguments)

    @pytest.mark.thorough
    @pytest.mark.parametrize("loss", CALLS)
    def test_opcheck_of_every_call(self, loss: str) -> None:
        for operator, arguments in CALLS[loss]((4, 3), torch.float32, "mean"):
            torch.library.opcheck(operator, arguments)

    @pytest.mark.parametrize(
        ("each_backend", "loss", "dtype"),
        in_turn(
            kernels.available(),
            {f"{loss}-{dtype}": (loss, dtype) for loss, dtype in itertools.product(CALLS, DTYPES[1:])},
            lambda loss, dtype: dtype == DTYPES[1 + len(loss) % 3],
        ),
        indirect=["each_backend"],
    )
    def test_opcheck_of_other_dtypes(self, loss: str, dtype: torch.dtype) -> None:
        for operator, arguments in list(CALLS[loss]((4, 3), dtype, "none"))[::3]:
            torch.library.opcheck(operator, arguments)

    @every_loss_in_turn
    def test_opcheck_of_strided_inputs(self, loss: str) -> None:
        for operator, arguments in list(CALLS[loss]((4, 3, 2), torch.float32, "none"))[::3]:
            strided = tuple(
                a.transpose(0, -1).contiguous().transpose(0, -1) if isinstance(a, Tensor) and a.dim() else a
                for a in arguments
            )
            torch.library.opcheck(operator, strided)

    @pytest.mark.parametrize("loss", CALLS)
    def test_fake_outputs_have_the_layout_of_real_ones(self, loss: str) -> None:
        """Compiled code reads the real outputs with the strides that the fake ones promised."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        for operator, arguments in CALLS[loss]((4, 3, 2), torch.bfloat16, "none"):
            transposed = [
                a.transpose(0, -1).contiguous().transpose(0, -1) if isinstance(a, Tensor) and a.dim() else a
                for a in arguments
            ]
            real = operator(*transposed)
            with FakeTensorMode() as mode:
                fake = operator(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in transposed))
            if real is None:
                continue
            pairs = zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)]
            for actual, promised in pairs:
                assert (actual.shape, actual.stride(), actual.dtype) == (
                    promised.shape,
                    promised.stride(),
                    promised.dtype,
                )


@pytest.mark.usefixtures("each_backend")
class TestNumbersInATensor:
    """An overload that compiled graphs call: what it gives for numbers in a tensor is what the operator gives."""

    @every_loss_in_turn
    def test_it_equals_the_operator(self, loss: str) -> None:
        for operator, arguments in CALLS[loss]((4, 3), torch.float32, "mean"):
            of_numbers, given = with_numbers_in_a_tensor(operator, arguments)
            if of_numbers is not None:
                assert_close(of_numbers(*given), operator(*arguments), rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize(
        ("each_backend", "loss"),
        in_turn(
            kernels.available(), {loss: (loss,) for loss in CALLS}, lambda loss: loss in ("huber_loss", "cross_entropy")
        ),
        indirect=["each_backend"],
    )
    def test_opcheck(self, loss: str) -> None:
        for operator, arguments in list(CALLS[loss]((4, 3), torch.float64, "sum"))[::4]:
            of_numbers, given = with_numbers_in_a_tensor(operator, arguments)
            if of_numbers is not None:
                torch.library.opcheck(of_numbers, given)
                if operator.name() == f"torchlosses::{loss}":
                    torch.library.opcheck(of_numbers, (given[0].clone().requires_grad_(), *given[1:]))


def with_numbers_in_a_tensor(operator: Any, arguments: Any) -> tuple[Any, Any]:
    """The overload and its arguments, the options' numbers all in a tensor; None where there is none."""
    name = operator.name().removeprefix("torchlosses::").partition(".")[0]
    if "numbers" not in getattr(OPERATORS, name).overloads():
        return None, ()
    # The first float is no option: what a mean of nothing is.
    places = [i for i, a in enumerate(arguments) if isinstance(a, float)][1:]
    numbers = torch.tensor([arguments[i] for i in places], dtype=torch.float64)
    given = [math.nan if i in places else a for i, a in enumerate(arguments)]
    return getattr(OPERATORS, name).numbers, (*given, numbers)


class TestDerivativesOfAnOperator:
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # from opcheck itself
    @pytest.mark.usefixtures("each_backend")
    @every_loss_in_turn
    def test_opcheck_where_it_is_differentiated(self, loss: str) -> None:
        calls = list(CALLS[loss]((4, 3), torch.float64, "sum"))
        # Each of the operators with some of the options.
        for operator, arguments in calls[:4] + calls[9::5]:
            leaves = [
                a.clone().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments
            ]
            if not operator.name().endswith("_"):
                torch.library.opcheck(operator, tuple(leaves))
                continue
            with pytest.raises(RuntimeError, match="has no derivative"):
                operator(*leaves)
            with torch.no_grad():
                operator(*leaves)


class Recorded(TorchDispatchMode):
    """Keeps the calls of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == "torchlosses":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


class TestLinearOperators:
    """Their records of options are long, so what the functions hand them is what is checked."""

    @pytest.mark.parametrize(
        ("place", "grad"),
        [(-1, True), *(pytest.param(*way, marks=pytest.mark.thorough) for way in ((-1, False), (0, True), (0, False)))],
    )
    @pytest.mark.parametrize("name", ["linear_cross_entropy", "linear_log_probs", "linear_kl_div"])
    def test_opcheck(self, name: str, place: int, grad: bool) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)

        x, linear_weight, bias, target = normal(5, 3), normal(7, 3), normal(7), torch.tensor([0, 1, -100, 3, 6])
        low_rank, teacher = (normal(2, 3), normal(7, 2), 0.5), normal(5, 7).detach()
        functions: dict[str, tuple[Callable[[], Tensor], ...]] = {
            "linear_cross_entropy": (
                lambda: torchlosses.linear_cross_entropy(
                    x, linear_weight, target, linear_bias=bias, low_rank=low_rank, block_rows=2
                ),
                lambda: torchlosses.linear_cross_entropy(x, linear_weight, target, reduction="none", return_stats=True)[
                    0
                ].sum(),
            ),
            "linear_log_probs": (
                lambda: torchlosses.linear_log_probs(x, linear_weight, target, linear_bias=bias).entropy.sum(),
            ),
            "linear_kl_div": (
                lambda: torchlosses.linear_kl_div(x, linear_weight, block_rows=2, teacher_logits=teacher),
                lambda: torchlosses.linear_kl_div(
                    x, linear_weight, reduction="none", divergence="reverse", teacher_logits=teacher
                ).sum(),
            ),
        }
        with Recorded() as recorded:
            functions[name][place]().backward()
        assert {operator.name() for operator, _ in recorded.calls} == {
            f"torchlosses::{name}",
            f"torchlosses::{name}_backward",
        }
        for operator, arguments in recorded.calls:
            copies = (a.detach().clone() if isinstance(a, Tensor) else a for a in arguments)
            torch.library.opcheck(
                operator,
                tuple(a.requires_grad_(grad) if isinstance(a, Tensor) and a.is_floating_point() else a for a in copies),
            )


class TestAutocast:
    @pytest.mark.parametrize("loss", CALLS)
    def test_an_operator_does_not_see_it(self, loss: str) -> None:
        """The functions choose the dtype before the operator runs; autocast must not change the steps inside."""
        for dtype in (torch.float32, torch.bfloat16):
            for operator, arguments in CALLS[loss]((4, 3), dtype, "none"):
                expected = result_of(operator, arguments)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    actual = result_of(operator, arguments)
                    assert torch.is_autocast_enabled("cpu")
                assert_close(actual, expected, rtol=0, atol=0)

    @pytest.mark.parametrize("loss", CALLS)
    @pytest.mark.usefixtures("eager_backend")
    def test_it_is_off_inside(self, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Which operations autocast changes depends on the device; inside an operator it must change none."""
        calls = list(CALLS[loss]((4, 3), torch.bfloat16, "none"))
        blocks = eager._blocks
        seen: list[bool] = []

        def record(*arguments: Any) -> Any:
            seen.append(torch.is_autocast_enabled("cpu"))
            return blocks(*arguments)

        monkeypatch.setattr(eager, "_blocks", record)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for operator, arguments in calls:
                operator(*arguments)
        assert len(seen) >= len(calls)
        assert not any(seen)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def sliced(tensor: Tensor) -> Tensor:
    return torch.stack([tensor, tensor], -1)[..., 0]


def classes_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def expanded(tensor: Tensor) -> Tensor:
    return tensor[:1].expand(tensor.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "transposed": transposed,
    "sliced": sliced,
    "classes last": classes_last,
    "expanded": expanded,
}
# Fewer rows than a block, blocks that end within a sample, and more classes than a block holds.
BLOCKED_SHAPES = ((13, 5), (3, 3, 11), (2, 90), (2, 80, 2))


@pytest.mark.usefixtures("eager_backend")
class TestBlocks:
    @pytest.mark.parametrize("block", [7, 64])
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("loss", CALLS)
    def test_results_do_not_depend_on_their_size(
        self, loss: str, layout: str, block: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for shape in BLOCKED_SHAPES:
            for operator, arguments in CALLS[loss](shape, torch.float64, "none" if block == 7 else "sum"):
                laid_out = [LAYOUTS[layout](a) if isinstance(a, Tensor) and a.shape == shape else a for a in arguments]
                monkeypatch.setattr(eager, "BLOCK", 1 << 18)
                expected = result_of(operator, laid_out)
                monkeypatch.setattr(eager, "BLOCK", block)
                assert_close(result_of(operator, laid_out), expected, rtol=1e-13, atol=1e-13)

    @pytest.mark.parametrize("block", [7, 64])
    @pytest.mark.parametrize("loss", CALLS)
    def test_mixed_dtypes(self, loss: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """A float64 target or weight beside a bfloat16 input: the arithmetic is float64 in every block."""
        for operator, arguments in CALLS[loss]((13, 5), torch.bfloat16, "none"):
            mixed = list(arguments)
            second = 1 + operator.name().count("backward") + operator.name().endswith("_")
            if mixed[second].is_floating_point():
                mixed[second] = mixed[second].double()
            monkeypatch.setattr(eager, "BLOCK", 1 << 18)
            expected = result_of(operator, mixed)
            monkeypatch.setattr(eager, "BLOCK", block)
            assert_close(result_of(operator, mixed), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("function", ["cross_entropy", "cee", "mse"])
    @pytest.mark.parametrize("shape", [(13, 5), (5, 3, 11), (4, 3, 2, 5)], ids=str)
    def test_losses_and_gradients_of_small_blocks(
        self, function: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The whole way, against the definition in plain tensors."""
        monkeypatch.setattr(eager, "BLOCK", 7)
        x = classes_last(logits_of(shape, torch.float64)).requires_grad_()
        target = probabilities_of(shape, torch.float64)
        if function == "mse":
            loss, definition = torchlosses.mse_loss(x, target), (x - target).square().mean()
        elif function == "cee":
            p = torch.softmax(x, 1)
            loss, definition = torchlosses.cee_loss(p, target), -(target * (p + 1e-7).log()).sum(1).mean()
        else:
            loss, definition = torchlosses.cross_entropy(x, target), -(target * x.log_softmax(1)).sum(1).mean()
        assert_close(loss, definition)
        assert_close(torch.autograd.grad(loss, x, retain_graph=True), torch.autograd.grad(definition, x))

    @pytest.mark.parametrize("block", [1, 7, 64])
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    def test_ignored_and_weightless_rows(
        self, block: int, label_smoothing: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is left out must be left out of its own block, whatever the other blocks hold."""
        monkeypatch.setattr(eager, "BLOCK", block)
        x = logits_of((9, 4, 3), torch.float64)
        target = indices_of((9, 4, 3))
        target[2] = target[5, 1] = -100
        x[2] = math.nan
        weight = torch.tensor([1.0, 0.0, 2.0, 0.5], dtype=torch.float64)
        x.requires_grad_()
        loss = torchlosses.cross_entropy(x, target, weight, label_smoothing=label_smoothing)
        (gradient,) = torch.autograd.grad(loss, x)
        kept = [row for row in range(9) if row != 2]
        clean = x.detach()[kept].requires_grad_()
        truth = F.cross_entropy(clean, target[kept], weight, label_smoothing=label_smoothing)
        assert_close(loss, truth)
        assert_close(gradient[kept], torch.autograd.grad(truth, clean)[0])
        assert gradient[2].eq(0).all()

    def test_a_bad_target_is_found_in_any_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(eager, "BLOCK", 7)
        for row in range(9):
            target = indices_of((9, 4))
            target[row] = 4
            with pytest.raises(IndexError, match=rf"Target 4 is out of bounds.*\({row},\)"):
                torchlosses.cross_entropy(logits_of((9, 4), torch.float32), target)
            with pytest.raises(IndexError, match=rf"Target 4 is out of bounds.*\({row},\)"):
                torchlosses.cee_loss(probabilities_of((9, 4), torch.float32), target)

    def test_a_bad_probability_is_found_in_any_block(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(eager, "BLOCK", 7)
        for row in range(9):
            input = probabilities_of((9, 4), torch.float32)
            input[row, 3] = 1.5
            for target in (indices_of((9, 4)), probabilities_of((9, 4), torch.float32)):
                with pytest.raises(ValueError, match=r"1\.5"):
                    torchlosses.cee_loss(input, target)


ROWS, CLASSES = 2048, 4096


@functools.cache
def large_cases() -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Losses of (ROWS, CLASSES), and an input for each."""
    x = torch.randn(ROWS, CLASSES)
    p = torch.softmax(x, 1)
    target, shares = torch.randint(0, CLASSES, (ROWS,)), p.flip(0)
    image = torch.randint(0, 64, (8, ROWS * CLASSES // 512))
    weight = torch.rand(CLASSES)
    return {
        "cross_entropy, indices": (lambda x: torchlosses.cross_entropy(x, target), x),
        "cross_entropy, indices, weight, smoothing": (
            lambda x: torchlosses.cross_entropy(x, target, weight, label_smoothing=0.1),
            x,
        ),
        "cross_entropy, probabilities": (lambda x: torchlosses.cross_entropy(x, shares), x),
        "cross_entropy, images": (lambda x: torchlosses.cross_entropy(x, image), x.view(8, 64, -1)),
        "cross_entropy, bfloat16": (lambda x: torchlosses.cross_entropy(x, target), x.bfloat16()),
        "cee_loss, indices": (lambda x: torchlosses.cee_loss(x, target), p),
        "cee_loss, probabilities": (lambda x: torchlosses.cee_loss(x, shares), p),
        "mse_loss": (lambda x: torchlosses.mse_loss(x, shares), x),
        "mse_loss, transposed": (lambda x: torchlosses.mse_loss(x.t(), shares.t()), x),
        "mse_loss, weight": (lambda x: torchlosses.mse_loss(x, shares, weight=p), x),
    }


@pytest.mark.usefixtures("each_backend")
class TestMemory:
    """No temporary of the input's size: the gradient is the only large tensor that is ever allocated."""

    @pytest.mark.parametrize(
        "case",
        [
            "cross_entropy, indices",
            "cross_entropy, indices, weight, smoothing",
            "cross_entropy, probabilities",
            "cross_entropy, images",
            "cross_entropy, bfloat16",
            "cee_loss, indices",
            "cee_loss, probabilities",
            "mse_loss",
            "mse_loss, transposed",
            "mse_loss, weight",
        ],
    )
    def test_peak_of_forward_and_backward(self, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
        function, shared = large_cases()[case]
        input = shared.detach().requires_grad_()
        # What is needed beside the gradient is a few blocks in float32, and a few numbers a row.
        for block in (eager.BLOCK, 1 << 16):
            monkeypatch.setattr(eager, "BLOCK", block)
            allowance = 6 * block * 4 + 32 * ROWS + 8 * CLASSES + shared.numel() // 64 * 32 * (shared.dim() == 3)
            assert allowance < shared.numel() * 4
            assert peak_bytes(lambda: function(shared)) <= allowance
            peak = peak_bytes(lambda: torch.autograd.grad(function(input), input))
            assert input.nbytes <= peak <= input.nbytes + allowance

    def test_the_measure_sees_a_temporary(self) -> None:
        """PyTorch's own cross-entropy keeps the log-probabilities, as large as the input."""
        input = torch.randn(ROWS, CLASSES, requires_grad=True)
        target = torch.randint(0, CLASSES, (ROWS,))
        assert peak_bytes(lambda: F.cross_entropy(input, target)) >= input.nbytes

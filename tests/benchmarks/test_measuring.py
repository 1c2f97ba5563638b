"""What is measured is right, and in its turn; how long it takes is never asserted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory, timing
from benchmarks.cases import CASES, SETTINGS, Workload
from benchmarks.checks import answer, check, truth
from benchmarks.errors import BenchmarkError
from benchmarks.implementations import IMPLEMENTATIONS, LIMITS, Call, Implementation
from benchmarks.problems import PROBLEMS
from benchmarks.results import Dtype, Passes
from torchlosses import kernels

SMALL = (
    Workload("cross_entropy", (6, 5)),
    Workload("cross_entropy", (2, 3, 4, 5)),
    Workload("cross_entropy_hessian", (6, 5), passes=("forward+backward",)),
    Workload("mse_loss", (7, 3)),
    Workload("huber_loss", (7, 3)),
    Workload("smooth_l1_loss", (7, 3)),
    Workload("binary_cross_entropy_with_logits", (7, 3)),
    Workload("log_probs", (4, 5)),
    Workload("cee_loss", (4, 5)),
    Workload("linear_cross_entropy", (6, 5, 7)),
)
DTYPES: tuple[Dtype, ...] = ("float32", "float64", "bfloat16", "float16")
PASSES: tuple[Passes, ...] = ("forward", "forward+backward")
SHORT = timing._Plan(1, is_long=False)
UNCOMPILED = [implementation for implementation in IMPLEMENTATIONS if not implementation.compiled]


def find(name: str) -> Implementation:
    (found,) = (implementation for implementation in IMPLEMENTATIONS if implementation.name == name)
    return found


def test_the_list_of_cases_is_sound() -> None:
    assert len({(case.loss, case.shape, case.dtype) for case in CASES}) == len(CASES)
    for case in CASES:
        assert case.loss in PROBLEMS
        assert set(case.settings) <= set(SETTINGS)
        assert any(
            implementation.name == "torch" and case.loss in implementation.losses for implementation in UNCOMPILED
        )
    assert len({contestant.name for contestant in (*IMPLEMENTATIONS, *LIMITS)}) == len(IMPLEMENTATIONS) + len(LIMITS)


@pytest.mark.parametrize("implementation", UNCOMPILED, ids=lambda implementation: implementation.name)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_every_implementation_passes_the_check_and_leaves_its_arguments_alone(
    case: Workload, dtype: Dtype, implementation: Implementation
) -> None:
    case = replace(case, dtype=dtype)
    arguments = PROBLEMS[case.loss].arguments(case)
    before = [argument.clone() for argument in arguments]
    exact = truth(case, arguments)
    for passes in case.passes:
        if not implementation.serves(case, passes):
            continue
        loss = implementation.function(case)
        found = answer(loss, arguments, passes, consumes=implementation.consumes)
        differentiable = sum(argument.requires_grad for argument in arguments)
        assert len(found.gradients) == (differentiable if passes == "forward+backward" else 0)
        check(implementation.name, case, found, exact)
        call = implementation.call(loss, arguments, passes)
        for _ in range(2):
            timing._sample(call, SHORT)
    for argument, kept in zip(arguments, before, strict=True):
        assert torch.equal(argument, kept)


def wrong_loss(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x, y) * 1.001


class OneWrongElement(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.clone()
        gradient[-1, -1] *= 1.01
        return gradient


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (wrong_loss, "the loss"),
        (lambda x, y: F.cross_entropy(x, y) * float("nan"), "the loss"),
        (lambda x, y: F.cross_entropy(OneWrongElement.apply(x), y), "gradient 1"),
    ],
    ids=("loss", "nan", "gradient"),
)
def test_an_implementation_that_is_wrong_is_caught(wrong: object, what: str) -> None:
    case = Workload("cross_entropy", (6, 5))
    arguments = PROBLEMS[case.loss].arguments(case)
    found = answer(wrong, arguments, "forward+backward")  # type: ignore[arg-type]
    with pytest.raises(BenchmarkError, match=rf"^bad is wrong on cross_entropy 6×5 float32, {what}: .*not close"):
        check("bad", case, found, truth(case, arguments))


def test_the_truth_is_the_formula_in_float64() -> None:
    case = Workload("cross_entropy", (6, 5), "bfloat16")
    logits, target = arguments = PROBLEMS[case.loss].arguments(case)
    exact = truth(case, arguments)
    x = logits.detach().double().numpy()
    probability = torch.from_numpy(x).exp()
    probability /= probability.sum(1, keepdim=True)
    wanted = -probability[torch.arange(6), target].log().mean()
    torch.testing.assert_close(exact.loss, wanted)
    one_hot = F.one_hot(target, 5).double()
    torch.testing.assert_close(exact.gradients[0], ((probability - one_hot) / 6).float())


@pytest.mark.skipif("native" not in kernels.available(), reason="needs the compiled operators")
@pytest.mark.parametrize("name", ["native", "eager"])
def test_a_sample_runs_on_the_backend_it_is_about(name: str) -> None:
    seen = []
    implementation = replace(find(name), losses={"cross_entropy": lambda *_: seen.append(kernels.BACKEND.name)})
    case = Workload("cross_entropy", (2, 3))
    call = implementation.call(implementation.function(case), PROBLEMS[case.loss].arguments(case), "forward")
    timing._sample(call, SHORT)
    assert seen == [name, name], "one call before the timed one"


def test_the_in_place_backward_gets_fresh_logits_for_every_sample() -> None:
    case = Workload("cross_entropy", (6, 5))
    arguments = PROBLEMS[case.loss].arguments(case)
    seen = []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        assert not x.is_leaf
        seen.append(x.detach().clone())
        return find("inplace").losses["cross_entropy"](x, y)

    call = find("inplace").call(loss, arguments, "forward+backward")
    for _ in range(3):
        timing._sample(call, SHORT)
    assert len(seen) == 3 * 2
    assert all(torch.equal(x, arguments[0]) for x in seen)


def test_everyone_takes_turns_and_preparations_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    @contextmanager
    def around(name: str) -> Iterator[None]:
        events.append(f"enter {name}")
        yield
        events.append(f"leave {name}")

    calls = {
        "plain": Call(lambda: events.append("run plain"), around=partial(around, "plain")),
        "prepared": Call(
            lambda: events.append("run prepared"), lambda: events.append("prepare"), partial(around, "prepared")
        ),
    }
    plans = {calls["plain"]: timing._Plan(2, is_long=False), calls["prepared"]: SHORT}
    monkeypatch.setattr(timing, "_plan", plans.__getitem__)
    summaries = timing.time_in_turn(calls, seconds=1e-9)
    assert {name: (summary.rounds, summary.calls) for name, summary in summaries.items()} == {
        "plain": (timing.FEWEST_ROUNDS, 2),
        "prepared": (timing.FEWEST_ROUNDS, 1),
    }
    plain = ["enter plain", "run plain", "run plain", "run plain", "leave plain"]
    prepared = ["enter prepared", "prepare", "run prepared", "prepare", "run prepared", "leave prepared"]
    rounds = [events[start : start + 11] for start in range(0, len(events), 11)]
    assert len(rounds) == timing.FEWEST_ROUNDS
    assert {tuple(one) for one in rounds} == {tuple(plain + prepared), tuple(prepared + plain)}


def test_what_has_to_be_prepared_is_called_once_a_sample() -> None:
    assert timing._plan(Call(lambda: None, lambda: None)) == SHORT
    assert timing._plan(Call(lambda: None)).repetitions > 1


def test_a_long_call_is_neither_led_in_nor_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONG_CALL_SECONDS", 0.0)
    seen = []
    summary = timing.time_in_turn({"long": Call(lambda: seen.append(None))}, seconds=1e-9)["long"]
    assert (summary.rounds, summary.calls) == (timing.FEWEST_ROUNDS_OF_LONG_CALLS, 1)
    assert len(seen) == 1 + summary.rounds


def test_the_summary_is_the_median_and_the_quartiles() -> None:
    summary = timing._summary([5.0, 1.0, 3.0, 2.0, 4.0], calls=6)
    assert (summary.lower_quartile, summary.median, summary.upper_quartile) == (2.0, 3.0, 4.0)
    assert (summary.rounds, summary.calls) == (5, 6)


measurable = pytest.mark.skipif(not memory.is_measurable(), reason="this system does not tell the peak")
MEBIBYTE = 1 << 20


@measurable
def test_the_peak_is_what_is_there_at_once() -> None:
    def two_at_once() -> None:
        torch.ones(8 * MEBIBYTE)
        first = torch.ones(4 * MEBIBYTE)
        second = torch.ones(8 * MEBIBYTE)
        del first, second

    assert memory.peak(Call(two_at_once)) == pytest.approx(48 * MEBIBYTE, abs=2 * MEBIBYTE)


@measurable
def test_what_is_prepared_does_not_count() -> None:
    kept = []

    def prepare() -> None:
        kept[:] = [torch.ones(8 * MEBIBYTE)]

    assert memory.peak(Call(lambda: torch.ones(4 * MEBIBYTE), prepare)) == pytest.approx(
        16 * MEBIBYTE, abs=2 * MEBIBYTE
    )


@measurable
def test_a_fresh_process_measures_a_copy_as_one_tensor() -> None:
    case = Workload("cross_entropy", (2048, 2048))
    clone, torch_forward = (memory.peak_in_fresh_process(case, "forward", name) for name in ("clone", "torch"))
    assert clone == pytest.approx(16 * MEBIBYTE, abs=MEBIBYTE)
    assert torch_forward == pytest.approx(16 * MEBIBYTE, abs=MEBIBYTE)

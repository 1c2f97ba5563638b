"""A call by its plan starts what it would start without one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton import knobs
from triton.runtime import driver as triton_driver

from tests.kernels.driver import Driver
from tests.kernels.triton_oracles import Options
from torchlosses.kernels.triton import LOCAL, LOSSES, launch, plan
from torchlosses.kernels.triton.launch import Rehearsal, rehearsing

pytestmark = pytest.mark.skipif(launch.INTERPRETED, reason="needs Triton's compiler")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """The driver that kernels are started with."""
    device = Driver()
    monkeypatch.setattr(triton_driver, "_active", device)
    started: list[Any] = []
    start = launch.launch

    def noted(kernel: Any, *arguments: Any, **constants: Any) -> None:
        started.append(kernel)
        start(kernel, *arguments, **constants)

    for loss in (*LOSSES.values(), *LOCAL.values()):
        if hasattr(loss, "launch"):
            monkeypatch.setattr(loss, "launch", noted)
    from torchlosses.kernels.triton import elementwise

    monkeypatch.setattr(elementwise, "launch", noted)
    plan.forget()
    yield device
    plan.forget()
    # What this driver has loaded goes before it does.
    for kernel in started:
        kernel.device_caches.clear()
    gc.collect()


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions whose calls were followed."""
    found: list[str] = []
    follow = plan._follow

    def noted(of: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        found.append(function.__name__)
        return follow(of, function, *arguments)

    monkeypatch.setattr(plan, "_follow", noted)
    return found


def indices(*shape: int, classes: int = 10) -> Tensor:
    return torch.randint(classes, shape)


class Call(NamedTuple):
    """A call of a kernel's function: `tensors()` makes its arguments but the options."""

    function: Callable[..., Any]
    tensors: Callable[[], tuple[Any, ...]]
    options: Any
    launches: int = 1


def losses(name: str) -> Any:
    return LOSSES[name].forward


def backward(name: str) -> Any:
    return LOSSES[name].backward


CALLS = {
    "cross_entropy": Call(
        losses("cross_entropy"), lambda: (torch.randn(64, 10), indices(64), None, None, None), Options()
    ),
    "cross_entropy, weights": Call(
        losses("cross_entropy"),
        lambda: (torch.randn(64, 10), indices(64), torch.rand(10), torch.rand(64), torch.rand(())),
        Options(label_smoothing=0.1, z_loss=0.1, logit_softcap=30.0, logit_scale=0.5, statistics=True),
    ),
    "cross_entropy, large": Call(
        losses("cross_entropy"), lambda: (torch.randn(64, 1000), indices(64), None, None, None), Options(), 3
    ),
    "cross_entropy, pixels": Call(
        losses("cross_entropy"),
        lambda: (torch.randn(2, 10, 3000), torch.rand(2, 10, 3000), None, None, None),
        Options(gradients=0),
        2,
    ),
    "cross_entropy, backward": Call(
        backward("cross_entropy"),
        lambda: (
            *(torch.rand(()), torch.randn(64, 1000), torch.randn(64, 1000), indices(64)),
            *(None, None, None, torch.rand(2, 64)),
        ),
        Options(gradients=0),
        2,
    ),
    "mse_loss": Call(
        losses("mse_loss"), lambda: (torch.randn(64, 10), torch.randn(64, 10), None, None, None), Options()
    ),
    "huber_loss, transposed": Call(
        losses("huber_loss"),
        lambda: (torch.randn(64, 10), torch.randn(10, 64).t(), None, torch.rand(64, 1).expand(64, 10), None),
        Options(reduction="none", gradients=0),
    ),
    "smooth_l1_loss, large": Call(
        losses("smooth_l1_loss"), lambda: (torch.randn(40000), torch.randn(40000), None, None, None), Options(), 2
    ),
    "binary_cross_entropy, offset": Call(
        losses("binary_cross_entropy_with_logits"),
        lambda: (torch.randn(643)[3:], torch.rand(641)[1:], None, None, None, None),
        Options(ignore_index=2),
    ),
    "mse_loss, backward": Call(
        backward("mse_loss"),
        lambda: (torch.rand(64, 10), torch.randn(64, 10), torch.randn(64, 10), torch.randn(64, 10), None, None, None),
        Options(reduction="none", gradients=0),
    ),
    "cee_loss": Call(losses("cee_loss"), lambda: (torch.rand(64, 10), torch.rand(64, 10), None, None), Options()),
    "log_probs": Call(losses("log_probs"), lambda: (torch.randn(64, 10), indices(64), None), Options(gradients=0)),
    "log_probs, backward": Call(
        backward("log_probs"),
        lambda: (
            *(torch.rand(64, 2), torch.randn(64, 10), torch.randn(64, 10), indices(64)),
            *(None, torch.rand(4, 64)),
        ),
        Options(gradients=0),
    ),
    "parts": Call(
        LOCAL["class_parallel_cross_entropy"].parts,
        lambda: (torch.randn(64, 10), indices(64), torch.rand(30), None),
        Options(first=10, total=30, gradients=0),
    ),
}


def is_address(argument: Any) -> bool:
    return type(argument) is int and argument > 1 << 32


def in_numbers(launched: list[Any], tensors: tuple[Any, ...]) -> list[Any]:
    """The launches with the tensors of a call by their number, and those that it made in the order they come in."""
    numbers = {t.data_ptr(): f"given {place}" for place, t in enumerate(tensors) if isinstance(t, Tensor)}

    def of(argument: Any) -> Any:
        if isinstance(argument, Tensor):
            argument = argument.data_ptr()
        elif not is_address(argument):
            return argument
        return numbers.setdefault(argument, f"made {len(numbers)}")

    return [step._replace(arguments=[of(argument) for argument in step.arguments]) for step in launched]


def described(given: Any) -> Any:
    """What is known of the results before anything is computed."""
    return [(t.shape, t.stride(), t.dtype, t.device) for t in given] if isinstance(given, tuple) else given


@pytest.mark.parametrize("name", CALLS)
def test_by_plan_kernels_start_with_what_they_start_with_anyway(
    name: str, device: Driver, followed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = CALLS[name]
    first, second = call.tensors(), call.tensors()
    of_first = call.function(*first, call.options)
    assert len(followed) == 1
    launched = in_numbers(device.launches, first)
    assert len(launched) == call.launches
    device.launches.clear()
    of_second = call.function(*second, call.options)
    assert len(followed) == 1
    assert in_numbers(device.launches, second) == launched
    assert described(of_second) == described(of_first)
    # Every tensor that the call was given is there, and none of the first call is.
    addresses = {argument for step in device.launches for argument in step.arguments if is_address(argument)}
    assert addresses >= {t.data_ptr() for t in second if isinstance(t, Tensor)}
    assert not addresses & {t.data_ptr() for t in first if isinstance(t, Tensor)}

    # As where Triton says no more of a kernel than how to start it.
    plan.forget()
    monkeypatch.setattr(plan, "again_of", lambda compiled, programs: None)
    call.function(*first, call.options)
    device.launches.clear()
    call.function(*second, call.options)
    assert len(followed) == 2
    assert in_numbers(device.launches, second) == launched


def differing() -> dict[str, tuple[Any, ...]]:
    x, y = torch.randn(64, 10), torch.randn(64, 10)
    return {
        "sizes": (torch.randn(32, 10), torch.randn(32, 10)),
        "strides": (x, torch.randn(10, 64).t()),
        "both strides": (torch.randn(10, 64).t(), torch.randn(10, 64).t()),
        "a dtype": (x, torch.randn(64, 10, dtype=torch.float64)),
        "alignment": (x, torch.randn(641)[1:].view(64, 10)),
        "another alignment": (x, torch.randn(642)[2:].view(64, 10)),
        "a weight": (x, y, torch.rand(64, 10)),
        "a sample weight": (x, y, None, torch.rand(64, 10)),
        "a normalizer": (x, y, None, None, torch.tensor(3.0)),
        "reduction": (x, y, Options(reduction="sum")),
        "the mean of nothing": (x, y, Options(empty=0.0)),
        "the loss's dtype": (x, y, Options(dtype=torch.float64)),
        "no gradient": (x, y, Options(gradients=0)),
    }


@pytest.mark.parametrize("what", differing())
def test_a_call_that_differs_has_a_plan_of_its_own(what: str, device: Driver, followed: list[str]) -> None:
    def mse_loss(*given: Any) -> Any:
        options = given[-1] if isinstance(given[-1], Options) else Options()
        tensors = [argument for argument in given if not isinstance(argument, Options)]
        return LOSSES["mse_loss"].forward(*tensors, *[None] * (5 - len(tensors)), options)

    mse_loss(torch.randn(64, 10), torch.randn(64, 10))
    # One more multiple of 16 bytes is no other alignment.
    mse_loss(torch.randn(644)[4:].view(64, 10), torch.randn(64, 10))
    assert len(followed) == 1
    given = differing()[what]
    mse_loss(*given)
    mse_loss(*given)
    assert len(followed) == 2
    launched = in_numbers(device.launches[-1:], given)
    plan.forget()
    mse_loss(*given)
    assert in_numbers(device.launches[-1:], given) == launched


def test_the_function_that_was_called_is_named(device: Driver, followed: list[str]) -> None:
    from torchlosses.kernels.called import calling

    tensors = (torch.randn(64, 10), indices(64), None, None, None)
    for name in ("cross_entropy", "linear_cross_entropy") * 2:
        with calling(name):
            LOSSES["cross_entropy"].forward(*tensors, Options())
        assert name in device.launches[-1].arguments
    assert len(followed) == 2


def test_a_tensor_given_twice_says_nothing_of_the_next_call(device: Driver) -> None:
    x, y, z = (torch.randn(64, 10) for _ in range(3))
    LOSSES["mse_loss"].forward(x, x, None, None, None, Options())
    LOSSES["mse_loss"].forward(y, z, None, None, None, Options())
    assert device.launches[-1].arguments[:2] == (y.data_ptr(), z.data_ptr())


def test_a_nan_is_the_same_option_whichever_it_is(device: Driver, followed: list[str]) -> None:
    """The dispatcher makes a new one for each call."""
    for _ in range(3):
        LOSSES["mse_loss"].forward(
            torch.randn(64, 10), torch.randn(64, 10), None, None, None, Options(empty=float("nan"))
        )
    assert len(followed) == 1


def test_no_tensor_is_kept(device: Driver) -> None:
    for call in CALLS.values():
        tensors = call.tensors()
        given = call.function(*tensors, call.options)
        alive = [weakref.ref(t.untyped_storage()) for t in (*tensors, *(given or ())) if isinstance(t, Tensor)]
        device.launches.clear()
        del tensors, given
        gc.collect()
        assert not any(storage() is not None for storage in alive)


def test_the_current_stream_is_asked_for_each_time(device: Driver) -> None:
    for stream in (1, 2, 3):
        device.stream = stream
        LOSSES["mse_loss"].forward(torch.randn(64, 10), torch.randn(64, 10), None, None, None, Options())
    assert [step.stream for step in device.launches] == [1, 2, 3]


@triton.jit
def write_one(pointer):  # type: ignore[no-untyped-def]
    tl.store(pointer, 1.0)


@plan.planned
def _one(x: Tensor, options: Any) -> None:
    launch.launch(write_one, x.device, 1, 4, x)


class Second(Tensor):
    """A tensor that says it lies on the second GPU."""

    is_cuda = True
    device = torch.device("cuda", 1)


def test_a_device_that_is_not_the_current_one(device: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def current(of: torch.device) -> Iterator[None]:
        before, device.device = device.device, of.index
        yield
        device.device = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: device.device)
    monkeypatch.setattr(torch.cuda, "device", current)
    x = torch.ones(3).as_subclass(Second)
    for device.device in (0, 1, 0):
        before = device.device
        _one(x, Options())
        assert device.device == before
    assert [(step.device, step.stream) for step in device.launches] == [(1, 101)] * 3
    write_one.device_caches.clear()


def test_who_listens_to_launches_hears_of_each(device: Driver) -> None:
    heard: list[str] = []

    def enter(metadata: Any) -> None:
        heard.append(f"{metadata.get()['name']} begins")

    def leave(metadata: Any) -> None:
        heard.append("ends")

    def mse_loss() -> None:
        LOSSES["mse_loss"].forward(torch.randn(64, 10), torch.randn(64, 10), None, None, None, Options())

    mse_loss()
    knobs.runtime.launch_enter_hook.add(enter)
    knobs.runtime.launch_exit_hook.add(leave)
    try:
        mse_loss()
    finally:
        knobs.runtime.launch_enter_hook.remove(enter)
        knobs.runtime.launch_exit_hook.remove(leave)
    mse_loss()
    assert heard == ["elements_kernel begins", "ends"]
    assert len(device.launches) == 3


def test_instrumented_kernels_have_plans_of_their_own(
    device: Driver, followed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for mode in ("", "", "other", "other", ""):
        monkeypatch.setattr(plan, "knobs", _Mode(mode))
        _planned(torch.ones(3), Options())
    assert len(followed) == 2


class _Mode:
    def __init__(self, mode: str) -> None:
        self.compilation, self.runtime = type("", (), {"instrumentation_mode": mode}), knobs.runtime


@plan.planned
def _planned(x: Tensor, options: Any) -> tuple[Tensor]:
    return (plan.empty_like(x),)


def test_plans_are_not_kept_without_bound(followed: list[str]) -> None:
    for size in (*range(1, plan.PLANS + 2), plan.PLANS + 1, 1):
        assert _planned(torch.ones(size), Options())[0].shape == (size,)
    # That of the last call was there, and that of the first had gone.
    assert len(followed) == plan.PLANS + 2
    plan.forget()


def test_what_is_rehearsed_leaves_no_plan(followed: list[str]) -> None:
    started: list[Any] = []
    tensors = (torch.randn(64, 10), torch.randn(64, 10), None, None, None)
    with rehearsing(Rehearsal(lambda *launched: started.append(launched))):
        for _ in range(3):
            LOSSES["mse_loss"].forward(*tensors, Options())
    assert len(started) == 3
    assert not followed


def test_a_rehearsal_sees_what_has_a_plan(device: Driver) -> None:
    tensors = (torch.randn(64, 10), torch.randn(64, 10), None, None, None)
    LOSSES["mse_loss"].forward(*tensors, Options())
    started: list[Any] = []
    with rehearsing(Rehearsal(lambda *launched: started.append(launched))):
        LOSSES["mse_loss"].forward(*tensors, Options())
    assert len(started) == len(device.launches) == 1


def test_tensors_from_elsewhere_have_no_plan(device: Driver) -> None:
    """Of more than four dimensions that nothing shares there are copies, made anew in each call."""
    x = torch.randn(2, 3, 2, 3, 2)
    y = torch.randn(2, 3, 2, 3, 2).permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    for _ in range(3):
        LOSSES["mse_loss"].forward(x, y, None, None, None, Options())
        copies = device.launches[-1].arguments[:2]
        assert all(isinstance(copy, Tensor) for copy in copies)
        assert torch.equal(copies[1], y)
    assert len(device.launches) == 3


def test_what_triton_keeps_to_itself() -> None:
    """Where it is gone kernels start by `kernel[grid](...)`, which is right and slow."""
    told = f"Triton {triton.__version__} changed {{}}: look at torchlosses/kernels/triton/plan.py, `again_of`."
    compiled = triton.compiler.CompiledKernel
    assert isinstance(getattr(compiled, "run", None), property), told.format("CompiledKernel.run")
    assert callable(compiled.__getitem__), told.format("CompiledKernel.__getitem__")
    for hook in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        assert hook.calls == [], told.format("knobs.runtime.launch_enter_hook or launch_exit_hook")


def test_a_kernel_says_how_it_starts_again(device: Driver) -> None:
    told = f"Triton {triton.__version__} changed CompiledKernel or the driver: look at `again_of` in plan.py."
    with launch.noting() as started:
        LOSSES["mse_loss"].forward.__wrapped__(torch.ones(3), torch.ones(3), None, None, None, Options())
    assert plan.again_of(started[0].compiled, 1) is not None, told
    # As where a hook of Triton keeps the kernel to itself.
    assert plan.again_of(None, 1) is None

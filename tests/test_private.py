"""What PyTorch keeps private and this package uses, one test a use: a failure names what to look at in _pytorch.py."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

import torchlosses
from torchlosses import _pytorch

PACKAGE = Path(torchlosses.__file__).parent
# A private name of PyTorch: torch._C, from torch._functorch ..., forward_ad._current_level, ctx._x is none.
PRIVATE = re.compile(r"\b(torch(?:\.\w+)*\._(?!_)\w+|forward_ad\._\w+|from torch(?:\.\w+)*\._\w+|import _\w+Function)")
# The conformance kit resets the compiler, if there is one.
# Lazy logits are a subclass, and have to know whether they are asked as one.
ALLOWED = {"_pytorch.py", "testing/environment.py", "integrations/_lazy_logits.py"}


def test_it_is_used_in_one_file_only() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).as_posix() not in ALLOWED
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PRIVATE.search(line)
    ]
    assert not found, "Put what PyTorch keeps private behind a name in torchlosses/_pytorch.py:\n" + "\n".join(found)


def test_the_search_finds_what_it_looks_for() -> None:
    for line in ("torch._C._is_tracing()", "forward_ad._current_level", "from torch._functorch.utils import x"):
        assert PRIVATE.search(line)
    assert not PRIVATE.search("torch.ops.torchlosses.library_in_use, torch.__version__")


def look_at(name: str, why: str) -> str:
    return f"torch {torch.__version__} changed {name}, which torchlosses/_pytorch.py uses {why}."


def in_transform(function: Callable[[Tensor], Any]) -> Any:
    seen: list[Any] = []

    def call(x: Tensor) -> Tensor:
        seen.append(function(x))
        return x.sum()

    torch.func.grad(call)(torch.ones(2))
    return seen[0]


def test_transforms_active() -> None:
    told = look_at("torch._C._are_functorch_transforms_active", "to see whether torch.func is at work")
    assert _pytorch.transforms_active() is False, told
    assert in_transform(lambda x: _pytorch.transforms_active()) is True, told


def test_a_number_that_changes_is_told_from_a_constant() -> None:
    """Where a compiled graph takes numbers."""
    seen: list[bool] = []

    def record(graph: Any, inputs: Any) -> Any:
        seen.append(any("numbers" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(lambda v: torchlosses.huber_loss(torch.ones(2), torch.zeros(2), delta=v), backend=record)
    for value in (0.5, 0.25, 0.75):
        compiled(value)
    told = look_at("torch.fx.experimental.symbolic_shapes.has_static_value", "to find the numbers that change")
    assert seen == [False, True], told


def test_current_level() -> None:
    told = look_at("torch.autograd.forward_ad._current_level", "to see whether forward-mode AD is at work")
    assert forward_ad._current_level < 0, told
    with forward_ad.dual_level():
        assert forward_ad._current_level >= 0, told


def test_set_grad_enabled() -> None:
    told = look_at("torch._C._set_grad_enabled", "because torch.no_grad takes as long as the loss of a few rows")
    _pytorch.set_grad_enabled(False)
    try:
        assert not torch.is_grad_enabled(), told
    finally:
        _pytorch.set_grad_enabled(True)
    assert torch.is_grad_enabled(), told


def test_below_autograd() -> None:
    x = torch.ones(2, requires_grad=True)
    with _pytorch.below_autograd():
        assert not x.exp().requires_grad, look_at("torch._C._AutoDispatchBelowAutograd", "to call an operator's kernel")


def test_forward_mode_can_be_switched_on_inside_a_jvp() -> None:
    told = look_at("forward_ad._set_fwd_grad_enabled", "so that a jvp is differentiable itself")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(2), torch.ones(2))
        with forward_ad._set_fwd_grad_enabled(False):
            assert forward_ad.unpack_dual(dual.exp()).tangent is None, told
            with forward_ad._set_fwd_grad_enabled(True):
                assert forward_ad.unpack_dual(dual.exp()).tangent is not None, told


def test_duals_of_level_0() -> None:
    told = look_at("torch._VF._make_dual and _unpack_dual", "for the tangents of the innermost level")
    with forward_ad.dual_level():
        made = _pytorch.make_dual(torch.ones(2), torch.full((2,), 3.0), level=0)
        primal, tangent = _pytorch.unpack_dual(made.exp(), level=0)
        assert tangent is not None, told
        torch.testing.assert_close(tangent, 3 * primal, msg=told)


def test_functions_of_one_level() -> None:
    told = look_at(
        "torch.autograd.function._SingleLevelFunction, or torch._functorch.utils.enable_single_level_autograd_function",
        "to differentiate an operator at the level of autograd or torch.func that calls it",
    )

    base: Any = _pytorch.SingleLevelFunction

    class Double(base):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 2

    x = torch.ones(2, requires_grad=True)
    with _pytorch.enable_single_level_autograd_function():
        (gradient,) = torch.autograd.grad(Double.apply(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full((2,), 2.0), msg=told)
    assert callable(_pytorch.compiled_autograd_key), look_at("Function._compiled_autograd_key", "for compiled autograd")


def test_a_profile_is_noticed() -> None:
    told = look_at("torch.autograd.profiler._is_profiler_enabled", "so that a profile shows a loss of few rows")
    assert _pytorch.profiling() is False, told
    with torch.autograd.profiler.profile():
        assert _pytorch.profiling() is True, told


def test_dead_wrappers_are_unwrapped() -> None:
    kept = in_transform(lambda x: x)
    assert not _pytorch.functorch.is_functorch_wrapped_tensor(_pytorch.functorch.unwrap_if_dead(kept)), look_at(
        "torch._C._functorch.unwrap_if_dead", "for tensors of a level that has been left"
    )


def test_legacy_batches_are_recognised() -> None:
    seen: list[bool] = []

    class Watching(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
            seen.append(_pytorch.functorch.is_legacy_batchedtensor(grad))
            return grad

    x = torch.ones(2, requires_grad=True)
    output = Watching.apply(x)
    torch.autograd.grad(output, x, torch.eye(2), is_grads_batched=True, retain_graph=True)
    torch.autograd.grad(output, x, torch.ones(2))
    assert seen == [True, False], look_at(
        "torch._C._functorch.is_legacy_batchedtensor", "to see gradients that are batched (is_grads_batched)"
    )


def test_levels_of_functionalize_are_recognised() -> None:
    told = look_at(
        "torch._C._functorch.get_interpreter_stack or TransformType, or the key FuncTorchDynamicLayerFrontMode",
        "to see where a Function cannot be applied",
    )
    seen: list[bool] = []

    def call(x: Tensor) -> Tensor:
        seen.append(_pytorch.functions_apply())
        return x.sum()

    call(torch.ones(2))
    torch.func.grad(call)(torch.ones(2))
    torch.func.functionalize(call)(torch.ones(2))
    assert seen == [True, True, False], told


def test_saved_tensor_hooks_are_seen() -> None:
    told = look_at("torch._C._autograd._top_saved_tensors_default_hooks", "to see a checkpointed forward")
    assert not _pytorch.saved_tensors_have_hooks(), told
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        assert _pytorch.saved_tensors_have_hooks(), told


def test_dispatch_modes_are_seen() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    told = look_at("torch._C._len_torch_dispatch_stack", "to see whether a dispatch mode is on")
    assert not _pytorch._dispatch_modes(), told
    with TorchDispatchMode():
        assert _pytorch._dispatch_modes(), told


def test_tracing_is_seen() -> None:
    seen: list[bool] = []

    def call(x: Tensor) -> Tensor:
        seen.append(_pytorch._is_tracing())
        return x + 1

    call(torch.ones(2))
    with warnings.catch_warnings():
        # Deprecated, with another category in each version.
        warnings.filterwarnings("ignore", message="`torch.jit.trace")
        torch.jit.trace(call, torch.ones(2), check_trace=False)
    assert seen == [False, True], look_at("torch._C._is_tracing", "to see whether torch.jit traces")


def test_the_compiler_leaves_a_marked_function_alone() -> None:
    """Also what it calls."""
    seen: list[bool] = []

    def inner(x: Tensor) -> Tensor:
        seen.append(torch.compiler.is_compiling())
        return x + 1

    def marked(x: Tensor) -> Tensor:
        return inner(x)

    _pytorch.not_compiled(marked)
    torch.compile(marked, backend="eager")(torch.ones(2))
    assert seen == [False], look_at(
        "torch._C._dynamo.eval_frame.set_code_exec_strategy", "to keep kernels out of the compiler's sight"
    )


def test_a_library_can_be_taken_back() -> None:
    """For a second import in one process."""
    library = torch.library.Library("torchlosses_test_private", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    library._destroy()
    again = torch.library.Library("torchlosses_test_private", "FRAGMENT")
    again.define("twice(Tensor x) -> Tensor")
    again._destroy()


def test_whether_overrides_are_disabled_is_seen() -> None:
    told = look_at("torch._C._is_torch_function_enabled", "to see that a subclass has taken a call over already")
    assert _pytorch.overrides_enabled() is True, told
    with torch._C.DisableTorchFunctionSubclass():
        assert _pytorch.overrides_enabled() is False, told


def test_the_ragged_dimension() -> None:
    jagged = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)], layout=torch.jagged)
    told = look_at("NestedTensor._ragged_idx", "for the dimension along which samples differ")
    assert _pytorch.ragged_dimension(jagged) == 1, told
    assert _pytorch.ragged_dimension(jagged.transpose(1, 2)) == 2, told

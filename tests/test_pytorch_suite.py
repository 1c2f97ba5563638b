"""PyTorch's own samples for its losses, put to the losses of this package.

The samples come from `torch.testing._internal`, which is what PyTorch's test suite draws on: OpInfo for the functions,
ModuleInfo for the modules. The oracle is the built-in in float64.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

import torchlosses
from tests.turns import in_turn
from torchlosses import kernels

pytestmark = pytest.mark.usefixtures("each_backend")

with warnings.catch_warnings():
    # The test suite of another package, with that package's own deprecations.
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "nn.functional.cross_entropy": (torchlosses.cross_entropy, F.cross_entropy),
    "nn.functional.mse_loss": (torchlosses.mse_loss, F.mse_loss),
}
MODULES: dict[type[nn.Module], type[nn.Module]] = {
    nn.CrossEntropyLoss: torchlosses.CrossEntropyLoss,
    nn.MSELoss: torchlosses.MSELoss,
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tolerance(dtype: torch.dtype) -> dict[str, Any]:
    """A few roundings of the result: this package computes in float32 at least and rounds once."""
    if dtype in (torch.bfloat16, torch.float16):
        # The smallest step of float16 is 6e-8, of which a gradient divided by the number of rows can lose half.
        return {"rtol": torch.finfo(dtype).eps, "atol": 1e-6}
    return {"rtol": 16 * torch.finfo(dtype).eps, "atol": 16 * torch.finfo(dtype).eps}


def opinfo(name: str) -> Any:
    return next(op for op in op_db if op.name == name)


def moduleinfo(module: type[nn.Module]) -> Any:
    return next(info for info in module_db if info.module_cls is module)


def samples(name: str, dtype: torch.dtype, requires_grad: bool = True) -> Iterator[Any]:
    """The samples of the operator and, where it has any, the further ones that it compares with its reference."""
    torch.manual_seed(0)
    info = opinfo(name)
    yield from info.sample_inputs("cpu", dtype, requires_grad=requires_grad)
    if info.reference_inputs_func is not None:
        yield from info.reference_inputs("cpu", dtype, requires_grad=requires_grad)


def calls(name: str) -> Iterator[tuple[Callable[..., Tensor], tuple[Tensor, ...], bool]]:
    """The samples as functions of their tensors; and whether gradcheck may take random directions, for large ones."""
    for sample in samples(name, torch.float64):
        call = functools.partial(FUNCTIONS[name][0], **sample.kwargs)
        yield call, (sample.input, *sample.args), sample.input.numel() > 12


def leaves(arguments: Any) -> list[Tensor]:
    return [argument for argument in arguments if isinstance(argument, Tensor) and argument.requires_grad]


def in_float64(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def value_and_gradients(function: Callable[..., Tensor], arguments: Any, options: Any) -> list[Tensor]:
    """The loss and its gradients along a fixed direction, one for every argument that requires grad."""
    loss = function(*arguments, **options)
    # Multiples of 1/4, which every dtype holds exactly: the direction of the oracle is that of the loss.
    direction = (torch.arange(loss.numel()) % 5 - 1.75).to(loss.dtype).reshape(loss.shape)
    gradients = torch.autograd.grad(loss, leaves(arguments), direction)
    return [loss.detach(), *gradients]


def assert_same(ours: list[Tensor], truth: list[Tensor], dtype: torch.dtype) -> None:
    assert len(ours) == len(truth)
    for actual, expected in zip(ours, truth, strict=True):
        assert actual.dtype == dtype
        assert_close(actual.double(), expected.double(), **tolerance(dtype), equal_nan=True)


def numbered(found: Iterator[Any], at_least: int) -> list[Any]:
    """The samples, once it is sure that PyTorch still has them."""
    every = list(found)
    assert len(every) >= at_least
    return every


every_function_in_turn = pytest.mark.parametrize(
    ("each_backend", "name"),
    in_turn(kernels.available(), {name: (name,) for name in FUNCTIONS}),
    indirect=["each_backend"],
)


class TestFunctions:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_values_and_gradients_are_those_of_the_builtin(self, name: str, dtype: torch.dtype) -> None:
        assert dtype in opinfo(name).supported_dtypes("cpu")
        ours, builtin = FUNCTIONS[name]
        for sample in numbered(samples(name, dtype), at_least=6):
            arguments = (sample.input, *sample.args)
            options = sample.kwargs
            truth = value_and_gradients(
                builtin, tuple(map(in_float64, arguments)), {key: in_float64(value) for key, value in options.items()}
            )
            assert leaves(arguments), sample
            assert_same(value_and_gradients(ours, arguments, options), truth, dtype)

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_error_inputs(self, name: str) -> None:
        info = opinfo(name)
        if info.error_inputs_func is None:
            pytest.skip(f"OpInfo has no error inputs for {name}")
        for case in info.error_inputs("cpu"):
            sample = case.sample_input
            with pytest.raises(case.error_type, match=case.error_regex):
                FUNCTIONS[name][0](sample.input, *sample.args, **sample.kwargs)

    @every_function_in_turn
    def test_gradcheck(self, name: str) -> None:
        for call, arguments, fast in calls(name):
            assert gradcheck(
                call,
                arguments,
                check_forward_ad=True,
                check_batched_grad=True,
                check_batched_forward_grad=True,
                fast_mode=fast,
            )

    @every_function_in_turn
    def test_gradgradcheck(self, name: str) -> None:
        for call, arguments, fast in calls(name):
            assert gradgradcheck(call, arguments, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=fast)

    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_vmap_over_samples_is_a_loop(self, name: str) -> None:
        """As `test_vmap_exhaustive` of PyTorch's suite: each sample three times, mapped over the first dimension."""
        function = FUNCTIONS[name][0]
        for sample in samples(name, torch.float64, requires_grad=False):
            tensors = (sample.input, *sample.args)
            batch = tuple(torch.stack([t, t.flip(0) if t.dim() else t, t]) for t in tensors)
            call = functools.partial(function, **sample.kwargs)
            expected = torch.stack([call(*(t[i] for t in batch)) for i in range(3)])
            assert_close(torch.vmap(call)(*batch), expected, equal_nan=True)


def module_samples(module: type[nn.Module], dtype: torch.dtype) -> Iterator[Any]:
    torch.manual_seed(0)
    info = moduleinfo(module)
    yield from info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)


class TestModules:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("module", MODULES)
    def test_values_and_gradients_are_those_of_the_builtin(self, module: type[nn.Module], dtype: torch.dtype) -> None:
        for sample in numbered(module_samples(module, dtype), at_least=8):
            created, called = sample.constructor_input, sample.forward_input
            ours = MODULES[module](*created.args, **created.kwargs)
            builtin = module(*created.args, **created.kwargs).double()
            arguments = called.args
            truth = value_and_gradients(builtin, tuple(map(in_float64, arguments)), called.kwargs)
            assert leaves(arguments), sample.desc
            assert_same(value_and_gradients(ours, arguments, called.kwargs), truth, dtype)

    @pytest.mark.parametrize("module", MODULES)
    def test_values_are_those_of_the_reference(self, module: type[nn.Module]) -> None:
        """The reference functions that PyTorch's suite compares its own modules with."""
        compared = 0
        for sample in module_samples(module, torch.float64):
            created, called = sample.constructor_input, sample.forward_input
            if sample.reference_fn is None:
                continue
            ours = MODULES[module](*created.args, **created.kwargs)
            # Some references copy their arguments, which only tensors without a history allow.
            arguments = tuple(argument.detach() for argument in called.args)
            expected = sample.reference_fn(module(*created.args, **created.kwargs), *arguments, **called.kwargs)
            assert_close(ours(*arguments, **called.kwargs), expected, equal_nan=True)
            compared += 1
        assert compared >= 8

    @pytest.mark.parametrize(
        ("each_backend", "module"),
        in_turn(kernels.available()[::-1], {module.__name__: (module,) for module in MODULES}),
        indirect=["each_backend"],
    )
    def test_gradcheck(self, module: type[nn.Module]) -> None:
        checked = 0
        for sample in module_samples(module, torch.float64):
            created, called = sample.constructor_input, sample.forward_input
            ours = MODULES[module](*created.args, **created.kwargs)
            if ours(*called.args).isnan().any():
                # A mean over no row, where every label is the ignored one: it has no numerical derivative.
                assert "ignore_index" in created.kwargs
                continue
            # Fast mode: a random direction for each of the many samples; the functions above are checked in full.
            assert gradcheck(ours, called.args, check_forward_ad=True, fast_mode=True), sample.desc
            if called.args[0].dim() < 3:
                assert gradgradcheck(ours, called.args, check_fwd_over_rev=True, fast_mode=True), sample.desc
            checked += 1
        assert checked >= 8

    @pytest.mark.parametrize("module", MODULES)
    def test_state_and_repr_survive_a_copy(self, module: type[nn.Module]) -> None:
        for sample in module_samples(module, torch.float32):
            created, called = sample.constructor_input, sample.forward_input
            ours = MODULES[module](*created.args, **created.kwargs)
            assert ours.state_dict().keys() == module(*created.args, **created.kwargs).state_dict().keys()
            again = copy.deepcopy(ours)
            assert repr(again) == repr(ours)
            assert_close(again(*called.args), ours(*called.args), rtol=0, atol=0, equal_nan=True)


def module_errors() -> list[Any]:
    cases = []
    for module in MODULES:
        info = moduleinfo(module)
        if info.module_error_inputs_func is None:
            continue
        torch.manual_seed(0)
        found = info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=True, training=True
        )
        cases += [pytest.param(module, case, id=f"{module.__name__}: {case.error_regex}") for case in found]
    return cases


class TestModuleErrors:
    def test_there_are_cases(self) -> None:
        # torch 2.10 has none of a loss.
        assert len(module_errors()) >= (0 if torch.__version__.startswith("2.10.") else 7)

    @pytest.mark.parametrize(("module", "case"), module_errors())
    def test_type_and_message_are_those_of_the_builtin(self, module: type[nn.Module], case: Any) -> None:
        created = case.module_error_input.constructor_input
        called = case.module_error_input.forward_input
        if "label_smoothing" in case.error_regex:
            # The one chosen difference: known at construction, so it is said there, and as a ValueError.
            with pytest.raises(ValueError, match=case.error_regex):
                MODULES[module](*created.args, **created.kwargs)
        elif case.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(case.error_type, match=case.error_regex):
                MODULES[module](*created.args, **created.kwargs)
        else:
            ours = MODULES[module](*created.args, **created.kwargs)
            with pytest.raises(case.error_type, match=case.error_regex):
                ours(*called.args, **called.kwargs)

"""What PyTorch asks of a loss beside its numbers: compile, export, autocast, copies, hooks, processes, threads."""

from __future__ import annotations

import copy
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.testing import assert_close

import torchlosses
from tests.turns import in_turn
from torchlosses import distributed, kernels
from torchlosses._validation import Reduction

on_each_backend = pytest.mark.usefixtures("each_backend")

ROWS, CLASSES = 6, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(*shape: int, seed: int = 1) -> Tensor:
    return torch.softmax(random(*shape, seed=seed), 1)


def indices(rows: int = ROWS) -> Tensor:
    return torch.randint(0, CLASSES, (rows,), generator=torch.Generator().manual_seed(2))


def as_logits(rows: int) -> Tensor:
    return random(rows, CLASSES)


def as_probabilities(rows: int) -> Tensor:
    return probabilities(rows, CLASSES, seed=0)


@dataclass(frozen=True)
class Subject:
    """A loss as a module, with its first argument and its target for any number of rows."""

    module: Callable[[], nn.Module]
    input: Callable[[int], Tensor]
    target: Callable[[int], Tensor]

    def build(self, dtype: torch.dtype = torch.float64, rows: int = ROWS) -> tuple[nn.Module, Tensor, Tensor]:
        target = self.target(rows)
        if target.is_floating_point():
            target = target.to(dtype)
        return self.module().to(dtype), self.input(rows).to(dtype).requires_grad_(), target


def some_ignored(rows: int) -> Tensor:
    return indices(rows).index_fill(0, torch.tensor([1]), 255)


def class_weight() -> Tensor:
    return torch.linspace(0.5, 2.0, CLASSES, dtype=torch.float64)


def linear(**options: Any) -> nn.Module:
    """With frozen weights, the linear cross-entropy is a loss of its input as the others are."""
    torch.manual_seed(0)
    return torchlosses.LinearCrossEntropyLoss(CLASSES, CLASSES, bias=True, **options).requires_grad_(False)


CASES = {
    "mse": Subject(torchlosses.MSELoss, as_logits, as_probabilities),
    "mse none": Subject(lambda: torchlosses.MSELoss(reduction="none"), as_logits, as_probabilities),
    "cross_entropy": Subject(torchlosses.CrossEntropyLoss, as_logits, indices),
    "cross_entropy weight smoothing": Subject(
        lambda: torchlosses.CrossEntropyLoss(class_weight(), label_smoothing=0.1), as_logits, indices
    ),
    "cross_entropy ignore_index": Subject(
        lambda: torchlosses.CrossEntropyLoss(ignore_index=255), as_logits, some_ignored
    ),
    "cross_entropy none": Subject(lambda: torchlosses.CrossEntropyLoss(reduction="none"), as_logits, indices),
    "cross_entropy probabilities": Subject(
        lambda: torchlosses.CrossEntropyLoss(class_weight(), label_smoothing=0.1, reduction="sum"),
        as_logits,
        lambda rows: probabilities(rows, CLASSES),
    ),
    "cross_entropy options": Subject(
        lambda: torchlosses.CrossEntropyLoss(
            ignore_index=255, label_smoothing=0.1, z_loss=0.1, logit_softcap=2.0, empty="zero"
        ),
        as_logits,
        some_ignored,
    ),
    "linear_cross_entropy": Subject(linear, as_logits, indices),
    "linear_cross_entropy none": Subject(
        lambda: linear(reduction="none", label_smoothing=0.1, z_loss=0.1), as_logits, indices
    ),
    "cee indices": Subject(torchlosses.CEELoss, as_probabilities, indices),
    "cee probabilities": Subject(
        lambda: torchlosses.CEELoss(reduction="none"), as_probabilities, lambda rows: probabilities(rows, CLASSES)
    ),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
# What traces a loss does not see what runs inside of an operator.
every_case_in_turn = pytest.mark.parametrize(
    ("each_backend", "case"),
    in_turn(kernels.available(), {name: (case,) for name, case in CASES.items()}),
    indirect=["each_backend"],
)
WITHOUT_PRODUCT = {name: case for name, case in CASES.items() if not name.startswith("linear")}
every_case_without_product = pytest.mark.parametrize("case", WITHOUT_PRODUCT.values(), ids=list(WITHOUT_PRODUCT))


def value_and_gradient(module: Callable[..., Tensor], input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    loss = module(input, target)
    (gradient,) = torch.autograd.grad(loss, input, torch.full_like(loss, 0.75))
    return loss.detach(), gradient


@on_each_backend
class TestCompile:
    @pytest.fixture(autouse=True)
    def _fresh(self) -> Iterator[None]:
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    @every_case_in_turn
    def test_static_shapes(self, case: Subject) -> None:
        module, input, target = case.build()
        compiled = torch.compile(module, fullgraph=True, dynamic=False, backend="aot_eager")
        assert_close(value_and_gradient(compiled, input, target), value_and_gradient(module, input, target))

    @every_case_in_turn
    def test_dynamic_shapes_are_compiled_for_the_first_only(self, case: Subject) -> None:
        module = case.build()[0]
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
        compilations = set()
        for rows in (6, 11):
            _, input, target = case.build(rows=rows)
            assert_close(value_and_gradient(compiled, input, target), value_and_gradient(module, input, target))
            compilations.add(counter.frame_count)
        assert len(compilations) == 1

    @pytest.mark.parametrize(
        "name", ["mse", "cross_entropy weight smoothing", "cross_entropy probabilities", "cee indices"]
    )
    def test_inductor(self, name: str) -> None:
        module, input, target = CASES[name].build(torch.float32)
        compiled = torch.compile(module, fullgraph=True)
        assert_close(value_and_gradient(compiled, input, target), value_and_gradient(module, input, target))

    def test_a_model_and_its_loss_in_one_graph(self) -> None:
        torch.manual_seed(0)
        model = nn.Linear(CLASSES, CLASSES).double()
        criterion = torchlosses.CrossEntropyLoss()
        input, target = random(ROWS, CLASSES), indices()

        def step(input: Tensor, target: Tensor) -> Tensor:
            return criterion(model(input), target)

        loss = torch.compile(step, fullgraph=True, backend="aot_eager")(input, target)
        actual = torch.autograd.grad(loss, list(model.parameters()))
        assert_close(actual, torch.autograd.grad(step(input, target), list(model.parameters())))

    @pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
    @pytest.mark.parametrize("name", ["cross_entropy", "cee indices"])
    def test_a_bad_target_still_raises(self, name: str, backend: str) -> None:
        module, input, target = CASES[name].build(torch.float32)
        compiled = torch.compile(module, fullgraph=True, backend=backend)
        compiled(input, target)
        with pytest.raises(IndexError, match="Target 5 is out of bounds"):
            compiled(input, target.index_fill(0, torch.tensor([3]), 5))

    def test_logits_given_to_cee_still_raise(self, each_backend: str) -> None:
        compiled = torch.compile(torchlosses.cee_loss, fullgraph=True, backend="aot_eager")
        error, said = ValueError, "probabilities in"
        if "native" in kernels.available():
            if torch.__version__ >= "2.15":
                # Of what a compiled kernel throws, LibTorch makes an IndexError or a RuntimeError.
                error = RuntimeError
            elif torch.__version__ < "2.13" and each_backend == "eager":
                # LibTorch does not tell the compiled library yet what the operator that it passes the call on to says.
                said += "|PyTorch refused a call"
        with pytest.raises(error, match=said):
            compiled(random(ROWS, CLASSES), indices())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_low_precision(self, dtype: torch.dtype) -> None:
        module, input, target = CASES["cross_entropy"].build(dtype)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_close(
            value_and_gradient(compiled, input, target), value_and_gradient(module, input, target), rtol=0, atol=0
        )

    def test_under_autocast(self) -> None:
        module, input, target = CASES["cross_entropy"].build(torch.float32)
        model = nn.Linear(CLASSES, CLASSES)

        def step(input: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return module(model(input), target)

        loss = torch.compile(step, fullgraph=True, backend="aot_eager")(input)
        assert loss.dtype == torch.float32
        assert_close(loss, step(input))


@on_each_backend
class TestExport:
    @pytest.mark.parametrize("strict", [False, True])
    @every_case_in_turn
    def test_the_exported_module_runs(self, case: Subject, strict: bool) -> None:
        module, input, target = case.build(torch.float32)
        input = input.detach()
        program = torch.export.export(module, (input, target), strict=strict)
        assert_close(program.module()(input, target), module(input, target))

    @pytest.mark.parametrize("name", ["mse", "cross_entropy", "cross_entropy probabilities", "cee indices"])
    def test_any_number_of_rows(self, name: str) -> None:
        module, input, target = CASES[name].build(torch.float32)
        rows = torch.export.Dim("rows", min=2)
        program = torch.export.export(
            module, (input.detach(), target), dynamic_shapes={"input": {0: rows}, "target": {0: rows}}
        )
        _, input, target = CASES[name].build(torch.float32, rows=17)
        assert_close(program.module()(input.detach(), target), module(input.detach(), target))

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        module, input, target = CASES["cross_entropy weight smoothing"].build(torch.float32)
        input = input.detach()
        torch.export.save(torch.export.export(module, (input, target)), tmp_path / "loss.pt2")
        loaded = torch.export.load(tmp_path / "loss.pt2")
        assert_close(loaded.module()(input, target), module(input, target))


@on_each_backend
class TestAutocast:
    @every_case_without_product
    def test_the_loss_is_float32_and_the_gradient_has_the_dtype_of_the_input(self, case: Subject) -> None:
        module, input, target = case.build(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, gradient = value_and_gradient(module, input, target)
        assert loss.dtype == torch.float32
        assert gradient.dtype == torch.bfloat16
        wide = copy.deepcopy(module).float()
        x = input.detach().float().requires_grad_()
        expected, expected_gradient = value_and_gradient(
            wide, x, target.float() if target.is_floating_point() else target
        )
        assert_close(loss, expected)
        assert_close(gradient, expected_gradient.bfloat16(), rtol=2**-8, atol=1e-8)

    @every_case_without_product
    def test_float32_inputs_stay_float32(self, case: Subject) -> None:
        module, input, target = case.build(torch.float32)
        expected = value_and_gradient(module, input, target)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(value_and_gradient(module, input, target), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("name", ["cross_entropy weight smoothing", "cross_entropy probabilities"])
    def test_float32_weights_of_bfloat16_logits(self, name: str) -> None:
        case = CASES[name]
        _, input, target = case.build(torch.bfloat16)
        module = case.module().float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, gradient = value_and_gradient(module, input, target)
        assert (loss.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
        wide = target.float() if target.is_floating_point() else target
        assert_close(loss, module(input.detach().float(), wide))

    def test_a_float32_target_of_a_bfloat16_prediction(self) -> None:
        """What a regression head under autocast and its labels look like."""
        model, x = nn.Linear(CLASSES, 1), random(ROWS, CLASSES).float()
        target = random(ROWS, 1).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = model(x)
            assert prediction.dtype == torch.bfloat16
            loss = torchlosses.mse_loss(prediction, target)
        assert loss.dtype == torch.float32
        assert_close(loss, (prediction.detach().float() - target).square().mean())
        loss.backward()
        assert model.weight.grad is not None
        assert model.weight.grad.dtype == torch.float32

    def test_backward_inside_the_region(self) -> None:
        module, input, target = CASES["cross_entropy"].build(torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = module(input, target)
            (inside,) = torch.autograd.grad(loss, input, retain_graph=True)
        (outside,) = torch.autograd.grad(loss, input)
        assert_close(inside, outside, rtol=0, atol=0)

    def test_other_dtypes_of_the_region(self) -> None:
        module, input, target = CASES["cross_entropy"].build(torch.float16)
        with torch.autocast("cpu", dtype=torch.float16):
            assert module(input, target).dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            assert module(input, target).dtype == torch.float16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert module(input.double(), target).dtype == torch.float64


@on_each_backend
class TestGraph:
    @every_case
    def test_saved_tensors_go_through_the_hooks(self, case: Subject) -> None:
        module, input, target = case.build()
        expected = value_and_gradient(module, input, target)
        packed: list[Tensor] = []

        def pack(tensor: Tensor) -> int:
            packed.append(tensor.detach().clone())
            return len(packed) - 1

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda position: packed[position]):
            actual = value_and_gradient(module, input, target)
        assert packed
        # The linear loss takes its gradients in another order where they do not come along with the loss.
        tolerance = 1e-14 if isinstance(module, torchlosses.LinearCrossEntropyLoss) else 0
        assert_close(actual, expected, rtol=tolerance, atol=tolerance)
        with torch.autograd.graph.save_on_cpu():
            assert_close(value_and_gradient(module, input, target), expected, rtol=tolerance, atol=tolerance)

    @every_case
    def test_a_saved_tensor_that_was_changed_is_noticed(self, case: Subject) -> None:
        module, input, target = case.build()
        leaf = input.clone()
        loss = module(leaf, target)
        with torch.no_grad():
            leaf.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()
        loss = module(input, target)
        target.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()

    @every_case
    def test_a_graph_that_was_freed_is_noticed(self, case: Subject) -> None:
        module, input, target = case.build()
        loss = module(input, target).sum()
        loss.backward()
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()

    @every_case
    def test_a_scaled_loss(self, case: Subject) -> None:
        """What a GradScaler does: a loss times 2^16, and its gradients divided by it again."""
        module, input, target = case.build(torch.float32)
        (gradient,) = torch.autograd.grad((module(input, target) * 2.0**16).sum(), input)
        (expected,) = torch.autograd.grad(module(input, target).sum(), input)
        assert_close(gradient / 2.0**16, expected, rtol=1e-6, atol=0)

    @every_case
    def test_accumulation_over_parts_of_a_batch(self, case: Subject) -> None:
        module, input, target = case.build()
        (module(input, target).sum() / 2).backward()
        assert input.grad is not None
        once = input.grad.clone()
        (module(input, target).sum() / 2).backward()
        assert_close(input.grad, 2 * once)

    @every_case
    def test_no_gradient_that_is_not_asked_for(self, case: Subject) -> None:
        module, input, target = case.build()
        assert not module(input.detach(), target).requires_grad
        with torch.no_grad():
            assert not module(input, target).requires_grad
        assert module(input, target).requires_grad
        if target.is_floating_point():
            target.requires_grad_()
            loss = module(input.detach(), target).sum()
            (gradient,) = torch.autograd.grad(loss, target)
            assert gradient.any()

    @every_case
    def test_inference_mode(self, case: Subject) -> None:
        module, input, target = case.build()
        expected = module(input, target)
        with torch.inference_mode():
            loss = module(input.clone(), target.clone())
            assert loss.is_inference()
        assert_close(loss, expected, rtol=0, atol=0)

    @every_case
    def test_anomaly_detection(self, case: Subject) -> None:
        module, input, target = case.build()
        with (
            pytest.warns(UserWarning, match="Anomaly Detection has been enabled"),
            torch.autograd.detect_anomaly(),
        ):
            module(input, target).sum().backward()
        assert input.grad is not None

    def test_hooks_see_the_gradient(self) -> None:
        module, input, target = CASES["cross_entropy"].build()
        seen: list[Tensor] = []
        input.register_hook(lambda gradient: seen.append(gradient.clone()))
        module(input, target).backward()
        assert_close(seen[0], input.grad)


@on_each_backend
class TestInputs:
    @pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "expanded"])
    @every_case
    def test_are_never_modified(self, case: Subject, layout: str) -> None:
        module, input, target = case.build()
        x = input.detach()
        if layout == "transposed":
            x = x.t().contiguous().t()
        elif layout == "sliced":
            x = torch.cat([x, x])[::2]
            target = torch.cat([target, target])[::2]
        elif layout == "expanded":
            x = x[:1].expand(x.shape)
        before = (x.clone(), target.clone(), [buffer.clone() for buffer in module.buffers()])
        x.requires_grad_()
        loss, gradient = value_and_gradient(module, x, target)
        copied = x.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        assert_close((loss, gradient), value_and_gradient(module, copied, target.contiguous()))
        assert_close((x.detach(), target, list(module.buffers())), before, rtol=0, atol=0)

    @every_case
    def test_the_random_numbers_of_the_caller_stay_as_they_are(self, case: Subject) -> None:
        module, input, target = case.build()
        state = torch.get_rng_state()
        first = value_and_gradient(module, input, target)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(99)
        assert_close(value_and_gradient(module, input, target), first, rtol=0, atol=0)

    @every_case
    def test_deterministic_algorithms(self, case: Subject) -> None:
        module, input, target = case.build()
        expected = value_and_gradient(module, input, target)
        torch.use_deterministic_algorithms(True)
        try:
            assert_close(value_and_gradient(module, input, target), expected, rtol=0, atol=0)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_that_are_no_tensors_are_named(self) -> None:
        x: Any = random(ROWS, CLASSES)
        target: Any = indices()
        no_tensor: Any = [1.0] * CLASSES
        for call, name in (
            (lambda: torchlosses.cross_entropy(x, target, weight=no_tensor), "weight"),
            (lambda: torchlosses.cross_entropy(x, no_tensor), "target"),
            (lambda: torchlosses.mse_loss(x, x, weight=no_tensor), "weight"),
            (lambda: torchlosses.mse_loss(no_tensor, x), "input"),
            (lambda: torchlosses.cee_loss(no_tensor, target), "input"),
        ):
            with pytest.raises(TypeError, match=f"{name} must be a Tensor, but got list"):
                call()

    def test_meta_tensors_give_a_shape(self) -> None:
        x, target = torch.empty(4, 3, 2, device="meta"), torch.empty(4, 2, dtype=torch.int64, device="meta")
        expected: list[tuple[Reduction, tuple[int, ...]]] = [("none", (4, 2)), ("mean", ())]
        for reduction, shape in expected:
            for weight in (None, torch.empty(3, device="meta")):
                loss = torchlosses.CrossEntropyLoss(weight, reduction=reduction)(x.requires_grad_(), target)
                assert (loss.device.type, loss.shape) == ("meta", shape)
                (gradient,) = torch.autograd.grad(loss.sum(), x)
                assert (gradient.device.type, gradient.shape) == ("meta", x.shape)
            assert torchlosses.CEELoss(reduction=reduction)(x, target).shape == shape
        assert torchlosses.mse_loss(x, x.detach()).shape == ()


@on_each_backend
class TestModules:
    def test_state_dict(self) -> None:
        """The class weight is a buffer that is saved, as in torch.nn."""
        module = torchlosses.CrossEntropyLoss(class_weight())
        assert list(module.state_dict()) == ["weight"]
        other = torchlosses.CrossEntropyLoss(torch.ones(CLASSES, dtype=torch.float64))
        other.load_state_dict(module.state_dict())
        x, target = random(ROWS, CLASSES), indices()
        assert_close(other(x, target), module(x, target), rtol=0, atol=0)
        assert not list(module.parameters())
        assert not torchlosses.CrossEntropyLoss().state_dict()
        torchlosses.CrossEntropyLoss().load_state_dict(nn.CrossEntropyLoss().state_dict())
        other.load_state_dict(nn.CrossEntropyLoss(class_weight()).state_dict())

    def test_moving_moves_the_class_weight(self) -> None:
        module = torchlosses.CrossEntropyLoss(class_weight())
        for dtype in (torch.float16, torch.bfloat16):
            moved = module.half() if dtype == torch.float16 else module.to(dtype)
            assert moved.get_buffer("weight").dtype == dtype
            assert moved(random(ROWS, CLASSES).to(dtype), indices()).dtype == dtype
        assert module.to("meta").get_buffer("weight").device.type == "meta"

    def test_repr(self) -> None:
        assert repr(torchlosses.MSELoss()) == "MSELoss(reduction='mean')"
        assert repr(torchlosses.MSELoss(reduction="sum", broadcast="error")) == (
            "MSELoss(reduction='sum', broadcast='error')"
        )
        module = torchlosses.CrossEntropyLoss(class_weight(), ignore_index=255, label_smoothing=0.1)
        assert repr(module) == (
            "CrossEntropyLoss(weight=(5,), ignore_index=255, reduction='mean', label_smoothing=0.1)"
        )
        assert repr(torchlosses.CEELoss(delta=0.5)) == "CEELoss(delta=0.5, reduction='mean', validate_args=True)"

    def test_functional_call_swaps_the_class_weight(self) -> None:
        module = torchlosses.CrossEntropyLoss(class_weight())
        x, target = random(ROWS, CLASSES), indices()
        swapped = torch.func.functional_call(module, {"weight": torch.ones(CLASSES, dtype=torch.float64)}, (x, target))
        assert_close(swapped, torchlosses.cross_entropy(x, target))
        assert not torch.equal(swapped, module(x, target))

    @pytest.mark.parametrize(
        "module",
        [getattr(space, name) for space in (torchlosses, distributed) for name in space.__all__ if "Loss" in name],
    )
    def test_help_has_each_argument_and_section(self, module: Any) -> None:
        text, titles = inspect.getdoc(module) or "", ("Args", "Shape", "Raises", "Edge cases", "Example", "Source")
        places = [text.index(f"\n{title}:") for title in titles]
        assert places == sorted(places)
        arguments = text[places[0] : places[1]]
        assert re.findall(r"^    (\w+):", arguments, re.MULTILINE) == list(inspect.signature(module).parameters)
        assert f"as `{module.function.__name__}` does" in arguments

    @pytest.mark.parametrize("module", [torchlosses.MSELoss, torchlosses.LinearKLDivLoss])
    @pytest.mark.parametrize("argument", ["reduction", "empty", "gradient"])
    def test_help_has_the_words_of_the_function(self, module: Any, argument: str) -> None:
        said = re.search(rf"^    {argument}: .+\n(?:     .+\n)*", inspect.getdoc(module.function) or "", re.MULTILINE)
        assert said is not None
        assert said[0] in (inspect.getdoc(module) or "")


class TestThreadsAndProcesses:
    @on_each_backend
    @pytest.mark.parametrize("name", ["mse", "cross_entropy", "cross_entropy probabilities", "cee indices"])
    def test_the_number_of_threads_does_not_matter(self, name: str) -> None:
        """The blocks are summed in one order, so the result has the same bits from run to run."""
        module, input, target = CASES[name].build(torch.float32, rows=120_001)
        before = torch.get_num_threads()
        found = {}
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found[threads] = value_and_gradient(module, input, target)
                assert_close(value_and_gradient(module, input, target), found[threads], rtol=0, atol=0)
        finally:
            torch.set_num_threads(before)
        # torch sums a row of losses in as many parts as there are threads: the same to rounding.
        assert_close(found[2][0], found[1][0], rtol=1e-6, atol=0)
        assert_close(found[2][1], found[1][1], rtol=1e-6, atol=1e-12)

    def test_a_forked_child(self) -> None:
        run(
            """
            import multiprocessing, torch, torchlosses

            def losses():
                x = torch.linspace(-1, 1, 4096 * 100).reshape(4096, 100).requires_grad_()
                target = torch.arange(4096) % 100
                loss = torchlosses.cross_entropy(x, target) + torchlosses.mse_loss(x, x.detach().flip(0))
                loss = loss + torchlosses.cee_loss(torch.softmax(x, 1), target)
                loss.backward()
                return loss.item(), float(x.grad.double().abs().sum())

            def child(queue):
                queue.put(losses())

            torch.set_num_threads(1)
            expected = losses()
            context = multiprocessing.get_context("fork")
            queue = context.Queue()
            process = context.Process(target=child, args=(queue,))
            process.start()
            assert queue.get(timeout=60) == expected
            process.join()
            assert process.exitcode == 0
            """
        )

    @pytest.mark.thorough
    def test_data_parallel(self, tmp_path: Path) -> None:
        """Two processes with half of the batch each have the gradients of one with all of it."""
        script = """
            import sys, torch, torchlosses
            from torch.nn.parallel import DistributedDataParallel
            rank, store = int(sys.argv[1]), sys.argv[2]
            torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
            torch.set_num_threads(1)
            torch.manual_seed(0)
            model = torch.nn.Linear(5, 5).double()
            x, target = torch.randn(8, 5).double(), torch.arange(8) % 5

            def loss(model, x, target):
                logits = model(x)
                return (
                    torchlosses.CrossEntropyLoss()(logits, target)
                    + torchlosses.MSELoss()(logits, x)
                    + torchlosses.CEELoss()(torch.softmax(logits, 1), target)
                )

            whole = torch.autograd.grad(loss(model, x, target), list(model.parameters()))
            mine = slice(4 * rank, 4 * rank + 4)
            parallel = DistributedDataParallel(model)
            loss(parallel, x[mine], target[mine]).backward()
            torch.testing.assert_close([p.grad for p in model.parameters()], list(whole))
            assert all(gradient.any() for gradient in whole)
            torch.distributed.destroy_process_group()
        """
        processes = [start(script, str(rank), str(tmp_path / "store")) for rank in range(2)]
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors


class TestImport:
    def test_needs_only_torch_and_numpy(self) -> None:
        run(
            """
            import importlib.metadata, re, sys

            def distributions(name, found):
                if name not in found:
                    found.add(name)
                    try:
                        needed = importlib.metadata.requires(name) or []
                    except importlib.metadata.PackageNotFoundError:
                        return found
                    for requirement in needed:
                        if "extra ==" not in requirement:
                            other = re.match(r"[\\w.-]+", requirement).group()
                            distributions(re.sub(r"[-_.]+", "-", other).lower(), found)
                return found

            allowed = distributions("torch", set()) | distributions("numpy", set())
            owners = importlib.metadata.packages_distributions()
            refused = []

            class Refuse:
                def find_spec(self, name, path=None, target=None):
                    top = name.partition(".")[0]
                    mine = {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners.get(top, [])}
                    if mine and top != "torchlosses" and not mine & allowed:
                        refused.append(name)
                        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

            sys.meta_path.insert(0, Refuse())
            import torch
            refused.clear()
            import torchlosses, torchlosses.functional, torchlosses.reference
            assert not refused, refused
            x = torch.randn(3, 4, requires_grad=True)
            loss = torchlosses.cross_entropy(x, torch.tensor([0, 1, 2])) + torchlosses.mse_loss(x, x.detach() + 1)
            (loss + torchlosses.cee_loss(torch.softmax(x, 1), torch.tensor([0, 1, 2]))).backward()
            assert x.grad.any()
            for name in ("torchvision", "matplotlib", "tyro", "torchmetrics", "training"):
                assert name not in sys.modules, name
            """
        )

    def test_changes_no_global_state(self) -> None:
        run(
            """
            import torch, warnings, logging, sys

            def state():
                return (
                    torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),
                    torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), list(warnings.filters),
                    logging.getLogger().handlers, torch.cuda.is_initialized(),
                )

            before = state()
            import torchlosses
            assert state() == before
            assert not torch.cuda.is_initialized()
            assert "torch._dynamo" not in sys.modules
            assert "torch._inductor" not in sys.modules
            """
        )


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(script: str) -> None:
    process = start(script)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

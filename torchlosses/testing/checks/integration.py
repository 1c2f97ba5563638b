"""The rest of PyTorch around a loss: the compiler, export, autocast, graph hooks, copies of modules, threads."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from torchlosses.testing.audit import Audit, direction
from torchlosses.testing.comparing import expect, expect_close, expect_equal, largest, shown
from torchlosses.testing.environment import fresh_compiler, random_state
from torchlosses.testing.kinds import Case
from torchlosses.testing.outcomes import MANNERS, UNSUPPORTED, WRONG_GRADIENT, WRONG_VALUE, Failure, NotApplicable
from torchlosses.testing.registry import check


def _typical(audit: Audit) -> list[Case]:
    """For each form the loss with no option and with all of them."""
    found: dict[str, list[Case]] = {}
    for case in audit.cases(few=True, reductions=("mean", None) if "mean" in audit.reductions else None):
        found.setdefault(case.form, []).extend(audit.in_training_dtype([case]))
    return [case for cases in found.values() for case in (cases if len(cases) == 1 else (cases[0], cases[-1]))]


def _every_reduction(audit: Audit) -> list[Case]:
    return audit.in_training_dtype(audit.cases(few=True))


def _must(attempt: Callable[[], Any], what: str, cause: str) -> Any:
    """The value of `attempt`, which every loss is expected to go through without an error."""
    try:
        return attempt()
    except Failure:
        raise
    except Exception as error:
        lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
        got = " ".join(lines[:4])[:500]
        raise Failure(f"{what} fails", got, "no error", cause, severity=UNSUPPORTED) from error


def _value_and_gradient(loss: Callable[..., Tensor], audit: Audit, case: Case) -> tuple[Tensor, Tensor]:
    name = audit.kind.primary
    leaf = case.tensors[name].detach().clone().requires_grad_()
    value = loss(*case.with_tensors(**{name: leaf}).tensors.values())
    (gradient,) = torch.autograd.grad(value, leaf, direction(value))
    return value.detach(), gradient


def _same(audit: Audit, got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], what: str, cause: str) -> None:
    audit.expect_close(got[0], expected[0], f"{what} changes the loss", cause, atol=1e-7, severity=WRONG_VALUE)
    audit.expect_gradient(got[1], expected[1], f"{what} changes the gradient", cause, atol=1e-7)


def _equal(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], what: str, cause: str) -> None:
    expect_equal(got[0], expected[0], f"{what} changes the loss", cause, WRONG_VALUE)
    expect_equal(got[1], expected[1], f"{what} changes the gradient", cause, WRONG_GRADIENT)


@check("integration.compile", _typical)
def compiles_in_one_graph(audit: Audit, case: Case) -> None:
    """torch.compile(fullgraph=True) of a training step needs a loss without a graph break (backend aot_eager here)."""
    loss = audit.loss.bind(case.options, case.dtype)
    cause = "a branch on the data, .item(), NumPy, or an autograd.Function with a jvp"
    with fresh_compiler():
        compiled = torch.compile(lambda *tensors: loss(*tensors), fullgraph=True, backend="aot_eager")
        got = _must(lambda: _value_and_gradient(compiled, audit, case), "torch.compile(fullgraph=True)", cause)
    _same(audit, got, _value_and_gradient(loss, audit, case), "torch.compile", "another code path while compiling")


class _AsModule(nn.Module):
    def __init__(self, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.loss(*tensors)


@check("integration.export", _typical)
def exports(audit: Audit, case: Case) -> None:
    """torch.export takes a model with its loss into training elsewhere."""
    module, tensors = _AsModule(audit.loss.bind(case.options, case.dtype)), tuple(case.tensors.values())
    cause = "a branch on the data, .item(), or NumPy"
    with fresh_compiler():
        program = _must(lambda: torch.export.export(module, tensors, strict=False), "torch.export", cause)
        got = _must(lambda: program.module()(*tensors), "the exported program", cause)
    summary, cause = "torch.export changes the loss", "a value is frozen into the program"
    audit.expect_close(got, module(*tensors), summary, cause, severity=WRONG_VALUE)


def _low_precision(audit: Audit) -> list[Case]:
    return audit.in_dtype(audit.cases(few=True, rows=8), torch.bfloat16)


@check("integration.autocast", _low_precision)
def autocast(audit: Audit, case: Case) -> None:
    """Under autocast the model hands over bfloat16: the loss has to be as good as that, and its gradient to arrive."""
    loss = audit.loss.bind(case.options, torch.bfloat16)
    cause = "a step that autocast runs in another dtype than the ones around it"

    def run() -> tuple[Tensor, Tensor]:
        with torch.autocast(audit.device.type, dtype=torch.bfloat16):
            return _value_and_gradient(loss, audit, case)

    value, gradient = _must(run, "autocast", cause)
    wide = case.to(audit.dtype)
    call, (leaf,) = audit.function(wide, names=[audit.kind.primary])
    expected = call(leaf)
    (expected_gradient,) = torch.autograd.grad(expected, leaf, direction(value).to(expected.dtype))
    expect(gradient.dtype == torch.bfloat16, "another gradient dtype", gradient.dtype, torch.bfloat16, cause)
    for got, truth, what, severity in (
        (value, expected, "the loss", WRONG_VALUE),
        (gradient, expected_gradient, "the gradient", WRONG_GRADIENT),
    ):
        atol = 0.03 * largest(truth) + 1e-6
        expect_close(got, truth, f"autocast spoils {what}", cause, rtol=0.02, atol=atol, severity=severity)


@check("integration.checkpoint", _every_reduction)
def checkpoints(audit: Audit, case: Case) -> None:
    """Activation checkpointing runs the forward twice and must find the same tensors both times."""
    loss = audit.loss.bind(case.options, case.dtype)

    def again(*tensors: Tensor) -> Tensor:
        value = torch_checkpoint(loss, *tensors, use_reentrant=False)
        assert isinstance(value, Tensor)
        return value

    got = _must(lambda: _value_and_gradient(again, audit, case), "torch.utils.checkpoint", "state kept between calls")
    _equal(got, _value_and_gradient(loss, audit, case), "checkpointing", "the forward is not repeatable")


@check("integration.save_on_cpu", _every_reduction)
def saved_tensors_go_through_hooks(audit: Audit, case: Case) -> None:
    """save_on_cpu and other saved-tensor hooks replace what is saved by a copy; the backward must use that copy."""
    loss = audit.loss.bind(case.options, case.dtype)
    expected = _value_and_gradient(loss, audit, case)
    cause = "tensors are kept on ctx, or found again by identity or address"
    # On the CPU save_on_cpu copies nothing.
    copying = torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone)
    for hooks, what in ((torch.autograd.graph.save_on_cpu(), "save_on_cpu"), (copying, "saving by hooks that copy")):

        def hooked(hooks: Any = hooks) -> tuple[Tensor, Tensor]:
            with hooks:
                return _value_and_gradient(loss, audit, case)

        _equal(_must(hooked, what, cause), expected, what, cause)


def _modules(audit: Audit) -> list[Case]:
    if not audit.loss.is_module:
        raise NotApplicable("the loss is a function, not a Module")
    return audit.cases(few=True)


def _module(audit: Audit, case: Case) -> nn.Module:
    module = audit.loss.bind(case.options, case.dtype)
    assert isinstance(module, nn.Module)
    return module


@check("integration.pickle", _modules)
def pickles(audit: Audit, case: Case) -> None:
    """torch.save of a trainer and every process that is started pickle the loss."""
    module = _module(audit, case)
    home = sys.modules.get(type(module).__module__)
    if getattr(home, type(module).__qualname__, None) is not type(module):
        raise NotApplicable("the class is not at the top of a module, where pickle looks for it")
    cause = "a lambda, an open file or a closure in an attribute"

    def again() -> tuple[Tensor, Tensor]:
        file = io.BytesIO()
        pickle.dump(module, file)
        file.seek(0)
        return _value_and_gradient(pickle.load(file), audit, case)

    _equal(_must(again, "pickle", cause), _value_and_gradient(module, audit, case), "pickle", cause)
    other = repr(pickle.loads(pickle.dumps(module)))
    expect(other == repr(module), "pickle changes the options", other, repr(module), "an option that is not kept")


@check("integration.deepcopy", _modules)
def copies(audit: Audit, case: Case) -> None:
    """Averaged models, sweeps and clones copy the whole module, its loss included."""
    module = _module(audit, case)
    cause = "an attribute that cannot be copied, such as a tensor with a history"
    got = _must(lambda: _value_and_gradient(copy.deepcopy(module), audit, case), "deepcopy", cause)
    _equal(got, _value_and_gradient(module, audit, case), "deepcopy", cause)


def _weighted_modules(audit: Audit) -> list[Case]:
    if not audit.loss.is_class:
        raise NotApplicable("the loss is no Module class that a weight could be given to")
    return audit.cases(needs=("weight",), few=True)


@check("integration.state_dict", _weighted_modules)
def state_dict_holds_the_weight(audit: Audit, case: Case) -> None:
    """A checkpoint that lacks the class weights resumes with another loss."""
    if "weight" not in case.options:
        raise NotApplicable("there is no weight")
    module, other = _module(audit, case), _module(audit, case.with_options(weight=3 * case.options["weight"] + 1))
    cause = "the weight is a plain attribute, or a buffer with persistent=False"
    _must(lambda: other.load_state_dict(module.state_dict()), "load_state_dict", cause)
    got, expected = (_value_and_gradient(m, audit, case) for m in (other, module))
    _same(audit, got, expected, "a round trip through state_dict", cause)


@check("integration.moves_its_weight", _weighted_modules)
def moving_moves_the_weight(audit: Audit, case: Case) -> None:
    """`model.to(device, dtype)` moves what is registered; a weight left behind fails on the first GPU."""
    if "weight" not in case.options:
        raise NotApplicable("there is no weight")
    module = _module(audit, case)
    cause = "the weight is a plain attribute, and not registered with register_buffer"
    for target in (torch.float32, torch.bfloat16):
        module.to(target)
        left = {name: t.dtype for name, t in _tensors(module) if t.is_floating_point() and t.dtype != target}
        expect(not left, "a tensor keeps its dtype", left, f"all in {target}", cause)
    module.to("meta")
    stayed = {name: t.device.type for name, t in _tensors(module) if t.device.type != "meta"}
    expect(not stayed, "a tensor stays on its device", stayed, "all on meta", cause)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for prefix, part in module.named_modules():
        for name, value in (*vars(part).items(), *part._buffers.items(), *part._parameters.items()):
            if isinstance(value, Tensor):
                yield f"{prefix}.{name}".lstrip("."), value


@check("integration.repr", _modules, MANNERS)
def repr_is_a_line(audit: Audit, case: Case) -> None:
    """print(model) shows the loss: by its name, without pages of weights."""
    module = _module(audit, case)
    text = _must(lambda: repr(module), "repr", "extra_repr")
    expect(type(module).__name__ in text, "repr lacks the class's name", text, type(module).__name__, "extra_repr")
    expect(
        len(text) < 2000, "repr is pages long", f"{len(text)} characters", "below 2000", "extra_repr prints a tensor"
    )


@check("integration.threads", _every_reduction)
def threads(audit: Audit, case: Case) -> None:
    """Several threads share a loss, in DataParallel and in servers; it must keep nothing between calls."""
    loss = audit.loss.bind(case.options, case.dtype)
    # Every other thread has another input, so that what one keeps for the other is seen.
    name = audit.kind.primary
    other = case.with_tensors(**{name: case.tensors[name].flip(0)})
    cases = [case, other, case, other]
    expected = [_value_and_gradient(loss, audit, one) for one in cases]
    results: list[Any] = [None] * len(cases)
    gate = threading.Barrier(len(cases))

    def work(position: int) -> None:
        gate.wait()
        try:
            for _ in range(10):
                results[position] = _value_and_gradient(loss, audit, cases[position])
                if any(not torch.equal(a, b) for a, b in zip(results[position], expected[position], strict=True)):
                    return
        except Exception as error:
            results[position] = error

    workers = [threading.Thread(target=work, args=(position,)) for position in range(len(results))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    cause = "an attribute or a global that one call writes and another reads"
    for result, alone in zip(results, expected, strict=True):
        expect(isinstance(result, tuple), "a thread fails", result, "a loss", cause)
        _equal(result, alone, "another thread", cause)


def _many_rows(audit: Audit) -> list[Case]:
    return audit.in_training_dtype(audit.cases(rows=20_001, classes=10, few=True, reductions=("mean", None)))


@check("integration.deterministic", _many_rows)
def deterministic(audit: Audit, case: Case) -> None:
    """The same input gives the same bits, whatever the seed, and leaves the caller's random numbers alone."""
    loss = audit.loss.bind(case.options, case.dtype)
    state = random_state(audit.device)
    cause = "sums in the order that threads happen to finish, or random numbers"
    for count in (1, 2):
        torch.set_num_threads(count)
        first = _value_and_gradient(loss, audit, case)
        used = not torch.equal(random_state(audit.device), state)
        torch.manual_seed(99)
        _equal(_value_and_gradient(loss, audit, case), first, "a second run", cause)
        drawn = "random numbers are drawn"
        expect(not used, "the random state has moved", "another state", "the same state", drawn, MANNERS)
        torch.manual_seed(0)
        state = random_state(audit.device)


def _on_threads(audit: Audit) -> list[Case]:
    if audit.device.type != "cpu":
        raise NotApplicable(f"the threads of the CPU do not share the work on {audit.device.type}")
    return _many_rows(audit)


@check("integration.thread_counts", _on_threads)
def thread_counts(audit: Audit, case: Case) -> None:
    """Another number of threads may change the last digits, and no more."""
    loss = audit.loss.bind(case.options, case.dtype)
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(_value_and_gradient(loss, audit, case))
    cause = "threads share a buffer, or a part of the input is left out"
    severities = {"loss": WRONG_VALUE, "gradient": WRONG_GRADIENT}
    for got, expected, (what, severity) in zip(found[1], found[0], severities.items(), strict=True):
        atol = 1e-6 * largest(expected)
        summary = f"the number of threads changes the {what}"
        audit.expect_close(got, expected, summary, cause, rtol=1e-5, atol=atol, severity=severity)


@check("integration.default_dtype_and_device", _every_reduction)
def defaults_do_not_matter(audit: Audit, case: Case) -> None:
    """Code that sets a default dtype or device must not change a loss of tensors that have their own."""
    loss = audit.loss.bind(case.options, case.dtype)
    expected = _value_and_gradient(loss, audit, case)
    before = torch.get_default_dtype()
    cause = "a tensor is created without dtype= or device="

    def elsewhere() -> tuple[Tensor, Tensor]:
        try:
            torch.set_default_dtype(torch.float64)
            with torch.device("meta"):
                return _value_and_gradient(loss, audit, case)
        finally:
            torch.set_default_dtype(before)

    got = _must(elsewhere, "another default dtype and device", cause)
    on, own = got[0].device.type, audit.device.type
    expect(on == own, "the loss is on the default device", on, own, cause)
    expect(got[0].dtype == expected[0].dtype, "another dtype", got[0].dtype, shown(expected[0].dtype), cause)
    _equal(got, expected, "another default dtype", cause)

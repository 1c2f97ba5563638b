"""The loss under audit: how to call it, what it takes, and the cases to ask it about."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchlosses.testing.comparing import expect_close, largest, shown
from torchlosses.testing.kinds import IGNORED, Case, Kind, kind_named
from torchlosses.testing.loading import name_of
from torchlosses.testing.outcomes import (
    UNSUPPORTED,
    WRONG_GRADIENT,
    CannotRun,
    Failure,
    NotApplicable,
    NotSupported,
    TooLarge,
)

OPTIONS = ("reduction", "weight", "ignore_index", "label_smoothing", "linear_bias", "pos_weight")
NUMBERS = ("weight", "linear_bias", "pos_weight")
"""The options that are tensors which a loss can be differentiated by."""
SETTINGS = OPTIONS[1:]
"""The options that a plain case leaves out."""
REDUCTIONS = ("none", "mean", "sum")
SMOOTHING = 0.2
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What a loss may be audited for, the widest first."""

_UNSUPPORTED = re.compile(
    r"not implemented|(not|n't) support|unsupported|must implement|once_differentiable|setup_context|generate_vmap_rule"
    r"|does not have a forward|forward-mode AD",
    re.IGNORECASE,
)
_TOO_LARGE = re.compile(r"can't allocate memory|out of memory", re.IGNORECASE)
# A case is written out in a finding up to this many numbers a tensor.
WRITTEN = 48


class Subject:
    """A loss as it was given, called with the names of the usual options.

    Raises:
        TypeError: It cannot be called.
    """

    def __init__(self, loss: Any, fixed: Mapping[str, Any], rename: Mapping[str, str], device: torch.device) -> None:
        if not callable(loss):
            raise TypeError(f"a loss must be a function, a Module class or a Module, but got {loss!r}.")
        self.loss: Any = loss
        self.fixed, self.rename, self.device = dict(fixed), dict(rename), device
        self.is_class = inspect.isclass(loss) and issubclass(loss, nn.Module)
        self.is_instance = isinstance(loss, nn.Module)
        if self.is_instance and fixed:
            raise TypeError(
                f"the options of {name_of(loss)} are fixed, as it is an instance: give the class, or no options."
            )
        self.options = self._options()

    @property
    def is_module(self) -> bool:
        """Whether it is a Module or the class of one."""
        return self.is_class or self.is_instance

    def _options(self) -> tuple[str, ...]:
        if self.is_instance:
            return ()
        try:
            parameters = inspect.signature(self.loss).parameters
        except (TypeError, ValueError):
            return ()
        named = {name for name in OPTIONS if self.rename.get(name, name) in parameters}
        return tuple(name for name in OPTIONS if name in named and self.rename.get(name, name) not in self.fixed)

    def default(self, name: str) -> Any:
        """The default of a usual option; None where the loss has no such option, or its value is fixed."""
        if name not in self.options:
            return None
        default = inspect.signature(self.loss).parameters[self.rename.get(name, name)].default
        return None if default is inspect.Parameter.empty else default

    def bind(self, options: Mapping[str, Any], dtype: torch.dtype | None = None) -> Callable[..., Tensor]:
        """The loss with its options fixed, and its buffers on the device and in `dtype`."""
        if self.is_instance:
            return copy.deepcopy(self.loss).to(self.device, dtype)
        named = {self.rename.get(name, name): value for name, value in options.items()}
        fixed = {name: self._placed(value, dtype) for name, value in self.fixed.items()}
        if self.is_class:
            return self.loss(**fixed, **named).to(self.device, dtype)
        return functools.partial(self.loss, **fixed, **named)

    def _placed(self, value: Any, dtype: torch.dtype | None) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.device, dtype if value.is_floating_point() else None)

    def __call__(self, case: Case) -> Tensor:
        """The loss of a case."""
        return self.bind(case.options, case.dtype)(*case.tensors.values())


class Audit:
    """One loss, its kind and its reference, and what trying it out has shown.

    Args:
        loss: As for `check_loss`.
        kind: As for `check_loss`.
        reference: As for `check_loss`.
        options: As for `check_loss`.
        rename: As for `check_loss`.
        device: As for `check_loss`.
        dtypes: As for `check_loss`.
    """

    def __init__(
        self,
        loss: Any,
        kind: str | Kind,
        reference: Any = None,
        options: Mapping[str, Any] | None = None,
        rename: Mapping[str, str] | None = None,
        device: str | torch.device = "cpu",
        dtypes: Iterable[str | torch.dtype] | None = None,
    ) -> None:
        self.kind = kind_named(kind)
        self.device = _device_named(device)
        self.claimed = () if dtypes is None else _dtypes_named(dtypes)
        self.loss = Subject(loss, options or {}, rename or {}, self.device)
        self.reference = None if reference is None else Subject(reference, {}, {}, self.device)
        self.name = name_of(loss)
        self._notes: dict[str, None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What the loss was found not to take, and other facts that decide which checks apply."""
        return tuple(self._notes)

    def note(self, text: str) -> None:
        """Add a note, once."""
        self._notes[text] = None

    # Dtypes ---------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """The widest dtype that the loss is audited for: the widest claimed, else the widest that it runs in."""
        if self.claimed:
            return self.claimed[0]
        for dtype in DTYPES:
            if any(self._runs(self.kind.draw(form).to(dtype, self.device)) for form in self.kind.forms):
                if dtype != DTYPES[0]:
                    self.note(f"the widest dtype that it runs in is {short(dtype)}")
                return dtype
        return DTYPES[0]

    def _runs(self, case: Case) -> bool:
        try:
            self.loss(case)
        except Exception:
            return False
        return True

    def claims(self, dtype: torch.dtype) -> bool:
        """Whether the loss is audited in a dtype: where none was claimed, in all."""
        return not self.claimed or dtype in self.claimed

    def in_dtype(self, cases: Iterable[Case], dtype: torch.dtype) -> list[Case]:
        """The cases in another dtype.

        Raises:
            NotApplicable: The loss does not claim it.
        """
        if not self.claims(dtype):
            raise NotApplicable(f"{short(dtype)} is not among the dtypes that the loss is audited for")
        return [case.to(dtype) for case in cases]

    def in_training_dtype(self, cases: Iterable[Case]) -> list[Case]:
        """The cases in float32, or in the widest dtype of a loss that has no float32."""
        wide = torch.finfo(self.dtype).bits >= 32 and self.claims(torch.float32)
        return [case.to(torch.float32 if wide else self.dtype) for case in cases]

    @functools.cached_property
    def computes_in(self) -> torch.dtype:
        """The dtype that the loss computes in on inputs in its widest dtype, as far as its results show.

        Where it is a narrower one than the inputs', the loss of the inputs is that of the inputs rounded to it, or its
        value or gradient is a number of that dtype.
        """
        if not self.forms:
            return self.dtype
        reduction = "mean" if "mean" in self.reductions else self.reductions[0]
        case = self._case(self.forms[0], (), reduction, 6, 5, 0)
        narrower = [dtype for dtype in DTYPES if torch.finfo(dtype).bits < torch.finfo(self.dtype).bits]
        return next((dtype for dtype in reversed(narrower) if self._computes(case, dtype)), self.dtype)

    def _computes(self, case: Case, dtype: torch.dtype) -> bool:
        try:
            value, gradient = self._value_and_third_of_gradient(case)
            rounded, _ = self._value_and_third_of_gradient(case.to(dtype).to(self.dtype))
        except Exception:
            return False
        fractions = value[value != value.round()]
        if len(fractions) and (torch.equal(value, rounded) or _is_exact(fractions, dtype)):
            return True
        fractions = gradient[gradient != gradient.round()]
        return bool(len(fractions)) and _is_exact(fractions, dtype)

    def _value_and_third_of_gradient(self, case: Case) -> tuple[Tensor, Tensor]:
        """On the CPU, flat; a third of what is computed wide is no number of a narrow dtype."""
        call, (leaf,) = self.function(case, names=[self.kind.primary])
        loss = call(leaf)
        (gradient,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, 1 / 3))
        return loss.detach().flatten().cpu(), gradient.flatten().cpu()

    @property
    def eps(self) -> float:
        """The unit of the last place of 1 in the dtype that the loss computes in."""
        return torch.finfo(self.computes_in).eps

    @property
    def step(self) -> float:
        """For finite differences, about where rounding and curvature err alike.

        Raises:
            NotApplicable: They say nothing in the dtype that the loss computes in.
        """
        if self.eps > 1e-4:
            raise NotApplicable(f"finite differences say nothing of a loss that computes in {short(self.computes_in)}")
        return 1e-5 if self.eps < 1e-10 else self.eps ** (1 / 3)

    def expect_close(
        self,
        got: Tensor | None,
        expected: Tensor,
        summary: str,
        cause: str,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        severity: str | None = None,
    ) -> None:
        """As `expect_close` of two tensors, with the tolerances of the dtype that the loss computes in."""
        if self.eps > 1e-10:
            tolerance = 16 * self.eps
            size = max(1.0, largest(expected))
            rtol, atol = max(rtol or 0.0, tolerance), max(atol or 0.0, tolerance * size)
        expect_close(got, expected, summary, cause, rtol=rtol, atol=atol, severity=severity)

    def expect_gradient(
        self, got: Tensor | None, expected: Tensor, summary: str, cause: str, *, atol: float | None = None
    ) -> None:
        """As `expect_close`, where a difference is a wrong gradient."""
        self.expect_close(got, expected, summary, cause, atol=atol, severity=WRONG_GRADIENT)

    def expect_derivative(self, got: Tensor, expected: Tensor, summary: str, cause: str) -> None:
        """Fail unless `got` is what finite differences of this `step` give, as far as these are good for."""
        size = largest(expected)
        if self.eps < 1e-10:
            rtol, atol = 1e-5, 1e-6 * size + 1e-8
        else:
            rtol, atol = self.derivative_tolerances
        expect_close(got, expected, summary, cause, rtol=rtol, atol=atol, severity=WRONG_GRADIENT)

    @property
    def derivative_tolerances(self) -> tuple[float, float]:
        """The relative and the absolute tolerance for a Jacobian by finite differences."""
        return (1e-4, 1e-6) if self.eps < 1e-10 else (1e-2, 100 * self.eps ** (2 / 3))

    # What the loss takes --------------------------------------------------------------------------------------------

    @functools.cached_property
    def forms(self) -> tuple[str, ...]:
        """The forms of input that the loss accepts."""
        return tuple(form for form in self.kind.forms if self._accepts(form, (), None))

    @functools.cached_property
    def reductions(self) -> tuple[str | None, ...]:
        """The reductions that the loss has; (None,) where it has no such option."""
        if "reduction" not in self.loss.options:
            return (None,)
        return tuple(r for r in REDUCTIONS if any(self._accepts(form, (), r) for form in self.forms)) or (None,)

    @functools.cache  # noqa: B019 (an audit lives as long as its checks)
    def _accepts(self, form: str, options: tuple[str, ...], reduction: str | None) -> bool:
        case = self._case(form, options, reduction, 4, 3, 0)
        try:
            loss = self.loss(case)
        except Exception as error:
            self.note(f"{case.label}: {_one_line(error)}")
            return False
        if isinstance(loss, Tensor) and loss.is_floating_point():
            return True
        self.note(f"{case.label}: gave {type(loss).__name__}, not a floating-point tensor")
        return False

    @functools.cache  # noqa: B019
    def gives_gradient(self, name: str, form: str, options: tuple[str, ...], reduction: str | None) -> bool:
        """Whether a tensor that requires grad gets a gradient; neither a refusal nor a silent lack of one is that."""
        case = self._case(form, options, reduction, 4, 3, 0)
        every = case.everything()
        leaves = {n: every[n].clone().requires_grad_() for n in dict.fromkeys((self.kind.primary, name))}
        try:
            loss = self.loss(case.with_everything({**every, **leaves}))
            gradient = torch.autograd.grad(loss.sum(), leaves[name], allow_unused=True)[0]
        except Exception as error:
            self.note(f"no gradient by {name} for {form}: {_one_line(error)}")
            return False
        return gradient is not None

    @functools.cached_property
    def weights(self) -> tuple[str, ...]:
        """The options of the loss that weight its terms, as far as the kind has such."""
        drawn = {"weight": self.kind.weight, "pos_weight": self.kind.pos_weight}
        return tuple(name for name, draw in drawn.items() if draw is not None and name in self.loss.options)

    @functools.cached_property
    def divides_by_weights(self) -> bool:
        """Whether a weighted mean divides by the sum of the weights; torch's elementwise losses differ in that."""
        usual = "weighted mean" in self.kind.traits
        if "elementwise" not in self.kind.traits or "weight" not in self.weights or self.reductions == (None,):
            return usual
        plain = tuple(name for name in SETTINGS if name != "weight")
        try:
            (case, *_) = self.cases(needs=("weight",), without=plain, reductions=("mean",))
            losses, mean = self.loss(case.with_options(reduction="none")), self.loss(case)
        except Exception:
            return usual
        for divides, count in ((True, case.options["weight"].sum()), (False, losses.numel())):
            if torch.allclose(mean, losses.sum() / count, rtol=max(1e-6, 16 * self.eps)):
                if divides != usual:
                    by = "the sum of the weights" if divides else "the number of elements"
                    self.note(f"its weighted mean divides by {by}")
                return divides
        return usual

    def denominator(self, case: Case, losses: Tensor) -> Tensor:
        """What a mean divides by; `losses` are those of 'none'."""
        if "elementwise" in self.kind.traits and "weight" in case.options:
            return case.options["weight"].sum() if self.divides_by_weights else losses.new_tensor(losses.numel())
        return self.kind.denominator(case, losses)

    def differentiable(self, case: Case) -> list[str]:
        """The tensors of a case that the loss gives gradients for, the primary one first."""
        every = case.everything()
        possible = [n for n in (*self.kind.differentiable, *NUMBERS) if n in every]
        floating = [n for n in dict.fromkeys(possible) if every[n].is_floating_point()]
        options = tuple(name for name in OPTIONS if name in case.options and name != "reduction")
        key = (case.form, options, case.options.get("reduction"))
        return [n for n in floating if n == self.kind.primary or self.gives_gradient(n, *key)]

    def function(
        self, case: Case, subject: Subject | None = None, names: Sequence[str] | None = None
    ) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        """The loss as a function of its differentiable tensors only, and these tensors as leaves."""
        names = self.differentiable(case) if names is None else names
        every, subject = case.everything(), subject or self.loss

        def call(*tensors: Tensor) -> Tensor:
            return subject(case.with_everything({**every, **dict(zip(names, tensors, strict=True))}))

        return call, tuple(every[name].detach().clone().requires_grad_() for name in names)

    def value_and_gradients(
        self, case: Case, subject: Subject | None = None, names: Sequence[str] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss, and its gradients along a fixed direction that is exact in every dtype."""
        call, leaves = self.function(case, subject, names)
        loss = call(*leaves)
        gradients = torch.autograd.grad(loss, leaves, direction(loss), allow_unused=True)
        zeros = (torch.zeros_like(leaf) for leaf in leaves)
        return loss.detach(), tuple(z if g is None else g for g, z in zip(gradients, zeros, strict=True))

    # Cases ----------------------------------------------------------------------------------------------------------

    def cases(
        self,
        *,
        forms: Sequence[str] | None = None,
        needs: Sequence[str] = (),
        without: Sequence[str] = (),
        reductions: Sequence[str | None] | None = None,
        few: bool = False,
        tried: bool = True,
        rows: int = 4,
        classes: int = 3,
        seed: int = 0,
    ) -> list[Case]:
        """Cases in the widest dtype over the forms, reductions and combinations of options that the loss takes.

        Args:
            forms: Only these.
            needs: Options that every case has.
            without: Options that no case has.
            reductions: Only these; None leaves the option at its default.
            few: Each option alone and all of them, in place of every combination.
            tried: Only combinations that the loss was seen to take.
            rows: How many rows.
            classes: How many classes.
            seed: Of the random numbers.

        Raises:
            NotApplicable: The loss lacks an option that is needed, or there is no such case.
        """
        lacking = [name for name in needs if name not in self.loss.options]
        if lacking:
            raise NotApplicable(f"the loss has no option {' and no '.join(lacking)}")
        wanted = self.reductions if reductions is None else reductions
        chosen = [reduction for reduction in self.reductions if reduction in wanted] or [None] * (None in wanted)
        optional = [name for name in self.loss.options if name != "reduction" and name not in (*needs, *without)]
        found = []
        for form in forms or self.forms:
            if form not in self.forms:
                continue
            for more, reduction in itertools.product(_subsets(optional, few), chosen):
                options = (*needs, *more)
                if self._fits(form, options) and (not tried or self._accepts(form, options, reduction)):
                    found.append(self._case(form, options, reduction, rows, classes, seed))
        if not found:
            raise NotApplicable(self._absence(forms, needs, wanted))
        return found

    def _absence(self, forms: Sequence[str] | None, needs: Sequence[str], reductions: Sequence[str | None]) -> str:
        parts = [f"form {' or '.join(forms)}"] if forms else []
        parts += [f"option {name}" for name in needs]
        parts += [f"reduction {' or '.join(map(str, reductions))}"]
        return "the loss takes no input with " + ", ".join(parts)

    @functools.cached_property
    def droppable(self) -> frozenset[str]:
        """The options that a smaller case may leave out: those whose default means nothing special."""
        special = {"reduction": self.loss.default("reduction") == "none"}
        special["label_smoothing"] = bool(self.loss.default("label_smoothing"))
        return frozenset(name for name in self.loss.options if not special.get(name))

    def _fits(self, form: str, options: Sequence[str]) -> bool:
        return not (
            ("ignore_index" in options and not self.kind.has_indices(self.kind.draw(form)))
            or ("weight" in options and self.kind.weight is None)
            or ("pos_weight" in options and self.kind.pos_weight is None)
            or ("linear_bias" in options and "linear_weight" not in self.kind.differentiable)
            or ("label_smoothing" in options and not self.kind.classes)
        )

    def _case(
        self, form: str, options: Sequence[str], reduction: str | None, rows: int, classes: int, seed: int
    ) -> Case:
        with torch.device("cpu"):
            case = self._drawn(form, options, rows, classes, seed).to(self.dtype)
        case = case.to(device=self.device)
        return case if reduction is None else case.with_options(reduction=reduction)

    def _drawn(self, form: str, options: Sequence[str], rows: int, classes: int, seed: int) -> Case:
        case = self.kind.draw(form, rows, classes, seed)
        generator = torch.Generator().manual_seed(seed + 1)
        if "ignore_index" in options:
            name = self.kind.indices[0]
            ignored = case.tensors[name].clone()
            ignored[:1] = IGNORED
            if "shifted" in self.kind.traits:
                ignored[1:2, -1] = IGNORED
            case = case.with_tensors(**{name: ignored}).with_options(ignore_index=IGNORED)
        if "label_smoothing" in options:
            case = case.with_options(label_smoothing=SMOOTHING)
        elif self.loss.default("label_smoothing"):
            case = case.with_options(label_smoothing=0.0)
        if "weight" in options and self.kind.weight is not None:
            case = case.with_options(weight=self.kind.weight(case, generator))
        if "linear_bias" in options:
            case = case.with_options(linear_bias=torch.randn(classes, generator=generator, dtype=torch.float64))
        if "pos_weight" in options and self.kind.pos_weight is not None:
            case = case.with_options(pos_weight=self.kind.pos_weight(case, generator))
        return case

    # Words ----------------------------------------------------------------------------------------------------------

    def call_text(self, case: Case) -> str:
        """The call as Python, as far as the tensors are small."""
        name = self.name.rpartition(".")[2]
        options = {self.loss.rename.get(key, key): value for key, value in case.options.items()}
        keywords = [f"{key}={_literal(value)}" for key, value in {**self.loss.fixed, **options}.items()]
        tensors = [_literal(tensor) for tensor in case.tensors.values()]
        if self.loss.is_module:
            return f"{name}({', '.join(keywords)})({', '.join(tensors)})"
        return f"{name}({', '.join([*tensors, *keywords])})"

    def verdict_on(self, error: Exception) -> Exception:
        """What an error of the loss means for a check that did not expect it."""
        if isinstance(error, MemoryError) or _TOO_LARGE.search(str(error)):
            return TooLarge(_one_line(error))
        if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(str(error)):
            return NotSupported(_one_line(error))
        return Failure(
            f"raised {type(error).__name__}",
            _one_line(error),
            "no error",
            "the loss cannot handle this input or this use",
            severity=UNSUPPORTED,
        )


def direction(loss: Tensor) -> Tensor:
    """An incoming gradient whose numbers differ and are multiples of 1/4, exact in every dtype."""
    numbers = torch.arange(loss.numel(), device=loss.device) % 5
    return (numbers.to(loss.dtype) * 0.5 - 0.75).reshape(loss.shape)


def supported(attempt: Callable[[], Any]) -> Any:
    """The value of `attempt`; raises `NotSupported` where it raises, for uses that a loss may refuse."""
    try:
        return attempt()
    except (Failure, CannotRun):
        raise
    except Exception as error:
        raise NotSupported(_one_line(error)) from error


def short(dtype: torch.dtype) -> str:
    """A dtype without its module."""
    return str(dtype).removeprefix("torch.")


def _is_exact(numbers: Tensor, dtype: torch.dtype) -> bool:
    """Whether the numbers are numbers of a dtype."""
    return torch.equal(numbers.to(dtype).to(numbers.dtype), numbers)


def _device_named(device: str | torch.device) -> torch.device:
    try:
        zero = torch.zeros((), device=device)
        zero.item()
        return zero.device
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ValueError(f"there is no device {str(device)!r} here: {_one_line(error)}") from error


def _dtypes_named(dtypes: Iterable[str | torch.dtype]) -> tuple[torch.dtype, ...]:
    """The dtypes, the widest first."""
    if isinstance(dtypes, str):
        raise TypeError(f"expected several dtypes, but got {dtypes!r}: write [{dtypes!r}].")
    known = {short(dtype): dtype for dtype in DTYPES}
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        got = repr(wrong[0]) if wrong else "nothing"
        raise ValueError(f"{got} is not a dtype that a loss is audited for: expected some of {', '.join(known)}.")
    return tuple(dtype for name, dtype in known.items() if name in names)


def _subsets(names: Sequence[str], few: bool) -> Iterator[tuple[str, ...]]:
    sizes = sorted({0, 1, len(names)} & set(range(len(names) + 1))) if few else range(len(names) + 1)
    for size in sizes:
        yield from itertools.combinations(names, size)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text[:300]}"


def _literal(value: object) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() > WRITTEN or value.device.type == "meta":
        return f"<{short(value.dtype)} tensor of shape {tuple(value.shape)}: {shown(value)}>"
    numbers = re.sub(r"\b(nan|inf)\b", r"float('\1')", repr(value.detach().tolist()))
    usual = (torch.float32, torch.int64, torch.bool)
    dtype = "" if value.dtype in usual else f", dtype={value.dtype}"
    device = "" if value.device.type == "cpu" else f", device={str(value.device)!r}"
    return f"torch.tensor({numbers}{dtype}{device})"

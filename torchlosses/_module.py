"""What is the same for all losses as modules, and for all functions that a Tensor subclass may take over."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import handle_torch_function, has_torch_function_variadic
from typing_extensions import TypeVar

from torchlosses import _validation
from torchlosses._forked import differentiate_with_one_thread, one_thread, threads_are_gone
from torchlosses._nested import any_nested, over_values
from torchlosses._pytorch import overrides_enabled


def intercepted(*tensors: Any) -> bool:
    """Whether `overridden` sees to the call: a subclass or a mode takes it over, or the process is a forked one."""
    return has_torch_function_variadic(*tensors) or threads_are_gone()


def overridden(function: Callable[..., Any], tensors: tuple[Any, ...], arguments: Mapping[str, Any]) -> Any:
    """What is made of a call by a subclass or a mode, which is given every argument by name, or a forked process."""
    if threads_are_gone():
        with one_thread():
            result = function(**arguments)
        loss = result[0] if isinstance(result, tuple) else result
        differentiate_with_one_thread(loss.grad_fn, {tensor.grad_fn for tensor in tensors if tensor is not None})
        return result
    if any_nested(tensors):
        return over_values(function, arguments)
    if torch.compiler.is_compiling() and not overrides_enabled():
        # The compiler asks also where a subclass has taken over already, and calls back.
        return function(**{name: _without_overrides(value) for name, value in arguments.items()})
    return handle_torch_function(function, tensors, **arguments)


def _without_overrides(value: Any) -> Any:
    """The values of a subclass. Compiled code has them as a plain tensor, which operators take, if it computes them."""
    return value if type(value) in (Tensor, Parameter) or not isinstance(value, Tensor) else value.neg().neg()


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The default values of a function's arguments."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


# Tensors, which are buffers, and what is not supported or becomes options of other names.
_WEIGHTS = ("weight", "pos_weight")
_NOT_KEPT = {*_WEIGHTS, "size_average", "reduce", "options"}
# What a call gives: with `return_stats` a pair.
Result_co = TypeVar("Result_co", covariant=True, default=Tensor)


class _Plain:
    """Python lets an object change its class, as FSDP does, if the first of all bases below object has a `__dict__`.

    `Generic` has none.
    """


_SECTIONS = ("Args", "Shape", "Raises", "Edge cases", "Example", "Source")


def _sections(docstring: str | None) -> dict[str, str]:
    """The sections of a docstring by their titles, what stands before them by ''."""
    head, *others = re.split(
        rf"^({'|'.join(_SECTIONS)}):", inspect.cleandoc(docstring or "") + "\n\n", flags=re.MULTILINE
    )
    return {"": head, **dict(zip(others[::2], others[1::2], strict=True))}


def _arguments(sections: dict[str, str]) -> dict[str, str]:
    """What is said of each argument."""
    return dict(re.findall(r"^    (\w+):(.*\n(?:     .*\n)*)", sections.get("Args", ""), re.MULTILINE))


def _documented(module: Any) -> str:
    """A module's docstring, with what its function says of the arguments that both take, and what all modules share."""
    name, own = module.function.__name__, _sections(module.__doc__)
    said = _arguments(_sections(module.function.__doc__)) | _arguments(own)
    arguments = [f"    {key}:{said[key]}" for key in inspect.signature(module).parameters if key in said]
    call = f"\nThe call takes `normalizer` and `sample_weight`, as `{name}` does.\n\n"
    errors = "ValueError: An option is none of its values.", "TypeError: An argument has the wrong type."
    raises = "\n    ".join(["", *errors, f"Errors of the call are those of `{name}`.\n\n"])
    shared = {"Raises": raises, "Edge cases": f" as for `{name}`.\n\n", "Source": f" as for `{name}`.\n"}
    sections = shared | own | {"Args": "\n" + "".join(arguments) + call}
    return own[""] + "".join(f"{title}:{sections[title]}" for title in _SECTIONS if title in sections)


class LossModule(_Plain, Generic[Result_co]):
    """A module that keeps options of its function as attributes of the same names.

    Its docstring describes the arguments that are its own; `help` has those of its function from there.

    Attributes:
        function: The loss.
        kept: The names of the options, which the constructor and the function both take, in the constructor's order.
        weights: The names of the tensors that both take.
        shown: The options that `repr` shows also where they have their default values.
    """

    function: Callable[..., Any]
    kept: tuple[str, ...]
    weights: tuple[str, ...]
    shown: tuple[str, ...] = ("reduction",)

    def __init_subclass__(cls, **arguments: Any) -> None:
        """What a loss of its own keeps; its subclasses may have another constructor."""
        super().__init_subclass__(**arguments)
        if "function" in vars(cls):
            taken = inspect.signature(cls.function).parameters.keys()
            both = [name for name in inspect.signature(cls).parameters if name in taken]
            cls.kept = tuple(name for name in both if name not in _NOT_KEPT)
            cls.weights = tuple(name for name in both if name in _WEIGHTS)
            if cls.__doc__:
                cls.__doc__ = _documented(cls)

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        normalizer: Tensor | float | None = None,
        sample_weight: Tensor | None = None,
    ) -> Any:
        """The loss of `input` against `target`, as its function gives it."""
        return type(self).function(
            input=input,
            target=target,
            normalizer=normalizer,
            sample_weight=sample_weight,
            **self.tensors(),
            **self.options(),
        )

    if TYPE_CHECKING:
        # That of torch.nn.Module takes and gives anything.
        def __call__(
            self,
            input: Tensor,
            target: Tensor,
            *,
            normalizer: Tensor | float | None = None,
            sample_weight: Tensor | None = None,
        ) -> Result_co: ...

    def keep(self, **options: Any) -> None:
        """Check options, and keep them."""
        for name, value in _validation.checked(options).items():
            setattr(self, name, value)

    def tensors(self) -> dict[str, Tensor | None]:
        """The module's own, as the function takes them."""
        return {name: getattr(self, name) for name in self.weights}

    def options(self) -> dict[str, Any]:
        """The options, as the function takes them."""
        return {name: getattr(self, name) for name in self.kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also of a module that was pickled before it had all of its options."""
        defaults = defaults_of(type(self).function)
        missing = {name: defaults[name] for name in self.kept if name not in state}
        super().__setstate__(missing | state)  # type: ignore[misc]

    def extra_repr(self) -> str:
        """The options that are not what they are by default, and a weight's shape."""
        defaults = defaults_of(type(self).function)
        parts = []
        for name in _WEIGHTS:
            if isinstance(weight := getattr(self, name, None), Tensor):
                parts.append(f"{name}={tuple(weight.shape)}")
        for name in self.kept:
            value = getattr(self, name, defaults[name])
            if name in self.shown or (value is not defaults[name] and value != defaults[name]):
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)

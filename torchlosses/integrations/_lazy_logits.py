"""Logits that are not computed until somebody looks at them: what a language model's head returns in their place.

A head is a product, y = W x + b, and most of what happens to y before the loss can be said without y: it is scaled,
capped, cast, cut by rows, reshaped. `Lazy` is that saying: the features x, W, b, and the steps. A cross-entropy of
it is a `linear_cross_entropy` of the features. Everything else replays the steps on the product, once, and goes on with
the real logits, as if they had been there all along.

It has two faces. Outside of torch.compile it is a Tensor, `LazyLogits`, which autograd, hooks, DistributedDataParallel
and FSDP2 take for the logits: it has their shape, dtype and derivative. The compiler cannot trace the construction of
such a Tensor; there it is a named tuple with a tensor's methods, `TracedLogits`. Where a named tuple leaves a compiled
region the compiler makes it with `_make`, which returns the Tensor.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

import torchlosses
from torchlosses import RowStatistics


@dataclass
class Options:
    """What `apply` was told, checked: a wrong number should not wait for the first loss."""

    logits: str
    on_fallback: str
    z_loss: float
    label_smoothing: float
    stats: bool

    def __post_init__(self) -> None:
        for name, choices in {"logits": ("lazy", "none", "eager"), "on_fallback": ("warn", "ignore", "raise")}.items():
            if getattr(self, name) not in choices:
                expected = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {expected}, but got {getattr(self, name)!r}.")
        checked = torchlosses.CrossEntropyLoss(z_loss=self.z_loss, label_smoothing=self.label_smoothing)
        self.z_loss, self.label_smoothing = checked.z_loss, checked.label_smoothing


class Loss(NamedTuple):
    """A loss that was computed without the logits: what it knew of them."""

    scale: float
    soft_cap: float | None
    adapters: int


class Notes:
    """What was seen of one model: for `explain`, for warnings that come once, and for the statistics."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.fallbacks: dict[str, str] = {}
        self.losses: list[Loss] = []
        self.head_was_called = False
        self.totals: Tensor | None = None
        self._register()

    def _register(self) -> None:
        # A string is what the compiler takes for a constant.
        self.number = str(id(self))
        _NOTES[self.number] = self

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register()

    def count(self, found: RowStatistics, counts: Tensor) -> None:
        """Add up what a loss knows of its rows: how many, how many correct, entropy, log Σ exp and z-loss."""
        assert self.totals is not None
        fields = counts, found.correct, found.entropy, found.log_sum_exp, found.z_loss
        sums = torch.stack([field.sum(dtype=self.totals.dtype) for field in fields])
        self.totals.add_(sums.to(self.totals.device))


_NOTES: weakref.WeakValueDictionary[str, Notes] = weakref.WeakValueDictionary()


def note_fallback(number: str, operation: str, reason: str) -> None:
    """The logits are made: remember why, and say so once if the user wants to hear it."""
    notes = _NOTES[number]
    message = f"{operation}: {reason}"
    if notes.options.on_fallback == "raise":
        raise RuntimeError(f"{message} (on_fallback='raise').")
    if operation in notes.fallbacks:
        return
    notes.fallbacks[operation] = reason
    if notes.options.on_fallback == "warn":
        added = [name for name in ("z_loss", "label_smoothing", "stats") if getattr(notes.options, name)]
        but = f", without {', '.join(added)}" if added and operation != "cross_entropy" else ""
        warnings.warn(
            f"{message}. The result is the model's own{but}. See torchlosses.integrations.transformers.explain(model); "
            "on_fallback='ignore' hides this.",
            stacklevel=2,
        )


def note_loss(number: str, scale: float, soft_cap: float | None, adapters: int) -> None:
    """A loss was computed without the logits."""
    loss = Loss(scale, soft_cap, adapters)
    losses = _NOTES[number].losses
    if loss not in losses:
        losses.append(loss)


# What torch.compiler.assume_constant_result sets, which would import the whole compiler: both run while it traces.
note_fallback._dynamo_marked_constant = True  # type: ignore[attr-defined]
note_loss._dynamo_marked_constant = True  # type: ignore[attr-defined]


class Chain:
    """scale · B A x for linear layers A, B, ... without biases, not computed: a head's input, or what an adapter adds.

    Any operation that it does not know is applied to the value.
    """

    def __init__(
        self, x: Any, weights: tuple[Any, ...] = (), scale: float = 1.0, module: Any = None, notes: Any = None
    ) -> None:
        self.x, self.weights, self.scale = x, weights, scale
        self.module, self.notes = module, notes

    def value(self) -> Any:
        """What it stands for."""
        y = self.x
        for weight in self.weights:
            y = F.linear(y, weight)
        return y if self.scale == 1.0 else y * self.scale

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and isinstance(args[0], Chain):
            chain, weight, *more = args
            bias = more[0] if more else None
            if chain.notes is not None:
                return lazy_linear(chain.x, weight, bias, chain.module, chain.notes)
            if bias is None:
                return Chain(chain.x, (*chain.weights, weight), chain.scale)
        return func(*_values(tuple(args)), **_values(dict(kwargs or {})))

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, (int, float)) and self.notes is None:
            return Chain(self.x, self.weights, self.scale * other)
        return self.value() * other

    def __getattr__(self, name: str) -> Any:
        if name in ("x", "weights", "scale"):
            raise AttributeError(name)
        return getattr(self.value(), name)


class Product(NamedTuple):
    """scale · B A x, what a low-rank adapter adds; the compiler makes a tuple before it makes what holds it."""

    x: Tensor
    a: Tensor
    b: Tensor
    scale: float


def _is_deferred(value: Any) -> bool:
    return isinstance(value, (LazyLogits, TracedLogits, Chain))


def _values(given: Any) -> Any:
    """The same with values in place of what is not computed yet."""
    if isinstance(given, Chain):
        return given.value()
    if is_lazy(given):
        return real(_lazy(given))
    if type(given) in (list, tuple):
        return type(given)([_values(entry) for entry in given])
    if type(given) is dict:
        return {name: _values(entry) for name, entry in given.items()}
    return given


class Lazy(NamedTuple):
    """The logits as a saying: steps(weight @ features + bias)."""

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    steps: tuple[tuple[str, Any], ...]
    dtype: torch.dtype
    # What autocast makes of the product; None without it.
    autocast: torch.dtype | None
    # Whether gradients were recorded where the logits would have been made.
    recording: bool
    training: bool
    module: nn.Module
    notes: Notes
    # The real logits, once somebody has looked at them.
    made: list[Tensor]
    # What has happened to these logits or others that may share their memory: "changed", "fused".
    events: list[str]


def lazy_linear(x: Tensor, weight: Tensor, bias: Tensor | None, module: nn.Module, notes: Notes) -> Any:
    """What a head returns for its features."""
    if type(weight) not in (Tensor, nn.Parameter):
        if torch.is_grad_enabled():
            note_fallback(notes.number, "head", f"its weight is a {type(weight).__name__}, whose product is its own")
        return F.linear(x, weight, bias)
    autocast = _autocast_dtype(x.device)
    dtype = x.dtype if autocast is None or x.dtype == torch.float64 else autocast
    recording, training = torch.is_grad_enabled(), module.training
    lazy = Lazy(x, weight, bias, (), dtype, autocast, recording, training, module, notes, [], [])
    if notes.options.logits == "eager":
        real(lazy)
    return _face(lazy)


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def _tensors(lazy: Any) -> list[Tensor | None]:
    """Everything in it that may have a gradient."""
    found: list[Tensor | None] = [lazy.features, lazy.weight, lazy.bias]
    for kind, operand in lazy.steps:
        if kind == "add":
            found.append(operand)
        elif kind == "add product":
            found += operand[:3]
    return found


def _with_tensors(lazy: Any, tensors: Sequence[Tensor | None]) -> Lazy:
    """The same of other tensors, in the order of `_tensors`."""
    features, weight, bias, *rest = tensors
    others: Any = iter(rest)

    def now(kind: str, operand: Any) -> Any:
        if kind == "add product":
            return Product(next(others), next(others), next(others), operand.scale)
        return next(others) if kind == "add" else operand

    steps = tuple([(kind, now(kind, operand)) for kind, operand in lazy.steps])
    return _changed(lazy, features=features, weight=weight, bias=bias, steps=steps, made=[], events=[])


def _changed(lazy: Any, **changes: Any) -> Lazy:
    # `_replace` goes by way of `_make`, which the traced face has for another purpose.
    return Lazy(*[changes[name] if name in changes else getattr(lazy, name) for name in Lazy._fields])


def _shape(lazy: Any) -> torch.Size:
    return torch.Size((*lazy.features.shape[:-1], lazy.weight.shape[0]))


def _lazy(face: Any) -> Any:
    return face if isinstance(face, TracedLogits) else face.lazy


def is_lazy(value: Any) -> bool:
    """Whether it is one of the faces of lazy logits."""
    return isinstance(value, (LazyLogits, TracedLogits))


def _face(lazy: Any) -> Any:
    """What stands for the logits in this place."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return TracedLogits(*[getattr(lazy, name) for name in Lazy._fields])
    return _Logits.apply(lazy, *_tensors(lazy))


def real(lazy: Any) -> Tensor:
    """The logits themselves, computed at the first look."""
    if lazy.made:
        return lazy.made[0]
    if "changed" in lazy.events:
        raise RuntimeError(
            "These logits may share memory with logits that were changed in place after these were taken of them, "
            "so that their values are not known. Take them after the change, or change a copy."
        )
    recording = lazy.recording and torch.is_grad_enabled()
    with torch.set_grad_enabled(recording):
        y = _compute(lazy)
    if recording or not lazy.recording:
        lazy.made.append(y)
    return y


def _compute(lazy: Any) -> Tensor:
    with _as_at_the_head(lazy):
        y = F.linear(lazy.features, lazy.weight, lazy.bias)
        for kind, operand in lazy.steps:
            if kind == "multiply":
                y = y * operand
            elif kind == "divide":
                y = y / operand
            elif kind == "tanh":
                y = torch.tanh(y)
            elif kind == "cast":
                y = y.to(operand)
            elif kind == "add":
                y = y + operand
            else:
                y = y + F.linear(F.linear(operand.x, operand.a), operand.b) * operand.scale
    return y


def _as_at_the_head(lazy: Any) -> Any:
    """Autocast as it was where the head was called, and the weight in memory."""
    device = lazy.features.device
    autocast: Any = contextlib.nullcontext()
    if lazy.autocast != _autocast_dtype(device):
        autocast = torch.autocast(device.type, dtype=lazy.autocast, enabled=lazy.autocast is not None)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or lazy.weight.numel() == 0:
        return autocast
    if lazy.weight.untyped_storage().size() > 0:
        return autocast
    return _gathered(lazy, autocast)


@contextlib.contextmanager
def _gathered(lazy: Any, autocast: Any) -> Iterator[None]:
    """FSDP2 frees a head that is sharded alone behind its forward; a backward frees it again."""
    if not hasattr(lazy.module, "unshard"):
        raise RuntimeError(
            "The memory of the head's weight was freed before the loss was computed. Compute the loss in the model "
            "(labels=...), or shard the module that holds the head with reshard_after_forward=False."
        )
    lazy.module.unshard()
    with autocast:
        yield
    if not torch.is_grad_enabled():
        lazy.module.reshard()


# What can be said without the logits.


_CASTS = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}
_MULTIPLY = ("mul", "multiply", "rmul")
_DIVIDE = ("div", "divide", "true_divide", "truediv")
_ADD = ("add", "radd")


# Up to torch 2.10, the compiler does not ask whether one `Lazy` is another.
_ITSELF = "itself"


def _operate(lazy: Any, name: str, arguments: Any, keywords: Any) -> Any:
    """The result of an operation on logits as a `Lazy`: None where it takes them, `_ITSELF` if nothing changes."""
    if name == "to":
        return _to(lazy, arguments, keywords)
    if keywords:
        return None
    if len(arguments) == 0:
        return _operate_alone(lazy, name)
    if name in _MULTIPLY or name in _DIVIDE:
        factor = arguments[0]
        if len(arguments) == 1 and isinstance(factor, (int, float)) and not isinstance(factor, bool):
            return _step(lazy, "multiply" if name in _MULTIPLY else "divide", factor)
    elif name in _ADD and len(arguments) == 1:
        return _add(lazy, arguments[0])
    elif name == "getitem":
        return _index(lazy, arguments[0])
    elif name in ("view", "reshape"):
        return _view(lazy, arguments[0] if isinstance(arguments[0], (tuple, list)) else arguments)
    elif name == "flatten" and tuple(arguments) in ((0, 1), (0, -2)) and lazy.features.dim() == 3:
        return _of_rows(lazy, lambda x: x.flatten(0, 1))
    return None


def _operate_alone(lazy: Any, name: str) -> Any:
    if name in _CASTS:
        return _cast(lazy, _CASTS[name])
    if name == "contiguous":
        return _ITSELF
    if name == "clone":
        return _changed(lazy, made=[], events=[])
    if name == "tanh":
        return _step(lazy, "tanh", None)
    if name == "detach":
        tensors = [None if tensor is None else tensor.detach() for tensor in _tensors(lazy)]
        return _changed(_with_tensors(lazy, tensors), recording=False, events=lazy.events)
    return None


def _step(lazy: Any, kind: str, operand: Any) -> Lazy:
    return _changed(lazy, steps=(*lazy.steps, (kind, operand)), made=[], events=[])


def _of_rows(lazy: Any, choose: Callable[[Tensor], Tensor]) -> Lazy:
    """The logits of some of the rows, or of the rows in another shape; `choose` does it to (rows, features)."""
    features = choose(lazy.features)

    def now(kind: str, operand: Any) -> Any:
        if kind != "add product":
            return operand
        return Product(features if operand.x is lazy.features else choose(operand.x), *operand[1:])

    return _changed(lazy, features=features, steps=tuple([(kind, now(kind, o)) for kind, o in lazy.steps]), made=[])


def _cast(lazy: Any, dtype: torch.dtype) -> Any:
    return _ITSELF if dtype == lazy.dtype else _changed(_step(lazy, "cast", dtype), dtype=dtype)


def _to(lazy: Any, arguments: Any, keywords: Any) -> Any:
    dtype = lazy.dtype
    for name in keywords:
        if name not in ("dtype", "device", "non_blocking"):
            return None
    for value in (*arguments, keywords.get("dtype"), keywords.get("device")):
        if isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, (torch.device, str)):
            if torch.device(value) != lazy.features.device:
                return None
        elif value is not None:
            return None
    return _cast(lazy, dtype) if dtype.is_floating_point else None


def _add(lazy: Any, other: Any) -> Any:
    if isinstance(other, Chain):
        if len(other.weights) != 2 or (*other.x.shape[:-1], other.weights[1].shape[0]) != tuple(_shape(lazy)):
            return None
        dtype = lazy.autocast or torch.promote_types(lazy.dtype, other.x.dtype)
        product = Product(other.x, *other.weights, other.scale)
        return _changed(_step(lazy, "add product", product), dtype=dtype)
    if not isinstance(other, Tensor) or _is_deferred(other):
        return None
    classes = lazy.weight.shape[0]
    is_bias = other.numel() == classes and other.shape[-1:] == (classes,) and other.dim() <= lazy.features.dim()
    if not is_bias or not other.is_floating_point():
        return None
    return _changed(_step(lazy, "add", other.reshape(classes)), dtype=torch.promote_types(lazy.dtype, other.dtype))


def _index(lazy: Any, index: Any) -> Any:
    """Rows that are chosen; all classes must stay."""
    index = index if isinstance(index, tuple) else (index,)
    rows = lazy.features.dim() - 1
    taken, has_ellipsis = 0, False
    for entry in index:
        if isinstance(entry, Tensor) and not _is_deferred(entry):
            taken += entry.dim() if entry.dtype == torch.bool else 1
        elif entry is Ellipsis:
            has_ellipsis = True
        elif entry is not None:
            if isinstance(entry, bool) or not isinstance(entry, (int, slice, torch.SymInt)):
                return None
            taken += 1
    if has_ellipsis or taken > rows:
        # The last entry is that of the classes.
        last = index[-1]
        if taken > rows + 1 or not isinstance(last, slice) or last != slice(None):
            return None
    return _of_rows(lazy, lambda x: x[index])


def _view(lazy: Any, shape: Any) -> Any:
    if len(shape) == 0 or not all(isinstance(size, (int, torch.SymInt)) for size in shape):
        return None
    *rows, classes = shape
    own = lazy.weight.shape[0]
    # -1 stands for the classes where the rows come out as they are.
    if classes != own and (classes != -1 or torch.Size(rows).numel() * own != _shape(lazy).numel()):
        return None
    return _of_rows(lazy, lambda x: x.reshape(*rows, x.shape[-1]))


# The losses.


class _Terms(NamedTuple):
    """What the steps come to: y -> scale · y, soft-capped."""

    scale: float
    soft_cap: float | None
    bias: Tensor | None
    products: list[Product]


def _terms(lazy: Any) -> _Terms | None:
    """The steps as scale, soft cap and what is added; None where they are something else."""
    scale, cap, bias = 1.0, None, lazy.bias
    products: list[Product] = []
    for kind, operand in lazy.steps:
        if kind in ("multiply", "divide"):
            if operand == 0:
                return None
            factor = operand if kind == "multiply" else 1 / operand
            if cap is None:
                scale = scale * factor
            else:
                cap = cap * factor
        elif kind == "tanh":
            if cap is not None:
                return None
            cap = 1.0
        elif kind in ("add", "add product"):
            if cap is not None or scale != 1.0:
                return None
            if kind == "add product":
                products.append(operand)
            else:
                added = operand.to(lazy.weight.dtype)
                bias = added if bias is None else bias + added
    if cap is None:
        return _Terms(scale, None, bias, products)
    # c tanh(s y) = c tanh((c s) y / c)
    return _Terms(scale * cap, cap, bias, products) if cap > 0 else None


# What a function that computes a cross-entropy may be given, beside the logits and the target.
_TORCH_ARGUMENTS = ("weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")


def _torch_cross_entropy(lazy: Any, target: Any, *arguments: Any, **keywords: Any) -> Any:
    """`torch.nn.functional.cross_entropy` of lazy logits."""
    given = {**dict(zip(_TORCH_ARGUMENTS, arguments, strict=False)), **keywords}
    if given.pop("size_average", None) is not None or given.pop("reduce", None) is not None:
        _fall_back(lazy, "cross_entropy", "size_average and reduce are legacy options of PyTorch")
        return F.cross_entropy(real(lazy), target, *arguments, **keywords)
    return _cross_entropy(lazy, target, given)


# What only the logits themselves can have, and the values that ask for none of it.
_OF_LOGITS: dict[str, tuple[Any, ...]] = {
    "inplace_backward": (False,), "dim": (1, -1), "size_average": (None,), "reduce": (None,)
}  # fmt: skip


def _own_cross_entropy(given: dict[str, Any]) -> Any:
    """`torchlosses.cross_entropy` of lazy logits, which hands over all of its arguments by name."""
    given = dict(given)
    face, target = given.pop("input"), given.pop("target")
    if not is_lazy(face):
        return torchlosses.cross_entropy(face, _values(target), **_values(given))
    lazy = _lazy(face)
    for name, taken in _OF_LOGITS.items():
        if given.get(name, taken[0]) not in taken:
            _fall_back(lazy, "cross_entropy", f"{name} is for logits that exist")
            return torchlosses.cross_entropy(real(lazy), _values(target), **given)
    given = {name: value for name, value in given.items() if name not in _OF_LOGITS}
    scale, cap = given.pop("logit_scale", 1.0), given.pop("logit_softcap", None)
    if scale != 1.0:
        lazy = _step(lazy, "multiply", scale)
    if cap is not None:
        lazy = _step(_step(_step(lazy, "divide", cap), "tanh", None), "multiply", cap)
    return _cross_entropy(lazy, target, given)


def _cross_entropy(lazy: Any, target: Any, given: dict[str, Any]) -> Any:
    """The loss that was asked for, with what `apply` was told to add to it in training."""
    notes = lazy.notes
    given = dict(given)
    asked_for_statistics = given.pop("return_stats", False)
    counting = lazy.training and notes.options.stats
    if lazy.training:
        given["z_loss"] = given.get("z_loss", 0.0) or notes.options.z_loss
        given["label_smoothing"] = given.get("label_smoothing", 0.0) or notes.options.label_smoothing
    given["return_stats"] = asked_for_statistics or counting
    terms, reason = _fusible(lazy, target, given)
    result: Any
    if terms is None:
        _fall_back(lazy, "cross_entropy", reason)
        result = torchlosses.cross_entropy(real(lazy), _values(target), **given)
    else:
        lazy.events.append("fused")
        note_loss(notes.number, terms.scale, terms.soft_cap, len(terms.products))
        device = lazy.features.device
        dtype = lazy.dtype if _autocast_dtype(device) is None else torch.promote_types(lazy.dtype, torch.float32)
        given["loss_dtype"] = given.get("loss_dtype") or dtype
        with torch.set_grad_enabled(lazy.recording and torch.is_grad_enabled()), _as_at_the_head(lazy):
            result = _fused_loss(lazy.features, lazy.weight, target, terms, given)
    if not given["return_stats"]:
        return result
    loss, found = result
    if counting:
        with torch.no_grad():
            counts = torch.ones_like(found.correct)
            if target.dim() == found.correct.dim():
                counts = target != given.get("ignore_index", -100)
            notes.count(found, counts)
    return (loss, found) if asked_for_statistics else loss


def _fusible(lazy: Any, target: Any, given: dict[str, Any]) -> tuple[_Terms | None, str]:
    """What the loss is computed from without the logits; or nothing, and why."""
    if lazy.notes.options.logits == "eager":
        return None, "logits='eager'"
    if "changed" in lazy.events:
        return None, "the logits were changed in place"
    if lazy.features.dim() != 2:
        return None, f"logits of {lazy.features.dim()} dimensions; (rows, classes) would be fused"
    if _is_deferred(target):
        return None, "the target is made of logits"
    terms = _terms(lazy)
    return terms, "" if terms else "what was done to the logits is more than a scale, a bias, an adapter and a soft cap"


def _fused_loss(features: Tensor, weight: Tensor, target: Tensor, terms: _Terms, given: dict[str, Any]) -> Any:
    """`linear_cross_entropy` of what the logits would be made of."""
    alike = [product for product in terms.products if product.x is features]
    others = [product for product in terms.products if product.x is not features]
    low_rank = None
    if alike:
        a = torch.cat([product.a for product in alike]).to(weight.dtype)
        low_rank = (a, torch.cat([product.scale * product.b for product in alike], 1).to(weight.dtype), 1.0)
    for product in others:
        # A dropout in front of an adapter: it has features of its own, which stand beside the others.
        reduced = F.linear(product.x, product.a).to(features.dtype)
        features = torch.cat([features, reduced], -1)
        weight = torch.cat([weight, (product.scale * product.b).to(weight.dtype)], 1)
        if low_rank is not None:
            low_rank = (F.pad(low_rank[0], (0, reduced.shape[-1])), *low_rank[1:])
    return torchlosses.linear_cross_entropy(
        features,
        weight,
        target,
        linear_bias=terms.bias,
        logit_scale=terms.scale,
        logit_softcap=terms.soft_cap,
        low_rank=low_rank,
        **given,
    )


# The faces.


def _fall_back(lazy: Any, operation: str, reason: str) -> None:
    """Say that the logits are made, where gradients are recorded: elsewhere that is what logits are for."""
    if lazy.recording and not lazy.made and lazy.notes.options.logits != "eager":
        note_fallback(lazy.notes.number, operation, reason)


_HOOKS = ("register_hook", "retain_grad", "register_post_accumulate_grad_hook")
_IN_PLACE = (
    *("setitem", "delitem", "iadd", "isub", "imul", "imatmul", "itruediv", "idiv", "ifloordiv", "imod", "ipow"),
    *("ilshift", "irshift", "iand", "ior", "ixor", *_HOOKS),
)


def name_of(function: Any) -> str:
    """Its name, without the underscores of an operator."""
    name = getattr(function, "__name__", "")
    return name[2:-2] if name.startswith("__") and name.endswith("__") else name


# The compiler knows a function of PyTorch, but not its attributes.
name_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _dispatch(call: Any, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """An operation that has lazy logits among its arguments."""
    if call is torchlosses.cross_entropy:
        return _own_cross_entropy(keywords)
    face = arguments[0] if arguments else None
    if is_lazy(face):
        lazy, others = _lazy(face), arguments[1:]
        if call is F.cross_entropy:
            return _torch_cross_entropy(lazy, *others, **keywords)
        if name in _IN_PLACE or name.endswith("_"):
            return _change(face, call, name, others, keywords)
        found = _operate(lazy, name, others, keywords)
        if isinstance(found, str):
            return face
        if found is not None:
            if "changed" in lazy.events:
                found = _changed(found, made=[call(real(lazy), *others, **keywords)], events=["changed"])
            return _face(found)
    _note_operands(arguments, name)
    _note_operands(tuple(keywords.values()), name)
    return call(*_values(arguments), **_values(keywords))


def _note_operands(given: Any, name: str) -> None:
    for value in given:
        if is_lazy(value):
            _fall_back(_lazy(value), name, "this operation takes logits that exist, so they are made")
        elif type(value) in (list, tuple):
            _note_operands(value, name)


def _change(face: Any, call: Any, name: str, others: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """An operation that leaves its mark on the logits: they exist from here on."""
    lazy = _lazy(face)
    if name in _HOOKS:
        if name == "register_hook" and _is_of_a_wrapper(others[0]):
            return lazy.features.register_hook(others[0])
        if "fused" in lazy.events:
            raise RuntimeError(
                f"{name}: a loss was already computed without these logits, so that they will have no gradient. Apply "
                "with logits='eager', or call it before the loss."
            )
    _fall_back(lazy, name, "this operation changes logits in place, or waits for their gradient, so they are made")
    y = real(lazy)
    if not lazy.made:
        lazy.made.append(y)
    if "changed" not in lazy.events:
        lazy.events.append("changed")
    result = call(y, *_values(others), **_values(keywords))
    return face if result is y else result


def _is_of_a_wrapper(hook: Any) -> bool:
    """Whether it is FSDP's, which wants to know when a backward begins, and nothing of the gradient."""
    module = getattr(getattr(hook, "func", hook), "__module__", None) or ""
    return module.startswith("torch.distributed.")


# What a Tensor without values can say.
_PROPERTIES = {
    *("shape", "dtype", "device", "layout", "ndim", "itemsize", "nbytes", "names", "grad", "grad_fn", "requires_grad"),
    *("is_leaf", "is_cuda", "is_cpu", "is_meta", "is_mps", "is_xpu", "is_mkldnn", "is_mtia", "is_vulkan", "is_nested"),
    *("is_quantized", "is_sparse", "is_sparse_csr", "output_nr", "_base", "_version", "_grad", "_backward_hooks"),
}
_QUERIES = {
    *("size", "dim", "ndimension", "numel", "nelement", "element_size", "stride", "is_contiguous", "is_floating_point"),
    *("is_complex", "is_signed", "get_device", "len", "storage_offset", "is_inference", "dim_order", "_is_view"),
}
_ANSWERED = _QUERIES | {"__len__"}


class _Methods:
    """What both faces have of a Tensor, in Python, as the compiler wants it."""

    @property
    def shape(self) -> torch.Size:
        """Of the logits."""
        lazy = _lazy(self)
        return lazy.made[0].shape if "changed" in lazy.events else _shape(lazy)

    @property
    def device(self) -> torch.device:
        """Of the features."""
        return _lazy(self).features.device

    def size(self, dim: int | None = None) -> Any:
        """Of the logits."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Of the logits."""
        return len(self.shape)

    def numel(self) -> int:
        """Of the logits."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """They are."""
        return True

    def __len__(self) -> int:
        """Of the logits."""
        return self.shape[0]


def _method(name: str) -> Any:
    def call(logits: Any, *arguments: Any, **keywords: Any) -> Any:
        return getattr(logits, name)(*arguments, **keywords)

    bare = name.removeprefix("__").removesuffix("__")

    def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return _dispatch(call, bare, (self, *arguments), keywords)

    method.__name__ = name
    return method


_COMPARISONS = {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}
_OF_THE_CLASS = {"__torch_function__", "__torch_dispatch__", "_make_subclass", "_make_wrapper_subclass", "__setstate__"}
for _name in (set(dir(Tensor)) - set(dir(object)) - _OF_THE_CLASS - _ANSWERED) | _COMPARISONS | {"__reduce_ex__"}:
    if callable(getattr(Tensor, _name)) and _name not in _Methods.__dict__:
        setattr(_Methods, _name, _method(_name))


class LazyLogits(_Methods, Tensor):  # type: ignore[misc]
    """The logits of a language model, computed when somebody looks at them: a Tensor of their shape and derivative."""

    lazy: Lazy
    __hash__ = Tensor.__hash__

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of the logits."""
        return self.lazy.dtype

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what can be answered without the logits."""
        kwargs = kwargs or {}
        name = name_of(func)
        face = args[0] if args else None
        is_property = name in ("get", "set", "delete") and hasattr(func, "__self__")
        if is_property:
            name = func.__self__.__name__ + ("" if name == "get" else "_")
        is_answered = name in (_PROPERTIES if is_property else _QUERIES)
        if is_answered and isinstance(face, LazyLogits) and "changed" not in face.lazy.events:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return _dispatch(func, name, tuple(args), kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Below autograd, which has the derivative from `_Logits`, only values count."""
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return _wrap(args[0].lazy)
        with torch.no_grad():
            args, kwargs = _values(tuple(args)), _values(dict(kwargs or {}))
        return func(*args, **kwargs)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Without the values, which it would have to compute."""
        return f"LazyLogits(shape={tuple(self.shape)}, dtype={self.dtype}{', made' if self.lazy.made else ''})"


def _wrap(lazy: Lazy) -> LazyLogits:
    face: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
        LazyLogits, _shape(lazy), dtype=lazy.dtype, device=lazy.features.device, requires_grad=False
    )
    face.lazy = lazy
    return face


class _Logits(Function):
    """The lazy logits as autograd knows them: whoever has a gradient by them, has it by what they are made of."""

    @staticmethod
    def forward(ctx: Any, lazy: Lazy, *tensors: Tensor | None) -> LazyLogits:  # type: ignore[override]
        ctx.lazy = lazy
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return _wrap(lazy)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> Any:  # type: ignore[override]
        tensors = ctx.saved_tensors
        if grad_output is None:
            return (None,) * (1 + len(tensors))
        differentiable, wanted = torch.is_grad_enabled(), ctx.needs_input_grad[1:]

        def own(tensor: Tensor, want: bool) -> Tensor:
            # One tensor may be there twice, with a share of the gradient in each place.
            return tensor.view_as(tensor) if differentiable else tensor.detach().requires_grad_(want)

        with torch.enable_grad():
            pairs = zip(tensors, wanted, strict=True)
            given = [None if tensor is None else own(tensor, want) for tensor, want in pairs]
            y = _compute(_with_tensors(ctx.lazy, given))
        by: list[Any] = [tensor for tensor, want in zip(given, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(y, by, grad_output, create_graph=differentiable))
        return None, *(next(found) if want else None for want in wanted)


class TracedLogits(_Methods, Lazy):
    """The same inside of a compiled region; what leaves the region is `LazyLogits`."""

    @classmethod
    def _make(cls, iterable: Any) -> Any:
        """What the compiler calls where a named tuple leaves a compiled region."""
        lazy = Lazy._make(iterable)
        with torch.set_grad_enabled(lazy.recording and torch.is_grad_enabled()):
            return _face(lazy)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As of `LazyLogits`."""
        return _dispatch(func, name_of(func), tuple(args), dict(kwargs or {}))

    @property
    def requires_grad(self) -> bool:
        """Whether the logits would."""
        return self.recording and any(tensor is not None and tensor.requires_grad for tensor in _tensors(self))

    def __getattr__(self, name: str) -> Any:
        """Any other property of the logits."""
        _fall_back(self, name, "this operation takes logits that exist, so they are made")
        return getattr(real(self), name)


def value_of(face: Any) -> Tensor:
    """The real logits of one of the faces."""
    return real(_lazy(face))

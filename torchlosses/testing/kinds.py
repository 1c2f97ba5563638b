"""Kinds of losses: how to draw their inputs, and which properties a loss of the kind has.

A user's own kind is a `Kind` with a function that draws its tensors:

    >>> import torch
    >>> from torchlosses.testing import Kind, check_loss
    >>> def angles(generator, rows, classes):
    ...     input, target = (6.28 * torch.rand(rows, generator=generator, dtype=torch.float64) for _ in range(2))
    ...     return {"input": input, "target": target}
    >>> def cosine_error(input, target):
    ...     return (1 - torch.cos(input - target)).mean()
    >>> kind = Kind("angles", {"radians": angles}, ("input", "target"), traits=frozenset({"nonnegative"}))
    >>> check_loss(cosine_error, kind=kind, only=["derivatives"]).ok
    True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Draw = Callable[[torch.Generator, int, int], dict[str, Tensor]]

IGNORED = -100

TRAITS = {
    "nonnegative": "the loss is never below 0",
    "logits": "the input holds unnormalised scores: a number added to all of a row changes nothing",
    "symmetric": "all classes are alike: permuting them with the target changes nothing",
    "elementwise": "input and target have one shape, and 'none' gives one loss an element",
    "free": "any real number is a valid input",
    "weighted mean": "the mean over class indices, or usually over elements, divides by the sum of the weights",
    "unit sum": "the rows of the input add up to 1",
    "shifted": "position t of a sequence is judged by label t + 1: the last position and the first label do not count",
}


@dataclass(frozen=True)
class Case:
    """The tensors and options of one call; the tensors are the positional arguments, in order."""

    form: str
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    def with_tensors(self, **tensors: Tensor) -> Case:
        """The case with some tensors replaced."""
        return replace(self, tensors={**self.tensors, **tensors})

    def with_options(self, **options: Any) -> Case:
        """The case with some options replaced."""
        return replace(self, options={**self.options, **options})

    def without_option(self, name: str) -> Case:
        """The case with one option at its default."""
        return replace(self, options={key: value for key, value in self.options.items() if key != name})

    def to(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Case:
        """The case with its tensors on another device, and the floating-point ones in another dtype."""
        return self.map(lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else None))

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        """The case with every tensor changed, those among the options included."""
        tensors = {name: change(tensor) for name, tensor in self.tensors.items()}
        options = {name: change(value) if isinstance(value, Tensor) else value for name, value in self.options.items()}
        return replace(self, tensors=tensors, options=options)

    def everything(self) -> dict[str, Tensor]:
        """All tensors by name, those among the options included."""
        return {**self.tensors, **{name: value for name, value in self.options.items() if isinstance(value, Tensor)}}

    def with_everything(self, tensors: Mapping[str, Tensor]) -> Case:
        """The case with these tensors, wherever they belong."""
        mine = {name: tensors.get(name, tensor) for name, tensor in self.tensors.items()}
        options = {name: tensors.get(name, value) for name, value in self.options.items()}
        return replace(self, tensors=mine, options=options)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point tensor."""
        return next(tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point())

    @property
    def label(self) -> str:
        """Form and options in short."""
        return ", ".join([self.form, *(f"{k}={v}" if isinstance(v, str) else k for k, v in self.options.items())])


@dataclass(frozen=True)
class Kind:
    """How to draw the inputs of a loss, and what holds for losses of this kind.

    Args:
        name: What reports call it.
        forms: For each form the inputs may have (such as class indices, or class probabilities, for a target), a
            function `draw(generator, rows, classes)` that returns the positional arguments by name, in order, in
            float64.
        differentiable: The floating-point arguments that the loss is a function of, the most important one first.
        rows: The arguments whose dimension 0 counts independent samples; () where there are none.
        classes: For each argument that has one, the dimension that counts classes.
        indices: The arguments that hold class indices, in the forms where they are integers.
        traits: Of `TRAITS`, what holds for every loss of this kind.
        optimum: Changes a case so that the gradient by the first differentiable argument is 0 there.
        weight: Draws the option `weight` for a case; None where such losses have none.
        pos_weight: Draws the option `pos_weight`, one number a class, in the same way.
    """

    name: str
    forms: Mapping[str, Draw]
    differentiable: tuple[str, ...] = ("input",)
    rows: tuple[str, ...] = ("input", "target")
    classes: Mapping[str, int] = field(default_factory=dict)
    indices: tuple[str, ...] = ()
    traits: frozenset[str] = frozenset()
    optimum: Callable[[Case], Case] | None = None
    weight: Callable[[Case, torch.Generator], Tensor] | None = None
    pos_weight: Callable[[Case, torch.Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        unknown = self.traits - TRAITS.keys()
        if unknown:
            raise ValueError(f"unknown traits {sorted(unknown)}: expected some of {', '.join(TRAITS)}.")

    @property
    def primary(self) -> str:
        """The first differentiable argument."""
        return self.differentiable[0]

    def draw(self, form: str, rows: int = 4, classes: int = 3, seed: int = 0) -> Case:
        """A case with default options, on the CPU whatever the default device is."""
        with torch.device("cpu"):
            return Case(form, self.forms[form](torch.Generator().manual_seed(seed), rows, classes))

    def size(self, case: Case) -> int:
        """The number of rows."""
        return case.tensors[self.rows[0]].shape[0]

    def number_of_classes(self, case: Case) -> int:
        """The size of the class dimension."""
        name, dimension = next(iter(self.classes.items()))
        return case.tensors[name].shape[dimension]

    def has_indices(self, case: Case) -> bool:
        """Whether the target of this case is class indices."""
        return any(not case.tensors[name].is_floating_point() for name in self.indices)

    def judged(self, case: Case) -> Tensor:
        """The class indices that a loss is taken of: all, or where labels are shifted all but the first."""
        target = case.tensors[self.indices[0]]
        return target[:, 1:] if "shifted" in self.traits else target

    def ignored_rows(self, case: Case) -> Tensor:
        """Which rows have only ignored class indices."""
        if not self.has_indices(case):
            return torch.zeros(self.size(case), dtype=torch.bool, device=case.tensors[self.primary].device)
        ignored = self.judged(case) == case.options.get("ignore_index", IGNORED)
        return ignored.reshape(len(ignored), -1).all(1)

    def target_share(self, case: Case) -> Tensor:
        """1 at the most probable class of each target and 0 elsewhere, in the shape of the logits."""
        dimension, logits = self.classes[self.primary], case.tensors[self.primary]
        target = case.tensors[self.indices[0]]
        index = target.argmax(dimension) if target.is_floating_point() else target
        share = torch.nn.functional.one_hot(index, logits.shape[dimension]).movedim(-1, dimension).to(logits.dtype)
        if "shifted" in self.traits:
            return torch.cat([share[:, 1:], torch.zeros_like(share[:, :1])], 1)
        return share

    def by_row(self, case: Case, losses: Tensor) -> Tensor:
        """The losses of 'none' with the rows in dimension 0, however a loss lays them out."""
        rows = self.size(case)
        return losses.reshape(rows, -1) if rows and losses.numel() % rows == 0 else losses

    def row_tensors(self, case: Case) -> list[str]:
        """The tensors that have one entry a row; an elementwise weight is one of them."""
        along = [*self.rows]
        if "elementwise" in self.traits and isinstance(case.options.get("weight"), Tensor):
            along.append("weight")
        return along

    def take_rows(self, case: Case, rows: Tensor) -> Case:
        """The case with some of its rows: indices, or a mask."""
        every = case.everything()
        chosen = {name: every[name][rows.to(every[name].device)] for name in self.row_tensors(case)}
        return case.with_everything(chosen)

    def class_dimensions(self, case: Case) -> dict[str, int]:
        """Which dimension of which tensor counts classes, in this case."""
        found = {n: d for n, d in self.classes.items() if n not in self.indices or case.tensors[n].is_floating_point()}
        options = {"weight": 1, "pos_weight": 0} if "elementwise" in self.traits else {"weight": 0, "linear_bias": 0}
        return {**found, **{name: dimension for name, dimension in options.items() if name in case.everything()}}

    def take_classes(self, case: Case, kept: Tensor) -> Case:
        """The case with some of its classes, in a new order; class indices must be among them."""
        every, changed = case.everything(), {}
        for name, dimension in self.class_dimensions(case).items():
            changed[name] = every[name].index_select(dimension, kept.to(every[name].device))
        for name in self.indices:
            if not every[name].is_floating_point():
                positions = {int(old): new for new, old in enumerate(kept)}
                moved = [positions.get(index, index) for index in every[name].flatten().tolist()]
                changed[name] = every[name].new_tensor(moved).reshape(every[name].shape)
        return case.with_everything(changed)

    def denominator(self, case: Case, losses: Tensor) -> Tensor:
        """What a mean without elementwise weights divides by, following torch.nn; `losses` are those of 'none'."""
        weight = case.options.get("weight")
        if not self.has_indices(case):
            return losses.new_tensor(losses.numel())
        target = self.judged(case)
        counted = target[target != case.options.get("ignore_index", IGNORED)]
        if weight is not None and "weighted mean" in self.traits:
            return weight[counted].sum()
        return losses.new_tensor(counted.numel())


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _indices(generator: torch.Generator, rows: int, classes: int) -> Tensor:
    # Every class occurs where there are rows enough, so that no case is degenerate by chance.
    return torch.randperm(rows, generator=generator) % classes if rows else torch.zeros(0, dtype=torch.int64)


def _regression(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
    return {"input": _normal(generator, rows, classes), "target": _normal(generator, rows, classes)}


def _binary(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
    target = torch.rand(rows, classes, generator=generator, dtype=torch.float64)
    return {"input": _normal(generator, rows, classes), "target": target}


def _binary_labels(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
    tensors = _binary(generator, rows, classes)
    return {**tensors, "target": tensors["target"].round()}


def _classification(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
    target = _indices(generator, rows, classes)
    return {"input": _normal(generator, rows, classes), "target": target}


def _classification_soft(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
    return {"input": _normal(generator, rows, classes), "target": _normal(generator, rows, classes).softmax(1)}


def _probabilities(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
    target = _indices(generator, rows, classes)
    return {"input": _normal(generator, rows, classes).softmax(1), "target": target}


def _probabilities_soft(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
    input, target = (_normal(generator, rows, classes).softmax(1) for _ in range(2))
    return {"input": input, "target": target}


def _linear(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
    input, linear_weight = _normal(generator, rows, 2), _normal(generator, classes, 2)
    return {"input": input, "linear_weight": linear_weight, "target": _indices(generator, rows, classes)}


def _linear_soft(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
    tensors = _linear(generator, rows, classes)
    return {**tensors, "target": _normal(generator, rows, classes).softmax(1)}


def _language(generator: torch.Generator, rows: int, classes: int) -> dict[str, Tensor]:
    time = 4
    target = _indices(generator, rows * time, classes).reshape(rows, time)
    return {"input": _normal(generator, rows, time, classes), "target": target}


def _class_weight(case: Case, generator: torch.Generator, classes: int | None = None) -> Tensor:
    classes = case.tensors["input"].shape[1] if classes is None else classes
    return torch.rand(classes, generator=generator, dtype=torch.float64) + 0.5


def _linear_class_weight(case: Case, generator: torch.Generator) -> Tensor:
    return _class_weight(case, generator, case.tensors["linear_weight"].shape[0])


def _vocabulary_weight(case: Case, generator: torch.Generator) -> Tensor:
    return _class_weight(case, generator, case.tensors["input"].shape[-1])


def _positive_weight(case: Case, generator: torch.Generator) -> Tensor:
    return _class_weight(case, generator) + 1


def _element_weight(case: Case, generator: torch.Generator) -> Tensor:
    return torch.rand(case.tensors["input"].shape, generator=generator, dtype=torch.float64) + 0.5


def _at_target(case: Case) -> Case:
    target = case.tensors["target"]
    return case.with_tensors(input=target.clone()) if target.is_floating_point() else case


def _at_log_target(case: Case) -> Case:
    target = case.tensors["target"]
    if target.is_floating_point():
        return case.with_tensors(input=target.log())
    # The loss falls towards 0 without end; 800 is beyond what float64 can tell from it.
    input = case.tensors["input"]
    return case.with_tensors(input=800 * torch.nn.functional.one_hot(target, input.shape[1]).to(input.dtype))


def _at_next_label(case: Case) -> Case:
    return case.with_tensors(input=800 * KINDS["language modelling"].target_share(case))


def _at_logit_of_target(case: Case) -> Case:
    target = case.tensors["target"]
    finfo = torch.finfo(target.dtype)
    logit = target.clamp(finfo.tiny, 1 - finfo.eps / 2).logit()
    # A positive that weighs p as much moves the optimum to the logit of p t / (p t + 1 - t).
    return case.with_tensors(input=logit + case.options["pos_weight"].log() if "pos_weight" in case.options else logit)


_CLASSES = {"input": 1, "target": 1}

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "regression",
            {"one shape": _regression},
            differentiable=("input", "target"),
            classes=_CLASSES,
            traits=frozenset({"nonnegative", "elementwise", "free", "weighted mean"}),
            optimum=_at_target,
            weight=_element_weight,
        ),
        Kind(
            "binary",
            {"probabilities": _binary, "labels": _binary_labels},
            differentiable=("input", "target"),
            classes=_CLASSES,
            traits=frozenset({"nonnegative", "elementwise", "free"}),
            optimum=_at_logit_of_target,
            weight=_element_weight,
            pos_weight=_positive_weight,
        ),
        Kind(
            "classification",
            {"indices": _classification, "probabilities": _classification_soft},
            differentiable=("input", "target"),
            classes=_CLASSES,
            indices=("target",),
            traits=frozenset({"nonnegative", "logits", "symmetric", "free", "weighted mean"}),
            optimum=_at_log_target,
            weight=_class_weight,
        ),
        Kind(
            "probabilities",
            {"indices": _probabilities, "probabilities": _probabilities_soft},
            differentiable=("input", "target"),
            classes=_CLASSES,
            indices=("target",),
            traits=frozenset({"symmetric", "unit sum", "weighted mean"}),
            optimum=_at_target,
            weight=_class_weight,
        ),
        Kind(
            "language modelling",
            {"labels": _language},
            classes={"input": 2},
            indices=("target",),
            traits=frozenset({"nonnegative", "logits", "symmetric", "free", "weighted mean", "shifted"}),
            optimum=_at_next_label,
            weight=_vocabulary_weight,
        ),
        Kind(
            "linear classification",
            {"indices": _linear, "probabilities": _linear_soft},
            differentiable=("input", "linear_weight", "target"),
            classes={"linear_weight": 0, "target": 1},
            indices=("target",),
            traits=frozenset({"nonnegative", "symmetric", "free", "weighted mean"}),
            weight=_linear_class_weight,
        ),
    )
}


def kind_named(kind: str | Kind) -> Kind:
    """The kind, or the built-in kind of that name.

    Raises:
        ValueError: There is none of that name.
    """
    if isinstance(kind, Kind):
        return kind
    name = str(kind).replace("-", " ").replace("_", " ")
    if name not in KINDS:
        raise ValueError(f"{kind!r} is not a kind: expected one of {', '.join(KINDS)}, or a torchlosses.testing.Kind.")
    return KINDS[name]

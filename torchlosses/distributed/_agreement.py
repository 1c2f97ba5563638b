"""What the processes tell each other before they compute: so that each knows its classes, and all do the same.

A process that sends another number of rows than the others, or takes another way through the program, would leave them
waiting for it, or give another answer than theirs. So before anything else each sends a line of a table: how many
classes it has, which of its tensors require grad, and what has to be the same in all. Where something is not, or where
one process has found an argument to be wrong, all of them raise.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from torchlosses._pytorch import is_followed, saved_tensors_have_hooks
from torchlosses.distributed import _groups

# A line: whether an argument is wrong, how many classes, the tensors that require grad, and what has to be the same.
_WRONG, _COUNT, _RECORDED, _SAME = range(4)
_WIDTH = 48

_not_compiled: Any = torch.compiler.disable


class Classes(NamedTuple):
    """Which classes this process has: from `first` on, of `total`; and the most that any process has."""

    group: str
    first: int
    total: int
    most: int
    uneven: bool  # whether a tensor that is split requires grad in some of the processes only

    def of_operator(self) -> tuple[str, int, int, bool]:
        """What the operators need to know."""
        return self.group, self.first, self.total, self.uneven


class _Assumed(NamedTuple):
    """What was found in a first call, and what this process brought along: how many classes, and what requires grad."""

    found: Classes
    own: int
    recorded: int


# By layer, function and whether autograd records: the same in each process, so that all of them talk or none does.
_known: WeakKeyDictionary[dist.ProcessGroup, dict[Hashable, _Assumed]] = WeakKeyDictionary()
# The layer, in a tuple.
_assuming: ContextVar[tuple[Hashable] | None] = ContextVar("assuming", default=None)


@contextmanager
def assume_agreement(layer: Hashable = None) -> Iterator[None]:
    """In here the class-parallel losses take for granted what the processes would tell each other before each call.

    To tell it is to wait for the device, once a call. In here that is done once for each layer, function and group,
    with and without `torch.no_grad`; from then on nothing waits, and a CUDA graph can be captured.

    Every process enters this, with calls that fit together: rows, dtypes, targets and options the same in each. One
    that brings something else, or raises for its own arguments, leaves the others waiting until the group's timeout,
    or gives them wrong numbers. So leave it out while a program is new.

    Args:
        layer: A name for the layer whose classes the calls are about, the same in each process. Where there are
            several layers, whose classes are split in different ways, each needs a name of its own.

    Raises:
        RuntimeError: From a loss of which this process has another number of classes, or other tensors that require
            grad, than in the first call for that layer.

    Example:
        >>> import torch
        >>> from torchlosses.distributed import assume_agreement, class_parallel_cross_entropy
        >>> with assume_agreement():
        ...     class_parallel_cross_entropy(torch.zeros(2, 4), torch.tensor([3, 0]))
        tensor(1.3863)
    """
    token = _assuming.set((layer,))
    try:
        yield
    finally:
        _assuming.reset(token)


@contextmanager
def telling(function: str, group: dist.ProcessGroup | None, *arguments: Any) -> Iterator[None]:
    """Around the checks of the arguments: where one fails, the other processes learn of it, and do not wait."""
    _groups.check_member(function, group)
    try:
        yield
    except Exception:
        if _groups.size(group) > 1 and _assuming.get() is None:
            device = next((a.device for a in arguments if isinstance(a, Tensor)), torch.device("cpu"))
            _tell([1], group, device)
        raise


@_not_compiled
def agree(
    function: str,
    group: dist.ProcessGroup | None,
    device: torch.device,
    count: int,
    target: Tensor,
    split: Mapping[str, Any],
    replicated: Mapping[str, Any],
    same: Mapping[str, Any],
) -> Classes:
    """Each process's classes; raises in all processes where they do not agree.

    Args:
        function: The name of the function.
        group: The processes.
        device: Where they talk.
        count: How many classes this process has.
        target: Class indices are compared; of anything else, nothing is.
        split: The tensors of which each process has its own part. They may differ in whether they require grad.
        replicated: The tensors that are the same in each process.
        same: What else is the same in each process, by name.
    """
    processes, rank, name = _groups.size(group), _groups.rank(group), _groups.name_of(group)
    if processes == 1:
        return Classes(name, 0, count, count, False)
    tensors = {**replicated, **split}
    recorded = sum(1 << place for place, tensor in enumerate(tensors.values()) if _is_recorded(tensor))
    whole: Any = dist.group.WORLD
    assuming, known = _assuming.get(), _known.setdefault(group or whole, {})
    key = (assuming, function, torch.is_grad_enabled())
    if assuming is not None and key in known:
        return _as_before(function, known[key], count, recorded)
    same = {"the function": function, **same, "what saved_tensors_hooks asks for": saved_tensors_have_hooks()}
    line = [0, count, recorded, *(zlib.crc32(repr(value).encode()) for value in same.values())]
    if not target.is_floating_point():
        same = {**same, "the class indices in target": "one thing"}
        places = torch.arange(1, target.numel() + 1, device=target.device)
        line.append(int((target.detach().flatten().to(torch.int64) * places).sum()))
    told = _tell(line, group, device)
    wrong = [process for process, other in enumerate(told) if other[_WRONG]]
    if wrong:
        raise RuntimeError(
            f"{function}: an argument is wrong in process {_listed(wrong)} of the group; the error there says which. "
            "Every process has to call this, with arguments that fit together."
        )
    for place, (what, value) in enumerate(same.items(), _SAME):
        differing = [process for process, other in enumerate(told) if other[place] != told[rank][place]]
        if differing:
            raise RuntimeError(
                f"{function}: {what} must be the same in each process of the group, but process {rank} has {value}, "
                f"and process {_listed(differing)} another. Give each process the same."
            )
    for place, what in enumerate(tensors):
        if len({other[_RECORDED] >> place & 1 for other in told}) > 1 and (what in replicated or what == "target"):
            raise RuntimeError(
                f"{function}: {what} requires grad in some of the processes, but its gradient needs all of them. Let "
                "it require grad in each process or in none."
            )
    counts = [other[_COUNT] for other in told]
    uneven = len({other[_RECORDED] for other in told}) > 1
    found = Classes(name, sum(counts[:rank]), sum(counts), max(counts), uneven)
    if assuming is not None:
        known[key] = _Assumed(found, count, recorded)
    return found


def _as_before(function: str, known: _Assumed, count: int, recorded: int) -> Classes:
    """What was found before, if this process brings along the same."""
    if count != known.own:
        raise RuntimeError(
            f"{function}: in assume_agreement() this process had {known.own} classes before, and has {count} now, and "
            "does not ask the others. Give each layer a name of its own, as in assume_agreement('head')."
        )
    if recorded != known.recorded:
        raise RuntimeError(
            f"{function}: in assume_agreement() other tensors require grad than in the first call, and this process "
            "does not ask the others. Let the same ones require grad in each call, or use torch.no_grad for the others."
        )
    return known.found


def _tell(line: list[int], group: dist.ProcessGroup | None, device: torch.device) -> list[list[int]]:
    """The lines of all processes."""
    table = torch.zeros((_groups.size(group), _WIDTH), dtype=torch.int64)
    table[_groups.rank(group), : len(line)] = torch.tensor(line)
    return _groups.reduced(table.to(device), "sum", group).tolist()


def _is_recorded(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and is_followed(tensor)


def _listed(processes: list[int]) -> str:
    return ", ".join(map(str, processes))

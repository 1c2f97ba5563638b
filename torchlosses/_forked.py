"""In a forked process whose parent has run with threads: PyTorch would wait for them for ever."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_is_forked = False


def _note_fork() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def threads_are_gone() -> bool:
    """In a forked process: threads of the parent do not exist in it, and PyTorch would wait for them for ever."""
    return _is_forked and torch.get_num_threads() > 1


@contextmanager
def one_thread() -> Iterator[None]:
    """Nothing is waited for with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def returning(function: Callable[..., Any]) -> Callable[..., Any]:
    """What autograd or the dispatcher calls, so that it returns in a forked process too."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if not threads_are_gone():
            return function(*arguments)
        with one_thread():
            return function(*arguments)

    return call


def differentiate_with_one_thread(last: Any, before: set[Any]) -> None:
    """Also what PyTorch itself differentiates between the tensors and the loss, such as a change of dtype."""
    pending, seen = [last], before | {None}
    while pending:
        node = pending.pop()
        # A leaf's node has the leaf; what it does is the caller's.
        if node in seen or hasattr(node, "variable"):
            continue
        seen.add(node)
        threads = ExitStack()
        node.register_prehook(lambda _, threads=threads: threads.enter_context(one_thread()))
        node.register_hook(lambda *_, threads=threads: threads.close())
        pending += [next_node for next_node, _ in node.next_functions]

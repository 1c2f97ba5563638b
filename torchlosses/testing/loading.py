"""From 'package.module:Name' to the object."""

from __future__ import annotations

import importlib
from functools import reduce
from typing import Any


def load(path: str) -> Any:
    """The object that `path` names.

    Raises:
        ValueError: The path is not of the form package.module:Name, or names nothing.
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{path!r} is no path of the form package.module:Name, such as torch.nn:CrossEntropyLoss.")
    try:
        return reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot load {path!r}: {error}.") from error


def name_of(loss: Any) -> str:
    """The path of a function, class or instance, as far as it has one."""
    function = getattr(loss, "func", loss)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"

"""The machine and the versions, for the record."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import torch

import torchlosses
from training.errors import StudyError
from training.results import Environment


def describe_environment(device: torch.device, processes: int, threads: int) -> Environment:
    """The machine and the versions of what matters."""
    return Environment(
        torchlosses=torchlosses.__version__,
        torch=torch.__version__,
        torchvision=version("torchvision"),
        torchmetrics=version("torchmetrics"),
        numpy=version("numpy"),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=processor(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        threads=threads,
        processes=processes,
    )


def find_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        StudyError: it is a GPU that PyTorch does not see.
    """
    device = torch.device(name)
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise StudyError(f"--device {name}: PyTorch sees {found} GPU(s) here; --device cpu always works")
    return device


def processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())

"""The code, the versions and the machine, for the record."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

import torchlosses
from benchmarks.cases import SETTINGS
from benchmarks.results import Environment, Setting
from torchlosses import kernels
from training.environment import processor

ROOT = Path(__file__).parents[1]
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
_ALLOCATOR_VARIABLES = ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES", "LD_PRELOAD")
_KERNEL_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def describe_environment() -> Environment:
    """What this process runs on."""
    commit = _git("rev-parse", "HEAD")
    return Environment(
        commit=commit,
        dirty=bool(commit and _git("status", "--porcelain", "--untracked-files=no")),
        torchlosses=torchlosses.__version__,
        backend=kernels.BACKEND.name,
        instruction_set=kernels.INSTRUCTION_SET or torch.backends.cpu.get_cpu_capability().lower(),
        torch=torch.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        processor=processor(),
        cores=available_cores(),
        libc=" ".join(platform.libc_ver()).strip() or "unknown",
        allocator={
            name: value
            for name, value in os.environ.items()
            if name in _ALLOCATOR_VARIABLES or name.startswith(("MALLOC_", "MIMALLOC_"))
        },
        transparent_huge_pages=_chosen(_KERNEL_SETTING.read_text()) if _KERNEL_SETTING.exists() else None,
        load=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def settings(names: tuple[str, ...] = SETTINGS) -> list[Setting]:
    """The settings of these names that differ on this machine."""
    cores = available_cores()
    threads = f"{cores} thread{'s' if cores > 1 else ''}"
    every = [
        Setting(name="all", title=threads, threads=cores, environment={}),
        Setting(name="single", title="1 thread", threads=1, environment={}),
        Setting(name="pages", title=f"{threads}, THP_MEM_ALLOC_ENABLE=1", threads=cores, environment=HUGE_PAGES),
    ]
    return [setting for setting in every if setting.name in names and (setting.name != "single" or cores > 1)]


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _chosen(line: str) -> str:
    """The word in brackets, as in 'always [madvise] never'."""
    return line.partition("[")[2].partition("]")[0] or line.strip()

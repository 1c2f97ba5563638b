"""Results that nobody measured, complete enough for every table and plot."""

from __future__ import annotations

from itertools import product

from benchmarks.cases import CASES
from benchmarks.results import Environment, PeakMemory, Results, Setting, Timing

SECONDS = {
    "native": 1.0,
    "inplace": 0.8,
    "eager": 4.0,
    "torch": 7.0,
    "chunked": 6.0,
    "compiled": 5.0,
    "clone": 2.0,
    "copy": 0.5,
    "exp": 1.6,
    "exp_": 1.5,
    "dot": 0.9,
    "products": 0.95,
    "read": 0.45,
    "function": 0.4,
}
UNITS = {"native": 1.0, "inplace": 0.0, "eager": 1.25, "torch": 3.0, "compiled": 1.0, "clone": 1.0}


def timing(**changed: object) -> Timing:
    fields = {
        "setting": "all",
        "loss": "cross_entropy",
        "shape": (1024, 32000),
        "dtype": "float32",
        "passes": "forward",
        "implementation": "native",
        "median": 0.02,
        "lower_quartile": 0.018,
        "upper_quartile": 0.025,
        "rounds": 7,
        "calls": 1,
    }
    return Timing.model_validate({**fields, **changed})


def results() -> Results:
    """Every case of the benchmark, with times proportional to the size of the input."""
    timings, memory = [], []
    for case in CASES:
        size = 1e-9
        for extent in case.shape:
            size *= extent
        for passes, setting in product(case.passes, case.settings):
            about = {
                "setting": setting,
                "loss": case.loss,
                "shape": case.shape,
                "dtype": case.dtype,
                "passes": passes,
            }
            for name, factor in SECONDS.items():
                spread = {"median": size * factor, "lower_quartile": size * factor * 0.9}
                spread["upper_quartile"] = size * factor * 1.2
                timings.append(timing(**about, implementation=name, **spread))
            if case.memory and setting == "all":
                memory += [
                    PeakMemory.model_validate(
                        {**about, "implementation": name, "extra_bytes": round(units * 4e6), "unit_bytes": 4_000_000}
                    )
                    for name, units in UNITS.items()
                ]
    return Results(
        started="2025-01-01T00:00:00+00:00",
        seconds=600.0,
        command="python -m benchmarks.run",
        quick=False,
        environment=Environment(
            commit="0123456789abcdef",
            dirty=False,
            torchlosses="0.1.0",
            backend="native",
            instruction_set="avx2",
            torch="2.10.0",
            python="3.12.0",
            platform="Linux",
            processor="A processor",
            cores=2,
            libc="glibc 2.36",
            allocator={},
            transparent_huge_pages="madvise",
            load=0.1,
        ),
        implementations={name: f"the {name} one" for name in ("native", "inplace", "eager", "torch", "compiled")},
        limits={name: f"`{name}()`" for name in ("clone", "copy", "exp", "exp_", "dot")},
        settings=[
            Setting(name="all", title="2 threads", threads=2, environment={}),
            Setting(name="single", title="1 thread", threads=1, environment={}),
            Setting(name="pages", title="huge pages", threads=2, environment={"THP_MEM_ALLOC_ENABLE": "1"}),
        ],
        timings=timings,
        memory=memory,
    )

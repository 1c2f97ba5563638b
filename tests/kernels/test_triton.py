"""The kernels in Triton without a GPU: run by its interpreter, and compiled for GPUs that are not there."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from tests.kernels.compiled import Compiled, compiling
from tests.kernels.triton_oracles import Options
from tests.processes import assert_all_pass
from tests.turns import in_turn
from torchlosses.kernels.triton import LOCAL, LOSSES, launch, warm_up

ROOT = Path(__file__).parents[2]

# Bytes of registers a thread that may spill: a few at most, of values that are used once a row. Triton 3.9 spills most.
SPILLED = 128

pytestmark = pytest.mark.skipif(launch.INTERPRETED, reason="needs Triton's compiler")


@pytest.mark.parametrize("part", ["not thorough", pytest.param("thorough", marks=pytest.mark.thorough)])
def test_interpreted(part: str) -> None:
    """Every kernel and option on CPU tensors against NumPy, in a process where Triton interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TORCHLOSSES_BACKEND": "triton"}
    program = [sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", "-m", part]
    command = [*program, "tests/kernels/triton_interpreted.py"]
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-5000:]
    assert " passed" in result.stdout


@pytest.mark.thorough
def test_two_processes_with_some_classes_each(tmp_path: Path) -> None:
    """The class-parallel losses over processes in which Triton interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "TORCHLOSSES_BACKEND": "triton"}
    assert_all_pass(2, tmp_path, "triton", "corners", "precision", environment=environment)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cross_entropy(
    shape: tuple[int, ...], dtype: torch.dtype, probabilities: bool = False, weighted: bool = False, **fields: Any
) -> list[Any]:
    """The tensors and options of a call on a device without memory."""
    rows = (shape[0], *shape[2:])
    target = meta(*shape, dtype=dtype) if probabilities else meta(*rows, dtype=torch.int64)
    weight = meta(shape[1]) if weighted else None
    return [meta(*shape, dtype=dtype), target, weight, None, None, Options(**fields)]


def compiled(target: str, loss: str, *arguments: Any) -> dict[str, Compiled]:
    with compiling(target) as found:
        LOSSES[loss].forward(*arguments)
    return {kernel.name: kernel for kernel in found}


BFLOAT16 = torch.bfloat16
ROWS = {
    "aligned": cross_entropy((8192, 32000), BFLOAT16),
    "unaligned": cross_entropy((8192, 50257), BFLOAT16),
    "unaligned float32": cross_entropy((4096, 50257), torch.float32),
    "large": cross_entropy((8192, 128256), BFLOAT16),
    "one tile": cross_entropy((65536, 1000), torch.float32),
    "forward alone": cross_entropy((8192, 50257), BFLOAT16, gradients=0),
    "probabilities": cross_entropy((8192, 50257), BFLOAT16, probabilities=True),
    "all options": cross_entropy(
        (8192, 50257), BFLOAT16, weighted=True, label_smoothing=0.1, z_loss=0.1, logit_softcap=30.0, logit_scale=0.5
    ),
    "statistics": cross_entropy((8192, 50257), BFLOAT16, statistics=True),
}
# On the other GPUs the kinds of code that differ.
FEW = ("aligned", "unaligned float32", "all options")


@pytest.mark.parametrize(
    ("target", "case"),
    [("sm_90", case) for case in ROWS] + [(target, case) for target in ("sm_80", "sm_100") for case in FEW],
)
def test_rows_are_read_in_whole_vectors(target: str, case: str) -> None:
    kernels = compiled(target, "cross_entropy", *ROWS[case])
    kernel = kernels["rows_kernel"]
    narrow = {torch.bfloat16: "b16", torch.float32: "b32"}[ROWS[case][0].dtype]
    # A tile is as many vectors as a thread takes of it. Narrow are the target's element, the row's two ends, and with
    # smoothing the class weights.
    looks = 2 if kernel.constants["GRADIENT"] and not kernel.constants["SINGLE"] else 1
    assert kernel.loads.count("v4.b32") >= 2 * looks
    if ROWS[case][2] is None:
        assert kernel.loads.count(narrow) <= 6
    if kernel.constants["GRADIENT"]:
        assert kernel.stores.count("v4.b32") >= 1
    assert kernel.spilled() <= SPILLED
    assert ("count" in kernels) == (not kernel.constants["PROBABILITIES"])
    assert (b"torchlosses: cross_entropy" in kernel.binary) == (not kernel.constants["PROBABILITIES"])


def test_options_keep_to_threads_and_share_divisions() -> None:
    """Smoothing adds no exchange between threads to a tile, but a few a row; a soft cap has a division for four."""
    options: tuple[dict[str, Any], ...] = ({}, {"label_smoothing": 0.1}, {"logit_softcap": 30.0})
    plain, smoothed, capped = (
        compiled("sm_90", "cross_entropy", *cross_entropy((8192, 32000), BFLOAT16, **fields))["rows_kernel"].assembly
        for fields in options
    )
    assert 0 < smoothed.count("shfl.sync") - plain.count("shfl.sync") <= 24
    # A thread has 16 logits of a tile, in each of two looks; beside these there are the target's and the recount's.
    assert 8 <= capped.count("div.approx") <= 8 + 4
    assert capped.count("div.full") <= plain.count("div.full") + 1


@pytest.mark.parametrize("classes", [128256, 50257])
def test_logits_are_written_over_in_whole_vectors(classes: int) -> None:
    """Losses and gradient of a block of a linear loss, in one launch."""
    logits, target, *_, options = cross_entropy((2048, classes), BFLOAT16, reduction="none", gradients=0)
    with compiling("sm_90") as found:
        LOSSES["cross_entropy"].forward_over(meta(1).expand(2048), logits, target, None, None, options)
    (kernel,) = found
    assert kernel.loads.count("v4.b32") >= 4
    assert kernel.loads.count("b16") <= 6
    assert kernel.stores.count("v4.b32") >= 1
    assert kernel.spilled() <= SPILLED


@pytest.mark.parametrize("classes", [151936, 50257])
def test_log_probabilities_are_read_in_whole_vectors(classes: int) -> None:
    """The logits of a block, once in each direction; beside them the target's and a row's two ends."""
    logits, target = meta(4096, classes, dtype=BFLOAT16), meta(4096, dtype=torch.int64)
    with compiling("sm_90") as found:
        values, _, state = LOSSES["log_probs"].forward(logits, target, None, Options(logit_scale=0.5))
        LOSSES["log_probs"].backward(values, logits, logits, target, None, state, Options())
    assert [kernel.name for kernel in found] == ["log_probs_kernel"] * 2
    for kernel in found:
        assert kernel.loads.count("v4.b32") >= 2
        assert kernel.loads.count("b16") <= 6
        assert kernel.spilled() <= SPILLED
    assert found[1].stores.count("v4.b32") >= 1


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_images_are_read_in_whole_vectors(dtype: torch.dtype, probabilities: bool) -> None:
    """Of pixels, as the classes lie apart; narrow is the target's own logit of a pixel."""
    kernel = compiled("sm_90", "cross_entropy", *cross_entropy((8, 21, 512 * 512), dtype, probabilities))[
        "tiles_kernel"
    ]
    tiles = 32 * dtype.itemsize // 16
    assert kernel.loads.count("v4.b32") == tiles * (1 + probabilities)
    assert kernel.stores.count("v4.b32") == tiles
    assert kernel.loads.count({torch.bfloat16: "b16", torch.float32: "b32"}[dtype]) == (not probabilities)
    assert kernel.spilled() <= SPILLED


SPLIT: dict[str, tuple[int, dict[str, Any]]] = {
    "aligned": (16032, {}),
    "unaligned": (16033, {"statistics": True}),
    "all options": (16033, {"label_smoothing": 0.1, "z_loss": 0.1, "logit_softcap": 30.0, "logit_scale": 0.5}),
    "probabilities": (16033, {"statistics": True}),
}


@pytest.mark.parametrize(
    ("target", "case"),
    [
        ("sm_90", "all options"),
        ("gfx942", "unaligned"),
        pytest.param("sm_90", "probabilities", marks=pytest.mark.thorough),
        pytest.param("sm_80", "unaligned", marks=pytest.mark.thorough),
        pytest.param("sm_100", "aligned", marks=pytest.mark.thorough),
    ],
)
def test_split_classes_are_read_in_whole_vectors(target: str, case: str) -> None:
    """Once before the processes talk, and once for the gradient; small tiles too."""
    classes, fields = SPLIT[case]
    options = Options(**fields, first=classes, total=3 * classes)
    local = LOCAL["class_parallel_cross_entropy"]
    with compiling(target) as found:
        for own, rows in ((classes, 8192), (20, 64)):
            *tensors, _, _ = cross_entropy((rows, own), BFLOAT16, case == "probabilities")
            tensors[2] = meta(3 * classes) if case == "all options" else None
            local.parts(*tensors, options)
            local.backward(meta(), tensors[0], *tensors, None, meta(5, rows), options._replace(gradients=0))
    kernels = [kernel for kernel in found if kernel.name != "count"]
    assert [kernel.name for kernel in kernels] == ["rows_kernel"] * 2 + ["tiles_kernel"] * 2
    if target == "gfx942":
        return
    before, after, *_ = kernels
    for kernel in (before, after):
        assert kernel.loads.count("v4.b32") >= 2
        if case != "all options":
            assert kernel.loads.count("b16") <= 6
    assert after.stores.count("v4.b32") >= 1
    assert not before.stores.count("v4.b32")
    assert max(kernel.spilled() for kernel in found) <= SPILLED
    for kernel in kernels:
        assert (b"torchlosses: class_parallel_cross_entropy: a target" in kernel.binary) == (case != "probabilities")


@pytest.mark.parametrize("loss", ["mse_loss", "huber_loss", "smooth_l1_loss", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16], ids=str)
def test_elements_are_read_in_whole_vectors(loss: str, dtype: torch.dtype) -> None:
    extra = (None,) if loss == "binary_cross_entropy_with_logits" else ()
    for count in (1 << 26, (1 << 26) + 3):
        input = meta(count, dtype=dtype)
        options = Options(ignore_index=None)
        kernel = compiled("sm_90", loss, input, input, None, None, *extra, None, options)["elements_kernel"]
        assert kernel.loads.count("v4.b32") >= 4
        assert kernel.stores.count("v4.b32") >= 2
        # Beside the vectors there are the two ends.
        assert len(kernel.loads) - kernel.loads.count("v4.b32") <= (2 if count % 8 else 0)
        assert kernel.spilled() <= SPILLED


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_every_kernel_compiles(target: str) -> None:
    with compiling(target) as found:
        images = cross_entropy((8, 21, 512 * 512), torch.float32)
        LOSSES["cross_entropy"].forward(*images)
        LOSSES["cross_entropy"].forward(*cross_entropy((64, 10), torch.float32))
        # Classes that lie apart and do not fit one tile, in double precision.
        LOSSES["cross_entropy"].forward(*cross_entropy((4, 1000, 4096), torch.float64, logit_softcap=3.0, z_loss=0.1))
        if target == "gfx942":
            LOSSES["cross_entropy"].forward(*ROWS["all options"])
        *tensors, options = cross_entropy((8192, 32000), BFLOAT16, probabilities=True, label_smoothing=0.1)
        state = meta(2, 8192)
        LOSSES["cross_entropy"].backward(meta(), tensors[0], *tensors, state, options)
        probabilities = meta(65536, 1000)
        LOSSES["cee_loss"].forward(probabilities, probabilities, None, None, Options(delta=1e-7))
        LOSSES["cee_loss"].forward(probabilities, meta(65536, dtype=torch.int64), None, None, Options(delta=1e-7))
        strided = meta(512, 64, 64)
        arguments = (strided, strided.transpose(1, 2), strided, strided[:, :1].expand(512, 64, 64), strided, None)
        LOSSES["binary_cross_entropy_with_logits"].forward(*arguments, Options(ignore_index=3))
        LOSSES["mse_loss"].backward(meta(), strided, strided, strided, None, None, None, Options())
        for logits in (meta(4096, 151936, dtype=BFLOAT16), meta(64, 10), meta(2, 1000, 512, dtype=torch.float64)):
            of_rows = (logits.shape[0], *logits.shape[2:])
            indices, log_probs = meta(*of_rows, dtype=torch.int64), LOSSES["log_probs"]
            compute = torch.promote_types(logits.dtype, torch.float32)
            values, _, state = log_probs.forward(logits, indices, None, Options(dtype=compute, logit_softcap=30.0))
            log_probs.backward(values, logits, logits, indices, None, state, Options())
    names = {kernel.name for kernel in found}
    assert names == {
        "rows_kernel", "tiles_kernel", "count", "finish", "textbook_kernel", "elements_kernel", "count_elements",
        "log_probs_kernel",
    }  # fmt: skip
    if target != "gfx942":
        assert max(kernel.spilled() for kernel in found) <= SPILLED


WAYS_THROUGH = {
    f"{kind}-{'weighted' if weighted else 'plain'}": (kind, weighted)
    for kind, weighted in itertools.product(("indices", "probabilities"), (False, True))
}


@pytest.mark.parametrize(
    ("way", "fields"),
    in_turn(
        tuple(WAYS_THROUGH),
        {
            "none": ({},),
            "smoothing": ({"label_smoothing": 0.1},),
            "z-loss": ({"z_loss": 0.1, "logit_scale": 0.5},),
            "all": ({"label_smoothing": 0.1, "z_loss": 0.1, "logit_softcap": 30.0, "statistics": True},),
        },
    ),
)
def test_options_fit_together(way: str, fields: dict[str, Any]) -> None:
    """The compiler's check of types, which the interpreter does not make, for every way through the kernels."""
    kind, weighted = WAYS_THROUGH[way]
    start = len(fields) + weighted + 2 * (kind == "indices")
    with compiling("sm_90", only_parsed=True) as found:
        for turn, shape in enumerate(((64, 10), (8192, 50257), (8, 1000, 4096), (8192, 1000))):
            dtype = (torch.float32, BFLOAT16, torch.float64, torch.float16)[(start + turn) % 4]
            rows = (shape[0], *shape[2:])
            for reduction in (("mean", "none")[(start // 2 + turn) % 2],):
                tensors = cross_entropy(shape, dtype, kind == "probabilities", weighted)[:-1]
                if weighted:
                    tensors[3:] = [meta(*rows), meta(dtype=torch.int64)]
                options = Options(**fields, reduction=reduction, gradients=int(reduction == "mean"))
                LOSSES["cross_entropy"].forward(*tensors, options)
                state = meta(2, *rows, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
                grad_output = meta() if reduction == "mean" else meta(*rows)
                LOSSES["cross_entropy"].backward(grad_output, tensors[0], *tensors, state, options)
                LOSSES["cross_entropy"].backward(
                    grad_output, tensors[0], *tensors, state, options._replace(gradients=0)
                )
    assert {kernel.name for kernel in found} >= {"rows_kernel", "tiles_kernel"}


@pytest.mark.parametrize(
    "dtype", [BFLOAT16, *(pytest.param(d, marks=pytest.mark.thorough) for d in (torch.float32, torch.float64))], ids=str
)
def test_options_of_other_losses_fit_together(dtype: torch.dtype) -> None:
    with compiling("sm_90", only_parsed=True) as found:
        for name, (shape, reduction) in itertools.product(
            LOSSES, (((64, 10), "mean"), ((4096, 999), "none"), ((4096, 999), "mean"))
        ):
            if name in ("cross_entropy", "log_probs"):
                continue
            input = meta(*shape, dtype=dtype)
            options = Options(reduction=reduction, gradients=int(reduction != "none"), ignore_index=2)
            grad_output = meta(*shape) if reduction == "none" else meta()
            optional: list[Any] = [meta(*shape), None, input, None][: 3 if name.startswith("binary") else 2]
            if name == "cee_loss":
                optional = [meta(shape[0])]
                grad_output = meta(shape[0]) if reduction == "none" else meta()
            targets = (
                (input, meta(shape[0], dtype=torch.int64))
                if name == "cee_loss"
                else (input, input.t().t()[:1].expand(shape))
            )
            for target in targets:
                LOSSES[name].forward(input, target, *optional, None, options)
                LOSSES[name].backward(grad_output, input, input, target, *optional, meta(), options)
                LOSSES[name].backward(grad_output, input, input, target, *optional, None, options._replace(gradients=0))
    assert {kernel.name for kernel in found} == {"elements_kernel", "count_elements", "textbook_kernel", "finish"}


def test_statistics_of_probabilities_have_registers_enough() -> None:
    with compiling("sm_90") as found:
        LOSSES["cross_entropy"].forward(*cross_entropy((64, 20), BFLOAT16, probabilities=True, statistics=True))
    assert found[0].spilled() <= SPILLED


def test_a_small_batch_is_one_launch() -> None:
    pixels = cross_entropy((64, 10), torch.float32)
    with compiling("sm_90") as found:
        LOSSES["cross_entropy"].forward(*pixels)
    assert [kernel.name for kernel in found] == ["tiles_kernel"]
    input = meta(64, 10)
    with compiling("sm_90") as found:
        LOSSES["mse_loss"].forward(input, input, None, None, None, Options())
        LOSSES["binary_cross_entropy_with_logits"].forward(
            input, input, None, None, None, None, Options(ignore_index=2)
        )
    assert [kernel.name for kernel in found] == ["elements_kernel"] * 2


def test_large_offsets_are_wide() -> None:
    """More than 2^31 elements between the first row of a tile and the last class."""
    with compiling("sm_90") as found:
        LOSSES["cross_entropy"].forward(*cross_entropy((1, 1000, 1 << 22), torch.float32))
        LOSSES["cross_entropy"].forward(*cross_entropy((1, 1000, 1 << 20), torch.float32))
    wide = [kernel.constants["WIDE"] for kernel in found if kernel.name == "tiles_kernel"]
    assert wide == [True, False]


def test_warm_up_starts_nothing() -> None:
    started = warm_up.warm_up(lambda x: x * 2, torch.ones(3, requires_grad=True))
    assert started == 0

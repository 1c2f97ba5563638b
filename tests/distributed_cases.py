"""What each process of a group does in the tests of `torchlosses.distributed`; imported by the processes themselves."""

from __future__ import annotations

import copy
import gc
import itertools
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from torchlosses import (
    LinearCrossEntropyLoss,
    LinearKLDivLoss,
    binary_cross_entropy_with_logits,
    cee_loss,
    cross_entropy,
    huber_loss,
    kernels,
    linear_cross_entropy,
    linear_kl_div,
    linear_log_probs,
    log_probs,
    mse_loss,
    smooth_l1_loss,
)
from torchlosses.distributed import (
    _agreement,
    assume_agreement,
    class_parallel_cross_entropy,
    class_parallel_linear_cross_entropy,
    global_normalizer,
)

ROWS, FEATURES, CLASSES = 6, 3, 7


def main(rank: int, processes: int, folder: str, only: Sequence[str] = ()) -> None:
    """Run every check, or those that are named, and leave behind what went wrong."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    try:
        for check in [globals()[f"check_{name}"] for name in only] or CHECKS:
            # Compiling takes longer than all the others, and two processes are what `make test` starts.
            if check is not check_compiled or processes != 2:
                check(rank, processes)
    except BaseException:
        Path(folder, f"failure-{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)
    # What still holds the group when the interpreter ends, as DistributedDataParallel may, aborts the process.
    gc.collect()
    dist.destroy_process_group()


def splits(processes: int) -> list[list[int]]:
    """How many classes each process has: about equally many; very unequally many; none in the first."""
    even = [CLASSES // processes + (rank < CLASSES % processes) for rank in range(processes)]
    if processes == 1:
        return [even]
    uneven = [1] * (processes - 1) + [CLASSES - processes + 1]
    return [even, uneven, [0, *[1] * (processes - 2), CLASSES - processes + 2]]


def part(tensor: Tensor, split: list[int], rank: int, dimension: int) -> Tensor:
    return tensor.split(split, dimension)[rank].detach().clone()


def drawn(kind: str, shape: tuple[int, ...] = (ROWS,)) -> dict[str, Tensor]:
    """Logits (N, C, ...), a linear layer, and targets: the same in each process."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {"logits": normal(shape[0], CLASSES, *shape[1:]), "input": normal(*shape, FEATURES)}
    tensors |= {"linear_weight": normal(CLASSES, FEATURES), "linear_bias": normal(CLASSES)}
    if kind == "probability":
        tensors["target"] = normal(shape[0], CLASSES, *shape[1:]).softmax(1)
    else:
        tensors["target"] = torch.randint(CLASSES, shape, generator=generator)
        if kind == "ignored":
            tensors["target"].view(-1)[::4] = -100
    tensors["weight"] = torch.rand(CLASSES, generator=generator, dtype=torch.float64) + 0.5
    tensors["sample_weight"] = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
    return tensors


def combinations(processes: int, reductions: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Every combination for about equally many classes; the other splits and shapes with a few of them."""
    first, *others = splits(processes)
    kinds = ("index", "ignored", "probability")
    yield from itertools.product([first], kinds, reductions, OPTIONS, [(ROWS,)])
    yield from itertools.product(others, kinds, ["none"], OPTIONS[-1:], [(ROWS,)])
    yield from itertools.product([first], kinds, ["mean", "none"], OPTIONS[-1:], [(2, 3)])


OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.2, "weight": True},
    {"sample_weight": True, "z_loss": 0.1, "logit_softcap": 1.5},
    {"label_smoothing": 0.2, "weight": True, "sample_weight": True, "z_loss": 0.1, "return_stats": True},
]


def single(tensors: dict[str, Tensor], **options: Any) -> Any:
    """One process with all logits, by way of a linear layer that changes nothing."""
    logits = tensors["logits"].movedim(1, -1)
    target = tensors["target"]
    if target.is_floating_point():
        target = target.movedim(1, -1)
    return linear_cross_entropy(logits, torch.eye(CLASSES, dtype=torch.float64), target, **options)


def chosen(tensors: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Any]:
    return {name: tensors[name] if value is True and name in tensors else value for name, value in options.items()}


def compare(actual: Any, expected: Any) -> tuple[Tensor, Tensor]:
    if isinstance(actual, tuple):
        assert_close(tuple(actual[1]), tuple(expected[1]))
        actual, expected = actual[0], expected[0]
    assert_close(actual, expected)
    return actual, expected


def check_logits(rank: int, processes: int) -> None:
    for case in combinations(processes, ("mean", "sum", "none")):
        compare_logits(rank, *case)


def compare_logits(
    rank: int, split: list[int], kind: str, reduction: str, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    tensors = drawn(kind, shape)
    given = {**chosen(tensors, options), "reduction": reduction}
    whole = {**tensors, "logits": tensors["logits"].requires_grad_()}
    mine = part(tensors["logits"], split, rank, 1).requires_grad_()
    target = tensors["target"]
    leaves, own = [whole["logits"]], [mine]
    if kind == "probability":
        whole["target"].requires_grad_()
        target = part(target, split, rank, 1).requires_grad_()
        leaves.append(whole["target"])
        own.append(target)
    loss, expected = compare(class_parallel_cross_entropy(mine, target, **given), single(whole, **given))
    incoming = torch.linspace(0.5, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    truth = torch.autograd.grad(expected, leaves, incoming)
    for gradient, all_classes in zip(torch.autograd.grad(loss, own, incoming), truth, strict=True):
        assert_close(gradient, part(all_classes, split, rank, 1))


def check_linear(rank: int, processes: int) -> None:
    for case in combinations(processes, ("mean", "none")):
        compare_linear(rank, *case)


def compare_linear(
    rank: int, split: list[int], kind: str, reduction: str, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    tensors = drawn(kind, shape)
    if kind == "probability":
        tensors["target"] = tensors["target"].movedim(1, -1).contiguous()
    names = ("input", "linear_weight", "linear_bias")
    given = {**chosen(tensors, options), "reduction": reduction}
    whole = {name: tensors[name].clone().requires_grad_() for name in names}
    mine = {
        name: (tensors[name].clone() if name == "input" else part(tensors[name], split, rank, 0)).requires_grad_()
        for name in names
    }
    target = tensors["target"]
    expected = linear_cross_entropy(**whole, target=target, **given)
    if kind == "probability":
        target = part(target, split, rank, -1)
    loss = class_parallel_linear_cross_entropy(**mine, target=target, **given, block_rows=4)
    loss, expected = compare(loss, expected)
    incoming = torch.linspace(0.5, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    found = torch.autograd.grad(loss, list(mine.values()), incoming)
    truth = torch.autograd.grad(expected, list(whole.values()), incoming)
    assert_close(found[0], truth[0])
    for gradient, all_classes in zip(found[1:], truth[1:], strict=True):
        assert_close(gradient, part(all_classes, split, rank, 0))


def check_triton(rank: int, processes: int) -> None:
    """In a process whose backend is Triton: the value is the same number in each process, with any split."""
    from torchlosses.kernels.triton import launch

    assert kernels._local_in_triton("class_parallel_cross_entropy", torch.device("cpu")) is not None
    _, uneven, without = splits(processes)
    compare_logits(rank, without, "ignored", "mean", OPTIONS[-1], (ROWS,))
    compare_logits(rank, without, "probability", "none", OPTIONS[-1], (2, 3))
    compare_logits(rank, uneven, "probability", "sum", OPTIONS[2], (ROWS,))
    compare_linear(rank, uneven, "ignored", "mean", OPTIONS[-1], (ROWS,))
    compare_linear(rank, without, "probability", "none", OPTIONS[1], (ROWS,))
    # By the kernel that takes a row a turn, as it does where there are many classes.
    launch.SHORT = 0
    compare_logits(rank, without, "ignored", "mean", OPTIONS[-1], (ROWS,))
    compare_logits(rank, uneven, "probability", "none", OPTIONS[-1], (ROWS,))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensors = drawn("ignored")
        mine = part(3 * tensors["logits"], uneven, rank, 1).to(dtype)
        losses = class_parallel_cross_entropy(mine, tensors["target"], reduction="none", loss_dtype=torch.float32)
        truth = F.cross_entropy((3 * tensors["logits"]).to(dtype).double(), tensors["target"], reduction="none")
        assert_close(losses.double(), truth, rtol=1e-6, atol=1e-6)
        for operation in (dist.ReduceOp.MIN, dist.ReduceOp.MAX):
            same = losses.clone()
            dist.all_reduce(same, operation)
            assert torch.equal(same, losses)


def derivatives(loss: Tensor, leaves: list[Tensor], orders: int) -> list[Tensor]:
    """The gradient, that of a penalty on the gradient, and so on.

    A penalty on a gradient by a process's own classes is its own, one on a replicated gradient is replicated.
    """
    gradients: list[Tensor] = []
    for order in range(orders):
        last = order == orders - 1
        found = torch.autograd.grad(loss, leaves, create_graph=not last, materialize_grads=True)
        gradients += [gradient.detach() for gradient in found]
        if not last:
            loss = torch.stack([(gradient.square() + gradient**3).sum() for gradient in found]).sum()
    return gradients


TAKEN = ("weight", "sample_weight", "normalizer")
HIGHER: list[tuple[str, str, dict[str, Any]]] = [
    ("index", "mean", {}),
    ("ignored", "mean", {"label_smoothing": 0.2, "weight": True, "sample_weight": True, "z_loss": 0.1}),
    ("ignored", "none", {"weight": True, "logit_softcap": 1.5, "z_loss": 0.1, "normalizer": None}),
    ("index", "mean", {"normalizer": True, "sample_weight": True, "logit_softcap": 1.5, "return_stats": True}),
    ("probability", "sum", {"label_smoothing": 0.2, "weight": True, "sample_weight": True, "logit_softcap": 1.5}),
    ("probability", "mean", {"weight": True, "normalizer": True, "z_loss": 0.1}),
]


def check_higher_derivatives(rank: int, processes: int) -> None:
    """Of the first, second and third order, by every input, equal those of one process.

    The dimension along which an input is split is -1 for those that each process has.
    """
    first, *others = splits(processes)
    cases = [*itertools.product([first], HIGHER), *itertools.product(others[-1:], HIGHER[1:5:3])]
    for split, (kind, reduction, options) in cases if processes < 4 else cases[1:2]:
        for linear in (False, True):
            tensors = drawn(kind) | {"normalizer": torch.tensor(3.5, dtype=torch.float64)}
            along = {"input": -1} if linear else {"logits": 1}
            along |= dict.fromkeys(TAKEN, -1) | ({"linear_weight": 0, "linear_bias": 0} if linear else {})
            if kind == "probability":
                along["target"] = 1
            whole = {name: tensor.clone() for name, tensor in tensors.items()}
            mine = {
                name: part(tensor, split, rank, along[name]) if along.get(name, -1) >= 0 else tensor.clone()
                for name, tensor in tensors.items()
            }
            results, leaves = [], []
            for given, ours in ((mine, True), (whole, False)):
                names = [name for name in along if options.get(name, name not in TAKEN)]
                leaves.append([given[name].requires_grad_() for name in names])
                keywords = {**chosen(given, options), "reduction": reduction}
                if linear:
                    layer = {name: given[name] for name in ("input", "linear_weight", "linear_bias", "target")}
                    function: Any = class_parallel_linear_cross_entropy if ours else linear_cross_entropy
                    loss = function(**layer, **keywords, block_rows=4)
                elif ours:
                    loss = class_parallel_cross_entropy(given["logits"], given["target"], **keywords)
                else:
                    loss = single(given, **keywords)
                loss = loss[0] if isinstance(loss, tuple) else loss
                incoming = torch.linspace(0.5, 2, loss.numel(), dtype=torch.float64).reshape(loss.shape)
                results.append(derivatives((loss * incoming).sum(), leaves[-1], orders=3))
            places = [along[name] for name in names] * 3
            for found, truth, place in zip(*results, places, strict=True):
                assert_close(found, part(truth, split, rank, place) if place >= 0 else truth)


def check_who_requires_grad(rank: int, processes: int) -> None:
    """Where the processes differ, what would leave one waiting for another raises in all that come to it."""
    if processes == 1:
        return
    tensors = drawn("index")
    mine = part(tensors["logits"], splits(processes)[0], rank, 1)
    for name, wanted in (("weight", torch.ones(CLASSES).double()), ("sample_weight", torch.ones(ROWS).double())):
        given: dict[str, Any] = {name: wanted.requires_grad_(rank == 0)}
        with pytest.raises(RuntimeError, match=f"{name} requires grad in some of the processes"):
            class_parallel_cross_entropy(mine, tensors["target"], **given)
        with torch.no_grad():
            assert class_parallel_cross_entropy(mine, tensors["target"], **given).isfinite()
    # A part that is frozen: the others have their gradients, but no second derivative.
    loss = class_parallel_cross_entropy(mine.requires_grad_(rank > 0), tensors["target"])
    assert loss.requires_grad == (rank > 0)
    layer = [tensors["input"].requires_grad_(), part(tensors["linear_weight"], splits(processes)[0], rank, 0)]
    of_layer = class_parallel_linear_cross_entropy(layer[0], layer[1].requires_grad_(rank > 0), tensors["target"])
    for total, leaves in ((loss, [mine]), (of_layer, layer)):
        leaves = [leaf for leaf in leaves if leaf.requires_grad]
        if leaves:
            with pytest.raises(RuntimeError, match="requires grad in all processes or in none"):
                torch.autograd.grad(total, leaves, create_graph=True)
            assert all(gradient.any() for gradient in torch.autograd.grad(total, leaves))


def check_forward_mode(rank: int, processes: int) -> None:
    """The directional derivative, and that of the gradient, along the processes' parts of a direction."""
    split = splits(processes)[-1]
    for kind in ("ignored", "probability"):
        tensors = drawn(kind) | {"direction": torch.linspace(-1, 1, ROWS * CLASSES).double().reshape(ROWS, CLASSES)}
        options = {
            "label_smoothing": 0.2,
            "z_loss": 0.1,
            "logit_softcap": 1.5,
            "sample_weight": tensors["sample_weight"],
        }
        target, weight = tensors["target"], tensors["weight"]
        own_target = part(target, split, rank, 1) if kind == "probability" else target

        def ours(logits: Tensor, weight: Tensor, own_target: Any = own_target, options: Any = options) -> Any:
            return class_parallel_cross_entropy(logits, own_target, weight, **options)

        def plain(logits: Tensor, weight: Tensor, target: Any = target, options: Any = options) -> Any:
            return cross_entropy(logits, target, weight, **options)

        mine = tuple(part(tensors[name], split, rank, 1) for name in ("logits", "direction"))
        whole = (tensors["logits"], tensors["direction"])
        found = torch.func.jvp(ours, (mine[0], weight), (mine[1], weight.square()))
        assert_close(found, torch.func.jvp(plain, (whole[0], weight), (whole[1], weight.square())))

        def gradient(function: Any, weight: Tensor = weight) -> Any:
            return torch.func.grad(lambda logits: function(logits, weight))

        found = torch.func.jvp(gradient(ours), mine[:1], mine[1:])[1]
        expected = torch.func.jvp(gradient(plain), whole[:1], whole[1:])[1]
        assert_close(found, part(expected, split, rank, 1))
    names = ("input", "linear_weight", "linear_bias")
    tensors = drawn("ignored")

    def of_layer(x: Tensor, layer: Tensor, bias: Tensor) -> Any:
        return class_parallel_linear_cross_entropy(x, layer, tensors["target"], linear_bias=bias, block_rows=4)

    def plain_layer(x: Tensor, layer: Tensor, bias: Tensor) -> Any:
        return linear_cross_entropy(x, layer, tensors["target"], linear_bias=bias)

    layer = [tensors[name] for name in names]
    own_layer = [layer[0], *(part(tensor, split, rank, 0) for tensor in layer[1:])]
    for order in (1, 2):
        found = directional(of_layer, own_layer, order)
        assert_close(found, directional(plain_layer, layer, order))


def directional(function: Any, point: list[Tensor], order: int) -> Tensor:
    """The derivative, or the second one, along tensors' sines."""
    if not order:
        return function(*point)
    along = tuple(tensor.sin() for tensor in point)
    return torch.func.jvp(lambda *point: directional(function, list(point), order - 1), tuple(point), along)[1]


def check_dtensor(rank: int, processes: int) -> None:
    mesh = init_device_mesh("cpu", (processes,))
    for kind in ("ignored", "probability"):
        tensors = drawn(kind)
        logits = distribute_tensor(tensors["logits"], mesh, [Shard(1)]).requires_grad_()
        target: Any = tensors["target"]
        if kind == "probability":
            target = distribute_tensor(target, mesh, [Shard(1)])
        loss = class_parallel_cross_entropy(logits, target, label_smoothing=0.1)
        assert isinstance(loss, DTensor)
        leaf = tensors["logits"].requires_grad_()
        expected = single({**tensors, "logits": leaf}, label_smoothing=0.1)
        assert_close(loss.to_local(), expected)
        loss.backward()
        expected.backward()
        assert isinstance(logits.grad, DTensor)
        assert logits.grad.placements == (Shard(1),)
        assert_close(logits.grad.full_tensor(), leaf.grad)
        # A penalty on the gradient, as DTensors and as one process's tensors.
        for orders in (2, 3):
            loss = class_parallel_cross_entropy(logits, target, label_smoothing=0.1)
            found = derivatives(loss, [logits], orders)[-1]
            assert isinstance(found, DTensor)
            expected = single({**tensors, "logits": leaf}, label_smoothing=0.1)
            assert_close(found.full_tensor(), derivatives(expected, [leaf], orders)[-1])
    tensors = drawn("ignored")
    weight = distribute_tensor(tensors["linear_weight"], mesh, [Shard(0)]).requires_grad_()
    x = distribute_tensor(tensors["input"], mesh, [Replicate()]).requires_grad_()
    loss: Any = class_parallel_linear_cross_entropy(x, weight, tensors["target"])
    leaves = [tensors["input"].requires_grad_(), tensors["linear_weight"].requires_grad_()]
    expected = linear_cross_entropy(leaves[0], leaves[1], tensors["target"])
    assert_close(loss.to_local(), expected)
    loss.backward()
    expected.backward()
    assert isinstance(x.grad, DTensor)
    assert isinstance(weight.grad, DTensor)
    assert_close(x.grad.full_tensor(), leaves[0].grad)
    assert_close(weight.grad.full_tensor(), leaves[1].grad)
    loss = class_parallel_linear_cross_entropy(x, weight, tensors["target"])
    expected = linear_cross_entropy(leaves[0], leaves[1], tensors["target"])
    second: Any = derivatives(loss, [x, weight], 2)[2:]
    for found, truth in zip(second, derivatives(expected, leaves, 2)[2:], strict=True):
        assert_close(found.full_tensor(), truth)
    for placement in (Replicate(), Shard(0)):
        other = distribute_tensor(tensors["logits"], mesh, [placement])
        with pytest.raises(ValueError, match=r"expected a DTensor with Shard\(1\)"):
            class_parallel_cross_entropy(other, tensors["target"])


def as_dtensor(tensor: Tensor, mesh: Any, placements: Any) -> Tensor:
    """A leaf that lies like this; plain where there are no placements, and with Partial a part in each process."""
    if placements is None:
        leaf = tensor.clone()
    elif Partial() in placements:
        leaf = DTensor.from_local(tensor / mesh.size(), mesh, placements)
    else:
        leaf = distribute_tensor(tensor, mesh, placements)
    return leaf.requires_grad_(tensor.is_floating_point())


def gathered(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare_dtensors(function: Any, tensors: dict[str, Tensor], lie: dict[str, Any], mesh: Any, **given: Any) -> None:
    """A loss of DTensors and plain tensors against the same of plain ones: values, placements, two derivatives."""
    ours = {name: as_dtensor(tensor, mesh, lie.get(name)) for name, tensor in tensors.items()}
    plain = {name: as_dtensor(tensor, mesh, None) for name, tensor in tensors.items()}
    loss, expected = function(**ours, **given), function(**plain, **given)
    if isinstance(loss, tuple):
        for field, truth in zip(loss[1], expected[1], strict=True):
            assert_close(gathered(field), truth)
        loss, expected = loss[0], expected[0]
    assert isinstance(loss, DTensor)
    assert_close(gathered(loss), expected)
    if not loss.dim():
        assert all(placement == Replicate() for placement in loss.placements)
        assert_close(loss.to_local(), expected)
    elif function is not linear_cross_entropy and loss.dim() < tensors["input"].dim() and lie["input"][0] == Shard(0):
        # Rows of several dimensions are not kept where PyTorch cannot flatten them.
        assert loss.placements[0] == Shard(0) or (function is distilled and loss.dim() > 1)
    names = [name for name in ours if ours[name].requires_grad]
    incoming = torch.linspace(0.5, 2, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    total, truth = (loss * distribute_tensor(incoming, mesh, loss.placements)).sum(), (expected * incoming).sum()
    total = total.redistribute(placements=[Replicate()] * mesh.ndim) if isinstance(total, DTensor) else total
    partial = {name for name in names if lie.get(name) is not None and Partial() in lie[name]}
    # PyTorch adds no penalty on a plain tensor's gradient to one on a DTensor's.
    orders = 2 if not partial and all(isinstance(ours[name], DTensor) for name in names) else 1
    # In torch 2.10, what moves a DTensor's gradient to other placements cannot be differentiated.
    orders = 1 if torch.__version__.startswith("2.10.") else orders
    found = derivatives(total, [ours[name] for name in names], orders)
    for position, (gradient, right) in enumerate(
        zip(found, derivatives(truth, [plain[name] for name in names], orders), strict=True)
    ):
        name = names[position % len(names)]
        if name in partial:
            continue
        if isinstance(ours[name], DTensor):
            assert isinstance(gradient, DTensor)
            assert position >= len(names) or gradient.placements == ours[name].placements  # type: ignore[attr-defined]
        assert_close(gathered(gradient), right, msg=lambda message, name=name: f"{function} {name} {lie}: {message}")


def weighed_log_probs(input: Tensor, *, target: Tensor, **operands: Any) -> Tensor:
    """Log-probability and entropy of each row, of logits or of a linear layer's."""
    found = linear_log_probs(input, target=target, **operands) if operands else log_probs(input, target, dim=1)
    return 2 * found.log_probability - 3 * found.entropy


def check_every_loss_of_dtensors(rank: int, processes: int) -> None:
    """Rows and classes split over one dimension of a mesh or two, in every loss, evenly or not."""
    one, two = init_device_mesh("cpu", (processes,)), None
    biased: dict[str, Tensor] = {}
    meshes: list[tuple[Any, list[Any]]] = [(one, [[Shard(0)], [Replicate()], [Shard(1)], [Partial()]])]
    if processes == 4:
        two = init_device_mesh("cpu", (2, 2))
        names = [(Shard(0), Shard(1)), (Shard(0), Replicate()), (Shard(1), Shard(0)), (Shard(0), Shard(0))]
        meshes = [(two, [list(placements) for placements in names]), (one, meshes[0][1][:1])]
    tensors = drawn("ignored")
    logits, samples, indices = tensors["logits"], tensors["sample_weight"], tensors["target"]
    probabilities = drawn("probability")["target"]
    images, of_images = (drawn("ignored", (2, 3))[name] for name in ("logits", "target"))
    for mesh, each in meshes:
        everywhere = [Replicate()] * mesh.ndim
        for lie in each:
            rows = [placement if placement == Shard(0) else Replicate() for placement in lie]
            elements = {"input": logits, "target": probabilities}
            compare_dtensors(mse_loss, elements, {"input": lie, "target": lie}, mesh)
            compare_dtensors(mse_loss, {**elements, "sample_weight": samples}, {"input": lie}, mesh, reduction="sum")
            weighted = {**elements, "weight": probabilities + 1}
            compare_dtensors(mse_loss, weighted, {"input": lie, "target": rows, "weight": everywhere}, mesh)
            for function in (huber_loss, smooth_l1_loss, binary_cross_entropy_with_logits):
                compare_dtensors(function, elements, {"input": lie, "target": lie}, mesh)
            compare_dtensors(huber_loss, elements, {"input": lie, "target": rows}, mesh, reduction="none")
            if Partial() not in lie:
                either = {"input": probabilities, "target": logits.softmax(1)}
                compare_dtensors(cee_loss, either, {"input": lie, "target": lie}, mesh)
                compare_dtensors(cee_loss, {**either, "target": indices.abs() % CLASSES}, {"input": lie}, mesh)
            full = {"input": logits, "target": indices, "weight": tensors["weight"], "sample_weight": samples}
            options: dict[str, Any] = {"label_smoothing": 0.2, "z_loss": 0.1, "logit_softcap": 1.5}
            placed = {"input": lie, "target": rows, "weight": everywhere, "sample_weight": rows}
            compare_dtensors(cross_entropy, full, placed, mesh, **options, return_stats=True)
            compare_dtensors(cross_entropy, full, {"input": lie}, mesh, **options, reduction="none")
            soft = {"input": logits, "target": probabilities, "normalizer": torch.tensor(3.0).double()}
            compare_dtensors(cross_entropy, soft, {"input": lie, "target": rows, "normalizer": everywhere}, mesh)
            compare_dtensors(cross_entropy, {"input": images, "target": of_images}, {"input": lie}, mesh)
            layer = {"input": tensors["input"], "linear_weight": tensors["linear_weight"], "target": indices}
            biased = {**layer, "linear_bias": tensors["linear_bias"]}
            for of_layer in each:
                compare_dtensors(linear_cross_entropy, biased, {"input": lie, "linear_weight": of_layer}, mesh)
            compare_dtensors(linear_cross_entropy, layer, {"linear_weight": lie}, mesh, reduction="none")
            of_logits = {"input": logits, "target": indices}
            compare_dtensors(weighed_log_probs, of_logits, {"input": lie, "target": rows}, mesh)
            compare_dtensors(weighed_log_probs, {"input": images, "target": of_images}, {"input": lie}, mesh)
            linear: tuple[Any, ...] = (weighed_log_probs, biased, {"input": lie, "linear_weight": each[0]}, mesh)
            if torch.__version__.startswith("2.10.") and Shard(0) in lie:
                # Its view of rows that are split takes the shape of all processes for that of its own part.
                assert "is invalid for input of size" in raised(RuntimeError, compare_dtensors, *linear)
            else:
                compare_dtensors(*linear)
    if two is not None:
        # Rows split over one dimension and the classes of the layer over the other.
        lie = {"input": [Shard(0), Replicate()], "target": [Shard(0), Replicate()]}
        lie |= {"linear_weight": [Replicate(), Shard(0)], "linear_bias": [Replicate(), Shard(0)]}
        for reduction in ("mean", "none"):
            compare_dtensors(linear_cross_entropy, biased, lie, two, return_stats=True, reduction=reduction)
            compare_dtensors(class_parallel_linear, biased, lie, two, reduction=reduction)
    if processes == 1:
        return
    wrong = indices.clone()
    wrong[-1] = CLASSES
    bad: Any = distribute_tensor(wrong, one, [Shard(0)])
    has_it = bool((bad.to_local() == CLASSES).any())
    rows_split = as_dtensor(logits, one, [Shard(0)])
    message = raised(IndexError if has_it else RuntimeError, cross_entropy, rows_split, bad)
    assert has_it or "rows of another process are wrong" in message
    for calls, error, match in (
        (lambda: global_normalizer(bad), ValueError, "give target.to_local"),
        (lambda: class_parallel_cross_entropy(logits, bad), ValueError, "but got a plain tensor"),
        (lambda: cross_entropy(rows_split, indices[:2]), ValueError, "batch_size"),
    ):
        with pytest.raises(error, match=match):
            calls()


def class_parallel_linear(**tensors: Any) -> Any:
    """That of DTensors, and for plain tensors the loss of one process."""
    split = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    return (class_parallel_linear_cross_entropy if split else linear_cross_entropy)(**tensors)


def distilled(input: Tensor, *, linear_weight: Tensor, **given: Any) -> Tensor:
    """The divergence from a teacher, whose k largest are `values` and `indices`; of plain tensors by its formula."""
    values, indices = given.pop("values", None), given.pop("indices", None)
    if any(isinstance(tensor, DTensor) for tensor in (input, linear_weight, values, indices, *given.values())):
        top_k = {} if values is None else {"teacher_top_k": (values, indices)}
        bias = given.pop("linear_bias", None)
        return linear_kl_div(input, linear_weight, student_bias=bias, block_rows=2, **top_k, **given)
    log_p = F.linear(input, linear_weight, given.get("linear_bias")).log_softmax(-1)
    if values is not None:
        of_listed = log_p.gather(-1, indices).exp()
        p, q = (torch.cat([some, 1 - some.sum(-1, keepdim=True)], -1) for some in (of_listed, values.exp()))
        log_p, log_q = p.log(), q.log()
    else:
        z = given.get("teacher_logits")
        if z is None:
            z = F.linear(given["teacher_input"], given["teacher_weight"], given.get("teacher_bias"))
        log_q = z.log_softmax(-1)
    losses = F.kl_div(log_p, log_q.detach(), reduction="none", log_target=True)
    if given.get("divergence") == "reverse":
        losses = F.kl_div(log_q.detach(), log_p, reduction="none", log_target=True)
    counted: Any = given.get("sample_weight", torch.ones(()).double())
    if "target" in given:
        counted = counted * (given["target"] != -100)
    losses = losses.sum(-1) * counted
    reduction = given.get("reduction", "mean")
    if reduction == "none":
        return losses
    divisor = given.get("normalizer", counted.expand(losses.shape).sum())
    return losses.sum() / (divisor if reduction == "mean" else 1)


def check_distillation_of_dtensors(rank: int, processes: int) -> None:
    """Rows split over one dimension of a mesh or two, of the student or the teacher; weights as FSDP splits them."""
    tensors, generator = drawn("ignored"), torch.Generator().manual_seed(4)
    samples, indices = tensors["sample_weight"], tensors["target"]
    z, features = tensors["logits"], torch.randn(ROWS, 2, generator=generator).double()
    head = torch.randn(CLASSES, 2, generator=generator).double()
    student = {name: tensors[name] for name in ("input", "linear_weight")}
    biased = {**student, "linear_bias": tensors["linear_bias"]}
    values, places = z.log_softmax(1).topk(3)
    of_features = {**biased, "teacher_input": features, "teacher_weight": head, "teacher_bias": tensors["weight"]}
    of_largest = {**student, "values": values, "indices": places, "sample_weight": samples}
    of_logits = {**student, "teacher_logits": z, "target": indices}
    weighted = {**of_logits, "sample_weight": samples}
    mesh, others = init_device_mesh("cpu", (processes,)), [[Shard(0)], [Replicate()], [Shard(1)], [Partial()]]
    if processes == 4:
        mesh, others = init_device_mesh("cpu", (2, 2)), [[Shard(0), Shard(1)], [Shard(0), Shard(0)], [Replicate()] * 2]
    everywhere = [Replicate()] * mesh.ndim
    for lie in others:
        rows = [placement if placement == Shard(0) else Replicate() for placement in lie]
        of_layers = {"linear_weight": lie, "teacher_weight": lie, "teacher_bias": rows, "linear_bias": rows}
        placed = {"input": rows, "teacher_input": rows, **of_layers}
        for reduction in ("mean", "sum", "none"):
            compare_dtensors(distilled, of_features, placed, mesh, reduction=reduction)
        # Rows of the teacher only; what goes with them is plain.
        compare_dtensors(distilled, of_largest, {"values": rows, "indices": rows}, mesh, divergence="reverse")
        compare_dtensors(distilled, of_largest, {"input": lie, "indices": everywhere, "sample_weight": rows}, mesh)
        compare_dtensors(distilled, of_logits, {"input": rows, "teacher_logits": lie, "target": rows}, mesh)
        divisor = torch.tensor(2.5).double()
        for along in ({"target": rows, "normalizer": everywhere}, {"sample_weight": rows}):
            compare_dtensors(distilled, {**weighted, "normalizer": divisor}, {"input": lie, **along}, mesh)
        folded = {name: t.unflatten(0, (3, 2)) if t.shape[0] == ROWS else t for name, t in weighted.items()}
        of_classes = {name: tensor for name, tensor in folded.items() if name != "teacher_logits"}
        for reduction in ("mean", "none"):
            calls: tuple[Any, ...] = (
                (distilled, folded, {"input": lie, "linear_weight": rows}, mesh),
                (linear_cross_entropy, of_classes, {"input": lie}, mesh),
            )
            for call in calls:
                if torch.__version__.startswith("2.10.") and Shard(1) in lie:
                    assert "flatten" in raised(RuntimeError, compare_dtensors, *call, reduction=reduction)
                else:
                    compare_dtensors(*call, reduction=reduction)
    if processes == 1:
        return
    wrong = places.clone()
    wrong[-1] = CLASSES
    bad: Any = distribute_tensor(wrong, mesh, [Shard(0), *everywhere[1:]])
    has_it = bool((bad.to_local() == CLASSES).any())
    message = raised(
        IndexError if has_it else RuntimeError,
        linear_kl_div,
        as_dtensor(student["input"], mesh, [Shard(0), *everywhere[1:]]),
        student["linear_weight"],
        teacher_top_k=(values, bad),
    )
    assert has_it or "rows of another process are wrong" in message


def check_fully_sharded_modules(rank: int, processes: int) -> None:
    """FSDP2 gives the module itself another class and the weight to its forward whole; gradients are averages."""
    tensors = drawn("index")
    own = slice(rank, ROWS, processes)
    for kind, target in (
        (LinearCrossEntropyLoss, {"target": tensors["target"]}),
        (LinearKLDivLoss, {"teacher_logits": tensors["logits"]}),
    ):
        module: Any = kind(FEATURES, CLASSES, dtype=torch.float64)
        with torch.no_grad():
            module.linear.weight.copy_(tensors["linear_weight"])
        whole = copy.deepcopy(module)
        fully_shard(module)
        module(tensors["input"][own], **{name: tensor[own] for name, tensor in target.items()}).backward()
        each = [slice(process, ROWS, processes) for process in range(processes)]
        losses = [whole(tensors["input"][rows], **{name: t[rows] for name, t in target.items()}) for rows in each]
        torch.stack(losses).mean().backward()
        assert_close(gathered(module.linear.weight.grad), whole.linear.weight.grad)


def check_against_loss_parallel(rank: int, processes: int) -> None:
    """PyTorch's own, for what it can do: a mean over class indices, without smoothing."""
    from torch.distributed.tensor.parallel import loss_parallel

    mesh = init_device_mesh("cpu", (processes,))
    tensors = drawn("ignored")
    ours, theirs = (distribute_tensor(tensors["logits"], mesh, [Shard(1)]).requires_grad_() for _ in range(2))
    loss: Any = class_parallel_cross_entropy(ours, tensors["target"])
    loss.backward()
    with loss_parallel():
        builtin: Any = F.cross_entropy(theirs, distribute_tensor(tensors["target"], mesh, [Replicate()]))
        assert_close(loss.to_local(), builtin.full_tensor())
        builtin.backward()
    assert isinstance(ours.grad, DTensor)
    assert isinstance(theirs.grad, DTensor)
    assert_close(ours.grad.full_tensor(), theirs.grad.full_tensor())


def check_corners(rank: int, processes: int) -> None:
    split = splits(processes)[-1]
    tensors = drawn("ignored")
    dirty = tensors["logits"].clone()
    dirty[tensors["target"] == -100] = float("nan")
    options: dict[str, Any]
    for target, options in (
        (tensors["target"], {}),
        (tensors["target"].clamp(min=0), {"sample_weight": (tensors["target"] != -100).double()}),
    ):
        leaf = part(dirty, split, rank, 1).requires_grad_()
        loss = class_parallel_cross_entropy(leaf, target, **options)
        clean = tensors["logits"].clone().requires_grad_()
        expected = F.cross_entropy(clean, tensors["target"])
        assert_close(loss, expected)
        assert_close(torch.autograd.grad(loss, leaf)[0], part(torch.autograd.grad(expected, clean)[0], split, rank, 1))
        leaf = part(dirty, split, rank, 1).requires_grad_()
        loss = class_parallel_cross_entropy(leaf, target, z_loss=0.1, **options)
        expected = cross_entropy(clean, tensors["target"], z_loss=0.1)
        assert_close(derivatives(loss, [leaf], 3)[2], part(derivatives(expected, [clean], 3)[2], split, rank, 1))
    nothing = torch.full((ROWS,), -100)
    leaf = part(dirty, split, rank, 1).requires_grad_()
    assert class_parallel_cross_entropy(leaf, nothing).isnan()
    loss: Tensor = class_parallel_cross_entropy(leaf, nothing, empty="zero")
    assert loss == 0
    assert not torch.autograd.grad(loss, leaf)[0].any()
    # Every class of every process is the largest.
    assert_close(
        class_parallel_cross_entropy(torch.zeros(2, split[rank]), torch.tensor([0, CLASSES - 1])),
        torch.tensor(float(CLASSES)).log(),
    )
    features = tensors["input"].clone()
    features[tensors["target"] == -100] = float("nan")
    own = [features.requires_grad_(), part(tensors["linear_weight"], split, rank, 0).requires_grad_()]
    whole_layer = [tensors["input"].clone().requires_grad_(), tensors["linear_weight"].clone().requires_grad_()]
    loss = class_parallel_linear_cross_entropy(own[0], own[1], tensors["target"])
    expected = linear_cross_entropy(whole_layer[0], whole_layer[1], tensors["target"])
    assert_close(loss, expected)
    found, truth = torch.autograd.grad(loss, own), torch.autograd.grad(expected, whole_layer)
    assert_close(found[0], truth[0])
    assert_close(found[1], part(truth[1], split, rank, 0))
    loss = class_parallel_linear_cross_entropy(own[0], own[1], tensors["target"])
    expected = linear_cross_entropy(whole_layer[0], whole_layer[1], tensors["target"])
    found, truth = derivatives(loss, own, 2)[2:], derivatives(expected, whole_layer, 2)[2:]
    assert_close(found[0], truth[0])
    assert_close(found[1], part(truth[1], split, rank, 0))
    # A class that is ruled out and has no share.
    ruled_out = drawn("probability")
    ruled_out["logits"][:, 2] = -torch.inf
    ruled_out["target"][:, 2] = 0
    leaf = part(ruled_out["logits"], split, rank, 1).requires_grad_()
    loss = class_parallel_cross_entropy(leaf, part(ruled_out["target"], split, rank, 1))
    whole = ruled_out["logits"].clone().requires_grad_()
    expected = cross_entropy(whole, ruled_out["target"])
    assert_close(loss, expected)
    for gradient, truth in zip(derivatives(loss, [leaf], 3), derivatives(expected, [whole], 3), strict=True):
        assert_close(gradient, part(truth, split, rank, 1))
    # Confident and right, next to rounding: 2.06e-9, which a difference of float32 numbers would lose.
    sure = torch.zeros(1, CLASSES)
    sure[0, 2] = 25
    leaf = part(sure, split, rank, 1).requires_grad_()
    loss = class_parallel_cross_entropy(leaf, torch.tensor([2]))
    truth = torch.log1p((CLASSES - 1) * torch.exp(torch.tensor(-25.0).double()))
    assert_close(loss.double(), truth, rtol=1e-6, atol=0)
    whole = torch.full((1, CLASSES), float(torch.exp(torch.tensor(-25.0).double())), dtype=torch.float64)
    whole[0, 2] = -whole[0, 0] * (CLASSES - 1)
    assert_close(torch.autograd.grad(loss, leaf)[0].double(), part(whole, split, rank, 1), rtol=1e-6, atol=0)
    for index in (CLASSES, -1):
        with pytest.raises(IndexError, match=f"Target {index} is out of bounds.*there are {CLASSES} classes"):
            class_parallel_cross_entropy(part(sure, split, rank, 1), torch.tensor([index]))


def check_precision(rank: int, processes: int) -> None:
    """To a few units in the last place of the larger of p and a, which for a probable class are those of the others."""
    generator = torch.Generator().manual_seed(7)
    many = 20_000
    split = [many // processes + (process < many % processes) for process in range(processes)]
    logits = torch.randn(4, many, generator=generator) / 100
    # Surely the target, surely another class, and in between; the first row is sure of nothing.
    logits[1:, 5] += torch.tensor([25.0, 25.0, 10.5])
    target = (torch.randn(4, many, generator=generator) / 2).softmax(1)
    target[1:3] /= 1000
    target[1, 5], target[2, 7] = 1 - target[1].sum(), 1 - target[2].sum()
    x, t = logits.double(), target.double()
    largest = x.argmax(1, keepdim=True)
    weighted = t.sum(1, keepdim=True) * x.softmax(1)
    truth, size = weighted - t, torch.maximum(weighted, t)
    truth.scatter_(1, largest, -truth.scatter(1, largest, 0).sum(1, keepdim=True))
    of_others = size.scatter(1, largest, 0).sum(1, keepdim=True)
    size.scatter_(1, largest, size.gather(1, largest).minimum(of_others))
    leaf = part(logits, split, rank, 1).requires_grad_()
    loss = class_parallel_cross_entropy(leaf, part(target, split, rank, 1), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)
    error = (gradient.double() - part(truth, split, rank, 1)).abs() / part(size, split, rank, 1)
    assert error.max() < 8 * torch.finfo(torch.float32).eps


def check_low_precision(rank: int, processes: int) -> None:
    split = splits(processes)[0]
    tensors = drawn("ignored")
    x, weight = tensors["input"].bfloat16(), tensors["linear_weight"].bfloat16()
    own = [x.clone().requires_grad_(), part(weight, split, rank, 0).requires_grad_()]
    whole = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss = class_parallel_linear_cross_entropy(own[0], own[1], tensors["target"])
    expected = linear_cross_entropy(whole[0], whole[1], tensors["target"])
    assert loss.dtype == torch.bfloat16
    assert_close(loss, expected)
    found, truth = torch.autograd.grad(loss, own), torch.autograd.grad(expected, whole)
    assert_close(found[0], truth[0], rtol=0.02, atol=2e-3)
    assert_close(found[1], part(truth[1], split, rank, 0), rtol=0.02, atol=2e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide = class_parallel_linear_cross_entropy(own[0].float(), own[1].float(), tensors["target"])
    assert wide.dtype == torch.float32
    assert_close(wide, expected.float(), rtol=0.02, atol=2e-3)


def check_communication(rank: int, processes: int) -> None:
    """What is sent grows with the rows, and not with the classes."""
    sent = []
    reduce = dist.all_reduce

    def counted(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        # Beside the rows, each process tells the others once what they have to agree on.
        if tensor.shape != (processes, _agreement._WIDTH):
            sent.append(tensor.nbytes)
        return reduce(tensor, *arguments, **options)

    def bytes_of(rows: int, classes: int, linear: bool, orders: int = 1) -> int:
        sent.clear()
        target = torch.zeros(rows, dtype=torch.int64)
        leaves = [torch.ones(rows, FEATURES if linear else classes).requires_grad_()]
        if linear:
            leaves.append(torch.ones(classes, FEATURES).requires_grad_())
            loss = class_parallel_linear_cross_entropy(leaves[0], leaves[1], target, block_rows=16)
        else:
            loss = class_parallel_cross_entropy(leaves[0], target)
        derivatives(loss, leaves, orders)
        return sum(sent)

    dist.all_reduce = counted
    try:
        for linear in (False, True):
            few = bytes_of(32, 10, linear)
            assert few == bytes_of(32, 1000, linear)
            assert bytes_of(64, 10, linear) == 2 * few
            further = bytes_of(32, 10, linear, orders=2)
            assert further == bytes_of(32, 1000, linear, orders=2)
            assert bytes_of(64, 10, linear, orders=2) == 2 * further
            # Maximum, who has it, and two sums, the place being an int64; and a row's features in the backward.
            assert few == (0 if processes == 1 else 32 * (4 + 8 + 8 + (4 * FEATURES if linear else 0)))
    finally:
        dist.all_reduce = reduce


def raised(error: type[Exception], call: Any, *arguments: Any, **options: Any) -> str:
    """The message of an error that each process gets, in no time."""
    start = time.monotonic()
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert time.monotonic() - start < 60
    return str(caught.value)


# What one process does otherwise than the others, and how the error calls it.
DIFFERING: list[tuple[dict[str, Any], str]] = [
    ({"rows": 5}, "the shape of the rows"),
    ({"dtype": torch.float32}, "the dtype of input"),
    ({"target": "probability"}, "the kind of target"),
    ({"target": "shifted"}, "the class indices in target"),
    ({"weight": True}, "weight"),
    ({"sample_weight": True}, "sample_weight"),
    ({"normalizer": 2.0}, "normalizer"),
    ({"normalizer": torch.tensor(2.0)}, "normalizer"),
    ({"reduction": "sum"}, "reduction"),
    ({"ignore_index": 3}, "ignore_index"),
    ({"label_smoothing": 0.1}, "label_smoothing"),
    ({"empty": "zero"}, "empty"),
    ({"z_loss": 0.1}, "z_loss"),
    ({"logit_scale": 0.5}, "logit_scale"),
    ({"logit_softcap": 2.0}, "logit_softcap"),
    ({"loss_dtype": torch.float32}, "loss_dtype"),
    ({"return_stats": True}, "return_stats"),
    ({"gradient": "backward"}, "gradient"),
    ({"block_rows": 2}, "block_rows"),
]


def check_agreement(rank: int, processes: int) -> None:
    """Whatever the processes do otherwise than each other, each of them gets the same clear error at once."""
    if processes == 1:
        return
    split = splits(processes)[0]
    tensors = drawn("index")
    last = rank == processes - 1

    def call(linear: bool, rows: int = ROWS, dtype: Any = torch.float64, target: str = "index", **given: Any) -> Any:
        indices = tensors["target"][:rows]
        if target == "shifted":
            indices = (indices + 1) % CLASSES
        given = chosen({**tensors, "sample_weight": tensors["sample_weight"][:rows]}, given)
        if "weight" in given:
            given["weight"] = given["weight"].to(dtype)
        if linear:
            weight = part(tensors["linear_weight"], split, rank, 0).to(dtype)
            probabilities = torch.ones(rows, split[rank], dtype=torch.float64)
            x, y = tensors["input"][:rows].to(dtype), probabilities if target == "probability" else indices
            return class_parallel_linear_cross_entropy(x, weight, y, **given)
        mine = part(tensors["logits"], split, rank, 1)[:rows].to(dtype)
        return class_parallel_cross_entropy(
            mine, torch.ones_like(mine) if target == "probability" else indices, **given
        )

    for linear, (differing, called) in itertools.product((False, True), DIFFERING):
        if "block_rows" in differing and not linear:
            continue
        message = raised(RuntimeError, call, linear, **(differing if last else {}))
        assert f"{called} must be the same in each process" in message
    message = raised(RuntimeError, call, last)
    assert "the function must be the same" in message
    # An argument that is wrong in one of them.
    for wrong, error in (({"reduction": "avg"}, ValueError), ({"z_loss": -1.0}, ValueError)):
        message = raised(error if last else RuntimeError, call, False, **(wrong if last else {}))
        assert last or f"an argument is wrong in process {processes - 1} of the group" in message
    # Afterwards all goes on.
    assert_close(call(False), F.cross_entropy(tensors["logits"], tensors["target"]))
    assert_close(call(True), linear_cross_entropy(tensors["input"], tensors["linear_weight"], tensors["target"]))
    weights: Any = [torch.ones(3), torch.ones(4)]
    error = ValueError if last else RuntimeError
    message = raised(error, lambda: global_normalizer(torch.zeros(4).long(), sample_weight=weights[not last]))
    assert ("broadcast" if last else "another process") in message


def check_assumed_agreement(rank: int, processes: int) -> None:
    """The processes tell each other once what they bring along, and nothing while that is the same."""
    told = []
    reduce = dist.all_reduce

    def counted(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        told.append(tensor.shape == (processes, _agreement._WIDTH))
        return reduce(tensor, *arguments, **options)

    def calls(split: list[int], kind: str, rows: int) -> int:
        tensors = drawn(kind, (rows,))
        mine = part(tensors["logits"], split, rank, 1).requires_grad_()
        target = part(tensors["target"], split, rank, 1) if kind == "probability" else tensors["target"]
        told.clear()
        loss = class_parallel_cross_entropy(mine, target)
        whole = tensors["logits"].requires_grad_()
        assert_close(loss, F.cross_entropy(whole, tensors["target"]))
        truth = torch.autograd.grad(F.cross_entropy(whole, tensors["target"]), whole)[0]
        assert_close(torch.autograd.grad(loss, mine)[0], part(truth, split, rank, 1))
        return sum(told)

    first, *others = splits(processes)
    several = int(processes > 1)
    _agreement._known.clear()
    dist.all_reduce = counted
    try:
        with assume_agreement():
            # Other rows and other targets are no reason to talk.
            assert [calls(first, *case) for case in (("ignored", 6), ("ignored", 6), ("probability", 4))] == [
                several, 0, 0,
            ]  # fmt: skip
            if processes > 1:
                logits = torch.zeros(3, first[rank] + 1, requires_grad=True)
                target = torch.zeros(3, dtype=torch.int64)
                message = raised(RuntimeError, lambda: class_parallel_cross_entropy(logits, target))
                assert f"had {first[rank]} classes before, and has {first[rank] + 1} now" in message
                few = part(drawn("index")["logits"], first, rank, 1)
                message = raised(RuntimeError, lambda: class_parallel_cross_entropy(few, torch.zeros(6).long()))
                assert "other tensors require grad than in the first call" in message
        # A process may have as many classes of one layer as of another.
        for expected in (1, 0):
            for number, split in enumerate(others):
                with assume_agreement(f"layer {number}"):
                    assert calls(split, "index", 3) == expected
        assert calls(first, "ignored", 6) == several
    finally:
        dist.all_reduce = reduce


def check_outside_of_a_group(rank: int, processes: int) -> None:
    if processes == 1:
        return
    group: Any = dist.new_group([0])
    tensors = drawn("index")
    calls: list[Any] = [
        lambda: class_parallel_cross_entropy(tensors["logits"], tensors["target"], group=group),
        lambda: class_parallel_linear_cross_entropy(
            tensors["input"], tensors["linear_weight"], tensors["target"], group=group
        ),
        lambda: global_normalizer(tensors["target"], group=group),
    ]
    for call in calls:
        if rank:
            assert "is none of the group" in raised(ValueError, call)
        else:
            assert call().isfinite()


def check_strides(rank: int, processes: int) -> None:
    """The same values in another order of memory in one process: sums between processes go by value."""
    split = splits(processes)[0]
    tensors = drawn("index")
    expected = [tensors[name].clone().requires_grad_() for name in ("input", "linear_weight")]
    linear_cross_entropy(expected[0], expected[1], tensors["target"]).backward()
    for gradient in ("forward", "backward"):
        x = tensors["input"].t().contiguous().t() if rank == 0 else tensors["input"].clone()
        weight = part(tensors["linear_weight"], split, rank, 0)
        weight = weight.t().contiguous().t() if rank else weight
        x.requires_grad_()
        class_parallel_linear_cross_entropy(
            x, weight.requires_grad_(), tensors["target"], gradient=gradient, reduction="sum"
        ).div(ROWS).backward()
        assert_close(x.grad, expected[0].grad)
        assert_close(weight.grad, part(expected[1].grad, split, rank, 0))  # type: ignore[arg-type]
        logits = part(tensors["logits"], split, rank, 1)
        logits = (logits.t().contiguous().t() if rank == 0 else logits).requires_grad_()
        whole = tensors["logits"].clone().requires_grad_()
        weights = tensors["weight"].repeat_interleave(2)[::2] if rank == 0 else tensors["weight"].clone()
        of_all = tensors["weight"].clone().requires_grad_()
        class_parallel_cross_entropy(logits, tensors["target"], weights.requires_grad_(), gradient=gradient).backward()
        cross_entropy(whole, tensors["target"], of_all).backward()
        assert_close(logits.grad, part(whole.grad, split, rank, 1))  # type: ignore[arg-type]
        assert_close(weights.grad, of_all.grad)


def check_many_classes(rank: int, processes: int) -> None:
    """Which class is the largest is known to the last digit, also where float32 cannot count that far."""
    if processes != 2:
        return
    first, classes = 16_999_990, 20
    split = [first, classes]
    mine = torch.zeros(2, split[rank], dtype=torch.bfloat16)
    if rank:
        mine[:, 10] = 50
    _, statistics = class_parallel_cross_entropy(mine, torch.tensor([17_000_001, 17_000_000]), return_stats=True)
    assert statistics.correct.tolist() == [False, True]


def check_nothing(rank: int, processes: int) -> None:
    """No class in any process, and no row, are as in one process."""
    options: list[dict[str, Any]] = [{}, {"empty": "zero"}, {"reduction": "sum"}, {"return_stats": True, "z_loss": 0.1}]
    options += [{"label_smoothing": 0.1, "return_stats": True}, {"gradient": "backward"}]
    for given in options:
        for rows, classes in ((0, CLASSES), (3, 0), (0, 0)):
            split = [classes // processes + (process < classes % processes) for process in range(processes)]
            features = torch.randn(rows, FEATURES).double()
            for target in (torch.full((rows,), -100), torch.zeros(rows, classes).double()):
                own_target = part(target, split, rank, 1) if target.dim() > 1 else target
                whole: Any = [torch.zeros(rows, classes).double(), features, torch.ones(classes, FEATURES).double()]
                mine = [part(whole[0], split, rank, 1), features.clone(), part(whole[2], split, rank, 0)]
                for tensor in (*whole, *mine):
                    tensor.requires_grad_()
                results = (
                    (
                        class_parallel_cross_entropy(mine[0], own_target, **given),
                        cross_entropy(whole[0], target, **given),
                    ),
                    (
                        class_parallel_linear_cross_entropy(mine[1], mine[2], own_target, **given),
                        linear_cross_entropy(whole[1], whole[2], target, **given),
                    ),
                )
                for found, expected in results:
                    if isinstance(found, tuple):
                        assert_close(tuple(found[1]), tuple(expected[1]))
                        found, expected = found[0], expected[0]
                    assert_close(found, expected, equal_nan=True)
                    found.backward()
                assert not any(tensor.grad is not None and tensor.grad.any() for tensor in mine)
    with pytest.raises(IndexError, match="there are 0 classes"):
        class_parallel_cross_entropy(torch.zeros(1, 0), torch.tensor([0]))


def check_options(rank: int, processes: int) -> None:
    """The scale of the logits, the dtype of the loss, a low-rank term, and when the gradient is computed."""
    split = splits(processes)[-1]
    tensors = drawn("ignored")
    generator = torch.Generator().manual_seed(9)
    a, b = (torch.randn(shape, generator=generator).double() for shape in ((2, FEATURES), (CLASSES, 2)))
    names = ("input", "linear_weight", "linear_bias")
    for reduction, gradient in itertools.product(("mean", "none"), ("forward", "backward")):
        given: dict[str, Any] = {"logit_scale": 0.7, "logit_softcap": 1.5, "z_loss": 0.1, "label_smoothing": 0.2}
        given |= {"reduction": reduction, "gradient": gradient}
        whole = [tensors[name].clone().requires_grad_() for name in names] + [a.clone(), b.clone()]
        mine = [tensors["input"].clone(), *(part(tensors[name], split, rank, 0) for name in names[1:])]
        mine += [a.clone(), part(b, split, rank, 0)]
        losses: list[Tensor] = []
        for leaves, function in ((mine, class_parallel_linear_cross_entropy), (whole, linear_cross_entropy)):
            x, weight, bias, low_a, low_b = (leaf.requires_grad_() for leaf in leaves)
            low_rank = (low_a, low_b, 0.5)
            loss: Any = function(x, weight, tensors["target"], linear_bias=bias, low_rank=low_rank, **given)
            losses.append((loss * torch.linspace(1, 2, loss.numel()).double().reshape(loss.shape)).sum())
        assert_close(*losses)
        for found, truth, place in zip(
            derivatives(losses[0], mine, 2), derivatives(losses[1], whole, 2), [-1, 0, 0, -1, 0] * 2, strict=True
        ):
            assert_close(found, part(truth, split, rank, place) if place >= 0 else truth)
        logits, leaf = (part(tensors["logits"], split, rank, 1), tensors["logits"].clone())
        ours = class_parallel_cross_entropy(logits.requires_grad_(), tensors["target"], **given).sum()
        theirs: Any = cross_entropy(leaf.requires_grad_(), tensors["target"], **given)
        assert_close(ours, theirs.sum())
        for found, truth in zip(derivatives(ours, [logits], 2), derivatives(theirs.sum(), [leaf], 2), strict=True):
            assert_close(found, part(truth, split, rank, 1))
    narrow = part(tensors["logits"].bfloat16(), split, rank, 1)
    wide = class_parallel_cross_entropy(narrow, tensors["target"], loss_dtype=torch.float32)
    assert_close(wide, F.cross_entropy(tensors["logits"].bfloat16().float(), tensors["target"]))
    x, weight = tensors["input"].bfloat16(), part(tensors["linear_weight"], split, rank, 0).bfloat16()
    wide = class_parallel_linear_cross_entropy(x, weight, tensors["target"], loss_dtype=torch.float32)
    assert wide.dtype == torch.float32


def check_no_batches(rank: int, processes: int) -> None:
    """vmap would map over parts of different sizes."""
    mine = part(drawn("index")["logits"], splits(processes)[0], rank, 1)
    if processes == 1:
        with pytest.raises(RuntimeError, match="vmap is not supported"):
            torch.vmap(lambda x: class_parallel_cross_entropy(x, torch.tensor([0, 1])))(mine[:4].unflatten(0, (2, 2)))


def check_compiled(rank: int, processes: int) -> None:
    """What the processes agree on breaks the graph; value and gradient are right."""
    split = splits(processes)[0]
    tensors = drawn("ignored")
    names = ("input", "linear_weight")
    mine = [tensors["input"].clone(), part(tensors["linear_weight"], split, rank, 0)]
    whole = [tensors[name].clone().requires_grad_() for name in names]

    @torch.compile(backend="aot_eager")
    def step(x: Tensor, weight: Tensor) -> Tensor:
        return 2 * class_parallel_linear_cross_entropy(x.sin(), weight, tensors["target"])

    loss = step(*(leaf.requires_grad_() for leaf in mine))
    expected = 2 * linear_cross_entropy(whole[0].sin(), whole[1], tensors["target"])
    assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert_close(mine[0].grad, whole[0].grad)
    assert_close(mine[1].grad, part(whole[1].grad, split, rank, 0))  # type: ignore[arg-type]


def check_groups(rank: int, processes: int) -> None:
    """A group that is not all processes, as where data and classes are split at once."""
    if processes != 4:
        return
    groups: list[Any] = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    tensors = drawn("index")
    mine = part(tensors["logits"], [3, 4], rank // 2, 1)
    loss = class_parallel_cross_entropy(mine, tensors["target"], group=groups[rank % 2])
    assert_close(loss, F.cross_entropy(tensors["logits"], tensors["target"]))
    count = global_normalizer(torch.zeros(rank + 1, dtype=torch.int64), group=groups[rank % 2])
    assert count == (rank % 2 + 1 + rank % 2 + 3) / 2


def check_data_parallel(rank: int, processes: int) -> None:
    """Very unequal numbers of rows that count, none in one process: DDP's average is the single-process gradient."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(processes, 8, FEATURES, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (processes, 8), generator=generator)
    for process in range(processes):
        targets[process, : (8 if process == 0 and processes > 1 else 8 - 2 * process - 1)] = -100
    weight = torch.rand(CLASSES, generator=generator, dtype=torch.float64) + 0.5
    samples = torch.rand(processes, 8, generator=generator, dtype=torch.float64)
    for weighted, reduction in itertools.product((False, True), ("mean", "naive")):
        torch.manual_seed(0)
        model = nn.Linear(FEATURES, FEATURES).double()
        head = torch.randn(CLASSES, FEATURES, dtype=torch.float64)
        extra: dict[str, Any] = {"weight": weight} if weighted else {}
        scales: dict[str, Any] = {"sample_weight": samples.flatten()} if weighted else {}
        expected = linear_cross_entropy(model(inputs.flatten(0, 1)), head, targets.flatten(), **extra, **scales)
        truth = torch.autograd.grad(expected, list(model.parameters()))
        parallel = DistributedDataParallel(model)
        scales = {"sample_weight": samples[rank]} if weighted else {}
        normalizer = global_normalizer(targets[rank], **extra, **scales) if reduction == "mean" else None
        loss = linear_cross_entropy(
            parallel(inputs[rank]), head, targets[rank], normalizer=normalizer, empty="zero", **extra, **scales
        )
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        same = torch.allclose(mean / processes, expected.detach()) and all(
            torch.allclose(parameter.grad, gradient)  # type: ignore[arg-type]
            for parameter, gradient in zip(model.parameters(), truth, strict=True)
        )
        assert same == (reduction == "mean" or processes == 1)
    probabilities = torch.rand(rank + 1, CLASSES, 2)
    assert global_normalizer(probabilities, dim=1) == processes + 1
    assert global_normalizer(torch.full((3,), -100)) == 0


CHECKS = [
    check_logits,
    check_linear,
    check_higher_derivatives,
    check_forward_mode,
    check_who_requires_grad,
    check_dtensor,
    check_every_loss_of_dtensors,
    check_distillation_of_dtensors,
    check_fully_sharded_modules,
    check_against_loss_parallel,
    check_corners,
    check_precision,
    check_low_precision,
    check_communication,
    check_agreement,
    check_assumed_agreement,
    check_outside_of_a_group,
    check_strides,
    check_many_classes,
    check_nothing,
    check_options,
    check_no_batches,
    check_compiled,
    check_groups,
    check_data_parallel,
]

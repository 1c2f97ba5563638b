"""A loss is a module like any other: in containers, in state_dicts, in copies, on devices."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import torchlosses
from tests.integrations.problem import (
    CLASSES,
    WEIGHTED,
    Run,
    assert_the_import_is_all,
    class_weight,
    detached,
    network,
    sgd,
)

NAMESPACES = (torch.nn, torchlosses)


class TwoTasks(nn.Module):
    """A network that owns the losses of its two tasks."""

    def __init__(self, losses: ModuleType, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.network = network(dtype)
        self.criteria = nn.ModuleDict({"category": WEIGHTED.criterion(losses, dtype), "quantity": losses.MSELoss()})
        self.also = nn.ModuleList([losses.CrossEntropyLoss(class_weight(dtype)), losses.MSELoss(reduction="sum")])
        self.chain = nn.Sequential(nn.Identity(), losses.CrossEntropyLoss(class_weight(dtype)))

    def forward(self, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        output = self.network(features)
        loss = self.criteria["category"](output, target)
        loss = loss + 0.1 * self.criteria["quantity"](output, features[:, :CLASSES])
        valid = target != WEIGHTED.options(output.dtype)["ignore_index"]
        loss = loss + self.also[0](output[valid], target[valid]) + 0.01 * self.also[1](output, torch.zeros_like(output))
        return loss + self.chain[1](self.chain[0](output[valid]), target[valid])

    def losses(self) -> list[nn.Module]:
        return [*self.criteria.values(), *self.also, self.chain[1]]


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_buffers())


def test_training_with_the_losses_in_every_container() -> None:
    def train(losses: ModuleType) -> Run:
        model = TwoTasks(losses)
        optimizer = sgd(model)
        history = []
        for _ in range(4):
            for features, target in WEIGHTED.batches():
                optimizer.zero_grad()
                loss = model(features, target)
                loss.backward()
                optimizer.step()
                history.append(loss)
        return Run(detached(history), model, model.criteria["category"])

    assert_the_import_is_all(train)


@pytest.mark.parametrize(("source", "destination"), [NAMESPACES, NAMESPACES[::-1]], ids=["torch-ours", "ours-torch"])
def test_state_dict_of_the_one_loads_into_the_other(source: ModuleType, destination: ModuleType) -> None:
    trained, fresh = TwoTasks(source), TwoTasks(destination)
    with torch.no_grad():
        for tensor in (*trained.parameters(), *trained.buffers()):
            tensor.mul_(1.5)
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_close(dict(fresh.state_dict()), dict(trained.state_dict()), rtol=0, atol=0)
    data = WEIGHTED.data()
    assert_close(fresh(*data), trained(*data), rtol=1e-13, atol=0)


MOVES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to(dtype)": lambda module: module.to(torch.float32),
    "half": lambda module: module.half(),
    "to(device)": lambda module: module.to("meta"),
    "to(device, dtype)": lambda module: module.to("meta", torch.bfloat16),
    "to(like another)": lambda module: module.to(torch.empty(0, dtype=torch.bfloat16, device="meta")),
    "to_empty": lambda module: module.to_empty(device="meta"),
}


@pytest.mark.parametrize("move", MOVES)
def test_buffers_move_with_the_model(move: str) -> None:
    theirs, ours = (MOVES[move](TwoTasks(losses)) for losses in NAMESPACES)
    places = {name: (weight.dtype, weight.device) for name, weight in weights(ours).items()}
    assert places == {name: (weight.dtype, weight.device) for name, weight in weights(theirs).items()}
    assert len(places) == 3
    assert all(place != (torch.float64, torch.device("cpu")) for place in places.values())


def test_class_weight_is_no_parameter() -> None:
    for losses in NAMESPACES:
        model = TwoTasks(losses)
        assert not any("criteria" in name or "also" in name for name, _ in model.named_parameters())
        assert [*weights(model)] == ["criteria.category.weight", "also.0.weight", "chain.1.weight"]


def test_deepcopy_is_independent() -> None:
    for losses in NAMESPACES:
        model = TwoTasks(losses)
        data = WEIGHTED.data()
        before = model(*data)
        duplicate = copy.deepcopy(model)
        for weight in duplicate.buffers():
            weight.copy_(torch.tensor([9.0, 1.0, 1.0]))
        assert_close(model(*data), before, rtol=0, atol=0)
        assert (duplicate(*data) - before).abs() > 1e-3


def test_traversal_finds_the_losses() -> None:
    model = TwoTasks(torchlosses)
    seen: list[nn.Module] = []
    model.apply(seen.append)
    assert {id(loss) for loss in model.losses()} <= {id(module) for module in seen}
    assert not any(loss.training for loss in model.eval().losses())


def test_code_that_asks_for_the_builtin_class_finds_ours() -> None:
    assert isinstance(torchlosses.CrossEntropyLoss(), nn.CrossEntropyLoss)
    assert isinstance(torchlosses.MSELoss(), nn.MSELoss)


def test_forward_hooks_run() -> None:
    criterion = torchlosses.CrossEntropyLoss()
    seen = []
    criterion.register_forward_hook(lambda module, arguments, output: seen.append(output))
    criterion.register_full_backward_hook(lambda module, grad_input, grad_output: seen.append(grad_input[0]))
    logits = torch.randn(2, CLASSES, dtype=torch.float64, requires_grad=True)
    loss = criterion(logits, torch.tensor([0, 2]))
    loss.backward()
    assert_close(seen, [loss, logits.grad], rtol=0, atol=0)

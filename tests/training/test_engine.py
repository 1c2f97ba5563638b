"""The training loop against loops written out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from training import parity
from training.checkpoints import DamagedCheckpointError, Progress, load_checkpoint, save_checkpoint
from training.data import Images
from training.distributed import Processes
from training.engine import Settings, Trainer
from training.experiments import (
    RECOVERY_CLASS,
    gradient_experiment,
    measured_gradients,
    recovery_curves,
    recovery_steps,
    recovery_stride,
    spread_sample,
    theoretical_gradient,
)
from training.models import Linear, build_network
from training.objectives import OBJECTIVES, LossLibrary, Objective, loss_library
from training.results import EpochRecord, Evaluation, RecoveryCurve
from training.tasks import TaskData, digit_data, digit_task

CPU = torch.device("cpu")
TASK = digit_task(CPU)
SETTINGS = Settings(batch_size=64, learning_rate=1e-3, device=CPU)


def nothing(steps: int, loss: float) -> None:
    """Take a report and show nothing."""


def build(name: str, implementation: str = "torchlosses") -> Objective:
    return OBJECTIVES[name](TASK, loss_library(implementation))


@pytest.fixture(scope="module")
def digits(mnist: Images) -> TaskData:
    return digit_data(
        Images(mnist.train[:1000], mnist.train_labels[:1000], mnist.test[:500], mnist.test_labels[:500]), CPU
    )


def weights(network: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def weights_of(trainer: Trainer, index: int = 0) -> torch.Tensor:
    return torch.cat([parameter[index].flatten() for parameter in trainer.parameters.values()]).detach()


def recovery_curve(name: str, data: TaskData, steps: int) -> RecoveryCurve:
    (curve,) = recovery_curves(Trainer(SETTINGS, "mlp", build(name), [0]), data, steps, nothing)
    return curve


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_an_epoch_is_a_bare_loop_with_the_builtin_losses(digits: TaskData, model: str) -> None:
    trainer = Trainer(SETTINGS, model, build("cross-entropy"), [5])
    targets = trainer.objective.encode(digits.train_values)
    reported: list[int] = []
    (mean_loss,) = trainer.train_epoch(digits.train_images, targets, 1, lambda steps, loss: reported.append(steps))

    network = build_network(model, 10, 5, CPU)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    summed = 0.0
    for indices in Trainer(SETTINGS, model, build("mse-raw"), [5]).orders(1, 1000)[0].split(64):
        loss = nn.CrossEntropyLoss()(network(digits.train_images[indices]), digits.train_values[indices].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        summed += loss.item() * len(indices)
    assert mean_loss == pytest.approx(summed / 1000, rel=1e-5)
    torch.testing.assert_close(weights_of(trainer), weights(network), rtol=0, atol=1e-4)
    # 1000 images are 15 batches of 64 and one of 40: none is left out.
    assert sum(reported) == 16


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "gaussian-histogram"])
def test_a_stack_of_seeds_ends_where_each_seed_ends_alone(digits: TaskData, name: str) -> None:
    """In float64, where the order in which a product is summed does not show."""
    few = digits.train_images[:200].double()
    objective = build(name)
    targets = objective.encode(digits.train_values[:200])
    targets = targets.double() if targets.is_floating_point() else targets
    stack, *alone = (
        Trainer(SETTINGS, "mlp", objective, seeds, dtype=torch.float64) for seeds in ([3, 4, 5], [3], [4], [5])
    )
    for epoch in (1, 2, 3):
        losses = stack.train_epoch(few, targets, epoch)
        assert losses == pytest.approx([trainer.train_epoch(few, targets, epoch)[0] for trainer in alone], rel=1e-9)
    for index, trainer in enumerate(alone):
        torch.testing.assert_close(weights_of(stack, index), weights_of(trainer), rtol=0, atol=1e-8)
        assert not torch.equal(weights_of(stack, index), weights_of(stack, index - 1))
    together = stack.predict(digits.test_images.double())
    separate = torch.cat([trainer.predict(digits.test_images.double()) for trainer in alone])
    torch.testing.assert_close(together, separate, rtol=1e-5, atol=1e-6)


def test_one_that_diverges_leaves_the_rest_of_its_stack_alone(digits: TaskData) -> None:
    stack, alone = (Trainer(SETTINGS, "mlp", build("cross-entropy"), seeds) for seeds in ([1, 2], [2]))
    with torch.no_grad():
        stack.parameters["head.weight"][0].fill_(torch.nan)
    targets = stack.objective.encode(digits.train_values)
    losses = stack.train_epoch(digits.train_images, targets, 1)
    assert losses[0] != losses[0]
    assert losses[1] == pytest.approx(alone.train_epoch(digits.train_images, targets, 1)[0], rel=1e-5)


def test_a_linear_layer_starts_as_those_of_torch() -> None:
    torch.manual_seed(3)
    ours = Linear(400, 300)
    torch.manual_seed(4)
    theirs = nn.Linear(400, 300)
    assert ours.weight.shape == theirs.weight.T.shape
    assert ours.weight.abs().max().item() == pytest.approx(theirs.weight.abs().max().item(), rel=1e-3)
    assert ours.weight.std().item() == pytest.approx(theirs.weight.std().item(), rel=2e-2)
    assert ours.bias.abs().max().item() <= 1 / 20
    features = torch.rand(5, 400)
    torch.testing.assert_close(ours(features), nn.functional.linear(features, ours.weight.T, ours.bias))


def test_the_order_is_a_permutation_fixed_by_seed_and_epoch() -> None:
    trainer = Trainer(SETTINGS, "mlp", build("cross-entropy"), [5, 6])
    same = Trainer(SETTINGS, "mlp", build("regression-mse"), [6])
    first, second = trainer.orders(2, 100)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(100))
    assert not torch.equal(first, second)
    assert torch.equal(second, same.orders(2, 100)[0])
    assert not torch.equal(first, trainer.orders(1, 100)[0])


def test_one_seed_gives_every_objective_the_same_trunk() -> None:
    torch.manual_seed(99)
    first = build_network("mlp", 10, 3, CPU)
    before = torch.random.get_rng_state()
    second = build_network("mlp", 1, 3, CPU)
    assert torch.equal(weights(first.trunk), weights(second.trunk))
    assert not torch.equal(weights(first.trunk), weights(build_network("mlp", 1, 4, CPU).trunk))
    # Building a network leaves the global random state alone.
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "gaussian-histogram"])
def test_training_learns(digits: TaskData, name: str) -> None:
    trainer = Trainer(SETTINGS, "mlp", build(name), [0])
    targets = trainer.objective.encode(digits.train_values)
    losses = [trainer.train_epoch(digits.train_images, targets, epoch)[0] for epoch in (1, 2, 3, 4, 5)]
    assert losses[-1] < 0.6 * losses[0] or name == "label-smoothing"
    answers = next(iter(trainer.objective.decode(trainer.predict(digits.test_images)[0]).values()))
    assert (answers == digits.test_values).float().mean() > (0.25 if trainer.objective.head == "regression" else 0.75)


def test_prediction_covers_every_image_of_every_network(digits: TaskData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.engine.EVALUATION_BATCH", 64)
    outputs = Trainer(SETTINGS, "mlp", build("cross-entropy"), [7, 8]).predict(digits.test_images)
    expected = torch.stack([build_network("mlp", 10, seed, CPU)(digits.test_images) for seed in (7, 8)])
    torch.testing.assert_close(outputs, expected.detach())
    assert not outputs.requires_grad


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_mixed_precision_computes_in_bfloat16_and_learns(digits: TaskData) -> None:
    settings = Settings(batch_size=64, learning_rate=1e-3, device=CPU, amp=True)
    trainer = Trainer(settings, "mlp", build("cross-entropy"), [0])
    targets = trainer.objective.encode(digits.train_values)
    losses = [trainer.train_epoch(digits.train_images, targets, epoch)[0] for epoch in (1, 2, 3)]
    outputs = trainer.predict(digits.test_images)
    assert outputs.dtype == torch.float32
    # What was rounded to bfloat16 stays as it is when it is rounded again.
    assert torch.equal(outputs, outputs.bfloat16().float())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_shares_of_a_batch_average_to_the_whole(count: int, size: int) -> None:
    losses = torch.rand(100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = 30
    covered: list[int] = []
    average = 0.0
    for rank in range(count):
        first, last, weight = Processes(rank, count).share(start, start + size)
        assert last > first
        if weight:
            covered.extend(range(first, last))
        average += weight * losses[first:last].mean().item() / count
    assert covered == list(range(start, start + size))
    assert average == pytest.approx(losses[start : start + size].mean().item())


def test_recovery_starts_wrong_and_measures_what_a_bare_loop_measures(digits: TaskData) -> None:
    curve = recovery_curve("cross-entropy", digits, 40)
    assert curve.steps == [0, 5, 10, 20, 35, 40]
    share = (digits.test_values == RECOVERY_CLASS).double().mean().item()
    assert curve.accuracy[0] == pytest.approx(share, abs=1e-6)
    assert curve.train_loss[0] > 15

    network = build_network("mlp", 10, 0, CPU)
    with torch.no_grad():
        network.head.bias[RECOVERY_CLASS] += 20
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    # 1000 images at batches of 64: the 17th batch begins the second epoch.
    order = Trainer(SETTINGS, "mlp", build("mse-raw"), [0])
    batches = [batch for epoch in (1, 2, 3) for batch in order.orders(epoch, 1000)[0].split(64)]
    for indices in batches[:40]:
        loss = nn.functional.cross_entropy(network(digits.train_images[indices]), digits.train_values[indices].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = (network(digits.test_images).argmax(1) == digits.test_values).double().mean().item()
    assert curve.accuracy[-1] == pytest.approx(accuracy, abs=0.01)


def test_recovery_is_watched_on_test_images_from_the_first_to_the_last(
    digits: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [recovery_stride(count) for count in (1, 40, 2000, 3999, 4000, 10_000)] == [1, 1, 1, 1, 2, 5]
    monkeypatch.setattr("training.experiments._RECOVERY_IMAGES", len(digits.test_images) // 7)
    curve = recovery_curve("cross-entropy", digits, 1)
    share = (digits.test_values[::7] == RECOVERY_CLASS).double().mean().item()
    assert share != (digits.test_values == RECOVERY_CLASS).double().mean().item()
    assert curve.accuracy[0] == pytest.approx(share, abs=1e-6)


def test_only_losses_whose_gradient_survives_recover(digits: TaskData) -> None:
    recovered = {name: recovery_curve(name, digits, 150) for name in ("cross-entropy", "mse-softmax")}
    assert recovered["cross-entropy"].accuracy[-1] > 0.6
    assert recovered["mse-softmax"].accuracy[-1] == recovered["mse-softmax"].accuracy[0]
    assert recovered["mse-softmax"].recovered_at is None


@pytest.mark.parametrize("steps", [1, 5, 300, 301, 750])
def test_recovery_is_measured_from_the_first_step_to_the_last(steps: int) -> None:
    measured = recovery_steps(steps)
    assert measured[0] == 0
    assert measured[-1] == steps
    assert measured == sorted(set(measured))


@pytest.mark.parametrize("name", ["cross-entropy", "mse-softmax"])
@pytest.mark.parametrize("implementation", ["torchlosses", "torch"])
@pytest.mark.parametrize("one_rival", [False, True])
def test_the_theory_of_the_gradient_is_what_the_losses_send(name: str, implementation: str, one_rival: bool) -> None:
    probability = torch.tensor([1e-6, 1e-3, 0.1, 1 / 3, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
    values = torch.arange(7.0)
    # Logits that give the right class this probability, and the rest to all others or to class 9.
    outputs = ((1 - probability) / 9).log().unsqueeze(1).repeat(1, 10)
    if one_rival:
        outputs.fill_(-1e4)[:, 9] = (1 - probability).log()
    outputs[torch.arange(7), values.long()] = probability.log()
    measured_probability, gradient = measured_gradients(build(name, implementation), outputs, values)
    torch.testing.assert_close(measured_probability, probability)
    expected = torch.from_numpy(theoretical_gradient(name, probability.numpy(), 10, one_rival=one_rival))
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-14)


@pytest.mark.parametrize("name", ["cross-entropy", "mse-softmax"])
def test_every_image_lies_between_the_extremes_of_the_theory(name: str) -> None:
    outputs = 4 * torch.randn(500, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probability, gradient = (
        x.detach().numpy() for x in measured_gradients(build(name), outputs, torch.arange(500.0) % 10)
    )
    assert (gradient >= theoretical_gradient(name, probability, 10) - 1e-12).all()
    assert (gradient <= theoretical_gradient(name, probability, 10, one_rival=True) + 1e-12).all()


def test_measured_gradients_of_a_batch_are_those_of_each_image_alone() -> None:
    objective = build("mse-softmax")
    outputs = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    values = torch.arange(6.0)
    probability, gradient = measured_gradients(objective, outputs, values)
    for index in range(6):
        alone = measured_gradients(objective, outputs[index : index + 1], values[index : index + 1])
        torch.testing.assert_close(probability[index : index + 1], alone[0])
        torch.testing.assert_close(gradient[index : index + 1], alone[1])


def test_the_gradient_experiment_shows_images_of_every_probability() -> None:
    objectives = [build("cross-entropy"), build("mse-softmax")]
    generator = torch.Generator().manual_seed(0)
    outputs = {objective.name: 3 * torch.randn(2000, 10, generator=generator) for objective in objectives}
    experiment = gradient_experiment(objectives, outputs, torch.zeros(2000), seed=0)
    for curve in experiment.curves:
        assert len(curve.measured_probability) == len(curve.measured_gradient) > 50
        assert min(curve.measured_probability) < 1e-3
        assert max(curve.measured_probability) > 0.9
        assert curve.measured_probability == sorted(curve.measured_probability)
        assert len(curve.theory_probability) == len(curve.theory_gradient) == len(curve.theory_gradient_one_rival)
    assert experiment == gradient_experiment(objectives, outputs, torch.zeros(2000), seed=0)


def test_a_sample_takes_at_most_thirty_of_a_level() -> None:
    crowd = torch.full((1000,), 0.9, dtype=torch.float64)
    probability = torch.cat([crowd, torch.tensor([1e-9, 0.2, 1.0], dtype=torch.float64)])
    shown = spread_sample(probability, seed=0)
    assert len(shown) == 33
    assert {1000, 1001, 1002} <= set(shown.tolist())


def progress_of(count: int) -> Progress:
    evaluation = Evaluation(decoded={}, probabilities=None)
    record = EpochRecord(epoch=1, train_loss=0.5, seconds=1.0, evaluation=evaluation)
    return Progress([2.25] * count, [[record]] * count)


def test_a_checkpoint_brings_everything_back(digits: TaskData, tmp_path: Path) -> None:
    path = tmp_path / "new" / "stack.pt"
    before, after = (Trainer(SETTINGS, "mlp", build("cross-entropy"), [1, 2]) for _ in range(2))
    targets = before.objective.encode(digits.train_values)
    assert load_checkpoint(path, after) is None
    before.train_epoch(digits.train_images, targets, 1)
    save_checkpoint(path, before, progress_of(2))
    assert load_checkpoint(path, after) == progress_of(2)
    for trainer in (before, after):
        trainer.train_epoch(digits.train_images, targets, 2)
    for index in range(2):
        assert torch.equal(weights_of(before, index), weights_of(after, index))


@pytest.mark.parametrize("damage", ["empty", "cut", "garbage", "other networks", "another number", "no network"])
def test_a_damaged_checkpoint_is_said_to_be_one(digits: TaskData, tmp_path: Path, damage: str) -> None:
    name = "regression-mse" if damage == "other networks" else "cross-entropy"
    trainer = Trainer(SETTINGS, "mlp", build(name), [1, 2, 3] if damage == "another number" else [1, 2])
    targets = trainer.objective.encode(digits.train_values[:10])
    count = len(trainer.seeds)
    images = digits.train_images[:10].expand(count, -1, -1, -1, -1)
    trainer.step(images, targets.expand(count, *targets.shape))
    path = tmp_path / "stack.pt"
    save_checkpoint(path, trainer, progress_of(count))
    if damage == "no network":
        torch.save({"parameters": {}}, path)
    elif damage in ("empty", "cut", "garbage"):
        content = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "garbage": b"x" * 1000}[damage])
    with pytest.raises(DamagedCheckpointError):
        load_checkpoint(path, Trainer(SETTINGS, "mlp", build("cross-entropy"), [1, 2]))


def run_parity(digits: TaskData, loss: str, optimizer: str, ours: LossLibrary, steps: int = 40):
    return parity.compare_losses(
        SETTINGS, "mlp", loss, optimizer, TASK, digits, ours, loss_library("torch"), 0, steps, nothing
    )


@pytest.mark.parametrize("optimizer", parity.RULES)
@pytest.mark.parametrize("loss", parity.OBJECTIVES)
def test_our_losses_train_as_the_builtin_ones(digits: TaskData, loss: str, optimizer: str) -> None:
    record = run_parity(digits, loss, optimizer, loss_library("torchlosses"))
    assert record.passed
    assert record.ours == f"torchlosses.{loss}"
    assert record.builtin == f"torch.nn.{loss}"


class _Scaled(torch.autograd.Function):
    """The right value with a gradient that is too large by a thousandth."""

    generate_vmap_rule = True

    @staticmethod
    def forward(loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def setup_context(ctx, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx, *grad_outputs: torch.Tensor) -> torch.Tensor:
        return grad_outputs[0] * 1.001


@pytest.mark.parametrize("loss", parity.OBJECTIVES)
def test_parity_notices_a_gradient_that_is_off_by_a_thousandth(digits: TaskData, loss: str) -> None:
    builtin = loss_library("torch")
    wrong = replace(
        builtin,
        name="wrong",
        mean_squared_error=lambda outputs, targets: _Scaled.apply(builtin.mean_squared_error(outputs, targets)),
        cross_entropy=lambda outputs, targets: _Scaled.apply(builtin.cross_entropy(outputs, targets)),
    )
    assert not run_parity(digits, loss, "gradient descent", wrong, steps=100).passed


def test_parity_notices_a_value_that_is_off_and_a_nan(digits: TaskData) -> None:
    builtin = loss_library("torch")
    for wrong in (lambda loss: loss + 0.01, lambda loss: loss * torch.nan):
        library = replace(builtin, name="wrong", cross_entropy=lambda *pair, f=wrong: f(builtin.cross_entropy(*pair)))
        assert not run_parity(digits, "CrossEntropyLoss", "Adam", library, steps=5).passed

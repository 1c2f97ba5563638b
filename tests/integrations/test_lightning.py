"""Lightning's Trainer: changing the import of the loss changes nothing else."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchlosses
from tests.integrations.problem import (
    BFLOAT16,
    EXTRA,
    PROBLEMS,
    WEIGHTED,
    Problem,
    Run,
    assert_the_import_is_all,
    detached,
    network,
    problem_name,
    sgd,
)

lightning = pytest.importorskip("lightning", reason=f"lightning is {EXTRA}")

pytestmark = [
    # Lightning's own use of PyTorch.
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    # The loader of a tiny problem needs no worker processes, and there is nothing to log every 50 steps.
    pytest.mark.filterwarnings(r"ignore:.*does not have many workers which may be a bottleneck"),
    pytest.mark.filterwarnings(r"ignore:The number of training batches .* is smaller than the logging interval"),
]


class Learner(lightning.LightningModule):
    def __init__(self, criterion: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network(dtype)
        self.criterion = criterion
        self.history: list[Tensor] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        features, target = batch
        loss = self.criterion(self.network(features), target)
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.history.append(loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        features, target = batch
        self.log("validation_loss", self.criterion(self.network(features), target))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.network)


def trainer(directory: Path, **options: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 4, "enable_checkpointing": False, **quiet, **options}
    return lightning.Trainer(accelerator="cpu", devices=1, default_root_dir=directory, **options)


@pytest.mark.parametrize("problem", PROBLEMS, ids=problem_name)
@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5}], ids=["plain", "accumulate-clip"]
)
def test_fit(problem: Problem, options: dict[str, Any], tmp_path: Path) -> None:
    metrics = []

    def train(losses: ModuleType) -> Run:
        learner = Learner(problem.criterion(losses), torch.float64)
        run = trainer(tmp_path, precision="64-true", **options)
        run.fit(learner, problem.batches(), problem.batches())
        metrics.append(run.callback_metrics)
        return Run(detached(learner.history), learner.network, learner.criterion)

    assert_the_import_is_all(train)
    assert {"loss", "validation_loss"} <= metrics[0].keys()
    torch.testing.assert_close(metrics[1], metrics[0], rtol=1e-6, atol=0)


def test_trainer_moves_the_class_weight(tmp_path: Path) -> None:
    """The loss is built in float32, as everybody does; '64-true' makes the model and all that it owns float64."""
    places = []
    for losses in (torch.nn, torchlosses):
        learner = Learner(WEIGHTED.criterion(losses, torch.float32), torch.float32)
        run = trainer(tmp_path, precision="64-true", max_epochs=1)
        run.fit(learner, WEIGHTED.batches(), WEIGHTED.batches())
        assert learner.criterion.weight.device == run.strategy.root_device
        assert learner.history[0].dtype == torch.float64
        places.append((learner.criterion.weight.device, learner.criterion.weight.dtype))
    assert places == [(torch.device("cpu"), torch.float64)] * 2


@pytest.mark.parametrize("problem", PROBLEMS, ids=problem_name)
def test_mixed_precision(problem: Problem, tmp_path: Path) -> None:
    def train(losses: ModuleType) -> Run:
        learner = Learner(problem.criterion(losses, torch.float32), torch.float32)
        batches = problem.batches(torch.float32)
        trainer(tmp_path, precision="bf16-mixed").fit(learner, batches, batches)
        return Run(detached(learner.history), learner.network, learner.criterion)

    theirs, ours = assert_the_import_is_all(train, **BFLOAT16)
    assert ours.losses.dtype == theirs.losses.dtype == torch.float32


def test_checkpoint_of_the_one_is_resumed_with_the_other(tmp_path: Path) -> None:
    """Two epochs with torch's loss, then two more with ours, are four epochs with torch's."""

    def fit(losses: ModuleType, epochs: int, resume: Path | None = None) -> tuple[Learner, Any]:
        learner = Learner(WEIGHTED.criterion(losses), torch.float64)
        run = trainer(tmp_path, precision="64-true", max_epochs=epochs)
        run.fit(learner, WEIGHTED.batches(), WEIGHTED.batches(), ckpt_path=resume)
        return learner, run

    checkpoint = tmp_path / "two-epochs.ckpt"
    _, run = fit(torch.nn, 2)
    run.save_checkpoint(checkpoint)
    resumed, _ = fit(torchlosses, 4, checkpoint)
    whole, _ = fit(torch.nn, 4)
    assert len(resumed.history) == len(whole.history) // 2
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=1e-11, atol=1e-13)
    loaded = Learner.load_from_checkpoint(
        checkpoint, criterion=WEIGHTED.criterion(torchlosses), dtype=torch.float64, weights_only=True
    )
    torch.testing.assert_close(loaded.criterion.weight, WEIGHTED.criterion(torch.nn).weight)

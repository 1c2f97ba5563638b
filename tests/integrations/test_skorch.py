"""skorch: changing the import of the loss changes nothing else."""

from __future__ import annotations

import pickle
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import torchlosses
from tests.integrations.problem import (
    BATCH_SIZE,
    EXTRA,
    LEARNING_RATE,
    PROBLEMS,
    WEIGHTED,
    Problem,
    Run,
    assert_the_import_is_all,
    network,
    problem_name,
)

sklearn_base = pytest.importorskip("sklearn.base", reason=f"scikit-learn is {EXTRA}")
sklearn_model_selection = pytest.importorskip("sklearn.model_selection", reason=f"scikit-learn is {EXTRA}")
skorch = pytest.importorskip("skorch", reason=f"skorch is {EXTRA}")


def learner(problem: Problem, losses: ModuleType, dtype: torch.dtype = torch.float64) -> Any:
    options = {f"criterion__{name}": value for name, value in problem.options(dtype).items()}
    return (skorch.NeuralNetRegressor if problem.is_regression else skorch.NeuralNetClassifier)(
        network,
        module__dtype=dtype,
        criterion=getattr(losses, problem.loss),
        optimizer__momentum=0.5,
        lr=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        max_epochs=4,
        train_split=None,
        verbose=0,
        **options,
    )


@pytest.mark.parametrize("problem", PROBLEMS, ids=problem_name)
def test_fit_and_predict(problem: Problem) -> None:
    features, target = (tensor.numpy() for tensor in problem.data())
    predictions = []

    def train(losses: ModuleType) -> Run:
        net = learner(problem, losses).fit(features, target)
        predictions.append(net.predict(features) if problem.is_regression else net.predict_proba(features))
        losses_of_batches = [batch["train_loss"] for epoch in net.history for batch in epoch["batches"]]
        return Run(torch.tensor(losses_of_batches, dtype=torch.float64), net.module_, net.criterion_)

    assert_the_import_is_all(train)
    np.testing.assert_allclose(predictions[1], predictions[0], rtol=1e-10)
    if not problem.is_regression:
        # skorch turns outputs into probabilities only where it recognises the loss as one on logits.
        np.testing.assert_allclose(predictions[1].sum(1), 1, rtol=1e-12)


def test_class_weight_is_placed() -> None:
    for losses in (torch.nn, torchlosses):
        net = learner(WEIGHTED, losses).set_params(device="meta").initialize()
        assert net.criterion_.weight.device == torch.device("meta")
        assert net.criterion_.weight.dtype == torch.float64


def test_options_are_parameters_of_the_search() -> None:
    problem = next(problem for problem in PROBLEMS if problem.name == "cross-entropy")
    features, target = (tensor.numpy() for tensor in problem.data())
    scores = []
    for losses in (torch.nn, torchlosses):
        grid = {"criterion__label_smoothing": [0.0, 0.3], "criterion__reduction": ["mean", "sum"]}
        search = sklearn_model_selection.GridSearchCV(
            learner(problem, losses), grid, cv=2, scoring="neg_log_loss", refit=False
        )
        scores.append(search.fit(features, target).cv_results_["mean_test_score"])
    assert len(np.unique(scores[0].round(6))) == 4
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-9)


def test_copies() -> None:
    features, target = (tensor.numpy() for tensor in WEIGHTED.data())
    net = learner(WEIGHTED, torchlosses).fit(features, target)
    restored = pickle.loads(pickle.dumps(net))
    assert isinstance(restored.criterion_, torchlosses.CrossEntropyLoss)
    torch.testing.assert_close(restored.criterion_.weight, net.criterion_.weight, rtol=0, atol=0)
    np.testing.assert_array_equal(restored.predict_proba(features), net.predict_proba(features))
    assert sklearn_base.clone(net).criterion is torchlosses.CrossEntropyLoss

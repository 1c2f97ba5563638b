"""A tenth of the sweep over the causal language models of Transformers; `make sweep-transformers` runs all of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="not installed: it comes with the extra 'transformers'")
pytest.importorskip("rich", reason="not installed: it comes with the extra 'training'")

from benchmarks import transformers_sweep  # noqa: E402
from benchmarks.transformers_sweep import Comparison, Skipped, model_types, record, sweep  # noqa: E402
from benchmarks.transformers_table import table  # noqa: E402

PAGE = (Path(__file__).parents[2] / "docs" / "language_models.md").read_text(encoding="utf-8")
# Each tenth line of the table, so that a new version of Transformers does not change which.
TENTH = re.findall(r"^\| (\w+) \| `", PAGE, re.MULTILINE)[1::10]


@functools.cache
def kinds() -> dict[str, tuple[type, type[nn.Module]]]:
    """By name. Asked for when a test runs, as it imports every model there is."""
    return {kind.__name__: (configuration, kind) for configuration, kind in model_types()}


def test_a_tenth_is_a_tenth() -> None:
    assert len(TENTH) >= transformers_sweep.FEWEST // 10


@pytest.mark.parametrize("name", TENTH)
def test_agrees(name: str) -> None:
    (result,) = sweep([kinds()[name]])
    assert isinstance(result, Comparison), result
    assert result.agrees(), result
    assert result.explanation.fused, result


@pytest.mark.parametrize("wrong", ["loss", "gradient", "logits"])
def test_a_difference_would_show(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one part in ten thousand, in what comes after `apply`."""
    measured: Callable[..., tuple[list[Tensor], list[Tensor], Tensor]] = transformers_sweep.losses_and_gradients
    calls = []

    def changed(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        calls.append(wrong)
        losses, gradients, logits = measured(model, inputs)
        factor = 1.0001 if len(calls) == 3 else 1.0
        if wrong == "loss":
            return [factor * loss for loss in losses], gradients, logits
        if wrong == "gradient":
            return losses, [factor * gradient for gradient in gradients], logits
        return losses, gradients, factor * (logits + 0)

    monkeypatch.setattr(transformers_sweep, "losses_and_gradients", changed)
    (result,) = sweep([kinds()["LlamaForCausalLM"]])
    assert isinstance(result, Comparison)
    assert not result.agrees()


def test_nan_does_not_agree() -> None:
    (result,) = sweep([kinds()["LlamaForCausalLM"]])
    assert isinstance(result, Comparison)
    assert result.agrees()
    assert not Comparison(result.model, torch.nan, 0.0, 0.0, result.explanation).agrees()


def test_the_table() -> None:
    results = [*sweep([kinds()["Gemma2ForCausalLM"], kinds()["CohereForCausalLM"]]), Skipped("Other", "a reason")]
    text = table(record(results))
    assert "| Gemma2ForCausalLM | `lm_head` |  | 30 | yes |" in text
    assert "| CohereForCausalLM | `lm_head` | 0.0625 |  | yes |" in text
    assert "2 types were built and agree, 2 of them without logits" in text
    assert text.endswith("- Other: a reason")

"""Tiny Transformers models, and what the tests of `torchlosses.integrations.transformers` measure of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

BATCH, LENGTH, CLASSES, WIDTH = 3, 90, 131, 16

SIZES: dict[str, Any] = {"vocab_size": CLASSES, "hidden_size": WIDTH, "num_attention_heads": 2, "num_hidden_layers": 2}
DECODER: dict[str, Any] = {**SIZES, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
BERT: dict[str, Any] = {
    **SIZES,
    "intermediate_size": 24,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
# A classification with so many classes that its logits are larger than the rest.
LABELS = 400


def tokens(length: int = LENGTH) -> Tensor:
    return torch.randint(3, CLASSES - 3, (BATCH, length), generator=torch.Generator().manual_seed(1))


def labels() -> Tensor:
    """With some that are ignored."""
    found = tokens()
    found[0, :7] = -100
    found[1, -5:] = -100
    return found


def language() -> dict[str, Tensor]:
    return {"input_ids": tokens(), "labels": labels()}


def classes(*shape: int) -> Tensor:
    return torch.randint(LABELS, shape, generator=torch.Generator().manual_seed(2))


def pictures(size: int) -> Tensor:
    return torch.randn(BATCH, 3, size, size, generator=torch.Generator().manual_seed(3))


def build(make: Callable[[], Any]) -> Any:
    """The same weights at every call, some of them larger than they come, so that a soft cap shows."""
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def llama(**options: Any) -> Any:
    return build(lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**DECODER, **options})))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def step(model: nn.Module, inputs: dict[str, Any], call: Any = None) -> tuple[Any, dict[str, Tensor]]:
    """Output and gradients of a training step."""
    model.train()
    model.zero_grad()
    output = (model if call is None else call)(**inputs)
    output.loss.backward()
    return output, {name: gradient.clone() for name, gradient in gradients(model).items()}


def assert_same_step(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    """Loss and gradients to `tolerance`, relative to the largest gradient of the model."""
    (output, found), (own_output, own) = actual, expected
    assert type(output) is type(own_output)
    assert output.loss.dtype == own_output.loss.dtype
    assert_close(output.loss.detach(), own_output.loss.detach(), rtol=tolerance, atol=0)
    assert found.keys() == own.keys()
    largest = max(gradient.abs().max().item() for gradient in own.values())
    assert largest > 0
    for name, gradient in own.items():
        assert_close(
            found[name], gradient, rtol=0, atol=tolerance * largest, msg=lambda text, name=name: f"{name}: {text}"
        )


class _Sizes(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and tensor.dim() >= 2 and tensor.shape[-1] in (CLASSES, LABELS):
                self.largest = max(self.largest, tensor.numel() // tensor.shape[-1])
        return result


@contextmanager
def rows_of_logits() -> Iterator[_Sizes]:
    """Counts the rows of the largest tensor that has a number for each class, weights left out by their size."""
    with _Sizes() as sizes:
        yield sizes

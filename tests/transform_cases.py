"""The losses as functions of float64 tensors, beside the formula of each in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import torchlosses

ROWS, CLASSES, FEATURES = 4, 3, 2
INDEX = torch.tensor([0, 2, 1, 2])
IGNORED = torch.tensor([0, 2, -100, 1])


@dataclass(frozen=True)
class Problem:
    """A loss of some tensors, all of which have a gradient; `draw` says how one is drawn, by name."""

    name: str
    ours: Callable[..., Tensor]
    formula: Callable[..., Tensor]
    draw: dict[str, Callable[[torch.Generator], Tensor]]
    fixed: dict[str, Any] = field(default_factory=dict)
    reductions: tuple[str, ...] = ("mean", "sum", "none")

    def values(self, seed: int = 0) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(draw(generator) for draw in self.draw.values())

    def loss(self, reduction: str) -> Callable[..., Tensor]:
        return self._scalar(self.ours, reduction)

    def truth(self, reduction: str) -> Callable[..., Tensor]:
        return self._scalar(self.formula, reduction)

    def _scalar(self, function: Callable[..., Tensor], reduction: str) -> Callable[..., Tensor]:
        """One number, of 'none' with another factor for each loss."""
        names = tuple(self.draw)

        def call(*values: Tensor) -> Tensor:
            losses = function(**dict(zip(names, values, strict=True)), **self.fixed, reduction=reduction)
            if reduction != "none":
                return losses
            factors = torch.arange(1, losses.numel() + 1, dtype=losses.dtype, device=losses.device)
            return (losses * factors.reshape(losses.shape)).sum()

        return call


def normal(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(shape, generator=generator, dtype=torch.float64)


def probabilities(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)


def positive(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5


def _reduced(losses: Tensor, reduction: str, denominator: Any = None) -> Tensor:
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / (losses.numel() if denominator is None else denominator)


def _elementwise(losses: Tensor, reduction: str, weight: Any, sample_weight: Any, weight_in_mean: bool) -> Tensor:
    denominator: Any = torch.ones_like(losses)
    if weight is not None:
        losses = losses * weight
        denominator = denominator * weight if weight_in_mean else denominator
    if sample_weight is not None:
        losses, denominator = losses * sample_weight.unsqueeze(1), denominator * sample_weight.unsqueeze(1)
    return _reduced(losses, reduction, denominator.sum())


def _mse(input: Tensor, target: Tensor, *, reduction: str, weight: Any = None, sample_weight: Any = None) -> Tensor:
    # A plain square: torch's own mse_loss refuses nested forward mode.
    return _elementwise((input - target) * (input - target), reduction, weight, sample_weight, True)


def _huber(input: Tensor, target: Tensor, *, reduction: str, delta: float) -> Tensor:
    size = (input - target).abs()
    return _reduced(torch.where(size <= delta, 0.5 * size * size, delta * (size - 0.5 * delta)), reduction)


def _smooth_l1(input: Tensor, target: Tensor, *, reduction: str, beta: float) -> Tensor:
    size = (input - target).abs()
    return _reduced(torch.where(size < beta, 0.5 * size * size / beta, size - 0.5 * beta), reduction)


def _binary(input: Tensor, target: Tensor, weight: Tensor, pos_weight: Tensor, *, reduction: str) -> Tensor:
    losses = -(pos_weight * target * F.logsigmoid(input) + (1 - target) * F.logsigmoid(-input))
    return _elementwise(losses, reduction, weight, None, False)


def _cee(input: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    share = target if target.dim() == input.dim() else F.one_hot(target, input.shape[1])
    return _reduced(-(share * torch.log(input + 1e-7)).sum(1), reduction)


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    reduction: str,
    weight: Any = None,
    sample_weight: Any = None,
    normalizer: Any = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
) -> Tensor:
    logits = logit_scale * input
    if logit_softcap is not None:
        logits = logit_softcap * torch.tanh(logits / logit_softcap)
    classes = logits.shape[1]
    weight = logits.new_ones(classes) if weight is None else weight
    rows = logits.new_ones(logits.shape[0]) if sample_weight is None else sample_weight
    counted = logits.new_ones(logits.shape[0])
    share, denominator = target, rows.sum()
    if target.dim() == 1:
        counted = (target != -100).to(logits.dtype)
        index = target.masked_fill(target == -100, 0)
        share = F.one_hot(index, classes).to(logits.dtype)
        denominator = (rows * counted * weight[index]).sum()
    share = ((1 - label_smoothing) * share + label_smoothing / classes) * weight
    losses = -(share * logits.log_softmax(1)).sum(1)
    losses = losses + z_loss * logits.logsumexp(1) * logits.logsumexp(1)
    return _reduced(losses * rows * counted, reduction, denominator if normalizer is None else normalizer)


def _linear(input: Tensor, linear_weight: Tensor, target: Tensor, **others: Any) -> Tensor:
    bias, low_rank = others.pop("linear_bias", None), others.pop("low_rank", None)
    others.pop("block_rows", None)
    logits = input @ linear_weight.t()
    if bias is not None:
        logits = logits + bias
    if low_rank is not None:
        a, b, scale = low_rank
        logits = logits + scale * (input @ a.t() @ b.t())
    return _cross_entropy(logits, target, **others)


def _kl_div(
    student_input: Tensor,
    student_weight: Tensor,
    *,
    reduction: str,
    student_bias: Any = None,
    teacher_logits: Any = None,
    teacher_input: Any = None,
    teacher_weight: Any = None,
    teacher_top_k: Any = None,
    divergence: str = "forward",
    temperature: float = 1.0,
    student_logit_softcap: float | None = None,
    sample_weight: Any = None,
    block_rows: int = 1,
) -> Tensor:
    logits = student_input @ student_weight.t()
    if student_bias is not None:
        logits = logits + student_bias
    if student_logit_softcap is not None:
        logits = student_logit_softcap * torch.tanh(logits / student_logit_softcap)
    p = (logits / temperature).softmax(1)
    if teacher_top_k is not None:
        values, indices = teacher_top_k
        p, q = p.gather(1, indices), values.exp()
        p, q = (torch.cat([of, 1 - of.sum(1, keepdim=True)], 1) for of in (p, q))
    else:
        teacher_logits = teacher_logits if teacher_input is None else teacher_input @ teacher_weight.t()
        q = (teacher_logits / temperature).softmax(1)
    if divergence == "jensen-shannon":
        m = (p + q) / 2
        losses = (q * (q / m).log() + p * (p / m).log()).sum(1) / 2
    else:
        of, to = (q, p) if divergence == "forward" else (p, q)
        losses = (of * (of / to).log()).sum(1)
    weights = torch.ones_like(losses) if sample_weight is None else sample_weight
    return _reduced(losses * weights, reduction, weights.sum())


def _log_probs(logits: Tensor, target: Tensor, *, reduction: str) -> Tensor:
    """Log-probability and entropy of each row, with a factor each."""
    log_p = logits.log_softmax(1)
    counted = (target != -100).to(logits.dtype)
    own = log_p.gather(1, target.masked_fill(target == -100, 0).unsqueeze(1)).squeeze(1)
    return _reduced((0.7 * (log_p.exp() * log_p).sum(1) - 2 * own) * counted, reduction)


def _linear_log_probs(input: Tensor, linear_weight: Tensor, linear_bias: Tensor, **others: Any) -> Tensor:
    others.pop("block_rows")
    return _log_probs(input @ linear_weight.t() + linear_bias, **others)


def _one_number_a_row(function: Callable[..., torchlosses.LogProbs]) -> Callable[..., Tensor]:
    def call(*tensors: Tensor, reduction: str, **others: Any) -> Tensor:
        found = function(*tensors, **others)
        return _reduced(-2 * found.log_probability - 0.7 * found.entropy, reduction)

    return call


def _with_low_rank(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(a: Tensor, b: Tensor, **others: Any) -> Tensor:
        return function(low_rank=(a, b, 0.5), **others)

    return call


_fixed = torch.Generator().manual_seed(3)
TEACHER = {
    "teacher_input": torch.randn(ROWS, 2, generator=_fixed, dtype=torch.float64),
    "teacher_weight": torch.randn(CLASSES, 2, generator=_fixed, dtype=torch.float64),
}
TEACHER_LOGITS = torch.randn(ROWS, CLASSES, generator=_fixed, dtype=torch.float64)
OPTIONS = {"z_loss": 0.1, "logit_scale": 0.7, "logit_softcap": 1.5, "label_smoothing": 0.2}
_logits, _class_weight, _row_weight = normal(ROWS, CLASSES), positive(CLASSES), positive(ROWS)
_product = {"input": normal(ROWS, FEATURES), "linear_weight": normal(CLASSES, FEATURES)}
_student = {"student_input": normal(ROWS, FEATURES), "student_weight": normal(CLASSES, FEATURES)}
_pair = {"input": normal(ROWS, CLASSES), "target": normal(ROWS, CLASSES)}

PROBLEMS = [
    Problem("mse_loss", torchlosses.mse_loss, _mse, _pair),
    Problem(
        "mse_loss-weights",
        torchlosses.mse_loss,
        _mse,
        {**_pair, "weight": positive(ROWS, CLASSES), "sample_weight": _row_weight},
    ),
    Problem("huber_loss", torchlosses.huber_loss, _huber, _pair, {"delta": 0.7}),
    Problem("smooth_l1_loss", torchlosses.smooth_l1_loss, _smooth_l1, _pair, {"beta": 0.7}),
    Problem(
        "binary_cross_entropy_with_logits",
        torchlosses.binary_cross_entropy_with_logits,
        _binary,
        {
            "input": _logits,
            "target": probabilities(ROWS, CLASSES),
            "weight": positive(ROWS, CLASSES),
            "pos_weight": _class_weight,
        },
    ),
    Problem("cross_entropy-index", torchlosses.cross_entropy, _cross_entropy, {"input": _logits}, {"target": INDEX}),
    Problem(
        "cross_entropy-ignored-weight",
        torchlosses.cross_entropy,
        _cross_entropy,
        {"input": _logits, "weight": _class_weight},
        {"target": IGNORED},
    ),
    Problem(
        "cross_entropy-probabilities-weight",
        torchlosses.cross_entropy,
        _cross_entropy,
        {"input": _logits, "target": probabilities(ROWS, CLASSES), "weight": _class_weight},
    ),
    Problem(
        "cross_entropy-options",
        torchlosses.cross_entropy,
        _cross_entropy,
        {"input": _logits, "weight": _class_weight, "sample_weight": _row_weight},
        {"target": IGNORED, **OPTIONS},
    ),
    Problem(
        "cross_entropy-normalizer",
        torchlosses.cross_entropy,
        _cross_entropy,
        {"input": _logits, "target": probabilities(ROWS, CLASSES), "normalizer": positive()},
        reductions=("mean",),
    ),
    Problem("cee_loss-index", torchlosses.cee_loss, _cee, {"input": probabilities(ROWS, CLASSES)}, {"target": INDEX}),
    Problem(
        "cee_loss-probabilities",
        torchlosses.cee_loss,
        _cee,
        {"input": probabilities(ROWS, CLASSES), "target": probabilities(ROWS, CLASSES)},
    ),
    Problem(
        "linear_cross_entropy",
        torchlosses.linear_cross_entropy,
        _linear,
        {**_product, "linear_bias": normal(CLASSES)},
        {"target": IGNORED},
    ),
    Problem(
        "linear_cross_entropy-probabilities-weight",
        torchlosses.linear_cross_entropy,
        _linear,
        {**_product, "target": probabilities(ROWS, CLASSES), "weight": _class_weight},
        {"block_rows": 3},
    ),
    Problem(
        "linear_cross_entropy-options",
        _with_low_rank(torchlosses.linear_cross_entropy),
        _with_low_rank(_linear),
        {**_product, "a": normal(1, FEATURES), "b": normal(CLASSES, 1), "sample_weight": _row_weight},
        {"target": IGNORED, "block_rows": 3, **OPTIONS},
    ),
    Problem(
        "linear_kl_div",
        torchlosses.linear_kl_div,
        _kl_div,
        {**_student, "student_bias": normal(CLASSES)},
        {**TEACHER, "temperature": 2.0},
    ),
    Problem(
        "linear_kl_div-jensen-shannon",
        torchlosses.linear_kl_div,
        _kl_div,
        {**_student, "sample_weight": _row_weight},
        {
            "teacher_logits": TEACHER_LOGITS,
            "divergence": "jensen-shannon",
            "student_logit_softcap": 1.5,
            "block_rows": 3,
        },
    ),
    Problem(
        "linear_kl_div-reverse-top-k",
        torchlosses.linear_kl_div,
        _kl_div,
        {**_student, "student_bias": normal(CLASSES)},
        {
            "teacher_top_k": tuple(TEACHER_LOGITS.log_softmax(1).topk(1, 1)),
            "divergence": "reverse",
            "block_rows": 3,
        },
    ),
    Problem(
        "log_probs",
        _one_number_a_row(torchlosses.log_probs),
        _log_probs,
        {"logits": _logits},
        {"target": IGNORED},
        reductions=("mean",),
    ),
    Problem(
        "linear_log_probs",
        _one_number_a_row(torchlosses.linear_log_probs),
        _linear_log_probs,
        {**_product, "linear_bias": normal(CLASSES)},
        {"target": IGNORED, "block_rows": 3},
        reductions=("mean",),
    ),
]

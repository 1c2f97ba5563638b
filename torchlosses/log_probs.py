r"""Log-probability of the target and entropy of each row of logits, with their gradients.

What it computes, for a row of logits y over C classes and a class index t, in nats:

    p_c = exp(y_c) / Σ_j exp(y_j)                         (softmax)
    log p_t                                               (log-probability of the target)
    H   = -Σ_c p_c log p_c                                (entropy; 0 log 0 = 0)

How the gradients follow. With l = log Σ_j exp(y_j), log p_c = y_c - l and dl/dy_c = p_c, so that

    d log p_t / dy_c = 1[c = t] - p_c
    dH / dy_c        = -p_c (log p_c + H)                 (H = l - Σ_j p_j y_j;  d/dy_c = p_c - p_c - p_c (y_c - Σ p y))

and with g and h, the incoming gradients of the two, a row's gradient is g (1[c = t] - p_c) - h p_c (log p_c + H).

How it stays right in the corners. With m = max y, the sum Σ exp(y_j - m) is 1 + rest, the 1 that of the maximum, and
with the mean distance D = Σ_c p_c (m - y_c) from it

    log p_t = (y_t - m) - log1p(rest)     H = log1p(rest) + D     log p_c + H = (y_c - m) + D

No 1 is added and rounded, and in log p_t and H nothing cancels: where a class is all but certain, they and their
gradients are small numbers with all their digits. The gradient's entry for the target is g Σ_{j≠t} p_j for the same
reason, not g (1 - p_t). m, rest and D, three numbers a row, are what a backward kernel needs.

`linear_log_probs` does it for the logits of a linear layer, a block of rows at a time, as
`torchlosses.linear_cross_entropy` derives. What comes in for a row is not known before its backward, which therefore
makes the logits again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchlosses import _validation
from torchlosses._declare import Loss
from torchlosses._module import intercepted, overridden
from torchlosses._options import of_tensors
from torchlosses._pytorch import may_look, replaced
from torchlosses._rows import (
    autocast_enabled,
    compute_dtype,
    from_rows,
    indices_to_rows,
    scaled_and_capped,
    times_slope,
    to_rows,
)
from torchlosses.kernels.linear import default_block_rows
from torchlosses.linear_cross_entropy import (
    OPERANDS,
    LinearLoss,
    LowRank,
    each_place,
    options_of_product,
)


@of_tensors
class LogProbs(NamedTuple):
    """What `log_probs` and `linear_log_probs` give of each row; 0 (False) where a row is ignored.

    Attributes:
        log_probability: log p_y for the class index y, in nats; differentiable.
        entropy: -Σ_c p_c log p_c of the softmax p, in nats; differentiable.
        correct: Whether the largest logit is that of the class index.
    """

    log_probability: Tensor
    entropy: Tensor
    correct: Tensor


class Options(NamedTuple):
    """What may be chosen; nothing is reduced here."""

    reduction: str = "none"
    empty: float = math.nan
    dtype: torch.dtype = torch.float32
    gradients: int = 0
    ignore_index: int = -100
    logit_scale: float = 1.0
    logit_softcap: float | None = None


class LogProbabilities(Loss):
    """log p_t and H for each row, side by side where the classes were; gradient g (1[c = t] - p) - h p (log p + H)."""

    name = "log_probs"
    tensors = ("input", "target")
    options = Options

    @staticmethod
    def forward(input: Tensor, target: Tensor, options: Options) -> tuple[Tensor, Tensor]:
        """The two numbers; and m, rest, D, and whether the largest logit is the target's."""
        row = _Row(input, target, options)
        log_sum = torch.log1p(row.rest)
        values = torch.cat([row.at_target - log_sum, log_sum + row.distance], 1)
        # Which of nan or infinite logits is the largest says nothing.
        correct = (row.largest == row.target) & row.rest.isfinite()
        state = [row.maximum, row.rest, row.distance, correct]
        kept = torch.cat([field.detach().to(values.dtype) for field in state], 1)
        return values.masked_fill(row.ignored, 0), kept.masked_fill(row.ignored, 0).movedim(1, 0)

    @staticmethod
    def backward(grad_output: Tensor, input: Tensor, target: Tensor, options: Options) -> Tensor:
        """The gradient by the logits, for those of log-probability and entropy."""
        row = _Row(input, target, options)
        g, h = grad_output.masked_fill(row.ignored, 0).split(1, 1)
        p = row.exponentials / row.whole
        # h p (log p + H)
        of_entropy = h * p * (row.shifted + row.distance)
        # 1 - p_t = Σ_{j≠t} p_j
        others = (row.rest - torch.expm1(row.at_target)) / row.whole
        own = g * others - of_entropy.gather(1, row.target)
        gradient = replaced(-g * p - of_entropy, row.target, own)
        return times_slope(gradient, row.x, options)

    @classmethod
    def results(cls, input: Tensor) -> list[int]:
        """Two numbers where the classes were."""
        return [input.shape[0], 2, *input.shape[2:]]

    @staticmethod
    def state_fields(options: Options) -> int:
        """m, rest, D, and whether the largest logit is the target's."""
        return 4

    @staticmethod
    def shows_state(options: Options) -> bool:
        """For the last of them."""
        return True

    @staticmethod
    def check(input: Tensor, target: Tensor, options: Options) -> None:  # type: ignore[override]
        """Class indices are in range."""
        if target.device.type == "cpu":
            _validation.check_indices_in_range(target, input.shape[1], options.ignore_index)


class _Row:
    """What is known of each row, (rows, 1), and of each of its classes."""

    def __init__(self, input: Tensor, target: Tensor, options: Options) -> None:
        self.ignored = (target == options.ignore_index).unsqueeze(1)
        self.target = target.unsqueeze(1).masked_fill(self.ignored, 0)
        x = input.to(compute_dtype(input))
        # Where looking is free and nobody follows, most batches need no further pass.
        if not (may_look(input) and not bool(self.ignored.any())):
            x = x.masked_fill(self.ignored, 0)
        self.x = x
        y = scaled_and_capped(x, options)
        self.maximum, self.largest = y.detach().max(1, keepdim=True)
        shifted = y - self.maximum
        self.at_target = shifted.gather(1, self.target)
        self.exponentials = torch.exp(shifted)
        # The 1 of the maximum comes back as expm1, which is exactly 0 and has the derivative of exp.
        others = replaced(self.exponentials.clone(), self.largest, 0)
        self.rest = others.sum(1, keepdim=True) + torch.expm1(shifted.gather(1, self.largest))
        self.whole = 1 + self.rest
        # A class that is ruled out has no part in a mean: 0 · ∞ = 0.
        self.shifted = shifted.masked_fill(self.exponentials == 0, 0)
        self.distance = -(self.exponentials * self.shifted).sum(1, keepdim=True) / self.whole


class LinearLogProbabilities(LinearLoss):
    """log p_t and H for each row of x Wᵀ + b + r (x Aᵀ) Bᵀ."""

    name = "linear_log_probs"
    tensors = (*OPERANDS, "target")
    options = options_of_product(LogProbabilities)
    of_logits = LogProbabilities

    @classmethod
    def results(cls, input: Tensor) -> list[int]:
        """Two numbers a row of features."""
        return [input.shape[0], 2]

    @staticmethod
    def state_fields(options: Any) -> int:
        """Whether the largest logit is the target's."""
        return 1

    @staticmethod
    def shows_state(options: Any) -> bool:
        """All of it."""
        return True

    @staticmethod
    def without_trace(*tensors_and_options: Any) -> Tensor:
        """Rows that are ignored."""
        *_, target, options = tensors_and_options
        return target == options.ignore_index


def log_probs(
    logits: Tensor,
    target: Tensor,
    *,
    dim: int = -1,
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
) -> LogProbs:
    r"""Log-probability of the target, entropy and top-1 hit of each row of logits, in nats.

    .. math:: \log p_{n t_n} \quad\text{and}\quad H_n = -\sum_c p_{nc} \log p_{nc},
        \qquad p_{nc} = \frac{\exp x_{nc}}{\sum_j \exp x_{nj}}

    What the losses of preference and reinforcement learning are made of (DPO, KTO, PPO, GRPO). The gradients are
    :math:`\text{onehot}(t) - p` and :math:`-p_c (\log p_c + H)`.

    Args:
        logits: Of shape (..., C), or with the classes at `dim`.
        target: Class indices of the shape of `logits` without classes, of any integer dtype, in [0, C) or
            `ignore_index`.
        dim: The dimension of the classes. Nothing is copied.
        ignore_index: Rows with this class index have 0 (False) in each field, and their gradient is exactly 0 even
            where their logits are nan.
        logit_scale: A factor of the logits, taken before everything else: 1 / T for a temperature T.
        logit_softcap: c of x -> c tanh(x / c), taken before everything else but the scale; None leaves it out.

    Returns:
        A :class:`LogProbs` of three tensors of the shape of `target`. Log-probability and entropy are float32, of
        float64 logits float64, also under autocast; the hit is bool.

    Raises:
        ValueError: `logit_scale` or `logit_softcap` is none of its values; the batch sizes differ.
        RuntimeError: The other sizes do not fit; `target` holds no class indices; the tensors are on different devices.
        IndexError: A class index is out of bounds (on the CPU; accelerators assert it on the device), or `dim` is.
        NotImplementedError: `logits` is not floating-point.
        TypeError: An argument has the wrong type.

    Edge cases: no rows give empty tensors. A logit of -inf is a class that is ruled out: log-probability -inf if it is
    the target, no part in the entropy. A logit of +inf or nan gives nan, and no hit.
    Differentiable to all orders with respect to `logits`.

    Example:
        >>> import torch
        >>> from torchlosses import log_probs
        >>> logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
        >>> found = log_probs(logits, torch.tensor([0, -100]))
        >>> found.log_probability.detach(), found.entropy.detach(), found.correct
        (tensor([-0.2395,  0.0000]), tensor([0.6656, 0.0000]), tensor([ True, False]))

    Source: C. M. Bishop, *Pattern Recognition and Machine Learning* (2006), sections 1.6 and 4.3.4.
    """
    if intercepted(logits, target):
        return overridden(log_probs, (logits, target), locals())
    if (
        dim == -1
        and logit_scale == 1
        and logit_softcap is None
        and type(ignore_index) is int
        and ignore_index == -100
        and type(target) is Tensor
        and isinstance(logits, Tensor)
        and logits.is_cpu
        and target.is_cpu
        and ((dtype := logits.dtype) is torch.float32 or dtype is torch.float64)
        and target.dtype is torch.int64
        and not (logits.is_nested or target.is_nested)
        and logits.layout is target.layout is torch.strided
        and logits.dim() == 2
        and target.dim() == 1
        and logits.size(0) == target.size(0)
    ):
        # The commonest call: nothing is left to check or to convert, which would take longer than a small batch.
        found, state = LogProbabilities.apply(logits, target, normalizer=None, options=Options(dtype=dtype))
        log_probability, entropy = found.unbind(1)
        return LogProbs(log_probability, entropy, state[3].bool())
    ignore_index = _validation.check_ignore_index(ignore_index)
    logit_scale = _validation.check_logit_scale(logit_scale)
    logit_softcap = _validation.check_logit_softcap(logit_softcap)
    _validation.check_tensors("log_probs", logits=logits, target=target)
    _validation.check_same_device("log_probs", logits, target=target)
    if logits.dim() == 0:
        raise RuntimeError("log_probs: expected logits of shape (..., C), but got a tensor without dimensions.")
    classes = _validation.check_dimension("log_probs", logits, dim, name="logits")
    _check_target("log_probs", target, [*logits.shape[:classes], *logits.shape[classes + 1 :]])
    _validation.check_floating_input("log_probs", logits)
    second = logits.movedim(classes, 1) if logits.dim() > 1 else logits
    options = Options(
        dtype=compute_dtype(logits), ignore_index=ignore_index, logit_scale=logit_scale, logit_softcap=logit_softcap
    )
    rows = indices_to_rows(target.to(torch.int64))
    found, state = LogProbabilities.apply(to_rows(second), rows, normalizer=None, options=options)
    log_probability, entropy = found.unbind(1)
    fields = log_probability, entropy, state[-1].detach() != 0
    return LogProbs(*(from_rows(field, second) for field in fields))


def linear_log_probs(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    dim: int = -1,
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    logit_softcap: float | None = None,
    low_rank: LowRank | None = None,
    block_rows: int | None = None,
) -> LogProbs:
    r"""Log-probability of the target, entropy and top-1 hit of a linear layer's logits, in nats, without the logits.

    .. math:: \log p_{n t_n} \quad\text{and}\quad H_n = -\sum_c p_{nc} \log p_{nc},
        \qquad p_{nc} = \frac{\exp y_{nc}}{\sum_j \exp y_{nj}}, \quad y_n = W x_n + b

    Values and gradients are those of `log_probs(linear(input, linear_weight, linear_bias), target)`, but the logits y
    exist for a block of rows at a time. The forward is one matrix product; the backward makes the logits again, three
    products with the gradients by `input` and `linear_weight`.

    Args:
        input: Features of shape (..., features), or with the features at `dim`.
        linear_weight: W of shape (classes, features), or (classes, d1, ..., features) for a distribution at each of
            d1·… places.
        target: Class indices of the shape of `input` without features, (..., d1, ...), of any integer dtype, in
            [0, classes) or `ignore_index`.
        linear_bias: b of shape (classes, d1, ...).
        dim: The dimension of `input` that holds the features, where it is not the last.
        ignore_index: Rows with this class index have 0 (False) in each field, and their gradient is exactly 0 even
            where they are nan.
        logit_scale: A factor of the logits, taken before everything else: 1 / T for a temperature T.
        logit_softcap: c of y -> c tanh(y / c), taken before everything else but the scale; None leaves it out.
        low_rank: (A, B, r), of shapes (rank, features) and (classes, rank), and a number: the logits are those of the
            weight W + r B A, which is not made. For a `linear_weight` of two dimensions.
        block_rows: How many rows are worked on at a time; None chooses, as for `linear_cross_entropy`.

    Returns:
        A :class:`LogProbs` of three tensors of the shape of `target`. Log-probability and entropy are float32, of
        float64 arguments float64; the hit is bool. bfloat16 and float16 products give logits of that dtype, and what
        follows is computed in float32. The same call gives the same bits with and without gradients, so that the ratio
        of a policy with itself, `exp(log_probability - log_probability.detach())`, is exactly 1.

    Raises:
        ValueError: An option is none of its values; the batch sizes differ.
        RuntimeError: The other sizes or the dtypes do not fit; `target` holds no class indices; the tensors are on
            different devices.
        IndexError: A class index is out of bounds (on the CPU; accelerators assert it on the device), or `dim` is.
        NotImplementedError: `input` is not floating-point.
        TypeError: An argument has the wrong type.

    Edge cases: as for `log_probs`, of the logits.
    Differentiable to all orders with respect to `input`, `linear_weight`, `linear_bias`, A and B.

    Example:
        >>> import torch
        >>> from torchlosses import linear_log_probs
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> linear_weight = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0]], requires_grad=True)
        >>> found = linear_log_probs(features, linear_weight, torch.tensor([0, 2]))
        >>> found.log_probability.detach(), found.entropy.detach()
        (tensor([-0.2395, -0.5514]), tensor([0.6656, 0.9753]))
        >>> (-found.log_probability - 0.1 * found.entropy).mean().backward()
        >>> linear_weight.grad
        tensor([[-0.0897,  0.0999],
                [ 0.0449,  0.0999],
                [ 0.0449, -0.1997]])

    Source: as for `log_probs`.
    """
    name = "linear_log_probs"
    tensors = (input, linear_weight, target, linear_bias, *_validation.pair_of(low_rank))
    if intercepted(*tensors):
        arguments = {key: value for key, value in locals().items() if key not in ("name", "tensors")}
        return overridden(linear_log_probs, tensors, arguments)
    ignore_index = _validation.check_ignore_index(ignore_index)
    logit_scale = _validation.check_logit_scale(logit_scale)
    logit_softcap = _validation.check_logit_softcap(logit_softcap)
    block_rows = _validation.check_block_rows(block_rows)
    _validation.check_tensors(name, input=input, linear_weight=linear_weight, target=target)
    others = {"linear_weight": linear_weight, "linear_bias": linear_bias}
    _validation.check_same_device(name, input, **others, target=target)
    _validation.check_floating_input(name, input)
    dim = _validation.check_linear(name, input, linear_weight, linear_bias, dim)
    autocast = autocast_enabled(input.device)
    _validation.check_linear_dtypes(name, autocast, input, **others)
    shape = [*input.shape[:dim], *input.shape[dim + 1 :], *linear_weight.shape[1:-1]]
    _check_target(name, target, shape)
    a, b, low_rank_scale = _validation.check_low_rank(name, input, linear_weight, low_rank, dim) or (None, None, 1.0)
    product_dtype = input.dtype
    if autocast and product_dtype != torch.float64:
        product_dtype = torch.get_autocast_dtype(input.device.type)
    if block_rows is None:
        block_rows = default_block_rows(linear_weight.shape[0], product_dtype.itemsize, input.device.type)
    options = LinearLogProbabilities.options(
        *Options(
            dtype=compute_dtype(*tensors),
            ignore_index=ignore_index,
            logit_scale=logit_scale,
            logit_softcap=logit_softcap,
        ),
        product_dtype,
        low_rank_scale,
        block_rows,
    )
    target = target.reshape(shape).to(torch.int64)
    places = each_place(input.movedim(dim, -1), linear_weight, linear_bias, target, None, True)
    results = [
        LinearLogProbabilities.apply(*operands, a, b, t, normalizer=None, options=options) for *operands, t, _ in places
    ]
    found = torch.stack([values for values, _ in results], -1)
    correct = torch.stack([state[0].detach() for _, state in results], -1)
    fields = (*found.unbind(1), correct != 0)
    return LogProbs(*(field.reshape(shape) for field in fields))


def _check_target(function: str, target: Tensor, rows: list[int]) -> None:
    _validation.check_index_dtype(target, or_probabilities=False)
    shape = list(target.shape)
    if shape == rows or (not rows and shape == [1]):
        return
    message = f"{function}: expected a target of shape {rows} (class indices), but got {shape}."
    if rows and (not shape or shape[0] != rows[0]):
        raise ValueError(f"Expected input batch_size ({rows[0]}) to match target batch_size: {message}")
    raise RuntimeError(message)

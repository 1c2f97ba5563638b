r"""The divergence of a student's distribution from a teacher's, without the logits of either.

What it computes, for a row of the student's logits y = W x + b and the teacher's logits z, in nats:

    p = softmax(y / T)                                    (the student; T is the temperature)
    q = softmax(z / T)                                    (the teacher, a constant)
    forward          KL(q ‖ p) = Σ_c q_c log(q_c / p_c)
    reverse          KL(p ‖ q) = Σ_c p_c log(p_c / q_c)
    jensen-shannon   β KL(q ‖ m) + (1 - β) KL(p ‖ m)      with m = β q + (1 - β) p

How the gradient follows. All three are sums of φ(p_c, q_c). With h_c = ∂φ/∂p_c and u = y / T, the softmax gives

    d loss / du_j = p_j (h_j - Σ_c p_c h_c)
    forward          h = -q / p                           gradient p - q
    reverse          h = log(p / q) + 1                   gradient p (log(p / q) - KL(p ‖ q))
    jensen-shannon   h = (1 - β) log(p / m)               gradient (1 - β) p (log(p / m) - KL(p ‖ m))

and the rest is the chain rule: dy through the temperature, the soft cap and the scale; dx = G W, dW = Gᵀ x, db = Σ G.

A teacher that is known by its k largest log-probabilities makes it a problem of k + 1 classes: those k, and one of all
others together, whose student's logit is the log-sum-exp of theirs. Its gradient reaches them in proportion to their
probabilities.

How it stays right in the corners. Let a = |log(q / p)| and M the larger of p and q. As p and q sum to 1, Σ (p - q) may
be added, and each class has a part of the loss that is not negative and of second order in a where the two are close:

    q log(q / p) + p - q = M (a - 1 + exp(-a))  where q is the larger,  M (1 - exp(-a) - a exp(-a))  where p is

and with p and q exchanged the other one. So the rounding of the log-sum-exps does not show; equal distributions have
loss 0 and gradient 0. The Jensen-Shannon divergence needs no such addition: with w = β where p is the larger, else
1 - β, and g = -log(1 + w (exp(-a) - 1)) its part is M (g exp(-g) - w a exp(-a)).

How it stays small. As in the linear cross-entropy a block of rows goes all the way before the next: the logits of both,
the losses, the gradient written over the student's logits, its products. What is made of the logits in float32 is made
of a few rows of the block at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchlosses import _validation
from torchlosses._declare import taken_over
from torchlosses._module import LossModule, intercepted, overridden
from torchlosses._rows import (
    autocast_enabled,
    compute_dtype,
    result_dtype,
    soft_cap,
    soft_cap_slope,
    weighted,
    wide_sum,
)
from torchlosses._validation import Divergence, TopKRest
from torchlosses.kernels import linear
from torchlosses.kernels.linear import default_block_rows, product_dtype
from torchlosses.linear_cross_entropy import OPERANDS, LinearLoss, flat_rows, options_of_product

_FUNCTION = "linear_kl_div"
TopK: TypeAlias = tuple[Tensor, Tensor]

# Elements whose intermediates exist at a time: they stay in a CPU's cache, and are few beside a GPU's memory.
_FEW, _FEW_ON_ACCELERATOR = 1 << 18, 1 << 24


class Options(NamedTuple):
    """What may be chosen; the function's documentation says what each means."""

    reduction: str = "mean"
    empty: float = math.nan
    dtype: torch.dtype = torch.float32
    gradients: int = 0
    divergence: str = "forward"
    beta: float = 0.5
    temperature: float = 1.0
    temperature_squared: bool = False
    merges_rest: bool = True
    student_logit_scale: float = 1.0
    student_logit_softcap: float | None = None
    teacher_logit_scale: float = 1.0
    teacher_logit_softcap: float | None = None
    teacher_dtype: torch.dtype = torch.float32


class _Divergence:
    """A row's divergence from the teacher's logits, and its gradient by the student's."""

    tensors = ("input", "teacher", "teacher_weight?", "teacher_bias?", "teacher_indices?", "sample_weight?")
    options = Options
    shared = ("teacher_weight", "teacher_bias")

    @staticmethod
    def forward(y: Tensor, *others_and_options: Any) -> tuple[Tensor, None]:
        """The rows' losses; no state."""
        *teacher, sample_weight, options = others_and_options
        return weighted(_compared(y, *teacher, options).losses(), sample_weight), None

    @staticmethod
    def backward(grad_output: Tensor, y: Tensor, *others_and_options: Any) -> Tensor:
        """The gradient by the student's logits."""
        *teacher, sample_weight, options = others_and_options
        return _compared(y, *teacher, options).gradient() * _incoming(grad_output, sample_weight, options)


class _Problem(linear.Problem):
    """Student and teacher: the logits of both a block at a time, and what is made of them in few rows."""

    def __init__(self, loss: Any, tensors: Sequence[Any], options: Any) -> None:
        super().__init__(loss, tensors, options)
        teacher, *layer, indices, sample_weight = self.others
        layer = [None if tensor is None else tensor.to(options.teacher_dtype) for tensor in layer]
        self.others = [teacher, *layer, indices, sample_weight]
        self._on_cpu, self._of_teacher = teacher.device.type == "cpu", None

    def work(self, logits: Tensor, others: Sequence[Any], grad_rows: Tensor | None) -> tuple[Tensor, None]:
        """What the rows of these logits have; the gradient for `grad_rows` is written over them."""
        options: Any = self.options
        if others[-1] is not None and not self._on_cpu:
            # They could not be dropped.
            hidden = others[-1] == 0
            logits.masked_fill_(hidden.unsqueeze(1), 0)
            others = self.loss.hide(hidden, others)
        teacher, teacher_weight, teacher_bias, indices, sample_weight = others
        if teacher_weight is not None:
            if self._of_teacher is None:
                # The first block is the largest.
                self._of_teacher = logits.new_empty(logits.shape, dtype=options.teacher_dtype)
            out = self._of_teacher[: logits.shape[0]]
            teacher = linear.product(teacher.to(options.teacher_dtype), teacher_weight, teacher_bias, out)
        g = None if grad_rows is None else _incoming(grad_rows, sample_weight, options)
        few = max(1, (_FEW if self._on_cpu else _FEW_ON_ACCELERATOR) // logits.shape[1])
        found = [logits.new_empty(0, dtype=self.compute)]
        for start in range(0, logits.shape[0], few):
            some = slice(start, start + few)
            of_some = None if indices is None else indices[some]
            compared = _Comparison(logits[some], teacher[some], of_some, options, self.compute)
            found.append(compared.losses())
            if g is not None:
                logits[some] = compared.gradient() * g[some]
        return weighted(torch.cat(found), sample_weight), None


class LinearKLDivergence(LinearLoss):
    """The divergence of softmax((W x + b) / T) from the teacher's.

    `teacher` holds features where there is a `teacher_weight`, the k largest log-probabilities where there are
    `teacher_indices`, else logits.
    """

    name = _FUNCTION
    tensors = (*OPERANDS, *_Divergence.tensors[1:])
    options = options_of_product(_Divergence)
    shared = (*LinearLoss.shared, *_Divergence.shared)
    of_logits = _Divergence
    problem = _Problem

    @staticmethod
    def without_trace(*tensors_and_options: Any) -> Tensor | None:
        """Rows without a weight; None where it is known that there are none."""
        *_, sample_weight, _ = tensors_and_options
        return None if sample_weight is None else sample_weight == 0

    @staticmethod
    def is_usual(others: Sequence[Any], classes: int) -> Tensor:
        """Whether the teacher is finite; a logit of -inf is a class that is ruled out."""
        teacher, _, _, indices, _ = others
        usual = (teacher.isfinite() | (teacher == -math.inf)).all(1)
        return usual if indices is None else usual & ((indices >= 0) & (indices < classes)).all(1)

    @classmethod
    def hide(cls, hidden: Tensor, others: Sequence[Any]) -> Sequence[Any]:
        """With a teacher that is finite in the rows to hide."""
        teacher, *layer, indices, sample_weight = super().hide(hidden, others)
        of_rows = hidden.unsqueeze(1)
        # Log-probabilities are not 0 all at once.
        teacher = teacher.masked_fill(of_rows, 0 if indices is None else -99)
        return teacher, *layer, None if indices is None else indices.masked_fill(of_rows, 0), sample_weight

    @classmethod
    def flops(cls, tensors: Sequence[Any], options: Any) -> int:
        """Of the teacher's logits too."""
        (rows, _), (classes, _), *_ = tensors
        teacher, teacher_weight, *_ = tensors[cls.derived :]
        return super().flops(tensors, options) + (0 if teacher_weight is None else 2 * rows * teacher[1] * classes)

    @staticmethod
    def check(*tensors_and_options: Any) -> None:
        """What a teacher gives as its k largest is in range, once each and, where it must be, log-probabilities."""
        _, linear_weight, *_ = tensors_and_options
        *_, values, _, _, indices, sample_weight, options = tensors_and_options
        if indices is not None and indices.device.type == "cpu":
            classes = linear_weight.shape[0]
            _validation.check_top_k(_FUNCTION, values, indices, classes, sample_weight, options.merges_rest)

    @staticmethod
    def denominator(*tensors_and_options: Any) -> Tensor | None:
        """Σ_n s_n; None where rows have no weights."""
        *_, sample_weight, _ = tensors_and_options
        return None if sample_weight is None else wide_sum(sample_weight)


class _Comparison:
    """Student and teacher over some rows: their losses, and the gradient by the student's logits but for a factor.

    Without further options p and q are the softmax of (logits - their maximum) / T.
    """

    def __init__(
        self, logits: Tensor, teacher: Tensor, indices: Tensor | None, options: Options, compute: torch.dtype
    ) -> None:
        self.options, self.indices = options, indices
        self.logits = logits.to(compute)
        u = _tempered(self.logits, options.student_logit_scale, options.student_logit_softcap, options.temperature)
        z = teacher.to(compute)
        if indices is None:
            v = _tempered(z, options.teacher_logit_scale, options.teacher_logit_softcap, options.temperature)
        else:
            u, v = self._merged(u, z, indices)
        log_ratio = v - u - (v.logsumexp(1, keepdim=True) - u.logsumexp(1, keepdim=True))
        # A class that both rule out.
        log_ratio = log_ratio.masked_fill((u == -math.inf) & (v == -math.inf), 0)
        # Not the absolute value, whose derivative at 0 is not that of the branch.
        self.student_is_larger = log_ratio <= 0
        self.distance = torch.where(self.student_is_larger, -log_ratio, log_ratio)
        self.larger = torch.where(self.student_is_larger, u.log_softmax(1), v.log_softmax(1)).exp()
        self.less = torch.expm1(-self.distance)

    def _merged(self, u: Tensor, values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The k classes of the teacher, and one of all others together."""
        classes = u.shape[1]
        absent = values == -math.inf
        column = indices.masked_fill(absent, classes)
        listed = torch.zeros_like(F.pad(u.detach(), (0, 1)), dtype=torch.bool).scatter(1, column, True)[:, :classes]
        self.others = u.masked_fill(listed, -math.inf)
        self.of_others = self.others.logsumexp(1, keepdim=True)
        self.places = indices.masked_fill(absent, 0)
        of_student = torch.cat([u.gather(1, self.places).masked_fill(absent, -math.inf), self.of_others], 1)
        if self.options.merges_rest:
            total = values.logsumexp(1, keepdim=True)
            # Rounded log-probabilities may sum to a little more than 1; where it is much more, the logarithm is nan.
            rest = torch.log(-torch.expm1(total.masked_fill((total > 0) & (total < _validation.TOP_K_TOLERANCE), 0)))
        else:
            values = values / self.options.temperature
            rest = torch.full_like(self.of_others.detach(), -math.inf)
        return of_student, torch.cat([values, rest], 1)

    def losses(self) -> Tensor:
        """The divergence of each row."""
        student, options = self.student_is_larger, self.options
        # 0 · ∞ = 0
        finite = self.distance.masked_fill(self.distance.isinf(), 0)
        if options.divergence == "jensen-shannon":
            share, log_mixture = self._log_mixture()
            parts = (1 + share * self.less) * log_mixture - share * finite * torch.exp(-self.distance)
        else:
            of_smaller, of_larger = self.distance + self.less, -(finite * torch.exp(-self.distance) + self.less)
            if options.divergence == "reverse":
                of_smaller, of_larger = of_larger, of_smaller
            parts = torch.where(student, of_larger, of_smaller)
        found = (self.larger * parts).masked_fill(self.larger == 0, 0).sum(1)
        return found * options.temperature * options.temperature if options.temperature_squared else found

    def gradient(self) -> Tensor:
        """By the student's logits, but for the factor in `_incoming`."""
        student, options = self.student_is_larger, self.options
        if options.divergence == "forward":
            gradient = self.larger * torch.where(student, -self.less, self.less)
        else:
            p = self.larger * torch.exp(-self.distance).masked_fill(student, 1)
            if options.divergence == "reverse":
                slope = torch.where(student, self.distance, -self.distance)
            else:
                _, log_mixture = self._log_mixture()
                slope = (1 - options.beta) * torch.where(student, log_mixture, log_mixture - self.distance)
            slope = slope.masked_fill(p == 0, 0)
            gradient = p * (slope - (p * slope).sum(1, keepdim=True))
        if self.indices is not None:
            share = torch.exp(self.others - self.of_others.masked_fill(self.of_others == -math.inf, 0))
            gradient = (gradient[:, -1:] * share).scatter_add(1, self.places, gradient[:, :-1])
        if options.student_logit_softcap is not None:
            slope = soft_cap_slope(self.logits * options.student_logit_scale, options.student_logit_softcap)
            gradient = gradient * slope
        return gradient

    def _log_mixture(self) -> tuple[Tensor, Tensor]:
        """The share of the smaller of the two in the mixture m, and log(larger / m)."""
        beta = self.options.beta
        share = torch.full_like(self.larger.detach(), 1 - beta).masked_fill(self.student_is_larger, beta)
        return share, -torch.log1p(share * self.less)


def _tempered(logits: Tensor, scale: float, cap: float | None, temperature: float) -> Tensor:
    """(y - max y) / T of the logits y, after scale and soft cap."""
    y = logits if scale == 1 else logits * scale
    y = y if cap is None else soft_cap(y, cap)
    return (y - y.detach().amax(1, keepdim=True)) / temperature


def _compared(y: Tensor, *teacher_and_options: Any) -> _Comparison:
    """With the teacher's logits, of its features if there is a weight."""
    teacher, weight, bias, indices, options = teacher_and_options
    if weight is not None:
        operands = (None if tensor is None else tensor.to(options.teacher_dtype) for tensor in (teacher, weight, bias))
        teacher = F.linear(*operands)  # type: ignore[arg-type]
    return _Comparison(y, teacher, indices, options, y.dtype)


def _incoming(g: Tensor, sample_weight: Tensor | None, options: Options) -> Tensor:
    """g s, 0 for rows of weight 0, times what temperature and scale make of the gradient by a logit."""
    factor = options.student_logit_scale * (
        options.temperature if options.temperature_squared else 1 / options.temperature
    )
    if sample_weight is not None:
        g = g.masked_fill((sample_weight == 0) & g.isfinite().logical_not(), 0) * sample_weight
    return (g * factor).unsqueeze(1)


def linear_kl_div(
    student_input: Tensor,
    student_weight: Tensor,
    teacher_input: Tensor | None = None,
    teacher_weight: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    teacher_top_k: TopK | None = None,
    top_k_rest: TopKRest | None = None,
    divergence: Divergence = "forward",
    beta: float | None = None,
    temperature: float = 1.0,
    temperature_squared: bool = False,
    target: Tensor | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    reduction: _validation.Reduction = "mean",
    normalizer: Tensor | float | None = None,
    empty: _validation.Empty = "nan",
    loss_dtype: torch.dtype | None = None,
    student_logit_scale: float = 1.0,
    student_logit_softcap: float | None = None,
    teacher_logit_scale: float | None = None,
    teacher_logit_softcap: float | None = None,
    block_rows: int | None = None,
    gradient: _validation.Gradient = "forward",
) -> Tensor:
    r"""The divergence of a linear layer's softmax from a teacher's, in nats, without the logits: distillation.

    .. math:: p_n = \operatorname{softmax}\frac{W x_n + b}{T}, \qquad q_n = \operatorname{softmax}\frac{z_n}{T}, \qquad
        \text{loss}_n = \begin{cases}
        \operatorname{KL}(q_n \| p_n) = \sum_c q_{nc} \log \frac{q_{nc}}{p_{nc}} & \text{forward} \\
        \operatorname{KL}(p_n \| q_n) & \text{reverse} \\
        \beta \operatorname{KL}(q_n \| m_n) + (1-\beta) \operatorname{KL}(p_n \| m_n),\;
        m_n = \beta q_n + (1-\beta) p_n & \text{jensen-shannon} \end{cases}

    The logits of both, W x + b and z, exist for a block of rows at a time. For a sum or a mean the gradients are
    computed along with the loss, in three matrix products for all and one for a teacher that is given by its features.
    Second derivatives, forward mode, `torch.func` and 'none' compute the logits again, block by block too.

    Args:
        student_input: The student's features x, of shape (..., features), with any number of dimensions in front.
        student_weight: W of shape (classes, features).
        teacher_input: The teacher's features, of shape (..., its features), with the dimensions in front of
            `student_input`. The teacher is a constant in this and every form: nothing is derived by its tensors, also
            where they require grad, as the weight of a model in evaluation does.
        teacher_weight: Of shape (classes, its features); goes with `teacher_input`.
        student_bias: b of shape (classes).
        teacher_bias: Of shape (classes); goes with `teacher_input`.
        teacher_logits: z of shape (..., classes), in place of `teacher_input`; read a block at a time.
        teacher_top_k: (values, indices), both of shape (..., k), in place of `teacher_input`: log-probabilities of k
            classes, as a rule the most probable, and which they are. An entry of -inf stands for no class, whatever its
            index.
        top_k_rest: What becomes of the other classes. 'merge', the default, makes them one class, with what the k
            probabilities leave of 1 for the teacher, and the sum of their probabilities for the student: the
            divergence of the distributions over these k + 1 classes, which is at most that of all classes. The values
            must then be of a softmax over all classes, and `temperature` must be 1. 'renormalize' gives them
            probability 0, and the k classes softmax(values / T): values may be logits too; not for 'reverse', which
            would be infinite.
        divergence: 'forward', 'reverse' or 'jensen-shannon'.
        beta: β in (0, 1), the teacher's share in the mixture m of 'jensen-shannon'; 0.5 if it is not given. Its limits
            are the others: the divergence over β tends to 'forward' for β -> 0, the one over 1 - β to 'reverse' for
            β -> 1.
        temperature: T > 0, which divides the logits of both.
        temperature_squared: Whether the loss is multiplied by T². Gradients shrink with 1 / T²; with this they keep
            their size beside those of another loss, as Hinton et al. do it. False is the divergence itself, as
            `torch.nn.functional.kl_div` has it.
        target: Labels, of which only is read where they are `ignore_index`; of any integer dtype, and of the shape of
            `student_input` without features.
        ignore_index: Rows with this label count neither for the loss nor for the mean.
        sample_weight: One weight a row, or a bool mask, of a shape that broadcasts to the rows'. A row of weight 0 is
            as if it were not there.
        reduction: 'mean' divides the sum by the number of rows that count, or by the sum of their sample weights: what
            `torch.nn.functional.kl_div` calls 'batchmean' for (rows, classes); its own 'mean' divides by the classes
            too. 'sum'; 'none'.
        normalizer: What 'mean' divides by, a number or a tensor without dimensions.
        empty: What a mean over nothing gives: 'nan' or 'zero'. The gradient is 0.
        loss_dtype: The dtype of the result; float32 keeps the digits of a sum over bfloat16 features.
        student_logit_scale: A factor of the student's logits, taken before the soft cap.
        student_logit_softcap: c of y -> c tanh(y / c), taken before the temperature; None leaves it out.
        teacher_logit_scale: As for the student; goes with `teacher_input`.
        teacher_logit_softcap: As for the student; goes with `teacher_input`.
        block_rows: How many rows are worked on at a time. None chooses so that a block's logits take about 42 MiB, on
            an accelerator 2048 to 4096 rows.
        gradient: When the gradients are computed. 'forward' computes them along with a loss that is one number; they
            take their memory until the backward, which multiplies them by the incoming gradient. 'backward' holds
            nothing and computes the logits twice; float16 products always do, as the incoming gradient has the factor
            that keeps theirs large.

    Returns:
        A scalar, or with 'none' one loss a row: the shape of `student_input` without features. It has the dtype of
        `student_input`. bfloat16 and float16 products give logits of that dtype, the teacher's in the teacher's; what
        follows is computed in float32, or in float64 if an argument is, and rounded once. Under autocast the products
        take its dtype, and the loss is float32.

    Raises:
        ValueError: An option is none of its values; not one teacher, or what goes with another; the rows or the classes
            of the teacher are not the student's; `normalizer` without 'mean'; values of `teacher_top_k` that sum to
            more than 1 under 'merge' (on the CPU; on accelerators that row's loss is nan), or an index twice in a row
            (on the CPU; on accelerators it counts twice).
        RuntimeError: The student's sizes or dtypes do not fit; the tensors are on different devices.
        IndexError: An index of `teacher_top_k` is out of bounds (on the CPU; accelerators assert it on the device).
        NotImplementedError: Features or weights are not floating-point.
        TypeError: An argument has the wrong type.

    Edge cases: a mean over no row is what `empty` says, with gradient 0; an empty sum is 0. A row that is ignored or of
    weight 0 is as if it were absent, nan, inf and indices out of bounds and all. A class whose logit is -inf for both
    has no effect. Of -inf for the student only, the loss is inf under 'forward', with a finite gradient, and under
    'reverse' and 'jensen-shannon' finite; of -inf for the teacher only, it is inf under 'reverse', with a gradient of
    nan, and else finite. A logit of +inf or nan gives nan. Equal logits of both give exactly 0, with gradient 0.
    Differentiable to all orders with respect to `student_input`, `student_weight`, `student_bias`, `sample_weight` and
    `normalizer`.

    Example:
        >>> import torch
        >>> from torchlosses import linear_kl_div
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> student_weight = torch.zeros(3, 2, requires_grad=True)
        >>> teacher_logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
        >>> loss = linear_kl_div(features, student_weight, teacher_logits=teacher_logits)
        >>> round(loss.item(), 4)
        0.2782
        >>> loss.backward()
        >>> student_weight.grad
        tensor([[-0.2268,  0.0607],
                [ 0.1134,  0.0607],
                [ 0.1134, -0.1214]])

    Source: G. Hinton, O. Vinyals and J. Dean, *Distilling the Knowledge in a Neural Network* (2015), section 2; the
    generalised Jensen-Shannon divergence from R. Agarwal et al., *On-Policy Distillation of Language Models* (2024),
    section 2; the soft cap from Gemma Team, *Gemma 2* (2024), section 2.
    """
    pair = teacher_top_k if isinstance(teacher_top_k, (tuple, list)) else ()
    tensors = (
        *(student_input, student_weight, teacher_input, teacher_weight, student_bias, teacher_bias, teacher_logits),
        *(*pair, target, sample_weight),
    )
    if intercepted(*tensors):
        arguments = {name: value for name, value in locals().items() if name not in ("tensors", "pair")}
        return overridden(linear_kl_div, tensors, arguments)
    _validation.check_divergence_reduction(reduction)
    _validation.check_gradient_option(gradient)
    beta = _validation.check_divergence(divergence, beta)
    temperature = _validation.check_temperature(temperature)
    ignore_index = _validation.check_ignore_index(ignore_index)
    normalizer = _validation.check_normalizer(normalizer, reduction)
    _validation.check_empty(empty)
    loss_dtype = _validation.check_loss_dtype(loss_dtype)
    student_logit_scale = _validation.check_logit_scale(student_logit_scale, "student_logit_scale")
    student_logit_softcap = _validation.check_logit_softcap(student_logit_softcap, "student_logit_softcap")
    block_rows = _validation.check_block_rows(block_rows)
    layer = {"teacher_weight": teacher_weight, "teacher_bias": teacher_bias}
    further = {"teacher_logit_scale": teacher_logit_scale, "teacher_logit_softcap": teacher_logit_softcap}
    given = {"teacher_input": teacher_input, "teacher_logits": teacher_logits, "teacher_top_k": teacher_top_k}
    kind = _validation.check_teacher(_FUNCTION, given, layer | further)
    teacher_logit_scale = _validation.check_logit_scale(
        1.0 if teacher_logit_scale is None else teacher_logit_scale, "teacher_logit_scale"
    )
    teacher_logit_softcap = _validation.check_logit_softcap(teacher_logit_softcap, "teacher_logit_softcap")
    top_k = _validation.check_top_k_options(_FUNCTION, teacher_top_k, top_k_rest, divergence, temperature)
    teacher, indices = top_k if top_k is not None else (given[kind], None)
    _check((student_input, student_weight, student_bias), kind, teacher, layer, indices)
    shape, classes = student_input.shape[:-1], student_weight.shape[0]
    sample_weight = _of_rows(target, ignore_index, sample_weight, student_input, teacher)
    student_dtype, teacher_dtype = product_dtype(student_input), product_dtype(teacher)
    if block_rows is None:
        block_rows = default_block_rows(classes, student_dtype.itemsize, student_input.device.type)
    settings = LinearKLDivergence.options(
        reduction, 0.0 if empty == "zero" else math.nan,
        result_dtype(loss_dtype, student_input.dtype, student_input.device), 7 * (gradient == "forward"),
        divergence, beta, temperature, bool(temperature_squared), top_k_rest != "renormalize",
        student_logit_scale, student_logit_softcap, teacher_logit_scale, teacher_logit_softcap,
        teacher_dtype, student_dtype, 1.0, block_rows,
    )  # fmt: skip
    loss, _ = LinearKLDivergence.apply(
        *(flat_rows(student_input, len(shape)), student_weight, student_bias, None, None),
        flat_rows(teacher.detach(), len(shape)),
        *(None if tensor is None else tensor.detach() for tensor in (teacher_weight, teacher_bias)),
        None if indices is None else flat_rows(indices.to(torch.int64), len(shape)),
        sample_weight,
        normalizer=normalizer,
        options=settings,
    )
    return loss.reshape(shape) if reduction == "none" else loss


def _check(student: tuple[Any, Any, Any], kind: str, teacher: Tensor, layer: dict[str, Any], indices: Any) -> None:
    """The tensors of both fit: the features, weight and bias of the student, and what the teacher is given by."""
    input, weight, bias = student
    _validation.check_tensors(_FUNCTION, student_input=input, student_weight=weight)
    autocast = autocast_enabled(input.device)
    others = {kind: teacher, **layer, "indices of teacher_top_k": indices}
    _validation.check_same_device(_FUNCTION, input, student_weight=weight, student_bias=bias, **others)
    _validation.check_distilled_layer(_FUNCTION, "student", *student, autocast)
    rows, classes = list(input.shape[:-1]), weight.shape[0]
    if kind != "teacher_input":
        name, last = (kind, classes) if indices is None else ("values of teacher_top_k", "k")
        _validation.check_teacher_rows(_FUNCTION, name, teacher, rows, last)
        return
    teacher_weight, teacher_bias = layer.values()
    _validation.check_distilled_layer(_FUNCTION, "teacher", teacher, teacher_weight, teacher_bias, autocast)
    _validation.check_teacher_rows(_FUNCTION, kind, teacher, rows, "features")
    if teacher_weight.shape[0] != classes:
        raise ValueError(
            f"{_FUNCTION}: expected teacher_weight to have the {classes} classes of student_weight, but it has "
            f"{teacher_weight.shape[0]}. Where one vocabulary is padded, cut the classes that the other lacks."
        )


def _of_rows(
    target: Tensor | None, ignore_index: int, sample_weight: Tensor | None, input: Tensor, teacher: Tensor
) -> Tensor | None:
    """The rows' weights: 0 where a label is to be ignored; None where all count alike."""
    shape = input.shape[:-1]
    _validation.check_same_device(_FUNCTION, input, target=target, sample_weight=sample_weight)
    compute = compute_dtype(input, teacher, sample_weight)
    if (dtensors := taken_over(target, sample_weight)) is not None:
        target, sample_weight = dtensors.alike(_FUNCTION, (target, sample_weight))
    if sample_weight is not None:
        _validation.check_sample_weight(_FUNCTION, sample_weight, shape)
        sample_weight = sample_weight.to(compute).expand(shape)
    if target is not None:
        _validation.check_labels(_FUNCTION, target, shape)
        found = torch.ones_like(target, dtype=compute) if sample_weight is None else sample_weight
        sample_weight = found.masked_fill(target == ignore_index, 0)
    return None if sample_weight is None else flat_rows(sample_weight, len(shape))


class LinearKLDivLoss(LossModule, nn.Module):
    r"""A student's linear layer and the divergence of its softmax from a teacher's, in nats: :func:`linear_kl_div`.

    .. math:: p_n = \operatorname{softmax}\frac{W x_n + b}{T}, \qquad q_n = \operatorname{softmax}\frac{z_n}{T}, \qquad
        \text{loss}_n = \operatorname{KL}(q_n \| p_n), \text{ or what } \texttt{divergence} \text{ says}

    `LinearKLDivLoss.of(linear)` makes one of a linear layer that exists, whose parameters it shares. The teacher is not
    part of the module: its tensors go to the call, as :func:`linear_kl_div` takes them.

    Args:
        in_features: The number of features of a student's row.
        num_classes: The number of classes.
        bias: Whether the linear layer has a bias.
        device: Where the linear layer's parameters are made.
        dtype: Their dtype.

    Shape:
        student_input (..., in_features); teacher_input (..., its features), teacher_logits (..., num_classes), or
        teacher_top_k two of (..., k); a scalar comes out, or with 'none' one loss a row. Dtypes as in
        :func:`linear_kl_div`.

    Example:
        >>> import torch
        >>> from torchlosses import LinearKLDivLoss
        >>> student, teacher = torch.nn.Linear(16, 1000, bias=False), torch.nn.Linear(64, 1000, bias=False)
        >>> criterion = LinearKLDivLoss.of(student, divergence="jensen-shannon", temperature=2.0)
        >>> loss = criterion(torch.zeros(2, 5, 16), torch.zeros(2, 5, 64), teacher.weight)
        >>> loss.item()
        0.0
    """

    __constants__ = ("ignore_index", "reduction", "num_classes")
    function = staticmethod(linear_kl_div)
    shown = ("divergence", "temperature", "reduction")

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        bias: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        divergence: Divergence = "forward",
        beta: float | None = None,
        temperature: float = 1.0,
        temperature_squared: bool = False,
        ignore_index: int = -100,
        reduction: _validation.Reduction = "mean",
        empty: _validation.Empty = "nan",
        loss_dtype: torch.dtype | None = None,
        student_logit_scale: float = 1.0,
        student_logit_softcap: float | None = None,
        teacher_logit_scale: float | None = None,
        teacher_logit_softcap: float | None = None,
        top_k_rest: TopKRest | None = None,
        block_rows: int | None = None,
        gradient: _validation.Gradient = "forward",
    ) -> None:
        kept = {name: value for name, value in locals().items() if name in type(self).kept}
        super().__init__()
        _validation.check_divergence_reduction(reduction)
        _validation.check_divergence(divergence, beta)
        self.beta = kept.pop("beta")
        self.keep(**kept)
        self.num_classes = num_classes
        self.linear = nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)

    def forward(  # type: ignore[override]
        self,
        student_input: Tensor,
        teacher_input: Tensor | None = None,
        teacher_weight: Tensor | None = None,
        *,
        teacher_bias: Tensor | None = None,
        teacher_logits: Tensor | None = None,
        teacher_top_k: TopK | None = None,
        target: Tensor | None = None,
        sample_weight: Tensor | None = None,
        normalizer: Tensor | float | None = None,
    ) -> Tensor:
        """The divergence of the layer's softmax from the teacher's; see :func:`torchlosses.linear_kl_div`."""
        return linear_kl_div(
            student_input, self.linear.weight, teacher_input, teacher_weight, student_bias=self.linear.bias,
            teacher_bias=teacher_bias, teacher_logits=teacher_logits, teacher_top_k=teacher_top_k, target=target,
            sample_weight=sample_weight, normalizer=normalizer, **self.options(),
        )  # fmt: skip

    if TYPE_CHECKING:
        __call__: Callable[..., Tensor]  # type: ignore[assignment]

    @classmethod
    def of(cls, linear: nn.Linear, **options: Any) -> LinearKLDivLoss:
        """The loss of an existing linear layer, whose weight and bias it shares; `options` as in the constructor."""
        _validation.check_linear_layer(f"{cls.__name__}.of", linear)
        module = cls(1, linear.out_features, device="meta", **options)
        module.linear = linear
        return module

    def extra_repr(self) -> str:
        """The layer's sizes, and the options that are not what they are by default."""
        linear = self.linear
        sizes = f"in_features={linear.in_features}, num_classes={self.num_classes}, bias={linear.bias is not None}"
        return f"{sizes}, {super().extra_repr()}"

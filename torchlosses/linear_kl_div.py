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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchlosses import _validation
from torchlosses._declare import Loss, autocast_enabled, result_dtype, taken_over
from torchlosses._module import LossModule, intercepted, overridden
from torchlosses._row_blocks import over_given
from torchlosses._rows import compute_dtype, soft_cap, soft_cap_slope, wide_sum
from torchlosses.kernels.linear import FEW_BLOCKS, WIDENED_CLASSES, default_block_rows, product
from torchlosses.linear_cross_entropy import flat_rows

_FUNCTION = "linear_kl_div"
TopK: TypeAlias = tuple[Tensor, Tensor]
Divergence = Literal["forward", "reverse", "jensen-shannon"]
TopKRest = Literal["merge", "renormalize"]

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
    student_dtype: torch.dtype = torch.float32
    teacher_dtype: torch.dtype = torch.float32
    block_rows: torch.SymInt = 1  # type: ignore[assignment]


class _Operators:
    """What runs where the loss is called: products a block at a time, and what is made of their logits in few rows."""

    @staticmethod
    @torch.no_grad()
    def forward(loss: Any, tensors: Sequence[Any], options: Options) -> tuple[Tensor, ...]:
        """The losses one by one or reduced, with the gradients that are to come along."""
        *own, _ = tensors
        problem = _Problem(loss, own, options)
        losses = own[0].new_zeros(own[0].shape[0], dtype=problem.compute)
        grad_rows = common = None
        if options.gradients:
            grad_rows, common = losses.new_ones(()), losses.new_ones((), dtype=torch.float64)
            common = loss.grad_of_rows(common, tensors, options)
        gradients = problem.work(losses, grad_rows, common)
        found = losses if options.reduction == "none" else losses.sum()
        return loss.reduced(found, tensors, options), *gradients

    @staticmethod
    @torch.no_grad()
    def backward(loss: Any, grad_output: Tensor, tensors: Sequence[Any], options: Options) -> tuple[Tensor, ...]:
        """The gradients for `grad_output`, from logits that are computed again."""
        *own, _ = tensors
        problem = _Problem(loss, own, options)
        if options.reduction == "none":
            return problem.work(None, grad_output.to(problem.compute), grad_output.new_ones((), dtype=problem.compute))
        one = torch.ones((), dtype=torch.float64, device=grad_output.device)
        common = loss.grad_of_rows(one, tensors, options)
        # Multiplied at the end, as gradients that came along with the loss are: to the same bits.
        found = problem.work(None, common.new_ones(()), common)
        return tuple(gradient.mul_(grad_output) for gradient in found)


class _Problem:
    """The arguments in the dtypes of the computation, and which rows leave a trace."""

    def __init__(self, loss: Any, tensors: Sequence[Any], options: Options) -> None:
        x, linear_weight, bias, teacher, teacher_weight, teacher_bias, indices, sample_weight = tensors
        self.of_rows: tuple[Any, ...] = (x, teacher, indices, sample_weight)
        self.operands, self.options, self.compute = tensors[:3], options, compute_dtype(*tensors)
        self.on_cpu = x.device.type == "cpu"
        student, of_teacher = options.student_dtype, options.teacher_dtype
        self.linear_weight, self.bias = linear_weight.to(student), None if bias is None else bias.to(student)
        self.teacher_weight = None if teacher_weight is None else teacher_weight.to(of_teacher)
        self.teacher_bias = None if teacher_bias is None else teacher_bias.to(of_teacher)
        self.active: Tensor | None = None
        if self.on_cpu:
            loss.check(*tensors, options)
            if sample_weight is not None and not bool(sample_weight.all()):
                self.active = sample_weight.nonzero().squeeze(1)

    def work(self, losses: Tensor | None, grad_rows: Tensor | None, common: Tensor | None) -> tuple[Tensor, ...]:
        """Write the rows' losses, and give the gradients for `grad_rows` times `common`."""
        options: Any = self.options
        x = self.of_rows[0]
        count = x.shape[0] if self.active is None else self.active.shape[0]
        # Blocks of equal size: a last one of a few rows would cost the products as much as a full one.
        parts = max(1, math.ceil(count / options.block_rows))
        size, classes = max(1, math.ceil(count / parts)), self.linear_weight.shape[0]
        gradients = _Gradients(self, parts, common)
        logits = x.new_empty((size, classes), dtype=options.student_dtype)
        of_teacher = None if self.teacher_weight is None else x.new_empty((size, classes), dtype=options.teacher_dtype)
        few = max(1, (_FEW if self.on_cpu else _FEW_ON_ACCELERATOR) // classes)
        for start in range(0, count, size):
            rows: Any = slice(start, min(count, start + size))
            rows = rows if self.active is None else self.active[rows]
            x, teacher, indices, sample_weight, hidden = self._block(rows)
            y = product(x, self.linear_weight, self.bias, logits[: x.shape[0]])
            if of_teacher is not None:
                teacher = product(teacher, self.teacher_weight, self.teacher_bias, of_teacher[: x.shape[0]])
            found = [y.new_empty(0, dtype=self.compute)]
            g = None
            if grad_rows is not None:
                g = _incoming(grad_rows.expand(self.of_rows[0].shape[0])[rows], sample_weight, hidden) * gradients.own
            for first in range(0, x.shape[0], few):
                some = slice(first, first + few)
                compared = _Comparison(
                    y[some], teacher[some], None if indices is None else indices[some], options, self.compute
                )
                if losses is not None:
                    found.append(compared.losses())
                if g is not None:
                    y[some] = compared.gradient() * g[some].unsqueeze(1)
            if losses is not None:
                losses[rows] = _weighted(torch.cat(found), sample_weight, hidden)
            if g is not None:
                gradients.add(rows, x, y)
        return gradients.finished()

    def _block(self, rows: Any) -> tuple[Any, ...]:
        found: list[Any] = [None if tensor is None else tensor[rows] for tensor in self.of_rows]
        x, teacher, indices, sample_weight = found
        hidden = None
        if sample_weight is not None:
            hidden = sample_weight == 0
            if not self.on_cpu:
                # They could not be dropped.
                x, teacher, indices = _hide(hidden, x, teacher, indices)
        teacher = teacher if self.teacher_weight is None else teacher.to(self.options.teacher_dtype)
        return x.to(self.options.student_dtype), teacher, indices, sample_weight, hidden


class _Gradients:
    """The gradients by the student's tensors, summed over the blocks; an empty tensor where one is not wanted.

    What all rows have in common is a factor of them: its mantissa, `own`, is multiplied where nothing is rounded yet,
    and its power of two at the end, so that a float16 gradient of one row of very many is no zero.
    """

    def __init__(self, problem: _Problem, parts: int, common: Tensor | None) -> None:
        options, operands = problem.options, problem.operands
        self._problem, self._total = problem, [operands[0].new_empty(0) for _ in range(3)]
        self._wanted = [bool(options.gradients >> place & 1) for place in range(3)]
        dtype, compute = options.student_dtype, problem.compute
        self._widens = dtype != compute and (parts > FEW_BLOCKS or problem.on_cpu)
        for place, kind in enumerate((operands[0].dtype, compute if self._widens else dtype, compute)):
            if self._wanted[place]:
                self._total[place] = torch.zeros_like(operands[place], dtype=kind)
        if common is not None:
            self.own, self._exponent = torch.frexp(common * _factor(options))

    def add(self, rows: Any, x: Tensor, by_logits: Tensor) -> None:
        by_input, by_weight, by_bias = self._total
        if self._wanted[0]:
            by_input[rows] = (by_logits @ self._problem.linear_weight).to(by_input.dtype)
        if self._wanted[1] and not self._widens:
            by_weight.addmm_(by_logits.t(), x)
        elif self._wanted[1]:
            for start in range(0, by_weight.shape[0], WIDENED_CLASSES):
                some = slice(start, start + WIDENED_CLASSES)
                by_weight[some] += by_logits[:, some].t() @ x
        if self._wanted[2]:
            by_bias += by_logits.sum(0, dtype=by_bias.dtype)

    def finished(self) -> tuple[Tensor, ...]:
        return tuple(
            total.ldexp_(self._exponent).to(tensor.dtype) if wanted else total
            for total, tensor, wanted in zip(self._total, self._problem.operands, self._wanted, strict=True)
        )


class LinearKLDivergence(Loss):
    """The divergence of softmax((W x + b) / T) from the teacher's; gradients by x, W and b.

    `teacher` holds features where there is a `teacher_weight`, the k largest log-probabilities where there are
    `teacher_indices`, else logits.
    """

    name = _FUNCTION
    tensors = (
        "student_input",
        "student_weight",
        "student_bias?",
        "teacher",
        "teacher_weight?",
        "teacher_bias?",
        "teacher_indices?",
        "sample_weight?",
    )
    options = Options
    shared = ("student_weight", "student_bias", "teacher_weight", "teacher_bias")
    derived = 3
    kernels = _Operators
    scales = True

    @staticmethod
    def forward(*tensors_and_options: Any) -> Tensor:
        """The rows' losses, a block of rows at a time."""
        *tensors, options = tensors_and_options
        compute = compute_dtype(*tensors)

        def of_block(*block: Any) -> tuple[Tensor]:
            x, linear_weight, bias, teacher, indices, sample_weight, hidden = _visible(block, options)
            found = _Comparison(F.linear(x, linear_weight, bias), teacher, indices, options, compute).losses()
            return (_weighted(found, sample_weight, hidden),)

        return over_given(of_block, tensors, LinearKLDivergence._shared_places, options.block_rows, 1)[0]

    @staticmethod
    def backward(grad_output: Tensor, *tensors_and_options: Any) -> tuple[Tensor | None, ...]:
        """The gradients by x, W and b, a block of rows at a time."""
        *tensors, options = tensors_and_options
        compute = compute_dtype(*tensors)
        wanted = [place for place in range(3) if options.gradients >> place & 1]

        def of_block(g: Tensor, *block: Any) -> tuple[Tensor, ...]:
            x, linear_weight, bias, teacher, indices, sample_weight, hidden = _visible(block, options)
            y = F.linear(x, linear_weight, bias)
            gradient = _Comparison(y, teacher, indices, options, compute).gradient()
            gradient = gradient * (_incoming(g, sample_weight, hidden) * _factor(options)).unsqueeze(1)
            narrow = gradient.to(options.student_dtype)
            found = (lambda: narrow @ linear_weight, lambda: narrow.t() @ x, lambda: gradient.sum(0))
            return tuple(found[place]() for place in wanted)

        grad_rows = grad_output.expand(tensors[0].shape[0])
        rows = int(0 in wanted)
        shared = {1 + place for place in LinearKLDivergence._shared_places}
        found = over_given(of_block, (grad_rows, *tensors), shared, options.block_rows, rows, len(wanted) - rows)
        gradients: list[Tensor | None] = [None] * 3
        for place, gradient in zip(wanted, found, strict=True):
            gradients[place] = gradient
        return tuple(gradients)

    @classmethod
    def rows(cls, input: Tensor) -> Sequence[int]:
        """One loss a row of features."""
        return input.shape[:1]

    @staticmethod
    def flops(tensors: Sequence[Any], options: Any) -> int:
        """Of the logits of both, and of the gradients that are asked for; from the shapes of the tensors."""
        (rows, features), (classes, _), _, teacher, teacher_weight, *_ = tensors
        products = 1 + (options.gradients & 1) + (options.gradients >> 1 & 1)
        of_teacher = 0 if teacher_weight is None else rows * teacher[1] * classes
        return 2 * (products * rows * features * classes + of_teacher)

    @staticmethod
    def check(*tensors_and_options: Any) -> None:
        """What a teacher gives as its k largest is in range, once each and, where it must be, log-probabilities."""
        _, linear_weight, _, values, _, _, indices, sample_weight, options = tensors_and_options
        if indices is not None and indices.device.type == "cpu":
            classes = linear_weight.shape[0]
            _validation.check_top_k(_FUNCTION, values, indices, classes, sample_weight, options.merges_rest)

    @staticmethod
    def denominator(*tensors_and_options: Any) -> Tensor | None:
        """Σ_n s_n; None where rows have no weights."""
        *_, sample_weight, _ = tensors_and_options
        return None if sample_weight is None else wide_sum(sample_weight)


class _Comparison:
    """Student and teacher over some rows: their losses, and the gradient by the student's logits but for `_factor`.

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
        """By the logits, but for `_factor`."""
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


def _factor(options: Options) -> float:
    """What is the same for all rows: of the temperature and the scale."""
    of_temperature = options.temperature if options.temperature_squared else 1 / options.temperature
    return options.student_logit_scale * of_temperature


def _visible(block: Sequence[Any], options: Options) -> list[Any]:
    """The student's operands; the teacher's logits or k largest, and their indices; sample weights; which rows to hide.

    Rows of weight 0 that are not finite have zeros. The operands are in the dtype of their product.
    """
    x, linear_weight, bias, teacher, teacher_weight, teacher_bias, indices, sample_weight = block
    hidden = None
    if sample_weight is not None:
        # A logit of -inf is a class that is ruled out.
        usual = x.isfinite().all(1) & (teacher.isfinite() | (teacher == -math.inf)).all(1)
        if indices is not None:
            usual = usual & ((indices >= 0) & (indices < linear_weight.shape[0])).all(1)
        hidden = (sample_weight == 0) & usual.logical_not()
        x, teacher, indices = _hide(hidden, x, teacher, indices)
        sample_weight = sample_weight.masked_fill(hidden, 0)
    operands = (None if t is None else t.to(options.student_dtype) for t in (x, linear_weight, bias))
    if teacher_weight is not None:
        teacher_bias = None if teacher_bias is None else teacher_bias.to(options.teacher_dtype)
        teacher = F.linear(teacher.to(options.teacher_dtype), teacher_weight.to(options.teacher_dtype), teacher_bias)
    return [*operands, teacher, indices, sample_weight, hidden]


def _hide(hidden: Tensor, x: Tensor, teacher: Tensor, indices: Tensor | None) -> tuple[Any, ...]:
    of_rows = hidden.unsqueeze(1)
    if indices is None:
        return x.masked_fill(of_rows, 0), teacher.masked_fill(of_rows, 0), None
    # Some log-probabilities.
    return x.masked_fill(of_rows, 0), teacher.masked_fill(of_rows, -99), indices.masked_fill(of_rows, 0)


def _weighted(losses: Tensor, sample_weight: Tensor | None, hidden: Tensor | None) -> Tensor:
    """Times the sample weights; 0 where a row leaves no trace."""
    if sample_weight is None or hidden is None:
        return losses
    # The derivative by a weight of 0 is the loss, if there is one.
    without = (sample_weight == 0) & losses.isfinite().logical_not()
    return losses.masked_fill(without | hidden, 0) * sample_weight


def _incoming(g: Tensor, sample_weight: Tensor | None, hidden: Tensor | None) -> Tensor:
    """g s, and 0 for rows that leave no trace."""
    if sample_weight is None or hidden is None:
        return g
    without = (sample_weight == 0) & g.isfinite().logical_not()
    return g.masked_fill(without | hidden, 0) * sample_weight


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
            nothing and computes the logits twice.

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
        NotImplementedError: Features or weights are not floating-point, or a tensor is a DTensor.
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
    further = {
        "teacher_weight": teacher_weight,
        "teacher_bias": teacher_bias,
        "teacher_logit_scale": teacher_logit_scale,
        "teacher_logit_softcap": teacher_logit_softcap,
    }
    given = {"teacher_input": teacher_input, "teacher_logits": teacher_logits, "teacher_top_k": teacher_top_k}
    kind = _validation.check_teacher(_FUNCTION, given, further)
    teacher_logit_scale = _validation.check_logit_scale(
        1.0 if teacher_logit_scale is None else teacher_logit_scale, "teacher_logit_scale"
    )
    teacher_logit_softcap = _validation.check_logit_softcap(teacher_logit_softcap, "teacher_logit_softcap")
    top_k = _validation.check_top_k_options(_FUNCTION, teacher_top_k, top_k_rest, divergence, temperature)
    teacher, indices = top_k if top_k is not None else (given[kind], None)
    autocast = _check(student_input, student_weight, student_bias, kind, teacher, teacher_weight, teacher_bias, indices)
    shape, classes = student_input.shape[:-1], student_weight.shape[0]
    compute = compute_dtype(student_input, teacher, sample_weight)
    sample_weight = _of_rows(target, ignore_index, sample_weight, student_input, compute)
    student_dtype, teacher_dtype = student_input.dtype, teacher.dtype
    if autocast:
        product_dtype = torch.get_autocast_dtype(student_input.device.type)
        student_dtype, teacher_dtype = (
            torch.float64 if dtype is torch.float64 else product_dtype for dtype in (student_dtype, teacher_dtype)
        )
    if block_rows is None:
        block_rows = default_block_rows(classes, student_dtype.itemsize, student_input.device.type)
    settings = Options(
        reduction,
        0.0 if empty == "zero" else math.nan,
        result_dtype(loss_dtype, student_input.dtype, student_input.device),
        7 * (gradient == "forward"),
        divergence,
        beta,
        temperature,
        bool(temperature_squared),
        top_k_rest != "renormalize",
        student_logit_scale,
        student_logit_softcap,
        teacher_logit_scale,
        teacher_logit_softcap,
        student_dtype,
        teacher_dtype,
        block_rows,  # type: ignore[arg-type]
    )
    loss, _ = LinearKLDivergence.apply(
        flat_rows(student_input, len(shape)),
        student_weight,
        student_bias,
        flat_rows(teacher.detach(), len(shape)),
        *(None if tensor is None else tensor.detach() for tensor in (teacher_weight, teacher_bias)),
        None if indices is None else flat_rows(indices.to(torch.int64), len(shape)),
        sample_weight,
        normalizer=normalizer,
        options=settings,
    )
    return loss.reshape(shape) if reduction == "none" else loss


def _check(
    student_input: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    kind: str,
    teacher: Tensor,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    indices: Tensor | None,
) -> bool:
    """The tensors of both fit; whether autocast is on."""
    _validation.check_tensors(_FUNCTION, student_input=student_input, student_weight=student_weight)
    autocast = autocast_enabled(student_input.device)
    student = {"student_weight": student_weight, "student_bias": student_bias}
    others = {"teacher_weight": teacher_weight, "teacher_bias": teacher_bias, "indices of teacher_top_k": indices}
    _validation.check_same_device(_FUNCTION, student_input, **student, **{kind: teacher}, **others)
    _validation.check_distilled_layer(_FUNCTION, "student", student_input, student_weight, student_bias, autocast)
    rows, classes = list(student_input.shape[:-1]), student_weight.shape[0]
    if kind != "teacher_input":
        name, last = (kind, classes) if indices is None else ("values of teacher_top_k", "k")
        _validation.check_teacher_rows(_FUNCTION, name, teacher, rows, last)
        return autocast
    assert teacher_weight is not None
    _validation.check_distilled_layer(_FUNCTION, "teacher", teacher, teacher_weight, teacher_bias, autocast)
    _validation.check_teacher_rows(_FUNCTION, kind, teacher, rows, "features")
    if teacher_weight.shape[0] != classes:
        raise ValueError(
            f"{_FUNCTION}: expected teacher_weight to have the {classes} classes of student_weight, but it has "
            f"{teacher_weight.shape[0]}. Where one vocabulary is padded, cut the classes that the other lacks."
        )
    return autocast


def _of_rows(
    target: Tensor | None, ignore_index: int, sample_weight: Tensor | None, input: Tensor, compute: torch.dtype
) -> Tensor | None:
    """The rows' weights: 0 where a label is to be ignored; None where all count alike."""
    shape = input.shape[:-1]
    _validation.check_same_device(_FUNCTION, input, target=target, sample_weight=sample_weight)
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

    Args:
        in_features: The number of features of a student's row.
        num_classes: The number of classes.
        bias: Whether the linear layer has a bias.
        device: Where the linear layer's parameters are made.
        dtype: Their dtype.
        divergence: 'forward', 'reverse' or 'jensen-shannon'.
        beta: β in (0, 1), the teacher's share in the mixture of 'jensen-shannon'.
        temperature: T, which divides the logits of both.
        temperature_squared: Whether the loss is multiplied by T².
        ignore_index: Rows with this label are left out.
        reduction: 'mean', 'sum' or 'none'.
        empty: What a mean over nothing gives: 'nan' or 'zero'.
        loss_dtype: The dtype of the result.
        student_logit_scale: A factor of the student's logits.
        student_logit_softcap: c of y -> c tanh(y / c), of the student's logits.
        teacher_logit_scale: The same of a teacher that is given by its features.
        teacher_logit_softcap: The same of a teacher that is given by its features.
        top_k_rest: 'merge' or 'renormalize', for a teacher that is given by its k largest log-probabilities.
        block_rows: How many rows are worked on at a time.
        gradient: When the gradients are computed, 'forward' or 'backward'.

    `LinearKLDivLoss.of(linear)` makes one of a linear layer that exists, whose parameters it shares. The teacher is not
    part of the module: its tensors go to the call, as :func:`linear_kl_div` takes them.

    Shape:
        student_input (..., in_features); teacher_input (..., its features), teacher_logits (..., num_classes), or
        teacher_top_k two of (..., k); a scalar comes out, or with 'none' one loss a row. Dtypes as in
        :func:`linear_kl_div`.

    Raises:
        ValueError: An option is none of its values.
        TypeError: An option has the wrong type.
        Errors of the call are those of `linear_kl_div`.

    Edge cases: as for `linear_kl_div`.

    Example:
        >>> import torch
        >>> from torchlosses import LinearKLDivLoss
        >>> student, teacher = torch.nn.Linear(16, 1000, bias=False), torch.nn.Linear(64, 1000, bias=False)
        >>> criterion = LinearKLDivLoss.of(student, divergence="jensen-shannon", temperature=2.0)
        >>> loss = criterion(torch.zeros(2, 5, 16), torch.zeros(2, 5, 64), teacher.weight)
        >>> loss.item()
        0.0

    Source: as for `linear_kl_div`.
    """

    __constants__ = ("ignore_index", "reduction", "num_classes")
    function = staticmethod(linear_kl_div)
    kept = (
        "divergence",
        "beta",
        "temperature",
        "temperature_squared",
        "ignore_index",
        "reduction",
        "empty",
        "loss_dtype",
        "student_logit_scale",
        "student_logit_softcap",
        "teacher_logit_scale",
        "teacher_logit_softcap",
        "top_k_rest",
        "block_rows",
        "gradient",
    )
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

    def forward(
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
            student_input,
            self.linear.weight,
            teacher_input,
            teacher_weight,
            student_bias=self.linear.bias,
            teacher_bias=teacher_bias,
            teacher_logits=teacher_logits,
            teacher_top_k=teacher_top_k,
            target=target,
            sample_weight=sample_weight,
            normalizer=normalizer,
            **self.options(),
        )

    if TYPE_CHECKING:
        __call__: Callable[..., Tensor]  # type: ignore[assignment]

    @classmethod
    def of(cls, linear: nn.Linear, **options: Any) -> LinearKLDivLoss:
        """The loss of an existing linear layer, whose weight and bias it shares; `options` as in the constructor."""
        module = cls(1, linear.out_features, device="meta", **options)
        module.linear = linear
        return module

    def extra_repr(self) -> str:
        """The layer's sizes, and the options that are not what they are by default."""
        linear = self.linear
        sizes = f"in_features={linear.in_features}, num_classes={self.num_classes}, bias={linear.bias is not None}"
        return f"{sizes}, {super().extra_repr()}"

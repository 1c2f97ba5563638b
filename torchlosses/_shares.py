"""The share a of each class in a row's loss Σ_c a_c (-log p_c), and what is a sum over the classes with it.

With class weights w and label smoothing ε, a_c = w_c ((1-ε) t_c + ε/C), where class probabilities t are the target;
class indices y stand for t_c = [c = y]. `torchlosses.cross_entropy` derives the loss and its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchlosses._pytorch import may_look, replaced
from torchlosses._rows import RowWeights, along_classes, compute_dtype, dot, finite_where, scaled_and_capped


class Shares(RowWeights):
    """The target's share a of each class, and what is a sum over the classes with it."""

    def __init__(
        self, input: Tensor, target: Tensor, weight: Tensor | None, sample_weight: Tensor | None, options: Any
    ) -> None:
        self.indices = target.dim() < input.dim()
        self.compute = compute = compute_dtype(input, None if self.indices else target, weight)
        classes, smoothing = input.shape[1], options.label_smoothing
        self.sample_weight = None if sample_weight is None else sample_weight.to(compute).unsqueeze(1)
        self.weight = weight = None if weight is None else along_classes(weight.to(compute), input)
        self.target: Any = None
        self.ignored: Tensor | None = None
        self.hidden: Tensor | None = None
        self.smooth = smoothing / classes if smoothing else 0.0
        if self.indices:
            ignored = (target == options.ignore_index).unsqueeze(1)
            self.ignored = ignored
            self.target = target.unsqueeze(1).masked_fill(ignored, 0)
            # The target's own share, and that of all classes together.
            self.own: Any = 1 - smoothing
            all_smooth: Any = smoothing
            if weight is not None:
                flat = weight.flatten()
                self.own = (1 - smoothing) * flat[self.target]
                all_smooth = self.smooth * flat.sum() if smoothing else 0.0
            self.all_smooth = all_smooth
            total = self.own + all_smooth
            self.total = total if isinstance(total, Tensor) else torch.full_like(ignored, total, dtype=compute)
        else:
            share = target.to(compute)
            if smoothing:
                share = (1 - smoothing) * share + self.smooth
            self.share = share if weight is None else share * weight
            self.total = self.share.sum(1, keepdim=True)

    def hide(self, x: Tensor, y: Tensor, maximum: Tensor | None, options: Any) -> tuple[Tensor, Tensor]:
        """The logits, with zeros in rows that leave no trace and are not finite, and what is made of them."""
        without = self.without_trace(self.total)
        # Where looking is free and nobody follows, most batches need no further pass.
        if may_look(y) and not bool(without.any()):
            return x, y
        if maximum is None:
            maximum = y.detach().amax(1, keepdim=True)
        self.hidden = without & maximum.isfinite().logical_not()
        x = x.masked_fill(self.hidden, 0)
        return x, scaled_and_capped(x, options)

    def dot(self, shifted: Tensor) -> Any:
        """Σ_c a_c (x_c - m), of class indices without the target's own part. A class without a share has no effect."""
        if not self.indices:
            return dot(self.share, shifted)
        if not self.smooth:
            return None
        if self.weight is None:
            return self.smooth * shifted.sum(1, keepdim=True)
        return self.smooth * dot(self.weight, shifted)

    def losses(self, log_sum: Tensor, at_target: Tensor | None, dot: Any) -> Tensor:
        """Σ_c a_c (-log p_c)."""
        if at_target is None:
            return self.total * log_sum - dot
        cost = log_sum - at_target
        if isinstance(self.own, Tensor):
            cost = finite_where(self.own, cost)
        elif not self.own:
            cost = cost.masked_fill(cost.isinf(), 0)
        losses = self.own * cost
        return losses if dot is None else losses + (self.all_smooth * log_sum - dot)

    def gradient(self, p: Tensor, drawn: Tensor | None, g: Tensor) -> Tensor:
        """g ((A + drawn) p - a), with the digits that the difference of two numbers close to each other loses."""
        pull = self.total if drawn is None else self.total + drawn
        if not self.indices:
            largest = p.argmax(1, keepdim=True)
            most = p.gather(1, largest)
            plain = pull * p - self.share
            # At a class that has more than half, A p - a = Σ_{j≠i} a_j - A Σ_{j≠i} p_j.
            others = self.share.scatter(1, largest, 0).sum(1, keepdim=True)
            others = others - self.total * p.scatter(1, largest, 0).sum(1, keepdim=True)
            if drawn is not None:
                others = others + drawn * most
            at_largest = torch.where(most > 0.5, others, plain.gather(1, largest))
            return g * replaced(plain, largest, at_largest)
        smoothing = self.all_smooth if drawn is None else self.all_smooth + drawn
        has_more = drawn is not None or bool(self.smooth)
        at_target = p.gather(1, self.target)
        p = replaced(p, self.target, 0)
        # p_t - 1 = -Σ_{j≠t} p_j: the one where p_t is small, the other where it is close to 1.
        of_target = self.own * torch.where(at_target > 0.5, -p.sum(1, keepdim=True), at_target - 1)
        if has_more:
            of_target = of_target + smoothing * at_target
        gradient = p * (pull * g)
        if self.smooth:
            even = self.smooth if self.weight is None else self.smooth * self.weight
            gradient = gradient - even * g
            of_target = of_target - (even if self.weight is None else self.smooth * self.weight.flatten()[self.target])
        return replaced(gradient, self.target, of_target * g)

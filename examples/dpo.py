"""Direct preference optimization (DPO) of a small language model, without its logits.

    python -m examples.dpo

Of each pair of answers to a prompt, one is preferred. With the log-probability of an answer y under the policy π and
under the reference it started from, and their differences of the preferred (w) and the other (l),

    loss = -log σ(β ((log π(w) - log π_ref(w)) - (log π(l) - log π_ref(l))))

(Rafailov et al., *Direct Preference Optimization*, 2023, equation 7). The log-probability of an answer is the sum over
its tokens, which `linear_log_probs` gives one by one from the features in front of the head.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from examples.policy import IGNORED, Policy, prompted_answers
from torchlosses import linear_log_probs


def answer_log_probability(features: Tensor, head: nn.Linear, target: Tensor) -> Tensor:
    """Σ_t log π(y_t | y_<t) of each row of tokens (rows, length); prompts and padding are ignored."""
    found = linear_log_probs(features, head.weight, target, linear_bias=head.bias, ignore_index=IGNORED)
    return found.log_probability.sum(1)


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The loss in nats, of log-probabilities (2 n): those of n preferred answers, and of the other n."""
    preferred, other = (policy - reference).chunk(2)
    return -F.logsigmoid(beta * (preferred - other)).mean()


@dataclass(frozen=True)
class Settings:
    """How to train."""

    steps: int = 30
    """Steps of the optimizer."""
    pairs: int = 16
    """Pairs of answers a step."""
    beta: float = 0.5
    """How far the policy may go from the reference."""
    learning_rate: float = 3e-3
    """Step size of AdamW."""


def train(settings: Settings) -> list[float]:
    """Prefer answers that count upwards, and return the loss of every step."""
    torch.manual_seed(0)
    policy = Policy()
    reference = deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate)
    curve = []
    for _ in range(settings.steps):
        tokens, target = prompted_answers(settings.pairs)
        with torch.no_grad():
            before = answer_log_probability(reference(tokens), reference.head, target)
        loss = dpo_loss(answer_log_probability(policy(tokens), policy.head, target), before, settings.beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def main() -> int:
    """Train and print; the exit code says whether the preference was learned."""
    curve = train(tyro.cli(Settings, description=__doc__))
    for step, loss in enumerate(curve, 1):
        print(f"step {step:>3}  loss {loss:.4f}")
    return int(curve[-1] >= curve[0])


if __name__ == "__main__":
    sys.exit(main())

"""Group relative policy optimization (GRPO) of a small language model, without its logits.

    python -m examples.grpo

Several answers to each prompt are drawn and rewarded; an answer's advantage A is its reward, less the mean of its group
and divided by the group's standard deviation. With the ratio r = π(y_t) / π_old(y_t) of each token, and the reference
the policy started from,

    loss = mean_t(-min(r A, clip(r, 1 - ε, 1 + ε) A) + β KL_t - η H_t)
    KL_t = q - log q - 1,  q = π_ref(y_t) / π(y_t)

(Shao et al., *DeepSeekMath*, 2024, equations 3 and 4; η H, a bonus for the entropy, as in PPO). Log-probabilities and
entropy come from `linear_log_probs`, from the features in front of the head. In the first step after the drawing the
ratio is exactly 1.
"""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor

from examples.policy import ANSWER, IGNORED, PROMPT, VOCABULARY, Policy, next_tokens, prompts
from torchlosses import LogProbs, linear_log_probs


def token_log_probs(policy: Policy, tokens: Tensor, target: Tensor) -> LogProbs:
    """Log-probability and entropy of each token of the answers; 0 for the prompts."""
    head = policy.head
    return linear_log_probs(policy(tokens), head.weight, target, linear_bias=head.bias, ignore_index=IGNORED)


def advantages(rewards: Tensor) -> Tensor:
    """Of rewards (prompts, answers), each against its group."""
    return (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)


def grpo_loss(
    found: LogProbs, old: Tensor, reference: Tensor, advantage: Tensor, counted: Tensor, settings: Settings
) -> Tensor:
    """The loss; log-probabilities and `counted` are (answers, length), and `advantage` is one an answer."""
    ratio = torch.exp(found.log_probability - old)
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    gain = torch.minimum(ratio * advantage[:, None], clipped * advantage[:, None])
    quotient = reference - found.log_probability
    divergence = torch.expm1(quotient) - quotient
    losses = settings.kl * divergence - gain - settings.entropy * found.entropy
    return (losses * counted).sum() / counted.sum()


@dataclass(frozen=True)
class Settings:
    """How to train."""

    steps: int = 20
    """Drawings of answers."""
    updates: int = 2
    """Steps of the optimizer a drawing."""
    prompts: int = 8
    """Prompts a drawing."""
    answers: int = 8
    """Answers a prompt."""
    clip: float = 0.2
    """ε: how far a ratio counts."""
    kl: float = 0.02
    """β: what going from the reference costs."""
    entropy: float = 1e-3
    """η: what uncertainty earns."""
    learning_rate: float = 1e-2
    """Step size of AdamW."""


def reward(tokens: Tensor) -> Tensor:
    """The share of the answer's tokens that are one more than the token before."""
    steps = (tokens[:, 1:] - tokens[:, :-1]) % VOCABULARY == 1
    return steps[:, PROMPT - 1 :].sum(1) / ANSWER


def train(settings: Settings) -> list[float]:
    """Reward counting upwards, and return the mean reward of every drawing."""
    torch.manual_seed(0)
    policy = Policy()
    reference = deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate)
    curve = []
    for _ in range(settings.steps):
        drawn = policy.answers(prompts(settings.prompts).repeat_interleave(settings.answers, 0))
        tokens, target = next_tokens(drawn)
        rewards = reward(drawn)
        advantage = advantages(rewards.view(-1, settings.answers)).flatten()
        with torch.no_grad():
            old, start = (token_log_probs(model, tokens, target).log_probability for model in (policy, reference))
        for _ in range(settings.updates):
            found = token_log_probs(policy, tokens, target)
            loss = grpo_loss(found, old, start, advantage, target != IGNORED, settings)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curve.append(rewards.mean().item())
    return curve


def main() -> int:
    """Train and print; the exit code says whether the rewards have grown."""
    curve = train(tyro.cli(Settings, description=__doc__))
    for step, mean in enumerate(curve, 1):
        print(f"drawing {step:>3}  mean reward {mean:.3f}")
    return int(curve[-1] <= curve[0])


if __name__ == "__main__":
    sys.exit(main())

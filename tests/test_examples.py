"""The examples run, and hold what they promise."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from examples import dpo, grpo
from examples.policy import IGNORED, Policy, next_tokens, prompted_answers, prompts

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.thorough
@pytest.mark.parametrize(("naive", "code"), [(False, 0), (True, 1)])
def test_two_lean_processes_have_the_loss_curve_of_one_plain_one(naive: bool, code: int) -> None:
    command = [sys.executable, "-m", "examples.language_model", "--steps", "3", "--width", "16", "--layers", "1"]
    done = subprocess.run(
        [*command, "--naive"] if naive else command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == code, done.stderr
    curve = re.findall(r"^ +\d+ +(\d\.\d{9}) +(\d\.\d{9})", done.stdout, re.MULTILINE)
    assert len(curve) == 3
    assert (curve[-1][0] == curve[-1][1]) != naive
    assert float(curve[-1][0]) < float(curve[0][0])


@pytest.mark.parametrize("example", [dpo, grpo])
def test_a_policy_learns(example: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["example", "--steps", "4"])
    assert example.main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def distribution(policy: Policy, tokens: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability and entropy of each token from all logits; and which count."""
    log_p = policy.head(policy(tokens)).log_softmax(-1)
    counted = target != IGNORED
    own = log_p.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return own * counted, -(log_p.exp() * log_p).sum(-1) * counted, counted


def gradients(loss: Tensor, policy: Policy) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(policy.parameters()))


def policies() -> tuple[Policy, Policy]:
    torch.manual_seed(3)
    return Policy().double(), Policy().double()


def test_dpo_equals_the_plain_formula() -> None:
    policy, reference = policies()
    tokens, target = prompted_answers(5)
    before = dpo.answer_log_probability(reference(tokens), reference.head, target).detach()
    loss = dpo.dpo_loss(dpo.answer_log_probability(policy(tokens), policy.head, target), before, beta=0.3)
    after, start = (distribution(model, tokens, target)[0].sum(1) for model in (policy, reference))
    margins = (after - start.detach())[:5] - (after - start.detach())[5:]
    expected = torch.log(1 + torch.exp(-0.3 * margins)).mean()
    assert_close(loss, expected)
    assert_close(gradients(loss, policy), gradients(expected, policy))


def test_grpo_equals_the_plain_formula() -> None:
    policy, reference = policies()
    settings = grpo.Settings(clip=0.1, kl=0.3, entropy=0.2)
    drawn = policy.answers(prompts(2).repeat_interleave(4, 0))
    tokens, target = next_tokens(drawn)
    rewards = torch.rand(2, 4, dtype=torch.float64)
    advantage = grpo.advantages(rewards).flatten()
    for row, group in zip(advantage.view(2, 4), rewards, strict=True):
        assert_close(row, (group - group.mean()) / (group.var() ** 0.5 + 1e-4))
    own, entropy, counted = distribution(policy, tokens, target)
    start = distribution(reference, tokens, target)[0].detach()
    # Some ratios are far enough from 1 to be clipped.
    old = own.detach() + 0.2 * torch.randn_like(own)
    loss = grpo.grpo_loss(grpo.token_log_probs(policy, tokens, target), old, start, advantage, counted, settings)
    ratio, quotient = torch.exp(own - old), torch.exp(start - own)
    unclipped = ratio * advantage[:, None]
    clipped = torch.where(ratio < 0.9, 0.9, torch.where(ratio > 1.1, 1.1, ratio)) * advantage[:, None]
    assert (clipped != unclipped).any()
    losses = 0.3 * (quotient - torch.log(quotient) - 1) - 0.2 * entropy
    losses = losses - torch.where(clipped < unclipped, clipped, unclipped)
    expected = losses[counted].mean()
    assert_close(loss, expected)
    assert_close(gradients(loss, policy), gradients(expected, policy))


def test_the_first_ratio_of_grpo_is_1() -> None:
    policy = policies()[0].bfloat16()
    tokens, target = next_tokens(prompts(4).repeat(1, 2))
    with torch.no_grad():
        old = grpo.token_log_probs(policy, tokens, target).log_probability
    assert torch.equal(torch.exp(grpo.token_log_probs(policy, tokens, target).log_probability - old), torch.ones(4, 5))


def test_the_losses_are_short() -> None:
    """From the policy's features to the loss: what a reader copies."""
    for module, functions in ((dpo, ("answer_log_probability", "dpo_loss")), (grpo, ("token_log_probs", "grpo_loss"))):
        lines = sum(len(inspect.getsource(getattr(module, name)).splitlines()) for name in functions)
        assert lines <= 40

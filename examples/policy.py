"""The small language model, and the prompts, of the examples of preference and reinforcement learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

VOCABULARY, WIDTH, PROMPT, ANSWER = 16, 32, 3, 6
IGNORED = -100


class Policy(nn.Module):
    """Tokens in, features out: the head is for the loss, or for drawing the next token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.body = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Features (rows, length, width) of tokens (rows, length)."""
        return self.body(self.embedding(tokens))[0]

    @torch.no_grad()
    def answers(self, prompts: Tensor) -> Tensor:
        """Prompts with drawn answers behind them."""
        tokens = prompts
        for _ in range(ANSWER):
            logits = self.head(self(tokens)[:, -1])
            tokens = torch.cat([tokens, torch.multinomial(logits.softmax(1), 1)], 1)
        return tokens


def next_tokens(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens without the last, and the next token of each; the prompts are given, not predicted."""
    target = tokens[:, 1:].clone()
    target[:, : PROMPT - 1] = IGNORED
    return tokens[:, :-1], target


def prompts(count: int) -> Tensor:
    """Numbers that count upwards from a random one."""
    return (torch.randint(VOCABULARY, (count, 1)) + torch.arange(PROMPT)) % VOCABULARY


def prompted_answers(pairs: int) -> tuple[Tensor, Tensor]:
    """As `next_tokens`: prompts with answers that go on counting, and the same prompts with random answers."""
    start = prompts(pairs)
    upwards = (start[:, -1:] + 1 + torch.arange(ANSWER)) % VOCABULARY
    random = torch.randint(VOCABULARY, (pairs, ANSWER))
    return next_tokens(torch.cat([torch.cat([start, upwards], 1), torch.cat([start, random], 1)]))

"""A small language model, trained plainly and trained lean: the loss curves are the same.

    python -m examples.language_model                          # or: make example-lm

trains a byte-level transformer on some sonnets twice, from the same weights and on the same batches:

- plain: one process, the whole batch at once, all logits in memory, and `torch.nn.functional.cross_entropy`;
- lean: `torchrun --nproc-per-node 2 -m examples.language_model`, each process with half of the batch, in micro-batches,
  and `LinearCrossEntropyLoss`.

Passages have different lengths, so that every process and every micro-batch has another number of bytes to predict.
`global_normalizer` makes their parts of the mean add up to the mean. `--naive` leaves it out, and the curves part.

The numbers are float64, so that the same means the same: what remains is rounding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torchlosses import LinearCrossEntropyLoss
from torchlosses.distributed import global_normalizer

TEXT = Path(__file__).with_name("sonnets.txt")
BYTES = 256
IGNORED = -100
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Settings:
    """How to train."""

    steps: int = 40
    """Steps of the optimizer."""
    batch: int = 16
    """Passages a step, over all processes."""
    micro_batch: int = 2
    """Passages a backward, in the lean way."""
    width: int = 48
    """Features of the transformer."""
    layers: int = 2
    """Layers of the transformer."""
    learning_rate: float = 3e-3
    """Step size of AdamW."""
    processes: int = 2
    """Processes of the lean way."""
    naive: bool = False
    """Let every micro-batch of every process divide by its own number of bytes."""
    curve: Path | None = None
    """A JSON file for the loss curves; under torchrun, for the one."""


class LanguageModel(nn.Module):
    """Bytes in, the loss of predicting each next byte out."""

    def __init__(self, width: int, layers: int, context: int, plain: bool) -> None:
        super().__init__()
        self.plain = plain
        self.embedding = nn.Embedding(BYTES, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = LinearCrossEntropyLoss(width, BYTES, ignore_index=IGNORED, empty="zero")
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context, dtype=torch.float64))

    def forward(self, text: Tensor, target: Tensor, normalizer: Tensor | None) -> Tensor:
        """The loss in nats a byte; `normalizer` is what the sum over the bytes is divided by."""
        x = self.embedding(text) + self.position
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        x = self.norm(x)
        if self.plain:
            logits = self.head.linear(x)
            return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED)
        return self.head(x, target, normalizer=normalizer)


def passages(path: Path = TEXT) -> tuple[Tensor, Tensor]:
    """Quatrains and couplets as bytes, each padded to the longest, and the next byte of each; -100 behind the last."""
    texts = []
    for sonnet in path.read_text(encoding="ascii").strip().split("\n\n"):
        lines = sonnet.splitlines()
        texts += ["\n".join(lines[first : first + 4]) + "\n" for first in range(0, len(lines), 4)]
    longest = max(map(len, texts))
    padded = torch.full((len(texts), longest), IGNORED)
    for row, text in zip(padded, texts, strict=True):
        row[: len(text)] = torch.tensor(list(text.encode("ascii")))
    return padded[:, :-1].clamp(min=0), padded[:, 1:]


def train(settings: Settings, plain: bool) -> list[float]:
    """Train, in one process or as one of several, and return the loss of every step, in nats a byte."""
    processes, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    texts, targets = passages()
    torch.manual_seed(0)
    model = LanguageModel(settings.width, settings.layers, texts.shape[1], plain).double()
    parallel = DistributedDataParallel(model) if processes > 1 else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
    order = torch.Generator().manual_seed(1)
    curve = []
    for _ in range(settings.steps):
        batch = torch.randperm(len(texts), generator=order)[: settings.batch]
        mine = batch[rank::processes]
        micro_batches = [mine] if plain else list(mine.split(settings.micro_batch))
        normalizer = None if plain or settings.naive else global_normalizer(targets[mine], IGNORED)
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for number, some in enumerate(micro_batches, 1):
            # The processes exchange gradients once a step, with the last micro-batch.
            waits = number < len(micro_batches)
            with parallel.no_sync() if parallel is not None and waits else nullcontext():
                loss = (parallel or model)(texts[some], targets[some], normalizer)
                if settings.naive and not plain:
                    loss = loss / len(micro_batches)
                loss.backward()
            total += loss.detach()
        optimizer.step()
        if processes > 1:
            dist.all_reduce(total)
        curve.append(total.item() / processes)
    return curve


def train_as_one_of_several(settings: Settings) -> None:
    """What torchrun starts."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    curve = train(settings, plain=False)
    if dist.get_rank() == 0 and settings.curve is not None:
        settings.curve.write_text(json.dumps(curve), encoding="utf-8")
    dist.destroy_process_group()


def train_in_several_processes(settings: Settings) -> list[float]:
    """The lean way: this program again, under torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "curve.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(settings.processes), "-m", "examples.language_model"]
        subprocess.run([*command, *options(replace(settings, curve=path))], check=True, env=environment())
        return json.loads(path.read_text(encoding="utf-8"))


def options(settings: Settings) -> list[str]:
    """The settings as a command line."""
    given = []
    for name, value in asdict(settings).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            given += [f"--{flag}", str(value)]
    return given


def environment() -> dict[str, str]:
    """One thread a process, which torchrun would otherwise choose and announce."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def compare(settings: Settings) -> int:
    """Train both ways and print the curves; the exit code says whether they are the same."""
    plain = train(settings, plain=True)
    lean = train_in_several_processes(settings)
    print(f"{'step':>5}  {'plain':>12}  {'lean':>12}  {'difference':>10}   (loss in nats a byte)")
    shown = sorted({*range(0, settings.steps, max(1, settings.steps // 10)), settings.steps - 1})
    for step in shown:
        difference = abs(plain[step] - lean[step])
        print(f"{step + 1:>5}  {plain[step]:>12.9f}  {lean[step]:>12.9f}  {difference:>10.1e}")
    largest = max(abs(a - b) for a, b in zip(plain, lean, strict=True))
    same = largest <= TOLERANCE
    print(f"largest difference: {largest:.1e}, {'the same curve' if same else 'another curve'}")
    if settings.curve is not None:
        settings.curve.write_text(json.dumps({"plain": plain, "lean": lean}), encoding="utf-8")
    return 0 if same else 1


def main() -> int:
    """Compare, or be one of the processes of the lean way."""
    settings = tyro.cli(Settings, description=__doc__)
    if not dist.is_torchelastic_launched():
        return compare(settings)
    train_as_one_of_several(settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())

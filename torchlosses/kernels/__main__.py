"""`python -m torchlosses.kernels` prints which backend runs, why, its instruction set, and the threads."""

import torch

from torchlosses.kernels import BACKEND, INSTRUCTION_SET

print(f"backend: {BACKEND.name} ({BACKEND.reason})")
print(f"instruction set: {INSTRUCTION_SET or torch.backends.cpu.get_cpu_capability()}")
print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")

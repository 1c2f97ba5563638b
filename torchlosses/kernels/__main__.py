"""`python -m torchlosses.kernels` prints which backend runs, and why."""

import torch

from torchlosses.kernels import BACKEND

print(f"backend: {BACKEND.name} ({BACKEND.reason})")
print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")

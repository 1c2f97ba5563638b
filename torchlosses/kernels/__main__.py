"""`python -m torchlosses.kernels` prints which backend runs where and why, its instruction set, and the threads."""

import torch

from torchlosses.kernels import BACKEND, GPU_BACKEND, INSTRUCTION_SET

print(f"backend: {BACKEND.name} ({BACKEND.reason})")
print(f"instruction set: {INSTRUCTION_SET or torch.backends.cpu.get_cpu_capability()}")
found = torch.cuda.get_device_name() if torch.cuda.is_available() else "none found here"
print(f"backend on GPUs: {GPU_BACKEND.name} ({GPU_BACKEND.reason}; {found})")
print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")

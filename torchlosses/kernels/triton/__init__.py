"""The operators in Triton, for GPUs of NVIDIA and AMD.

Each file of a loss has `forward(*tensors, normalizer, options)` and
`backward(grad_output, gradient, *tensors, normalizer, *state, options)`, which writes `gradient`. Every option is in
the kernels, as a constant that is known when they are compiled. Nothing waits for the device, and all sums are taken in
an order that depends on sizes and on the device only.

With TRITON_INTERPRET=1 in the environment Triton's interpreter runs the kernels on tensors of the CPU.
"""

from torchlosses.kernels.triton import (
    binary_cross_entropy,
    cee,
    cross_entropy,
    huber,
    log_probs,
    mse,
    smooth_l1,
    split_cross_entropy,
)
from torchlosses.kernels.triton.launch import scale_in_place as scale_in_place
from torchlosses.kernels.triton.launch import unit_first as unit_first

LOSSES = {
    "mse_loss": mse,
    "huber_loss": huber,
    "smooth_l1_loss": smooth_l1,
    "binary_cross_entropy_with_logits": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "cee_loss": cee,
    "log_probs": log_probs,
}

# Of losses whose rows are split over processes, what each process does by itself: the file says what that is.
LOCAL = {"class_parallel_cross_entropy": split_cross_entropy}

"""The losses as functions: a drop-in for the losses of `import torch.nn.functional as F`."""

from torchlosses.binary_cross_entropy import binary_cross_entropy_with_logits
from torchlosses.cee import cee_loss
from torchlosses.cross_entropy import cross_entropy
from torchlosses.huber import huber_loss, smooth_l1_loss
from torchlosses.linear_cross_entropy import linear_cross_entropy
from torchlosses.linear_kl_div import linear_kl_div
from torchlosses.mse import mse_loss

__all__ = [
    "binary_cross_entropy_with_logits",
    "cee_loss",
    "cross_entropy",
    "huber_loss",
    "linear_cross_entropy",
    "linear_kl_div",
    "mse_loss",
    "smooth_l1_loss",
]

"""The losses as functions: a drop-in for the losses of `import torch.nn.functional as F`."""

from torchlosses.cee import cee_loss
from torchlosses.cross_entropy import cross_entropy
from torchlosses.linear_cross_entropy import linear_cross_entropy
from torchlosses.mse import mse_loss

__all__ = ["cee_loss", "cross_entropy", "linear_cross_entropy", "mse_loss"]

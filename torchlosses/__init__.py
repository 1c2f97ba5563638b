"""Mean squared error and cross-entropy for PyTorch, derived by hand, with an explicit forward and backward."""

from importlib.metadata import PackageNotFoundError, version

from torchlosses import functional
from torchlosses._options import RowStatistics
from torchlosses.binary_cross_entropy import BCEWithLogitsLoss, binary_cross_entropy_with_logits
from torchlosses.cee import CEELoss, cee_loss
from torchlosses.cross_entropy import CrossEntropyLoss, cross_entropy
from torchlosses.huber import HuberLoss, SmoothL1Loss, huber_loss, smooth_l1_loss
from torchlosses.linear_cross_entropy import LinearCrossEntropyLoss, linear_cross_entropy
from torchlosses.linear_kl_div import LinearKLDivLoss, linear_kl_div
from torchlosses.log_probs import LogProbs, linear_log_probs, log_probs
from torchlosses.mse import MSELoss, mse_loss

__all__ = [
    "BCEWithLogitsLoss",
    "CEELoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "LinearCrossEntropyLoss",
    "LinearKLDivLoss",
    "LogProbs",
    "MSELoss",
    "RowStatistics",
    "SmoothL1Loss",
    "binary_cross_entropy_with_logits",
    "cee_loss",
    "cross_entropy",
    "functional",
    "huber_loss",
    "linear_cross_entropy",
    "linear_kl_div",
    "linear_log_probs",
    "log_probs",
    "mse_loss",
    "smooth_l1_loss",
]

try:
    __version__ = version("hand-derived-losses")
except PackageNotFoundError:
    # Imported from a source tree that was never installed.
    __version__ = "0+unknown"

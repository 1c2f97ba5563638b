"""Mean squared error and cross-entropy for PyTorch, derived by hand, with an explicit forward and backward."""

from importlib.metadata import PackageNotFoundError, version

from torchlosses import functional
from torchlosses.cee import CEELoss, cee_loss
from torchlosses.cross_entropy import CrossEntropyLoss, cross_entropy
from torchlosses.mse import MSELoss, mse_loss

__all__ = [
    "CEELoss",
    "CrossEntropyLoss",
    "MSELoss",
    "cee_loss",
    "cross_entropy",
    "functional",
    "mse_loss",
]

try:
    __version__ = version("torchlosses")
except PackageNotFoundError:
    # Imported from a source tree that was never installed.
    __version__ = "0+unknown"

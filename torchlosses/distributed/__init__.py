"""Losses over more than one process, on torch.distributed and whichever of its backends is in use.

Data parallel: every process has rows of its own. `global_normalizer` gives the denominator with which the average over
the processes, as DistributedDataParallel takes it, is the gradient of one process that has all rows.

Class parallel: every process has the same rows, and classes of its own, of the logits or of the linear layer in front.

DTensors: every loss of this package takes them, with rows or classes split; nothing has to be imported from here.
"""

from torchlosses.distributed._agreement import assume_agreement
from torchlosses.distributed.class_parallel import class_parallel_cross_entropy, class_parallel_linear_cross_entropy
from torchlosses.distributed.data_parallel import global_normalizer
from torchlosses.distributed.modules import ClassParallelCrossEntropyLoss, ClassParallelLinearCrossEntropyLoss

__all__ = [
    "ClassParallelCrossEntropyLoss",
    "ClassParallelLinearCrossEntropyLoss",
    "assume_agreement",
    "class_parallel_cross_entropy",
    "class_parallel_linear_cross_entropy",
    "global_normalizer",
]

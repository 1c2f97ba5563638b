"""Train any language model of Transformers without its logits, by one call.

    >>> from torchlosses.integrations.transformers import apply
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> model = apply(LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes)))

The logits, a number for each token and each entry of the vocabulary, are the largest tensor of a training step.
`apply` puts a hook on the model's output head, so that it returns lazy logits: a Tensor that is computed when
somebody looks at it. The model's own code then computes its own loss of them, and a cross-entropy of lazy logits is a
`torchlosses.linear_cross_entropy`. Nothing else changes: no model is named here.

Where the logits are looked at, they are made and the result is the model's own. Where that happens in training, a
warning names what looked.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.distributed
import transformers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchlosses.integrations._lazy_logits import (
    Chain,
    LazyLogits,
    Loss,
    Notes,
    Options,
    is_lazy,
    note_fallback,
    value_of,
)

__all__ = ["Explanation", "LazyLogits", "LazyLogitsCallback", "Statistics", "apply", "explain", "remove", "statistics"]

Logits = Literal["lazy", "none", "eager"]
OnFallback = Literal["warn", "ignore", "raise"]
Model = TypeVar("Model", bound=nn.Module)

_APPLIED = "_torchlosses_applied"
# What the heads of models for classification are called; those of language models say themselves where they are.
_HEADS = ("classifier", "score", "classification_head", "lm_head", "head")


class Statistics(NamedTuple):
    """Means over the tokens of training that counted since the last look.

    Attributes:
        tokens: How many.
        token_accuracy: The share of those whose largest logit was the target's.
        entropy: -Σ p log p of the predicted distribution, in nats.
        log_sum_exp: log Σ exp of the logits, in nats.
        z_loss: λ (log Σ exp)², what the z-loss contributes to the loss.
    """

    tokens: int
    token_accuracy: float
    entropy: float
    log_sum_exp: float
    z_loss: float


@dataclass(frozen=True)
class Explanation:
    """What `apply` did with a model, and what the losses since then made of it.

    Attributes:
        model: The model's class.
        head: Name and kind of the output head; None where none was found.
        losses: What each kind of loss that was computed without logits knew of them: scale, soft cap, adapters.
        fallbacks: By operation, why the logits were made.
    """

    model: str
    head: str | None
    losses: tuple[Loss, ...]
    fallbacks: dict[str, str]

    @property
    def fused(self) -> bool | None:
        """Whether the losses are computed without logits; None before the first one."""
        if self.fallbacks:
            return False
        return True if self.losses else None

    def __str__(self) -> str:
        lines = [f"{self.model}: head {self.head or 'not found'}"]
        for scale, soft_cap, adapters in self.losses:
            terms = [f"scale {scale:g}"] if scale != 1 else []
            terms += [f"soft cap {soft_cap:g}"] if soft_cap is not None else []
            terms += [f"low-rank adapters: {adapters}"] if adapters else []
            lines.append("fused: " + (", ".join(terms) or "the plain product"))
        lines += [f"logits made by {operation}: {reason}" for operation, reason in self.fallbacks.items()]
        if not self.losses and not self.fallbacks:
            lines.append("no loss yet")
        return "\n  ".join(lines)


class _Applied:
    """What there is to take back."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.handles: list[RemovableHandle] = []
        self.hooked: list[nn.Module | None] | None = None
        self.head_handles: list[RemovableHandle] = []


def apply(
    model: Model,
    logits: Logits = "lazy",
    on_fallback: OnFallback = "warn",
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    stats: bool = False,
) -> Model:
    r"""Let a Transformers model compute its loss without its logits, in nats.

    .. math:: \text{loss}_n = -\log \frac{\exp y_{n t_n}}{\sum_j \exp y_{nj}} + \lambda \Big(\log \sum_j \exp
        y_{nj}\Big)^2, \qquad y_n = W x_n + b

    The loss, its gradients and everything that the model returns stay what they are: the model's own loss function is
    called, with its shift, `num_items_in_batch`, auxiliary losses. Scale, soft cap, bias and LoRA adapters of the head
    are part of the fused loss.

    Args:
        model: A model with an output head that is a linear layer; also inside of PEFT's, DistributedDataParallel's or
            torch.compile's wrapper. It is changed, by hooks that do not show in its parameters, its state dict or its
            `forward`. Applying again changes the options.
        logits: What the model returns as logits. 'lazy': a Tensor that is computed when it is looked at; 'none': None
            where the model is in training mode and has computed its loss, else as 'lazy'; 'eager': the real ones, and
            the loss computed from them.
        on_fallback: What happens where the logits are made while gradients are recorded: 'warn' (once an operation),
            'ignore' or 'raise'. The result is the model's own in any case.
        z_loss: λ, which draws log Σ exp(y) to 0. In training mode only, as label smoothing: an evaluation gives the
            plain cross-entropy.
        label_smoothing: ε in [0, 1], the share of the target that is spread evenly over all classes.
        stats: Whether to keep what :func:`statistics` returns: token accuracy, entropy, log Σ exp.

    Returns:
        The model.

    Shape:
        The lazy logits have the shape (..., vocabulary), the dtype and the device of the logits. The loss is that of
        `torch.nn.functional.cross_entropy` of them: float32 where the model casts to that, as those of Transformers do.

    Raises:
        ValueError: An option is none of its values.
        TypeError: `model` is not a Module.
        RuntimeError: With `on_fallback='raise'`, no head was found; later, an operation that makes the logits.

    Edge cases: where every label is ignored, the loss is what the model makes of no rows, nan for a mean. A head that
    is not a linear layer, or that computes something of its own, is left alone, with one warning.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from torchlosses.integrations.transformers import apply
        >>> sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = apply(LlamaForCausalLM(LlamaConfig(vocab_size=1000, **sizes)))
        >>> tokens = torch.randint(1000, (2, 8))
        >>> output = model(input_ids=tokens, labels=tokens)
        >>> output.loss.backward()
        >>> output.logits
        LazyLogits(shape=(2, 8, 1000), dtype=torch.float32)

    Source: as for `torchlosses.linear_cross_entropy`.
    """
    options = Options(logits, on_fallback, z_loss, label_smoothing, stats)
    if not isinstance(model, nn.Module):
        raise TypeError(f"apply: model must be a torch.nn.Module, but got {type(model).__name__}.")
    remove(model)
    inner = _unwrapped(model)
    notes = Notes(options)
    applied = _Applied(notes)
    setattr(inner, _APPLIED, applied)
    if stats:
        device = next((parameter.device for parameter in inner.parameters()), torch.device("cpu"))
        wide = torch.float32 if device.type == "mps" else torch.float64
        notes.totals = torch.zeros(5, dtype=wide, device=device)
    applied.handles = [
        inner.register_forward_pre_hook(functools.partial(_before_model, applied)),
        inner.register_forward_hook(functools.partial(_after_model, notes)),
    ]
    _attach(inner, applied)
    return model


def remove(model: nn.Module) -> None:
    """Take back what :func:`apply` did; nothing happens where it did nothing.

    Args:
        model: The model that was given to `apply`, or what it has been wrapped in since.
    """
    inner = _unwrapped(model)
    applied: _Applied | None = inner.__dict__.get(_APPLIED)
    if applied is None:
        return
    for handle in (*applied.handles, *applied.head_handles):
        handle.remove()
    delattr(inner, _APPLIED)


def explain(model: nn.Module) -> Explanation:
    """What the losses of a model were computed from since :func:`apply`, and why, where it was the logits.

    Args:
        model: The model that was given to `apply`, or what it has been wrapped in since.

    Returns:
        An `Explanation`; `print` shows it in a few lines. The scale, the soft cap and what is fused are known after the
        first loss.

    Raises:
        ValueError: `apply` has not been called, or `remove` has been called since.
    """
    inner, applied = _found(model, "explain")
    notes, head = applied.notes, _head(inner)
    name = None
    if head is not None:
        path = next((path for path, module in inner.named_modules() if module is head), type(head).__name__)
        name = f"{path} ({type(head).__name__}{_size(head)})"
    return Explanation(type(inner).__name__, name, tuple(notes.losses), dict(notes.fallbacks))


def statistics(model: nn.Module) -> Statistics | None:
    """Means over the tokens of the training losses since the last call; None where there were none.

    Waits for the device, once. Each process has its own.

    Args:
        model: The model that was given to `apply(model, stats=True)`, or what it has been wrapped in since.

    Raises:
        ValueError: `apply` has not been called, or without `stats=True`.
    """
    return _statistics(model, over_processes=False)


def _statistics(model: nn.Module, over_processes: bool) -> Statistics | None:
    _, applied = _found(model, "statistics")
    totals = applied.notes.totals
    if totals is None:
        raise ValueError("statistics: call apply(model, stats=True) first.")
    taken = totals.clone()
    totals.zero_()
    if over_processes and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(taken)
    tokens, *sums = taken.tolist()
    if not tokens:
        return None
    return Statistics(int(tokens), *(part / tokens for part in sums))


class LazyLogitsCallback(transformers.TrainerCallback):
    """Applies at the start of a training, and adds token accuracy, entropy and z-loss to what the Trainer logs.

    The Trainer calls its own reporters first. To have the numbers in, say, TensorBoard, hand it over behind this:
    `TrainingArguments(report_to="none")` and `callbacks=[LazyLogitsCallback(), TensorBoardCallback()]`.

    Args:
        logits: As for :func:`apply`.
        on_fallback: As for :func:`apply`.
        z_loss: As for :func:`apply`.
        label_smoothing: As for :func:`apply`; `TrainingArguments.label_smoothing_factor` makes the logits.
        stats: As for :func:`apply`. The numbers are means over the tokens of all processes since the last log.

    Example:
        >>> from torchlosses.integrations.transformers import LazyLogitsCallback
        >>> callback = LazyLogitsCallback(z_loss=1e-4)  # Trainer(..., callbacks=[callback])
    """

    def __init__(
        self,
        logits: Logits = "lazy",
        on_fallback: OnFallback = "warn",
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
        stats: bool = True,
    ) -> None:
        super().__init__()
        self._options: Any = Options(logits, on_fallback, z_loss, label_smoothing, stats)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Apply."""
        apply(kwargs["model"], **vars(self._options))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the means since the last log, where the log is one of a training step."""
        logs = kwargs.get("logs") or {}
        if not self._options.stats or "loss" not in logs:
            return
        found = _statistics(kwargs["model"], over_processes=True)
        if found is None:
            return
        added = {"token_accuracy": found.token_accuracy, "entropy": found.entropy, "z_loss": found.z_loss}
        logs.update(added)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(added)


# The hooks.


def _before_model(applied: _Applied, model: nn.Module, _: Any) -> None:
    """The head may have been exchanged since the last call: by PEFT, or by another size of the vocabulary."""
    if not torch.compiler.is_compiling():
        applied.notes.head_was_called = False
        _attach(model, applied)


def _after_model(notes: Notes, model: nn.Module, _: Any, output: Any) -> Any:
    """Hand out the logits as the user wants them."""
    mode = notes.options.logits
    compiling = torch.compiler.is_compiling()
    if mode == "lazy" and compiling:
        return None
    has_loss = _loss_of(output) is not None
    if has_loss and model.training and not compiling and not notes.head_was_called:
        note_fallback(notes.number, "head", "the model computed its loss without calling a head that is known")
    if mode == "eager":
        return _with(output, value_of)
    if mode == "none" and has_loss and model.training:
        return _with(output, lambda _: None)
    return None


def _loss_of(output: Any) -> Any:
    if isinstance(output, transformers.utils.ModelOutput):
        return output.get("loss")
    is_loss = isinstance(output, tuple) and output and isinstance(output[0], Tensor) and output[0].dim() == 0
    return output[0] if is_loss else None


def _with(output: Any, function: Any) -> Any:
    """The same with another thing in place of lazy logits; a tuple has no place for None."""
    if isinstance(output, transformers.utils.ModelOutput):
        changed = {name: function(value) if is_lazy(value) else value for name, value in output.items()}
        return type(output)(**changed)
    if type(output) is tuple:
        changed = [(function(value) if is_lazy(value) else value) for value in output]
        return tuple([value for value in changed if value is not None])
    return function(output) if is_lazy(output) else output


def _exporting() -> bool:
    return torch.compiler.is_exporting()


# The compiler of torch 2.10 takes every region for one that is exported; so this is run while it traces.
_exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]
# Nor does it know named tuples with methods of their own, as the logits in a compiled region are.
_COMPILER_NEEDS_LOGITS = torch.__version__.startswith("2.10.")


def _before_head(notes: Notes, head: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """Hand the linear layer its features in a wrapping, which answers the product with lazy logits."""
    if not torch.compiler.is_compiling():
        notes.head_was_called = True
    is_plain = len(arguments) != 1 or not isinstance(arguments[0], Tensor) or is_lazy(arguments[0])
    if is_plain or _exporting() or torch.jit.is_tracing():
        return None
    if _COMPILER_NEEDS_LOGITS and torch.compiler.is_compiling():
        note_fallback(notes.number, "head", "the compiler of torch 2.10 needs logits that exist, so they are made")
        return None
    return (Chain(arguments[0], module=head, notes=notes),)


def _before_adapter(_: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """Hand the first layer of a low-rank adapter its features in a wrapping, so that its product is not computed."""
    return (Chain(arguments[0]),) if len(arguments) == 1 and isinstance(arguments[0], Tensor) else None


def _attach(model: nn.Module, applied: _Applied) -> None:
    """Put the hooks on the output head that the model has now."""
    head = _head(model)
    linear, adapters = _linear_of(head)
    found = [head, linear, *adapters]
    if applied.hooked == found:
        return
    for handle in applied.head_handles:
        handle.remove()
    applied.hooked, applied.head_handles = found, []
    if linear is None:
        reason = "no output head was found" if head is None else f"{type(head).__name__} is not a plain linear layer"
        note_fallback(applied.notes.number, "head", reason)
        return
    # A copy of a head has the hooks that it was copied with.
    for number, hook in list(linear._forward_pre_hooks.items()):
        if getattr(hook, "func", None) is _before_head:
            del linear._forward_pre_hooks[number]
    applied.head_handles.append(linear.register_forward_pre_hook(functools.partial(_before_head, applied.notes)))
    applied.head_handles += [adapter.register_forward_pre_hook(_before_adapter) for adapter in adapters]


def _head(model: nn.Module) -> nn.Module | None:
    """The output head: what the model says, or for a classification what it is called."""
    try:
        head = model.get_output_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        head = None
    if head is None:
        head = next((found for name in _HEADS if (found := getattr(model, name, None)) is not None), None)
    if head is not None and not isinstance(head, nn.Linear):
        # A small network: its last layer.
        head = getattr(head, "out_proj", head)
    return head if isinstance(head, nn.Module) else None


def _linear_of(head: nn.Module | None) -> tuple[nn.Linear | None, list[nn.Module]]:
    """The linear layer of a head, and the first layers of the low-rank adapters on it."""
    adapters: list[nn.Module] = []
    if (peft := sys.modules.get("peft")) is not None:
        if isinstance(head, peft.utils.ModulesToSaveWrapper):
            active = head.active_adapters
            head = head.modules_to_save[active[0]] if len(active) == 1 else None
        if isinstance(head, peft.tuners.lora.Linear):
            adapters = [layer for layer in head.lora_A.values() if type(layer) is nn.Linear]
            head = head.base_layer
    # A class of its own may do more than the product, and FSDP2's do not.
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward or "forward" in head.__dict__:
        return None, []
    return head, adapters


# Models and what they are wrapped in.


def _unwrapped(model: nn.Module) -> nn.Module:
    """The Transformers model inside of torch.compile's, DistributedDataParallel's and PEFT's wrapper."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def _found(model: nn.Module, function: str) -> tuple[nn.Module, _Applied]:
    inner = _unwrapped(model)
    applied = inner.__dict__.get(_APPLIED)
    if applied is None:
        raise ValueError(f"{function}: call torchlosses.integrations.transformers.apply(model) first.")
    return inner, applied


def _size(head: nn.Module) -> str:
    weight = getattr(head, "weight", None)
    return f", {' x '.join(str(size) for size in weight.shape)}" if isinstance(weight, Tensor) else ""

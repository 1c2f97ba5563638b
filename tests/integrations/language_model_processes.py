"""What each of two processes does in the tests of `torchlosses.integrations.transformers`."""

from __future__ import annotations

import gc
import os
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from torchlosses.integrations.transformers import LazyLogits, apply, explain

CLASSES = 61


def main(rank: int, folder: str) -> None:
    """Run every check, and leave behind what went wrong."""
    warnings.simplefilter("error")
    # FSDP2 on a CPU, and gloo where it is asked for an average, warn about themselves.
    warnings.filterwarnings("ignore", module="torch")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        for check in (check_ddp, check_fsdp):
            check(rank)
    except BaseException:
        Path(folder, f"failure-{rank}").write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)
    gc.collect()
    dist.destroy_process_group()


def build(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=CLASSES, tie_word_embeddings=tied, **sizes))


def batch() -> Tensor:
    return torch.randint(CLASSES, (4, 7), generator=torch.Generator().manual_seed(1))


def own_gradients(tied: bool) -> tuple[float, dict[str, Tensor]]:
    """Of the whole batch, in one process, with the logits."""
    model, tokens = build(tied), batch()
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


def loss_of(model: nn.Module, tokens: Tensor, inside: bool) -> Tensor:
    """By the model, or by a plain loop from the logits that it returns."""
    output = model(input_ids=tokens, labels=tokens if inside else None)
    assert type(output.logits) is LazyLogits
    if inside:
        return output.loss
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def step(model: nn.Module, rank: int, inside: bool, steps: int = 2) -> float:
    """Some steps, so that what one leaves behind shows in the next; the mean loss of the processes."""
    mine = batch()[rank::2]
    for _ in range(steps):
        model.zero_grad()
        loss = loss_of(model, mine, inside)
        loss.backward()
    found = loss.detach().clone()
    dist.all_reduce(found)
    return found.item() / 2


def check_ddp(rank: int) -> None:
    for tied, inside, options in [
        (False, True, {}),
        (True, True, {"find_unused_parameters": True}),
        (False, False, {"find_unused_parameters": True}),
        (False, True, {"static_graph": True}),
        (False, False, {}),
    ]:
        expected, gradients = own_gradients(tied)
        model = apply(build(tied), on_fallback="raise")
        parallel = DistributedDataParallel(model, **options)
        assert_close(step(parallel, rank, inside), expected)
        for name, parameter in model.named_parameters():
            assert_close(parameter.grad, gradients[name], rtol=1e-5, atol=1e-7)
        assert explain(parallel).fused


def check_fsdp(rank: int) -> None:
    for tied, inside, head_alone, reshard in [
        (False, True, False, None),
        (True, True, False, None),
        (False, False, False, None),
        (False, True, True, False),
        (False, True, True, True),
        (False, False, True, True),
    ]:
        expected, gradients = own_gradients(tied)
        model = apply(build(tied), on_fallback="raise")
        for layer in model.model.layers:
            fully_shard(layer)
        if head_alone:
            fully_shard(model.lm_head, reshard_after_forward=reshard)
        fully_shard(model)
        assert_close(step(model, rank, inside), expected)
        for name, parameter in model.named_parameters():
            assert isinstance(parameter.grad, DTensor), name
            assert_close(parameter.grad.full_tensor(), gradients[name], rtol=1e-5, atol=1e-7)
        with torch.no_grad():
            model.eval()
            assert loss_of(model, batch(), inside).isfinite()
    model = apply(build(), on_fallback="raise")
    fully_shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32))
    output = model(input_ids=batch())
    assert type(output.logits) is LazyLogits
    assert output.logits.dtype == torch.float32
    assert output.logits.lazy.features.dtype == torch.bfloat16


if __name__ == "__main__":
    main(int(os.environ["RANK"]), sys.argv[1])

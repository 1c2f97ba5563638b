"""`make sweep-transformers`: every kind of causal language model that Transformers has, tiny, with its own loss and with lazy logits.

    python -m benchmarks.transformers_sweep                    # all; writes the table of docs/language_models.md
    python -m benchmarks.transformers_sweep --only gemma       # those whose name holds this; nothing is written

A model of each type is made from its configuration, with every size small. Loss, logits and gradients are its own, in
float32, in training and in evaluation mode; then again after `apply`. The differences are relative: of the loss to the
loss, of the gradients to the largest gradient of the model.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from torchlosses.integrations.transformers import Explanation, apply, explain, remove

PAGE = Path(__file__).parents[1] / "docs" / "language_models.md"
TOLERANCE = 1e-5
BATCH, LENGTH, CLASSES = 2, 16, 99

# What the sizes are called, and what each is set to where a configuration has it.
SIZES: dict[int, str] = {
    2: """num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_key_value_heads num_kv_heads
        num_encoder_layers num_decoder_layers num_query_groups mamba_n_groups n_group topk_group num_experts_per_tok
        moe_topk num_key_value_groups mamba_d_conv""",
    4: """num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads
        num_local_experts num_experts n_routed_experts moe_num_experts index_n_heads linear_num_key_heads
        linear_num_value_heads swa_num_attention_heads linear_num_heads num_encoder_attention_heads
        num_decoder_attention_heads""",
    8: """head_dim qk_rope_head_dim qk_nope_head_dim v_head_dim index_head_dim linear_key_head_dim linear_value_head_dim
        swa_head_dim linear_head_dim attention_head_dim rotary_dim attention_head_size d_head dim_head kv_channels
        mamba_head_dim mamba_d_head mamba_headdim adapter_rank laurel_rank time_step_rank mamba_dt_rank state_size
        ssm_state_size mamba_d_state hidden_size_per_layer_input""",
    16: """qk_head_dim kv_lora_rank q_lora_rank o_lora_rank index_topk chunk_size mamba_chunk_size embedding_size
        pronunciation_embed_dim shape_embed_dim""",
    32: """hidden_size d_model n_embd dim_model emb_dim encoder_ffn_dim decoder_ffn_dim intermediate_size moe_intermediate_size
        shared_expert_intermediate_size ffn_dim ffn_hidden_size word_embed_proj_dim embedding_dim attention_hidden_size
        shared_intermediate_size feed_forward_size dff dim_ff d_inner lru_width input_embedding_size
        output_embedding_size expert_ffn_hidden_size moe_shared_expert_intermediate_size dense_intermediate_size
        intermediate_size_mlp shared_experts_intermediate_size backbone_hidden_size""",
    64: """max_position_embeddings n_positions max_seq_len n_ctx model_max_length context_length sliding_window
        sliding_window_size attention_window_size""",
    CLASSES: "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}


@dataclass(frozen=True)
class Comparison:
    """How far two ways are apart, and what the second did."""

    loss: float
    gradient: float
    logits: float
    explanation: Explanation

    def agrees(self) -> bool:
        """Whether they are the same up to rounding; nan is not."""
        return all(error <= TOLERANCE for error in (self.loss, self.gradient, self.logits))


def model_types() -> list[tuple[type, type[nn.Module]]]:
    """Configuration and model, by the model's name; of a model with two types, the first."""
    found: dict[str, tuple[type, type[nn.Module]]] = {}
    for configuration, classes in MODEL_FOR_CAUSAL_LM_MAPPING.items():
        for model in classes if isinstance(classes, tuple) else (classes,):
            found.setdefault(model.__name__, (configuration, model))
    return [found[name] for name in sorted(found, key=str.lower)]


def build(configuration: type, model: type[nn.Module]) -> nn.Module:
    """A tiny model with the same weights at every call."""
    config = small(configuration, SPECIAL.get(model.__name__, {}))
    torch.manual_seed(0)
    try:
        return model(config)
    except (AttributeError, TypeError):
        # The configuration is of several parts, and the model is the part that writes.
        return model(config.get_text_config(decoder=True))


def small(configuration: type, special: dict[str, Any]) -> Any:
    """A configuration with every size that `SMALL` knows, and its parts alike."""
    values = vars(configuration())
    given: dict[str, Any] = {}
    layers = values.get("num_hidden_layers")
    for name, value in values.items():
        if name in SMALL and isinstance(value, int):
            given[name] = min(value, SMALL[name])
        elif name.endswith("_token_id") and isinstance(value, int) and value >= CLASSES:
            given[name] = CLASSES - 1
        elif ("dropout" in name or name.endswith("_pdrop") or name == "layerdrop") and isinstance(value, float):
            given[name] = 0.0
        elif isinstance(value, list) and len(value) == layers and layers and layers > SMALL["num_hidden_layers"]:
            given[name] = value[: SMALL["num_hidden_layers"]]
        elif isinstance(value, transformers.PretrainedConfig):
            given[name] = small(type(value), special.get(name, {})).to_dict()
    if "kv_lora_rank" in given:
        given["num_key_value_heads"] = given["num_attention_heads"]
    return configuration(**{**given, **special})


_MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "BambaForCausalLM": _MAMBA,
    "CohereCompassForCausalLM": {"layer_types": ["full_attention"] * 2},
    "DeepseekV2ForCausalLM": _ROUTED,
    "Dots1ForCausalLM": _ROUTED,
    "Ernie4_5_MoeForCausalLM": {"moe_k": 2},
    "Gemma3nForCausalLM": {"num_kv_shared_layers": 0, "intermediate_size": 32},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "GraniteMoeHybridForCausalLM": _MAMBA,
    "HunYuanDenseV1ForCausalLM": {"head_dim": 8},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 8},
    "KimiLinearForCausalLM": {"num_experts_per_token": 2},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "hidden_size": 32},
    "MinistralForCausalLM": {"head_dim": 8},
    "NemotronForCausalLM": {"head_dim": 8, "num_key_value_heads": 2},
    "OlmoHybridForCausalLM": {"layer_types": ["linear_attention", "full_attention"]},
    "ReformerModelWithLMHead": {"is_decoder": True, "axial_pos_embds": False},
    "XmodForCausalLM": {"default_language": "en_XX"},
}


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, CLASSES - 3, (BATCH, LENGTH), generator=generator)
    labels = tokens.clone()
    labels[0, :5] = -100
    inputs = {"input_ids": tokens, "labels": labels}
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    return inputs


def losses_and_gradients(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The losses in training and in evaluation mode, the gradients of the first, the logits of the second."""
    losses = []
    model.train()
    model.zero_grad()
    torch.manual_seed(2)
    output = model(**inputs)
    output.loss.backward()
    losses.append(output.loss.detach())
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.eval()
    torch.manual_seed(2)
    with torch.no_grad():
        output = model(**inputs)
    losses.append(output.loss)
    return losses, gradients, output.logits


def compare(model: nn.Module) -> Comparison:
    """The model with its own loss, and after `apply`."""
    inputs = inputs_of(model)
    own, own_gradients, own_logits = losses_and_gradients(model, inputs)
    apply(model, on_fallback="ignore")
    lazy, lazy_gradients, lazy_logits = losses_and_gradients(model, inputs)
    explanation = explain(model)
    remove(model)
    if len(own_gradients) != len(lazy_gradients) or not own_gradients:
        raise AssertionError(f"{len(own_gradients)} gradients became {len(lazy_gradients)}")
    largest = max(gradient.abs().max().item() for gradient in own_gradients)
    pairs = zip(own_gradients, lazy_gradients, strict=True)
    gradient = max((a - b).abs().max().item() for a, b in pairs) / largest
    loss = max(abs(a.item() - b.item()) / abs(a.item()) for a, b in zip(own, lazy, strict=True))
    logits = (own_logits - lazy_logits).abs().max().item() / own_logits.abs().max().item()
    return Comparison(loss, gradient, logits, explanation)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    import time, traceback

    only = sys.argv[1] if len(sys.argv) > 1 else ""
    import signal

    def alarm(*_):
        raise TimeoutError("too slow")

    signal.signal(signal.SIGALRM, alarm)
    skip = set(sys.argv[2].split(",")) if len(sys.argv) > 2 else set()
    for configuration, cls in model_types():
        if cls.__name__ in skip:
            continue
        signal.alarm(40)
        if only.lower() not in cls.__name__.lower():
            continue
        t = time.time()
        try:
            with torch.device("meta"):
                n = sum(p.numel() for p in build(configuration, cls).parameters())
            if n > 3e6:
                with torch.device("meta"):
                    model = build(configuration, cls)
                print(
                    "BIG",
                    cls.__name__,
                    n,
                    sorted(((p.numel(), name) for name, p in model.named_parameters()), reverse=True)[:4],
                    flush=True,
                )
                continue
            model = build(configuration, cls)
        except BaseException as e:
            if only:
                traceback.print_exc()
            print(
                "NOBUILD",
                cls.__name__,
                configuration.__name__,
                type(e).__name__,
                str(e)[:300].replace("\n", " "),
                flush=True,
            )
            continue
        n = sum(p.numel() for p in model.parameters())
        try:
            inputs = inputs_of(model)
            losses_and_gradients(model, inputs)
        except BaseException as e:
            if only:
                traceback.print_exc()
            print(
                "NORUN",
                cls.__name__,
                configuration.__name__,
                type(e).__name__,
                str(e)[:200].replace("\n", " "),
                flush=True,
            )
            continue
        try:
            c = compare(model)
        except BaseException as e:
            if only:
                traceback.print_exc()
            print("FAIL", cls.__name__, type(e).__name__, str(e)[:300].replace("\n", " "), flush=True)
            continue
        print(
            "OK" if c.agrees() else "DIFF",
            cls.__name__,
            f"{c.loss:.1e} {c.gradient:.1e} {c.logits:.1e}",
            str(c.explanation).replace("\n", " | "),
            f"{time.time() - t:.1f}s",
            flush=True,
        )

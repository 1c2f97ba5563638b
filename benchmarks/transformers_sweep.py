"""`make sweep-transformers`: every causal language model of Transformers, tiny, with its own loss and with lazy logits.

    python -m benchmarks.transformers_sweep                    # all; writes benchmarks/results/transformers.json
    python -m benchmarks.transformers_sweep --only gemma       # those with this in their name; nothing is written

A model of each type is made from its configuration, with every size small. Loss and gradients in training mode, loss
and logits in evaluation mode are its own, in float32; then again after `apply`. The differences are relative: of the
loss to the loss, of the gradients to the largest gradient of the model, of the logits to the largest logit.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from benchmarks.report import PROGRAM as REPORT
from benchmarks.results import write_results
from benchmarks.run import TRANSFORMERS
from benchmarks.transformers_table import Model, Sweep
from torchlosses.integrations.transformers import Explanation, apply, explain, remove

TOLERANCE = 1e-5
# Models of at least so many types must be built, or the sweep has lost its way.
FEWEST = 140
LARGEST = 8_000_000
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
    32: """hidden_size d_model n_embd dim_model emb_dim encoder_ffn_dim decoder_ffn_dim intermediate_size
        moe_intermediate_size shared_expert_intermediate_size ffn_dim ffn_hidden_size word_embed_proj_dim
        embedding_dim attention_hidden_size
        shared_intermediate_size feed_forward_size dff dim_ff d_inner lru_width input_embedding_size
        output_embedding_size expert_ffn_hidden_size moe_shared_expert_intermediate_size dense_intermediate_size
        intermediate_size_mlp shared_experts_intermediate_size backbone_hidden_size""",
    64: """max_position_embeddings n_positions max_seq_len n_ctx model_max_length context_length sliding_window
        sliding_window_size attention_window_size""",
    CLASSES: "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size",
}
SMALL = {name: size for size, names in SIZES.items() for name in names.split()}


@dataclass(frozen=True)
class Skipped:
    """A model that could not be built tiny, or not be run on words alone."""

    model: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """How far two ways are apart, and what the second did."""

    model: str
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


def inputs_of(model: nn.Module) -> dict[str, Any]:
    """Words, and the same words as labels, some of them ignored."""
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
    return Comparison(type(model).__name__, loss, gradient, logits, explanation)


def sweep(models: Iterable[tuple[type, type[nn.Module]]]) -> list[Comparison | Skipped]:
    """Compare each of the models that can be built."""
    results: list[Comparison | Skipped] = []
    with warnings.catch_warnings():
        # What the models say about their configurations, which are made up.
        warnings.simplefilter("ignore")
        for configuration, kind in models:
            try:
                with torch.device("meta"):
                    parameters = sum(parameter.numel() for parameter in build(configuration, kind).parameters())
                if parameters > LARGEST:
                    raise ValueError(f"{parameters:,} parameters are not tiny")
                model = build(configuration, kind)
                losses_and_gradients(model, inputs_of(model))
            # Whatever stops a model of somebody else's that is made of made-up sizes is a reason to leave it out.
            except Exception as error:
                results.append(Skipped(kind.__name__, f"{type(error).__name__}: {error}".splitlines()[0][:90]))
            else:
                results.append(compare(model))
    return results


def record(results: list[Comparison | Skipped]) -> Sweep:
    """What is stored of the results."""
    models = []
    for result in results:
        if isinstance(result, Skipped):
            continue
        explanation = result.explanation
        losses = explanation.losses[:1] if explanation.fused else ()
        models.append(
            Model(
                name=result.model,
                head=(explanation.head or "").split(" ")[0],
                scale=losses[0].scale if losses else 1.0,
                soft_cap=losses[0].soft_cap if losses else None,
                fallbacks=explanation.fallbacks,
                loss=result.loss,
                gradient=result.gradient,
                logits=result.logits,
            )
        )
    skipped = {result.model: result.reason for result in results if isinstance(result, Skipped)}
    return Sweep(transformers=transformers.__version__, models=models, skipped=skipped)


def main() -> int:
    """Run the command; 1 where a model does not agree, or too few could be built."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transformers_sweep", description=__doc__)
    parser.add_argument("--only", metavar="PART", default="", help="models whose name holds this; nothing is written")
    parser.add_argument("--output", type=Path, default=TRANSFORMERS, metavar="FILE", help="where to write")
    arguments = parser.parse_args()

    console = Console(stderr=True)
    transformers.logging.set_verbosity_error()
    chosen = [pair for pair in model_types() if arguments.only.lower() in pair[1].__name__.lower()]
    if not chosen:
        parser.error(f"no model has {arguments.only!r} in its name")
    results = [result for pair in track(chosen, "comparing", console=console) for result in sweep([pair])]
    for result in results:
        console.print(str(result), markup=False, highlight=False, soft_wrap=True)
    compared = [result for result in results if isinstance(result, Comparison)]
    problems = [result.model for result in compared if not result.agrees()]
    if problems:
        console.print(f"These do not agree: {', '.join(problems)}")
    if not arguments.only and len(compared) < FEWEST:
        problems.append("too few")
        console.print(f"Only {len(compared)} of {len(chosen)} models could be built; at least {FEWEST} must be.")
    if arguments.only or problems:
        console.print("Nothing was written.")
    else:
        write_results(record(results), arguments.output)
        console.print(f"{len(compared)} models agree. Wrote {arguments.output}; `{REPORT}` makes the table from it.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

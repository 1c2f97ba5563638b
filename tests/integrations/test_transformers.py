"""Language models of Transformers with lazy logits: their own loss and gradients, in all that surrounds a training."""

from __future__ import annotations

import copy
import functools
import math
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

EXTRA = "not installed: it comes with the extra 'transformers'"
transformers = pytest.importorskip("transformers", reason=f"transformers is {EXTRA}")
peft = pytest.importorskip("peft", reason=f"peft is {EXTRA}")

import torchlosses  # noqa: E402
from tests.integrations import language_models as lm  # noqa: E402
from torchlosses.integrations.transformers import (  # noqa: E402
    LazyLogits,
    LazyLogitsCallback,
    apply,
    explain,
    remove,
    statistics,
)

ROOT = Path(__file__).resolve().parents[2]


def named(name: str, config: str, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        return getattr(transformers, name)(getattr(transformers, config)(**options))

    return lambda: lm.build(make)


def llava() -> Any:
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4, "projection_dim": 16}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**vision),
        text_config=transformers.LlamaConfig(**lm.DECODER),
        image_token_index=1,
        vision_feature_layer=-1,
    )
    return lm.build(lambda: transformers.LlavaForConditionalGeneration(config))


def llava_inputs() -> dict[str, Tensor]:
    inputs = lm.language()
    inputs["input_ids"][:, 2:6] = 1  # the places of the picture's patches
    return {**inputs, "pixel_values": lm.pictures(8)}


def gpt2(name: str, **options: Any) -> Callable[[], Any]:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return named(name, "GPT2Config", vocab_size=lm.CLASSES, **sizes, **options)


T5 = {"vocab_size": lm.CLASSES, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
T5 |= {"dropout_rate": 0.0, "decoder_start_token_id": 0}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "output_router_logits": True}
VIT = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
MANY = {"num_labels": lm.LABELS}
CAPPED, SCALED = {"final_logit_softcapping": 5.0}, {"logits_scaling": 8.0}

# Model, inputs, and scale and soft cap as `explain` knows them.
MODELS: dict[str, tuple[Callable[[], Any], Callable[[], dict[str, Tensor]], float, float | None]] = {
    "Gemma 2": (named("Gemma2ForCausalLM", "Gemma2Config", **lm.DECODER, **CAPPED), lm.language, 1.0, 5.0),
    "Cohere": (named("CohereForCausalLM", "CohereConfig", **lm.DECODER, logit_scale=0.25), lm.language, 0.25, None),
    "Granite": (named("GraniteForCausalLM", "GraniteConfig", **lm.DECODER, **SCALED), lm.language, 0.125, None),
    "Qwen 3 MoE": (named("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **lm.DECODER, **MOE), lm.language, 1.0, None),
    "GPT-2": (gpt2("GPT2LMHeadModel"), lm.language, 1.0, None),
    "GPT-2 sequence": (
        gpt2("GPT2ForSequenceClassification", pad_token_id=0, **MANY),
        lambda: {"input_ids": lm.tokens(), "labels": lm.classes(lm.BATCH)},
        1.0,
        None,
    ),
    "T5": (named("T5ForConditionalGeneration", "T5Config", **T5), lm.language, 1.0, None),
    "BERT masked": (named("BertForMaskedLM", "BertConfig", **lm.BERT), lm.language, 1.0, None),
    "BERT token": (
        named("BertForTokenClassification", "BertConfig", **lm.BERT, **MANY),
        lambda: {"input_ids": lm.tokens(), "labels": lm.classes(lm.BATCH, lm.LENGTH)},
        1.0,
        None,
    ),
    "BERT sequence": (
        named("BertForSequenceClassification", "BertConfig", **lm.BERT, **MANY),
        lambda: {"input_ids": lm.tokens(), "labels": lm.classes(lm.BATCH)},
        1.0,
        None,
    ),
    "RoBERTa sequence": (
        named("RobertaForSequenceClassification", "RobertaConfig", **lm.BERT, **MANY),
        lambda: {"input_ids": lm.tokens(), "labels": lm.classes(lm.BATCH)},
        1.0,
        None,
    ),
    "ViT": (
        named("ViTForImageClassification", "ViTConfig", **VIT, num_attention_heads=2, **MANY),
        lambda: {"pixel_values": lm.pictures(8), "labels": lm.classes(lm.BATCH)},
        1.0,
        None,
    ),
    "Llava": (llava, llava_inputs, 1.0, None),
    "Llama": (lm.llama, lm.language, 1.0, None),
    "Llama tied": (lambda: lm.llama(tie_word_embeddings=True), lm.language, 1.0, None),
    "Bart": (
        named("BartForConditionalGeneration", "BartConfig", vocab_size=lm.CLASSES, d_model=16, encoder_layers=1,
              decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, dropout=0.0, encoder_ffn_dim=16,
              decoder_ffn_dim=16),
        lm.language, 1.0, None,
    ),
}  # fmt: skip
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def seen_anew() -> Iterator[None]:
    """What the Trainer and the compiler keep of a process."""
    yield
    torch._dynamo.reset()


class TestModels:
    @each_model
    def test_a_training_step_is_the_models_own(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        in_blocks = functools.partial(torchlosses.linear_cross_entropy, block_rows=64)
        monkeypatch.setattr(torchlosses, "linear_cross_entropy", in_blocks)
        make, inputs, scale, soft_cap = MODELS[name]
        own = lm.step(make(), inputs())
        model = apply(make(), on_fallback="raise")
        with lm.rows_of_logits() as sizes:
            lazy = lm.step(model, inputs())
        lm.assert_same_step(lazy, own)
        rows = math.prod(lazy[0].logits.shape[:-1])
        # A batch of 3 is a block of its own, and cannot show that no logits are there.
        assert sizes.largest <= 64 < rows or rows == lm.BATCH
        assert not lazy[0].logits.lazy.made
        explanation = explain(model)
        assert explanation.fused
        assert [(loss.scale, loss.soft_cap) for loss in explanation.losses] == [(scale, soft_cap)]
        assert explanation.head is not None
        assert str(explanation).startswith(type(model).__name__)

    @each_model
    def test_an_evaluation_is_the_models_own(self, name: str) -> None:
        make, inputs, *_ = MODELS[name]
        own, lazy = make().eval(), apply(make(), on_fallback="raise", z_loss=0.3, label_smoothing=0.2).eval()
        with torch.no_grad():
            expected, found = own(**inputs()), lazy(**inputs())
        assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
        assert isinstance(found.logits, Tensor)
        assert type(found) is type(expected)
        assert found.keys() == expected.keys()
        assert_close(found.logits + 0, expected.logits)

    def test_the_sizes_would_show_logits(self) -> None:
        with lm.rows_of_logits() as sizes:
            lm.step(lm.llama(), lm.language())
        assert sizes.largest >= lm.BATCH * (lm.LENGTH - 1)

    def test_auxiliary_loss(self) -> None:
        make, inputs, *_ = MODELS["Qwen 3 MoE"]
        own, lazy = lm.step(make(), inputs())[0], lm.step(apply(make()), inputs())[0]
        assert lazy.aux_loss.item() == own.aux_loss.item() > 0
        assert lazy.loss.item() > lm.step(make(), {**inputs(), "output_router_logits": False})[0].loss.item()

    def test_removed_is_as_before(self) -> None:
        model = lm.llama()
        before = {name: set(vars(module)) for name, module in model.named_modules()}
        remove(apply(model))
        assert {name: set(vars(module)) for name, module in model.named_modules()} == before
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
        assert type(model(**lm.language()).logits) is Tensor
        remove(model)

    def test_applied_again_has_the_new_options(self) -> None:
        model = apply(apply(lm.llama()), logits="none")
        assert len(model.lm_head._forward_pre_hooks) == 1
        assert model.train()(**lm.language()).logits is None

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        own, lazy = (
            lm.step(model.to(dtype), lm.language()) for model in (lm.llama(), apply(lm.llama(), on_fallback="raise"))
        )
        lm.assert_same_step(lazy, own, 1e-5 if dtype == torch.float64 else 2e-2)
        assert lazy[0].logits.dtype == dtype
        loss = lazy[0].loss
        # Transformers casts the logits to float32, and so the loss is.
        assert loss.dtype == torch.float32
        if dtype == torch.bfloat16:
            assert_close(loss, own[0].loss, rtol=1e-4, atol=0)


class TestArguments:
    """What a caller may hand to a model."""

    @pytest.mark.parametrize(
        "given",
        [
            {"num_items_in_batch": torch.tensor(31)},
            {"num_items_in_batch": 31},
            {"num_items_in_batch": torch.tensor([31])},
            {"shift_labels": F.pad(lm.labels(), (0, 1), value=-100)[:, 1:].contiguous()},
            {"labels": torch.full((lm.BATCH, lm.LENGTH), -100)},
            {"logits_to_keep": 5, "labels": lm.labels()[:, -5:]},
        ],
        ids=["number of items", "an int", "as DataParallel makes it", "shift_labels", "all ignored", "logits_to_keep"],
    )
    def test_the_loss(self, given: dict[str, Any]) -> None:
        inputs = {**lm.language(), **given}
        own, lazy = (model.train()(**inputs) for model in (lm.llama(), apply(lm.llama(), on_fallback="raise")))
        assert_close(lazy.loss, own.loss, rtol=1e-5, atol=0, equal_nan=True)
        assert lazy.loss.shape == own.loss.shape

    def test_tuples(self) -> None:
        inputs = {**lm.language(), "return_dict": False, "use_cache": False}
        loss, logits = apply(lm.llama(), on_fallback="raise")(**inputs)
        assert_close(loss, lm.llama()(**inputs)[0])
        assert type(logits) is LazyLogits
        assert [tensor.dim() for tensor in apply(lm.llama(), logits="none").train()(**inputs)] == [0]
        assert [type(tensor) for tensor in apply(lm.llama(), logits="eager")(**inputs)] == [Tensor, Tensor]

    def test_generation_and_one_token(self) -> None:
        own, lazy = lm.llama().eval(), apply(lm.llama(), on_fallback="raise").eval()
        options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        assert_close(lazy.generate(lm.tokens(4), **options), own.generate(lm.tokens(4), **options))
        beams = {**options, "num_beams": 3}
        assert_close(lazy.generate(lm.tokens(4), **beams), own.generate(lm.tokens(4), **beams))

    def test_hidden_states_and_attentions(self) -> None:
        inputs = {**lm.language(), "output_hidden_states": True}
        own, lazy = (model(**inputs) for model in (lm.llama(), apply(lm.llama(), on_fallback="raise")))
        assert lazy.keys() == own.keys()
        assert_close(lazy.hidden_states, own.hidden_states)


class TestOptions:
    @pytest.mark.parametrize("logits", ["lazy", "none", "eager"])
    @pytest.mark.parametrize(("z_loss", "label_smoothing"), [(0.0, 0.0), (0.01, 0.0), (0.0, 0.1), (0.01, 0.2)])
    def test_the_formula(self, logits: Any, z_loss: float, label_smoothing: float) -> None:
        """The plain formula on the model's own logits in float64, and its gradient."""
        model = lm.llama()
        y = model(**lm.language()).logits[:, :-1].flatten(0, 1).double()
        target = lm.labels()[:, 1:].flatten()
        counts = target != -100
        log_sum_exp = y.logsumexp(1)
        nll = log_sum_exp - y.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
        per_row = (1 - label_smoothing) * nll + label_smoothing * (log_sum_exp - y.mean(1)) + z_loss * log_sum_exp**2
        expected = per_row[counts].mean()
        expected.backward()
        own = lm.gradients(model)
        lazy = apply(lm.llama(), logits, "raise", z_loss, label_smoothing)
        output, found = lm.step(lazy, lm.language())
        assert_close(output.loss.double(), expected, rtol=1e-6, atol=0)
        for name, gradient in own.items():
            assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)

    def test_what_the_logits_are(self) -> None:
        inputs = lm.language()
        expected = lm.llama()(**inputs).logits
        eager = apply(lm.llama(), logits="eager").train()(**inputs)
        assert type(eager.logits) is Tensor
        assert_close(eager.logits, expected)
        assert eager.logits.grad_fn is not None
        none = apply(lm.llama(), logits="none").train()
        assert none(**inputs).logits is None
        assert none(**inputs).loss.requires_grad
        # Without a loss the logits are what the model was called for, and in an evaluation somebody may look.
        assert_close(none(input_ids=inputs["input_ids"]).logits.detach() + 0, expected)
        assert_close(none.eval()(**inputs).logits.detach() + 0, expected)

    def test_statistics(self) -> None:
        model = apply(lm.llama(), stats=True, z_loss=0.01, on_fallback="raise").train()
        assert statistics(model) is None
        y = lm.llama()(**lm.language()).logits[:, :-1].flatten(0, 1).double()
        target = lm.labels()[:, 1:].flatten()
        y, target = y[target != -100], target[target != -100]
        for _ in range(2):
            model(**lm.language())
        with torch.no_grad():
            model.eval()(**lm.language())  # does not count
        found = statistics(model)
        assert found is not None
        assert found.tokens == 2 * len(target)
        log_sum_exp, p = y.logsumexp(1), y.softmax(1)
        assert found.token_accuracy == pytest.approx((y.argmax(1) == target).double().mean().item())
        assert found.entropy == pytest.approx(-(p * p.log()).sum(1).mean().item(), rel=1e-6)
        assert found.log_sum_exp == pytest.approx(log_sum_exp.mean().item(), rel=1e-6)
        assert found.z_loss == pytest.approx(0.01 * log_sum_exp.square().mean().item(), rel=1e-6)
        assert statistics(model) is None

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"logits": "some"}, "logits must be one of 'lazy', 'none', 'eager'"),
            ({"on_fallback": "no"}, "on_fallback must be one of"),
            ({"z_loss": -1.0}, "z_loss must be finite and not negative"),
            ({"z_loss": math.nan}, "z_loss must be finite and not negative"),
            ({"label_smoothing": 1.5}, "label_smoothing must be between 0.0 and 1.0"),
        ],
    )
    def test_wrong_options(self, options: dict[str, Any], message: str) -> None:
        for function in (functools.partial(apply, lm.llama()), LazyLogitsCallback):
            with pytest.raises(ValueError, match=message):
                function(**options)
        with pytest.raises(TypeError, match=r"z_loss must be a float, but got '0\.1'"):
            LazyLogitsCallback(z_loss="0.1")  # type: ignore[arg-type]

    def test_wrong_models(self) -> None:
        with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, but got str"):
            apply("a model")  # type: ignore[type-var]
        for function in (explain, statistics):
            with pytest.raises(ValueError, match=r"call .*apply"):
                function(lm.llama())
        with pytest.raises(ValueError, match="stats=True"):
            statistics(apply(lm.llama()))


class ScaledHead(nn.Linear):
    """A head that is more than its product: its scale has a gradient of its own."""

    def __init__(self) -> None:
        super().__init__(lm.WIDTH, lm.CLASSES, bias=False)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.scale


def with_head(head: Callable[[], nn.Module]) -> Any:
    model = lm.llama()
    torch.manual_seed(5)
    model.set_output_embeddings(head())
    return model


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return (x * x).mean()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * 2 * x / x.numel()


def z(logits: Any) -> Tensor:
    logits = logits.clone()
    logits[..., 3] = -1.0
    return logits.logsumexp(-1).mean()


def divided(logits: Any) -> Tensor:
    logits.div_(2.0)
    return F.cross_entropy(logits.flatten(0, 1), lm.tokens().flatten())


LOSSES: dict[str, Callable[[Any], Tensor]] = {
    "log_softmax": lambda y: F.nll_loss(F.log_softmax(y, -1).flatten(0, 1), lm.tokens().flatten()),
    "sum": lambda y: y.square().sum(),
    "cat": lambda y: torch.cat([y, 2 * y], -1).exp().mean(),
    "einsum": lambda y: torch.einsum("btc,btc->bt", y, y).mean(),
    "getitem of a class": lambda y: y[..., 3].mean() + y[:, 2, 5].sum(),
    "a Function": Squared.apply,
    "in place": z,
    "in place and then the loss": divided,
    "transposed": lambda y: F.cross_entropy(y.transpose(1, 2), lm.tokens()),
    "product with a tensor": lambda y: F.cross_entropy((y * torch.tensor(1.5)).flatten(0, 1), lm.tokens().flatten()),
    "after the cap": lambda y: F.cross_entropy((torch.tanh(torch.tanh(y / 2))).flatten(0, 1), lm.tokens().flatten()),
    "property": lambda y: y.mT.square().mean(),
    "right operand": lambda y: (torch.ones(lm.CLASSES) - y).square().mean(),
    "arithmetic of two": lambda y: (y * y + y / (1 + y.abs())).mean(),
}


class TestFallbacks:
    @pytest.mark.parametrize("head", [ScaledHead, lambda: nn.Sequential(nn.Linear(lm.WIDTH, lm.CLASSES))])
    def test_an_unknown_head(self, head: Callable[[], nn.Module]) -> None:
        own = lm.step(with_head(head), lm.language())
        with pytest.warns(UserWarning, match=r"head: (ScaledHead|Sequential) is not a plain linear layer"):
            model = apply(with_head(head))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # one warning is enough
            lm.assert_same_step(lm.step(model, lm.language()), own, 0)
        assert not explain(model).fused
        with pytest.raises(RuntimeError, match="on_fallback='raise'"):
            apply(with_head(head), on_fallback="raise")

    def test_a_head_that_is_not_there(self) -> None:
        model = transformers.LlamaModel(transformers.LlamaConfig(**lm.DECODER))
        with pytest.warns(UserWarning, match="head: no output head was found"):
            apply(model)
        assert explain(model).head is None

    def test_a_head_that_is_not_called(self) -> None:
        class Another(transformers.LlamaForCausalLM):
            def forward(self, input_ids: Tensor, labels: Tensor) -> Any:  # type: ignore[override]
                x = self.model(input_ids).last_hidden_state
                logits = F.linear(x, self.lm_head.weight)
                loss = self.loss_function(logits, labels, lm.CLASSES)
                return transformers.modeling_outputs.CausalLMOutput(loss=loss, logits=logits)

        model = apply(lm.build(lambda: Another(transformers.LlamaConfig(**lm.DECODER))))
        with pytest.warns(UserWarning, match="without calling a head that is known"):
            lm.step(model, lm.language())

    @pytest.mark.parametrize("name", LOSSES)
    def test_an_unknown_operation(self, name: str) -> None:
        loss = LOSSES[name]
        found = []
        for model in (lm.llama(), apply(lm.llama(), on_fallback="ignore")):
            value = loss(model(input_ids=lm.tokens()).logits)
            value.backward()
            found.append((value.detach(), lm.gradients(model)))
        (own, own_gradients), (lazy, lazy_gradients) = found
        assert type(lazy) is Tensor
        assert_close(lazy, own, rtol=1e-5, atol=0)
        assert lazy_gradients.keys() == own_gradients.keys()
        largest = max(gradient.abs().max().item() for gradient in own_gradients.values())
        for place, gradient in own_gradients.items():
            assert_close(lazy_gradients[place], gradient, rtol=0, atol=1e-5 * largest)

    def test_one_warning_names_the_operation(self) -> None:
        model = apply(lm.llama())
        logits = model(input_ids=lm.tokens()).logits
        with pytest.warns(UserWarning, match="softmax: this operation takes logits that exist"):
            logits.softmax(-1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logits.softmax(-1)
            model(input_ids=lm.tokens()).logits.softmax(-1)
            with torch.no_grad():  # nothing is lost where nothing is trained
                model(input_ids=lm.tokens()).logits.argmax(-1)
        assert list(explain(model).fallbacks) == ["softmax"]
        with pytest.raises(RuntimeError, match=r"argmax.*on_fallback='raise'"):
            apply(model, on_fallback="raise")(input_ids=lm.tokens()).logits.argmax(-1)

    def test_a_loss_that_is_told_more_than_the_models_is_told_it_without_the_fusion_too(self) -> None:
        expected = lm.step(apply(lm.llama(), z_loss=0.05, on_fallback="raise"), lm.language())[0].loss
        model = apply(lm.llama(), z_loss=0.05, on_fallback="ignore").train()
        logits = model(input_ids=lm.tokens()).logits
        logits.mul_(1.0)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), lm.labels()[:, 1:].flatten())
        assert list(explain(model).fallbacks) == ["mul_"]
        assert_close(loss, expected)
        with pytest.warns(UserWarning, match=r"softmax: .* is the model's own, without z_loss, stats"):
            apply(model, z_loss=0.05, stats=True)(input_ids=lm.tokens()).logits.softmax(-1)

    def test_gradients_of_logits_that_are_not_there(self) -> None:
        output = apply(lm.llama(), on_fallback="ignore").train()(**lm.language())
        with pytest.raises(RuntimeError, match="retain_grad: a loss was already computed without these logits"):
            output.logits.retain_grad()
        with pytest.raises(RuntimeError, match="register_hook"):
            output.logits.register_hook(print)
        # Before the loss it works, and makes the logits.
        own, lazy = (
            model(input_ids=lm.tokens()).logits for model in (lm.llama(), apply(lm.llama(), on_fallback="ignore"))
        )
        for logits in (own, lazy):
            logits.retain_grad()
            F.cross_entropy(logits.flatten(0, 1), lm.tokens().flatten()).backward()
        assert_close(lazy.grad, own.grad)

    def test_a_stale_view(self) -> None:
        logits = apply(lm.llama(), on_fallback="ignore")(input_ids=lm.tokens()).logits
        rows = logits[:, 1:]
        logits.div_(2)
        with pytest.raises(RuntimeError, match="changed in place"):
            rows.softmax(-1)

    def test_second_derivatives(self) -> None:
        """Of the loss, and through the derivative that autograd takes of lazy logits themselves."""
        for loss_of in (lambda y: F.cross_entropy(y.flatten(0, 1), lm.tokens().flatten()), Squared.apply):
            found = []
            for model in (lm.llama(), apply(lm.llama(), on_fallback="ignore")):
                model.double()
                # Of the head alone: a fused attention has no second derivative.
                features = model.model(lm.tokens()).last_hidden_state.detach().requires_grad_()
                loss = loss_of(model.lm_head(features))
                (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
                found.append(torch.autograd.grad(gradient.square().sum(), [features, model.lm_head.weight]))
            assert_close(found[1], found[0])


class TestLazyLogits:
    """The Tensor that stands for the logits."""

    def logits(self) -> Any:
        return apply(lm.llama(), on_fallback="raise").train()(input_ids=lm.tokens()).logits

    def test_is_a_tensor_of_the_logits_shape(self) -> None:
        y = self.logits()
        assert isinstance(y, Tensor)
        assert y.shape == (lm.BATCH, lm.LENGTH, lm.CLASSES)
        assert (y.dtype, y.device, y.ndim, y.dim(), len(y)) == (torch.float32, torch.device("cpu"), 3, 3, lm.BATCH)
        assert (y.size(-1), y.numel(), y.requires_grad, y.is_leaf) == (lm.CLASSES, y.shape.numel(), True, False)
        assert y.stride() == (lm.LENGTH * lm.CLASSES, lm.CLASSES, 1)
        assert y.is_contiguous()
        assert y.is_floating_point()
        assert torch.is_floating_point(y)
        assert not y.lazy.made
        assert "LazyLogits(shape=(3, 90, 131)" in repr(y)

    @pytest.mark.parametrize(
        "operate",
        [
            lambda y: y.float(),
            lambda y: y.double(),
            lambda y: y.to(torch.float64),
            lambda y: y.to("cpu"),
            lambda y: y.to(device="cpu", dtype=torch.float64),
            lambda y: y[:, :-1].contiguous(),
            lambda y: y[..., :-1, :],
            lambda y: y[1],
            lambda y: y[1, 3:7],
            lambda y: y[:, ::2, :],
            lambda y: y[:, None],
            lambda y: y[torch.arange(3), torch.tensor([4, 0, 2])],
            lambda y: y[lm.labels() != -100],
            lambda y: y[torch.tensor([True, False, True])],
            lambda y: y.view(-1, lm.CLASSES),
            lambda y: y.view(-1, y.shape[-1])[5:],
            lambda y: y.reshape((9, 30, lm.CLASSES)),
            lambda y: y.view(9, 30, -1),
            lambda y: y.flatten(0, 1),
            lambda y: y * 0.5,
            lambda y: 0.5 * y,
            lambda y: y / 4,
            lambda y: 30.0 * torch.tanh(y / 30.0),
            lambda y: (y / 30.0).tanh().mul(30),
            lambda y: y + torch.linspace(0, 1, lm.CLASSES),
            lambda y: y.add(torch.linspace(0, 1, lm.CLASSES).view(1, 1, -1)),
            lambda y: y.clone(),
            lambda y: (2 * y.double() / 3)[:, 2:].reshape(-1, lm.CLASSES),
        ],
    )
    def test_what_needs_no_logits(self, operate: Callable[[Any], Any]) -> None:
        found = operate(self.logits())
        assert type(found) is LazyLogits
        assert not found.lazy.made
        expected = operate(lm.llama()(input_ids=lm.tokens()).logits)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        with torch.no_grad():
            assert_close(torch.add(found.lazy.notes and found.detach(), 0), expected)
        # And its loss, where the classes are last.
        target = torch.randint(lm.CLASSES, found.shape[:-1]).flatten()
        loss = F.cross_entropy(found.reshape(-1, lm.CLASSES), target)
        own = F.cross_entropy(expected.reshape(-1, lm.CLASSES), target)
        assert loss.dtype == own.dtype
        assert_close(loss, own, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_the_options_of_cross_entropy(self, reduction: str) -> None:
        target = lm.labels().flatten()
        weight = torch.linspace(0.5, 2, lm.CLASSES)
        options: dict[str, Any] = {
            "weight": weight,
            "reduction": reduction,
            "label_smoothing": 0.1,
            "ignore_index": -100,
        }
        y, own = (logits.flatten(0, 1) for logits in (self.logits(), lm.llama()(input_ids=lm.tokens()).logits))
        assert_close(F.cross_entropy(y, target, **options), F.cross_entropy(own, target, **options))
        assert_close(nn.CrossEntropyLoss(**options)(y, target), F.cross_entropy(own, target, **options))
        more = {**options, "z_loss": 0.1, "return_stats": True}
        (loss, found), (expected, stats) = (torchlosses.cross_entropy(logits, target, **more) for logits in (y, own))
        assert_close(loss, expected)
        assert_close(tuple(found), tuple(stats))
        probabilities = torch.rand_like(own).softmax(1)
        assert_close(F.cross_entropy(y, probabilities), F.cross_entropy(own, probabilities))
        assert not y.lazy.made

    def test_copies_hold_values(self) -> None:
        with torch.no_grad():
            y = self.logits()
        expected = lm.llama()(input_ids=lm.tokens()).logits.detach()
        assert_close(pickle.loads(pickle.dumps(y)), expected)
        assert_close(copy.deepcopy(y), expected)
        assert_close(torch.from_numpy(y.numpy()), expected)
        assert y[0, 0, 0].item() == pytest.approx(expected[0, 0, 0].item())
        assert y[0, 0].tolist() == pytest.approx(expected[0, 0].tolist(), abs=1e-6)
        assert_close(torch.stack(list(y)), expected)

    def test_detached(self) -> None:
        y = self.logits().detach()
        assert not y.requires_grad
        assert not F.cross_entropy(y.flatten(0, 1), lm.tokens().flatten()).requires_grad

    def test_no_gradient_where_none_was_recorded(self) -> None:
        model = apply(lm.llama())
        with torch.no_grad():
            y = model(input_ids=lm.tokens()).logits
        assert not y.requires_grad
        assert not y.softmax(-1).requires_grad
        assert not F.cross_entropy(y.flatten(0, 1), lm.tokens().flatten()).requires_grad


def adapted(targets: list[str], apply_first: bool = False, **options: Any) -> Any:
    """Llama with LoRA adapters that do something from the start."""
    config = {"target_modules": targets, "r": 4, "lora_alpha": 6, "init_lora_weights": False, **options}
    torch.manual_seed(4)
    model = lm.llama()
    if apply_first:
        apply(model, on_fallback="raise")
    return peft.get_peft_model(model, peft.LoraConfig(**config)).train()


class TestAdapters:
    @pytest.mark.parametrize("apply_first", [False, True])
    @pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "lm_head"]], ids=["body", "body and head"])
    @pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.thorough)])
    def test_lora(self, targets: list[str], apply_first: bool, compiled: bool) -> None:
        if compiled and (apply_first or "lm_head" not in targets):
            pytest.skip("compiled once, with the adapter on the head")
        own = lm.step(adapted(targets), lm.language())
        model = adapted(targets, apply_first)
        if not apply_first:
            apply(model, on_fallback="raise")
        if compiled:
            # The hooks are on the adapter before the compiler looks.
            model(**lm.language())
        call = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else None
        lazy = lm.step(model, lm.language(), call)
        lm.assert_same_step(lazy, own)
        assert explain(model).losses[-1].adapters == ("lm_head" in targets)
        assert explain(model).fused

    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    def test_several_adapters_with_dropout(self, dropout: float) -> None:
        """The dropout draws the same in both, as they draw in the same order."""
        steps = []
        for mode in ("own", "lazy"):
            model = adapted(["lm_head"], lora_dropout=dropout)
            torch.manual_seed(6)
            model.add_adapter("second", peft.LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False))
            model.base_model.set_adapter(["default", "second"])
            if mode == "lazy":
                apply(model, on_fallback="raise")
            torch.manual_seed(7)
            steps.append(lm.step(model, lm.language()))
        lm.assert_same_step(steps[1], steps[0])
        assert explain(model).losses[-1].adapters == 2

    def test_switched_off_and_merged(self) -> None:
        own, lazy = adapted(["lm_head"]), apply(adapted(["lm_head"]), on_fallback="raise")
        for model in (own, lazy):
            with model.disable_adapter(), torch.no_grad():
                model.off = model(**lm.language()).loss
            model.merge_adapter()
            with torch.no_grad():
                model.merged_loss = model(**lm.language()).loss
        assert_close(lazy.off, own.off)
        assert_close(lazy.merged_loss, own.merged_loss)
        assert (own.off - own.merged_loss).abs() > 1e-2

    def test_dora_gives_its_own_result(self) -> None:
        own = lm.step(adapted(["lm_head"], use_dora=True), lm.language())
        model = apply(adapted(["lm_head"], use_dora=True), on_fallback="ignore")
        lm.assert_same_step(lm.step(model, lm.language()), own)
        assert not explain(model).fused

    @pytest.mark.parametrize("apply_first", [False, True])
    def test_a_head_that_is_trained_and_saved_beside_the_adapters(self, apply_first: bool, tmp_path: Path) -> None:
        own = lm.step(adapted(["q_proj"], modules_to_save=["lm_head"]), lm.language())
        model = adapted(["q_proj"], apply_first, modules_to_save=["lm_head"])
        model = model if apply_first else apply(model, on_fallback="raise")
        lm.assert_same_step(lm.step(model, lm.language()), own)
        assert explain(model).fused
        assert any("modules_to_save" in name for name in own[1])
        model.save_pretrained(tmp_path, save_embedding_layers=False)
        assert peft.PeftModel.from_pretrained(lm.llama(), tmp_path)(**lm.language()).loss == own[0].loss

    def test_a_mixed_precision_adapter(self) -> None:
        """Adapters are float32 on a bfloat16 model."""
        steps = []
        for mode in ("own", "lazy"):
            model = adapted(["lm_head"])
            for name, parameter in model.named_parameters():
                if "lora" not in name:
                    parameter.data = parameter.data.bfloat16()
            model = apply(model, on_fallback="raise") if mode == "lazy" else model
            steps.append(lm.step(model, lm.language()))
        lm.assert_same_step(steps[1], steps[0], 2e-2)

    def test_another_vocabulary(self) -> None:
        """A head that is exchanged after `apply` is found at the next call."""
        model = apply(lm.llama(), on_fallback="raise")
        own = lm.llama()
        for each in (model, own):
            torch.manual_seed(8)
            each.resize_token_embeddings(lm.CLASSES + 5, mean_resizing=False)
        lm.assert_same_step(lm.step(model, lm.language()), lm.step(own, lm.language()))
        assert len(explain(model).losses) == 1


OLD_COMPILER = torch.__version__.startswith("2.10.")
compiles = pytest.mark.skipif(OLD_COMPILER, reason="test_the_compiler_of_torch_2_10 says what that one does")


class TestAround:
    """What a training is surrounded with."""

    @pytest.mark.skipif(not OLD_COMPILER, reason="of torch 2.10")
    def test_the_compiler_of_torch_2_10(self) -> None:
        """It makes the logits, and that is said, with what is lost."""
        make, inputs, *_ = MODELS["Gemma 2"]
        model = apply(make(), stats=True)
        with pytest.warns(UserWarning, match=r"compiler of torch 2\.10 .*without stats"):
            found = lm.step(model, inputs(), torch.compile(model, fullgraph=True, backend="aot_eager"))
        lm.assert_same_step(found, lm.step(make(), inputs()))
        assert type(found[0].logits) is Tensor
        assert not explain(model).fused
        torch.compiler.reset()
        model = apply(make(), on_fallback="raise")
        with pytest.raises(Exception, match=r"compiler of torch 2\.10 .*on_fallback='raise'"):
            torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs())
        logits, target = apply(lm.llama())(input_ids=lm.tokens()).logits, lm.tokens()
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(lambda x: F.cross_entropy(x.flatten(0, 1), target.flatten()), fullgraph=True)(logits)

    @compiles
    def test_compiled_in_one_graph(self) -> None:
        make, inputs, *_ = MODELS["Gemma 2"]
        own = lm.step(make(), inputs())
        model = apply(make(), on_fallback="raise", stats=True)
        lazy = lm.step(model, inputs(), torch.compile(model, fullgraph=True, backend="aot_eager"))
        lm.assert_same_step(lazy, own)
        assert type(lazy[0].logits) is LazyLogits
        assert_close(lazy[0].logits.detach() + 0, own[0].logits.detach())
        assert explain(model).fused
        found = statistics(model)
        assert found is not None
        assert found.tokens == (inputs()["labels"][:, 1:] != -100).sum()

    @compiles
    @pytest.mark.thorough
    def test_a_compiled_step_with_a_loss_of_its_own(self) -> None:
        def loss_of(model: nn.Module, **inputs: Tensor) -> Tensor:
            logits = model(input_ids=inputs["input_ids"]).logits
            return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), inputs["labels"][:, 1:].flatten())

        own = lm.llama()
        expected = loss_of(own, **lm.language())
        expected.backward()
        for whole in (False, True):
            model = apply(lm.llama(), on_fallback="raise")
            # The loss in the compiled region, or behind it.
            compiled: Any = torch.compile(loss_of if whole else model, fullgraph=True, backend="aot_eager")
            loss = compiled(model, **lm.language()) if whole else loss_of(compiled, **lm.language())
            loss.backward()
            assert_close(loss, expected)
            for name, gradient in lm.gradients(own).items():
                assert_close(lm.gradients(model)[name], gradient, rtol=1e-4, atol=1e-6)

    @compiles
    def test_logits_as_the_input_of_a_compiled_function(self) -> None:
        @torch.compile(fullgraph=True, backend="aot_eager")
        def loss_of(logits: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(logits.flatten(0, 1), target.flatten()) + logits.float()[0].mean()

        found = []
        for model in (lm.llama(), apply(lm.llama(), on_fallback="ignore")):
            loss = loss_of(model(input_ids=lm.tokens()).logits, lm.tokens())
            loss.backward()
            found.append((loss.detach(), *lm.gradients(model).values()))
        assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)

    @compiles
    @pytest.mark.thorough
    @pytest.mark.parametrize("mode", ["none", "eager"])
    def test_compiled_with_other_logits(self, mode: Any) -> None:
        model = apply(lm.llama(), logits=mode).train()
        output = torch.compile(model, fullgraph=True, backend="aot_eager")(**lm.language())
        assert type(output.logits) is (type(None) if mode == "none" else Tensor)

    @compiles
    @pytest.mark.thorough
    def test_a_fallback_in_a_compiled_region_is_told(self) -> None:
        model = apply(lm.llama())
        compiled = torch.compile(
            lambda ids: model(input_ids=ids).logits.softmax(-1), fullgraph=True, backend="aot_eager"
        )
        with pytest.warns(UserWarning, match="softmax"):
            p = compiled(lm.tokens())
        assert_close(p, lm.llama()(input_ids=lm.tokens()).logits.softmax(-1))
        p.square().sum().backward()
        assert model.lm_head.weight.grad is not None

    @pytest.mark.parametrize("inside", [True, False], ids=["the model's loss", "a loss outside of autocast"])
    def test_autocast(self, inside: bool) -> None:
        steps, of_rows = [], []
        for model in (lm.llama(), apply(lm.llama(), on_fallback="raise")):

            def call(model: Any = model, **inputs: Tensor) -> Any:
                with torch.autocast("cpu", torch.bfloat16):
                    output = model(**inputs if inside else {"input_ids": inputs["input_ids"]})
                assert output.logits.dtype == torch.bfloat16
                if not inside:
                    rows = output.logits[:, :-1].flatten(0, 1)
                    target = inputs["labels"][:, 1:].flatten()
                    output.loss = F.cross_entropy(rows.float(), target)
                    with torch.no_grad():
                        of_rows.append(F.cross_entropy(rows.float(), target, reduction="none"))
                return output

            steps.append(lm.step(model, lm.language(), call))
        lm.assert_same_step(steps[1], steps[0], 1e-2)
        assert_close(steps[1][0].loss, steps[0][0].loss, rtol=1e-5, atol=0)
        if of_rows:
            # Float32 products would be off by the rounding of bfloat16 logits, 1e-2 in a row.
            assert (of_rows[1] - of_rows[0]).abs().mean() < 1e-4

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing(self, reentrant: bool) -> None:
        own = lm.step(lm.llama(), lm.language())
        model = apply(lm.llama(), on_fallback="raise")
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        lm.assert_same_step(lm.step(model, lm.language()), own)

    def test_the_whole_model_in_a_checkpoint(self) -> None:
        own = lm.step(lm.llama(), lm.language())
        model = apply(lm.llama(), on_fallback="raise")

        def call(**inputs: Tensor) -> Any:
            return torch.utils.checkpoint.checkpoint(lambda: model(**inputs), use_reentrant=False)

        lm.assert_same_step(lm.step(model, lm.language(), call), own)

    def test_saving_and_loading(self, tmp_path: Path) -> None:
        model = apply(lm.llama(), on_fallback="raise", z_loss=0.1)
        expected = model(**lm.language()).loss
        model.save_pretrained(tmp_path)
        assert_close(transformers.LlamaForCausalLM.from_pretrained(tmp_path).state_dict(), lm.llama().state_dict())
        assert model.state_dict().keys() == lm.llama().state_dict().keys()
        torch.save(model, tmp_path / "whole.pt")
        for copied in (copy.deepcopy(model), torch.load(tmp_path / "whole.pt", weights_only=False)):
            output, found = lm.step(copied, lm.language())
            assert type(output.logits) is LazyLogits
            assert_close(output.loss, expected)
            # The copy's own weights were used, not the first model's.
            assert model.lm_head.weight.grad is None
            assert found["lm_head.weight"].abs().sum() > 0
            assert explain(copied).losses == explain(model).losses

    def test_functional_call_and_torch_func(self) -> None:
        own, lazy = lm.llama(), apply(lm.llama(), on_fallback="raise")

        def loss_of(model: Any, parameters: Any) -> Tensor:
            return torch.func.functional_call(model, parameters, (), {**lm.language(), "use_cache": False}).loss

        found = [torch.func.grad(functools.partial(loss_of, m))(dict(m.named_parameters())) for m in (own, lazy)]
        for name, gradient in found[0].items():
            assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6)

    @pytest.mark.thorough
    def test_two_processes(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "tests.integrations.language_model_processes", str(tmp_path)]
        environments = [{**os.environ, "RANK": str(rank), "OMP_NUM_THREADS": "1"} for rank in range(2)]
        processes = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            for environment in environments
        ]
        try:
            errors = [process.communicate(timeout=240)[1].decode() for process in processes]
        finally:
            for process in processes:
                process.kill()
        failures = [path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("failure-*"))]
        assert [process.returncode for process in processes] == [0, 0], "\n".join(failures or errors)


class Rows(torch.utils.data.Dataset):
    """Sequences of unequal lengths."""

    def __init__(self, count: int = 12) -> None:
        generator = torch.Generator().manual_seed(9)
        lengths = torch.randint(3, 20, (count,), generator=generator).tolist()
        self.rows = [torch.randint(3, lm.CLASSES, (length,), generator=generator) for length in lengths]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[place], "labels": self.rows[place]}


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    def padded(name: str, value: int) -> Tensor:
        return nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=value)

    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}


def train(model: Any, folder: Path, callbacks: list[Any] | None = None, **options: Any) -> Any:
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "optim": "sgd",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        **{name: value for name, value in options.items() if name not in ("compute_metrics", "eval_dataset")},
    }
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=Rows(),
        eval_dataset=options.get("eval_dataset"),
        data_collator=collate,
        callbacks=callbacks,
        compute_metrics=options.get("compute_metrics"),
    )
    trainer.train()
    return trainer


class TestTrainer:
    @pytest.mark.parametrize(
        "logits", ["lazy", *(pytest.param(mode, marks=pytest.mark.thorough) for mode in ("none", "eager"))]
    )
    def test_accumulation_over_unequal_lengths(self, logits: Any, tmp_path: Path) -> None:
        own = train(lm.llama(), tmp_path)
        lazy = train(apply(lm.llama(), logits=logits, on_fallback="raise"), tmp_path)
        assert_close(dict(lazy.model.state_dict()), dict(own.model.state_dict()), rtol=0, atol=1e-5)
        before = lm.llama().state_dict()
        changed = max((before[name] - value).abs().max() for name, value in own.model.state_dict().items())
        assert changed > 1e-3
        losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (own, lazy)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        assert len(losses[0]) == 4

    @pytest.mark.parametrize(
        "options",
        [
            {"bf16": True},
            pytest.param({"torch_compile": True, "torch_compile_backend": "aot_eager"}, marks=pytest.mark.thorough),
        ],
    )
    def test_mixed_precision_and_compiled(self, options: dict[str, Any], tmp_path: Path) -> None:
        own, lazy = (
            train(model, tmp_path, **options) for model in (lm.llama(), apply(lm.llama(), on_fallback="raise"))
        )
        tolerance = 1e-3 if "bf16" in options else 1e-5
        assert_close(dict(lazy.model.state_dict()), dict(own.model.state_dict()), rtol=0, atol=tolerance)

    def test_callback(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        callback = LazyLogitsCallback(on_fallback="raise", z_loss=1e-3)
        trainer = train(lm.llama(), tmp_path, [callback])
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert len(logs) == 4
        for log in logs:
            assert 0 <= log["token_accuracy"] <= 1
            assert 0 < log["entropy"] < math.log(lm.CLASSES)
            assert log["z_loss"] > 0
        assert "token_accuracy" in capsys.readouterr().out
        # The first step's numbers, from the logits of a model that has not been trained.
        plain = train(lm.llama(), tmp_path, max_steps=1)
        assert logs[0]["loss"] == pytest.approx(plain.state.log_history[0]["loss"] + logs[0]["z_loss"], rel=1e-4)

    @pytest.mark.parametrize("logits", ["lazy", "none"])
    def test_evaluation_with_metrics(self, logits: Any, tmp_path: Path) -> None:
        def metrics(prediction: Any) -> dict[str, float]:
            logits, labels = prediction
            assert logits.shape[:2] == labels.shape
            hits = (logits.argmax(-1)[:, :-1] == labels[:, 1:])[labels[:, 1:] != -100]
            return {"hits": hits.mean().item(), "sum": logits[labels != -100].sum().item()}

        options: dict[str, Any] = {"compute_metrics": metrics, "eval_dataset": Rows(5), "max_steps": 1}
        own = train(lm.llama(), tmp_path, **options).evaluate()
        lazy = train(apply(lm.llama(), logits=logits, on_fallback="raise"), tmp_path, **options).evaluate()
        for name in ("eval_loss", "eval_hits", "eval_sum"):
            assert lazy[name] == pytest.approx(own[name], rel=1e-4)

    def test_label_smoothing_of_the_trainer_makes_the_logits(self, tmp_path: Path) -> None:
        own = train(lm.llama(), tmp_path, label_smoothing_factor=0.2)
        with pytest.warns(UserWarning, match="log_softmax"):
            lazy = train(apply(lm.llama()), tmp_path, label_smoothing_factor=0.2)
        ours = train(apply(lm.llama(), label_smoothing=0.2, on_fallback="raise"), tmp_path)
        for other in (lazy, ours):
            assert_close(dict(other.model.state_dict()), dict(own.model.state_dict()), rtol=0, atol=1e-5)


def test_the_lightning_module_of_the_page(tmp_path: Path) -> None:
    """Trains as a plain loop does; `make integrations` has Lightning."""
    lightning = pytest.importorskip("lightning", reason="not installed: it comes with the extra 'integrations'")
    page = (ROOT / "docs" / "language_models.md").read_text(encoding="utf-8")
    (code,) = [block for block in page.split("```python\n") if block.startswith("import lightning")]
    names: dict[str, Any] = {}
    exec(code.split("```")[0], names)
    module = names["LanguageModule"](lm.llama())
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the number of workers, and others of Lightning's
        trainer.fit(module, torch.utils.data.DataLoader(lm.tokens(), batch_size=lm.BATCH))
    own = lm.llama().train()
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        own(input_ids=lm.tokens(), labels=lm.tokens()).loss.backward()
        optimizer.step()
    assert_close(dict(module.model.state_dict()), dict(own.state_dict()), rtol=0, atol=1e-5)
    assert explain(module.model).fused

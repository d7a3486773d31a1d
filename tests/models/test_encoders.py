"""Every family on a packed batch, against the stock model on a padded one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertModel,
    PreTrainedModel,
)
from transformers.models.albert.modeling_albert import AlbertLayer

from bertillery.config.section import ConfigError
from bertillery.engine.batch import PackedBatch
from bertillery.models.encoders import (
    FAMILIES,
    choice_logits,
    encode,
    encode_layers,
    family,
    intermediate_size,
    longest_sequence,
    mlm_logits,
    model_inputs,
    sequence_logits,
    span_logits,
    token_logits,
)
from bertillery.models.layers.attention import NAME
from bertillery.models.layers.prepare import prepare_layers
from bertillery.models.load import load, read_config
from pretrain.model import ModelSection
from pretrain.objectives import albert as albert_objective
from tests.corpora import tiny_tokenizer
from tests.models.families import LENGTHS, batch_of, padded_inputs, tiny_config

WORDS = torch.tensor([3, 8, 9, 40, 86])


def stock_words(model: Any, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
    return model(**inputs).logits[mask][WORDS]


def stock_spans(model: Any, inputs: dict[str, Tensor], mask: Tensor) -> Tensor:
    outputs = model(**inputs)
    return torch.stack((outputs.start_logits[mask], outputs.end_logits[mask]), dim=-1)


def stock_choices(model: Any, inputs: dict[str, Tensor], _: Tensor) -> Tensor:
    return model(**{name: value.unflatten(0, (-1, 2)) for name, value in inputs.items()}).logits.flatten()


HEADS: dict[str, tuple[Any, Callable[..., Tensor], Callable[..., Tensor]]] = {
    "sequence": (AutoModelForSequenceClassification, sequence_logits, lambda model, inputs, _: model(**inputs).logits),
    "token": (AutoModelForTokenClassification, token_logits, lambda model, inputs, m: model(**inputs).logits[m]),
    "span": (AutoModelForQuestionAnswering, span_logits, stock_spans),
    "choice": (AutoModelForMultipleChoice, choice_logits, stock_choices),
    "words": (AutoModelForMaskedLM, lambda model, stream, *h: mlm_logits(model, stream, WORDS, *h), stock_words),
}
LABELS = {"sequence": {"num_labels": 3}, "token": {"num_labels": 4}}


def model_of(auto: Any, kind: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return auto.from_config(tiny_config(kind, **settings)).eval()


def use(model: PreTrainedModel, implementation: str) -> PreTrainedModel:
    model.config._attn_implementation = implementation
    return model


def gradients(model: PreTrainedModel, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: gradient for name, gradient in found.items() if gradient.any()}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    # Of the keys' biases, which cancel in the softmax, rounding alone is left.
    rounding = 1e-6 * float(torch.cat([gradient.flatten() for gradient in theirs.values()]).norm())
    for name, gradient in theirs.items():
        assert float((ours[name] - gradient).norm()) < 1e-5 * float(gradient.norm()) + rounding, name


@pytest.mark.parametrize("kind", FAMILIES)
def test_hidden_states_of_all_layers(kind: str):
    model, batch = model_of(AutoModel, kind), batch_of(LENGTHS)
    inputs, mask = padded_inputs(model.config, batch)
    theirs = use(model, "eager")(**inputs, output_hidden_states=True).hidden_states
    weights = torch.randn(len(theirs), batch.input.num_tokens, 24)
    expected = gradients(model, sum((w * h[mask]).sum() for w, h in zip(weights, theirs, strict=True)))
    ours = encode_layers(use(model, NAME), batch.input)
    assert len(ours) == 4
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other[mask], atol=1e-5, rtol=0)
    assert torch.equal(encode(model, batch.input), ours[-1])
    assert_same_gradients(gradients(model, sum((w * h).sum() for w, h in zip(weights, ours, strict=True))), expected)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_logits_and_gradients_equal_the_padded_model(kind: str, head: str):
    auto, logits_of, stock = HEADS[head]
    model, batch = model_of(auto, kind, **LABELS.get(head, {})), batch_of(LENGTHS)
    inputs, mask = padded_inputs(model.config, batch)
    theirs = stock(use(model, "sdpa"), inputs, mask)
    weight = torch.randn_like(theirs)
    expected = gradients(model, (theirs * weight).sum())
    ours = logits_of(use(model, NAME), batch.input)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert_same_gradients(gradients(model, (ours * weight).sum()), expected)
    if head == "words":
        assert torch.equal(logits_of(model, batch.input, encode(model, batch.input)), ours)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = logits_of(model, batch.input)
    assert coarse.dtype == (torch.bfloat16 if head == "words" else torch.float32), "many words: no copy is made"
    assert not torch.equal(coarse, ours)
    assert (coarse - ours).norm() / ours.norm() < 0.05


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_head_drops_out_as_the_stock_head_does(kind: str):
    names = FAMILIES[kind]
    still = dict.fromkeys((*names.hidden_dropout, *names.attention_dropout), 0.0)
    settings = {**still, **dict.fromkeys(names.classifier_dropout, 0.5)}
    model, batch = model_of(AutoModelForSequenceClassification, kind, **settings).train(), batch_of(LENGTHS)
    inputs, _ = padded_inputs(model.config, batch)
    torch.manual_seed(1)
    theirs = use(model, "eager")(**inputs).logits
    torch.manual_seed(1)
    ours = sequence_logits(use(model, NAME), batch.input)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(ours, sequence_logits(model.eval(), batch.input))


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_longest_sequence_fits_and_no_longer_one(kind: str):
    model = use(model_of(AutoModel, kind), NAME)
    longest = longest_sequence(model.config)
    assert longest == (38 if FAMILIES[kind].positions_after_padding else 40)
    assert encode(model, batch_of([longest]).input).shape == (longest, 24)
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        encode(model, batch_of([longest + 1]).input)


def test_token_types_count_where_there_are_any():
    counts = {}
    for kind in FAMILIES:
        model, batch = use(model_of(AutoModel, kind), NAME), batch_of(LENGTHS)
        before = encode(model, batch.input)
        batch.input.token_type_ids.zero_()
        counts[kind] = not torch.equal(before, encode(model, batch.input))
    assert [kind for kind, matters in counts.items() if matters] == ["bert", "albert", "electra"]


def test_a_model_that_packed_batches_are_not_for_is_refused(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"type 't5' cannot read packed batches; give .*: bert, albert, electra, dist"
    ):
        family(AutoConfig.for_model("t5"))
    with pytest.raises(ConfigError, match="is a decoder"):
        family(BertConfig(is_decoder=True))
    with pytest.raises(ConfigError, match="relative positions"):
        encode(BertModel(tiny_config("bert", position_embedding_type="relative_key")), batch_of([3]).input)
    AutoConfig.for_model("gpt2").save_pretrained(tmp_path / "gpt2")
    tiny_config("bert").save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match=r"type 'gpt2' is a decoder; give an encoder of one of these types: bert"):
        read_config(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match=r"type 'bert' is an encoder; give a decoder of one of these types: gpt2"):
        read_config(tmp_path / "bert", roles=("decoder",))


def test_a_decoder_is_described(tmp_path: Path) -> None:
    """GPT-2: its dropouts by name, its width, no token types and no cache; loaded from what its class saved."""
    sizes: dict[str, Any] = {"n_embd": 24, "n_layer": 1, "n_head": 4, "vocab_size": 90, "n_positions": 40}
    stock = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes, bos_token_id=1, eos_token_id=1))
    stock.save_pretrained(tmp_path)
    dropouts = {"hidden_dropout": 0.25, "attention_dropout": 0.125, "classifier_dropout": 0.5}
    model, report = load(AutoModelForCausalLM, tmp_path, roles=("decoder",), **dropouts)
    config: Any = model.config
    assert str(report) == "all weights are the checkpoint's"
    found = config.embd_pdrop, config.resid_pdrop, config.attn_pdrop, config.classifier_dropout
    assert found == (0.25, 0.25, 0.125, 0.5)
    assert family(config).causal
    assert (intermediate_size(config), longest_sequence(config)) == (96, 40)
    assert intermediate_size(AutoConfig.for_model("gpt2", n_inner=7)) == 7
    stream = batch_of(LENGTHS).input
    assert model_inputs(config, stream).keys() == {"input_ids", "position_ids", "layout", "use_cache"}
    assert encode(model, stream).shape == (stream.num_tokens, 24)


def feed_forward(model: PreTrainedModel, batch: PackedBatch) -> list[tuple[Tensor, Tensor]]:
    """What the feed-forward part of each pass through ALBERT's layer computes, and what of it reaches the residual
    connection: (T, H) each."""
    found: list[tuple[Tensor, Tensor]] = []
    computed, attended = [], []
    (layer,) = (each for each in model.modules() if isinstance(each, AlbertLayer))
    hooks = [
        layer.ffn_output.register_forward_hook(lambda _, __, output: computed.append(output[0])),
        layer.attention.register_forward_hook(lambda _, __, output: attended.append(output[0][0])),
        layer.full_layer_layer_norm.register_forward_pre_hook(
            lambda _, inputs: found.append((computed[-1], inputs[0][0] - attended[-1]))
        ),
    ]
    encode(model, batch.input)
    for hook in hooks:
        hook.remove()
    return found


@pytest.fixture(params=["fine-tuning", "pretraining"])
def albert(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    """Where ALBERTs are trained, with dropout in no other place than behind the feed-forward part."""
    plain: dict[str, Any] = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.0}
    if request.param == "fine-tuning":
        model_of(AutoModel, "albert", **plain).save_pretrained(tmp_path)
        model, _ = load(AutoModelForSequenceClassification, tmp_path)
    else:
        size = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
        sizes, tokenizer = ModelSection.model_validate({**size, **plain}), tiny_tokenizer(90)
        torch.manual_seed(0)
        model = albert_objective.build(albert_objective.Config(embedding_size=16), sizes, tokenizer).exported()
        model.config._attn_implementation = NAME
        prepare_layers(model)  # as a stage does
    (layer,) = (each for each in model.modules() if isinstance(each, AlbertLayer))
    encoder: Any = model.base_model
    layer.attention.output_dropout.p = encoder.embeddings.dropout.p = 0.0
    return model


def test_alberts_feed_forward_part_is_dropped_out_as_in_the_original(albert: PreTrainedModel) -> None:
    """Its elements with the hidden dropout's probability, each time others, the rest scaled; none in evaluation."""
    batch, names = batch_of(LENGTHS), list(albert.state_dict())
    passes = feed_forward(albert.train(), batch)
    assert len(passes) == 3
    kept = [(reached.abs() > 1e-6).detach() for _, reached in passes]
    for (computed, reached), there in zip(passes, kept, strict=True):
        assert there.float().mean().item() == pytest.approx(0.5, abs=4 * (0.25 / there.numel()) ** 0.5)
        torch.testing.assert_close(reached[there], 2 * computed[there], rtol=1e-3, atol=1e-5)
    assert not torch.equal(kept[0], kept[1])
    for computed, reached in feed_forward(albert.eval(), batch):
        torch.testing.assert_close(reached, computed, rtol=1e-3, atol=1e-5)
    assert list(albert.state_dict()) == names
    assert type(albert).__module__.startswith("transformers."), "a stock class is exported"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_ignores_the_layout_is_refused(attention: str) -> None:
    """It would let the sequences of a batch see each other, without a sign."""
    model = model_of(AutoModel, "bert")
    model.set_attn_implementation(attention)
    with pytest.raises(ConfigError, match=f"has {attention} attention, in which the sequences .* would see each other"):
        encode(model, batch_of(LENGTHS).input)

"""Optimizer and learning rates, with the expected values of the original code (fidelity, 1.8 and 3.9)."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForPreTraining,
    ElectraConfig,
    ElectraForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from bertillery.config.section import ConfigError
from bertillery.engine.optim import BertAdam, OptimSection, build_optimizer, learning_rate, parameter_groups
from bertillery.models.encoders import FAMILIES
from tests.models.families import tiny_config


def rates(schedule: str, steps: int = 1_000_000, warmup: int = 10_000, **more: str) -> list[float]:
    section = OptimSection.model_validate({"learning_rate": 1e-4, "schedule": schedule, "warmup": warmup, **more})
    rate = learning_rate(section, steps)
    return [rate(t) for t in (0, warmup // 2, warmup - 1, warmup, steps // 2, steps)]


def test_bert_schedule() -> None:
    assert rates("bert") == pytest.approx([0, 5e-5, 9.999e-5, 9.9e-5, 5e-5, 0], abs=1e-12)


def test_electra_schedule() -> None:
    section = OptimSection.model_validate({"learning_rate": 1.0, "schedule": "electra", "warmup": 10_000})
    rate = learning_rate(section, 1_000_000)
    assert [rate(5000), rate(10_000), rate(200_000)] == pytest.approx([0.4975, 0.99, 0.8])


def test_linear_schedule_is_transformers_own() -> None:
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_linear_schedule_with_warmup(optimizer, 10, 100)
    rate = learning_rate(OptimSection.model_validate({"learning_rate": 1, "schedule": "linear", "warmup": 10}), 100)
    for step in range(100):
        assert rate(step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates("linear")[4] == pytest.approx(5.0505e-5, rel=1e-4)


def test_other_schedules() -> None:
    assert rates("cosine")[3:] == pytest.approx([1e-4, 0.5e-4 * (1 + math.cos(math.pi * 49 / 99)), 0], abs=1e-12)
    assert rates("inverse_sqrt")[3:] == pytest.approx([1e-4, 1e-4 * math.sqrt(1 / 50), 1e-5])
    assert rates("warmup_stable_decay", cooldown="20%")[3:] == pytest.approx([1e-4, 1e-4, 0], abs=1e-12)
    section = OptimSection.model_validate({"learning_rate": 1, "schedule": "warmup_stable_decay", "cooldown": "20%"})
    assert learning_rate(section, 100)(90) == pytest.approx(0.5)


def test_warmup_as_share_and_refused() -> None:
    section = OptimSection.model_validate({"learning_rate": 1.0, "schedule": "linear", "warmup": "10%"})
    assert learning_rate(section, 200)(10) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="more than the run's 100"):
        learning_rate(OptimSection.model_validate({"warmup": 101}), 100)


def bert() -> BertForPreTraining:
    return BertForPreTraining(
        BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    )


def test_groups_partition_the_parameters() -> None:
    model = bert()
    decayed, exempt = parameter_groups(model, 0.01)
    ids = [id(p) for group in (decayed, exempt) for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in model.parameters()}
    assert all(p.ndim < 2 for p in exempt["params"])
    assert all(p.ndim == 2 for p in decayed["params"])
    assert id(model.bert.embeddings.word_embeddings.weight) in {id(p) for p in decayed["params"]}
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)


def test_first_update_without_bias_correction() -> None:
    """|update| = 3.1623 lr for every scalar with a gradient (1 lr if it were corrected)."""
    for algorithm, expected in (("bert_adam", math.sqrt(10)), ("adamw", 1.0)):
        parameter = nn.Linear(4, 4)
        section = OptimSection.model_validate({"algorithm": algorithm, "weight_decay": 0, "epsilon": 1e-12})
        optimizer = build_optimizer(section, parameter)
        before = parameter.weight.detach().clone()
        parameter.weight.grad = torch.randn(4, 4)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 1e-3
        optimizer.step()
        moved = (parameter.weight.detach() - before).abs() / 1e-3
        torch.testing.assert_close(moved, torch.full((4, 4), expected), rtol=1e-3, atol=0)


def test_bert_adam_is_the_original_formula() -> None:
    """Against the update written out, over steps enough for a bias correction to have shown."""
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(50))
    optimizer = BertAdam([{"params": [parameter], "weight_decay": 0.01}], lr=1e-2, betas=(0.9, 0.999), eps=1e-6)
    w, m, v = parameter.detach().double(), torch.zeros(50).double(), torch.zeros(50).double()
    for step in range(300):
        gradient = torch.randn(50) + 0.3
        parameter.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = rate = 1e-2 * (1 - step / 300)
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        w = w - rate * (m / (v.sqrt() + 1e-6) + 0.01 * w)
    torch.testing.assert_close(parameter.detach().double(), w, rtol=1e-4, atol=1e-5)


def test_constant_gradient_multipliers() -> None:
    """The consequence of the missing correction as published: 6.569 at its largest, 3.241 after 100 updates."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = BertAdam([parameter], lr=1.0, betas=(0.9, 0.999), eps=1e-12)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    moved = []
    for _ in range(100):
        before = parameter.item()
        parameter.grad = torch.ones(1)
        optimizer.step()
        moved.append(before - parameter.item())
    assert [moved[t - 1] for t in (1, 10, 12, 20, 100)] == pytest.approx([3.162, 6.528, 6.569, 6.241, 3.241], abs=2e-3)


@pytest.mark.parametrize(
    ("layers", "decay", "expected"),
    [
        (12, 0.8, {"embeddings": 0.043980, "layer.0.": 0.054976, "layer.11.": 0.64, "classifier": 1.0}),
        (24, 0.9, {"embeddings": 0.064611, "layer.0.": 0.071790, "layer.23.": 0.81, "classifier": 1.0}),
    ],
)
def test_layerwise_learning_rates_are_electras(layers: int, decay: float, expected: dict[str, float]) -> None:
    sizes: dict[str, Any] = {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4, "embedding_size": 2}
    model = ElectraForSequenceClassification(ElectraConfig(vocab_size=8, num_hidden_layers=layers, **sizes))
    groups = parameter_groups(model, 0.01, decay)
    share = {id(parameter): group["rate_share"] for group in groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(share) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        wanted = next((value for part, value in expected.items() if part in name), None)
        if wanted is not None:
            assert share[id(parameter)] == pytest.approx(wanted, rel=2e-5), name
    decayed = {id(parameter) for group in groups if group["weight_decay"] for parameter in group["params"]}
    exempt = {id(parameter) for name, parameter in model.named_parameters() if "bias" in name or "LayerNorm" in name}
    assert decayed.isdisjoint(exempt)
    assert decayed | exempt == share.keys()


def test_what_lies_outside_of_the_encoder_may_have_a_rate_of_its_own() -> None:
    sizes: dict[str, Any] = {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4, "embedding_size": 2}
    model = ElectraForSequenceClassification(ElectraConfig(vocab_size=8, num_hidden_layers=2, **sizes))
    section = OptimSection(learning_rate=2e-5, head_learning_rate=1e-3)
    groups = build_optimizer(section, model).param_groups
    share = {id(parameter): group["rate_share"] for group in groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert share[id(parameter)] == pytest.approx(50.0 if name.startswith("classifier.") else 1.0)


def by_name(model: nn.Module, weight_decay: float, layer_decay: float) -> list[tuple[list[str], float, float]]:
    """Names, decay and share of the rate of each group, by the names that the originals' code looks for."""
    exempt = re.compile(r"LayerNorm|layer_norm|layernorm|bias")
    layer = re.compile(r"\b(?:layer|albert_layer_groups)\.(\d+)\.")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    head = max(int(match[1]) + 1 if (match := layer.search(name)) else 0 for name in names) + 2

    def depth(name: str) -> int:
        match = layer.search(name)
        return head if layer_decay == 1 else int(match[1]) + 1 if match else 0 if "embedding" in name else head

    groups: dict[tuple[int, bool], list[str]] = {}
    for name in sorted(names, key=lambda name: (-depth(name), exempt.search(name) is not None)):
        groups.setdefault((depth(name), exempt.search(name) is None), []).append(name)
    return [
        (names, weight_decay * decayed, layer_decay ** (head - level)) for (level, decayed), names in groups.items()
    ]


def by_structure(model: nn.Module, weight_decay: float, layer_decay: float) -> list[tuple[list[str], float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        ([names[id(each)] for each in group["params"]], group["weight_decay"], group["rate_share"])
        for group in parameter_groups(model, weight_decay, layer_decay)
    ]


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
@pytest.mark.parametrize(
    "head", [AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoModelForQuestionAnswering]
)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("gpt2", "openai-gpt")])
def test_groups_of_known_families_are_those_of_the_originals_names(family: str, head: Any, layer_decay: float) -> None:
    model = nn.ModuleDict({"head": nn.Linear(3, 2), "model": head.from_config(tiny_config(family))})
    assert by_structure(model, 0.01, layer_decay) == by_name(model, 0.01, layer_decay)


def test_two_encoders_with_shared_embeddings_are_grouped_as_by_name() -> None:
    model = nn.ModuleDict(
        {"generator": AutoModel.from_config(tiny_config("bert")), "other": AutoModel.from_config(tiny_config("bert"))}
    )
    model["other"].embeddings = model["generator"].embeddings  # pyright: ignore[reportAttributeAccessIssue]
    assert by_structure(model, 0.01, 0.5) == by_name(model, 0.01, 0.5)


def test_layers_of_a_decoder_are_found_by_its_structure() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=3, n_head=2))
    share = {name: share for names, _, share in by_structure(model, 0.01, 0.5) for name in names}
    assert share["transformer.wte.weight"] == share["transformer.wpe.weight"] == 0.5**5
    assert [share[f"transformer.h.{place}.attn.c_attn.weight"] for place in range(3)] == [0.5**4, 0.5**3, 0.5**2]
    assert share["transformer.ln_f.weight"] == 1
    decayed = {name for names, decay, _ in by_structure(model, 0.01, 1.0) for name in names if decay}
    assert decayed == {name for name, parameter in model.named_parameters() if parameter.ndim == 2}


def test_a_decay_by_layer_needs_layers() -> None:
    class Recurrent(PreTrainedModel):
        config_class = BertConfig

        def __init__(self) -> None:
            super().__init__(BertConfig())
            self.network = nn.LSTM(4, 4)

    with pytest.raises(ConfigError, match=r"optim\.layer_decay: given 0\.8, but Recurrent has no .*layer_decay=1$"):
        build_optimizer(OptimSection(layer_decay=0.8), nn.ModuleList([Recurrent()]))
    build_optimizer(OptimSection(), nn.ModuleList([Recurrent()]))

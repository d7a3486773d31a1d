"""ERNIE: counts to the unit, BERT without its entities, packed = padded, a fixed table beside the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForPreTraining,
)

from bertillery.config.section import ConfigError
from bertillery.engine.batch import Entities, pack_stream
from bertillery.models.encoders import encode
from bertillery.models.families.ernie_thu import ErnieThuConfig, ErnieThuForPreTraining, default_layers
from bertillery.models.layers.attention import NAME

SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 24, "entity_size": 12, "entity_heads": 3, "num_entities": 9,
}  # fmt: skip
LENGTHS = [7, 12, 5]
ENTITIES = [{2: 3, 5: 8}, {}, {4: 1}]
"""By place in the sequence; [CLS] is one, too."""


def tiny(**settings: Any) -> Any:
    torch.manual_seed(0)
    model = ErnieThuForPreTraining(ErnieThuConfig(**SIZES, **settings)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    vectors = torch.randn(9, 12, generator=torch.Generator().manual_seed(1))
    vectors[0] = 0
    model.bert.set_table(vectors, ["a\u2028b\n", *(f"e{row}" for row in range(2, 9))])
    return model


def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(5, 60, sum(LENGTHS))


def packed_states(model: Any, entities: list[dict[int, int]] | None) -> Tensor:
    beside = None
    if entities is not None:
        named = np.zeros(sum(LENGTHS), np.int64)
        for start, each in zip(np.cumsum(LENGTHS) - LENGTHS, entities, strict=True):
            for place, entity in each.items():
                named[start + place] = entity
        beside = Entities.aligned(named, np.array(LENGTHS))
    stream = replace(pack_stream(ids(), np.array(LENGTHS)), beside=beside)
    model.set_attn_implementation(NAME)
    return encode(model, stream)


def padded_states(model: Any, entities: list[dict[int, int]] | None) -> Tensor:
    model.set_attn_implementation("eager")
    longest = max(LENGTHS)
    given, mask = torch.zeros(3, longest, dtype=torch.long), torch.zeros(3, longest, dtype=torch.long)
    linked = torch.zeros(3, longest, dtype=torch.long)
    for row, part in enumerate(np.split(ids(), np.cumsum(LENGTHS)[:-1])):
        given[row, : len(part)], mask[row, : len(part)] = torch.from_numpy(part), 1
        for place, entity in (entities or [{}] * 3)[row].items():
            linked[row, place] = entity
    more = {} if entities is None else {"entity_ids": linked}
    return model.bert(input_ids=given, attention_mask=mask, **more).last_hidden_state[mask > 0]


def test_parameters_of_the_original_size() -> None:
    """Zhang et al. 2019 with the released code's layers: 5 sim, 1 mix, 6 norm."""
    with torch.device("meta"):
        model = ErnieThuForPreTraining(ErnieThuConfig(num_entities=1))
    count = lambda part: sum(parameter.numel() for parameter in part.parameters())  # noqa: E731
    assert count(model) == 114_751_532
    assert count(model.bert) == 114_050_244
    assert count(model.entity_transform) == 77_100
    assert {count(layer) for layer in model.bert.encoder.layer[:5]} == {7_087_872}
    assert count(model.bert.encoder.layer[5]) == 7_705_644
    assert {count(layer) for layer in model.bert.encoder.layer[6:]} == {7_746_244}


def test_layers_of_other_depths() -> None:
    assert default_layers(12) == ["sim"] * 5 + ["mix"] + ["norm"] * 6
    assert [default_layers(number) for number in (4, 2)] == [["sim", "mix", "norm", "norm"], ["mix", "norm"]]
    with pytest.raises(ConfigError, match=r"fusion: given \['sim', 'max'\]; a layer is sim, mix or norm"):
        ErnieThuConfig(num_hidden_layers=2, fusion=["sim", "max"])
    with pytest.raises(ConfigError, match="1 types for 2 layers"):
        ErnieThuConfig(num_hidden_layers=2, fusion=["sim"])


@torch.no_grad()
def test_without_entities_it_is_bert(tmp_path: Path) -> None:
    """A checkpoint of BERT is one of this model, whose bias of the entities is 0; to the bit."""
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if "entit" not in name}
    bert = BertForPreTraining(BertConfig(**sizes)).eval()
    bert.save_pretrained(tmp_path)
    model: Any = ErnieThuForPreTraining.from_pretrained(tmp_path, config=ErnieThuConfig(**SIZES))
    given = torch.from_numpy(ids()[:10])[None]
    assert torch.equal(model(given).prediction_logits, bert(given).prediction_logits)


@pytest.mark.parametrize("entities", [ENTITIES, None], ids=["entities", "none"])
@torch.no_grad()
def test_packed_entities_are_padded_ones(entities: Any) -> None:
    """Only rows with an entity are computed; the original computes all and masks them."""
    model = tiny()
    torch.testing.assert_close(packed_states(model, entities), padded_states(model, entities), atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_entities_change_their_own_sequence_alone() -> None:
    model = tiny()
    before, after = packed_states(model, ENTITIES), packed_states(model, [ENTITIES[0], {}, {4: 2}])
    assert torch.equal(before[:19], after[:19])
    assert (before[19:] != after[19:]).any(1).all()


@torch.no_grad()
def test_without_mentions_the_table_does_not_count() -> None:
    model, nothing = tiny(), [{}, {}, {}]
    before = packed_states(model, nothing)
    model.bert.set_table(torch.cat([torch.zeros(1, 12), torch.randn(8, 12)]), model.bert.names)
    assert torch.equal(packed_states(model, nothing), before)


@torch.no_grad()
def test_permuting_ids_with_rows_changes_nothing() -> None:
    model, order = tiny(), [0, 5, 3, 8, 1, 2, 7, 4, 6]
    before = packed_states(model, ENTITIES)
    model.bert.set_table(model.bert.table[torch.tensor(order).argsort()], model.bert.names)
    moved = [{place: order[row] for place, row in each.items()} for each in ENTITIES]
    torch.testing.assert_close(packed_states(model, moved), before)


def test_the_last_layers_entities_and_the_table_get_no_gradient() -> None:
    model = tiny()
    packed_states(model, ENTITIES).sum().backward()
    assert not model.bert.table.requires_grad
    last = model.bert.encoder.layer[-1].output
    assert last.dense_entities.weight.grad is None
    assert last.LayerNorm_entities.weight.grad is None
    assert model.bert.encoder.layer[1].output.dense_entities.weight.grad is not None


@pytest.mark.parametrize(
    "auto",
    [AutoModel, AutoModelForPreTraining, AutoModelForMaskedLM, AutoModelForSequenceClassification,
     AutoModelForTokenClassification, AutoModelForMultipleChoice, AutoModelForQuestionAnswering],
    ids=lambda auto: auto.__name__,
)  # fmt: skip
def test_every_class_reads_the_table(auto: Any, tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path)
    read = auto.from_pretrained(tmp_path)
    assert torch.equal(read.base_model.table, model.bert.table)
    assert read.base_model.names == model.bert.names
    assert not any("table" in name for name in read.state_dict())


def test_another_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(5, 12\) and 4 names, and this model is for \(9, 12\)"):
        tiny().bert.set_table(torch.zeros(5, 12), ["a"] * 4)

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    PreTrainedModel,
    pipeline,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bertillery.models.export import export_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bee", "##s", "fly"]


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


@pytest.fixture
def model() -> BertForPreTraining:
    torch.manual_seed(0)
    AttentionInterface.register("private_attention", sdpa_attention_forward)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = BertForPreTraining(config)
    model.set_attn_implementation("private_attention")
    torch.nn.init.normal_(model.cls.predictions.bias)
    return model


def test_a_stock_directory(model: BertForPreTraining, tokenizer: BertTokenizer, tmp_path: Path):
    folder = export_model(model, tokenizer, tmp_path / "export", card="# A model\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert {entry.name for entry in folder.iterdir()} == names
    assert (folder / "README.md").read_text() == "# A model\n"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForPreTraining"]
    assert config["dtype"] == "float32"
    assert "private_attention" not in (folder / "config.json").read_text()
    assert model.config._attn_implementation == "private_attention"


def test_it_loads_through_the_auto_classes(model: BertForPreTraining, tokenizer: BertTokenizer, tmp_path: Path):
    folder = export_model(model, tokenizer, tmp_path / "export", card="")
    for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining):
        loaded, report = auto.from_pretrained(folder, output_loading_info=True)
        # the heads that a class does not have are reported as unexpected, by every BERT checkpoint there is
        assert not report["missing_keys"]
        assert not report["mismatched_keys"]
        assert isinstance(loaded, PreTrainedModel)
        assert loaded.config._attn_implementation == "sdpa"
    assert type(loaded) is BertForPreTraining
    assert not report["unexpected_keys"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    text = "a bees fly"
    again = AutoTokenizer.from_pretrained(folder)
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"] == [2, 5, 6, 7, 8, 3]


@pytest.mark.parametrize(("architecture", "positions", "longest"), [("bert", 12, 12), ("roberta", 12, 11)])
def test_a_stock_pipeline_cuts_a_long_text_to_what_the_model_reads(
    tokenizer: BertTokenizer, tmp_path: Path, architecture: str, positions: int, longest: int
):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(
        architecture, vocab_size=len(WORDS), max_position_embeddings=positions, pad_token_id=0, **sizes
    )
    model, other = (AutoModelForSequenceClassification.from_config(each) for each in (config, BertConfig(**sizes)))
    before = tokenizer.model_max_length
    folder = export_model(model, tokenizer, tmp_path / "export", card="", auxiliary_models={"other": other})
    assert tokenizer.model_max_length == before
    assert AutoTokenizer.from_pretrained(folder).model_max_length == longest
    assert AutoTokenizer.from_pretrained(folder / "other").model_max_length == 512
    (answer,) = pipeline("text-classification", str(folder))("a bees fly " * 50, truncation=True)
    assert 0 < answer["score"] < 1


def test_an_older_export_is_replaced(model: BertForPreTraining, tokenizer: BertTokenizer, tmp_path: Path):
    export_model(model, tokenizer, tmp_path / "export", card="old")
    (tmp_path / "export" / "stale").touch()
    folder = export_model(model, tokenizer, tmp_path / "export", card="new")
    assert (folder / "README.md").read_text() == "new"
    assert not (folder / "stale").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]


def lose_a_tensor(model: BertForPreTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = BertForPreTraining.save_pretrained

    def save(self: BertForPreTraining, folder: Path) -> None:
        tensors = {name: value for name, value in self.state_dict().items() if "pooler.dense.bias" not in name}
        complete(self, folder, state_dict=tensors)

    monkeypatch.setattr(BertForPreTraining, "save_pretrained", save)


def change_a_bit(model: BertForPreTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = BertForPreTraining.save_pretrained

    def save(self: BertForPreTraining, folder: Path) -> None:
        complete(self, folder)
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "model.safetensors").write_bytes(data)

    monkeypatch.setattr(BertForPreTraining, "save_pretrained", save)


def untie(model: BertForPreTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    model.cls.predictions.decoder.weight = torch.nn.Parameter(torch.zeros(len(WORDS), 8))


def warn(model: BertForPreTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = BertForPreTraining.from_pretrained

    def load(*arguments: object, **options: object) -> object:
        logging.getLogger("transformers.modeling_utils").warning("something is off")
        return complete(*arguments, **options)

    monkeypatch.setattr(BertForPreTraining, "from_pretrained", load)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_a_tensor, "missing_keys: bert.pooler.dense.bias"),
        (change_a_bit, ": differs"),
        (untie, "NOT tie them"),
        (warn, "something is off"),
    ],
)
def test_an_export_that_reads_back_differently_is_refused(
    model: BertForPreTraining,
    tokenizer: BertTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage,
    message: str,
):
    folder = export_model(model, tokenizer, tmp_path / "export", card="whole")
    damage(model, monkeypatch)
    with pytest.raises(RuntimeError, match=message):
        export_model(model, tokenizer, folder, card="damaged")
    assert (folder / "README.md").read_text() == "whole"

"""Loading from directories: what is fresh, what is unused, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AlbertForSequenceClassification,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from bertillery.config.section import ConfigError
from bertillery.models import folder as model_folder
from bertillery.models.encoders import FAMILIES, sequence_logits
from bertillery.models.export import warnings_of_transformers
from bertillery.models.layers.attention import NAME
from bertillery.models.layers.dropout import Dropout
from bertillery.models.load import load, load_carried
from bertillery.run.inputs import model_inputs
from tests.models.families import batch_of, tiny_config

HEADS = (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
    AutoModelForMultipleChoice,
)

PARTS = {"classifier", "pre_classifier", "qa_outputs", "sequence_summary", "pooler"}


def save(auto: Any, kind: str, folder: Path, **settings: Any) -> Path:
    with warnings_of_transformers():
        auto.from_config(tiny_config(kind, **settings)).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", FAMILIES)
def test_only_the_head_is_fresh(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """And a pooler, where the masked language model has none; everything else is what was saved, bit for bit."""
    folder = save(AutoModelForMaskedLM, kind, tmp_path / "words")
    saved = load_file(folder / "model.safetensors")
    for auto in HEADS:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, report = load(auto, folder)
        weights = model.state_dict()
        assert report.fresh == tuple(sorted(weights.keys() - saved.keys()))
        assert {name.removeprefix(f"{model.base_model_prefix}.").split(".")[0] for name in report.fresh} <= PARTS
        assert report.unused == tuple(sorted(saved.keys() - weights.keys()))
        assert report.unused
        assert not report.warnings
        assert all(torch.equal(weights[name], saved[name]) for name in weights.keys() & saved.keys())
        assert model.config._attn_implementation == NAME
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert not any(module.training for module in model.modules())
        assert not any(type(module) is nn.Dropout for module in model.modules())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_saved_model_is_a_stock_one(kind: str, tmp_path: Path):
    """It loads again with nothing fresh or unused, by the library alone without a warning."""
    model, _ = load(AutoModelForSequenceClassification, save(AutoModel, kind, tmp_path / "encoder"), num_labels=3)
    model.save_pretrained(tmp_path / "task")
    with warnings_of_transformers() as messages:
        stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "task")
    assert messages == []
    assert stock.config._attn_implementation == "sdpa"
    assert "attn" not in (tmp_path / "task" / "config.json").read_text()
    again, report = load(AutoModelForSequenceClassification, tmp_path / "task")
    assert (report.fresh, report.unused, report.warnings) == ((), (), ())
    batch = batch_of([3, 9])
    assert torch.equal(sequence_logits(again, batch.input), sequence_logits(model, batch.input))
    assert sequence_logits(again, batch.input).shape == (2, 3)
    assert all(torch.equal(a, b) for a, b in zip(stock.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize("kind", FAMILIES)
def test_dropouts_go_by_the_names_of_the_family(kind: str, tmp_path: Path):
    folder = save(AutoModel, kind, tmp_path / "encoder")
    rates = {"hidden_dropout": 0.11, "attention_dropout": 0.22, "classifier_dropout": 0.33}
    model, _ = load(AutoModelForSequenceClassification, folder, **rates)
    dropouts, prefix = dropouts_of(model), model.base_model_prefix
    head = {p for name, p in dropouts.items() if not name.startswith(prefix)}
    within = {p for name, p in dropouts.items() if name.startswith(prefix)}
    assert (head, within) == ({0.33}, {0.11, 0.22})
    model, _ = load(AutoModelForMultipleChoice, folder, **rates)
    choice = {p for name, p in dropouts_of(model).items() if not name.startswith(prefix)}
    assert choice == ({0.11} if FAMILIES[kind].positions_after_padding else {0.33})  # RoBERTa's takes the hidden one


def dropouts_of(model: nn.Module) -> dict[str, float]:
    return {name: module.p for name, module in model.named_modules() if isinstance(module, Dropout)}


def test_the_head_is_drawn_from_the_seed(tmp_path: Path):
    folder, heads = save(AutoModel, "bert", tmp_path / "encoder"), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(load(AutoModelForSequenceClassification, folder)[0].classifier.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_weights_that_do_not_fit_are_refused(tmp_path: Path):
    lost = save(AutoModel, "bert", tmp_path / "lost")
    tensors = load_file(lost / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, lost / "model.safetensors", {"format": "pt"})
    other = save(AutoModelForMaskedLM, "electra", tmp_path / "other")
    edit_config(other, model_type="bert", architectures=["BertForMaskedLM"])
    for folder, names in ((lost, "lack .*encoder.layer.1.output.dense.weight"), (other, "lack bert.*hold electra")):
        for auto in (AutoModel, AutoModelForSequenceClassification):
            if auto is AutoModel and folder is other:
                continue
            with pytest.raises(ConfigError, match=f"{folder}.*{names}"):
                load(auto, folder)


def test_a_head_of_another_shape_is_fresh_and_an_encoder_is_refused(tmp_path: Path):
    folder = save(AutoModelForSequenceClassification, "bert", tmp_path / "task", num_labels=2)
    assert load(AutoModelForSequenceClassification, folder)[1].fresh == ()
    model, report = load(AutoModelForSequenceClassification, folder, num_labels=3)
    assert report.fresh == ("classifier.bias", "classifier.weight")
    assert model.get_parameter("classifier.weight").shape == (3, 24)
    with pytest.raises(ConfigError, match=r"embeddings.position_embeddings.weight is \(40, 24\), not \(48, 24\)"):
        load(AutoModel, folder, max_position_embeddings=48)


def test_what_cannot_be_loaded_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = save(AutoModel, "bert", tmp_path / "encoder")
    empty, gpt, half = tmp_path / "empty", tmp_path / "gpt", save(AutoModel, "bert", tmp_path / "half")
    empty.mkdir()
    AutoConfig.for_model("gpt2").save_pretrained(gpt)
    data = (half / "model.safetensors").read_bytes()
    (half / "model.safetensors").write_bytes(data[: len(data) // 2])
    (bare := save(AutoModel, "bert", tmp_path / "bare") / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name, message in (
        (empty, "no config.json in this folder; give"),
        (tmp_path / "none", "no such folder; give"),
        ("runs/pretrain/none/export", "no such folder; give"),
        ("runs/pretrain/bert_docs/export", r"no such folder \(`make pretrain CONFIG=bert_docs` makes it\); give"),
        ("no-owner/no-model", "no-owner/no-model: no such folder, no model downloaded before, and the Hub is switched"),
        (gpt, "type 'gpt2' is a decoder; give an encoder of one of these types: bert"),
        (half, "weights cannot be read"),
        (bare.parent, "weights cannot be read: .*model.safetensors"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(AutoModel, name)
    with pytest.raises(ConfigError, match="BertConfig knows no num_lables"):
        load(AutoModelForSequenceClassification, folder, num_lables=3)
    with pytest.raises(ConfigError, match="'bert', which AlbertForSequenceClassification is not for"):
        load(AlbertForSequenceClassification, folder)


def test_what_an_earlier_stage_left_is_loaded_where_it_fits(tmp_path: Path) -> None:
    """Fresh weights stay where there is nothing, or something of another size; a damaged file is refused by name."""
    torch.manual_seed(0)
    left, here, wider = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(3, 7)
    before = here.weight.clone()
    assert "drawn anew" in load_carried({"part": here}, str(tmp_path))[0]
    assert torch.equal(here.weight, before)
    save_file(left.state_dict(), tmp_path / "part.safetensors")
    assert load_carried({"part": here}, str(tmp_path)) == [f"part from {tmp_path}/part.safetensors"]
    assert torch.equal(here.weight, left.weight)
    assert "(7, 3)" in load_carried({"part": wider}, str(tmp_path))[0]
    (tmp_path / "part.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(ConfigError, match=r"part.safetensors: cannot be read: .*; distil the student again"):
        load_carried({"part": here}, str(tmp_path))


def test_a_model_of_the_hub_is_pinned_before_it_was_ever_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration is fetched for that, from where its weights will be."""
    monkeypatch.setattr(model_folder, "_hub_answers", lambda: True)
    monkeypatch.setattr(model_folder, "cached_file", lambda *_, **__: str(tmp_path / "c0ffee/config.json"))
    found = model_inputs(teacher="somebody/something")["teacher"]
    assert (found.sha256, found.what) == ("c0ffee", "somebody/something on the Hub")

"""Going on from existing weights: what is taken from where, what is refused, and how it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AlbertForPreTraining,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    ElectraForMaskedLM,
    ElectraForPreTraining,
)

from bertillery.config.layers import dump
from bertillery.config.section import ConfigError, describe, validate
from bertillery.engine.objective import Objective
from bertillery.models.export import export_model
from bertillery.models.load import load_tokenizer
from pretrain.config import PretrainConfig, load_config, objective_of
from pretrain.initialization import load_weights
from pretrain.objectives import albert, electra
from tests.corpora import tiny_tokenizer
from tests.pretrain.test_objectives import TINY

SIZES = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = BertConfig(**SIZES, intermediate_size=64, max_position_embeddings=64, hidden_act="relu", layer_norm_eps=1e-5)


def save(model: Any, folder: Path, tokenizer: Any = None) -> str:
    """A directory with the model, every tensor of it random, and a tokenizer."""
    torch.manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return str(folder)


def start(path: str, *arguments: str) -> tuple[Objective, str]:
    """The objective of this configuration with the weights in it, and what is said of them."""
    config = load_config([f"model.from={path}", "train.phases=[{sequence_length: 32}]", *arguments])
    torch.manual_seed(1)
    objective = objective_of(config).build(config.objective, config.model, tiny_tokenizer())
    return objective, "\n".join(load_weights(objective, path))


def refused(path: str, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        start(path, *arguments)
    return str(caught.value)


# The configuration


def test_sizes_are_those_of_the_weights_and_the_resolved_configuration_says_so(tmp_path: Path) -> None:
    path = save(BertForPreTraining(BERT), tmp_path / "from")
    config = load_config(
        [f"model.from={path}", "model.hidden_dropout_prob=0.3", "train.phases=[{sequence_length: 64}]"]
    )
    assert config.model.model_dump() == {
        "from": path, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64,
        "hidden_act": "relu", "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02, "layer_norm_eps": 1e-5, "max_position_embeddings": 64,
    }  # fmt: skip
    assert config.tokenizer.path == path
    text = dump(config)
    assert yaml.safe_load(text)["model"]["from"] == path
    assert validate(type(config), yaml.safe_load(text)) == config
    (tmp_path / "resolved.yaml").write_text(text)
    assert dump(load_config([str(tmp_path / "resolved.yaml")])) == text
    assert "model.from (str | null, default null)" in describe(PretrainConfig)
    model = start(path)[0].exported()
    assert (model.config.layer_norm_eps, model.bert.embeddings.LayerNorm.eps) == (1e-5, 1e-5)


def test_keys_that_contradict_the_weights_are_refused_together(tmp_path: Path) -> None:
    path = save(BertForPreTraining(BERT), tmp_path / "from")
    (tmp_path / "large.yaml").write_text("model: {hidden_size: 64, num_hidden_layers: 2, intermediate_size: null}\n")
    said = refused(path, str(tmp_path / "large.yaml"), "model.num_attention_heads=4")
    assert f"model.hidden_size: the checkpoint has 32, this command has 64 (from {tmp_path}/large.yaml)" in said
    source = "(from argument 'model.num_attention_heads=4')"
    assert f"model.num_attention_heads: the checkpoint has 2, this command has 4 {source}" in said
    assert "num_hidden_layers" not in said
    assert "intermediate_size" not in said
    assert "leaves these keys to the weights" in said


def test_sequences_must_fit_the_table_of_the_weights(tmp_path: Path) -> None:
    path = save(BertForPreTraining(BERT), tmp_path / "from")
    assert "sequence_length of 128 is above model.max_position_embeddings 64" in refused(
        path, "train.phases=[{sequence_length: 128}]"
    )


def test_a_misspelt_key_is_still_found() -> None:
    with pytest.raises(ConfigError, match=r"model.form: unknown key .*did you mean 'from'"):
        load_config(["model.form=x"])
    with pytest.raises(ConfigError, match=r"model.from: given 5"):
        load_config(["model.from=5"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/name", "no model downloaded before, and the Hub is switched off (HF_HUB_OFFLINE=1; with make, HUB=1"),
        ("runs/pretrain/nothing/export", "no such folder"),
        (".", "no config.json in this folder"),
    ],
)
def test_weights_that_are_not_there(name: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    message = refused(name)
    assert message.startswith(f"model.from: given {name!r}: ")
    assert said in message
    (tmp_path / "export").mkdir()
    assert name != "." or "did you mean export?" in refused(name)


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    path = save(BertForPreTraining(BERT), tmp_path / "from")
    said = refused(path, "objective.type=electra")
    assert "is of the family bert, but objective.type=electra trains electra" in said
    assert "another objective.type" in said


# The tokenizer


def test_another_tokenizer_must_number_its_pieces_alike(tmp_path: Path) -> None:
    path, other = save(BertForPreTraining(BERT), tmp_path / "from"), tmp_path / "other"
    tiny_tokenizer().save_pretrained(other)
    assert load_config([f"model.from={path}", f"tokenizer.path={other}", "train.phases=[{sequence_length: 8}]"])

    tiny_tokenizer(400).save_pretrained(other)
    said = refused(path, f"tokenizer.path={other}")
    assert "the checkpoint has 512 rows of word embeddings, the tokenizer 400 pieces" in said
    assert "piece 400: the checkpoint has 'w395', the tokenizer None" in said
    assert "Leave tokenizer.path out" in said

    pieces = tiny_tokenizer().get_vocab()
    pieces["w7"], pieces["w8"] = pieces["w8"], pieces["w7"]
    BertTokenizer(vocab=pieces, mask_token="[UNK]").save_pretrained(other)
    said = refused(path, f"tokenizer.path={other}")
    assert "rows of word" not in said
    assert "piece 12: the checkpoint has 'w7', the tokenizer 'w8'\n" in said
    assert "  - piece 13: the checkpoint has 'w8', the tokenizer 'w7'" in said
    assert "mask_token: the checkpoint has '[MASK]', the tokenizer '[UNK]'" in said


def test_weights_without_their_tokenizer(tmp_path: Path) -> None:
    path = save(BertForPreTraining(BERT), tmp_path / "from")
    for file in tmp_path.glob("from/tokenizer*"):
        file.unlink()
    assert "no tokenizer.json or vocabulary in this folder" in refused(path)
    tiny_tokenizer().save_pretrained(tmp_path / "theirs")
    start(path, f"tokenizer.path={tmp_path / 'theirs'}")
    tiny_tokenizer(400).save_pretrained(tmp_path / "theirs")
    assert "the tokenizer 400 pieces" in refused(path, f"tokenizer.path={tmp_path / 'theirs'}")


@pytest.mark.parametrize(
    ("kind", "objective"), [(BertForPreTraining, "bert"), (BertForMaskedLM, "mlm"), (AlbertForPreTraining, "albert")]
)
def test_spare_rows_of_the_vocabulary_are_left_behind(kind: Any, objective: str, tmp_path: Path) -> None:
    """A table that was made larger than its vocabulary, to be a multiple of 64, say, is no other model."""
    sizes = {**SIZES, "vocab_size": 576, "intermediate_size": 64, "max_position_embeddings": 64}
    path = save(kind(kind.config_class(**sizes, embedding_size=16)), tmp_path / "from")
    arguments = [f"model.from={path}", f"objective.type={objective}", "train.phases=[{sequence_length: 32}]"]
    config = load_config(arguments)
    made = objective_of(config).build(config.objective, config.model, load_tokenizer(str(config.tokenizer.path)))
    said = "\n".join(load_weights(made, path))
    assert "64 spare rows of the vocabulary" in said
    found, stored = made.exported().state_dict(), load_file(tmp_path / "from" / "model.safetensors")
    shared = [name for name in found if name in stored]
    assert any("word_embeddings" in name for name in shared)
    for name in shared:
        rows = slice(512) if stored[name].shape[0] == 576 else slice(None)
        assert torch.equal(found[name], stored[name][rows])
    other = tiny_tokenizer(400)
    other.save_pretrained(tmp_path / "other")
    assert "the tokenizer 400 pieces" in refused(
        path, f"objective.type={objective}", f"tokenizer.path={tmp_path / 'other'}"
    )


def test_a_vocabulary_file_that_holds_a_line_twice(tmp_path: Path) -> None:
    """The last number counts, as in BERT's code; the table keeps its rows, so that every other number stays."""
    pieces = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    lines = [piece for piece, _ in pieces]
    twice = lines[10]
    lines[20] = twice
    path = save(BertForPreTraining(BERT), tmp_path / "from")
    for file in tmp_path.glob("from/tokenizer*"):
        file.unlink()
    (tmp_path / "from" / "vocab.txt").write_text("\n".join(lines) + "\n")
    tokenizer = load_tokenizer(path)
    assert tokenizer.convert_tokens_to_ids([lines[9], twice, lines[511]]) == [9, 20, 511]
    assert "spare" not in start(path)[1]
    for tokenizer_path in (path, tmp_path / "again"):  # and what is trained on such a vocabulary alone
        config = load_config([f"tokenizer.path={tokenizer_path}", "train.phases=[{sequence_length: 8}]"])
        fresh = objective_of(config).build(config.objective, TINY, load_tokenizer(str(tokenizer_path)))
        assert fresh.exported().config.vocab_size == 512
        tokenizer.save_pretrained(tmp_path / "again")


# The weights


@pytest.mark.parametrize(
    ("kind", "objective", "new", "dropped"),
    [
        (BertForPreTraining, "bert", "nothing", "nothing"),
        (BertForPreTraining, "mlm", "nothing", "bert.pooler, cls.seq_relationship"),
        (BertForMaskedLM, "bert", "bert.pooler, cls.seq_relationship", "nothing"),
        (BertModel, "bert", "cls", "nothing"),
        (BertForSequenceClassification, "bert", "cls", "classifier"),
    ],
)
def test_stock_models_with_fewer_or_more_heads(
    kind: Any, objective: str, new: str, dropped: str, tmp_path: Path
) -> None:
    """Loaded tensors are those of the file, the others those of the same objective freshly made."""
    path = save(kind(BERT), tmp_path / "from")
    made, said = start(path, f"objective.type={objective}")
    assert f"new: {new}; dropped: {dropped}" in said
    file = load_file(tmp_path / "from" / "model.safetensors")
    found = made.exported().state_dict()
    same = [n for n in found if n in file or n.removeprefix("bert.") in file]
    assert all(torch.equal(found[n], file.get(n, file.get(n.removeprefix("bert.")))) for n in same)
    number = len({p.data_ptr() for n, p in made.exported().named_parameters() if n in same})
    assert f"{path}: {number} tensors" in said
    config = load_config([f"model.from={path}", "train.phases=[{sequence_length: 8}]", f"objective.type={objective}"])
    torch.manual_seed(1)
    fresh = objective_of(config).build(config.objective, config.model, tiny_tokenizer()).exported().state_dict()
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert all(torch.equal(found[n], fresh[n]) for n in found if n not in [*same, *tied])


def test_half_precision_and_the_names_of_old(tmp_path: Path) -> None:
    """Weights of TensorFlow's names in a torch pickle, in float16, come in float32."""
    path = save(BertForPreTraining(BERT), tmp_path / "from")
    file = tmp_path / "from" / "model.safetensors"
    tensors = {name: tensor.half() for name, tensor in load_file(file).items()}
    old = {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t for n, t in tensors.items()}
    torch.save(old, file.with_name("pytorch_model.bin"))
    file.unlink()
    made, said = start(path)
    assert "new: nothing; dropped: nothing" in said
    found = made.exported().state_dict()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in tensors.items())


def damaged(tmp_path: Path, change: Any, model: Any = None) -> str:
    path = save(model or BertForPreTraining(BERT), tmp_path / "from")
    file = tmp_path / "from" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return path


LAYER = "bert.encoder.layer.1.output.dense"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.update({f"{LAYER}.weight": torch.zeros(32, 48)}),
            f"{LAYER}.weight: (32, 48) there, (32, 64) here",
        ),
        (lambda t: t.update({"cls.seq_relationship.bias": torch.zeros(3)}), "seq_relationship.bias: (3,) there, (2,)"),
        (lambda t: t.pop(f"{LAYER}.bias"), f"{LAYER}.bias: missing there"),
        (lambda t: t.update({"bert.encoder.layer.2.x": torch.zeros(3)}), "bert.encoder.layer.2.x: has no place here"),
        (lambda t: t.update({"cls.predictions.decoder.weight": torch.zeros(512, 32)}), "one tensor with another here"),
    ],
)
def test_weights_that_are_not_what_their_config_says(change: Any, said: str, tmp_path: Path) -> None:
    message = refused(damaged(tmp_path, change))
    assert said in message
    assert "Give weights" in message


def test_a_file_that_is_torn_or_missing(tmp_path: Path) -> None:
    path = save(BertForPreTraining(BERT), tmp_path / "from")
    file = tmp_path / "from" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be read" in refused(path)
    file.unlink()
    assert "cannot be read" in refused(path)


# ALBERT


def albert_export(tmp_path: Path, sharing: str) -> tuple[str, Objective]:
    config = albert.Config.model_validate({"sharing": sharing, "embedding_size": 16})
    objective = albert.build(config, TINY.model_copy(update={"num_hidden_layers": 3}), tiny_tokenizer())
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.normal_()
    return str(export_model(objective.exported(), tiny_tokenizer(), tmp_path / "from", card="")), objective


@pytest.mark.parametrize("sharing", ["all", "attention", "ffn", "none"])
def test_albert_shares_what_the_weights_share(sharing: str, tmp_path: Path) -> None:
    path, before = albert_export(tmp_path, sharing)
    made, said = start(path, "objective.type=albert")
    assert "new: nothing; dropped: nothing" in said
    assert isinstance(made, albert.Albert)
    assert made.sharing == sharing
    assert [name for name, _ in made.named_parameters()] == [name for name, _ in before.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), before.parameters(), strict=True))
    other = "none" if sharing != "none" else "all"
    assert f"objective.sharing: the checkpoint has {sharing!r}, this command has {other!r}" in refused(
        path, "objective.type=albert", f"objective.sharing={other}"
    )


def test_albert_of_groups_is_refused(tmp_path: Path) -> None:
    _, objective = albert_export(tmp_path, "all")
    config = objective.exported().config
    config.num_hidden_layers, config.num_hidden_groups = 4, 2
    path = save(AlbertForPreTraining(config), tmp_path / "groups")
    assert "4 layers in 2 groups of 1" in refused(path, "objective.type=albert")


# ELECTRA


@pytest.fixture
def electra_export(tmp_path: Path) -> tuple[str, electra.Electra]:
    config = electra.Config(embedding_size=16, generator_fraction=0.5)
    objective = electra.build(config, TINY.model_copy(update={"hidden_act": "gelu"}), tiny_tokenizer())
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.normal_()
    folder = tmp_path / "from"
    export_model(objective.exported(), tiny_tokenizer(), folder, card="", auxiliary_models=objective.auxiliary_models())
    return str(folder), objective


def test_electra_takes_its_generator_along(electra_export: tuple[str, electra.Electra]) -> None:
    path, before = electra_export
    made, said = start(path, "objective.type=electra")
    assert "new: nothing; dropped: nothing" in said
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), before.parameters(), strict=True))
    assert f"{sum(p.numel() for p in made.parameters()):,} parameters" in said
    config = load_config([f"model.from={path}", "objective.type=electra", "train.phases=[{sequence_length: 8}]"])
    section = config.objective.model_dump()
    assert (section["generator_fraction"], section["embedding_size"]) == (0.5, 16)
    said = refused(path, "objective.type=electra", "objective.generator_fraction=0.25", "objective.embedding_size=32")
    assert "objective.generator_fraction: the checkpoint has 0.5, this command has 0.25" in said
    assert "objective.embedding_size: the checkpoint has 16, this command has 32" in said


def test_electra_without_a_generator_gets_a_new_one(electra_export: tuple[str, electra.Electra]) -> None:
    path, before = electra_export
    shutil.rmtree(Path(path) / "generator")
    made, said = start(path, "objective.type=electra")
    assert isinstance(made, electra.Electra)
    assert "new: generator; dropped: nothing" in said
    table = before.discriminator.electra.embeddings.word_embeddings.weight
    assert torch.equal(made.generator.generator_lm_head.weight, table)
    assert made.generator.electra.embeddings is made.discriminator.electra.embeddings
    assert made.generator.electra.encoder.layer[0].output.dense.weight.abs().max() <= 0.04


def test_a_generator_goes_on_as_a_discriminator(electra_export: tuple[str, electra.Electra]) -> None:
    path, before = electra_export
    made, said = start(f"{path}/generator", "objective.type=electra")
    assert "new: discriminator_predictions, generator; dropped: generator_lm_head, generator_predictions" in said
    assert isinstance(made, electra.Electra)
    body, theirs = (net.electra.state_dict() for net in (made.discriminator, before.generator))
    assert all(torch.equal(body[name], theirs[name]) for name in theirs)


def test_a_generator_that_does_not_belong_is_refused(electra_export: tuple[str, electra.Electra]) -> None:
    path, _ = electra_export
    folder = Path(path) / "generator"
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "num_attention_heads": 2}))
    assert "2 attention heads there, 1 here" in refused(path, "objective.type=electra")
    (folder / "config.json").write_text(json.dumps({**settings, "num_hidden_layers": 2}))
    save(ElectraForMaskedLM.from_pretrained(folder), folder)
    said = refused(path, "objective.type=electra")
    assert "electra.embeddings.LayerNorm.bias: one tensor with another here, not equal to it there" in said
    (folder / "config.json").write_text("{")
    assert "generator/config.json: not valid JSON" in refused(path, "objective.type=electra")


def test_the_discriminator_alone_is_a_stock_model(electra_export: tuple[str, electra.Electra]) -> None:
    path, _ = electra_export
    loaded = ElectraForPreTraining.from_pretrained(path)
    made, _ = start(path, "objective.type=electra")
    ours = made.exported().state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in loaded.state_dict().items())

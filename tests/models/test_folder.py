"""Folders of models that anybody may have written: nothing in them runs, asks, hangs or ends in a traceback."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertForPreTraining

import deploy.compare
import deploy.onnx
import distill.__main__
import experiments.search
import experiments.seeds
import finetune.__main__
import pretrain.__main__
from bertillery.config.section import ConfigError, InputError
from bertillery.models.encoders import FAMILIES
from bertillery.models.load import load, open_stock, read_config
from bertillery.run.inputs import model_inputs
from tests.deploy.models import classifier, saved
from tests.finetune.tasks import write_encoder
from tests.pretrain.test_start import BERT, save

ROOT = Path(__file__).resolve().parents[2]
TASK = str(ROOT / "configs/finetune/docs_package.yaml")
STUDENT = str(ROOT / "configs/distill/distilbert_mini.yaml")
SHORT = "train.phases.0.sequence_length=32"
ANSWERS = str(ROOT / "configs/distill/distilbert_task.yaml")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with its tokenizer."""
    return Path(save(BertForPreTraining(BERT), tmp_path_factory.mktemp("stock") / "bert"))


def with_code(folder: Path, stock: Path) -> Path:
    """A model of a class of its own, and of a tokenizer of its own, that write a file when they are imported."""
    shutil.copytree(stock, folder)
    (folder / "mine.py").write_text(
        f"open({str(folder / 'it_ran')!r}, 'w').write('x')\n"
        "from transformers import BertConfig, BertForPreTraining, BertTokenizer\n"
        "class MyConfig(BertConfig):\n    model_type = 'my-bert'\n"
        "class MyModel(BertForPreTraining):\n    config_class = MyConfig\n"
        "class MyTokenizer(BertTokenizer):\n    pass\n"
    )
    autos = ["AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification", "AutoModelForPreTraining"]
    auto_map = {"AutoConfig": "mine.MyConfig", **dict.fromkeys(autos, "mine.MyModel")}
    edit(folder / "config.json", model_type="my-bert", architectures=["MyModel"], auto_map=auto_map)
    tokenizer = {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": [None, "mine.MyTokenizer"]}}
    edit(folder / "tokenizer_config.json", **tokenizer)
    return folder


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


Main = Callable[[Sequence[str]], int]
WAYS: dict[str, tuple[Main, list[str]]] = {
    "weights to go on from": (pretrain.__main__.main, ["model.from={}"]),
    "a tokenizer": (pretrain.__main__.main, ["tokenizer.path={}", "data.path={text}"]),
    "an encoder": (finetune.__main__.main, [TASK, "model.from={}"]),
    "an encoder without its recipe": (finetune.__main__.main, [TASK, "model.from={}", "recipe=none"]),
    "an encoder for several seeds": (experiments.seeds.main, ["tasks=[docs_package]", "model.from={}"]),
    "an encoder for a search": (experiments.search.main, [TASK, "model.from={}"]),
    "a teacher": (distill.__main__.main, [STUDENT, "teacher.from={}", "data.path={text}"]),
    "a teacher of a task": (distill.__main__.main, [ANSWERS, TASK, SHORT, "teacher.from={}", "model.from={stock}"]),
    "a student": (distill.__main__.main, [ANSWERS, TASK, SHORT, "teacher.from={stock}", "model.from={}"]),
    "what is compared": (deploy.compare.main, ["teacher={stock}", "students=[{}]"]),
    "what is compared with": (deploy.compare.main, ["teacher={}", "students=[{stock}]"]),
    "what is exported": (deploy.onnx.main, ["model={}"]),
}


@pytest.mark.parametrize("way", WAYS)
def test_code_in_a_folder_is_neither_run_nor_asked_for(
    way: str, stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_code(tmp_path / "theirs", stock)
    (tmp_path / "text.txt").write_text("one two three\n\nfour five\n")
    monkeypatch.setattr(deploy.onnx, "_check_packages", lambda: None)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    monkeypatch.chdir(tmp_path)
    main, arguments = WAYS[way]
    given = [each.format(folder, stock=stock, text=tmp_path / "text.txt") for each in arguments]
    assert main(given) == 2
    said = capsys.readouterr()
    assert not (folder / "it_ran").exists()
    assert "[y/N]" not in said.out + said.err
    assert said.err.count("error: ") == 1
    assert "'my-bert'" in said.err or "'MyTokenizer'" in said.err


def test_an_adapter_and_kernels_from_elsewhere_are_refused(stock: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stock, tmp_path / "kernel")
    edit(folder / "config.json", _attn_implementation="somebody/attention")
    with pytest.raises(InputError, match="'somebody/attention' is code from elsewhere"):
        read_config(folder)
    folder = shutil.copytree(stock, tmp_path / "adapter")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(InputError, match="an adapter, not a model"):
        read_config(folder)


def test_quantized_weights_are_refused_by_their_name(stock: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(stock, tmp_path / "quantized")
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(
        InputError, match=r"config\.json: quantization_config: quantized weights .* before it was quant"
    ):
        read_config(folder)


class Payload:
    """What would make a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.file), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_in_pickled_weights_is_not_run_nor_is_it_advised_to(
    stock: Path, tmp_path: Path, zipped: bool
) -> None:
    folder = shutil.copytree(stock, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    content = {"a": Payload(tmp_path / "it_ran"), "b": torch.zeros(1_000_000)}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="its weights cannot be read: it is no file of tensors, or holds") as refused:
        load(AutoModelForSequenceClassification, folder)
    assert "weights_only" not in str(refused.value)
    assert not (tmp_path / "it_ran").exists()


def test_what_is_no_file_in_a_models_folder_has_no_content(stock: Path, tmp_path: Path) -> None:
    """A pipe would be read for ever."""
    folder = shutil.copytree(stock, tmp_path / "stock")
    expected = model_inputs(start=str(folder))
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    assert model_inputs(start=str(folder)) == expected


SIZES = {
    "bert": ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    "albert": ("embedding_size", "num_hidden_groups", "inner_group_num", "max_position_embeddings"),
    "distilbert": ("dim", "n_layers", "n_heads", "hidden_dim", "max_position_embeddings"),
    "electra": ("embedding_size", "hidden_size", "num_hidden_layers"),
    "roberta": ("hidden_size", "num_hidden_layers", "vocab_size"),
}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in SIZES.items() for key in keys])
def test_a_size_of_another_type_or_beyond_all_bounds_is_refused_by_its_name(
    kind: str, key: str, tmp_path: Path
) -> None:
    folder = saved(classifier(kind), tmp_path / kind)
    plain = json.loads((folder / "config.json").read_text())
    for wrong in (str(plain[key]), float(plain[key]), [plain[key]], True, 0, -1, 10**9, 10**30):
        (folder / "config.json").write_text(json.dumps(plain | {key: wrong}))
        for read in (read_config, lambda where: load(AutoModelForSequenceClassification, where), open_stock):
            with pytest.raises(InputError, match=rf"config\.json: {key}: Input should be"):
                read(folder)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_sizes_add_up_to_is_compared_with_the_weights_before_anything_is_allocated(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each size is one that some model has."""
    folder = saved(classifier(kind), tmp_path / kind)
    plain = json.loads((folder / "config.json").read_text())
    monkeypatch.setattr(torch.nn.Embedding, "__init__", lambda *_, **__: pytest.fail("a model was built"))
    names = {"distilbert": ("dim", "n_layers")}.get(kind, ("hidden_size", "num_hidden_layers"))
    layers = {"albert": "num_hidden_groups"}.get(kind, names[1])
    for changes in ({"vocab_size": 1_000_000}, {names[0]: 8_192}, {layers: 900}):
        (folder / "config.json").write_text(json.dumps(plain | changes))
        for read in (lambda where: load(AutoModelForSequenceClassification, where), open_stock):
            with pytest.raises(InputError, match=r"bytes, and config\.json describes a model of [\d,]+ parameters"):
                read(folder)
    (folder / "model.safetensors").unlink()
    wide = [name for name in (names[0], "embedding_size") if name in plain]
    (folder / "config.json").write_text(json.dumps(plain | {"vocab_size": 9_000_000} | dict.fromkeys(wide, 16_384)))
    with pytest.raises(InputError, match=r"in float32, and this machine has"):
        load(AutoModelForSequenceClassification, folder, random=True)


def test_labels_are_counted_before_they_are_made(tmp_path: Path) -> None:
    folder = saved(classifier("bert"), tmp_path / "bert")
    edit(folder / "config.json", num_labels=10**9)
    with pytest.raises(InputError, match="num_labels: Input should be less than"):
        read_config(folder)


def test_what_a_sentence_transformer_does_behind_its_encoder_is_told(tmp_path: Path) -> None:
    """Its encoder is loaded as that of any folder; pooling and normalisation are named, since they are not used."""
    export = Path(write_encoder(tmp_path, "bert"))
    _, plain = load(AutoModel, export)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (export / "modules.json").write_text(json.dumps(modules))
    (export / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (export / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    _, report = load(AutoModel, export)
    assert report.pooling == "Pooling (mean_tokens), Normalize"
    assert str(report) == (
        f"{plain}; of this sentence-transformers model the encoder alone is used, without {report.pooling}"
    )
    (export / "modules.json").write_text("{")
    with pytest.raises(ConfigError, match=r"modules.json: cannot be read.*remove the file"):
        load(AutoModel, export)

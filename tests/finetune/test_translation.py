"""Whole runs of translation: what is learned, resumed, exported, decoded and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from finetune.__main__ import main
from finetune.config import load_config
from finetune.stage import finetuning
from finetune.translating import Translating
from tests.kept import restored
from tests.programs import run_program
from translation.__main__ import main as translate
from translation.beams import main as beams
from translation.model import TranslationModel
from translation.search import DecodeSection

ROOT = Path(__file__).resolve().parents[2]
PAIRS = 64
MODEL = [
    "model.name=tiny", "model.encoder_layers=2", "model.decoder_layers=2", "model.hidden_size=32",
    "model.intermediate_size=64", "model.num_attention_heads=4", "model.dropout=0", "model.max_position_embeddings=40",
]  # fmt: skip
RUN = [
    "train.phases=[{batch_size: 16, sequence_length: 32}]", "tokenizer.vocab_size=275", "optim.warmup=10%",
    "optim.learning_rate=5e-3", "decode.beam=2", "decode.max_length=24", "run.threads=1", "run.precision=fp32",
    "tracking.wandb=off",
]  # fmt: skip


def write_pairs(folder: Path, number: int = PAIRS) -> Path:
    """Sentences of made-up words, translated word by word and backwards; returns the task's YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    words = ["mu", "no", "pi", "ro", "sa", "te"]
    others = dict(zip(words, ["lamo", "kito", "buda", "foge", "hiru", "cepa"], strict=True))
    sources = [rng.choice(words, rng.integers(2, 6)).tolist() for _ in range(number)]
    for split, part in {"train": sources, "validation": sources, "test": sources[:5]}.items():
        for language, lines in {
            "aa": [" ".join(line) for line in part],
            "bb": [" ".join(others[word] for word in line[::-1]) for line in part],
        }.items():
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
    files = "".join(f"    {split}: [{split}.aa, {split}.bb]\n" for split in ("train", "validation", "test"))
    path = folder / "task.yaml"
    path.write_text(
        f"task:\n  name: toy\n  type: translation\n  text: aa\n  label: bb\n  metrics: [bleu, chrf]\n"
        f"  root: {folder}\n  files:\n{files}"
    )
    return path


def arguments(folder: Path, *more: str, name: str = "a", model: Sequence[str] = MODEL) -> list[str]:
    places = [f"run.name={name}", f"run.dir={folder}/runs", f"run.data_dir={folder}/data"]
    return [str(folder / "toy/task.yaml"), *model, *RUN, *places, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task and a run that has learned it by heart."""
    folder = tmp_path_factory.mktemp("translation")
    write_pairs(folder / "toy")
    assert main(arguments(folder, "train.steps=300", "objective.label_smoothing=0", "train.evaluate_every=50%")) == 0
    return folder


@pytest.fixture
def folder(finished: Path) -> Path:
    return restored(finished)


def results(folder: Path, name: str = "a") -> Any:
    return json.loads((folder / f"runs/finetune/{name}/finished.json").read_text())


def test_pairs_are_learned_by_heart(finished: Path) -> None:
    """64 pairs: perplexity about 1, and BLEU 100 of what the model writes."""
    found = results(finished)
    assert found["perplexity"]["validation"] < 1.05
    assert found["scores"]["validation"] == {"bleu": pytest.approx(1), "chrf": pytest.approx(1)}
    assert found["scores"]["test"]["bleu"] == pytest.approx(1)
    assert found["baselines"]["validation"].keys() == {"copy", "one sentence", "nearest sentence"}
    assert found["baselines"]["validation"]["copy"]["bleu"] < 0.2
    assert "nrefs:1|case:mixed" in found["table"]


def test_the_stock_model_writes_the_same(finished: Path) -> None:
    """``generate`` of the export, with the settings that it carries, gives the predictions of the run."""
    export = finished / "runs/finetune/a/export"
    model: Any = AutoModelForSeq2SeqLM.from_pretrained(export)
    tokenizer: Any = AutoTokenizer.from_pretrained(export)
    assert (model.generation_config.num_beams, model.generation_config.early_stopping) == (2, "never")
    texts = (finished / "toy/test.aa").read_text().splitlines()
    written = model.generate(**tokenizer(texts, return_tensors="pt", padding=True))
    found = tokenizer.batch_decode(written, skip_special_tokens=True)
    assert found == (finished / "runs/finetune/a/predictions/test.bb").read_text().splitlines()


def test_translating_reads_the_export(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export = finished / "runs/finetune/a/export"
    sources, wanted = ((finished / f"toy/test.{side}").read_text().splitlines() for side in ("aa", "bb"))
    assert translate([f"model={export}", f"file={finished}/toy/test.aa", f"output={tmp_path}/out"]) == 0
    assert (tmp_path / "out").read_text().splitlines() == wanted
    monkeypatch.setenv("TEXT", sources[0])
    assert translate([f"model={export}", "n_best=2"]) == 0
    last = capsys.readouterr().out.split(f"{sources[0]}\n")[-1].strip().splitlines()
    assert len(last) == 2
    assert wanted[0] in last[0]
    opened = TranslationModel.open(str(export))
    found = opened.translate(sources, DecodeSection(beam=2), batch_tokens=8)
    assert [best[0][0] for best in found] == wanted


def test_every_beam_finds_what_was_learned_by_heart(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"file={finished}/toy/test.aa", f"reference={finished}/toy/test.bb"]
    assert beams([f"model={finished}/runs/finetune/a/export", *files, "beams=[1,3]", "decode.max_length=24"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [[float(cell) for cell in row[:2]] for row in rows] == [[1, 100], [3, 100]]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    write_pairs(tmp_path / "toy", 20)
    settings = ["train.steps=6", "train.save_every=2", "train.evaluate_every=3", "train.keep=9", "train.average=2"]
    settings += ["model.dropout=0.2", "train.phases=[{batch_tokens: 90, sequence_length: 32}]"]
    assert main(arguments(tmp_path, *settings)) == 0
    run = tmp_path / "runs/finetune/a"
    whole = (run / "export/model.safetensors").read_bytes()
    (run / "finished.json").unlink()
    shutil.rmtree(run / "export")
    for step in (4, 6):
        shutil.rmtree(run / f"checkpoints/step-{step:010d}")
    assert main(arguments(tmp_path, *settings)) == 0
    assert (run / "export/model.safetensors").read_bytes() == whole


def test_the_mean_of_checkpoints_is_exported(tmp_path: Path) -> None:
    write_pairs(tmp_path / "toy", 20)
    assert main(arguments(tmp_path, "train.steps=6", "train.save_every=2", "train.keep=3", "train.average=3")) == 0
    run = tmp_path / "runs/finetune/a"
    newest = sorted((run / "checkpoints").iterdir())[-3:]  # the best is kept, too
    saved = [load_file(path / "model.safetensors") for path in newest]
    exported = load_file(run / "export/model.safetensors")
    name = "model.decoder.layers.0.fc1.weight"
    mean = torch.stack([each[f"model.{name}"] for each in saved]).mean(0)
    torch.testing.assert_close(exported[name], mean)
    assert not torch.equal(exported[name], saved[-1][f"model.{name}"])


def test_two_processes_are_one(tmp_path: Path) -> None:
    """The same losses and translations, to rounding."""
    write_pairs(tmp_path / "toy", 20)
    settings = ["train.steps=4", "run.device=cpu", "train.log_every=1", "train.micro_batch_tokens=64"]
    assert main(arguments(tmp_path, *settings)) == 0
    done = run_program("finetune", *arguments(tmp_path, *settings, name="b"), processes=2)
    assert done.status == 0, done.output
    one, two = (results(tmp_path, name) for name in "ab")
    assert two["perplexity"]["validation"] == pytest.approx(one["perplexity"]["validation"], rel=1e-5)
    weights = [load_file(tmp_path / f"runs/finetune/{name}/export/model.safetensors") for name in "ab"]
    for name, tensor in weights[0].items():
        if name.endswith("k_proj.bias"):
            continue  # no loss depends on it: its gradient is rounding alone, which Adam makes a step of full size
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-5, rtol=0)


def test_training_goes_on_from_an_export(folder: Path) -> None:
    start = [f"model.from={folder}/runs/finetune/a/export"]
    rate = "optim.learning_rate=1e-4"
    given = [each for each in arguments(folder, "train.steps=2", name="b", model=start) if "tokenizer" not in each]
    given = [rate if each.startswith("optim.learning_rate") else each for each in given]
    assert main(given) == 0
    assert results(folder, "b")["scores"]["validation"]["bleu"] > 0.5
    assert (folder / "runs/finetune/b/inputs.json").read_text().count("starting weights") == 1


RNN = ["model.name=tiny", "model.architecture=rnn", "model.embedding_size=16", "model.hidden_size=32",
       "model.encoder_hidden_size=16", "model.dropout=0"]  # fmt: skip


@pytest.mark.parametrize("model", [MODEL, RNN], ids=["transformer", "rnn"])
def test_two_vocabularies_go_with_the_model(
    model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is trained is what stock code, a translation and a further run read; half of an export is refused."""
    write_pairs(tmp_path / "toy", 30)
    short = ["tokenizer.separate=true", "tokenizer.vocab_size=268", "train.steps=20", "decode.length_penalty=0.6"]
    assert main(arguments(tmp_path, *short, model=model)) == 0
    run = tmp_path / "runs/finetune/a"
    export, wanted = run / "export", (run / "predictions/test.bb").read_text().splitlines()
    sides: list[Any] = [AutoTokenizer.from_pretrained(export, subfolder=folder) for folder in ("", "target")]
    assert sides[0].get_vocab().keys() - sides[1].get_vocab().keys()
    texts = (tmp_path / "toy/test.aa").read_text().splitlines()
    stock: Any = AutoModelForSeq2SeqLM.from_pretrained(export)
    assert not stock.config.share_encoder_decoder_embeddings
    written = stock.generate(**sides[0](texts, return_tensors="pt", padding=True))
    found = sides[1].batch_decode(written, skip_special_tokens=True)
    assert [" ".join(text.split()) for text in found] == wanted
    assert translate([f"model={export}", f"file={tmp_path}/toy/test.aa", f"output={tmp_path}/out"]) == 0
    assert (tmp_path / "out").read_text().splitlines() == wanted
    assert 'subfolder="target"' in (export / "README.md").read_text()

    plain = [each for each in arguments(tmp_path, "train.steps=2", name="b", model=[]) if "tokenizer" not in each]
    for given in ([f"model.from={export}"], [*model, f"tokenizer.path={export}"]):
        stage: Any = finetuning(load_config([*plain, *given]))
        stage.directory = stage.open(is_main=False)
        (source,) = stage.start().sources
        opened = source.tokenizer, source.target_tokenizer
        assert [each.get_vocab() for each in opened] == [each.get_vocab() for each in sides]
    capsys.readouterr()
    shutil.rmtree(export / "target")
    assert main([*plain, f"model.from={export}"]) == 2
    assert "there is no folder target with a tokenizer" in capsys.readouterr().err
    assert translate([f"model={export}", "text=mu"]) == 2
    assert "there is no folder target with a tokenizer" in capsys.readouterr().err


def test_a_model_is_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(folder, model=[])) == 2
    assert "translation needs a model" in capsys.readouterr().err


def test_runs_are_named_by_task_and_model(folder: Path) -> None:
    given = [each for each in arguments(folder) if not each.startswith("run.name")]
    stage = finetuning(load_config(given))
    assert isinstance(stage, Translating)
    assert stage.name == "toy/tiny/seed-12345"


BAD: dict[str, tuple[list[str], str]] = {
    "a label": (["task.labels=[a, b]"], "a translation has no labels"),
    "two sources": (["task.text=[aa, bb]"], "text names 2 columns"),
    "a metric of another type": (["task.metrics=[accuracy]"], "for translation there are bleu"),
    "a tokenizer beside a model that has its own": (["model={from: x}", "tokenizer.vocab_size=400"], "has its own"),
    "longer than the positions": (["model.max_position_embeddings=16"], "max_position_embeddings 16"),
    "an average of checkpoints that are not kept": (["train.average=3"], "keep=3"),
    "an average of more than there are": (
        ["train.steps=2", "train.average=3", "train.keep=3"],
        "train.average: given 3",
    ),
    "sampling for a Transformer": (["objective.teacher_forcing.k=0.5"], "always fed the reference"),
    "a missing language": (["task.label=cc"], "end with .aa and .cc"),
    "a vocabulary that the text does not support": (["tokenizer.vocab_size=5000"], "supports"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_configurations_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path / "toy", 8)
    given, message = BAD[name]
    keys = {each.split("=")[0] for each in given}
    replaced = [each for each in arguments(tmp_path) if not keys & {each.split("=")[0], each.split(".")[0]}]
    assert main([*replaced, *given]) == 2
    assert message in capsys.readouterr().err


def test_files_of_unequal_length_name_the_first_odd_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path / "toy", 8)
    file = tmp_path / "toy/train.bb"
    file.write_text(file.read_text() + "kito\n")
    assert main(arguments(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "has 8 lines and" in error
    assert "has 9" not in error
    assert "9; line n" in error
    assert "train.bb goes on alone with line 9: 'kito'" in error
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], "", *lines[3:]]) + "\n")
    assert main(arguments(tmp_path)) == 2
    assert "line 4 is empty in train.bb alone" in capsys.readouterr().err


def test_empty_lines_are_named_or_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path / "toy", 8)
    file = tmp_path / "toy/train.bb"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], "", *lines[4:]]) + "\n")
    assert main(arguments(tmp_path)) == 2
    assert "train.bb:4: nothing in 'bb'" in capsys.readouterr().err
    stage = finetuning(load_config(arguments(tmp_path, "task.incomplete=skip", "train.steps=1")))
    stage.directory = stage.open(is_main=False)
    assert stage.start().sources[0].num_examples == 7


def test_long_pairs_are_left_out_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_pairs(tmp_path / "toy", 8)
    short = ["train.phases=[{batch_size: 2, sequence_length: 4}]", "train.steps=1"]
    replaced = [each for each in arguments(tmp_path) if not each.startswith("train.phases")]
    assert main([*replaced, *short, "task.too_long=fail"]) == 2
    assert "pairs have more than 4 tokens on a side" in capsys.readouterr().err
    assert main([*replaced, *short]) == 0
    assert "pairs have more than 4 tokens on a side; left out" in caplog.text


def test_other_models_are_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.finetune.tasks import write_encoder, write_task

    write_encoder(tmp_path / "encoder")
    assert translate([f"model={tmp_path}/encoder", "text=mu"]) == 2
    assert "is an encoder; give an encoder-decoder" in capsys.readouterr().err
    export = finished / "runs/finetune/a/export"
    given = [str(write_task(tmp_path / "mood")), f"model.from={export}", "recipe=none", f"run.dir={tmp_path}/runs"]
    assert main(given) == 2
    assert "is an encoder-decoder; give" in capsys.readouterr().err
    assert translate([f"model={export}", f"text={'mu ' * 60}"]) == 2
    assert "reads 40 at most" in capsys.readouterr().err
    assert translate([f"model={export}", "text=mu", "n_best=3"]) == 2
    assert "n_best: given 3, and decode.beam is 2" in capsys.readouterr().err  # as its run searched
    assert translate([f"model={export}", "text=mu", "n_best=3", "decode.beam=3"]) == 0
    assert translate([f"model={export}"]) == 2
    assert "no text" in capsys.readouterr().err

"""Whole runs of the command."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
    pipeline,
)

from bertillery.engine.loader import Cursor, Stream
from bertillery.models.export import warnings_of_transformers
from bertillery.report.plot import plot_confusion
from finetune.__main__ import main
from finetune.config import load_config
from finetune.examples import TextExamples
from finetune.stage import Finetuning
from tests.finetune.tasks import read_labels, read_outputs, write_encoder, write_task
from tests.programs import run_program

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finetune")
    write_encoder(path / "encoder")
    write_task(path / "toy")
    return path


def arguments(folder: Path, name: str, *more: str) -> list[str]:
    places = [f"run.name={name}", f"run.dir={folder}/runs", f"model.from={folder}/encoder", "run.threads=1"]
    return [str(folder / "toy" / "task.yaml"), *places, "run.precision=fp32", *more]


def results(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs/finetune" / name / "finished.json").read_text())


def losses(folder: Path, name: str) -> list[float]:
    lines = (folder / "runs/finetune" / name / "metrics.jsonl").read_text().splitlines()
    return [row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row]


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A finished run."""
    assert main(arguments(folder, "whole")) == 0
    return folder / "runs/finetune/whole"


def test_what_a_run_leaves(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    section = load_config(arguments(folder, "whole")).task
    with warnings_of_transformers() as warnings:
        classify: Any = pipeline("text-classification", model=str(whole / "export"), device="cpu", top_k=None)
    assert not warnings
    texts = [json.loads(line) for line in (folder / "toy/validation.jsonl").read_text().splitlines()]
    outputs = read_outputs(whole / "predictions/validation.tsv")
    labels = [section.labels.index(label) for label in read_labels(whole / "predictions/validation.tsv")]
    for row, text in zip(outputs[:8], texts[:8], strict=True):
        said = classify({"text": text["first"], "text_pair": text["second"]})
        assert {each["label"]: each["score"] for each in said} == pytest.approx(
            dict(zip(section.labels, map(float, row), strict=True)), abs=1e-4
        )
    found = results(folder, "whole")["scores"]["validation"]
    assert found["accuracy"] == pytest.approx((outputs.argmax(-1) == labels).mean())
    assert sorted(path.name for path in (whole / "predictions").iterdir()) == ["test.tsv", "validation.tsv"]
    assert {"curves.png", "confusion.png", "hardest.tsv", "export"} <= {path.name for path in whole.iterdir()}
    card = (whole / "export/README.md").read_text()
    assert "model-index" in card
    assert f"{folder.name}/encoder fine-tuned on classification_toy" in card
    assert str(folder.parent) not in card, "which folders this machine has is nobody's business"
    assert main(arguments(folder, "whole")) == 0
    assert "is finished; for another run" in capsys.readouterr().out


def test_the_exported_tokenizer_makes_the_sequences_of_training(whole: Path) -> None:
    """Cut to the length of training, which is less than the model could read; special tokens in a text are text."""
    texts = (["w1 " * 500, "w1 [SEP] w2", "w1 w2", "[PAD]w4"], ["w4", "[MASK] w5", "w4 " * 500, "[CLS]"])
    tokenizer: Any = AutoTokenizer.from_pretrained(whole / "export")
    for columns in (texts[:1], texts):
        examples = TextExamples(columns, None, tokenizer, max_length=24, seed=0)
        ours = examples.collate(examples.examples(0, 0))
        theirs = tokenizer(*columns, truncation=True)
        assert [len(ids) for ids in theirs["input_ids"]] == ours.input.offsets.diff().tolist()
        assert [*chain(*theirs["input_ids"])] == ours.input.ids.tolist()
        assert [*chain(*theirs["token_type_ids"])] == ours.input.token_type_ids.tolist()


@pytest.mark.parametrize(("accuracy", "then"), [(0.5, "search"), (0.6, "search"), (0.61, "finetune")])
def test_what_to_type_next(folder: Path, accuracy: float, then: str) -> None:
    """Rates are searched where a baseline does as well."""
    beside = {"majority": {"accuracy": 0.4}, "bag of words": {"accuracy": 0.6}}
    found = {"scores": {"validation": {"accuracy": accuracy}}, "baselines": {"validation": beside}}
    given = arguments(folder, "next")
    stage = Finetuning(load_config(given), given)
    assert stage.next_command(found).startswith(f"make {then} TASK={given[0]} MODEL={folder}/encoder ")


def test_the_next_command_is_given_all_that_this_one_was(folder: Path) -> None:
    given = [*arguments(folder, "next"), "run.seed=3", "optim.learning_rate=1e-3", "train.phases=[{batch_size: 8}]"]
    found = {"scores": {"validation": {"accuracy": 1.0}}, "baselines": {"validation": {}}}
    command, _, why = Finetuning(load_config(given), given).next_command(found).partition("      ")
    assert why == "(one seed says little)"
    _, target, *variables = shlex.split(command)
    named = dict(variable.split("=", 1) for variable in variables)
    assert (target, named["SEEDS"], named["MODEL"]) == ("finetune", "5", f"{folder}/encoder")
    kept = [each for each in given[1:] if not each.startswith(("model.from=", "run.name=", "run.seed="))]
    assert [named["TASK"], *shlex.split(named["ARGS"])] == [given[0], *kept]


def test_signs_in_names_of_labels_and_many_labels(folder: Path, tmp_path: Path) -> None:
    """Nothing that is written on a picture may cost a trained model; many labels give a picture of bounded size."""
    names = ["$5-$10", "$10_$20", "<$5 & more"]
    text = (folder / "toy/task.yaml").read_text().replace("[red, green, blue]", json.dumps(names))
    text = text.replace("  files:", "  values: [red, green, blue]\n  files:")
    (tmp_path / "task.yaml").write_text(text)
    given = [str(tmp_path / "task.yaml"), f"model.from={folder}/encoder", f"run.dir={tmp_path}/runs", "run.name=signs"]
    assert main([*given, "train.steps=1"]) == 0
    assert AutoConfig.from_pretrained(tmp_path / "runs/finetune/signs/export").id2label == dict(enumerate(names))
    labels = np.arange(150)
    plot_confusion(labels, labels, [f"label {i}" for i in labels], tmp_path / "many.png", "many")
    assert max(pyplot.imread(tmp_path / "many.png").shape) < 3500


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_scores_and_several_labels(folder: Path, kind: str) -> None:
    task = write_task(folder / kind, kind)
    given = [str(task), f"run.dir={folder}/runs", f"model.from={folder}/encoder", "train.steps=60", "run.name=" + kind]
    assert main([*given, "run.threads=1", "train.log_every=20", "train.evaluate_every=30"]) == 0
    found = results(folder, kind)
    metric = {"regression": "pearson", "multilabel": "macro_f1"}[kind]
    baseline = max(
        values[metric] for name, values in found["baselines"]["validation"].items() if name != "bag of words"
    )
    assert found["scores"]["validation"][metric] > baseline + 0.2, found
    model = AutoModelForSequenceClassification.from_pretrained(folder / "runs/finetune" / kind / "export")
    assert model.config.problem_type == {"regression": "regression", "multilabel": "multi_label_classification"}[kind]


def test_a_score_begins_at_the_mean_of_those_to_learn(folder: Path) -> None:
    """The loss of the first step is then their variance, more or less, and not their square."""
    task = write_task(folder / "mean", "regression")
    given = [str(task), f"run.dir={folder}/runs", f"model.from={folder}/encoder", "train.steps=1", "run.threads=1"]
    labels = [json.loads(line)["label"] for line in (folder / "mean/train.jsonl").read_text().splitlines()]
    for start, expected in (("zero", np.mean(np.square(labels))), ("mean", np.var(labels))):
        assert main([*given, f"run.name=from-{start}", f"model.score_bias={start}"]) == 0
        assert losses(folder, f"from-{start}")[0] == pytest.approx(expected, rel=0.5)


def test_a_resumed_run_equals_an_uninterrupted_one(folder: Path, whole: Path) -> None:
    again = whole.with_name("again")
    shutil.copytree(whole, again)
    shutil.rmtree(again / "checkpoints/step-0000000012")
    shutil.rmtree(again / "export")
    shutil.rmtree(again / "predictions")
    (again / "finished.json").unlink()
    assert main(arguments(folder, "again")) == 0
    assert losses(folder, "again") == losses(folder, "whole")
    assert (again / "predictions/test.tsv").read_text() == (whole / "predictions/test.tsv").read_text()


def test_two_processes_equal_one(folder: Path, whole: Path) -> None:
    """The same scores and losses, split or not; 41 validation examples do not divide by two."""
    still = ["model.hidden_dropout=0", "model.attention_dropout=0", "model.classifier_dropout=0"]
    assert main(arguments(folder, "one", *still)) == 0
    for run, more in (("two", []), ("split", ["run.sharding=full"])):
        given = arguments(folder, run, *still, "run.device=cpu", "train.micro_batch_tokens=64", *more)
        done = run_program("finetune", *given, processes=2)
        assert done.status == 0, done.output
        assert losses(folder, run) == pytest.approx(losses(folder, "one"), abs=1e-5)
        one, two = (results(folder, name)["scores"]["validation"] for name in ("one", run))
        assert one == pytest.approx(two, abs=1e-6)
        files = [folder / "runs/finetune" / name / "predictions/validation.tsv" for name in ("one", run)]
        np.testing.assert_allclose(*map(read_outputs, files), atol=1e-5)


def test_losses_are_those_of_the_plain_library(folder: Path) -> None:
    """A stock model, padded batches of the same examples, torch's AdamW and transformers' schedule: losses to 1e-4."""
    still = ["model.hidden_dropout=0", "model.attention_dropout=0", "model.classifier_dropout=0"]
    recipe = ["optim.algorithm=adamw", "optim.schedule=linear", "optim.warmup=3", "optim.epsilon=1e-8"]
    stage = Finetuning(load_config(arguments(folder, "ours", *still, *recipe)))
    saved = folder / "start"
    original = stage._objective

    def objective() -> Any:
        made = original()
        made.model.save_pretrained(saved)
        AutoTokenizer.from_pretrained(folder / "encoder").save_pretrained(saved)
        return made

    stage._objective = objective  # type: ignore[method-assign]
    assert stage.run() == 0

    config = stage.config
    model: Any = AutoModelForSequenceClassification.from_pretrained(saved, attn_implementation="eager").train()
    tokenizer = AutoTokenizer.from_pretrained(saved)
    decayed = [p for n, p in model.named_parameters() if "bias" not in n and "LayerNorm" not in n]
    others = [p for n, p in model.named_parameters() if "bias" in n or "LayerNorm" in n]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.optim.learning_rate, eps=1e-8)
    schedule = get_linear_schedule_with_warmup(optimizer, 3, 12)
    split, source = stage.task.split("train"), stage._examples("train")
    stream, cursor, seen = Stream(source, config.run.seed), Cursor(), []
    for _ in range(12):
        rows, cursor = stream.take(cursor, 8)
        texts = [[column[i] for i in rows["index"]] for column in split.texts]
        batch = tokenizer(*texts, truncation=True, max_length=24, padding=True, return_tensors="pt")
        assert split.labels is not None
        loss = F.cross_entropy(model(**batch).logits, torch.from_numpy(split.labels[rows["index"]]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen.append(loss.item())
    assert losses(folder, "ours") == pytest.approx(seen, abs=1e-4)
    assert max(seen) - min(seen) > 0.05, "it learned, so equal losses are equal updates"


def test_a_head_is_kept_only_for_the_same_labels(folder: Path, whole: Path) -> None:
    def loaded(*more: str) -> Finetuning:
        given = [each for each in arguments(folder, "head", *more) if not each.startswith("model.from=")]
        stage = Finetuning(load_config([*given, f"model.from={whole / 'export'}"]))
        stage.run()
        return stage

    assert loaded("train.steps=1").loaded.fresh == ()
    other = "task.labels=[green, red, blue]"
    assert loaded("train.steps=1", other, "run.name=other").loaded.fresh == ("classifier.bias", "classifier.weight")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.from=nowhere/at/all"], "nowhere/at/all: no such folder"),
        (["recipe=electra_small"], "is not meant for the bert model"),
        (["recipe=bret"], "'bret' does not exist"),
        (["task.metrics=bleu"], "for classification there are accuracy"),
        (
            ["model.score_bias=mean"],
            "model.score_bias is for a score, and classification_toy is of type classification",
        ),
        (["task.label=lable"], "no column 'lable'; there are: 'first', 'second', 'label'"),
        (["task.labels=[red, green]"], "'blue'"),
        (["train.phases=[{batch_size: 8, sequence_length: 4}]"], "leaves no room"),
        (["train.phases=[{batch_size: 8, sequence_length: 128}]"], "64"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(
    folder: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, "wrong", *more)) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "step 1/" not in said.out
    assert not (folder / "runs/finetune/wrong").exists()


def test_a_model_without_its_tokenizer_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Transformers would make one up, of nothing but special tokens, and every word would be unknown."""
    bare = folder / "bare"
    shutil.copytree(folder / "encoder", bare)
    for file in bare.glob("*token*"):
        file.unlink()
    given = [each for each in arguments(folder, "bare") if not each.startswith("model.from=")]
    assert main([*given, f"model.from={bare}"]) == 2
    assert "model.from: " in capsys.readouterr().err

"""Each kind of task through the command: a handful of examples is learned by heart, and what leaves is stock."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    pipeline,
)

import finetune.task_types
from bertillery.config.section import ConfigError, completed, validate
from bertillery.models.heads import head_in_words
from bertillery.models.load import load, read_config
from finetune import predict as evaluate
from finetune.__main__ import main
from finetune.config import load_config
from finetune.data.splits import read_task
from finetune.recipe import recipe_values
from finetune.task import TaskSection, task_type_of
from finetune.task_types.base import TaskType
from tests.finetune.test_choice import asked
from tests.finetune.test_spans import questions
from tests.finetune.test_tokens import columns, tagged
from tests.finetune.texts import WORDS, write_encoder

CHOICE = {"text": "q", "choices": ["a", "b", "c", "d"], "labels": [0, 1, 2, 3], "metrics": "accuracy"}
TASKS = {
    "choice": CHOICE,
    "graph_choice": {**CHOICE, "graph": {"path": ["graph.tsv"]}},
    "tokens": {
        "text": "tokens",
        "label": "tags",
        "labels": ["O", "B-place", "I-place", "B-person", "I-person"],
        "metrics": ["f1", "accuracy"],
    },
    "spans": {
        "text": ["question", "context"],
        "label": "answers",
        "index": "id",
        "metrics": ["best_f1", "exact_match", "f1"],
        "spans": {"unanswerable": True, "stride": 16},
    },
}


PICTURES = {
    "choice": "confusion.png",
    "graph_choice": "paths.png",
    "tokens": "entities.png",
    "spans": "questions.png",
}


def write_data(folder: Path, kind: str) -> str:
    """The file of a task of this kind."""
    if kind == "tokens":
        (folder / "all.conll").write_text(columns(tagged(6)))
        return "all.conll"
    if kind == "spans":
        (folder / "all.json").write_text(json.dumps(questions(6, seed=4, unanswerable=True)))
        return "all.json"
    if kind == "graph_choice":
        pairs = zip(WORDS, [*WORDS[5:], *WORDS[:5]], strict=True)
        (folder / "graph.tsv").write_text("".join(f"{a}\tr{len(a) % 3}\t{b}\n" for a, b in pairs))
    split = asked(6)
    rows = [
        {"q": text, **dict(zip("abcd", choices, strict=True)), "label": int(label)}
        for text, choices, label in zip(*split.texts, split.labels, strict=True)  # pyright: ignore
    ]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "all.jsonl"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


def write_task(folder: Path, kind: str, encoder: Path) -> list[str]:
    """Arguments of the command: train, validation and test are the same few examples."""
    name = write_data(folder, kind)
    files = dict.fromkeys(("train", "validation", "test"), name)
    task = {"name": kind, "type": kind, "root": str(folder), "files": files, **TASKS[kind]}
    (folder / "task.yaml").write_text(json.dumps({"task": task}))
    return [
        str(folder / "task.yaml"), f"model.from={encoder}", "recipe=none", f"run.dir={folder}/runs", "run.name=all",
        f"run.data_dir={folder}/data", "run.device=cpu", "run.precision=fp32", 'tracking.wandb="off"',
        "optim.learning_rate=5.0e-3",
        "optim.schedule=linear", "train.steps=60", "train.phases=[{batch_size: 6, sequence_length: 128}]",
        "train.log_every=20 steps", "train.evaluate_every=60 steps", "train.save_every=60 steps",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", TASKS)
def test_a_handful_is_learned_by_heart(
    tmp_path: Path, kind: str, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(write_task(tmp_path, kind, encoder)) == 0
    path = tmp_path / "runs" / "finetune" / "all"
    results = json.loads((path / "finished.json").read_text())
    assert set(results["scores"]["validation"].values()) == {1.0}
    assert len(results["baselines"]["validation"]) == 2 + (kind == "graph_choice")
    printed = capsys.readouterr().out
    assert "first example" in printed
    assert "100.00" in printed
    assert (path / PICTURES[kind]).exists()
    for split in ("validation", "test"):
        lines = (path / "predictions" / f"{split}.tsv").read_text().splitlines()
        assert lines[0].split("\t")[:3] == ["index", "prediction", "label"]
        assert len(lines) == 7
    checks = {"choice": check_choice, "graph_choice": check_graph, "tokens": check_tokens, "spans": check_spans}
    checks[kind](path)


def check_choice(path: Path) -> None:
    model: Any = AutoModelForMultipleChoice.from_pretrained(path / "export")
    tokenizer, split = AutoTokenizer.from_pretrained(path / "export"), asked(6)
    for text, choices, label in zip(*split.texts, split.labels, strict=True):  # pyright: ignore
        there = [i for i, choice in enumerate(choices) if choice]
        pairs = tokenizer([text] * len(there), [choices[i] for i in there], padding=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: each[None] for name, each in pairs.items()}).logits[0]
        assert there[int(logits.argmax())] == label
    kind = task_type_of(load_config([str(path / "config.yaml")]).task)
    assert kind.ensemble([path / "predictions" / "validation.tsv"] * 2) == {"accuracy": 1}


def check_graph(path: Path) -> None:
    """Both the whole and the encoder in it open without a warning, and the run says what its graphs are."""
    for opener, folder in ((AutoModelForMultipleChoice, path / "export"), (AutoModel, path / "export" / "encoder")):
        model, report = opener.from_pretrained(folder, output_loading_info=True)
        assert not any(report.values())
    assert isinstance(model, BertModel)
    assert "graph files" in json.loads((path / "inputs.json").read_text())


def check_tokens(path: Path) -> None:
    model: Any = AutoModelForTokenClassification.from_pretrained(path / "export")
    assert model.config.id2label == dict(enumerate(TASKS["tokens"]["labels"]))
    found: Any = pipeline("token-classification", model=str(path / "export"), device="cpu")
    words, tags = tagged(6).texts[0][0], tagged(6).labels[0]  # pyright: ignore
    text = " ".join(words)
    begins = {len(" ".join(["", *words[:i]])): TASKS["tokens"]["labels"][tag] for i, tag in enumerate(tags)}
    got = {each["start"]: each["entity"] for each in found(text, ignore_labels=[])}
    assert {start: got[start] for start in begins} == begins
    lines = (path / "predictions" / "test.conll").read_text().split("\n")
    assert all(line == "" or line.split("\t")[1] == line.split("\t")[2] for line in lines)


def check_spans(path: Path) -> None:
    """The stock model alone, whose windows hold the whole context here, gives the same answers."""
    model: Any = AutoModelForQuestionAnswering.from_pretrained(path / "export")
    tokenizer = AutoTokenizer.from_pretrained(path / "export")
    written = json.loads((path / "predictions" / "validation.json").read_text())
    nulls = json.loads((path / "predictions" / "validation.null.json").read_text())
    whole = 0
    for paragraph in questions(6, seed=4, unanswerable=True)["data"][0]["paragraphs"]:
        (question,), context = paragraph["qas"], paragraph["context"]
        wanted = [answer["text"] for answer in question["answers"]] or [""]
        assert written[question["id"]] in wanted
        encoded = tokenizer(question["question"], context, return_offsets_mapping=True, return_tensors="pt")
        if encoded["input_ids"].shape[1] > 128:
            continue
        offsets = encoded.pop("offset_mapping")[0]
        with torch.no_grad():
            out = model(**encoded)
        start, end = int(out.start_logits.argmax()), int(out.end_logits.argmax())
        assert (start == 0) == (nulls[question["id"]] > 0)
        if start:
            assert context[offsets[start, 0] : offsets[end, 1]] == wanted[0]
        whole += 1
    assert whole > 2
    assert "null_threshold" in json.loads((path / "finished.json").read_text())["chosen"]


@pytest.mark.parametrize("kind", TASKS)
def test_two_processes_predict_as_one(
    tmp_path: Path, kind: str, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs of several rows for an example find their place, whichever process they are from."""
    config = load_config(write_task(tmp_path, kind, encoder))
    task, tokenizer = read_task(config.task, data_dir=tmp_path, glue_dir=None), AutoTokenizer.from_pretrained(encoder)
    kind_ = task_type_of(config.task)
    kind_.data_dir = tmp_path / "data"
    model, _ = load(kind_.model_class, encoder, **kind_.settings())
    examples = kind_.examples(task.split("validation"), tokenizer, max_length=40, seed=0)
    rows = examples.examples(0, 0)[[3, 1, 5, 0, 2]]
    given: list[Any] = []

    def predict(ranks: int, rank: int) -> np.ndarray:
        alone = SimpleNamespace(
            num_processes=ranks, process_index=rank, device=torch.device("cpu"), autocast=nullcontext,
            unwrap_model=lambda objective: objective, reduce=lambda tensor, how: tensor,
        )  # fmt: skip
        return evaluate.predict(alone, kind_.objective(model), examples, rows, micro_batch_tokens=60)[0]  # pyright: ignore

    monkeypatch.setattr(evaluate, "gather_object", lambda parts: parts)
    whole = predict(1, 0)
    assert len(whole) == examples.num_outputs(rows["index"]).sum()
    monkeypatch.setattr(evaluate, "gather_object", lambda parts: given.extend(parts) or given)
    predict(2, 1)
    assert 0 < sum(len(part) for part, _ in given) < len(rows)
    np.testing.assert_allclose(predict(2, 0), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["train.phases=[{batch_size: 6, sequence_length: 512}]"],
            "reads 128 tokens at most, and sequence_length is 512",
        ),
        (["train.both_orders=true"], "both_orders is for pairs of texts"),
    ],
)
def test_settings_that_do_not_fit(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    assert main([*write_task(tmp_path, "choice", encoder), *changes]) == 2
    assert message in capsys.readouterr().err


def test_recipes_know_the_papers_questions() -> None:
    """BERT sections 4.2 to 4.4; ALBERT Table 14; ELECTRA Table 7."""
    phases = {
        ("bert", "squad"): (32, 384), ("bert", "squad2"): (48, 384), ("albert", "squad"): (48, 384),
        ("albert", "squad2"): (48, 512), ("electra_base", "squad"): (32, 512), ("compact", "own"): (32, 384),
    }  # fmt: skip
    for (name, task), (batch_size, sequence_length) in phases.items():
        (phase,) = recipe_values(name, {"name": task, "type": "spans"})["train"]["phases"]
        assert (phase["batch_size"], phase["sequence_length"]) == (batch_size, sequence_length)
    squad, squad2, swag, mrpc = (
        recipe_values("bert", {"name": task, "type": kind})
        for task, kind in (("squad", "spans"), ("squad2", "spans"), ("swag", "choice"), ("mrpc", "classification"))
    )
    assert squad["train"]["steps"] == "3 epochs"
    assert squad2["train"]["steps"] == "2 epochs"
    assert swag["optim"]["learning_rate"] == 2e-5
    assert mrpc["train"]["phases"][0]["sequence_length"] == 128


HEADS = {
    "classification": "SequenceClassification",
    "multilabel": "SequenceClassification",
    "regression": "SequenceClassification",
    "tokens": "TokenClassification",
    "choice": "MultipleChoice",
    "spans": "QuestionAnswering",
}


@pytest.mark.parametrize("own", HEADS)
def test_a_head_fits_tasks_of_its_own_kind_alone(own: str) -> None:
    """Whatever else is the same: names of labels, shapes of weights."""

    def kind(name: str) -> TaskType:
        labels = [] if name in ("regression", "spans") else ["O", "B-x"]
        return task_type_of(cast(Any, SimpleNamespace(type=name, labels=labels, spans=None)))

    config = BertConfig(**kind(own).settings(), architectures=[f"BertFor{HEADS[own]}"])
    assert [name for name in HEADS if kind(name).head_fits(config)] == [own]


def test_a_classifier_that_does_not_say_how_many_labels_hold_has_one() -> None:
    """As transformers' pipeline takes it."""
    section = {"labels": ["a", "b"], "spans": None}
    config = BertConfig(id2label={0: "a", 1: "b"}, architectures=["BertForSequenceClassification"])
    one, several = (
        task_type_of(cast(Any, SimpleNamespace(type=name, **section))) for name in ("classification", "multilabel")
    )
    assert one.head_fits(config)
    assert not several.head_fits(config)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "tokens"])
def test_labels_go_by_their_numbers_in_whatever_order_a_file_lists_them(
    kind: str, encoder: Path, tmp_path: Path
) -> None:
    """A head whose classes are exchanged would be kept, or taught from, as one that fits."""
    metrics = {"classification": "accuracy", "multilabel": "macro_f1", "tokens": "f1"}[kind]
    values = {
        "name": "mood",
        "type": kind,
        "text": "text",
        "label": "label",
        "labels": ["O", "B-x"],
        "metrics": metrics,
    }
    section = validate(TaskSection, {**values, "files": {"train": "a.csv", "validation": "b.csv"}})
    plain = json.loads((encoder / "config.json").read_text()) | {"architectures": [f"BertFor{HEADS[kind]}"]}
    plain["problem_type"] = "multi_label_classification" if kind == "multilabel" else None
    heads = []
    for id2label, fits in (
        ({"0": "O", "1": "B-x"}, True),
        ({"1": "B-x", "0": "O"}, True),
        ({"0": "B-x", "1": "O"}, False),
        ({"1": "O", "0": "B-x"}, False),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**plain, "id2label": id2label}))
        config = read_config(tmp_path)
        assert task_type_of(section).head_fits(config) is fits
        heads.append(head_in_words(config))
    assert heads[0] == heads[1] != heads[2] == heads[3]


COUNTING = """
from __future__ import annotations

import numpy as np
from torch.nn import functional as F

from bertillery.engine.objective import Term
from finetune.predict import Predictor
from finetune.task import TaskSection
from finetune.task_types.vector import VectorType


class Config(TaskSection):
    available_metrics = ("accuracy",)
    unlabelled = "a count"

    highest: int = 9


class Objective(Predictor):
    def terms(self, logits, batch):
        wanted = batch.targets["labels"].float()
        return {"poisson": Term(F.poisson_nll_loss(logits[:, 0], wanted, reduction="sum"), "examples")}

    def outputs(self, logits, batch):
        return logits.exp()


class Type(VectorType):
    problem = "regression"
    objective_class = Objective

    def label_reader(self, source, table, column):
        def read(cell):
            if not 0 <= int(cell) <= self.section.highest:
                raise ValueError(f"{cell} is above task.highest={self.section.highest}")
            return int(cell)

        return read

    def describe_labels(self, labels):
        return f"counts to {labels.max()}"

    def best(self, outputs):
        return outputs[:, 0].clip(0, self.section.highest).round().astype(np.int64)

    def constant(self, labels):
        return np.median(labels).astype(np.int64)

    def format_prediction(self, prediction):
        return str(int(prediction))

    def parse_prediction(self, text):
        return int(text)

    def distances(self, predicted):
        return np.abs(predicted.predictions - predicted.labels)
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A task type that is one more file on the path of the package."""
    folder = tmp_path / "types"
    folder.mkdir()
    (folder / "counting.py").write_text(COUNTING)
    monkeypatch.setattr(finetune.task_types, "__path__", [*finetune.task_types.__path__, str(folder)])
    yield
    sys.modules.pop("finetune.task_types.counting", None)


@pytest.mark.usefixtures("counting")
def test_a_task_type_is_one_file(tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is found by its name, has keys of its own, trains, predicts, is scored beside baselines and reports."""
    rows = [{"text": "river " * number + "garden", "label": number} for number in (0, 1, 2, 3, 4, 1, 2, 0)]
    (tmp_path / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = dict.fromkeys(("train", "validation", "test"), "all.jsonl")
    task = {"name": "rivers", "type": "counting", "root": str(tmp_path), "files": files, "metrics": "accuracy"}
    (tmp_path / "task.yaml").write_text(json.dumps({"task": {**task, "highest": 5}}))
    arguments = [
        str(tmp_path / "task.yaml"), f"model.from={encoder}", "recipe=none", f"run.dir={tmp_path}/runs", "run.name=all",
        "run.device=cpu", "run.precision=fp32", 'tracking.wandb="off"', "train.steps=4",
        "train.phases=[{batch_size: 8, sequence_length: 16}]",
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "counting, scored by accuracy" in printed
    assert "counts to 4" in printed
    path = tmp_path / "runs" / "finetune" / "all"
    results = json.loads((path / "finished.json").read_text())
    assert {*results["baselines"]["validation"]} == {"majority", "bag of words"}
    assert len((path / "predictions" / "test.tsv").read_text().splitlines()) == 9
    assert (path / "hardest.tsv").exists()
    assert (path / "curves.png").exists()
    assert "name: rivers" in (path / "export" / "README.md").read_text()
    assert main([*arguments, "run.name=other", "task.highest=3"]) == 2
    assert "4 is above task.highest=3" in capsys.readouterr().err
    assert main([*arguments, "run.name=other", "task.higest=3"]) == 2
    assert (
        "task.higest: unknown key (from argument 'task.higest=3'); did you mean 'highest'?" in capsys.readouterr().err
    )
    assert main([*arguments, "run.name=other", "task.labels=[a, b]"]) == 2
    assert "a count has no labels" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "with task.type=counting:\ntask.highest (int, default 9)" in capsys.readouterr().out


def test_a_type_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    task = {"name": "own", "type": "spam", "metrics": "accuracy", "files": {"train": "a.csv"}}
    with pytest.raises(
        ConfigError, match="type: given 'spam': there are: choice, classification, entity_typing, graph_choice, multi"
    ):
        validate(TaskSection, task)


def test_empty_keys_of_other_types_are_read_as_earlier_versions_wrote_them() -> None:
    task = {"name": "own", "type": "classification", "labels": ["no", "yes"], "metrics": ["accuracy"]}
    task |= {"files": {"train": ["a.csv"]}}
    plain = validate(TaskSection, task)
    assert validate(TaskSection, {**task, "choices": [], "spans": None, "range": None}) == plain
    assert completed({**plain.model_dump(mode="json"), "choices": [], "spans": None}, TaskSection) == plain.model_dump(
        mode="json"
    )
    for key, value in {"choices": ["a"], "spans": {}, "range": [0, 1]}.items():
        with pytest.raises(ConfigError, match=f"{key}: unknown key; it belongs to task.type="):
            validate(TaskSection, {**task, key: value})

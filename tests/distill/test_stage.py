"""Whole runs of the command, on a corpus and for a task."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraForPreTraining,
)

from bertillery.config.layers import dump
from bertillery.config.section import ConfigError
from bertillery.models.export import warnings_of_transformers
from bertillery.models.families.ernie_thu import ErnieThuConfig, ErnieThuModel
from distill.__main__ import main
from distill.config import TaskConfig, load_config
from distill.task_stage import FirstStage, TaskSpecific
from distill.teacher import Teacher
from experiments import seeds
from experiments.jobs import Job
from experiments.rates import main as rates
from finetune.__main__ import main as finetune
from finetune.stage import Finetuning
from knowledge.prepare import GraphSection, prepare_graph
from tests.corpora import write_text
from tests.finetune.tasks import read_outputs, write_task
from tests.finetune.texts import wordpiece
from tests.programs import run_program

ROOT = Path(__file__).resolve().parents[2]
SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 64, "initializer_range": 0.1,
}  # fmt: skip
GENERAL = """
model: {num_hidden_layers: 1, hidden_dropout: 0.2}
data: {holdout: 0.2}
objective: {type: distilbert}
optim: {learning_rate: 3.0e-3, warmup: 2 steps}
train:
  steps: 6
  phases: [{batch_size: 8, sequence_length: 32}]
  log_every: 1
  save_every: 3
  evaluate_every: 3
  keep: 9
tracking: {wandb: "off"}
"""
METHODS = {
    "distilbert": ["model.type=distilbert", "model.start=teacher"],
    "tinybert": ["objective.type=tinybert", "model.hidden_size=12"],
    "minilm": ["objective.type=minilm", "objective.relation_heads=4", "model.hidden_size=8"],
}
ANSWERS = {
    "objective": {"type": "tinybert"},
    "model": {"classifier_dropout": 0.0},
    "optim": {"learning_rate": 3e-3},
    "train": {"steps": 8, "evaluate_every": 4, "save_every": 4, "log_every": 1, "keep": 9},
    "before": {
        "objective": {"type": "tinybert"},
        "optim": {"learning_rate": 3e-3, "schedule": "constant", "warmup": 0},
        "train": {
            "steps": 4,
            "evaluate_every": 2,
            "save_every": 2,
            "log_every": 1,
            "phases": [{"batch_size": 8, "sequence_length": 24}],
        },
    },
}
LABELS = ["red", "green", "blue"]


def fine_tuned(folder: Path, tokenizer: Any, labels: list[str] | None, **settings: Any) -> None:
    """A model with a head, of weights that are large enough for its answers to differ."""
    names = labels or ["LABEL_0"]
    named = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    torch.manual_seed(2)
    config = BertConfig(**{**SIZES, "vocab_size": len(tokenizer), **named, **settings})
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, two tasks, configurations, teachers and students."""
    path, tokenizer = tmp_path_factory.mktemp("distill"), wordpiece()
    write_text(path / "text.txt")
    (path / "general.yaml").write_text(GENERAL)
    for kind in ("classification", "regression"):
        write_task(path / kind, kind)
    (path / "answers.yaml").write_text(yaml.safe_dump(ANSWERS))
    size: dict[str, Any] = {"vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "teacher": BertForPreTraining(BertConfig(**SIZES, **size)),
        "discriminator": ElectraForPreTraining(ElectraConfig(**SIZES, **size, embedding_size=16)),
        "short": BertForPreTraining(BertConfig(**{**SIZES, **size, "max_position_embeddings": 16})),
        "student": BertModel(BertConfig(**{**SIZES, **size, "num_hidden_layers": 1, "hidden_size": 12})),
        "small": DistilBertModel(
            DistilBertConfig(n_layers=1, dim=8, n_heads=2, hidden_dim=16, max_position_embeddings=64, **size)
        ),
        "short_student": BertModel(BertConfig(**{**SIZES, **size, "max_position_embeddings": 16})),
    }
    for name, model in models.items():
        model.save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    fine_tuned(path / "tuned", tokenizer, LABELS)
    fine_tuned(path / "turned", tokenizer, ["green", "red", "blue"])
    fine_tuned(path / "score", tokenizer, None, problem_type="regression")
    fine_tuned(path / "several", tokenizer, LABELS, problem_type="multi_label_classification")
    fine_tuned(path / "short_tuned", tokenizer, LABELS, max_position_embeddings=16)
    pieces = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "x": 5}
    fine_tuned(path / "stranger", BertTokenizer(vocab=pieces), LABELS)
    return path


def general(folder: Path, name: str, *more: str) -> list[str]:
    places = [
        f"run.name={name}",
        f"run.dir={folder}/runs",
        f"run.data_dir={folder}/data",
        f"data.path={folder}/text.txt",
    ]
    run = ["run.threads=1", "run.precision=fp32", f"teacher.from={folder}/teacher"]
    return [str(folder / "general.yaml"), *places, *run, *more]


def task(folder: Path, *more: str, kind: str = "classification") -> list[str]:
    run = [f"run.dir={folder}/runs", f"run.data_dir={folder}/data", "run.threads=1", "run.precision=fp32"]
    run.append(f"model.from={folder}/student")
    teacher = "tuned" if kind == "classification" else "score"
    return [str(folder / kind / "task.yaml"), *run, f"teacher.from={folder}/{teacher}", *more]


def chain(folder: Path, *more: str) -> list[str]:
    """TinyBERT's two stages."""
    first, *rest = task(folder)
    return [str(folder / "answers.yaml"), first, *rest, *more]


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [row["train/loss"] for row in rows(run) if "train/loss" in row]


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export" / "model.safetensors")


def interrupted(run: Path, keep: int) -> Path:
    """A copy of a finished run as it was after the checkpoint of step ``keep``."""
    again = run.with_name(f"{run.name}-again")
    shutil.copytree(run, again)
    for name in ("export", "predictions"):
        shutil.rmtree(again / name, ignore_errors=True)
    (again / "finished.json").unlink()
    for checkpoint in (again / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > keep:
            shutil.rmtree(checkpoint)
    return again


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, Path]:
    """A finished run of each method, with dropout."""
    for name, more in METHODS.items():
        assert main(general(folder, name, *more)) == 0
    return {name: folder / "runs/distill" / name for name in METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_a_student_is_a_stock_model(whole: dict[str, Path], name: str) -> None:
    """Loaded by the library without a warning, with the word head where there is one, and nothing of the method's."""
    path = whole[name] / "export"
    auto: Any = AutoModelForMaskedLM if name == "distilbert" else AutoModel
    with warnings_of_transformers() as warnings:
        model, report = auto.from_pretrained(path, output_loading_info=True)
    assert not warnings
    assert not any(report.values())
    assert model.config.model_type == ("distilbert" if name == "distilbert" else "bert")
    ids = AutoTokenizer.from_pretrained(path)("the old river", return_tensors="pt")["input_ids"]
    assert model(ids)[0].shape[:2] == ids.shape
    saved = {key for key in exported(whole[name]) if "fit_dense" in key or "teacher" in key}
    assert not saved
    weights = load_file(whole[name] / "checkpoints/step-0000000006/model.safetensors")
    assert not [key for key in weights if "teacher" in key]
    assert ("fit_dense.weight" in weights) == (name == "tinybert")


@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_recorded_beside_its_teacher(whole: dict[str, Path], name: str) -> None:
    expected = {
        "distilbert": {"loss", "kl", "mlm", "mlm_accuracy", "cosine", "teacher_mlm", "teacher_mlm_accuracy"},
        "tinybert": {"loss", "attention", "hidden", "embedding", "unexplained"},
        "minilm": {"loss", "query", "key", "value"},
    }
    results = json.loads((whole[name] / "finished.json").read_text())
    assert set(results["held_out"]) == expected[name]
    trained = [row for row in rows(whole[name]) if "train/loss" in row]
    assert {f"train/{term}" for term in expected[name]} <= set(trained[0])
    assert all(0 < row["share_of_teacher"] < 1 for row in trained)
    assert losses(whole[name])[-1] < losses(whole[name])[0]
    assert (whole[name] / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (whole[name] / "export/README.md").read_text()
    assert "- teacher: " in card
    assert str(whole[name].parents[2]) not in card
    assert ("pipeline_tag: fill-mask" in card) == (name == "distilbert")
    if name == "distilbert":
        line = next(line for line in card.splitlines() if line.startswith("| MLM accuracy"))
        assert line.split("|")[3].strip() == f"{results['held_out']['teacher_mlm_accuracy']:.4f}"


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(folder: Path, whole: dict[str, Path], name: str) -> None:
    again = interrupted(whole[name], 3)
    assert main(general(folder, again.name, *METHODS[name])) == 0
    assert losses(again) == losses(whole[name])
    expected = exported(whole[name])
    assert all(torch.equal(tensor, expected[key]) for key, tensor in exported(again).items())


@pytest.fixture(scope="module")
def stages(folder: Path) -> tuple[Path, Path]:
    """The folders of a finished chain: layers, and answers."""
    assert main(chain(folder)) == 0
    root = folder / "runs/distill/classification_toy"
    return root / "student-tinybert-first/seed-12345", root / "student-tinybert/seed-12345"


def test_layers_come_first_and_answers_from_what_they_left(
    folder: Path, stages: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, answers = stages
    assert {"attention", "hidden", "embedding"} <= set(json.loads((first / "finished.json").read_text())["held_out"])
    assert len(losses(first)) == 4
    assert [row["learning_rate"] for row in rows(first) if "learning_rate" in row] == [3e-3] * 4
    config = yaml.safe_load((answers / "config.yaml").read_text())
    assert config["model"]["from"] == str(first / "export")
    assert set(rows(answers)[0]) >= {"train/soft", "train/cross_entropy", "share_of_teacher"}
    assert all(row["train/loss"] == row["train/soft"] for row in rows(answers) if "train/loss" in row)
    results = json.loads((answers / "finished.json").read_text())
    assert set(results["scores"]["validation"]) == {"accuracy", "macro_f1"}
    with warnings_of_transformers() as warnings:
        model = AutoModelForSequenceClassification.from_pretrained(answers / "export")
    assert not warnings
    assert [*model.config.id2label.values()] == LABELS
    assert read_outputs(answers / "predictions/validation.tsv").shape == (41, 3)
    capsys.readouterr()
    assert main(chain(folder)) == 0
    assert capsys.readouterr().out.count("is finished; for another run") == 2


def test_the_projection_goes_from_stage_to_stage(folder: Path, whole: dict[str, Path]) -> None:
    """The first stage of a task begins with the general distillation's own, as the released code does, and says so."""
    run = whole["tinybert"]
    left = load_file(max(run.glob("checkpoints/step-*")) / "model.safetensors")
    config = load_config(chain(folder, f"model.from={run}/export", f"run.dir={folder}/carried"))
    assert isinstance(config, TaskConfig)
    assert config.before is not None
    stage = FirstStage(config.before, then=config)
    trainer = stage.start()
    for name, tensor in cast(Any, trainer.objective).fit_dense.state_dict().items():
        assert torch.equal(tensor, left[f"fit_dense.{name}"])
    assert f"fit_dense from {run}/export/fit_dense.safetensors" in stage.banner(trainer)


def test_resumed_stages_equal_uninterrupted_ones(folder: Path, stages: tuple[Path, Path]) -> None:
    """Each of them, from a checkpoint of its own."""
    moved = folder / "moved"
    shutil.copytree(folder / "runs/distill/classification_toy", moved / "distill/classification_toy")
    copies = [moved / path.relative_to(folder / "runs") for path in stages]
    for path, step in zip(copies, (2, 4), strict=True):
        again = interrupted(path, step)
        shutil.rmtree(path)
        again.rename(path)
    (copies[1] / "config.yaml").unlink()  # which says where the first stage was
    (copies[1] / "config.yaml").write_text(
        (stages[1] / "config.yaml").read_text().replace(f"{folder}/runs", str(moved))
    )
    assert main(chain(folder, f"run.dir={moved}")) == 0
    for path, before in zip(copies, stages, strict=True):
        assert losses(path) == losses(before)
        expected = exported(before)
        assert all(torch.equal(tensor, expected[key]) for key, tensor in exported(path).items())


def test_two_processes_equal_one(folder: Path, tmp_path: Path) -> None:
    """Every method and both stages of a task, one after the other in the same two processes, without dropout."""
    still, two = (
        ["model.hidden_dropout=0", "model.attention_dropout=0"],
        ["run.device=cpu", "train.micro_batch_tokens=64"],
    )

    def commands(place: str, *more: str) -> list[list[str]]:
        given = [f"run.dir={tmp_path}/{place}", *still, *more]
        first = [f"before.{each}" for each in more if each.startswith("train.")]
        return [*(general(folder, name, *METHODS[name], *given) for name in METHODS), chain(folder, *given, *first)]

    for command in commands("one"):
        assert main(command) == 0
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\nfrom distill.__main__ import stages\nfrom distill.config import load_config\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    for stage in stages(load_config(arguments)):\n        assert stage.run() == 0\n"
    )
    done = run_program(str(script), json.dumps(commands("two", *two)), processes=2)
    assert done.status == 0, done.output
    runs = [path.parent.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("finished.json")]
    assert len(runs) == 5
    for run in runs:
        one, two = tmp_path / "one" / run, tmp_path / "two" / run
        assert losses(two) == pytest.approx(losses(one), abs=1e-5, rel=1e-5), run
        expected, found = exported(one), exported(two)
        difference = torch.cat([(found[key] - expected[key]).flatten() for key in expected])
        assert difference.norm() / torch.cat([each.flatten() for each in expected.values()]).norm() < 1e-4, run


def test_labels_and_answers_together(folder: Path) -> None:
    """DistilBERT's: half and half, of a student of another family."""
    given = task(folder, f"model.from={folder}/small", "objective.type=distilbert", "train.steps=2", "run.name=half")
    assert main(given) == 0
    row = rows(folder / "runs/distill/half")[0]
    assert row["train/loss"] == pytest.approx(0.5 * row["train/cross_entropy"] + 0.5 * row["train/soft"])


@pytest.mark.parametrize("method", ["distilbert", "tinybert"])
def test_a_score_is_distilled_too(folder: Path, method: str) -> None:
    given = task(folder, f"objective.type={method}", "train.steps=2", f"run.name=score-{method}", kind="regression")
    assert main(given) == 0
    row = rows(folder / "runs/distill" / f"score-{method}")[0]
    hard, soft = row["train/squared_error"], row["train/soft"]
    assert row["train/loss"] == pytest.approx(hard if method == "tinybert" else 0.5 * hard + 0.5 * soft)


def test_seeds_of_a_task(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Both stages of each seed, what is finished left alone, and the table of what there is."""
    ran: list[str] = []

    def run(jobs: list[Job], side_by_side: int | None = None) -> list[str]:
        ran.extend(f"{job.module} {job.name}" for job in jobs)
        return [job.name for job in jobs if main([*job.arguments])]

    monkeypatch.setattr("experiments.seeds.run_jobs", run)
    given = chain(folder, f"run.dir={folder}/seeds", "train.steps=4")
    assert seeds.main([*given, "seeds=2"]) == 0
    assert seeds.main([*given, "seeds=3"]) == 0
    path = "classification_toy/student-tinybert"
    assert ran == [f"distill {path}/seed-{seed}" for seed in (1, 2, 3)]
    assert {each.name for each in (folder / f"seeds/distill/{path}-first").iterdir()} == {"seed-1", "seed-2", "seed-3"}
    found = [json.loads((folder / f"seeds/distill/{path}/seed-{seed}/finished.json").read_text()) for seed in (1, 2, 3)]
    table = json.loads((folder / "seeds/distill/tables/student-tinybert/table.json").read_text())["classification_toy"]
    accuracies = [each["scores"]["validation"]["accuracy"] for each in found]
    assert table["scores"]["validation"]["accuracy"] == accuracies
    students = [exported(folder / f"seeds/distill/{path}/seed-{seed}") for seed in (1, 2, 3)]
    assert len({each["classifier.weight"].numpy().tobytes() for each in students}) == 3
    capsys.readouterr()
    assert seeds.main([*general(folder, "many")[:1], f"teacher.from={folder}/teacher", "seeds=2"]) == 2
    assert "several seeds are for a task" in capsys.readouterr().err


def test_the_configuration_of_a_first_stage_says_which_one_reruns_it(folder: Path, tmp_path: Path) -> None:
    config = load_config(chain(folder))
    assert isinstance(config, TaskConfig)
    assert config.before is not None
    (tmp_path / "config.yaml").write_text(dump(config.before))
    with pytest.raises(ConfigError, match="is part of that of the run that followed it, which reruns both"):
        load_config([str(tmp_path / "config.yaml")])


def test_a_name_is_that_of_both_stages(folder: Path) -> None:
    """Two distillations with names of their own share nothing."""
    config = load_config([*chain(folder), "run.name=mine"])
    assert isinstance(config, TaskConfig)
    assert config.before is not None
    assert (config.run.name, config.before.run.name) == ("mine", "mine-first")
    assert config.model.from_ == f"{config.run.dir}/distill/mine-first/export"


@pytest.mark.parametrize(("name", "epochs"), [("cola", 50), ("mnli", 10), ("qqp", 10), ("qnli", 10), ("sst2", 20)])
def test_a_task_has_settings_of_its_own(folder: Path, name: str, epochs: int) -> None:
    files = [str(ROOT / "configs/distill/tinybert_task.yaml"), str(ROOT / f"configs/finetune/{name}.yaml")]
    given = [*files, f"model.from={folder}/student", f"teacher.from={folder}/tuned"]
    config = load_config(given)
    assert isinstance(config, TaskConfig)
    assert config.before is not None
    assert str(config.before.train.steps) == f"{epochs} epochs"
    assert str(config.train.steps) == "3 epochs"
    assert config.model.from_ == f"runs/distill/{name}/student-tinybert-first/seed-12345/export"
    given = load_config([*given, "before.train.steps=7", "before.model.hidden_dropout=0.3"])
    assert isinstance(given, TaskConfig)
    assert given.before is not None
    assert str(given.before.train.steps) == "7 steps", "what is given beside it wins"
    assert (given.before.model.hidden_dropout, given.before.model.from_) == (0.3, f"{folder}/student")


def test_a_score_is_learned_from_texts_that_were_not_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Finetuning, "banner", lambda *_: "")
    files = [str(ROOT / "configs/distill/tinybert_task.yaml"), str(ROOT / "configs/finetune/stsb.yaml")]
    given = [f"model.from={folder}/student", f"teacher.from={folder}/score"]
    documented = (ROOT / "configs/distill/tinybert_task.yaml").read_text().split('ARGS="')[1].split('"')[0]
    asked = re.sub("<.*?>", "m", documented).split()
    assert asked == ["augment.model=m", "before.augment.model=m"]
    for more in (asked, [*asked, "augment.tries=5"], asked[1:]):
        config = load_config([*files, *given, *more])
        assert isinstance(config, TaskConfig)
        assert config.augment is None
        assert config.before is not None
        assert config.before.augment is not None
        assert "variants were for the stage before alone" in TaskSpecific(config).banner(cast(Any, None))
    for wanted in (["tasks.stsb=[]"], ["augment={model: m}"]):
        config = load_config([*files, *given, *asked, *wanted])
        assert isinstance(config, TaskConfig)
        assert config.augment is not None
        assert "alone" not in TaskSpecific(config).banner(cast(Any, None))


WRONG_GENERAL = [
    (["teacher.from=null"], "distillation needs a teacher: make distill"),
    (["teacher.from={folder}/nowhere"], "nowhere: no such folder; give one that save_pretrained wrote"),
    (["teacher.from={folder}/discriminator"], "has no MLM head"),
    (["teacher.from={folder}/short"], "short reads 16 tokens at most, and sequence_length is 32"),
    (["train.phases=[{{batch_size: 8, sequence_length: 11}}]"], "no segment of the text"),
    (["objective.type=bert"], "given 'bert'; there are: distilbert, minilm, tinybert"),
    (["tasks=mrpc"], "tasks: given 'mrpc', but it holds a list of overrides for each task"),
    (["objective.stage=answers"], "unknown key"),
    (["model.hidden_size=8"], "cosine loss needs equal hidden sizes"),
    (["objective.type=tinybert", "model.num_attention_heads=1"], "objective.type=minilm, for which they may differ"),
]


@pytest.mark.parametrize(("more", "message"), WRONG_GENERAL, ids=[message for _, message in WRONG_GENERAL])
def test_what_cannot_be_distilled_is_said_before_the_first_step(
    folder: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(general(folder, "wrong", *(each.format(folder=folder) for each in more))) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "starting" not in said.out
    assert not (folder / "runs/distill/wrong").exists()


def test_a_task_without_its_name_is_no_general_distillation(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(ROOT / "configs/distill/distilbert_task.yaml"), f"teacher.from={folder}/teacher"]) == 2
    assert "task-agnostic distillation needs the size of its student" in capsys.readouterr().err


WRONG_TASK = [
    (["teacher.from=null"], "distillation needs a teacher"),
    (["model.from=null"], "needs a student"),
    (["teacher.from={folder}/teacher"], "was not fine-tuned for classification_toy"),
    (
        ["teacher.from={folder}/turned"],
        "its labels are ['green', 'red', 'blue'], the task's are ['red', 'green', 'blue']",
    ),
    (
        ["teacher.from={folder}/several"],
        "for classification_toy (classification): its head is for SequenceClassification (multi_label_classification)",
    ),
    (["teacher.from={folder}/stranger"], "read different tokens"),
    (["teacher.from={folder}/short_tuned"], "short_tuned reads 16 tokens at most, and sequence_length is 24"),
    (["model.from={folder}/short_student"], "short_student reads 16 tokens at most, and sequence_length is 24"),
    (["objective.type=minilm"], "compares encoders, not answers"),
    (["recipe=electra_small"], "recipe: given 'electra_small'"),
    (
        ["model.num_hidden_layers=2"],
        "model.num_hidden_layers (argument 'model.num_hidden_layers=2') describes the stud",
    ),
]


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize(("more", "message"), WRONG_TASK, ids=[message for _, message in WRONG_TASK])
def test_what_cannot_be_answered_is_said_before_the_first_stage(
    folder: Path, more: list[str], message: str, stages: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also what only the second stage would meet."""
    more = [f"run.dir={folder}/wrong", *(each.format(folder=folder) for each in more)]
    given = chain(folder, *more) if stages == 2 else task(folder, "objective.type=distilbert", *more)
    assert main(given) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "starting" not in said.out
    assert not (folder / "wrong").exists()


@pytest.mark.parametrize("kind", ["general", "task"])
def test_help_and_resolved_configuration(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every key is told of; what is printed is a configuration that resolves to itself, the stage before included."""
    given = general(folder, "printed") if kind == "general" else chain(folder)
    assert main(["--help", *given]) == 0
    said = capsys.readouterr().out
    for part in (
        "teacher.from",
        "train.steps",
        *(["model.start"] if kind == "general" else ["task.name", "model.from"]),
    ):
        assert part in said, part
    assert main([*given, "--print-config"]) == 0
    printed = capsys.readouterr().out
    file = folder / f"{kind}-printed.yaml"
    file.write_text(printed)
    assert main([str(file), "--print-config"]) == 0
    assert capsys.readouterr().out == printed
    assert load_config([str(file)]).model_dump() == load_config(given).model_dump()
    if kind == "task":
        config: Any = yaml.safe_load(printed)
        assert config["before"]["model"]["from"] == f"{folder}/student"
        assert config["before"]["objective"] == {"type": "tinybert", "layers": None}


def test_the_range_test_of_a_distillation(folder: Path) -> None:
    """Of a corpus and of a task: the rates of the training's own first steps."""
    answers = task(folder, "run.name=tasked", "objective.type=distilbert")
    for given, name in ((general(folder, "ranged"), "ranged"), (answers, "tasked")):
        assert rates([*given, "lowest=1e-5", "highest=1e-2", "steps=20"]) == 0
        numbers = (folder / "runs/distill" / f"{name}-rate-range/rates.jsonl").read_text().splitlines()
        assert len(numbers) == 20


MARKED = [
    {"text": "the king ruled the town", "head": [4, 8], "tail": [19, 23], "label": "red"},
    {"text": "a queen built the old stone", "head": [2, 7], "tail": [22, 27], "label": "green"},
    {"text": "the river crossed the town", "head": [4, 9], "tail": [22, 26], "label": "blue"},
    {"text": "gold is in the new town", "head": [0, 4], "tail": [19, 23], "label": "red"},
]


def marked(folder: Path, kind: str, **changes: Any) -> Path:
    """A task with marked places, and the graph of what its texts name."""
    place = folder / kind
    place.mkdir(exist_ok=True)
    rows = [
        {**row, "mention": row["head"], "label": row["label"] if kind == "relation" else [row["label"]]}
        for row in MARKED
    ]
    (place / "all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "g.tsv").write_text("king\tr\ttown\ntown\tr\triver\nriver\tr\tgold\ngold\tr\tking\n")
    section: dict[str, Any] = {
        "name": kind, "type": kind, "labels": LABELS, "metrics": ["accuracy"],
        "files": dict.fromkeys(("train", "validation"), "all.jsonl"), **changes,
    }  # fmt: skip
    train = {"steps": 2, "phases": [{"batch_size": 4, "sequence_length": 24}], "evaluate_every": 2, "save_every": 2}
    values = {"task": section, "train": train, "recipe": "none", "tracking": {"wandb": "off"}}
    (place / "task.yaml").write_text(yaml.safe_dump(values))
    return place / "task.yaml"


@pytest.mark.parametrize(
    ("kind", "stages", "entities"), [("relation", 1, True), ("entity_typing", 2, True), ("relation", 2, False)]
)
def test_tasks_with_marked_places_are_distilled(
    folder: Path, tmp_path: Path, kind: str, stages: int, entities: bool
) -> None:
    """Of a teacher that was fine-tuned with the markers, and of an ERNIE that reads entities beside them; the student
    starts without and gets their tokens."""
    graph = {"graph": {"path": ["g.tsv"], "holdout": 1e-9}} if entities else {}
    task, encoder = marked(tmp_path, kind, **graph), folder / "teacher"
    run = [f"run.dir={tmp_path}/runs", f"run.data_dir={tmp_path}/data", "run.threads=1", "run.precision=fp32"]
    if entities:
        config = ErnieThuConfig(**SIZES, vocab_size=len(wordpiece()), entity_size=8, entity_heads=2, num_entities=5)
        model = ErnieThuModel(config)
        facts = GraphSection(path=[str(task.with_name("g.tsv"))], holdout=1e-9)
        model.set_table(torch.randn(5, 8), [*prepare_graph(facts, tmp_path / "data").names])
        model.save_pretrained(encoder := tmp_path / "ernie")
        wordpiece().save_pretrained(encoder)
    assert finetune([str(task), f"model.from={encoder}", *run, "run.name=teacher"]) == 0
    more = [f"teacher.from={tmp_path}/runs/finetune/teacher/export", f"model.from={folder}/student", *run, "run.name=a"]
    files = [str(folder / "answers.yaml")] if stages == 2 else ["objective.type=distilbert"]
    assert main([*files, str(task), *more]) == 0
    assert rows(tmp_path / "runs/distill/a")[0]["train/soft"] > 0
    export = tmp_path / "runs/distill/a/export"
    tokenizer, student = (
        AutoTokenizer.from_pretrained(export),
        AutoModelForSequenceClassification.from_pretrained(export),
    )
    markers = ["[HD]", "[TL]"] if kind == "relation" else ["[ENT]"]
    assert {*markers} <= {*tokenizer.get_vocab()}
    assert len(student.get_input_embeddings().weight) == len(tokenizer) == len(wordpiece()) + len(markers)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_teacher_without_the_markers_of_the_task_is_refused(
    folder: Path, tmp_path: Path, stages: int, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(folder / "answers.yaml")] if stages == 2 else ["objective.type=distilbert"]
    given = [*files, str(marked(tmp_path, "relation")), f"teacher.from={folder}/tuned", f"model.from={folder}/student"]
    assert main([*given, f"run.dir={tmp_path}/runs"]) == 2
    said = capsys.readouterr().err
    assert "does not know the markers [HD], [TL], with which relation marks places" in said
    assert "make finetune TASK=relation" in said
    assert not (tmp_path / "runs").exists()


def test_a_teacher_of_several_epochs_is_asked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the student is that of a teacher who is asked in every step; a second seed asks nothing."""
    asked: list[bool] = []
    ask = Teacher.asked

    def counted(self: Any, batch: Any) -> Any:
        asked.append(torch.is_grad_enabled())
        return ask(self, batch)

    monkeypatch.setattr(Teacher, "asked", counted)
    common = ["objective.type=distilbert", "run.precision=fp32", "model.hidden_dropout=0", "train.evaluate_every=100%"]
    assert main(task(folder, *common, "train.steps=3 epochs", "run.name=once")) == 0
    assert not any(asked), "not in training"
    steps = json.loads((folder / "runs/distill/once/finished.json").read_text())["steps"]
    assert steps >= 3
    assert main(task(folder, *common, f"train.steps={steps}", "run.name=each")) == 0
    assert sum(asked) >= steps
    for name, expected in exported(folder / "runs/distill/each").items():
        torch.testing.assert_close(exported(folder / "runs/distill/once")[name], expected, atol=1e-5, rtol=1e-4)
    asked.clear()
    before = sorted((folder / "data").glob("answers-*"))
    assert before
    assert main(task(folder, *common, "train.steps=3 epochs", "run.name=other", "run.seed=7")) == 0
    assert sorted((folder / "data").glob("answers-*")) == before

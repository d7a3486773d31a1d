"""The command that compares students with their teacher: tables, picture, refusals."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from huggingface_hub.repocard import metadata_load
from matplotlib import pyplot
from transformers import AutoModel, BertForMaskedLM, BertForPreTraining

from bertillery.config.section import InputError
from bertillery.models.encoders import FAMILIES
from bertillery.models.load import open_stock
from deploy import timing as speed
from deploy.compare import Comparison, draw, main, names_of, write_comparison
from deploy.facts import Card, Facts, facts_of
from deploy.timing import Speed, stock_inputs
from tests.deploy.models import classifier, labelled, saved
from tests.models.families import tiny_config
from tests.test_commands import would_run


def test_inputs_are_words_and_masks_are_theirs() -> None:
    for kind in ("bert", "roberta", "distilbert"):
        model = classifier(kind)
        pad = model.config.pad_token_id
        inputs = stock_inputs(model, 200, 20)
        assert set(inputs["input_ids"].unique().tolist()) == {*range(90)} - {pad}
        assert ("token_type_ids" in inputs) == FAMILIES[kind].token_types
        padded = stock_inputs(model, 4, 8, padded=True)
        assert padded["attention_mask"].sum(1).tolist() == [8, 6, 4, 2]
        assert ((padded["input_ids"] != pad) == padded["attention_mask"].bool()).all()


def test_names_tell_runs_apart() -> None:
    runs = [Path(f"runs/finetune/rte/{name}/export") for name in ("a/seed-1", "a/seed-2", "b/seed-1")]
    assert names_of(runs) == ["a/seed-1", "a/seed-2", "b+rte"]
    assert names_of([Path("runs/distill/small/export"), Path("other/small")]) == ["distill/small", "other/small"]


def facts(name: str, *found: dict[tuple[str, str], dict[str, float]]) -> Facts:
    sizes, cards = (12_345_678, 2_345_678, 49_400_000, {32: 98_765_432}), tuple(map(Card, found))
    return Facts(name, Path(name), "BertModel", "float32", *sizes, cards)


def comparison(models: list[Facts], milliseconds: list[float]) -> Comparison:
    seconds = {model.name: [each / 1e3] * 5 for model, each in zip(models, milliseconds, strict=True)}
    about = {"device": "cpu", "threads": 1, "rounds": 5, "environment": {}, "command": ""}
    return Comparison(models, [Speed(32, 1, seconds), Speed(8, 1, seconds), Speed(32, 16, seconds)], about, [])


def test_table_has_scores_as_columns_and_the_share_that_is_kept() -> None:
    teacher = facts("big", {("rte", "validation"): {"accuracy": 0.8, "f1": 0.5}, ("sts", "dev"): {"pearson": -0.2}})
    student = facts(
        "small", {("rte", "validation"): {"f1": 0.4, "accuracy": 0.76}, ("cola", "validation"): {"mcc": 0.1}}
    )
    found = comparison([teacher, student, facts("bare", {})], [10, 4, 5])
    assert found.columns == [
        ("rte", "validation", "accuracy"),
        ("sts", "dev", "pearson"),
        ("cola", "validation", "mcc"),
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.tables().splitlines() if "|" in line]
    assert lines[0] == [
        *("model", "rte accuracy (kept)", "sts dev pearson (kept)", "cola mcc (kept)"),
        *("parameters", "without embeddings", "MB on disk", "multiply-adds at 32"),
    ]
    sizes = ["12,345,678", "2,345,678", "49.4", "98.8 M"]
    assert lines[2] == ["big", "80.00", "-20.00", "-", *sizes]
    assert lines[3] == ["small", "76.00 (95.0 %)", "-", "10.00", *sizes]
    assert lines[4] == ["bare", "-", "-", "-", *sizes]
    assert "- bare: its model card has no scores." in found.tables()
    assert "- big: its model card has no cola mcc." in found.tables()
    assert found.kept(student, found.columns[0]) == pytest.approx(0.95)
    assert found.kept(teacher, found.columns[1]) is None  # a share of a negative correlation says nothing
    assert found.latency() == found.speeds[0]


def test_what_comes_next_is_the_student_that_keeps_most_and_otherwise_the_fastest() -> None:
    scores = [{("rte", "validation"): {"accuracy": score}} for score in (0.8, 0.76, 0.6)]
    teacher, good, poor = (facts(name, each) for name, each in zip(("big", "good", "poor"), scores, strict=True))
    assert comparison([teacher, poor, good], [10, 3, 4]).best_student() is good
    bare = [facts(name, {}) for name in ("big", "slow", "fast")]
    assert comparison(bare, [10, 4, 3]).best_student() is bare[2]


def test_a_picture_that_fails_costs_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.compare.draw", lambda *_: 1 / 0)
    monkeypatch.setattr("deploy.compare._page", lambda _: "page")
    write_comparison(comparison([facts("big", {}), facts("small", {})], [10, 4]), tmp_path / "a")
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["README.md", "results.json", "table.md"]


def test_no_share_is_shown_of_what_is_no_better_than_one_answer(tmp_path: Path) -> None:
    """As the cards say: by a warning, or because the score is that of the majority class; and it is said why."""
    found = {("rte", "validation"): {"accuracy": 0.53}}
    majority = {"baselines": {"validation": {"majority": {"accuracy": 0.53}}}}
    warned = {"warnings": {"validation": "predicts the class 'no' for every example"}, "baselines": {}}
    models = {
        "big": ({("rte", "validation"): {"accuracy": 0.53001}}, {}),
        "alike": (found, majority),
        "constant": (found, warned),
        "sound": ({("rte", "validation"): {"accuracy": 0.7}}, {}),
    }
    facts = [
        facts_of(name, saved(classifier("bert"), tmp_path / name, scores, bertillery=said), classifier("bert"), [4])
        for name, (scores, said) in models.items()
    ]
    shown = comparison(facts, [10, 4, 4, 4])
    kept = {name: re.search(rf"\| {name} +\| ([\d.]+)( \([\d.]+ %\))?", shown.tables()) for name in models}
    assert {name: bool(match and match[2]) for name, match in kept.items()} == {
        **dict.fromkeys(("big", "alike", "constant"), False), "sound": True,
    }  # fmt: skip
    assert "- alike, rte accuracy: no share of the teacher's: its score is no higher than" in shown.tables()
    assert "- constant, rte accuracy: no share of the teacher's: predicts the class 'no'" in shown.tables()
    json.dumps(shown.as_json())
    turned = comparison(facts[::-1], [10, 4, 4, 4])
    assert turned.kept(facts[0], ("rte", "validation", "accuracy")) == pytest.approx(0.53001 / 0.7)
    assert all(comparison([facts[i], facts[3]], [1, 1]).kept(facts[3], turned.columns[0]) is None for i in (1, 2))


def test_of_several_seeds_those_without_an_answer_are_counted() -> None:
    key, constant = ("rte", "validation"), "predicts the class 'no' for every example"
    sound = Card({key: {"accuracy": 0.6}})
    warned = replace(sound, warnings={key: constant})
    student = replace(facts("small"), cards=(warned, sound, warned))
    teacher = facts("big", {key: {"accuracy": 0.8}})
    shown = comparison([teacher, student], [10, 4])
    assert f": 2 of 3 models: {constant}." in shown.tables()
    once = replace(student, cards=(warned, sound, sound))
    assert comparison([teacher, once], [10, 4]).kept(once, shown.columns[0]) == pytest.approx(0.75)


def test_a_score_is_the_median_of_the_seeds_that_lie_beside() -> None:
    """With their range, in the table and in the picture; a seed that was not scored does not count."""
    cards: list[dict[tuple[str, str], dict[str, float]]] = [
        {("rte", "validation"): {"accuracy": value}} for value in (0.6, 0.7, 0.5)
    ]
    found = comparison([facts("big", cards[1]), facts("small", *cards, {})], [10, 4])
    assert "| small | 60.00 [50.00, 70.00] (85.7 %) |" in re.sub(" +", " ", found.tables())
    assert "medians over seeds, with the lowest and the highest: small 3." in found.tables()
    (axis,) = draw(found)
    ranges = [[list(line[:, 1]) for line in lines.get_segments()] for lines in axis.collections]
    assert ranges == [[[70, 70]], [[50, 70]]]
    pyplot.close(axis.figure)


@pytest.mark.parametrize("scored", [True, False])
def test_each_point_of_a_crowd_has_a_name_of_its_own(scored: bool) -> None:
    """In a legend outside the axes, where it hides no point; colours repeat after ten models, with other markers."""
    found: dict[tuple[str, str], dict[str, float]] = {("rte", "validation"): {"accuracy": 0.6}} if scored else {}
    models = [facts(f"student-with-a-name-{i}", found) for i in range(13)]
    (axis,) = draw(comparison(models, [10, *[4] * 12]))
    (legend,) = axis.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [f"{models[0].name} (teacher)", *(model.name for model in models[1:])]
    points = [line for line in axis.lines if line.get_marker() != "None"]
    assert len({(line.get_color(), line.get_marker()) for line in points}) == len(points) == 13
    axis.figure.canvas.draw()
    assert not legend.get_window_extent().overlaps(axis.get_window_extent())
    pyplot.close(axis.figure)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns status, output and errors."""
    monkeypatch.setattr(speed, "_TURN", 0.001)

    def run(teacher: Path, *students: Path, more: tuple[str, ...] = ()) -> tuple[int, str, str]:
        given = ",".join(map(str, students))
        arguments = [
            f"teacher={teacher}",
            f"students=[{given}]",
            f"dir={tmp_path / 'runs'}",
            "batch_sizes=[1,2]",
            *more,
        ]
        status = main(arguments)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_the_command_leaves_a_folder_that_reads_back(command: Any, tmp_path: Path) -> None:
    teacher = saved(classifier("bert"), tmp_path / "big", {("rte", "validation"): {"accuracy": 0.8}})
    small = saved(classifier("distilbert", n_layers=1), tmp_path / "small", {("rte", "validation"): {"accuracy": 0.6}})
    bare = saved(classifier("albert"), tmp_path / "bare")
    given = teacher, small, bare
    assert command(*given, more=("lengths=[8]",))[0] == 0
    status, said, _ = command(*given, more=("lengths=[8,100,200]",))  # replaces the first
    assert status == 0
    folder = tmp_path / "runs/compare/big"
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "latency.png", "results.json", "table.md"]
    assert not [other for other in folder.parent.iterdir() if other != folder]
    table = (folder / "table.md").read_text()
    assert table.strip() in said
    assert "75.0 %" in table
    assert "bare: its model card has no scores" in table
    assert "No length above 40 was measured" in table
    assert said.splitlines()[-1].startswith("next        make onnx MODEL=")
    results = json.loads((folder / "results.json").read_text())
    assert [model["name"] for model in results["models"]] == ["big", "small", "bare"]
    score = {"dataset": "rte", "split": "validation", "metric": "accuracy", "score": 0.6, "kept": pytest.approx(0.75)}
    assert results["models"][1]["scores"] == [{**score, "seeds": [0.6]}]
    assert [(each["length"], each["batch_size"]) for each in results["speeds"]] == [(8, 1), (8, 2), (40, 1), (40, 2)]
    for each in results["speeds"]:
        base = each["sides"]["big"]["seconds"]
        for side in each["sides"].values():
            ratios = [a / b for a, b in zip(base, side["seconds"], strict=True)]
            assert len(ratios) == results["rounds"] == 5
            assert min(side["seconds"]) > 0
            assert side["median_seconds"] == statistics.median(side["seconds"])
            assert side["times_as_fast"] == pytest.approx(statistics.median(ratios))
            assert (side["smallest"], side["largest"]) == (min(ratios), max(ratios))
            assert side["examples_per_second"] == pytest.approx(each["batch_size"] / side["median_seconds"])
        assert each["sides"]["big"]["times_as_fast"] == 1
    page = folder / "README.md"
    assert (metadata_load(page) or {})["students"] == ["small", "bare"]
    assert table.strip() in page.read_text()
    assert str(tmp_path) not in page.read_text()
    assert pyplot.imread(folder / "latency.png").ndim == 3


def test_models_without_a_task_are_compared(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a torch that was built for GPUs on a machine without one, too: it names a device that is not there."""
    named = torch.accelerator.current_accelerator
    monkeypatch.setattr(
        torch.accelerator,
        "current_accelerator",
        lambda check_available=False: named(check_available) if check_available else torch.device("cuda"),
    )
    teacher = saved(BertForPreTraining(cast(Any, tiny_config("bert"))), tmp_path / "big")
    student = saved(AutoModel.from_config(tiny_config("electra")), tmp_path / "small")
    status, said, _ = command(teacher, student, more=("lengths=[4]", "name=encoders"))
    assert status == 0
    assert "kept" not in said
    assert (tmp_path / "runs/compare/encoders/latency.png").is_file()


def test_what_does_not_belong_together_is_refused(command: Any, tmp_path: Path) -> None:
    teacher = saved(classifier("bert"), tmp_path / "big")
    turned = saved(classifier("bert", **labelled(("yes", "no", "maybe"))), tmp_path / "turned")
    status, _, said = command(teacher, turned)
    assert status == 2
    assert (
        "teacher big: SequenceClassification (single_label_classification) with the labels no=0, yes=1, maybe=2" in said
    )
    assert (
        "student turned: SequenceClassification (single_label_classification) with the labels yes=0, no=1, maybe=2"
        in said
    )
    several = saved(classifier("bert", problem_type="multi_label_classification"), tmp_path / "several")
    said = command(teacher, several)[2]
    assert "student several: SequenceClassification (multi_label_classification) with the labels no=0" in said
    words = saved(BertForMaskedLM(cast(Any, tiny_config("bert"))), tmp_path / "words")
    assert "student words: no task" in command(teacher, words)[2]
    assert "given twice" in command(teacher, teacher)[2]
    assert "needs models: make compare TEACHER=" in command(teacher)[2]
    assert "batch_size: unknown key" in command(teacher, words, more=("batch_size=3",))[2]
    assert not (tmp_path / "runs").exists()


def test_make_says_what_is_compared() -> None:
    said = would_run("compare", "TEACHER=a/export", "STUDENTS=b/export  c", "ARGS=rounds=9")
    assert said == """.venv/bin/python -m deploy.compare teacher=a/export 'students=["b/export", "c"]' rounds=9"""


def test_only_whole_models_are_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; give a model directory"):
        open_stock(tmp_path / "none")
    with pytest.raises(InputError, match=r"no config\.json in this folder"):
        open_stock(tmp_path)
    model = classifier("bert")
    torn = saved(model.base_model, tmp_path / "torn")
    model.config.architectures = ["BertForSequenceClassification"]
    model.config.save_pretrained(torn)
    with pytest.raises(InputError, match=r"says BertForSequenceClassification, but the weights lack classifier\.bias"):
        open_stock(torn)
    (torn / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="its weights cannot be read"):
        open_stock(torn)

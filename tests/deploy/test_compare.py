from __future__ import annotations

import itertools
import json
import re
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.repocard import metadata_load
from matplotlib import pyplot
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertForMaskedLM, BertForPreTraining

from bertillery.config.section import InputError
from bertillery.models.encoders import FAMILIES
from deploy import timing as speed
from deploy.compare import Comparison, draw, main, write_comparison
from deploy.facts import Card, Facts, facts_of, read_card, seeds_of
from deploy.timing import Speed, side_by_side, speed_rows
from finetune.config import load_config
from finetune.report import model_card
from finetune.stock import names_of, open_stock, stock_inputs
from tests.distill.models import classifier, labelled, saved
from tests.models.families import tiny_config
from tests.test_commands import would_run

HEADS = ["SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "MaskedLM"]


def counted(model: Any, length: int) -> int:
    """FLOPs by torch's counter, which sees attention where it is plain products."""
    model.eval().set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(**stock_inputs(model, 1, length))
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", FAMILIES)
def test_multiply_adds_are_half_of_torchs_count(kind: str, tmp_path: Path) -> None:
    config = tiny_config(kind)
    models = [getattr(transformers, f"AutoModelFor{head}").from_config(config) for head in HEADS]
    models += [AutoModel.from_config(config)]
    if kind in ("bert", "albert", "electra"):
        models += [transformers.AutoModelForPreTraining.from_config(config)]
    for model in models:
        facts = facts_of("a", tmp_path, model, [5, 17])
        assert {2 * n: length for length, n in facts.multiply_adds.items()} == {
            counted(model, length): length for length in (5, 17)
        }, type(model).__name__


def test_parameters_to_the_unit(tmp_path: Path) -> None:
    width, inner, vocabulary, positions, labels = 24, 56, 90, 40, 3
    tables = width * (vocabulary + positions + 2)
    layer = 4 * (width * width + width) + (width * inner + inner) + (inner * width + width) + 4 * width
    pooler, classes = width * width + width, width * labels + labels
    bert = facts_of("a", tmp_path, classifier("bert"), [4])
    assert bert.parameters == tables + 2 * width + 3 * layer + pooler + classes
    assert bert.without_embeddings == bert.parameters - tables
    narrow = 16
    tables = narrow * (vocabulary + positions + 2)
    albert = facts_of("a", tmp_path, classifier("albert"), [4])
    assert albert.parameters == tables + 2 * narrow + narrow * width + width + layer + pooler + classes
    assert albert.without_embeddings == albert.parameters - tables
    words = facts_of("a", tmp_path, BertForMaskedLM(tiny_config("bert")), [4])
    transform = width * width + width + 2 * width
    assert words.without_embeddings == 2 * width + 3 * layer + transform + vocabulary  # the decoder is the table


def test_bytes_are_those_of_the_files_that_are_read(tmp_path: Path) -> None:
    model = classifier("bert")
    folder = saved(model, tmp_path / "a")
    (folder / "training_args.bin").write_bytes(b"12345")
    (folder / "pytorch_model.bin").write_bytes(b"12345")
    assert facts_of("a", folder, model, [4]).bytes == (folder / "model.safetensors").stat().st_size
    model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    shards = sorted((tmp_path / "b").glob("*.safetensors"))
    assert len(shards) > 1
    assert facts_of("b", tmp_path / "b", model, [4]).bytes == sum(file.stat().st_size for file in shards)


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


def test_scores_are_read_from_the_card(tmp_path: Path) -> None:
    found = {("mnli", "validation_matched"): {"accuracy": 0.8, "f1": 0.7}, ("sts", "validation"): {"pearson": -0.1}}
    assert read_card(saved(classifier("bert"), tmp_path / "a", found)).scores == found
    assert read_card(saved(classifier("bert"), tmp_path / "b")).scores == {}
    for broken in ("no metadata", "---\n- 1\n---\n", "---\nmodel-index:\n- name: x\n---\n", "---\na: [\n---\n"):
        (tmp_path / "b/README.md").write_text(broken)
        assert read_card(tmp_path / "b").scores == {}


def test_names_tell_runs_apart() -> None:
    runs = [Path(f"runs/finetune/rte/{name}/export") for name in ("a/seed-1", "a/seed-2", "b/seed-1")]
    assert names_of(runs) == ["a/seed-1", "a/seed-2", "b+rte"]
    assert names_of([Path("runs/distill/small/export"), Path("other/small")]) == ["distill/small", "other/small"]


class Clock:
    """Time that passes only when a side is called."""

    def __init__(self) -> None:
        self.now, self.called = 0.0, []

    def perf_counter(self) -> float:
        return self.now

    def side(self, name: str, *seconds: float) -> Any:
        durations = itertools.cycle(seconds)

        def call() -> None:
            self.called.append(name)
            self.now += next(durations)

        return call


def test_sides_take_turns_and_ratios_are_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    # Two calls warm up, then a call is a turn; the third round of both is slow, as on a machine that is disturbed.
    sides = {"a": clock.side("a", 4, 4, 4, 4, 40, 4, 4), "b": clock.side("b", 9, 9, 2, 2, 20, 1, 8)}
    measured = side_by_side(sides, length=7, batch_size=3, rounds=5)
    assert clock.called == [*"aabb", *"ababababab"]
    assert measured.seconds == {"a": [4, 4, 40, 4, 4], "b": [2, 2, 20, 1, 8]}
    assert measured.ratios("b") == [2, 2, 2, 4, 0.5]
    assert speed_rows([measured], "teacher")[1:] == [
        ["7", "3", "a", "4,000.00", "0.8", "1", "", ""],
        ["7", "3", "b", "2,000.00", "1.5", "2.00", "0.50", "4.00"],
    ]


def test_a_turn_repeats_a_short_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    measured = side_by_side({"a": clock.side("a", 0.03125)}, length=7, batch_size=1, rounds=5)
    assert measured.seconds == {"a": [0.03125] * 5}
    assert len(clock.called) == 2 + 5 * round(0.2 / 0.03125)


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
    assert found.fastest_student() is student


def test_a_picture_that_fails_costs_no_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.compare.draw", lambda *_: 1 / 0)
    monkeypatch.setattr("deploy.compare._page", lambda _: "page")
    write_comparison(comparison([facts("big", {}), facts("small", {})], [10, 4]), tmp_path / "a")
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["README.md", "results.json", "table.md"]


def test_a_card_of_ours_says_what_a_comparison_asks(tmp_path: Path) -> None:
    given = ["task={name: rte, type: classification, labels: [a, b], metrics: accuracy, files: {train: x}}"]
    config = load_config([*given, f"model.from={saved(classifier('bert'), tmp_path / 'a')}"])
    text = model_card(
        "rte/a/seed-1", "a model", "", {"validation": {"accuracy": 0.5}}, config, "", None,
        baselines={"validation": {"majority": {"accuracy": 0.5}, "bag of words": {"accuracy": 0.6}}},
        warnings={"validation": "predicts the class 'a' for every example"},
    )  # fmt: skip
    (tmp_path / "README.md").write_text(text)
    card, key = read_card(tmp_path), ("rte", "validation")
    assert (card.scores, card.majority) == ({key: {"accuracy": 0.5}}, {key: {"accuracy": 0.5}})
    assert card.warnings == {key: "predicts the class 'a' for every example"}


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


def write_run(path: Path, **settings: Any) -> Path:
    """The folder of a run with this configuration, which has to be there to be compared; its export."""
    (path / "export").mkdir(parents=True)
    (path / "config.yaml").write_text(json.dumps(settings))
    return path / "export"


def test_seeds_are_those_of_the_same_runs(tmp_path: Path) -> None:
    start = {"from": "a/student"}
    one, two, eleven = (
        write_run(tmp_path / f"seed-{n}", run={"name": f"seed-{n}", "seed": n}, model=start, train={"keep": n})
        for n in (1, 2, 11)
    )
    other = write_run(tmp_path / "other", run={"seed": 3}, model=start)
    assert seeds_of(two) == ([two, one, eleven], [])
    assert seeds_of(other) == ([other], [])
    assert seeds_of(tmp_path / "seed-1") == ([tmp_path / "seed-1"], [])
    write_run(tmp_path / "seed-3", run={"seed": 3}, model=start, optim={"learning_rate": 0.001})
    write_run(tmp_path / "seed-4", run={"seed": 4}, model={"from": "b/student"})
    write_run(tmp_path / "seed-5").with_name("config.yaml").unlink()
    same, others = seeds_of(two)
    assert same == [two, one, eleven]
    assert others == [
        "seed-3 (optim.learning_rate: it has 0.001, the compared run has nothing)",
        "seed-4 (model.from: it has 'b/student', the compared run has 'a/student')",
        f"seed-5 (there is no {tmp_path}/seed-5/config.yaml)",
    ]
    noted = comparison([replace(facts("big", {}), left_out=tuple(others)), facts("small", {})], [10, 4]).tables()
    assert f"- big: not other seeds of the same run, and left out: {'; '.join(others)}." in noted
    assert "small: not" not in noted


def test_seeds_of_two_stages_are_those_of_the_same_first_stage(tmp_path: Path) -> None:
    def stages(seed: int, student: str) -> Path:
        before = {"run": {"seed": seed}, "model": {"from": student}}
        start = {"from": f"first/seed-{seed}/export"}
        return write_run(tmp_path / f"seed-{seed}", run={"seed": seed}, model=start, before=before)

    one, two, _ = stages(1, "a"), stages(2, "a"), stages(3, "b")
    assert seeds_of(one) == ([one, two], ["seed-3 (before.model.from: it has 'b', the compared run has 'a')"])


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
    for _ in range(2):  # the second replaces the first
        status, said, _ = command(teacher, small, bare, more=("lengths=[8,100,200]",))
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
    teacher = saved(BertForPreTraining(tiny_config("bert")), tmp_path / "big")
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
    words = saved(BertForMaskedLM(tiny_config("bert")), tmp_path / "words")
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

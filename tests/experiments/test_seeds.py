"""Several seeds: which runs are made, what the table says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from experiments import jobs, seeds
from experiments.jobs import Job, run_jobs
from experiments.seeds import main, write_table
from finetune.__main__ import main as finetune
from tests.finetune.tasks import read_labels, read_outputs, write_encoder, write_task


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs in this process; returns their names as they are run."""
    names: list[str] = []

    def run(given: list[Job], side_by_side: int | None = None) -> list[str]:
        names.extend(job.name for job in given)
        return [job.name for job in given if finetune([*job.arguments])]

    monkeypatch.setattr(seeds, "run_jobs", run)
    return names


def test_seeds_are_run_once_and_told_together(
    tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder, task = write_encoder(tmp_path / "tiny"), write_task(tmp_path / "toy")
    given = [f"tasks=[{task}]", f"model.from={encoder}", f"run.dir={tmp_path}/runs", "run.threads=1"]
    assert main([*given, "seeds=2"]) == 0
    assert main([*given, "seeds=3"]) == 0
    path = "classification_toy/tiny/seed-"
    assert in_process == [f"{path}{seed}" for seed in (1, 2, 3)], "what is finished is not run again"
    summary = json.loads((tmp_path / "runs/finetune/tables/tiny/table.json").read_text())["classification_toy"]
    found = [
        json.loads((tmp_path / f"runs/finetune/{path}{seed}/finished.json").read_text())["scores"]["validation"]
        for seed in (1, 2, 3)
    ]
    values = summary["scores"]["validation"]["accuracy"]
    assert values == [each["accuracy"] for each in found]
    heads = {
        load_file(tmp_path / f"runs/finetune/{path}{seed}/export/model.safetensors")["classifier.weight"]
        .numpy()
        .tobytes()
        for seed in (1, 2, 3)
    }
    assert len(heads) == 3, "a seed changes the head, the order and the dropout"
    assert summary["best"].endswith(f"seed-{int(np.argmax(values)) + 1}")
    files = [tmp_path / f"runs/finetune/{path}{seed}/predictions/validation.tsv" for seed in (1, 2, 3)]
    together = np.mean([read_outputs(file) for file in files], axis=0).argmax(-1)
    labels = np.array([["red", "green", "blue"].index(label) for label in read_labels(files[0])])
    assert summary["ensemble"]["validation"]["accuracy"] == (together == labels).mean()
    told = capsys.readouterr().out
    assert f"{100 * np.median(values):.2f}" in told
    assert f"{100 * np.std(values, ddof=1):.2f}" in told


def test_the_table_keeps_tasks_of_earlier_calls(tmp_path: Path, in_process: list[str]) -> None:
    """As long as their runs are there."""
    encoder = write_encoder(tmp_path / "tiny")
    given = [f"model.from={encoder}", f"run.dir={tmp_path}/runs", "run.threads=1", "train.steps=1"]
    file, names = tmp_path / "runs/finetune/tables/tiny/table.json", ["classification_toy", "regression_toy"]
    for kind in ("classification", "regression"):
        assert main([f"tasks=[{write_task(tmp_path / kind, kind)}]", *given]) == 0
    assert [*json.loads(file.read_text())] == names
    shutil.rmtree(tmp_path / "runs/finetune" / names[0])
    assert main([f"tasks=[{tmp_path}/regression/task.yaml]", *given]) == 0
    assert [*json.loads(file.read_text())] == names[1:]


def test_an_error_in_a_run_is_told_and_the_others_are_run(tmp_path: Path) -> None:
    """In processes of their own: one that cannot start, and two that only print what they are."""
    names = ["good", "bad", "fine"]
    given = {"good": ("--help",), "bad": ("nothing",), "fine": ("--help",)}
    failed = run_jobs([Job(name, given[name], tmp_path / f"{name}.log") for name in names], side_by_side=2)
    assert len(failed) == 1
    assert "bad failed" in failed[0]
    assert "argument 'nothing' is neither" in failed[0]
    assert "one task, one seed" in (tmp_path / "fine.log").read_text()


def test_no_runs_are_not_announced(capsys: pytest.CaptureFixture[str]) -> None:
    """As where everything is finished, or no task starts from MNLI."""
    assert run_jobs([]) == []
    assert capsys.readouterr().out == ""


def test_missing_data_is_said_for_all_tasks_at_once(
    tmp_path: Path, in_process: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = write_encoder(tmp_path / "tiny")
    (tmp_path / "glue").mkdir()
    monkeypatch.setenv("GLUE_DIR", str(tmp_path / "glue"))
    assert main(["tasks=[rte,cola]", f"model.from={encoder}", f"run.dir={tmp_path}/runs"]) == 2
    said = capsys.readouterr().err
    assert "rte" in said
    assert "cola" in said
    assert not in_process
    assert main(["tasks=[rte]", f"model.from={encoder}", "run.seed=3"]) == 2
    assert "follow from seeds=" in capsys.readouterr().err


def test_places_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "num_cores", lambda: 8)
    monkeypatch.setattr(jobs.torch.cuda, "device_count", lambda: 0)
    assert jobs.places(None) == [{"OMP_NUM_THREADS": "1"}] * 8
    assert jobs.places(3) == [{"OMP_NUM_THREADS": "2"}] * 3
    monkeypatch.setattr(jobs.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in jobs.places(4)] == ["0", "1", "0", "1"]
    for given in (["4", "5"], ["GPU-8932f937", "GPU-3fb1c2aa"]):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ", ".join(given))
        assert [place["CUDA_VISIBLE_DEVICES"] for place in jobs.places(3)] == [*given, given[0]]


def test_the_table_names_models_that_learned_nothing(tmp_path: Path) -> None:
    summary: dict[str, Any] = {
        "scores": {"validation": {"accuracy": [0.5, 0.7, 0.9]}},
        "ensemble": {},
        "baselines": {"validation": {"majority": {"accuracy": 0.5}, "bag of words": {"accuracy": 0.6}}},
        "warnings": ["predicts the majority class 'a' for every example"],
        "runs": ["x", "y", "z"],
        "best": "x",
    }
    table = write_table({"toy": summary}, tmp_path / "t", "model")
    (row,) = [line for line in table.splitlines() if line.startswith("| toy")]
    assert [cell.strip() for cell in row.split("|")[4:-1]] == [
        "70.00",
        "70.00",
        "20.00",
        "90.00",
        "-",
        "50.00",
        "60.00",
    ]
    assert "1 of 3 models: predicts the majority class 'a'" in table
    assert (tmp_path / "t/seeds.png").stat().st_size > 5000


def summary_of(*values: float, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """What a task's seeds reached, as ``write_table`` takes it."""
    return {
        "scores": {"validation": {"accuracy": [*values]}},
        "ensemble": {},
        "baselines": {"validation": {}},
        "warnings": [*warnings],
        "runs": [f"seed-{i}" for i in range(len(values))],
        "best": "seed-0",
    }


def test_a_picture_that_fails_costs_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("experiments.seeds._plot", lambda *_: 1 / 0)
    assert "| toy" in write_table({"toy": summary_of(0.5)}, tmp_path, "model")
    assert "seeds.png failed" in caplog.text


def test_the_picture_names_the_baselines_of_all_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("experiments.seeds.save", lambda axes, _: drawn.append(axes[0]))
    single, pair, score = summary_of(0.5), summary_of(0.6), summary_of(0.7)
    single["baselines"] = {"validation": {"majority": {"accuracy": 0.4}}}
    pair["baselines"] = {"validation": {"majority": {"accuracy": 0.3}, "overlap": {"accuracy": 0.2}}}
    score["baselines"] = {"validation": {"mean": {"accuracy": 0.0}, "overlap": {"accuracy": 0.1}}}
    write_table({"single": single, "pair": pair, "score": score}, tmp_path, "model")
    axes, found = drawn[0], {}
    for line in axes.get_lines():
        if not line.get_label().startswith("_"):
            found[line.get_label()] = (list(line.get_xdata()), list(line.get_ydata()), line.get_marker())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["seeds", "majority", "overlap", "mean"]
    assert found["overlap"][:2] == ([1, 2], [0.2, 0.1])
    assert len({marker for *_, marker in found.values()}) == 4


def test_a_statement_over_models_counts_those_it_is_true_of(tmp_path: Path) -> None:
    one, other = "predicts the class 'a' for every example", "predicts the majority class 'b' for every example"
    table = write_table({"toy": summary_of(0.5, 0.5, 0.4, 0.7, warnings=[other, one, other])}, tmp_path, "model")
    assert f"toy: 2 of 4 models: {other}." in table
    assert f"toy: 1 of 4 models: {one}." in table
    assert "3 of 4" not in table


def test_a_model_with_two_splits_is_one_model(tmp_path: Path) -> None:
    encoder, task = write_encoder(tmp_path / "tiny"), write_task(tmp_path / "toy")
    given = (str(task), f"model.from={encoder}", f"run.dir={tmp_path}/runs", "task.validation=[validation,other]")
    runs = seeds.Runs({1: (*given, "task.files.other=validation.jsonl")})
    path = runs.stages[0].path
    path.mkdir(parents=True)
    said = dict.fromkeys(("validation", "other"), "predicts the class 'red' for every example")
    scores = {name: {"accuracy": 0.3, "macro_f1": 0.1} for name in said}
    results = {"table": "", "scores": scores, "baselines": {name: {} for name in said}, "warnings": said}
    (path / "finished.json").write_text(json.dumps(results))
    summary = runs.summary()
    assert summary is not None
    table = write_table({"toy": summary}, tmp_path / "t", "model")
    assert table.count("1 of 1 models") == 2
    assert "2 of 1" not in table


def test_the_mean_of_glue_is_over_its_tasks(tmp_path: Path) -> None:
    """And says which; a task of somebody's own has no part in it."""
    table = write_table({"rte": summary_of(0.6), "mood": summary_of(0.9), "sst2": summary_of(0.8)}, tmp_path, "model")
    (mean,) = [line for line in table.splitlines() if line.startswith("| mean")]
    assert "70.00" in mean
    assert "mean of GLUE: rte, sst2 (2 of its 9 tasks)" in table
    assert (
        "| mean" not in write_table({"rte": summary_of(0.6), "mood": summary_of(0.9)}, tmp_path, "m").split("\n", 2)[2]
    )


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An encoder, and two toys that are called mnli and rte."""
    for name in ("mnli", "rte"):
        text = write_task(tmp_path / name).read_text().replace("name: classification_toy", f"name: {name}")
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(seeds, "TASKS", tmp_path)
    return write_encoder(tmp_path / "tiny")


def test_tasks_that_start_from_mnli(tmp_path: Path, in_process: list[str], encoder: Path) -> None:
    """Each seed from the model of the same seed, with a new head where the labels are others."""
    given = ["tasks=[rte,mnli]", "after_mnli=[rte]", "seeds=2", f"model.from={encoder}", "train.steps=2"]
    assert main([*given, f"run.dir={tmp_path}/runs", "run.threads=1"]) == 0
    assert in_process == ["mnli/tiny/seed-1", "mnli/tiny/seed-2", "rte/tiny+mnli/seed-1", "rte/tiny+mnli/seed-2"]
    for seed in (1, 2):
        config = (tmp_path / f"runs/finetune/rte/tiny+mnli/seed-{seed}/config.yaml").read_text()
        assert f"runs/finetune/mnli/tiny/seed-{seed}/export" in config
    table = json.loads((tmp_path / "runs/finetune/tables/tiny/table.json").read_text())
    assert sorted(table) == ["mnli", "rte"]
    assert main(["tasks=[rte]", "after_mnli=[rte]", f"model.from={encoder}"]) == 2


def test_what_cannot_start_from_mnli_is_said(
    tmp_path: Path,
    in_process: list[str],
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Missing data before the first run; a model of MNLI that failed beside the table of what did not."""
    given = ["tasks=[mnli,rte]", "after_mnli=[rte]", "seeds=2", f"model.from={encoder}", "train.steps=2"]
    given += [f"run.dir={tmp_path}/runs", "run.threads=1"]
    (tmp_path / "rte/train.jsonl").rename(tmp_path / "rte/elsewhere")
    assert main(given) == 2
    assert "train.jsonl: no such file" in capsys.readouterr().err
    assert not in_process
    (tmp_path / "rte/elsewhere").rename(tmp_path / "rte/train.jsonl")
    run = seeds.run_jobs

    def broken(jobs: list[Job], side_by_side: int | None = None) -> list[str]:
        sound = [job for job in jobs if job.name != "mnli/tiny/seed-1"]
        return run(sound, side_by_side) + ["mnli/tiny/seed-1 failed"] * (len(sound) < len(jobs))

    monkeypatch.setattr(seeds, "run_jobs", broken)
    assert main(given) == 2
    assert in_process == ["mnli/tiny/seed-2", "rte/tiny+mnli/seed-2"]
    told = capsys.readouterr().out
    assert "mnli/tiny/seed-1 failed" in told
    assert f"rte did not start from {tmp_path}/runs/finetune/mnli/tiny/seed-1: it is not finished" in told
    table = json.loads((tmp_path / "runs/finetune/tables/tiny/table.json").read_text())
    assert [len(table[task]["runs"]) for task in ("mnli", "rte")] == [1, 1]

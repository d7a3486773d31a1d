"""Searches: what a trial is, that none is run twice, and what is said of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bertillery.config.layers import read_values
from bertillery.config.section import ConfigError
from bertillery.system.files import remove
from experiments import search
from experiments.jobs import Job
from experiments.search import Search, SearchSection, Trial, as_argument, main, read_ledger, trials_table
from experiments.space import SPACES, Range, Space, read_space
from finetune.__main__ import main as finetune
from finetune.config import load_config
from finetune.stage import Finetuning
from tests.finetune.tasks import write_encoder, write_task

RATE = Range("log_uniform", 1e-5, 1e-3)
MIXED = Space({"optim.learning_rate": RATE, "train.phases.0.batch_size": [4, 8], "train.steps": ["2 steps", "3 steps"]})
GRID = Space({"a": [1, 2, 3], "b": ["x", "y"], "c": [0.1, 0.2]})


def test_a_trial_depends_on_seed_and_number_alone() -> None:
    trials = [MIXED.trial(1, number) for number in range(50)]
    assert [MIXED.trial(1, number) for number in reversed(range(50))] == trials[::-1]
    assert len({json.dumps(trial) for trial in trials}) > 45, "few have the same three digits"
    assert all(MIXED.trial(2, number) != trial for number, trial in enumerate(trials))
    # Neither the order of the file nor a further setting changes the others.
    more = Space({"a": RATE, **dict(reversed(MIXED.settings.items()))})
    for number, trial in enumerate(trials):
        assert {key: value for key, value in more.trial(1, number).items() if key != "a"} == trial


def test_every_decade_is_as_likely_as_the_other() -> None:
    drawn = np.array([MIXED.trial(7, number)["optim.learning_rate"] for number in range(4000)])
    assert drawn.min() >= 1e-5
    assert drawn.max() <= 1e-3
    shares, _ = np.histogram(np.log10(drawn), bins=np.linspace(-5, -3, 11))
    assert abs(shares / 4000 - 0.1).max() < 0.02
    choices = [MIXED.trial(7, number)["train.phases.0.batch_size"] for number in range(4000)]
    assert abs(choices.count(4) / 4000 - 0.5) < 0.03
    even = np.array([Range("uniform", -2.0, 6.0).at(share) for share in np.linspace(0, 1, 801)])
    np.testing.assert_allclose(even, np.linspace(-2, 6, 801), atol=6e-3)
    assert Range("log_uniform", 1.2346e-5, 1.2347e-5).at(0.3) == 1.2346e-5, "rounding does not leave the range"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_as_many_trials_as_a_grid_has_points_cover_it(seed: int) -> None:
    assert GRID.size == 12
    points = [tuple(GRID.trial(seed, number).values()) for number in range(12)]
    assert set(points) == {(a, b, c) for a in (1, 2, 3) for b in "xy" for c in (0.1, 0.2)}
    assert points != [tuple(GRID.trial(seed + 1, number).values()) for number in range(12)]
    turned = Space(dict(reversed(GRID.settings.items())))
    assert [tuple(turned.trial(seed, number).values()) for number in range(12)] == points
    assert MIXED.size is None


def test_the_spaces_that_are_shipped() -> None:
    for path in SPACES.glob("*.yaml"):
        space, problems = read_space(path.stem)
        assert problems == []
        assert re.search(r"arXiv \d{4}\.\d{5}", path.read_text())
        assert space.settings
    assert read_space("bert_grid")[0].size == 18, "appendix A.3 of the paper"
    assert read_space("bert_mini_grid")[0].size == 20, "four rates, five batch sizes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search")
    write_encoder(path / "encoder")
    write_task(path / "toy")
    (path / "grid.yaml").write_text("optim.learning_rate: [1.0e-3, 2e-3]\ntrain.steps: [2 steps, 3 steps, 4 steps]\n")
    (path / "mixed.yaml").write_text(
        "optim.learning_rate: {distribution: log_uniform, low: 1.0e-4, high: 1.0e-2}\n"
        "train.phases.0.batch_size: [4, 8]\noptim.warmup: [10%, 2 steps]\n"
    )
    return path


def arguments(folder: Path, runs: Path, *more: str, space: str = "mixed") -> list[str]:
    places = [f"model.from={folder}/encoder", f"run.dir={runs}", "run.threads=1", "run.device=cpu"]
    return [str(folder / "toy" / "task.yaml"), *places, f"space={folder}/{space}.yaml", *more]


class Runs:
    """Instead of running, notes what was to be run and leaves results: a score that grows with the learning rate."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.failing: set[str] = set()
        monkeypatch.setattr(search, "run_jobs", self)

    def __call__(self, jobs: Sequence[Job], side_by_side: int | None) -> list[str]:
        for job in jobs:
            self.ran.append(job.name.rpartition("/")[2])
            if self.ran[-1] not in self.failing:
                stage = Finetuning(load_config(job.arguments))
                (stage.path / "checkpoints").mkdir(parents=True)
                score = 0.5 + 10 * stage.config.optim.learning_rate
                scores = {"validation": {"accuracy": score, "macro_f1": 0.0}}
                results = {"table": "", "scores": scores, "baselines": {"validation": {}}, "warnings": {}}
                (stage.path / "finished.json").write_text(json.dumps(results))
        return [name for name in self.ran if name in self.failing]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(monkeypatch)


def test_a_finished_trial_is_not_run_again_and_more_extend_the_search(
    folder: Path, tmp_path: Path, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "finetune/classification_toy/encoder/search-1"
    assert main(arguments(folder, tmp_path, "trials=3")) == 0
    assert runs.ran == ["trial-0", "trial-1", "trial-2"]
    assert not (base / "trial-0/checkpoints").exists()
    first = read_ledger(base / "ledger.jsonl")
    remove(base / "trial-1")  # the ledger remembers
    assert main(arguments(folder, tmp_path, "trials=5")) == 0
    assert runs.ran[3:] == ["trial-3", "trial-4"]
    ledger = read_ledger(base / "ledger.jsonl")
    assert {number: ledger[number] for number in first} == first
    assert [*ledger] == [0, 1, 2, 3, 4]
    best = max(ledger.values(), key=lambda trial: trial.settings["optim.learning_rate"])
    said = capsys.readouterr().out
    assert main(arguments(folder, tmp_path, "trials=2")) == 0, "fewer are a look back"
    assert runs.ran[5:] == []
    assert len(read_ledger(base / "ledger.jsonl")) == 5
    for part in (f"best        {best.path}\n", "5 trials, median", "optimistic", str(base / "ledger.jsonl")):
        assert part in said, part
    assert (base / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_fails_ends_no_search(
    folder: Path, tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(search, "plot_trials", lambda *_: 1 / 0)
    assert main(arguments(folder, tmp_path, "trials=1")) == 0
    assert "trials.png failed" in caplog.text
    assert (tmp_path / "finetune/classification_toy/encoder/search-1/trials.md").exists()


def test_a_torn_ledger_and_a_killed_search(folder: Path, tmp_path: Path, runs: Runs) -> None:
    runs.failing = {"trial-1"}
    assert main(arguments(folder, tmp_path, "trials=3")) == 2
    file = tmp_path / "finetune/classification_toy/encoder/search-1/ledger.jsonl"
    whole = file.read_text()
    assert [*read_ledger(file)] == [0, 2]
    file.write_text(whole[:-40])
    runs.failing = set()
    assert main(arguments(folder, tmp_path, "trials=3")) == 0
    assert runs.ran[3:] == ["trial-1"], "the torn line's trial is finished, as its folder says"
    lines = file.read_text().splitlines(keepends=True)
    assert [json.loads(line)["trial"] for line in lines] == [0, 1, 2]
    assert lines[::2] == whole.splitlines(keepends=True)
    file.write_text("".join(lines[1:]))
    assert main(arguments(folder, tmp_path, "trials=1")) == 0
    assert file.read_text() == "".join(lines), "what is not asked for stays"


def test_another_search_under_the_same_name_is_refused(
    folder: Path, tmp_path: Path, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, tmp_path, "trials=1")) == 0
    assert main(arguments(folder, tmp_path, "trials=1", "run.threads=2", "side_by_side=1")) == 0
    for more, key in ((["train.keep=2", "optim.epsilon=1e-8"], "trials.optim.epsilon"), (["run.seed=3"], "run.seed")):
        assert main(arguments(folder, tmp_path, "trials=1", *more)) == 2
        said = capsys.readouterr().err
        assert f"{key}: " in said
        assert "search_seed=" in said
    assert main(arguments(folder, tmp_path, "trials=1", space="grid")) == 2
    assert main(arguments(folder, tmp_path, "trials=1", "optim.epsilon=1e-8", "search_seed=2")) == 0


def test_a_grid_has_no_more_trials_than_points(folder: Path, tmp_path: Path, runs: Runs) -> None:
    assert main(arguments(folder, tmp_path, "trials=50", space="grid")) == 0
    ledger = read_ledger(tmp_path / "finetune/classification_toy/encoder/search-1/ledger.jsonl")
    assert len({json.dumps(trial.settings) for trial in ledger.values()}) == len(runs.ran) == 6


def test_bad_spaces_are_refused_with_all_their_problems(
    folder: Path, tmp_path: Path, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(
        "optim.learning_rat: [1.0e-3]\noptim.epsilon: {distribution: log_uniform, low: 2, high: 1}\n"
        "optim.weight_decay: {distribution: normal, low: 0, high: 1}\noptim.warmup: []\nmodel.hidden_dropout: 0.1\n"
        "run.seed: [1, 2]\nmodel.attention_dropout: {distribution: log_uniform, low: 0, high: 1}\n"
        "train.steps: [2 steps, 3 steps, 2 steps]\ntrain.batch: [3]\nrun.threads: [1]\n"
    )
    assert main(arguments(folder, tmp_path, space="../" * 9 + str(tmp_path) + "/bad")) == 2
    said = capsys.readouterr().err
    for part in (
        "optim.learning_rat: unknown key (from argument 'optim.learning_rat=0.001'); did you mean 'learning_rate'",
        "optim.epsilon: low 2 is not below high 1", "optim.weight_decay: given", "uniform or log_uniform",
        "optim.warmup: given []", "model.hidden_dropout: given 0.1", "run.seed: ", "low 0 has no logarithm",
        "'2 steps' is there twice", "train.batch: unknown key",
    ):  # fmt: skip
        assert part in said, part
    assert runs.ran == []
    assert not (tmp_path / "finetune").exists()
    (tmp_path / "late.yaml").write_text("train.steps: [2 steps, 3 parsecs]\n")
    assert main(arguments(folder, tmp_path, f"space={tmp_path}/late.yaml")) == 2
    assert "train.steps: given '3 parsecs'" in capsys.readouterr().err
    assert main(arguments(folder, tmp_path, "optim.warmup=0%")) == 2
    assert "optim.warmup: given, and searched" in capsys.readouterr().err
    assert main(arguments(folder, tmp_path, "run.name=mine")) == 2
    assert main(arguments(folder, tmp_path, "space=none_such")) == 2
    assert "there are: bert_grid, bert_mini_grid, default" in capsys.readouterr().err


def test_the_winner_is_run_again_with_five_seeds(folder: Path, tmp_path: Path) -> None:
    """The printed command, taken apart as by a shell and make, is one of ``experiments.seeds`` with those settings."""
    section = SearchSection(space=str(folder / "mixed.yaml"), trials=1)
    given = [*arguments(folder, tmp_path)[:-1], "tracking.project=mine", "run.seed=9"]
    found = Search(section, given)
    settings = {"optim.learning_rate": 3e-5, "optim.warmup": "2 steps", "train.phases.0.batch_size": 8}
    command = found.again(Trial(4, settings, "accuracy", 0.5, "there"))
    _, target, *variables = shlex.split(command)
    named = dict(variable.split("=", 1) for variable in variables)
    assert target == "finetune"
    assert (named["TASK"], named["MODEL"], named["SEEDS"]) == (given[0], str(folder / "encoder"), "5")
    more = shlex.split(named["ARGS"])
    config = load_config([named["TASK"], f"model.from={named['MODEL']}", *more])
    assert (config.optim.learning_rate, config.optim.warmup) == (3e-5, "2 steps")
    assert (config.train.phases[0].batch_size, config.train.phases[0].sequence_length) == (8, 24)
    assert config.tracking.project == "mine"
    assert config.run.dir == found.folder / "trial-4-seeds"
    assert not [argument for argument in more if argument.startswith("run.seed=")]


@pytest.mark.parametrize(
    "value", [1, 0.5, 3e-05, 1e22, True, None, "3 epochs", "10%", "1e-3", "off", "true", "[x", [1, "a b"]]
)
def test_a_value_survives_the_command_line(value: Any) -> None:
    assert read_values([as_argument("a.b", value)])[0] == {"a": {"b": value}}


def test_the_table_has_the_best_first() -> None:
    trials = [Trial(n, {"rate": 1e-5}, "f1", score, "") for n, score in enumerate([0.1, float("nan"), 0.9, 0.9])]
    rows = [line.split("|")[1].strip() for line in trials_table(trials).splitlines()]
    assert rows == ["trial", "-----" + "--", "2", "3", "0", "1"]
    assert len(trials_table(trials, shown=2).splitlines()) == 4


def test_the_sweep_is_one_that_an_agent_can_start(folder: Path, tmp_path: Path, runs: Runs) -> None:
    """By the documented schema of a sweep, and by how an agent of wandb fills in its command."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    assert main(arguments(folder, tmp_path, "trials=3")) == 0
    base = tmp_path / "finetune/classification_toy/encoder/search-1"
    sweep = yaml.safe_load((base / "sweep.yaml").read_text())
    assert sweep.keys() == {"name", "project", "program", "method", "metric", "run_cap", "parameters", "command"}
    assert (sweep["method"], sweep["run_cap"]) == ("random", 3)
    assert sweep["metric"] == {"name": "score", "goal": "maximize"}
    assert sweep["parameters"] == {
        "optim.learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "optim.warmup": {"distribution": "categorical", "values": ["10%", "2 steps"]},
        "train.phases.0.batch_size": {"distribution": "categorical", "values": [4, 8]},
    }
    assert all(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name) for name in sweep["parameters"])
    program = tmp_path / "show"
    program.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    program.chmod(0o755)
    drawn = {"optim.learning_rate": 0.0002, "optim.warmup": "2 steps", "train.phases.0.batch_size": 4}
    filled = create_sweep_command_args({"args": {key: {"value": value} for key, value in drawn.items()}})
    filled |= {"env": ["/usr/bin/env"], "interpreter": [str(program)]}
    assert "tracking.wandb=online" in sweep["command"]
    command: list[str] = []
    for part in create_sweep_command(sweep["command"]):
        macro = part.startswith("${") and part.endswith("}")
        command += filled[part[2:-1]] if macro else [part]
    environment = {**os.environ, "WANDB_RUN_ID": "abc123"}

    def said_in(place: Path) -> list[str]:
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    said = said_in(tmp_path)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to(program)
    command[command.index(str(program))] = "no such interpreter"
    assert said_in(folder) == said, "the project's own interpreter, where there is one"
    assert said[:2] == ["-m", "finetune"]
    config = load_config(said[2:])
    assert config.run.name == "classification_toy/encoder/search-1/sweep-abc123"
    assert (config.optim.learning_rate, config.optim.warmup, config.train.phases[0].batch_size) == (2e-4, "2 steps", 4)
    (folder / "uniform.yaml").write_text("optim.weight_decay: {distribution: uniform, low: 0, high: 0.1}\n")
    section = SearchSection(space=str(folder / "uniform.yaml"), trials=1, search_seed=5)
    with Search(section, arguments(folder, tmp_path)[:-1]).opened():
        pass
    other = yaml.safe_load((base.with_name("search-5") / "sweep.yaml").read_text())
    assert other["parameters"] == {"optim.weight_decay": {"distribution": "uniform", "min": 0, "max": 0.1}}


def test_a_whole_search(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Two trials that are really run, in this process."""
    monkeypatch.setattr(search, "run_jobs", lambda jobs, _: [job.name for job in jobs if finetune(job.arguments)])
    given = arguments(folder, tmp_path, "trials=2", "train.steps=2", "train.evaluate_every=2", "run.precision=fp32")
    assert main(given) == 0
    base = tmp_path / "finetune/classification_toy/encoder/search-1"
    for number, trial in read_ledger(base / "ledger.jsonl").items():
        results = json.loads((base / f"trial-{number}/finished.json").read_text())
        assert trial.score == results["scores"]["validation"]["accuracy"]
        config = yaml.safe_load((base / f"trial-{number}/config.yaml").read_text())
        assert config["optim"]["learning_rate"] == trial.settings["optim.learning_rate"]
        assert config["train"]["phases"][0]["batch_size"] == trial.settings["train.phases.0.batch_size"]
    assert "next        make finetune TASK=" in capsys.readouterr().out


def test_a_space_needs_a_setting(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="at least one setting"):
        read_space(str(tmp_path / "empty.yaml"))

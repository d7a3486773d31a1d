"""A run's own ``config.yaml`` is a command's argument like any other: it gives the run again, and what comes next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from bertillery.config.layers import dump, take
from distill.config import load_config as distillation
from experiments.search import Search, SearchSection
from experiments.seeds import Runs
from finetune.config import FinetuneConfig
from finetune.config import load_config as finetuning
from finetune.stage import Finetuning
from pretrain.config import load_config as pretraining

ROOT = Path(__file__).resolve().parents[2]
TASK = f"{ROOT}/configs/finetune/sst2.yaml"
TINYBERT = [f"{ROOT}/configs/distill/tinybert_task.yaml", TASK, "model.from=a/student", "teacher.from=a/teacher"]
STAGES = {
    "pretrain": (pretraining, [f"{ROOT}/configs/pretrain/albert_docs.yaml", "run.seed=3"]),
    "finetune": (finetuning, [TASK, "model.from=a/model", "recipe=none", "optim.learning_rate=3e-5"]),
    "finetune without a file": (
        finetuning,
        ["task={name: mood, type: regression, metrics: [pearson], files: {train: a.csv, validation: b.csv}}",
         "model.from=a/model", "recipe=none"],
    ),
    "distill": (distillation, [f"{ROOT}/configs/distill/minilm.yaml", "teacher.from=a/teacher"]),
    "distill task": (distillation, [f"{ROOT}/configs/distill/distilbert_task.yaml", *TINYBERT[1:]]),
    "distill task in two stages": (distillation, TINYBERT),
}  # fmt: skip


@pytest.mark.parametrize(("load", "given"), STAGES.values(), ids=STAGES)
def test_the_configuration_of_a_run_gives_the_run_again(load: Any, given: list[str], tmp_path: Path) -> None:
    config = load(given)
    (tmp_path / "config.yaml").write_text(dump(config))
    assert dump(load([str(tmp_path / "config.yaml")])) == dump(config)


def ended(given: list[str], score: float) -> list[str]:
    """What a run that reached this score, where a baseline has .5, says should come next, as words of a shell."""
    config = finetuning(given)
    metric, split = config.task.metrics[0], config.task.validation[0]
    results = {"scores": {split: {metric: score}}, "baselines": {split: {"majority": {metric: 0.5}}}}
    return shlex.split(Finetuning(config, given).next_command(results), comments=False)


@pytest.mark.parametrize("name", ["finetune", "finetune without a file"])
@pytest.mark.parametrize("source", ["arguments", "config.yaml"])
def test_every_way_to_give_a_run_has_a_next_command(name: str, source: str, tmp_path: Path) -> None:
    """Several seeds of its settings, or a search around them, each in folders of its own."""
    _, given = STAGES[name]
    first = finetuning([*given, f"run.dir={tmp_path}"])
    written = Finetuning(first).path / "config.yaml"
    written.parent.mkdir(parents=True)
    written.write_text(dump(first))
    given = [*given, f"run.dir={tmp_path}"] if source == "arguments" else [str(written)]
    for score, target in ((0.9, "finetune"), (0.1, "search")):
        make, found, *words = ended(given, score)
        variables = dict(word.split("=", 1) for word in words[: words.index("(one" if score > 0.5 else "(a")])
        task, more = variables["TASK"], shlex.split(variables.get("ARGS", ""))
        assert (make, found, variables["MODEL"]) == ("make", target, "a/model")
        file = task if task.endswith(".yaml") else f"{ROOT}/configs/finetune/{task}.yaml"
        again = [file, f"model.from={variables['MODEL']}", *more]
        if target == "finetune":
            settings = [
                stage.config for stage in Runs(dict.fromkeys(range(1, int(variables["SEEDS"]) + 1), again)).stages
            ]
            assert [config.run.seed for config in settings] == [1, 2, 3, 4, 5]
        else:
            section, rest = take(SearchSection, [*again, "trials=2"])
            settings = [stage.config for stage in Search(section, rest).stages]
        names = [config.run.name for config in settings]
        assert len({*names}) == len(names)
        assert all(name and name.startswith(f"{first.task.name}/model/se") for name in names)
        assert all(likeness(config) == likeness(first) for config in settings)


def likeness(config: FinetuneConfig) -> Any:
    return config.task, config.model, config.optim.epsilon, config.run.dir


def test_seeds_of_a_distillation_share_no_stage(tmp_path: Path) -> None:
    """Not even where the configuration is that of a run, whose stages have names and seeds."""
    (tmp_path / "config.yaml").write_text(dump(distillation(TINYBERT)))
    plain, again = (
        [stage.config for stage in Runs(dict.fromkeys((1, 2), given)).stages]
        for given in (TINYBERT, [str(tmp_path / "config.yaml")])
    )
    assert [dump(config) for config in again] == [dump(config) for config in plain]
    assert len({config.model.from_ for config in again}) == 2

"""Recipes: the papers' numbers, chosen by family and size, under everything that is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from transformers import AlbertConfig, BertConfig, DistilBertConfig, ElectraConfig, GPT2Config, RobertaConfig

from bertillery.config.layers import dump
from bertillery.config.section import ConfigError, validate
from bertillery.engine.optim import learning_rate
from bertillery.engine.schedule import EpochSize, Schedule, steps_per_epoch
from bertillery.run.device import start_accelerator
from finetune.config import FinetuneConfig, load_config, model_name
from finetune.recipe import RECIPES, choose_recipe, describe_recipe
from finetune.stage import Finetuning
from tests.finetune.tasks import write_encoder, write_task

ROOT = Path(__file__).resolve().parents[2]
TASKS = sorted((ROOT / "configs" / "finetune").glob("*.yaml"))
MODELS = {
    "bert": BertConfig(hidden_size=768),
    "briefly_pretrained": BertConfig(hidden_size=256, num_attention_heads=4, pretraining_tokens=13_600_000),
    "bert_mini_at_length": BertConfig(hidden_size=256, num_attention_heads=4, pretraining_tokens=130_000_000_000),
    "compact": BertConfig(hidden_size=384, num_attention_heads=12),
    "bert_briefly": BertConfig(hidden_size=768, pretraining_tokens=13_600_000),
    "albert_briefly": AlbertConfig(hidden_size=256, num_attention_heads=4, pretraining_tokens=13_600_000),
    "electra_briefly": ElectraConfig(hidden_size=256, pretraining_tokens=13_600_000),
    "albert_narrow": AlbertConfig(hidden_size=256, num_attention_heads=4),
    "albert": AlbertConfig(hidden_size=768, num_attention_heads=12),
    "electra_small": ElectraConfig(hidden_size=256),
    "electra_base": ElectraConfig(hidden_size=768, num_attention_heads=12),
    "electra_large": ElectraConfig(hidden_size=1024, num_attention_heads=16),
    "gpt1": GPT2Config(n_layer=1),
    "distilbert": DistilBertConfig(),
    "roberta": RobertaConfig(),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder with a config.json for each: all that a recipe looks at."""
    root = tmp_path_factory.mktemp("models")
    for name, config in MODELS.items():
        config.save_pretrained(root / name)
    return {name: str(root / name) for name in MODELS}


def config_of(models: dict[str, str], model: str, task: str, *more: str) -> FinetuneConfig:
    return load_config([str(ROOT / f"configs/finetune/{task}.yaml"), f"model.from={models[model]}", *more])


@pytest.mark.parametrize("model", MODELS)
def test_the_recipe_follows_from_the_model(models: dict[str, str], model: str) -> None:
    """A narrow encoder has the high rate only if its export says that it was pretrained briefly."""
    wanted = {
        "distilbert": "bert",
        "roberta": "bert",
        "bert_mini_at_length": "compact",
        "bert_briefly": "bert",
        "albert_briefly": "briefly_pretrained",
        "electra_briefly": "electra_small",
        "albert_narrow": "albert",
    }
    assert choose_recipe(models[model], "auto") == wanted.get(model, model)


def test_every_family_has_one_recipe_without_conditions() -> None:
    recipes = [yaml.safe_load(path.read_text()) for path in RECIPES.glob("*.yaml")]
    conditions = {"hidden_sizes", "hidden_size_below", "pretraining_tokens_below"}
    for family in {family for recipe in recipes for family in recipe["families"]}:
        assert sum(family in recipe["families"] and not conditions & recipe.keys() for recipe in recipes) == 1, family


def test_the_banner_gives_the_reason_for_the_recipe(models: dict[str, str]) -> None:
    assert describe_recipe(models["compact"], "compact") == "compact: a bert model, hidden size 384, below 768"
    briefly = (
        "briefly_pretrained: a bert model, hidden size 256, below 768, pretrained on 13,600,000 tokens, fewer than"
    )
    assert describe_recipe(models["briefly_pretrained"], "briefly_pretrained").startswith(briefly)
    assert describe_recipe(models["bert"], "bert") == "bert: a bert model, for which no recipe is more specific"
    assert describe_recipe(models["compact"], "bert") == "bert: given; for this bert model recipe=auto takes compact"
    assert describe_recipe(models["compact"], "none") == "none: given; for this bert model recipe=auto takes compact"


@pytest.mark.parametrize("model", ["albert", "bert"])
def test_one_key_beside_a_recipe_leaves_the_others(models: dict[str, str], model: str) -> None:
    """Also of a task for which the recipe has no rate of its own; and without a recipe, too."""
    for recipe in ("auto", "none"):
        plain, given = (
            config_of(models, model, "docs_package", f"recipe={recipe}", *more)
            for more in ((), ("optim.epsilon=1e-7", "train.phases.0.sequence_length=64"))
        )
        assert (given.optim.learning_rate, given.optim.warmup) == (5e-5, "10%")
        assert given.optim.model_dump() | {"epsilon": 0} == plain.optim.model_dump() | {"epsilon": 0}
        assert (given.train.phases[0].batch_size, plain.train.phases[0].batch_size) == (32, 32)


TRANSLATIONS = ("multi30k", "tatoeba_ko_en")
"""Tasks whose models are trained from scratch, without a recipe."""


@pytest.mark.parametrize("path", [path for path in TASKS if path.stem not in TRANSLATIONS], ids=lambda path: path.stem)
def test_every_task_has_a_valid_configuration_under_every_recipe(models: dict[str, str], path: Path) -> None:
    causal = yaml.safe_load(path.read_text())["task"]["type"] not in ("tokens", "spans")
    for recipe in (recipe for recipe in RECIPES.glob("*.yaml") if causal or recipe.stem != "gpt1"):
        config = config_of(models, recipe.stem, path.stem)
        assert config.recipe == recipe.stem
        assert validate(FinetuneConfig, load_dumped(config)) == config


def load_dumped(config: FinetuneConfig) -> dict[str, object]:
    return yaml.safe_load(dump(config))


@pytest.mark.parametrize(
    ("task", "rate", "batch_size", "steps", "warmup", "dropout"),
    [
        ("cola", 1e-5, 16, 5336, 320, 0.0),
        ("stsb", 2e-5, 16, 3598, 214, 0.0),
        ("sst2", 1e-5, 32, 20935, 1256, 0.0),
        ("mnli", 3e-5, 128, 10000, 1000, 0.0),
        ("qnli", 1e-5, 32, 33112, 1986, 0.0),
        ("qqp", 5e-5, 128, 14000, 1000, 0.1),
        ("rte", 3e-5, 32, 800, 200, 0.1),
        ("mrpc", 2e-5, 32, 800, 200, 0.0),
        ("wnli", 2e-5, 16, 2000, 250, 0.1),
    ],
)
def test_alberts_table_14(
    models: dict[str, str], task: str, rate: float, batch_size: int, steps: int, warmup: int, dropout: float
) -> None:
    config = config_of(models, "albert", task)
    assert (config.optim.algorithm, config.optim.learning_rate) == ("bert_adam", rate)
    assert (config.train.steps.to_steps(), config.optim.warmup.to_steps()) == (steps, warmup)
    assert (config.train.phases[0].batch_size, config.train.phases[0].sequence_length) == (batch_size, 512)
    assert (config.model.hidden_dropout, config.model.attention_dropout) == (dropout, dropout)
    assert (config.model.classifier_dropout, config.train.export) == (0.1, "best")


def test_alberts_optimizer_is_that_of_its_code(models: dict[str, str]) -> None:
    """No bias correction, and a decay from step 0 that jumps where warm-up ends."""
    optim = config_of(models, "albert", "rte").optim
    assert (optim.algorithm, optim.schedule, optim.epsilon) == ("bert_adam", "bert", 1e-6)
    rate = learning_rate(optim, 800)
    assert [rate(step) for step in (100, 200, 400)] == pytest.approx([1.5e-5, 2.25e-5, 1.5e-5])


@pytest.mark.parametrize(("name", "best"), [("mrpc", 0.6), ("qqp", 0.6), ("rte", 0.8)])
def test_alberts_best_checkpoint_of_mrpc_and_qqp_goes_by_accuracy(tmp_path: Path, name: str, best: float) -> None:
    """The task's first metric stays F1, which decides elsewhere."""
    task, encoder = write_task(tmp_path / "task"), write_encoder(tmp_path / "albert", "albert")
    given = [f"task.name={name}", "task.metrics=[macro_f1, accuracy]", "recipe=albert", "run.threads=1"]
    stage = Finetuning(load_config([str(task), f"model.from={encoder}", f"run.dir={tmp_path}", *given]))
    stage.accelerator = start_accelerator(stage.config.run)
    assert stage.prepare().held_out.score({"macro_f1": 0.8, "accuracy": 0.6}) == best


def test_the_metric_that_decides_is_one_of_the_tasks(models: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"best_by: given 'bleu'; rte is scored by accuracy .* give one of these"):
        config_of(models, "bert", "rte", "train.best_by=bleu")


@pytest.mark.parametrize(
    ("model", "task", "examples", "steps", "warmup"),
    [
        ("bert", "mrpc", 3668, 343, 34),
        ("bert", "qnli", 104743, 9819, 981),
        ("electra_base", "rte", 2490, 780, 78),
        ("electra_base", "mrpc", 2 * 3668, 690, 69),
        ("electra_small", "cola", 8551, 804, 80),
    ],
)
def test_steps_are_those_of_the_released_code(
    models: dict[str, str], model: str, task: str, examples: int, steps: int, warmup: int
) -> None:
    """BERT: ``int(examples / batch * epochs)``, of which warm-up is ``int(steps * 0.1)``. ELECTRA pads the examples to
    whole batches before it multiplies: 78 times 10 for RTE's 2,490."""
    config = config_of(models, model, task)
    epoch = EpochSize(examples, 0)
    total = Schedule.of(config.train, lambda: steps_per_epoch(config.train.phases, [epoch])).total
    assert (total, config.optim.warmup.to_steps(total_steps=total)) == (steps, warmup)


@pytest.mark.parametrize(("size", "rate", "decay"), [("small", 3e-4, 0.8), ("base", 1e-4, 0.8), ("large", 5e-5, 0.9)])
def test_electras_table_7(models: dict[str, str], size: str, rate: float, decay: float) -> None:
    for task, epochs, both in (("cola", "3", False), ("rte", "10", False), ("stsb", "10", True), ("mrpc", "3", True)):
        config = config_of(models, f"electra_{size}", task)
        assert (config.optim.learning_rate, config.optim.layer_decay, config.optim.weight_decay) == (rate, decay, 0.0)
        assert config.optim.loss_reduction == "sum"
        assert config.train.steps.split()[0] == epochs
        assert config.train.both_orders == both


@pytest.mark.parametrize(
    ("model", "task", "more", "head"),
    [
        ("bert", "squad2", [], ("independent", 20)),
        ("electra_small", "squad", [], ("electra", 20)),
        ("electra_base", "squad2", [], ("electra", 20)),
        ("electra_large", "squad2", ["task.spans.stride=64"], ("electra", 20)),
        ("electra_base", "squad2", ["task.spans.head=independent"], ("independent", 20)),
        ("electra_base", "squad2", ["recipe=none"], ("independent", 20)),
        ("albert", "squad", [], ("independent", 20)),
        ("albert", "squad2", [], ("albert", 5)),
        ("albert", "squad2", ["task.name=own"], ("albert", 5)),
        ("albert", "squad2", ["task.spans.head=albert", "task.spans.n_best=9"], ("albert", 9)),
        ("albert", "squad2", ["task.spans.head=independent"], ("independent", 20)),
    ],
)
def test_answers_are_found_by_the_head_of_the_family(
    models: dict[str, str], model: str, task: str, more: list[str], head: tuple[str, int]
) -> None:
    """With the beam of its code; what is given wins, and BERT's head comes with BERT's number of tries."""
    config = config_of(models, model, task, *more)
    spans = config.task.spans
    assert spans is None or (spans.head, spans.n_best) == head
    assert spans is not None or head == ("independent", 20)
    assert config_of(models, model, task, *more, *again(config)) == config


def again(config: FinetuneConfig) -> list[str]:
    """The arguments that a run's own configuration stands for, as far as they concern answers."""
    spans = config.task.spans
    return [] if spans is None else [f"task.spans={{head: {spans.head}, n_best: {spans.n_best}}}"]


def test_small_encoders_are_fine_tuned_with_the_bias_corrected(models: dict[str, str]) -> None:
    """At a high rate the first steps of BERT's optimizer would be six times that again."""
    small, base = (config_of(models, name, "stsb").optim for name in ("compact", "bert"))
    brief = config_of(models, "briefly_pretrained", "stsb").optim
    assert (small.algorithm, small.learning_rate, small.schedule) == ("adamw", 5e-5, "bert")
    assert (brief.algorithm, brief.learning_rate, brief.schedule) == ("adamw", 3e-4, "bert")
    assert (base.algorithm, base.learning_rate) == ("bert_adam", 5e-5)


def test_what_is_given_wins(models: dict[str, str]) -> None:
    config = config_of(models, "albert", "rte", "optim.learning_rate=1e-3", "train.steps=5")
    assert (config.optim.learning_rate, config.train.steps.to_steps(), config.optim.warmup.to_steps()) == (1e-3, 5, 200)
    assert config_of(models, "bert", "rte", "recipe=none").optim.learning_rate == 5e-5
    with pytest.raises(ConfigError, match="is not meant for the bert model"):
        config_of(models, "bert", "rte", "recipe=albert")


def test_names_of_models() -> None:
    assert model_name("runs/pretrain/bert_mini/export") == "bert_mini"
    assert model_name("google/electra-small-discriminator") == "electra-small-discriminator"
    assert model_name("runs/finetune/mnli/bert_mini/seed-3/export") == "bert_mini+mnli"

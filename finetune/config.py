"""Configuration of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, model_validator

from bertillery.config.layers import Layer, merge_layers, names_file, read_layers, read_values
from bertillery.config.section import ConfigError, InputError, Section, check_sections, validate
from bertillery.config.types import Count, Dropout, Duration, LearningRate, Length, Runs, Weight
from bertillery.engine.optim import OptimSection
from bertillery.engine.schedule import Phase, TrainSection
from bertillery.run.lineage import model_name
from bertillery.run.stage import StageConfig
from bertillery.system.invocation import command_line
from finetune.data.sources import resolve
from finetune.recipe import choose_recipe, known_recipe, recipe_values
from finetune.task import TaskSection, run_of


class EncoderSection(Section):
    """The encoder to start from."""

    from_: str = Field(alias="from")
    """Directory of a model, such as the ``export`` of a run, or its id on the Hub."""
    hidden_dropout: Dropout | None = None
    """Dropout of embeddings and layer outputs; the model's own where not given."""
    attention_dropout: Dropout | None = None
    """Dropout of attention probabilities; the model's own where not given."""
    classifier_dropout: Dropout | None = None
    """Dropout before the classifier; the model's own where not given."""
    auxiliary_lm: Weight = 0.0
    """Weight of the language model's loss beside the task's, for causal models; GPT-1's is 0.5."""
    add_orders: bool = False
    """Read a pair in both orders and add the two states below the head, for causal models: GPT-1's transform of tasks
    that ask how alike two texts are."""
    score_bias: Literal["zero", "mean"] = "zero"
    """Where a fresh head for a score begins: at 0, as in the papers, or at the mean of the training scores. On the long
    way from 0 a small encoder at a high rate can lose what it knew."""
    weights: Literal["pretrained", "random"] = "pretrained"
    """``random`` draws all weights anew: the baseline that says what pretraining was worth."""


class FinetuneOptimSection(OptimSection):
    """The optimizer and its learning rate, as BERT is fine-tuned."""

    learning_rate: LearningRate = 5e-5
    """Peak."""
    warmup: Duration = Duration("10%")
    """Linear warm-up from 0."""


class FinetunePhase(Phase):
    """The batch of fine-tuning."""

    usual_batch: ClassVar[dict[str, int]] = {"batch_size": 32}


class FinetuneTrainSection(TrainSection):
    """Length and schedule of fine-tuning."""

    steps: Length = Duration("3 epochs")
    """Length of the run: steps or epochs."""
    phases: list[FinetunePhase] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=[FinetunePhase()], min_length=1, max_length=1
    )
    """Batch and sequence length; longer examples are cut."""
    save_every: Length = Duration("1 epoch")
    """How often a checkpoint is written."""
    evaluate_every: Length = Duration("1 epoch")
    """How often the validation splits are scored (a checkpoint is written before)."""
    evaluate_examples: Count | None = None
    """Examples of each validation split, at most; null takes all."""
    log_every: Length = Duration("5%")
    """How often metrics are fetched and written."""
    keep: Runs = 1
    """Newest checkpoints kept, beside the best."""
    best_by: str | None = None
    """Metric of the task that decides which evaluation is the best; the task's first where not given."""
    both_orders: bool = False
    """Train on every pair in both orders (ELECTRA's ``double_unordered``): only where the task has no order."""


class FinetuneConfig(StageConfig):
    """Everything a fine-tuning run is made from. Defaults are BERT's."""

    task: SerializeAsAny[TaskSection]
    model: EncoderSection
    recipe: str = "auto"
    """Published settings: a file in ``configs/finetune/recipes``. ``auto`` chooses by the model's family, hidden size
    and tokens of pretraining; ``none`` leaves the defaults. Keys given beside it win."""
    optim: FinetuneOptimSection = FinetuneOptimSection()  # pyright: ignore[reportIncompatibleVariableOverride]
    train: FinetuneTrainSection = FinetuneTrainSection()  # pyright: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def _fits(self) -> FinetuneConfig:
        if self.train.both_orders and not self.task.is_pair:
            raise ValueError(f"train.both_orders is for pairs of texts, and {self.task.name} has none")
        if getattr(self.model, "add_orders", False) and not self.task.is_pair:
            raise ValueError(f"model.add_orders is for pairs of texts, and {self.task.name} has none")
        if self.train.best_by not in (None, *self.task.metrics):
            raise ValueError(
                f"train.best_by: given {self.train.best_by!r}; {self.task.name} is scored by "
                f"{', '.join(self.task.metrics)} (task.metrics); give one of these"
            )
        if getattr(self.model, "score_bias", "zero") == "mean" and not self.task.is_score:
            raise ValueError(f"model.score_bias is for a score, and {self.task.name} is of type {self.task.type}")
        return self


def load_config(arguments: Sequence[str]) -> FinetuneConfig:
    """Read ``*.yaml`` files and overrides over the recipe; raises ``ConfigError`` with all problems at once.

    A run without a name is called ``<task>/<model>/seed-<seed>``.
    """
    # A task's section `prompt` is for evaluation in context (make fewshot).
    layers = [
        replace(layer, values={key: value for key, value in layer.values.items() if key != "prompt"})
        for layer in beside_yaml(read_layers(arguments))
    ]
    values, sources = merge_layers(layers)
    check_task(values, sources)
    given = values.get("task")
    own = run_of(given, "Config") if isinstance(given, dict) else None
    check_sections(own or FinetuneConfig, values, sources)
    if own is not None:
        return own.load(values, sources)
    start, section = values.get("model", {}).get("from"), values.get("task", {})
    if start is None or not section:
        raise ConfigError(
            "fine-tuning needs a task and a model: "
            + command_line("finetune", TASK="<name in configs/finetune or a .yaml>", MODEL="<directory or Hub id>")
        )
    given = values.get("recipe", "auto")
    config = _with_recipe(choose_recipe(start, given), section, layers)
    begun = config.run.dir / "finetune" / str(config.run.name) / "config.yaml"
    if given == "auto" and begun.is_file():  # a run keeps its recipe, also if auto would choose another one by now
        saved = str(read_values([str(begun)])[0].get("recipe"))
        if saved != config.recipe and known_recipe(saved):
            config = _with_recipe(saved, section, layers)
    config.task.check_model(start)
    return config


def beside_yaml(layers: Sequence[Layer]) -> list[Layer]:
    """The layers, where the files of a task that lie beside its YAML are found there: ``task.root`` is then the folder
    of the YAML, unless it is given."""
    tasks = [layer.values.get("task") for layer in layers]
    if any(isinstance(task, dict) and "root" in task for task in tasks):
        return [*layers]
    found = []
    for layer, task in zip(layers, tasks, strict=True):
        files, folder = task.get("files") if isinstance(task, dict) else None, Path(layer.argument).parent
        if isinstance(files, dict) and names_file(layer.argument) and folder != Path() and _lie_in(folder, files):
            layer = replace(layer, values={**layer.values, "task": {**task, "root": str(folder)}})  # pyright: ignore
        found.append(layer)
    return found


def _lie_in(folder: Path, files: dict[str, Any]) -> bool:
    names = next((names for names in files.values() if names), [])
    patterns = [names] if isinstance(names, str) else names
    try:
        return bool(resolve(folder, patterns))
    except (InputError, TypeError):  # not there; or no list of names, which is told when the task is read
        return False


def _with_recipe(name: str, task: dict[str, Any], layers: list[Layer]) -> FinetuneConfig:
    values, sources = merge_layers([Layer(recipe_values(name, task), f"recipe {name}"), *layers])
    values["recipe"] = name
    config = validate(FinetuneConfig, values, sources)
    random = "-random" * (config.model.weights == "random")
    return config.named(f"{config.task.name}/{model_name(config.model.from_)}{random}/seed-{config.run.seed}")


def check_task(values: dict[str, Any], sources: dict[str, str]) -> None:
    """``ConfigError`` where the keys of a task stand beside the sections, as in a YAML without ``task:`` above them."""
    loose = [key for key in TaskSection.variant(values).model_fields if key in values]
    if loose and "task" not in values:
        raise ConfigError(
            f"{sources[loose[0]]}: {', '.join(loose)} describe a task and belong into the section task: write `task:` "
            "above them and indent them"
        )

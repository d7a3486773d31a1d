"""Configuration of a distillation: task-agnostic, on a corpus, or task-specific."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import Field, SerializeAsAny, create_model

from bertillery.config.layers import merge_layers, names_file, read_layers
from bertillery.config.section import ConfigError, Section, check_sections, validate
from bertillery.data.corpus import CorpusSection
from bertillery.engine.objective import objective_module
from bertillery.run.command import run_name
from bertillery.run.stage import StageConfig
from bertillery.system.invocation import command_line, settings
from distill.augment import AugmentSection
from distill.student import StudentSection
from finetune.config import EncoderSection, FinetuneConfig, beside_yaml, check_task, model_name
from finetune.task import task_type_of
from finetune.task_types.spans import Config as Questions

_SHARED = "task", "teacher", "model", "run", "tracking"
"""Sections that the stage before takes from the stage that follows it, except for keys of its own."""


class TeacherSection(Section):
    """The model that is learned from."""

    from_: str = Field(alias="from")
    """Directory of a model, such as the ``export`` of a run, or its id on the Hub: pretrained for task-agnostic
    distillation, fine-tuned for task-specific distillation."""


class TaskAgnosticConfig(StageConfig):
    """Task-agnostic distillation: a student is built and reads a corpus together with its teacher."""

    data: CorpusSection = CorpusSection()
    teacher: TeacherSection
    model: StudentSection
    objective: SerializeAsAny[Section]
    """``type`` names a file in ``distill/objectives``; the other keys are those of its ``Config``."""


class TaskConfig(FinetuneConfig):
    """Task-specific distillation: the student ``model.from`` is fine-tuned with a teacher."""

    recipe: Literal["none"] = "none"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Distillation has no recipes; defaults are BERT's."""
    teacher: TeacherSection
    objective: SerializeAsAny[Section]
    """``type`` names a file in ``distill/objectives``; the other keys are those of its ``AnswersConfig``, in the stage
    before those of its ``Config``."""
    augment: AugmentSection | None = None
    """Variants of the training examples, made with a masked language model (TinyBERT)."""
    before: SerializeAsAny[TaskConfig] | None = None
    """An earlier stage on the same task with the same teacher; this stage starts from its student."""


def load_config(arguments: Sequence[str]) -> TaskAgnosticConfig | TaskConfig:
    """Read ``*.yaml`` files and overrides; raises ``ConfigError`` with all problems at once.

    A file may have overrides for single tasks, as a list under ``tasks.<name>``. They rank above the files and below
    the command line, except that ``tasks.<name>: [augment=null]`` also takes keys of that section off the command line:
    one command serves all tasks. A run is by default named after its files, or with a task
    ``<task>/<student>-<method>/seed-<seed>``.
    """
    layers = beside_yaml(read_layers(arguments))
    values, sources = merge_layers(layers)
    check_task(values, sources)
    check_sections(TaskConfig if "task" in values else TaskAgnosticConfig, values, sources)
    named = values.pop("tasks", None) or {}
    if not isinstance(named, dict):
        raise ConfigError(f"tasks: given {named!r}, but it holds a list of overrides for each task: tasks.<name>")
    if for_task := named.get(values.get("task", {}).get("name")):
        without = tuple(f"{rule.removesuffix('=null')}." for rule in for_task if rule.endswith("=null"))
        files = [layer for layer in layers if names_file(layer.argument)]
        overrides = [each for each in layers if each not in files and not each.argument.startswith(without)]
        values, sources = merge_layers([*files, *read_layers(for_task), *overrides])
        values.pop("tasks", None)
    if not values.get("teacher", {}).get("from"):
        raise ConfigError(
            "distillation needs a teacher: "
            + command_line("distill", CONFIG="<name in configs/distill or a .yaml>", TEACHER="<directory or Hub id>")
            + f", and for a task {_of_task()}"
        )
    if "task" in values:
        return _task_config(values, sources)
    if not values.get("model"):
        raise ConfigError(
            "task-agnostic distillation needs the size of its student (model.num_hidden_layers=...); for the "
            f"distillation of a task give {_of_task()}"
        )
    config = validate(_schema(TaskAgnosticConfig, values), values, sources)
    return config.named(run_name(arguments, otherwise=values["objective"]["type"]))


def _of_task() -> str:
    return settings("distill", TASK="<name>", STUDENT="<directory or Hub id>")


def _task_config(values: dict[str, Any], sources: dict[str, str]) -> TaskConfig:
    sizes = StudentSection.model_fields.keys() - EncoderSection.model_fields.keys()
    if described := [key for key in values.get("model", {}) if key in sizes]:
        raise ConfigError(
            f"model.{described[0]} ({sources[f'model.{described[0]}']}) describes the student of task-agnostic "
            "distillation; a task's is read from STUDENT: take distilbert_task or tinybert_task, or leave TASK out"
        )
    if not values.get("model", {}).get("from"):
        raise ConfigError(
            "distillation of a task needs a student, a smaller pretrained encoder such as the export of a "
            f"task-agnostic distillation: {settings('distill', STUDENT='<directory or Hub id>')}"
        )
    before, first = values.pop("before", None), None
    start = ((before or {}).get("model") or values["model"]).get("from") or values["model"]["from"]
    name = f"{model_name(start)}-{values.get('objective', {}).get('type')}"
    if before is not None:
        run = dict(values.get("run", {}))
        given = run.pop("name", None)
        unnamed = {**values, "run": run}
        before = {**before, **{key: {**unnamed.get(key, {}), **before.get(key, {})} for key in _SHARED}}
        first = validate(_schema(TaskConfig, before), before, sources)
        first = first.named(f"{given}-first" if given else f"{first.task.name}/{name}-first/seed-{first.run.seed}")
        values["model"] = {**values["model"], "from": str(first.run.dir / "distill" / str(first.run.name) / "export")}
    config = validate(_schema(TaskConfig, values, "AnswersConfig"), values, sources)
    spans = config.task.spans if isinstance(config.task, Questions) else None
    if spans and spans.head != "independent":
        raise ConfigError(
            f"task.spans.head: given {spans.head!r}; students and teachers of answers have "
            "independent heads; leave it out"
        )
    if not task_type_of(config.task).distilled:
        smaller = command_line("finetune", TASK=config.task.name, MODEL="<a smaller model>")
        raise ConfigError(
            f"task.type: given {config.task.type}; a student learns from the head of an encoder, and models of such "
            f"tasks are none; train a smaller one: {smaller}"
        )
    config = config.named(f"{config.task.name}/{name}/seed-{config.run.seed}")
    return config.model_copy(update={"before": first})


def _schema(base: type[Any], values: dict[str, Any], section: str = "Config") -> type[Any]:
    """The configuration with a section of its method. ``ConfigError`` for an unknown method, one that has no such
    section, or keys of the method's other section."""
    module = objective_module("distill.objectives", values.setdefault("objective", {}))
    if not hasattr(module, section):
        raise ConfigError(
            f"objective.type={values['objective']['type']} compares encoders, not answers; fine-tune its student "
            f"({command_line('finetune', TASK='...', MODEL='...')}), or distil the task with distilbert or tinybert"
        )
    fields = getattr(module, section).model_fields
    if earlier := [key for key in values["objective"] if key not in fields and key in module.Config.model_fields]:
        raise ConfigError(
            f"objective.{earlier[0]} is a key of the stage before the answers: give before.objective.{earlier[0]}; the "
            "config.yaml of such a stage is part of that of the run that followed it, which reruns both"
        )
    return cast(type[Any], create_model(base.__name__, __base__=base, objective=(getattr(module, section), ...)))


def method_of(config: TaskAgnosticConfig | TaskConfig) -> Any:
    """The module of the configured method."""
    return objective_module("distill.objectives", config.objective.model_dump())

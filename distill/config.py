"""Configuration of a distillation: in general, on a corpus, or for a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import Field, SerializeAsAny, create_model

from bertillery.config.section import ConfigError, Section, check_sections, names_file, read_values, validate
from bertillery.data.corpus import CorpusSection
from bertillery.engine.objective import objective_module
from bertillery.run.command import run_name
from bertillery.run.stage import StageConfig
from distill.augment import AugmentSection
from distill.student import StudentSection
from finetune.config import EncoderSection, FinetuneConfig, check_task, model_name

_OBJECTIVES = "distill.objectives"
_SHARED = "task", "teacher", "model", "run", "tracking"
"""Sections of which the stage before a task's answers has what it is not given otherwise."""


class TeacherSection(Section):
    """The model that is learned from."""

    from_: str = Field(alias="from")
    """Directory of a model, such as the ``export`` of a run, or its id on the Hub: pretrained for a general
    distillation, fine-tuned for one of a task."""


class GeneralConfig(StageConfig):
    """Everything a general distillation is made from: a student is built and reads a corpus beside its teacher."""

    data: CorpusSection = CorpusSection()
    teacher: TeacherSection
    model: StudentSection
    objective: SerializeAsAny[Section]
    """``type`` names a file in ``distill/objectives``; the other keys are that file's ``Config``."""


class TaskConfig(FinetuneConfig):
    """Everything the distillation of a task is made from: fine-tuning of the student ``model.from``, and a teacher."""

    recipe: Literal["none"] = "none"  # pyright: ignore[reportIncompatibleVariableOverride]
    """There are none for distillation: what is not in its configuration is BERT's."""
    teacher: TeacherSection
    objective: SerializeAsAny[Section]
    """``type`` names a file in ``distill/objectives``; the other keys are that file's ``AnswersConfig``, in the stage
    before its ``Config``."""
    augment: AugmentSection | None = None
    """Variants of the training examples, made by a masked language model (TinyBERT)."""
    before: SerializeAsAny[TaskConfig] | None = None
    """A stage that comes first, on the same task with the same teacher; its student is this one's start."""


def load_config(arguments: Sequence[str]) -> GeneralConfig | TaskConfig:
    """Read ``*.yaml`` files and overrides; raises ``ConfigError`` with all problems at once.

    What a file has under ``tasks.<name>``, a list of overrides, holds for the task of that name alone. What is given
    beside it wins, but for keys of a section that the task does without (``augment=null``): one command is for all
    tasks. A run without a name is called after its files, or, for a task, ``<task>/<student>-<method>/seed-<seed>``.
    """
    values, sources = read_values(arguments)
    check_task(values, sources)
    check_sections(TaskConfig if "task" in values else GeneralConfig, values, sources)
    named = values.pop("tasks", None) or {}
    if not isinstance(named, dict):
        raise ConfigError(f"tasks: given {named!r}, but it holds a list of overrides for each task: tasks.<name>")
    for_task = named.get(values.get("task", {}).get("name"), [])
    files = [argument for argument in arguments if names_file(argument)]
    without = tuple(f"{rule.removesuffix('=null')}." for rule in for_task if rule.endswith("=null"))
    overrides = [argument for argument in arguments if argument not in files and not argument.startswith(without)]
    values, sources = read_values([*files, *for_task, *overrides])
    values.pop("tasks", None)
    if not values.get("teacher", {}).get("from"):
        raise ConfigError(
            "distillation needs a teacher: make distill CONFIG=<name in configs/distill or a .yaml> "
            "TEACHER=<directory or Hub id>, and for a task TASK=<name> and STUDENT=<directory or Hub id>"
        )
    if "task" in values:
        return _task_config(values, sources)
    if not values.get("model"):
        raise ConfigError(
            "a general distillation describes its student (model.num_hidden_layers=...), and nothing does here; "
            "for the distillation of a task give TASK=<name> and STUDENT=<directory or Hub id>"
        )
    config = validate(_schema(GeneralConfig, values), values, sources)
    return config.named(run_name(files, otherwise=config.objective.model_dump()["type"]))


def _task_config(values: dict[str, Any], sources: dict[str, str]) -> TaskConfig:
    sizes = [key for key in StudentSection.model_fields if key not in EncoderSection.model_fields]
    described = [key for key in sizes if key in values.get("model", {})]
    if described:
        raise ConfigError(
            f"model.{described[0]} ({sources[f'model.{described[0]}']}) describes the student of a general "
            "distillation; a task's is read from STUDENT: take distilbert_task or tinybert_task, or leave TASK out"
        )
    if not values.get("model", {}).get("from"):
        raise ConfigError(
            "distillation of a task needs a student, a smaller pretrained encoder such as the export of a general "
            "distillation: STUDENT=<directory or Hub id>"
        )
    before, first = values.pop("before", None), None
    start = ((before or {}).get("model") or values["model"]).get("from") or values["model"]["from"]
    student, method = model_name(start), values.get("objective", {}).get("type")
    if before is not None:
        unnamed = {**values, "run": {key: value for key, value in values.get("run", {}).items() if key != "name"}}
        shared = {key: {**unnamed.get(key, {}), **before.get(key, {})} for key in _SHARED}
        first_values = {**before, **shared}
        first = validate(_schema(TaskConfig, first_values), first_values, sources)
        first = first.named(f"{first.task.name}/{student}-{method}-first/seed-{first.run.seed}")
        values["model"] = {**values["model"], "from": str(first.run.dir / "distill" / str(first.run.name) / "export")}
    config = validate(_schema(TaskConfig, values, "AnswersConfig"), values, sources)
    if config.task.spans and config.task.spans.head != "independent":
        raise ConfigError(
            f"task.spans.head: given {config.task.spans.head!r}; students and teachers of answers have "
            "independent heads; leave it out"
        )
    config = config.named(f"{config.task.name}/{student}-{method}/seed-{config.run.seed}")
    return config.model_copy(update={"before": first})


def _schema(base: type[Any], values: dict[str, Any], section: str = "Config") -> type[Any]:
    """The configuration with this section of its method; ``ConfigError`` that lists the methods there are, or for one
    that learns no answers."""
    module = objective_module(_OBJECTIVES, values.setdefault("objective", {}))
    if not hasattr(module, section):
        raise ConfigError(
            f"objective.type={values['objective']['type']} compares encoders, not answers; fine-tune its student (make "
            "finetune MODEL=...), or distil the task with distilbert or tinybert"
        )
    fields = getattr(module, section).model_fields
    earlier = [key for key in values["objective"] if key not in fields and key in module.Config.model_fields]
    if earlier:
        raise ConfigError(
            f"objective.{earlier[0]} is a key of the stage before the answers: give before.objective.{earlier[0]}; the "
            "config.yaml of such a stage is part of that of the run that followed it, which reruns both"
        )
    return cast(type[Any], create_model(base.__name__, __base__=base, objective=(getattr(module, section), ...)))


def method_of(config: GeneralConfig | TaskConfig) -> Any:
    """The module of the configured method."""
    return objective_module(_OBJECTIVES, config.objective.model_dump())

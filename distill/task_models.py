"""Student and teacher of a task: whether they fit each other and the task, and what tells them apart."""

from __future__ import annotations

from transformers import PreTrainedModel

from bertillery.config.section import ConfigError
from bertillery.models.encoders import labels_of
from bertillery.models.heads import head_kind
from bertillery.models.joint_spans import joint_head
from bertillery.models.load import load, load_tokenizer, read_config
from bertillery.run.inputs import Fingerprint, model_inputs
from bertillery.system.invocation import command_line
from distill.candidates import fingerprint
from distill.config import TaskAgnosticConfig, TaskConfig
from finetune.stage import check_length
from finetune.task import task_type_of


def check_lengths(config: TaskAgnosticConfig | TaskConfig, *starts: str) -> None:
    """``ConfigError`` unless all these models read sequences of the configured lengths."""
    asked = max(phase.sequence_length for phase in config.train.phases)
    for start in starts:
        check_length(start, read_config(start), asked)


def check_readers(config: TaskConfig, student: str) -> None:
    """``ConfigError`` unless student and teacher have one vocabulary, with the tokens that the task type adds, and read
    the configured length."""
    teacher = config.teacher.from_
    check_lengths(config, student, teacher)
    tokenizer = load_tokenizer(student, "model.from")
    known = {*tokenizer.get_vocab()}
    here = task_type_of(config.task).fitted(tokenizer).get_vocab()
    there = load_tokenizer(teacher, "teacher.from").get_vocab()
    if lacking := sorted(here.keys() - known - there.keys()):
        raise ConfigError(
            f"teacher.from: {teacher} does not know the markers {', '.join(lacking)}, with which {config.task.name} "
            "marks places of a text; give a teacher that was fine-tuned with them (task.markers), as "
            f"{command_line('finetune', TASK=config.task.name)} does"
        )
    if here != there:
        differ = sorted(piece for piece in here.keys() | there.keys() if here.get(piece) != there.get(piece))
        raise ConfigError(
            f"the student {student} ({len(here):,} pieces) and the teacher {teacher} ({len(there):,}) read different "
            f"tokens, for example {', '.join(map(repr, differ[:3]))}; a student learns from a teacher with its own "
            "tokenizer: distil it from the encoder that the teacher was fine-tuned from"
        )


def open_task_teacher(config: TaskConfig, student: str) -> PreTrainedModel:
    """The fine-tuned teacher of a task.

    Raises ``ConfigError`` if its head is not for this task with its labels in this order, or as
    :func:`check_readers` does.
    """
    check_readers(config, student)
    start, task, kind = config.teacher.from_, config.task, task_type_of(config.task)
    found = read_config(start)
    if joint_head(found):
        raise ConfigError(
            f"teacher.from: {start} has a joint head for answers, which no student learns from; fine-tune the teacher "
            f"with an independent one: {command_line('finetune', 'task.spans.head=independent', TASK=task.name)}"
        )
    if not kind.head_fits(found):
        raise ConfigError(
            f"teacher.from: {start} was not fine-tuned for {task.name} ({task.type}): its head is for "
            f"{head_kind(found)}, its labels are {[*labels_of(found).values()]}, the task's are "
            f"{task.labels or 'scores'}; give one that was: {command_line('finetune', TASK=task.name)}"
        )
    model, loaded = load(kind.model_class, start, **kind.settings())
    if loaded.fresh:
        raise ConfigError(f"teacher.from: {start} has no head for the task ({loaded}); give a fine-tuned model")
    return model


def fingerprints(config: TaskConfig) -> dict[str, Fingerprint]:
    """Fingerprints of student and teacher, and of what the training split is augmented with."""
    section = config.augment
    found = model_inputs(**{name.replace(" ", "_"): path for name, path in model_paths(config).items()})
    if section and section.vectors:
        found["augmenting vectors"] = Fingerprint(fingerprint(section.vectors), section.vectors.name)
    return found


def model_paths(config: TaskConfig) -> dict[str, str | None]:
    """Where student, teacher and augmenting model are."""
    augmenting = config.augment.model if config.augment else None
    return {"student": config.model.from_, "teacher": config.teacher.from_, "augmenting model": augmenting}

"""Distillation as a stage: task-agnostic on a corpus, task-specific as fine-tuning, and TinyBERT's stage in between."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from bertillery.config.section import ConfigError
from bertillery.data.prepare import corpus_files, prepare_for
from bertillery.data.prepared import corpus_report, held_out_remedy
from bertillery.data.tokenizer import TokenizerSection
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.loader import Cursor, Stream
from bertillery.engine.objective import Objective, Shown, sampled
from bertillery.models.encoders import labels_of
from bertillery.models.export import export_model
from bertillery.models.heads import add_rows, head_kind
from bertillery.models.joint_spans import joint_head
from bertillery.models.load import (
    check_vocabulary,
    load,
    load_carried,
    load_tokenizer,
    read_config,
    vocabulary_size,
)
from bertillery.report.card import fact_list, model_card
from bertillery.report.plot import plot_curves, term_panels
from bertillery.report.table import terms_table
from bertillery.run.inputs import Fingerprint, model_inputs
from bertillery.run.lineage import model_name
from bertillery.run.stage import Parts, Stage, beside
from bertillery.run.tracking import Tracker
from bertillery.run.trainer import Fit, Trainer
from bertillery.run.waiting import main_process_first
from bertillery.system.invocation import command_line
from distill.answers import answered
from distill.augment import augmented
from distill.candidates import fingerprint
from distill.config import TaskAgnosticConfig, TaskConfig, method_of
from distill.corpus import Part
from distill.student import build_student
from distill.teacher import Teacher
from finetune.data.splits import Split, Task, current_rows, documentation_input, open_task, report, row_inputs
from finetune.examples import Examples
from finetune.predict import Predictor
from finetune.stage import Finetuning, check_length
from finetune.task import task_type_of
from pretrain.examples import DocumentSource, show_example
from pretrain.samples import fill_masks


class TaskAgnostic(Stage):
    """A run of task-agnostic distillation."""

    folder = job = "distill"
    makes = "student"
    config: TaskAgnosticConfig | TaskConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def prepare(self) -> Parts:
        """Teacher, corpus in the teacher's tokens, and student."""
        config = self.config
        assert isinstance(config, TaskAgnosticConfig)
        self.model_paths["teacher"] = config.teacher.from_
        self.pin(lambda: model_inputs(teacher=config.teacher.from_))
        self.open_teacher()
        corpus = prepare_for(self, config.data, TokenizerSection(path=config.teacher.from_), num_texts=1)
        self.say(corpus_report(corpus))
        self.baselines: dict[str, float] = {}
        self.facts = {"corpus": f"{corpus.train.num_documents:,} documents, {corpus.train.num_tokens:,} tokens"}

        def source(tokens: Any, length: int) -> Any:
            part, seed = Part(tokens, corpus.unigrams), config.run.seed
            return self.method.source(config.objective, part, self.tokenizer, sequence_length=length, seed=seed)

        lengths, train = [phase.sequence_length for phase in config.train.phases], cache(partial(source, corpus.train))
        sources = [train(length) for length in lengths]
        with held_out_remedy():
            held_out = source(corpus.valid, lengths[-1])
        return Parts(
            sources,
            epoch_size=DocumentSource.epoch_size,
            objective=self._objective,
            held_out=HeldOut(held_out, num_examples=config.train.evaluate_examples),
        )

    def current(self) -> dict[str, Fingerprint]:
        """The teacher, and the files of the corpus."""
        config = self.config
        assert isinstance(config, TaskAgnosticConfig)
        files = corpus_files(config.data, TokenizerSection(path=config.teacher.from_))
        return {**model_inputs(teacher=config.teacher.from_), "corpus files": files}

    def open_teacher(self) -> None:
        """Tokenizer and teacher; ``ConfigError`` if it lacks something that the method needs."""
        config, start = self.config, self.config.teacher.from_
        self.method = method_of(config)
        self.tokenizer = load_tokenizer(start, "teacher.from")
        check_lengths(config, start)
        words = self.method.MASKED_WORDS
        model, loaded = load(AutoModelForMaskedLM if words else AutoModel, start)
        check_vocabulary(self.tokenizer, model.config, start, "teacher.from")
        if words and loaded.fresh:
            raise ConfigError(
                f"teacher.from: {start} has no MLM head ({loaded}), which objective.type="
                f"{config.objective.model_dump()['type']} needs; give a pretrained model with one (of an ELECTRA, its "
                "generator), or take objective.type=tinybert or minilm"
            )
        self.teacher: Teacher[PreTrainedModel] = Teacher(model)

    @property
    def subject(self) -> tuple[str, str]:
        """The method, and the teacher."""
        return self.config.objective.model_dump()["type"], model_name(self.config.teacher.from_)

    def _objective(self) -> Objective:
        assert isinstance(self.config, TaskAgnosticConfig)
        words = self.method.MASKED_WORDS
        student, self.started = build_student(self.config.model, self.teacher.module, masked_words=words)
        return self.method.build(self.config.objective, student, self.teacher)

    def recorded(self) -> dict[str, Any]:
        """Facts about the text."""
        return {"data": self.facts}

    def banner(self, trainer: Trainer) -> str:
        """Teacher, student, sizes of the batches and one example."""
        source = trainer.sources[0]
        rows, _ = Stream(source, self.config.run.seed).take(Cursor(), 1)
        student = self.accelerator.unwrap_model(trainer.objective).exported()
        return (
            f"teacher     {_size(self.teacher.module)} from {self.config.teacher.from_}\n"
            f"student     {_size(student)}\n"
            f"            {self.started}\n"
            f"training    batch of a step x longest example: {', '.join(map(str, self.config.train.phases))}\n\n"
            f"first example\n{show_example(source.collate(sampled(source, rows)), self.tokenizer)}"
        )

    def result(self, trainer: Trainer, ended: Fit) -> dict[str, Any]:
        """Export, with the held-out terms on the card."""
        config, objective = self.config, trainer.assembled()
        if not self.accelerator.is_main_process:
            return {}
        student = objective.exported()
        self.shown = {"loss": Shown("loss, all terms weighted", "lower", ""), **trainer.held_out.shown}
        self.baselines = objective.baselines([], np.empty(0), ended.held_out)
        table = terms_table(ended.held_out, self.shown, self.baselines, ("student", "teacher"))
        if isinstance(config, TaskAgnosticConfig) and config.model.start == "random" and ended.tokens is not None:
            student.config.pretraining_tokens = ended.tokens
        processes, device = self.accelerator.num_processes, self.accelerator.device.type
        facts = {
            "teacher": f"{_size(self.teacher.module)} from {config.teacher.from_}",
            "student": f"{_size(student)}; at the start {self.started}",
            "training": f"{ended.step:,} steps",
            **self.facts,
            "speed": f"{ended.tokens_per_second:,.0f} tokens/s on {processes} x {device}",
        }
        card = ""
        with beside("the card of the export"):
            parts = "A student distilled with Bertillery.", fact_list(facts), table
            pipeline = "fill-mask" if self.method.MASKED_WORDS else None
            card = model_card(self.name, *parts, config=self.text, tags=["distillation"], pipeline=pipeline)
        export_model(student, self.tokenizer, self.directory.export, card=card, carried=objective.carried())
        return {**ended.results(), "table": table}

    def show(self, trainer: Trainer, ended: Fit, tracker: Tracker, results: dict[str, Any]) -> None:
        """Curves."""
        found = {"result": ended.held_out, "teacher": self.baselines}
        tracker.summary({f"{part}/{n}": v for part, values in found.items() for n, v in values.items()}, ended.step)
        self.show_curves(trainer, tracker, ended.step)
        with beside("guesses for masked tokens"):
            if self.method.MASKED_WORDS and tracker.shows:
                tracker.table("masked_tokens", fill_masks(self.directory.export), ended.step)

    def draw(self, trainer: Trainer) -> None:
        """All terms that have a title."""
        loss = {"loss": Shown("loss, all terms weighted", "lower", "")}
        panels = term_panels(loss | trainer.held_out.shown, self.baselines, "teacher")
        plot_curves(self.directory.metrics_file, panels, self.path / "curves.png", self.name)

    def ending(self, results: dict[str, Any]) -> str:
        """Numbers, files, and the next command."""
        path = self.path
        return (
            f"\n{results['table']}\n\nstudent     {path / 'export'}\ncurves      {path / 'curves.png'}\n"
            f"metrics     {path / 'metrics.jsonl'}\n\n{self.next_command()}"
        )

    def next_command(self) -> str:
        """Fine-tuning of the student, or its distillation for a task."""
        student = self.path / "export"
        of_task = command_line("distill", CONFIG="distilbert_task", TASK="...", TEACHER="...", STUDENT=student)
        return (
            f"next        {command_line('finetune', TASK='docs_proofreading', MODEL=student)}\n"
            f"            or, with a fine-tuned teacher: {of_task}"
        )


class TaskSpecific(Finetuning):
    """A run of task-specific distillation: fine-tuning with a teacher."""

    folder = job = "distill"
    makes = "student"
    config: TaskConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def prepare(self) -> Parts:
        """As in fine-tuning; the teacher must have learned this task, with labels in this order."""
        self.model_paths |= task_model_paths(self.config)
        self.pin(self.models)
        teacher = open_task_teacher(self.config, self.config.model.from_)
        parts = super().prepare()
        self.teacher: Teacher[Predictor] = Teacher(self.task_type.objective(teacher))
        return replace(parts, sources=[self._answered(source) for source in parts.sources])

    def _answered(self, examples: Any) -> Any:
        """The examples, with the teacher's answers where they are read again: in epochs, without variants."""
        config = self.config
        again = config.train.steps.unit == "epochs" and config.train.steps.amount >= 2
        if config.augment is not None or not again:
            return examples
        length, both = config.train.phases[0].sequence_length, config.train.both_orders
        parts = self.models()["teacher"].sha256, self.task.split("train").fingerprint().sha256, length, both
        place, began = config.run.data_dir, time.perf_counter()
        found = answered(examples, self.teacher, parts, cache=place, accelerator=self.accelerator)
        seconds = time.perf_counter() - began
        self.say(f"answers     the teacher's to {examples.num_examples:,} examples, asked once ({seconds:.1f} s)")
        return found

    def models(self) -> dict[str, Fingerprint]:
        """Student, teacher, and what the training split is augmented with."""
        return task_models(self.config)

    def _examples(self, name: str, training: bool = False) -> Examples:
        if training:
            split = augmented_split(self, self.task)
            self.task = replace(self.task, splits={**self.task.splits, name: split})
        return super()._examples(name, training)

    def _objective(self) -> Any:
        return method_of(self.config).task(self.config.objective, super()._objective(), self.teacher)

    def banner(self, trainer: Trainer) -> str:
        """The teacher, whether only the stage before used variants, then as in fine-tuning."""
        config = self.config
        apart = config.augment is None and config.before is not None and config.before.augment is not None
        texts = "texts       the task's own; their variants were for the stage before alone\n" if apart else ""
        return f"teacher     {config.teacher.from_}\n{texts}{super().banner(trainer)}"

    def about(self) -> str:
        """As in fine-tuning, and the teacher."""
        return f"{super().about()}, distilled from {self.config.teacher.from_}"

    def next_command(self, results: dict[str, Any]) -> str:
        """The comparison with the teacher."""
        return command_line("compare", TEACHER=self.config.teacher.from_, STUDENTS=self.path / "export")


class FirstStage(TaskAgnostic):
    """The stage before task-specific distillation: the layers of a fine-tuned teacher, on the task's texts."""

    config: TaskConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: TaskConfig, *, then: TaskConfig) -> None:
        """``then`` is the stage that follows; this one already refuses what that one would."""
        super().__init__(config)
        self.then = then

    def prepare(self) -> Parts:
        """The task's texts, augmented, in the tokens that both read."""
        config, section = self.config, self.config.task
        self.model_paths |= task_model_paths(config)
        self.pin(lambda: task_models(config))
        open_task_teacher(self.then, config.model.from_)
        check_readers(config, config.model.from_)
        self.open_teacher()
        with main_process_first(self.accelerator):
            task = open_task(section, config.run.data_dir)
        self.say(report(task))
        self.pin(lambda: row_inputs(task) | documentation_input(section))
        kind, length = task_type_of(section), config.train.phases[0].sequence_length
        kind.data_dir = config.run.data_dir
        train, valid = (
            kind.examples(split, self.tokenizer, max_length=length, seed=config.run.seed)
            for split in (augmented_split(self, task), task.split(section.validation[0]))
        )
        self.baselines = {}
        self.facts = {"task": f"{section.name}, {train.num_examples:,} training examples"}
        return Parts(
            [train],
            epoch_size=Examples.epoch_size,
            objective=self._objective,
            held_out=HeldOut(valid, num_examples=config.train.evaluate_examples),
        )

    def current(self) -> dict[str, Fingerprint]:
        """The models, and the rows if they are in files."""
        return task_models(self.config) | current_rows(self.config.task, self.config.run.data_dir)

    def _objective(self) -> Objective:
        section = self.config.model
        student, _ = load(
            AutoModel,
            section.from_,
            hidden_dropout=section.hidden_dropout,
            attention_dropout=section.attention_dropout,
            random=section.weights == "random",
        )
        add_rows(student, vocabulary_size(self.tokenizer))
        objective = self.method.build(self.config.objective, student, self.teacher)
        self.started = "freshly initialised"
        if section.weights == "pretrained":
            self.started = "; ".join([f"weights of {section.from_}", *load_carried(objective.carried(), section.from_)])
        return objective

    def next_command(self) -> str:
        """None: the next stage follows."""
        return f"its answers come next, from {self.path / 'export'}"


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


def augmented_split(stage: TaskSpecific | FirstStage, task: Task) -> Split:
    """The training split, with variants if the configuration asks for them."""
    config, split, accelerator = stage.config, task.split("train"), stage.accelerator
    if config.augment is None:
        return split
    place, seed = config.run.data_dir, config.run.seed
    made = augmented(config.augment, config.task, split, data_dir=place, seed=seed, accelerator=accelerator)
    stage.say(made.report)
    stage.pin(lambda: {"augmentation": made.split.fingerprint()})
    return made.split


def task_models(config: TaskConfig) -> dict[str, Fingerprint]:
    """Fingerprints of student and teacher, and of what the training split is augmented with."""
    section = config.augment
    found = model_inputs(**{name.replace(" ", "_"): path for name, path in task_model_paths(config).items()})
    if section and section.vectors:
        found["augmenting vectors"] = Fingerprint(fingerprint(section.vectors), section.vectors.name)
    return found


def task_model_paths(config: TaskConfig) -> dict[str, str | None]:
    """Where student, teacher and augmenting model are."""
    augmenting = config.augment.model if config.augment else None
    return {"student": config.model.from_, "teacher": config.teacher.from_, "augmenting model": augmenting}


def _size(model: PreTrainedModel) -> str:
    config = model.config
    sizes = f"{config.num_hidden_layers} x {config.hidden_size}"
    return f"{type(model).__name__} {sizes}, {model.num_parameters():,} parameters"

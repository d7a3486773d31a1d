"""Task-agnostic distillation as a stage: a student reads a corpus beside its teacher."""

from __future__ import annotations

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
from bertillery.models.export import export_model
from bertillery.models.load import check_vocabulary, load, load_tokenizer
from bertillery.report.card import fact_list, model_card
from bertillery.report.plot import plot_curves, term_panels
from bertillery.report.table import terms_table
from bertillery.run.inputs import Fingerprint, model_inputs
from bertillery.run.lineage import model_name
from bertillery.run.stage import Parts, Stage, beside
from bertillery.run.tracking import Tracker
from bertillery.run.trainer import Fit, Trainer
from bertillery.system.invocation import command_line
from distill.config import TaskAgnosticConfig, TaskConfig, method_of
from distill.corpus import Part
from distill.student import build_student
from distill.task_models import check_lengths
from distill.teacher import Teacher
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
        self.corpus = corpus
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
                tracker.table("masked_tokens", fill_masks(self.directory.export, self.corpus.valid), ended.step)

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


def _size(model: PreTrainedModel) -> str:
    config = model.config
    sizes = f"{config.num_hidden_layers} x {config.hidden_size}"
    return f"{type(model).__name__} {sizes}, {model.num_parameters():,} parameters"

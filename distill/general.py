"""General distillation: a student and its teacher read the same text."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel

from bertillery.config.section import ConfigError
from bertillery.data.prepare import corpus_files, prepare_for
from bertillery.data.prepared import corpus_report, of_held_out_text
from bertillery.data.tokenizer import TokenizerSection
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.loader import Cursor, Stream
from bertillery.engine.objective import Objective, Shown, sampled
from bertillery.models.encoders import longest_sequence
from bertillery.models.export import export_model
from bertillery.models.load import check_vocabulary, load, load_tokenizer
from bertillery.report.card import fact_list, model_card
from bertillery.report.plot import plot_curves, term_panels
from bertillery.report.table import terms_table
from bertillery.run.inputs import Fingerprint, model_inputs
from bertillery.run.stage import Parts, Stage, beside
from bertillery.run.tracking import Tracker
from bertillery.run.trainer import Fit, Trainer
from distill.config import GeneralConfig, TaskConfig, method_of
from distill.corpus import Part
from distill.student import build_student
from distill.teacher import Teacher
from pretrain.examples import DocumentSource, show_example


class General(Stage):
    """One general distillation run."""

    folder = "distill"
    config: GeneralConfig | TaskConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def prepare(self) -> Parts:
        """Teacher, corpus in the teacher's tokens, and student."""
        config = self.config
        assert isinstance(config, GeneralConfig)
        self.pin(lambda: model_inputs(teacher=config.teacher.from_))
        self.open_teacher()
        corpus = prepare_for(self, config.data, TokenizerSection(path=config.teacher.from_), num_texts=1)
        self.say(corpus_report(corpus))
        train, valid = (Part(tokens, corpus.unigrams) for tokens in (corpus.train, corpus.valid))
        phases = config.train.phases
        self.facts = {
            "corpus": f"{corpus.train.num_documents:,} documents, {corpus.train.num_tokens:,} tokens",
        }
        source = cache(lambda length: self._source(train, length))
        sources = [source(phase.sequence_length) for phase in phases]
        with of_held_out_text():
            held_out = self._source(valid, phases[-1].sequence_length)
        return Parts(
            sources,
            epoch_size=DocumentSource.epoch_size,
            objective=self._objective,
            held_out=HeldOut(held_out, num_examples=config.train.evaluate_examples),
        )

    def current(self) -> dict[str, Fingerprint]:
        """The teacher, and the files of the corpus."""
        config = self.config
        assert isinstance(config, GeneralConfig)
        files = corpus_files(config.data, TokenizerSection(path=config.teacher.from_))
        return {**model_inputs(teacher=config.teacher.from_), "corpus files": files}

    def open_teacher(self) -> None:
        """Tokenizer and teacher; ``ConfigError`` where it lacks what the method asks for."""
        config = self.config
        self.method = method_of(config)
        start, asked = config.teacher.from_, max(phase.sequence_length for phase in config.train.phases)
        self.tokenizer = load_tokenizer(start, "teacher.from")
        words = self.method.MASKED_WORDS
        model, loaded = load(AutoModelForMaskedLM if words else AutoModel, start)
        check_vocabulary(self.tokenizer, model.config, start, "teacher.from")
        if words and loaded.fresh:
            raise ConfigError(
                f"teacher.from: {start} has no masked-word head ({loaded}), which objective.type="
                f"{config.objective.model_dump()['type']} learns from; give a pretrained model with one (of an "
                "ELECTRA, its generator), or take objective.type=tinybert or minilm"
            )
        if asked > longest_sequence(model.config):
            raise ConfigError(
                f"train.phases: the teacher reads {longest_sequence(model.config)} tokens at most, and sequence_length "
                f"is {asked}; give shorter ones"
            )
        self.teacher: Teacher[PreTrainedModel] = Teacher(model)

    def _source(self, part: Part, sequence_length: int) -> Any:
        config = self.config
        return self.method.source(
            config.objective, part, self.tokenizer, sequence_length=sequence_length, seed=config.run.seed
        )

    def _objective(self) -> Objective:
        assert isinstance(self.config, GeneralConfig)
        student, self.started = build_student(
            self.config.model, self.teacher.module, masked_words=self.method.MASKED_WORDS
        )
        return self.method.build(self.config.objective, student, self.teacher)

    def recorded(self) -> dict[str, Any]:
        """Facts about the text."""
        return {"data": self.facts}

    def banner(self, trainer: Trainer) -> str:
        """Teacher, student, sizes of the batches and one example."""
        source = trainer.sources[0]
        rows, _ = Stream(source, self.config.run.seed).take(Cursor(), 1)
        objective = self.accelerator.unwrap_model(trainer.objective)
        student, teacher = objective.exported(), self.teacher.module
        batches = ", ".join(map(str, self.config.train.phases))
        return (
            f"teacher     {_size(teacher)} from {self.config.teacher.from_}\n"
            f"student     {_size(student)}\n"
            f"            {self.started}\n"
            f"training    batch of a step x longest example: {batches}\n\n"
            f"first example\n{show_example(source.collate(sampled(source, rows)), self.tokenizer)}"
        )

    def result(self, trainer: Trainer, ended: Fit) -> dict[str, Any]:
        """Export; the held-out terms are in the card, and need nothing beside them."""
        objective = trainer.assembled()
        if not self.accelerator.is_main_process:
            return {}
        self.shown = {"loss": Shown("loss, all terms weighted", "lower", ""), **trainer.held_out.shown}
        self.baselines = objective.baselines([], np.empty(0), ended.held_out)
        table = terms_table(ended.held_out, self.shown, self.baselines, ("student", "teacher"))
        student, processes = objective.exported(), self.accelerator.num_processes
        facts = {
            "teacher": f"{_size(self.teacher.module)} from {self.config.teacher.from_}",
            "student": f"{_size(student)}; at the start {self.started}",
            "training": f"{ended.step:,} steps",
            **self.facts,
            "speed": f"{ended.tokens_per_second:,.0f} tokens/s on {processes} x {self.accelerator.device.type}",
        }
        card = ""
        with beside("the card of the export"):
            fills_masks = "fill-mask" if self.method.MASKED_WORDS else None
            about = "A student distilled with Bertillery."
            card = model_card(
                self.name, about, fact_list(facts), table, config=self.text, tags=["distillation"], pipeline=fills_masks
            )
        export_model(student, self.tokenizer, self.directory.export, card=card, carried=objective.carried())
        return {**ended.results(), "table": table}

    def show(self, trainer: Trainer, ended: Fit, tracker: Tracker, results: dict[str, Any]) -> None:
        """Curves."""
        tracker.summary(ended.held_out)
        picture = self.path / "curves.png"
        with beside(f"the picture {picture}"):
            panels = term_panels(self.shown, self.baselines, "teacher")
            plot_curves(self.directory.metrics_file, panels, picture, self.name)
            tracker.image("curves", picture, ended.step)

    def ending(self, results: dict[str, Any]) -> str:
        """Numbers, files, and the next command."""
        path = self.path
        return (
            f"\n{results['table']}\n\nstudent     {path / 'export'}\ncurves      {path / 'curves.png'}\n"
            f"metrics     {path / 'metrics.jsonl'}\n\n{self.next_command()}"
        )

    def next_command(self) -> str:
        """What to type next."""
        student = self.path / "export"
        return (
            f"next        make finetune MODEL={student}      (or, with a fine-tuned teacher:\n"
            f"            make distill CONFIG=distilbert_task TASK=... TEACHER=... STUDENT={student})"
        )


def _size(model: PreTrainedModel) -> str:
    config = model.config
    number = sum(parameter.numel() for parameter in model.parameters())
    return f"{type(model).__name__} {config.num_hidden_layers} x {config.hidden_size}, {number:,} parameters"

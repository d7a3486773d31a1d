"""Fine-tuning as a stage: what a run of a task prepares, trains and reports. Distilling a task is one of these, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedTokenizerBase

from bertillery.config.layers import CONFIGS, configurations, read_values
from bertillery.config.section import ConfigError, InputError
from bertillery.models.encoders import ONE_STREAM, family, longest_sequence
from bertillery.models.export import export_model
from bertillery.models.frame import with_transform_tokens
from bertillery.models.heads import add_rows, begin_at, draw_head, head_parameters
from bertillery.models.load import check_vocabulary, load, load_tokenizer, read_config, vocabulary_size
from bertillery.report.plot import plot_curves
from bertillery.run.command import task_command
from bertillery.run.directory import FINISHED_REMEDY
from bertillery.run.inputs import Fingerprint, model_inputs
from bertillery.run.lineage import model_name
from bertillery.run.stage import Parts, Results, Stage, beside
from bertillery.run.tracking import Tracker
from bertillery.run.trainer import Fit, Trainer
from bertillery.run.waiting import main_process_first
from bertillery.system.files import write_text
from finetune.config import FinetuneConfig
from finetune.data.splits import current_rows, documentation_input, open_task, report, row_inputs
from finetune.examples import Examples
from finetune.predict import Scored, predict
from finetune.recipe import describe_recipe
from finetune.record import FILE, Record
from finetune.report import (
    ROWS,
    classes_table,
    findings,
    hardest_examples,
    model_card,
    panels,
    results_table,
    scored,
    show_example,
    table_rows,
    write_predictions,
)
from finetune.task import run_of, task_type_of
from finetune.task_types.base import Predicted


class TaskResults(Results):
    """What tables and searches read of a finished run."""

    scores: dict[str, dict[str, float]]
    """By validation split and metric."""
    baselines: dict[str, dict[str, dict[str, float]]]
    """By validation split, baseline and metric."""
    warnings: dict[str, str]
    """By validation split."""
    hardest: str = ""


class Finetuning(Stage):
    """One fine-tuning run."""

    folder = job = "finetune"
    makes = "fine-tuned"
    axis = "examples"
    config: FinetuneConfig
    results_schema = TaskResults

    def __init__(self, config: FinetuneConfig, given: Sequence[str] = ()) -> None:
        """``given`` are the arguments that the configuration was read from, for the command that is proposed next."""
        super().__init__(config)
        self.given = tuple(given)

    def prepare(self) -> Parts:
        """Read the task (the main process makes and downloads what is not there), open tokenizer and model."""
        config, section = self.config, self.config.task
        self.model_paths.setdefault("starting weights", getattr(config.model, "from_", None))
        self.pin(self.models)
        self.task_type = task_type_of(section)
        self.baselines: dict[str, dict[str, float]] = {}
        if getattr(config.model, "add_orders", False):
            self.task_type.add_orders()
        self.task_type.data_dir = config.run.data_dir
        tokenizer = self._tokenizer()
        with main_process_first(self.accelerator):
            self.task = open_task(section, config.run.data_dir)
        self.say(report(self.task))
        self.pin(lambda: row_inputs(self.task) | documentation_input(section) | self.task_type.inputs())
        self.tokenizer = self._fitted(tokenizer)
        train = self._examples("train", training=True)
        self.validation = {name: self._examples(name) for name in section.validation}
        self.test = {name: self._examples(name) for name in section.test if name in self.task.splits}
        return Parts(
            [train],
            epoch_size=Examples.epoch_size,
            objective=self._objective,
            held_out=Scored(
                self.validation,
                self.task_type,
                num_examples=config.train.evaluate_examples,
                best_by=config.train.best_by,
            ),
        )

    def current(self) -> dict[str, Fingerprint]:
        """The model, and the rows where they are in files."""
        task = self.config.task
        return self.models() | task_type_of(task).inputs() | current_rows(task, self.config.run.data_dir)

    def models(self) -> dict[str, Fingerprint]:
        """Fingerprints of the models that the run is made from."""
        return model_inputs(starting_weights=self.config.model.from_)

    def _tokenizer(self) -> Any:
        """The tokenizer of the model, checked before the rows are read."""
        start, asked = self.config.model.from_, self.config.train.phases[0].sequence_length
        config = read_config(start, roles=ONE_STREAM)
        found = family(config)
        self._check_causal(found.causal)
        tokenizer = load_tokenizer(start, "model.from", role=found.role)
        check_length(start, config, asked)
        check_vocabulary(tokenizer, config, start, "model.from")
        return with_transform_tokens(tokenizer) if found.causal else self.task_type.fitted(tokenizer)

    def _fitted(self, tokenizer: Any) -> PreTrainedTokenizerBase:
        """The tokenizer for the rows that have been read."""
        return tokenizer

    def _check_causal(self, causal: bool) -> None:
        """``ConfigError`` for a task type or a key that does not go with the model's direction."""
        section, config = self.config.task, self.config
        if causal and not self.task_type.reads_causal:
            raise ConfigError(
                f"model.from: {config.model.from_} is a decoder, which sees no later token; tasks of type "
                f"{section.type} need an encoder"
            )
        if config.model.auxiliary_lm and not causal:
            raise ConfigError(
                f"model.auxiliary_lm: {config.model.from_} is an encoder, which has no language model of next tokens; "
                "leave the key out"
            )
        if config.model.add_orders and not causal:
            raise ConfigError(
                f"model.add_orders: {config.model.from_} is an encoder, in which both texts of a pair see each other; "
                "leave the key out, or set train.both_orders=true to train on every pair twice"
            )

    def _examples(self, name: str, training: bool = False) -> Examples:
        split, config = self.task.split(name), self.config
        if split.labels is None and name not in config.task.test:
            raise ConfigError(f"{config.task.name}: the split {name} has no labels to train on or to compare with")
        found = self.task_type.examples(
            split,
            self.tokenizer,
            max_length=config.train.phases[0].sequence_length,
            seed=config.run.seed,
            training=training,
            both_orders=config.train.both_orders,
        )
        if found.about:
            self.say(f"{name:<11} {found.about}")
        return found

    def _objective(self) -> Any:
        section = self.config.model
        causal = family(read_config(section.from_, roles=ONE_STREAM)).causal
        settings = self.task_type.settings()
        if causal:  # what stands in a padded batch of the stock class behind the token that its head reads
            settings = {"num_labels": 1, "pad_token_id": self.tokenizer.pad_token_id, **settings}
        model, self.loaded = load(
            AutoModelForSequenceClassification if causal else self.task_type.model_class,
            section.from_,
            roles=ONE_STREAM,
            hidden_dropout=section.hidden_dropout,
            attention_dropout=section.attention_dropout,
            classifier_dropout=section.classifier_dropout,
            random=section.weights == "random",
            **settings,
        )
        add_rows(model, vocabulary_size(self.tokenizer))
        # A head that was trained for other labels is a start no better than another, and one nobody asked for.
        found = read_config(section.from_, roles=ONE_STREAM)
        same = section.weights == "pretrained" and self.task_type.head_fits(found)
        fresh: tuple[str, ...] = tuple(sorted({*self.loaded.fresh, *([] if same else head_parameters(model))}))
        draw_head(model, fresh)
        labels = self.task.split("train").labels
        if section.score_bias == "mean" and labels is not None and not same:
            begin_at(model, float(labels.mean()))
        self.loaded = replace(self.loaded, fresh=fresh)
        if labels is not None:
            self.task_type.weigh(labels)
        objective = self.task_type.objective(model)
        objective.auxiliary_lm = section.auxiliary_lm
        return objective

    def results(self) -> dict[str, Any]:
        """The same; ``InputError``, too, where scores of the task's splits and metrics are missing."""
        found, section = super().results(), self.config.task
        for split in section.validation:
            lacking = {*section.metrics} - found["scores"].get(split, {}).keys()
            if lacking or split not in found["baselines"]:
                raise InputError(
                    f"{self.path / 'finished.json'}: of the split {split} are missing: "
                    f"{', '.join(sorted(lacking)) or 'baselines'}; {FINISHED_REMEDY}"
                )
        return found

    def defect(self) -> str | None:
        """The same; the predictions are of what it left, too: tables average them."""
        files = [self.path / "predictions" / f"{split}.tsv" for split in self.config.task.validation]
        lacking = next((file for file in files if not file.is_file()), None)
        return super().defect() or (lacking and f"{lacking} is missing")

    def recorded(self) -> dict[str, Any]:
        """Where the data came from and how much there is."""
        sizes = {name: split.num_examples for name, split in self.task.splits.items()}
        return {"data": {"where": self.task.where, "examples": sizes}}

    @property
    def subject(self) -> tuple[str, str]:
        """The task, and the model: what runs of other seeds share."""
        path = Path(self.name)
        return self.config.task.name, path.parts[1] if len(path.parts) > 2 else self.model_name

    @property
    def model_name(self) -> str:
        """What the model is called in the folders of runs."""
        return model_name(self.config.model.from_)

    def banner(self, trainer: Trainer) -> str:
        """Model, recipe and one example."""
        config, model = self.config, self.accelerator.unwrap_model(trainer.objective).exported()
        rate, length = config.optim.learning_rate, config.train.steps
        phase = config.train.phases[0]
        cut = self.validation[config.task.validation[0]].num_cut
        cuts = f"; {cut:,} validation examples are cut" if cut else ""
        return (
            f"model       {type(model).__name__} from {config.model.from_}, {model.num_parameters():,} parameters\n"
            f"            {self.loaded}\n"
            f"recipe      {describe_recipe(config.model.from_, config.recipe)}\n"
            f"            learning rate {rate:g}, a batch of {phase} tokens, {length}{cuts}\n"
            f"            to compare others: {self._search()}\n\n"
            "first example\n"
            f"{show_example(trainer.sources[0], self.task.split('train'), self.task_type, self.tokenizer)}"
        )

    def result(self, trainer: Trainer, ended: Fit) -> dict[str, Any]:
        """Predict all splits, measure, export, and write the predictions."""
        predicted, objective = self._predict(trainer), trainer.assembled()
        self.predicted = predicted
        if not self.accelerator.is_main_process:
            return {}
        section = self.config.task
        chosen = self.task_type.choose(predicted[section.validation[0]])
        values, warnings = scored(self.task_type, {name: predicted[name] for name in self.scored()})
        results = {
            "steps": ended.step,
            "scores": values,
            "baselines": {name: {} for name in values},
            "warnings": warnings,
            "chosen": chosen,
            "tokens_per_second": ended.tokens_per_second,
        }
        results["table"], card = self.table(results), ""
        with beside("the card of the export"):
            card = self._card(results)
        export_model(
            objective.exported(),
            self.tokenizer,
            self.directory.export,
            card=card,
            auxiliary_models=objective.auxiliary_models(),
            beside={FILE: Record.of(self.config.model_dump(mode="json"), chosen).text()},
            tokenizers=self.task_type.tokenizers(),
            max_length=self.config.train.phases[0].sequence_length,
            texts_only=True,
            spaced=self.task_type.spaced,
        )
        write_predictions(self.directory.export.with_name("predictions"), predicted, self.task_type)
        return results

    def show(self, trainer: Trainer, ended: Fit, tracker: Tracker, results: dict[str, Any]) -> None:
        """The metrics beside what guessing and counting words reach, the hardest examples, and pictures."""
        section, card = self.config.task, self.directory.export / "README.md"
        first = self.predicted[section.validation[0]]
        for name in results["scores"]:
            with beside(f"baselines of {name}"):
                results["baselines"][name] = self.task_type.baselines(self.task, name)
        with beside("the table"):
            results["table"] = self.table(results)
        with beside("the scores of each class"):
            results["classes"] = classes_table(first, self.task_type)
        with beside(f"the card {card}"):
            write_text(card, self._card(results))
        with beside(f"the hardest examples, {self.path / 'hardest.tsv'}"):
            results["hardest"] = hardest_examples(first, self.task_type, self.path / "hardest.tsv")
        self.baselines = results["baselines"][section.validation[0]]
        self.show_curves(trainer, tracker, ended.step)
        with beside(f"pictures of the predictions in {self.path}"):
            for picture in self.task_type.draw(first, self.path):
                tracker.image(picture.stem, picture, ended.step)
        with beside("what a tracker shows of the predictions"):
            if tracker.shows:
                self._show_predictions(tracker, ended.step, results)

    def draw(self, trainer: Trainer) -> None:
        """The loss and the metrics."""
        shown = panels(self.config.task.metrics, self.baselines)
        plot_curves(self.directory.metrics_file, shown, self.path / "curves.png", self.name)

    def _show_predictions(self, tracker: Tracker, step: int, results: dict[str, Any]) -> None:
        """Scores, and of the first validation split: predictions, the hardest examples, errors, confused classes."""
        kind, split = self.task_type, self.config.task.validation[0]
        first, scores = self.predicted[split], results["scores"]
        found = {f"result/{name}/{metric}": value for name, each in scores.items() for metric, value in each.items()}
        for name, each in self.baselines.items():
            found |= {f"baseline/{split}/{metric}/{name}": value for metric, value in each.items()}
        # Sweeps ask for a number with a name of one part.
        tracker.summary({**found, "score": scores[split][self.config.task.metrics[0]]}, step)
        distances = kind.distances(first)
        hardest = np.argsort(-distances, kind="stable")[:ROWS]
        for name, which in (("predictions", np.arange(min(ROWS, len(distances)))), ("hardest_examples", hardest)):
            tracker.table(name, table_rows(first, kind, distances, which), step)
        tracker.histogram("errors", distances.tolist(), step)
        if kind.classes:
            labels, predictions = first.labels.tolist(), first.predictions.tolist()
            tracker.confusion(labels, predictions, kind.section.labels, step)

    def _card(self, results: dict[str, Any]) -> str:
        table = "\n\n".join(filter(None, (results["table"], results.get("classes"), self.task_type.usage)))
        return model_card(
            self.name, self.about(), table, results["scores"], self.config, self.text, self.task_type.pipeline,
            baselines=results["baselines"], warnings=results["warnings"],
        )  # fmt: skip

    def about(self) -> str:
        """What the model is, for its card."""
        return f"{self.config.model.from_} fine-tuned on {self.config.task.name}"

    def scored(self) -> list[str]:
        """Splits whose scores are results."""
        return self.config.task.validation

    def _predict(self, trainer: Trainer) -> dict[str, Predicted]:
        """Every validation and test split that there is, with its predictions."""
        tokens, found = trainer.micro_batch_tokens, {}
        self.means: dict[str, dict[str, float]] = {}
        for name, examples in (self.validation | self.test).items():
            rows = examples.examples(0, 0)
            outputs, self.means[name] = predict(
                self.accelerator, trainer.objective, examples, rows, micro_batch_tokens=tokens
            )
            predictions = self.task_type.decide(outputs, examples, rows["index"])
            found[name] = Predicted(self.task.split(name), outputs, predictions)
        return found

    def ending(self, results: dict[str, Any]) -> str:
        """Scores, files, and the next command."""
        path = self.path
        return (
            f"\n{findings(results, path)}\n\n"
            f"model       {path / 'export'}\npredictions {path / 'predictions'}\ncurves      {path / 'curves.png'}\n\n"
            f"next        {self.next_command(results)}"
        )

    def next_command(self, results: dict[str, Any]) -> str:
        """What to type next: a search of rates where the encoder is worth no more than counting words."""
        split, metric, start = self.config.task.validation[0], self.config.task.metrics[0], self.config.model.from_
        beside = [found[metric] for found in results["baselines"][split].values() if metric in found]
        if results["scores"][split][metric] <= max(beside, default=-math.inf):
            return f"{self._search()}      (a baseline does as well; most often it is the learning rate)"
        command = task_command("finetune", self.given, model=start, run=self.path, seeds=5)
        return f"{command}      (one seed says little)"

    def _search(self) -> str:
        """The command that searches the published grid for the encoder's size."""
        start = self.config.model.from_
        try:
            space = "bert_grid" if read_config(start, roles=ONE_STREAM).hidden_size >= 768 else "bert_mini_grid"
        except InputError:  # the encoder of a finished run is gone
            space = "default"
        # A search refuses keys that its space has.
        searched, _ = read_values([str(configurations(CONFIGS / "finetune" / "spaces") / f"{space}.yaml")])
        more = f"space={space}"
        return task_command("search", self.given, more, model=start, run=self.path, without=searched)

    def table(self, results: dict[str, Any]) -> str:
        """The scores beside the baselines, as Markdown."""
        return results_table(results["scores"], results["baselines"], results["warnings"], results["chosen"])


def check_length(start: str, config: PreTrainedConfig, asked: int) -> None:
    """``ConfigError`` where the model in ``start`` has fewer positions than the sequence length that is asked for."""
    longest = longest_sequence(config)
    if asked > longest:
        raise ConfigError(
            f"train.phases: {start} reads {longest} tokens at most, and sequence_length is {asked}; "
            f"give one of at most {longest}"
        )


def finetuning(config: FinetuneConfig, given: Sequence[str] = ()) -> Finetuning:
    """The stage of a configuration: that of its task type, where it has one of its own."""
    return (run_of({"type": config.task.type}, "Stage") or Finetuning)(config, given)

"""``python -m finetune task.yaml model.from=<directory or Hub id> key.sub=value``: one task, one seed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from engine.config import ConfigError
from engine.export import export_model
from engine.fit import Fit, Trainer
from engine.load import load, read_config
from engine.objective import objective_module
from engine.stage import Parts, Stage, command
from engine.tracking import Tracker
from finetune.baselines import baselines
from finetune.config import FinetuneConfig, load_config
from finetune.data import read_task, report
from finetune.evaluate import Scored, predict
from finetune.examples import TextExamples
from finetune.metrics import degenerate, scores
from finetune.model import draw_head, head_parameters
from finetune.report import (
    hardest_examples,
    model_card,
    plot_confusion,
    plot_curves,
    results_table,
    show_example,
    write_predictions,
)


def main(arguments: Sequence[str]) -> int:
    """Fine-tune once; returns the exit status."""
    return command(
        arguments, help=__doc__, schema=FinetuneConfig, load=load_config, run=lambda config: Finetuning(config).run()
    )


class Finetuning(Stage):
    """One fine-tuning run."""

    folder = "finetune"
    config: FinetuneConfig

    def prepare(self) -> Parts:
        """Read the task (the main process makes and downloads what is not there), open tokenizer and model."""
        config, section = self.config, self.config.task
        self.kind = objective_module("finetune.objectives", {"type": section.type})
        glue_dir = os.environ.get("GLUE_DIR")
        with self.accelerator.main_process_first():
            self.task = read_task(section, data_dir=config.run.data_dir, glue_dir=Path(glue_dir) if glue_dir else None)
        self.say(report(self.task))
        self.tokenizer = AutoTokenizer.from_pretrained(config.model.from_)
        train = self._examples("train", both_orders=config.train.both_orders)
        self.validation = {name: self._examples(name) for name in section.validation}
        batch_size = config.train.phases[0].batch_size
        return Parts(
            [train],
            steps_per_epoch=lambda: train.num_examples / batch_size,
            objective=self._objective,
            held_out=Scored(
                self.validation,
                metrics=section.metrics,
                decide=self.kind.Objective.decide,
                num_examples=config.train.evaluate_examples,
            ),
        )

    def _examples(self, name: str, both_orders: bool = False) -> TextExamples:
        split, config = self.task.split(name), self.config
        if split.labels is None and name not in config.task.test:
            raise ConfigError(f"{config.task.name}: the split {name} has no labels to train on or to compare with")
        return TextExamples(
            split.texts,
            split.labels,
            self.tokenizer,
            max_length=config.train.phases[0].sequence_length,
            seed=config.run.seed,
            both_orders=both_orders,
        )

    def _objective(self) -> Any:
        section, names = self.config.model, self.config.task.labels
        settings = {"num_labels": max(1, len(names)), "problem_type": self.kind.PROBLEM}
        if names:
            settings |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
        model, self.loaded = load(
            AutoModelForSequenceClassification,
            section.from_,
            hidden_dropout=section.hidden_dropout,
            attention_dropout=section.attention_dropout,
            classifier_dropout=section.classifier_dropout,
            random=section.weights == "random",
            **settings,
        )
        # A head that was trained for other labels is a start no better than another, and one nobody asked for.
        same = section.weights == "pretrained" and [*read_config(section.from_).id2label.values()] == names
        fresh = sorted({*self.loaded.fresh, *([] if same else head_parameters(model))})
        draw_head(model, fresh)
        self.loaded = replace(self.loaded, fresh=tuple(fresh))
        return self.kind.Objective(model)

    def recorded(self) -> dict[str, Any]:
        """Where the data came from and how much there is."""
        sizes = {name: split.num_examples for name, split in self.task.splits.items()}
        return {"data": {"where": self.task.where, "examples": sizes}}

    def plan(self, trainer: Trainer) -> str:
        """Model, recipe and one example."""
        config, model = self.config, self.accelerator.unwrap_model(trainer.objective).exported()
        size, phase = sum(parameter.numel() for parameter in model.parameters()), config.train.phases[0]
        cut = self.validation[config.task.validation[0]].num_truncated
        cuts = f"; {cut:,} validation examples are cut" if cut else ""
        return (
            f"model       {type(model).__name__} from {config.model.from_}, {size:,} parameters\n"
            f"            {self.loaded}\n"
            f"recipe      {config.recipe}: {phase.batch_size} x {phase.sequence_length} tokens a step, "
            f"learning rate {config.optim.learning_rate:g}{cuts}\n\nfirst example\n"
            f"{show_example(trainer.sources[0], self.task.split('train'), config.task, self.tokenizer)}"
        )

    def report(self, trainer: Trainer, ended: Fit, tracker: Tracker) -> dict[str, Any]:
        """Predict all splits, export, and set the metrics beside what guessing and counting words reach."""
        section, outputs = self.config.task, self._predict(trainer)
        if not self.accelerator.is_main_process:
            return {}
        write_predictions(self.path / "predictions", outputs, self.task, self.kind.Objective.decide)
        beside = {name: baselines(self.task, name) for name in section.validation}
        values, warnings, decided = {}, {}, {}
        for name in section.validation:
            labels = self.task.split(name).labels
            assert labels is not None
            decided[name] = self.kind.Objective.decide(outputs[name])
            values[name] = scores(section.metrics, decided[name], labels)
            warning = degenerate(section.type, decided[name], labels, section.labels)
            warnings |= {name: warning} if warning else {}
        table = results_table(values, beside, warnings)
        first = section.validation[0]
        pictures = [self.path / "curves.png", self.path / "confusion.png"]
        plot_curves(self.directory.metrics_file, section.metrics, beside[first], pictures[0], self.name)
        if section.type == "classification":
            plot_confusion(decided[first], self.task.split(first), section, pictures[1])
        hard = hardest_examples(outputs[first], self.task.split(first), section, self.path / "hardest.tsv")
        objective = self.accelerator.unwrap_model(trainer.objective)
        card = model_card(self.name, table, values, self.config, self.text)
        export_model(objective.exported(), self.tokenizer, self.directory.export, card=card)
        tracker.summary({f"{split}/{name}": value for split, found in values.items() for name, value in found.items()})
        for picture in pictures:
            if picture.exists():
                tracker.image(picture.stem, picture, ended.step)
        return {
            "steps": ended.step,
            "scores": values,
            "baselines": beside,
            "warnings": warnings,
            "tokens_per_second": ended.tokens_per_second,
            "table": table,
            "hardest": hard,
        }

    def _predict(self, trainer: Trainer) -> dict[str, np.ndarray]:
        """Outputs (N, K) of every validation and test split that there is, in the order of the split."""
        names = [name for name in [*self.config.task.validation, *self.config.task.test] if name in self.task.splits]
        found = {}
        for name in names:
            source = self._examples(name)
            found[name], _ = predict(
                self.accelerator,
                trainer.objective,
                source,
                source.plan(0, 0),
                micro_batch_tokens=trainer.micro_batch_tokens,
            )
        return found

    def ending(self, results: dict[str, Any]) -> str:
        """Scores, files, and the next command."""
        path, config = self.path, self.config
        return (
            f"\n{results['table']}\n\n"
            f"hardest examples (all of them in {path / 'hardest.tsv'})\n{results['hardest']}\n\n"
            f"model       {path / 'export'}\npredictions {path / 'predictions'}\ncurves      {path / 'curves.png'}\n\n"
            f"next        make finetune TASK={config.task.name} MODEL={config.model.from_} SEEDS=5      "
            "(one seed says little)"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

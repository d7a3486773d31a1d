"""``python -m pretrain a.yaml key.sub=value``: corpus, tokenizer, training, export, report."""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

from bertillery.data.prepare import corpus_files, prepare_for
from bertillery.data.prepared import corpus_report, of_held_out_text
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.loader import Cursor, Stream
from bertillery.engine.objective import describe_objectives
from bertillery.models.export import export_model
from bertillery.run.command import command
from bertillery.run.inputs import Fingerprint, model_inputs
from bertillery.run.stage import Parts, Stage, beside
from bertillery.run.tracking import Tracker
from bertillery.run.trainer import Fit, Trainer
from bertillery.system.files import write_text
from pretrain.config import PretrainConfig, load_config, objective_of
from pretrain.examples import epoch_size
from pretrain.initialization import load_weights
from pretrain.report import baselines, fill_masks, model_card, plot_curves, results_table, show_example

_SENTENCES = [
    "The function returns a [MASK] of strings.",
    "If the file does not [MASK], an error is raised.",
    "The default [MASK] is None.",
    "This method must be [MASK] before training.",
]


def main(arguments: Sequence[str]) -> int:
    """Run pretraining; returns the exit status."""
    return command(
        arguments,
        help=__doc__,
        schema=PretrainConfig,
        load=load_config,
        run=lambda config: Pretraining(config).run(),
        more=lambda: describe_objectives("pretrain.objectives"),
    )


class Pretraining(Stage):
    """One pretraining run."""

    folder = "pretrain"
    config: PretrainConfig

    def prepare(self) -> Parts:
        """Corpus and tokenizer (the main process makes them, the others open them), examples, objective."""
        config = self.config
        self.objective_module = objective_of(config)
        self.pin(lambda: model_inputs(starting_weights=config.model.from_))
        self.corpus = prepare_for(self, config.data, config.tokenizer, num_texts=config.objective.num_texts)
        self.tokenizer = self.corpus.tokenizer()
        self.say(corpus_report(self.corpus))
        phases = config.train.phases
        source = cache(lambda length: self._source(self.corpus.train, length))
        sources = [source(phase.sequence_length) for phase in phases]
        with of_held_out_text():
            valid = self._source(self.corpus.valid, phases[-1].sequence_length)
        return Parts(
            sources,
            epoch_size=epoch_size,
            objective=self._objective,
            held_out=HeldOut(valid, num_examples=config.train.evaluate_examples),
        )

    def current(self) -> dict[str, Fingerprint]:
        """Starting weights, and the files of the corpus."""
        config = self.config
        models = model_inputs(starting_weights=config.model.from_)
        return {**models, "corpus files": corpus_files(config.data, config.tokenizer)}

    def _source(self, tokens: Any, sequence_length: int) -> Any:
        return self.objective_module.source(
            self.config.objective, tokens, self.tokenizer, sequence_length=sequence_length, seed=self.config.run.seed
        )

    def recorded(self) -> dict[str, Any]:
        """The corpus's manifest."""
        return {"corpus": self.corpus.manifest}

    def _objective(self) -> Any:
        config = self.config
        objective = self.objective_module.build(config.objective, config.model, self.tokenizer)
        self.weights = load_weights(objective, config.model.from_) if config.model.from_ else ["freshly initialised"]
        return objective

    def banner(self, trainer: Trainer) -> str:
        """Model, sizes of the batches, how much is predicted and one example."""
        config, below = self.config, f"\n{'':<12}"
        rows, _ = Stream(trainer.sources[0], self.config.run.seed).take(Cursor(), 1)
        example = show_example(trainer.sources[0].collate(rows), self.tokenizer)
        objective = self.accelerator.unwrap_model(trainer.objective)
        size = sum(parameter.numel() for parameter in objective.parameters())
        models = " and ".join(
            type(model).__name__ for model in [objective.exported(), *objective.auxiliary_models().values()]
        )
        batches = ", ".join(map(str, config.train.phases))
        lengths = dict.fromkeys(phase.sequence_length for phase in config.train.phases)
        start, predicted = below.join(self.weights), below.join(map(config.objective.predicted, lengths))
        return (
            f"model       {models}, {size:,} parameters\n"
            f"weights     {start}\n"
            f"training    batch of a step x longest example: {batches}\n"
            f"predicted   {predicted}\n\n"
            f"first example\n{example}"
        )

    def result(self, trainer: Trainer, ended: Fit) -> dict[str, Any]:
        """Export."""
        objective = trainer.assembled()
        if not self.accelerator.is_main_process:
            return {}
        self.models, table = (
            {".": objective.exported(), **objective.auxiliary_models()},
            results_table(ended.held_out, {}),
        )
        card = ""
        with beside("the card of the export"):
            card = self._card(ended, table)
        export_model(
            self.models["."],
            self.tokenizer,
            self.directory.export,
            card=card,
            auxiliary_models=objective.auxiliary_models(),
        )
        return {**ended.results(), "table": table}

    def show(self, trainer: Trainer, ended: Fit, tracker: Tracker, results: dict[str, Any]) -> None:
        """Held-out numbers beside their baselines, curves, and guesses for masked words."""
        export, picture, baseline = self.directory.export, self.path / "curves.png", {}
        with beside("baselines"):
            mask_id = cast(int, self.tokenizer.mask_token_id)
            baseline = baselines(trainer.held_out, self.corpus.unigrams, ended.held_out, mask_id=mask_id)
            results |= {"baselines": baseline, "table": results_table(ended.held_out, baseline)}
        with beside(f"the card {export / 'README.md'}"):
            write_text(export / "README.md", self._card(ended, results["table"]))
        with beside("guesses for masked words"):
            fills = export / self._fills
            results["fill_mask"] = f"fill-mask with {fills}\n{fill_masks(fills, _SENTENCES)}"
        tracker.summary({**ended.held_out, **{f"baseline/{name}": value for name, value in baseline.items()}})
        with beside(f"the picture {picture}"):
            plot_curves(self.directory.metrics_file, baseline, picture, self.name)
            tracker.image("curves", picture, ended.step)

    @property
    def _fills(self) -> str:
        """Which folder of the export holds a model that fills masks."""
        return next(name for name, model in self.models.items() if model.get_output_embeddings() is not None)

    def _card(self, ended: Fit, table: str) -> str:
        train, processes = self.corpus.train, self.accelerator.num_processes
        facts = {
            "training": f"{ended.step:,} steps",
            "weights at the start": "; ".join(self.weights),
            "corpus": f"{train.num_documents:,} documents, {train.num_tokens:,} tokens ({self.corpus.path.name})",
            "speed": f"{ended.tokens_per_second:,.0f} tokens/s on {processes} x {self.accelerator.device.type}",
        }
        facts |= {f"in `{name}/`": type(model).__name__ for name, model in self.models.items() if name != "."}
        return model_card(self.name, table, facts, self.text, fills_masks=self._fills == ".")

    def ending(self, results: dict[str, Any]) -> str:
        """Numbers, guesses, files, and the next command."""
        path = self.path
        shown = "\n\n".join(results[name] for name in ("table", "fill_mask") if name in results)
        return (
            f"\n{shown}\n\n"
            f"model       {path / 'export'}\ncurves      {path / 'curves.png'}\n"
            f"metrics     {path / 'metrics.jsonl'}\n\n"
            f"next        make finetune MODEL={path / 'export'}      (GLUE: TASK=sst2 HUB=1; all tasks: make help)"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

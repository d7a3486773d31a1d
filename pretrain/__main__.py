"""``python -m pretrain a.yaml key.sub=value``: corpus, tokenizer, training, export, report."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from engine.config import ConfigError, InputError, describe, dump
from engine.environment import environment
from engine.evaluate import HeldOut
from engine.export import export_model
from engine.fit import Fit, Rhythm, Trainer
from engine.keyed import key
from engine.loop import DivergedError
from engine.optim import build_optimizer, learning_rate
from engine.order import Cursor, Stream
from engine.run import RunDirectory, start_accelerator
from engine.tracking import Tracker
from pretrain.config import RESUMABLE, PretrainConfig, load_config, objective_of
from pretrain.examples import steps_per_epoch
from pretrain.prepare import PreparedCorpus, corpus_report, prepare
from pretrain.report import baselines, fill_masks, model_card, plot_curves, results_table, show_example
from pretrain.weights import load_weights

_SENTENCES = [
    "The function returns a [MASK] of strings.",
    "If the file does not [MASK], an error is raised.",
    "The default [MASK] is None.",
    "This method must be [MASK] before training.",
]


def main(arguments: Sequence[str]) -> int:
    """Run pretraining; returns the exit status."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__, describe(PretrainConfig), sep="\n\n")
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in ("engine", "pretrain"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        config = load_config([argument for argument in arguments if argument != "--print-config"])
        if "--print-config" in arguments:
            print(dump(config), end="")
            return 0
        return Pretraining(config).run()
    except (InputError, DivergedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


class Pretraining:
    """One run, from its configuration to its report."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config, self.objective_module = config, objective_of(config)
        assert config.run.name is not None
        self.name = config.run.name
        self.text = dump(config)

    def run(self) -> int:
        """Prepare, train, export, report; a finished run is only reported."""
        config = self.config
        path = config.run.dir / "pretrain" / self.name
        # What the run directory refuses, it refuses before anything is computed; it is made when training can begin.
        directory = self.directory = RunDirectory.open(path, self.text, ignore=RESUMABLE, is_main=False)
        if directory.finished:
            print(f"{path} is finished and left alone; for another run give run.name=..., or delete the folder.\n")
            print(_ending(path, directory.results))
            return 0
        accelerator = self.accelerator = start_accelerator(config.run)
        self.corpus = corpus = self._prepare()
        self.tokenizer = corpus.tokenizer()
        self._say(corpus_report(corpus))
        trainer = self._trainer()
        RunDirectory.open(path, self.text, ignore=RESUMABLE, is_main=accelerator.is_main_process)
        accelerator.wait_for_everyone()
        resumed = trainer.resume()
        self._say(self._plan(trainer, resumed))
        tracker = Tracker(
            config.tracking,
            path,
            name=self.name,
            config={**config.model_dump(mode="json"), "environment": environment(), "corpus": corpus.manifest},
            is_main=accelerator.is_main_process,
            resume_step=resumed or None,
        )
        ended, status = None, 1
        try:
            ended = trainer.run(tracker)
            status = 0 if ended.stopped_by is None else 128 + {"SIGINT": 2}.get(ended.stopped_by, 15)
            if ended.stopped_by:
                self._say(f"{ended.stopped_by}: saved step {ended.step:,} and left; type the same command to go on.")
            elif accelerator.is_main_process:
                self._finish(trainer, ended, tracker)
            accelerator.wait_for_everyone()
        finally:
            tracker.close(status, preempted=ended is not None and ended.stopped_by is not None)
        accelerator.end_training()
        return status

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, flush=True)

    def _prepare(self) -> PreparedCorpus:
        """The main process prepares the corpus; the others open it."""
        config, cache = self.config, self.config.run.data_dir
        with self.accelerator.main_process_first():
            return prepare(config.data, config.tokenizer, cache)

    def _source(self, tokens: Any, sequence_length: int) -> Any:
        return self.objective_module.source(
            self.config.objective, tokens, self.tokenizer, sequence_length=sequence_length, seed=self.config.run.seed
        )

    def _trainer(self) -> Trainer:
        config, accelerator = self.config, self.accelerator
        phases = config.train.phases
        sources = [self._source(self.corpus.train, phase.sequence_length) for phase in phases]
        rhythm = Rhythm.of(config.train, lambda: steps_per_epoch(sources[0], phases[0].batch_size))
        learning_rate(config.optim, rhythm.total)  # raises for a warm-up that does not fit
        small = [phase.batch_size for phase in phases if phase.batch_size < accelerator.num_processes]
        if small:
            raise ConfigError(
                f"train.phases: batch_size {small[0]} is less than the {accelerator.num_processes} processes"
            )
        torch.manual_seed(int(key(config.run.seed, 0) >> 1))
        objective = self.objective_module.build(config.objective, config.model, self.tokenizer)
        self.start = load_weights(objective, config.model.from_) if config.model.from_ else ["freshly initialised"]
        prepared = accelerator.prepare_model(objective)
        try:
            valid = self._source(self.corpus.valid, phases[-1].sequence_length)
        except ConfigError as error:
            remedy = "hold out more (data.holdout), or name held-out files (data.valid)"
            raise ConfigError(f"the held-out text: {error}; or {remedy}") from None
        held_out = HeldOut(
            valid,
            num_examples=config.train.evaluate_examples,
            micro_batch_tokens=config.train.micro_batch_tokens,
        )
        return Trainer(
            accelerator,
            prepared,
            build_optimizer(config.optim, objective),
            run=self.directory,
            config=self.text,
            section=config.train,
            optim=config.optim,
            rhythm=rhythm,
            seed=config.run.seed,
            sources=sources,
            held_out=held_out,
        )

    def _plan(self, trainer: Trainer, resumed: int) -> str:
        """What is about to happen, with one example of it."""
        rows, _ = Stream(trainer.sources[0], self.config.run.seed).take(Cursor(), 1)
        example = show_example(trainer.sources[0].collate(rows), self.tokenizer)
        objective = self.accelerator.unwrap_model(trainer.objective)
        size = sum(parameter.numel() for parameter in objective.parameters())
        models = " and ".join(
            type(model).__name__ for model in [objective.exported(), *objective.companions().values()]
        )
        batches = ", ".join(f"{p.batch_size} x {p.sequence_length}" for p in self.config.train.phases)
        start = f"\n{'':<12}".join(self.start)
        begins = f"resuming at step {resumed:,}" if resumed else "starting"
        return (
            f"\nmodel       {models}, {size:,} parameters\n"
            f"weights     {start}\n"
            f"training    {begins}, {trainer.rhythm.total:,} steps, examples a step x longest example: {batches}\n\n"
            f"first example\n{example}\n"
        )

    def _finish(self, trainer: Trainer, ended: Fit, tracker: Tracker) -> None:
        """Export, plot and report."""
        path, processes = self.directory.path, self.accelerator.num_processes
        baseline = baselines(trainer.held_out, self.corpus.unigrams, ended.held_out)
        table = results_table(ended.held_out, baseline)
        picture = path / "curves.png"
        plot_curves(self.directory.metrics_file, baseline, picture, self.name)
        train = self.corpus.train
        facts = {
            "training": f"{ended.step:,} steps",
            "weights at the start": "; ".join(self.start),
            "corpus": f"{train.num_documents:,} documents, {train.num_tokens:,} tokens ({self.corpus.path.name})",
            "speed": f"{ended.tokens_per_second:,.0f} tokens/s on {processes} x {self.accelerator.device.type}",
        }
        objective = self.accelerator.unwrap_model(trainer.objective)
        models = {".": objective.exported(), **objective.companions()}
        fills = next(name for name, model in models.items() if model.get_output_embeddings() is not None)
        facts |= {f"in `{name}/`": type(model).__name__ for name, model in objective.companions().items()}
        card = model_card(self.name, table, facts, self.text, "", fills_masks=fills == ".")
        export = self.directory.export
        export_model(models["."], self.tokenizer, export, card=card, companions=objective.companions())
        results = {
            "steps": ended.step,
            "held_out": ended.held_out,
            "baselines": baseline,
            "tokens_per_second": ended.tokens_per_second,
            "table": table,
            "fill_mask": f"fill-mask with {export / fills}\n{fill_masks(export / fills, _SENTENCES)}",
        }
        tracker.summary({**ended.held_out, **{f"baseline/{name}": value for name, value in baseline.items()}})
        tracker.image("curves", picture, ended.step)
        self.directory.finish(results)
        print(_ending(path, results))


def _ending(path: Path, results: dict[str, Any]) -> str:
    """What was produced, where, and what to type next."""
    return (
        f"\n{results['table']}\n\n{results['fill_mask']}\n\n"
        f"model       {path / 'export'}\ncurves      {path / 'curves.png'}\nmetrics     {path / 'metrics.jsonl'}\n\n"
        "next        make pretrain CONFIG=bert_mini DATA=<your text>      (make help lists the configurations)"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

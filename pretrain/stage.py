"""Pretraining as a stage: corpus, tokenizer and objective before training; export, numbers and curves after it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, cast

from bertillery.data.prepare import corpus_files, prepare_for
from bertillery.data.prepared import corpus_report, held_out_remedy
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.loader import Cursor, Stream
from bertillery.engine.objective import Shown
from bertillery.engine.schedule import steps_per_epoch
from bertillery.models.encoders import family
from bertillery.models.export import export_model
from bertillery.models.load import read_config
from bertillery.report.card import fact_list, model_card
from bertillery.report.plot import plot_curves, term_panels
from bertillery.report.table import terms_table
from bertillery.run.inputs import Fingerprint, model_inputs
from bertillery.run.stage import Parts, Stage, beside
from bertillery.run.tracking import Tracker
from bertillery.run.trainer import Fit, Trainer
from bertillery.system.files import write_text
from bertillery.system.invocation import command_line, settings
from pretrain.config import PretrainConfig, objective_of
from pretrain.initialization import load_weights
from pretrain.mixture import Mixture
from pretrain.samples import continue_texts, fill_masks, show_guesses, show_samples


def stages(config: PretrainConfig) -> list[Stage]:
    """The runs that the objective needs before (its ``before``, if it has one), and the pretraining."""
    before: Any = getattr(objective_of(config), "before", None)
    return [*(before(config) if before else ()), Pretraining(config)]


class Pretraining(Stage):
    """One pretraining run."""

    folder = job = "pretrain"
    makes = "pretrained"
    config: PretrainConfig

    def prepare(self) -> Parts:
        """Corpus and tokenizer (the main process makes them, the others open them), examples, objective."""
        config = self.config
        self.objective_module = objective_of(config)
        self.model_paths["starting weights"] = config.model.from_
        self.pin(lambda: model_inputs(starting_weights=config.model.from_))
        self.corpus = prepare_for(self, config.data, config.tokenizer, num_texts=config.objective.num_texts)
        self.tokenizer = self.corpus.tokenizer()
        self.say(corpus_report(self.corpus))
        self.baselines: dict[str, float] = {}
        # An objective may read more than the corpus: its prepare() gives further arguments of source() and build().
        more = getattr(self.objective_module, "prepare", None)
        self.more: dict[str, Any] = more(self) if more else {}
        phases = config.train.phases
        self.mixture = self._mixture()
        mixed = {"mixture": self.mixture} if self.mixture else {}
        source = cache(lambda length: self._source(self.corpus.train, length, **mixed))
        sources = [source(phase.sequence_length) for phase in phases]
        with held_out_remedy():
            valid = self._source(self.corpus.valid, phases[-1].sequence_length)
        return Parts(
            sources,
            epoch_size=lambda source: source.epoch_size(),
            objective=self._objective,
            held_out=HeldOut(valid, num_examples=config.train.evaluate_examples),
        )

    def current(self) -> dict[str, Fingerprint]:
        """The weights to initialise from, and the files of the corpus."""
        config = self.config
        models = model_inputs(starting_weights=config.model.from_)
        return {**models, "corpus files": corpus_files(config.data, config.tokenizer)}

    def _source(self, tokens: Any, sequence_length: int, **more: Any) -> Any:
        settings = {"sequence_length": sequence_length, "seed": self.config.run.seed, **more, **self.more}
        return self.objective_module.source(self.config.objective, tokens, self.tokenizer, **settings)

    def _mixture(self) -> Mixture | None:
        weights, train = self.config.data.weights, cast(Any, self.corpus.train)
        if not weights:
            return None
        return Mixture(train, self.corpus.manifest["corpora"], weights, seed=self.config.run.seed)

    def _mixed(self, trainer: Trainer) -> list[str]:
        """How often the run reads through each corpus of a mixture."""
        if not self.mixture:
            return []
        sizes = [source.epoch_size() for source in trainer.sources]
        epochs = trainer.schedule.total / steps_per_epoch(self.config.train.phases, sizes)
        return self.mixture.describe(self.config.data.path, float(epochs))

    def recorded(self) -> dict[str, Any]:
        """The corpus's manifest."""
        return {"corpus": self.corpus.manifest}

    def _objective(self) -> Any:
        config = self.config
        objective = self.objective_module.build(config.objective, config.model, self.tokenizer, **self.more)
        self.weights = load_weights(objective, config.model.from_) if config.model.from_ else ["freshly initialised"]
        return objective

    @property
    def subject(self) -> tuple[str, str]:
        """The objective, and the size."""
        model = self.config.model
        return self.config.objective.model_dump()["type"], f"{model.num_hidden_layers}x{model.hidden_size}"

    def banner(self, trainer: Trainer) -> str:
        """Model, batch sizes, the number of predicted tokens, and one example."""
        config, below, source = self.config, f"\n{'':<12}", trainer.sources[0]
        rows, _ = Stream(source, config.run.seed).take(Cursor(), 1)
        objective = self.accelerator.unwrap_model(trainer.objective)
        size = sum(parameter.numel() for parameter in objective.parameters())
        models = [objective.exported(), *objective.auxiliary_models().values()]
        batches = ", ".join(map(str, config.train.phases))
        read = self._mixed(trainer)
        mixed = f"\nmixture     {below.join(read)}" if read else ""
        lengths = dict.fromkeys(phase.sequence_length for phase in config.train.phases)
        return (
            f"model       {' and '.join(type(model).__name__ for model in models)}, {size:,} parameters\n"
            f"weights     {below.join(self.weights)}\n"
            f"training    batch of a step x longest example: {batches}\n"
            f"predicted   {below.join(map(config.objective.predicted, lengths))}{mixed}\n\n"
            f"first example\n{source.show(source.collate(rows), self.tokenizer)}"
        )

    def result(self, trainer: Trainer, ended: Fit) -> dict[str, Any]:
        """Export."""
        objective = trainer.assembled()
        if not self.accelerator.is_main_process:
            return {}
        auxiliary = objective.auxiliary_models()
        self.models = {".": objective.exported(), **auxiliary}
        self._record_tokens(ended)
        table, card = terms_table(ended.held_out, trainer.held_out.shown, {}), ""
        self.read = self._mixed(trainer)
        with beside("the card of the export"):
            card = self._card(ended, table)
        export = self.directory.export
        export_model(self.models["."], self.tokenizer, export, card=card, auxiliary_models=auxiliary)
        return {**ended.results(), "table": table}

    def _record_tokens(self, ended: Fit) -> None:
        """Write to the exported configurations on how many tokens the weights were pretrained, earlier runs included,
        where all of them are known."""
        start = self.config.model.from_
        roles = (self.config.objective.role,)
        before = getattr(read_config(start, roles=roles), "pretraining_tokens", None) if start else 0
        if before is not None and ended.tokens is not None:
            for model in self.models.values():
                model.config.pretraining_tokens = before + ended.tokens

    def show(self, trainer: Trainer, ended: Fit, tracker: Tracker, results: dict[str, Any]) -> None:
        """Held-out numbers with their baselines, curves, and guesses for masked tokens."""
        export, objective, held_out = (
            self.directory.export,
            self.accelerator.unwrap_model(trainer.objective),
            trainer.held_out,
        )
        with beside("baselines"):
            found = objective.baselines(held_out.batches(), self.corpus.unigrams, ended.held_out)
            self.baselines = {name: value for name, value in found.items() if name in ended.held_out}
            table = terms_table(ended.held_out, held_out.shown, self.baselines)
            results |= {
                "baselines": self.baselines,
                "table": table,
                "learned": self.learned(ended.held_out, held_out.shown),
            }
        with beside(f"the card {export / 'README.md'}"):
            write_text(export / "README.md", self._card(ended, results["table"]))
        with beside("guesses for masked tokens"):
            if self._fills is not None:
                fills = export / self._fills
                guesses = fill_masks(fills, self.corpus.valid)
                tracker.table("masked_tokens", guesses, ended.step)
                if guesses:
                    results["fill_mask"] = f"fill-mask with {fills}, on held-out sentences\n{show_guesses(guesses)}"
        with beside("continuations of held-out text"):
            if family(self.models["."].config).causal:
                samples = continue_texts(export, self.corpus.valid, seed=self.config.run.seed)
                results["samples"] = f"continuations with {export}\n{show_samples(samples)}"
                tracker.table("samples", samples, ended.step)
        found = {"result": ended.held_out, "baseline": self.baselines}
        tracker.summary({f"{part}/{n}": v for part, values in found.items() for n, v in values.items()}, ended.step)
        self.show_curves(trainer, tracker, ended.step)

    def learned(self, held_out: Mapping[str, float], shown: Mapping[str, Shown]) -> bool:
        """Whether any term is better than its baseline, which knows no context."""
        compared = [name for name in self.baselines if name in shown]
        gains = {name: held_out[name] - self.baselines[name] for name in compared}
        better = [gain > 0 if shown[name].direction == "higher" else gain < 0 for name, gain in gains.items()]
        return not better or any(better)

    def draw(self, trainer: Trainer) -> None:
        """All terms that have a title."""
        panels = term_panels(trainer.held_out.shown, self.baselines)
        plot_curves(self.directory.metrics_file, panels, self.path / "curves.png", self.name)

    @property
    def _fills(self) -> str | None:
        """The folder of the export with a model that fills masks, or None."""
        filling = ("MaskedLM", "PreTraining")
        found = [name for name, model in self.models.items() if type(model).__name__.endswith(filling)]
        return next((name for name in found if self.models[name].get_output_embeddings() is not None), None)

    def _card(self, ended: Fit, table: str) -> str:
        train, processes = self.corpus.train, self.accelerator.num_processes
        facts = {
            "training": f"{ended.step:,} steps" + (f", {ended.tokens:,} tokens" if ended.tokens else ""),
            "weights at the start": "; ".join(self.weights),
            **({"mixture": "; ".join(self.read)} if self.read else {}),
            "corpus": f"{train.num_documents:,} documents, {train.num_tokens:,} tokens ({self.corpus.path.name})",
            "speed": f"{ended.tokens_per_second:,.0f} tokens/s on {processes} x {self.accelerator.device.type}",
        }
        facts |= {f"in `{name}/`": type(model).__name__ for name, model in self.models.items() if name != "."}
        tags = ["fill-mask"] if self._fills == "." else []
        about = "Pretrained with Bertillery."
        return model_card(self.name, about, table, fact_list(facts), config=self.text, tags=tags)

    def ending(self, results: dict[str, Any]) -> str:
        """Numbers, guesses, files, and the next command."""
        path, causal = self.path, self.config.objective.role == "decoder"
        following = command_line("finetune", TASK="docs_proofreading", MODEL=path / "export")
        following += f"      (GLUE: {settings('finetune', TASK='sst2', HUB='1')})"
        if causal:
            following = command_line("generate", MODEL=path / "export", PROMPT="...")
        if not results.get("learned", True):
            following = command_line("rates", CONFIG=path / "config.yaml")
            following += "      (what knows no context does as well; most often it is the learning rate)"
        shown = "\n\n".join(results[name] for name in ("table", "fill_mask", "samples") if name in results)
        return (
            f"\n{shown}\n\n"
            f"model       {path / 'export'}\ncurves      {path / 'curves.png'}\n"
            f"metrics     {path / 'metrics.jsonl'}\n\n"
            f"next        {following}"
        )

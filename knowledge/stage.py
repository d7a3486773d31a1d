"""Embedding a graph as a stage: the graph, TransE, ranks of held-out triples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertillery.config.layers import read_values
from bertillery.config.section import ConfigError, validate
from bertillery.config.types import Count, Decay, Duration, Epsilon, Factor, LearningRate, Length, Tokens, Weight
from bertillery.engine.optim import OptimSection
from bertillery.engine.schedule import Phase, TrainSection
from bertillery.models.export import export_model
from bertillery.report.card import fact_list, model_card
from bertillery.report.plot import Panel, plot_curves, term_panels
from bertillery.report.table import markdown_table
from bertillery.run.command import run_name
from bertillery.run.inputs import Fingerprint
from bertillery.run.stage import Parts, Stage, StageConfig, beside
from bertillery.run.tracking import Tracker
from bertillery.run.trainer import Fit, Trainer
from bertillery.run.waiting import main_process_first
from bertillery.system.files import write_text
from bertillery.system.invocation import command_line
from bertillery.system.printable import printable
from knowledge.graph import Graph, graph_report
from knowledge.prepare import GraphSection, graph_files, prepare_graph
from knowledge.ranks import HITS, Known, chance, rank_metrics, ranks
from knowledge.transe import EmbeddingSection, RankedTriples, TransEObjective, Triples

NO_ENTITY = "<no entity>"
"""The name of row 0 of the table of entities."""


class EmbedOptimSection(OptimSection):
    """The optimizer; the original's is plain gradient descent."""

    algorithm: Literal["bert_adam", "adamw", "lamb"] = "adamw"
    """``adamw``: torch's; ``bert_adam``: without bias correction; ``lamb``: for large batches."""
    learning_rate: LearningRate = 5e-3
    """Peak."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the two moments."""
    epsilon: Epsilon = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Weight = 0.0
    """Decoupled; vectors have length 1 in any case."""
    max_gradient_norm: Factor = 1e9
    """Gradients are scaled down to this norm; by default never."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Shape of the learning rate after warm-up."""


class TriplePhase(Phase):
    """The batch: triples, of three parts each."""

    usual_batch: ClassVar[dict[str, int]] = {"batch_size": 2048}
    sequence_length: Tokens = Field(default=3, ge=3, le=3)
    """Parts of a triple."""


class EmbedTrainSection(TrainSection):
    """Length and schedule of training."""

    steps: Length = Duration("20 epochs")
    """Length of the run: steps or epochs."""
    phases: list[TriplePhase] = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=[TriplePhase()], min_length=1, max_length=1
    )
    """Batch."""
    log_every: Length = Duration("2%")
    """Interval of logging metrics."""
    save_every: Length = Duration("20%")
    """Interval of writing checkpoints."""
    evaluate_every: Length = Duration("20%")
    """Interval of ranking held-out triples."""
    evaluate_examples: Count | None = 500
    """Held-out triples that are ranked during training; null takes all, as at the end."""


class EmbedConfig(StageConfig):
    """Everything a run is made from."""

    graph: GraphSection = GraphSection()
    model: EmbeddingSection = EmbeddingSection()
    optim: EmbedOptimSection = EmbedOptimSection()  # pyright: ignore[reportIncompatibleVariableOverride]
    train: EmbedTrainSection = EmbedTrainSection()  # pyright: ignore[reportIncompatibleVariableOverride]


def load_config(arguments: Sequence[str]) -> EmbedConfig:
    """Read ``*.yaml`` files and ``key.sub=value`` overrides; a run without a name is named after the files."""
    return validate(EmbedConfig, *read_values(arguments)).named(run_name(arguments, otherwise="transe"))


class Embedding(Stage):
    """One training of TransE."""

    folder = job = "embed"
    makes = "vectors"
    axis = "examples"
    config: EmbedConfig

    def prepare(self) -> Parts:
        """The graph, which the main process makes, and its triples."""
        config = self.config
        self.pin(lambda: {"graph files": graph_files(config.graph)})
        with main_process_first(self.accelerator):
            self.graph = prepare_graph(config.graph, config.run.data_dir, name=self.inputs["graph files"].sha256)
        self.pin(lambda: {"graph": self.graph.fingerprint})
        if not len(self.graph.valid):
            raise ConfigError("graph: no triple is held out to rank; give graph.valid, or a larger graph.holdout")
        self.tokenizer = entity_tokenizer(self.graph)
        self.say(graph_report(self.graph))
        self.known = Known(self.graph)
        source, valid = (
            Triples(self.graph, triples, config.model, seed=config.run.seed)
            for triples in (self.graph.triples, self.graph.valid)
        )
        return Parts(
            [source],
            epoch_size=Triples.epoch_size,
            objective=lambda: TransEObjective(self.graph, config.model),
            held_out=RankedTriples(valid, self.known, num_examples=config.train.evaluate_examples),
        )

    def current(self) -> dict[str, Fingerprint]:
        """The files of the graph."""
        return {"graph files": graph_files(self.config.graph)}

    @property
    def subject(self) -> tuple[str, str]:
        """The vectors."""
        return "transe", str(self.config.model.embedding_size)

    def banner(self, trainer: Trainer) -> str:
        """Sizes, and one triple."""
        config, graph = self.config, self.graph
        size = sum(parameter.numel() for parameter in trainer.objective.parameters())
        head, relation, tail = graph.triples[0].tolist()
        shown = " | ".join((graph.labels[head], graph.relations[relation], graph.labels[tail]))
        return (
            f"model       TransE, {config.model.embedding_size} dimensions, {size:,} parameters\n"
            f"training    {config.train.phases[0]}, {config.model.corruptions} corruptions of each\n\n"
            f"first triple\n  {printable(shown)}"
        )

    def result(self, trainer: Trainer, ended: Fit) -> dict[str, Any]:
        """Rank all held-out triples, export."""
        objective = trainer.assembled()
        if not self.accelerator.is_main_process:
            return {}
        scores = {}
        for name, triples in (("validation", self.graph.valid), ("test", self.graph.test)):
            if len(triples):
                raw, filtered = ranks(triples, self.known, objective.distances)
                scores[name] = {"raw": rank_metrics(raw), "filtered": rank_metrics(filtered)}
        table, card = ranks_table(scores, self.graph), ""
        with beside("the card of the export"):
            card = self._card(ended, table)
        export_model(objective.exported(), self.tokenizer, self.directory.export, card=card)
        return {**ended.results(), "ranks": scores, "table": table}

    def _card(self, ended: Fit, table: str) -> str:
        graph = self.graph
        facts = {"training": f"{ended.step:,} steps", "graph": graph.fingerprint.what}
        about = "Vectors of entities and relations, by TransE. Trained with Bertillery."
        return model_card(self.name, about, table, fact_list(facts), config=self.text, tags=["knowledge-graph"])

    def show(self, trainer: Trainer, ended: Fit, tracker: Tracker, results: dict[str, Any]) -> None:
        """Curves."""
        with beside(f"the card {self.directory.export / 'README.md'}"):
            write_text(self.directory.export / "README.md", self._card(ended, results["table"]))
        self.show_curves(trainer, tracker, ended.step)
        scores = results["ranks"].items()
        tracker.summary({f"result/{split}/{name}": value for split, found in scores
                         for name, value in found["filtered"].items()}, ended.step)  # fmt: skip

    def draw(self, trainer: Trainer) -> None:
        """Ranks and the loss."""
        at_chance = {"chance": chance(self.graph.num_entities)["mrr"]}
        panels = [Panel("mrr", "filtered mean reciprocal rank", at_chance, "higher")]
        panels += term_panels(trainer.held_out.shown, {})
        plot_curves(self.directory.metrics_file, panels, self.path / "curves.png", self.name)

    def ending(self, results: dict[str, Any]) -> str:
        """Ranks, files, and the next command."""
        given = [f"objective.entities={self.path / 'export'}"]
        graph = self.config.graph.model_dump(exclude_defaults=True, mode="json")
        given += [f"objective.graph.{key}={_as_yaml(value)}" for key, value in graph.items()]
        more = {"CONFIG": "ernie_mini", "DATA": "<your text>"} if graph else {"CONFIG": "ernie_docs"}
        return (
            f"\n{results['table']}\n\nmodel       {self.path / 'export'}\ncurves      {self.path / 'curves.png'}\n\n"
            f"next        {command_line('pretrain', *given, **more)}"
        )


def _as_yaml(value: Any) -> str:
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)


def ranks_table(scores: dict[str, dict[str, dict[str, float]]], graph: Graph) -> str:
    """Metrics of raw and filtered ranks beside those of a random order."""
    names = ["mrr", *(f"hits@{k}" for k in HITS), "mean_rank"]
    rows = [[f"{split}, {form}", found[form]] for split, found in scores.items() for form in ("filtered", "raw")]
    rows.append(["chance", chance(graph.num_entities)])
    shown = [[name, *(f"{values[each]:.1f}" if each == "mean_rank" else f"{values[each]:.4f}" for each in names)]
             for name, values in rows]  # fmt: skip
    return markdown_table([["ranks", *names], *shown])


def entity_tokenizer(graph: Graph) -> PreTrainedTokenizerBase:
    """A tokenizer that turns the name of an entity into its row of the table, and any other text into row 0."""
    vocabulary = {NO_ENTITY: 0, **{name: row for row, name in enumerate(graph.names, 1)}}
    if len(vocabulary) <= graph.num_entities:
        raise ConfigError(f"graph: an entity is called {NO_ENTITY!r}, which stands for none; give it another name")
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=NO_ENTITY))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=NO_ENTITY, pad_token=NO_ENTITY)

"""One of several texts for each example, read beside the paths of a knowledge graph between both (Lin et al. 2019,
KagNet, arXiv 1909.02151): the loss, the metrics and the rows of ``choice``, and a model of
:mod:`bertillery.models.families.kagnet`.

Legend: B questions and S sequences (one a choice) of a batch, P paths of all of them, T of the strongest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import InputError, Section
from bertillery.config.types import Count, Probability
from bertillery.engine.batch import PackedBatch
from bertillery.engine.objective import Term
from bertillery.models.encoders import encode
from bertillery.models.export import warnings_of_transformers
from bertillery.models.families.kagnet import KagnetForMultipleChoice, KagnetOver, SchemaGraphs, Scored
from bertillery.models.flops import encoder_flops
from bertillery.models.folder import file_of, reading, safely
from bertillery.models.heads import best_within
from bertillery.models.layers.attention import NAME
from bertillery.models.load import check_vocabulary, load_tokenizer
from bertillery.report.plot import plot_paths
from bertillery.run.inputs import Fingerprint, model_inputs
from bertillery.system.records import read_json
from finetune.data.splits import Split
from finetune.record import Record
from finetune.task_types import choice
from finetune.task_types.base import Predicted, Reading
from knowledge.graph import Graph
from knowledge.prepare import GraphSection, graph_files, prepare_graph, within
from knowledge.questions.paths import PathFinder
from knowledge.questions.schema import SchemaTable, prepare_schema
from knowledge.vectors import drawn_vectors, read_vectors

STRONGEST = 3
"""Paths of each choice that predictions keep, T."""


class KagnetSection(Section):
    """How the graph is read."""

    embeddings: str | None = None
    """Directory with the vectors of the graph, the export of ``make embed``. They are not trained further. Without it
    vectors are drawn, each concept's its own, and no path is dropped for its score."""
    text: Literal["joint", "frozen"] = "joint"
    """Whether the encoder is trained with the rest, or stays as it is."""
    longest_path: Literal[1, 2, 3, 4] = 4
    """Edges of a path, at most."""
    paths: Count = 100
    """Paths between two concepts that are looked at, at most, the shortest first."""
    least_score: Probability = 0.15
    """Paths with a lower score are dropped: the product over edges of (1 + cos(r, t - h)) / 2 of the embeddings."""


class Config(choice.Config):
    """A text, its choices, and a graph."""

    graph: GraphSection = GraphSection()
    """Which graph; files are relative to `root`."""
    kagnet: KagnetSection = KagnetSection()
    """How it is read."""


class Objective(choice.Objective):
    """Targets are those of ``choice``; beside the sequences are their schema graphs."""

    entries = ("logits", "scored")

    def __init__(self, model: PreTrainedModel, *, frozen: bool = False) -> None:
        super().__init__(model)
        self.frozen = frozen
        if frozen:
            self.encoder.requires_grad_(False)

    @property
    def encoder(self) -> PreTrainedModel:
        """The stock encoder in the model."""
        model: Any = self.model
        return model.encoder

    def scored(self, batch: PackedBatch) -> Scored:
        """Scores of the sequences, and what was read of their graphs."""
        if self.frozen:
            self.encoder.eval()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            hidden = encode(self.encoder, batch.input)
        model: Any = self.model
        return model.score(hidden[batch.input.first_rows], batch.input.beside)

    def logits(self, batch: PackedBatch) -> Tensor:
        """(S,)."""
        return self.scored(batch).logits

    def predict(
        self, batch: PackedBatch, autocast: Callable[[], Any], *, labelled: bool
    ) -> tuple[dict[str, Term], Tensor]:
        """The terms, and (S, 1 + 2 T): the probability of each choice, and the numbers of its strongest paths (-1 for
        none), each with its share of the attention."""
        with autocast():
            found = self.scored(batch)
        terms = self.terms(found.logits, batch) if labelled else {}
        return terms, torch.cat([self.outputs(found.logits, batch), _strongest(found, batch)], 1)

    def auxiliary_models(self) -> dict[str, PreTrainedModel]:
        """The encoder alone, which is a stock model."""
        return {"encoder": self.encoder}

    def flops(self, batch: PackedBatch) -> float:
        """The encoder's, once where it is frozen and three times where it is trained; what reads graphs is small beside
        it."""
        return (1 if self.frozen else 3) * encoder_flops(self.encoder.config, batch.input)


def _strongest(found: Scored, batch: PackedBatch) -> Tensor:
    """The paths of each choice that count most, number and share (S, 2 T): the pair's share times the path's in it."""
    assert found.read is not None
    graphs: SchemaGraphs = batch.input.beside
    number = len(found.logits)
    shares = found.read.pair_attention[graphs.path_pairs] * found.read.path_attention
    owner = graphs.pairs[0][graphs.path_pairs]
    counts = torch.zeros_like(found.logits, dtype=torch.int64).index_add(0, owner, torch.ones_like(owner))
    first, columns = counts.cumsum(0) - counts, []
    for place in range(STRONGEST):
        rows = best_within(shares, owner, number)
        there = counts > place
        rows = rows.where(there, 0)
        padded = torch.cat([shares, shares.new_zeros(1)])
        columns += [(rows - first).where(there, -1).float(), padded[rows].where(there, 0.0)]
        shares = padded.index_fill(0, rows.where(there, len(shares)), -torch.inf)[:-1]
    return torch.stack(columns, 1)


class GraphChoiceExamples(choice.ChoiceExamples):
    """A sequence for each choice, with its schema graph."""

    def __init__(
        self, split: Split, tokenizer: PreTrainedTokenizerBase, table: SchemaTable, *, max_length: int, seed: int
    ) -> None:
        super().__init__(split, tokenizer, max_length=max_length, seed=seed)
        self.table = table
        self.about = str(table.counts)

    def beside(self, which: np.ndarray) -> SchemaGraphs:
        """The graphs of the sequences."""
        return self.table.take(which)


class Type(choice.Type):
    """Rows, labels and predictions are those of ``choice``."""

    pipeline = None
    reads_causal = distilled = False
    objective_class = Objective
    section: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    usage = (
        "`import bertillery`, then `AutoModelForMultipleChoice.from_pretrained(folder)`. Texts alone are scored unless "
        "`graphs=SchemaGraphs(...)` (`bertillery.models.families.kagnet`) is given; `encoder/` is the stock encoder."
    )

    @cached_property
    def graph_section(self) -> GraphSection:
        """The graph, its files found from ``task.root``."""
        return within(self.section.graph, self.section.root)

    @cached_property
    def graph(self) -> Graph:
        """The graph, made in ``data_dir`` if it is not there."""
        try:
            return prepare_graph(self.graph_section, self.data_dir)
        except InputError as error:
            raise InputError(f"task.graph.path: {error}") from None

    @cached_property
    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Of concepts and of relations."""
        given = self.section.kagnet.embeddings
        return drawn_vectors(self.graph) if given is None else read_vectors(given, self.graph)

    @cached_property
    def finder(self) -> PathFinder:
        """Looks for paths as the section says."""
        given = self.section.kagnet
        return PathFinder(
            self.graph,
            None if given.embeddings is None else self.vectors,
            longest=given.longest_path,
            most=given.paths,
            threshold=given.least_score,
        )

    @property
    def model_class(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Opens the encoder, and puts it under a fresh head."""
        return KagnetOver(*self.vectors, longest_path=self.section.kagnet.longest_path)

    def inputs(self) -> dict[str, Fingerprint]:
        """The files of the graph, and the vectors."""
        graph = {"graph files": graph_files(self.graph_section)}
        return graph | model_inputs(graph_embeddings=self.section.kagnet.embeddings)

    def head_fits(self, config: PreTrainedConfig) -> bool:
        """Where it is a KagNet: its head comes with the graph."""
        return config.model_type == "kagnet"

    def reopen(self, start: str, record: Record) -> tuple[Any, PreTrainedTokenizerBase]:
        """A KagNet, which brings its own vectors of the graph."""
        with reading(start, "give the export of a run of this task"):
            file = file_of(start, "config.json")
            found: Any = file and read_json(file, dict[str, Any], remedy="give the export of a run of this task")
            if not found or found.get("model_type") != "kagnet":
                raise self.another_kind(start, f"is of type {found and found.get('model_type')}, not kagnet")
            tokenizer = load_tokenizer(start, "model")
            with warnings_of_transformers():
                model: Any = KagnetForMultipleChoice.from_pretrained(
                    start, attn_implementation=NAME, dtype=torch.float32, **safely(start)
                )
        check_vocabulary(tokenizer, model.config.text_config, start, "model")
        if model.config.num_concepts != self.graph.num_entities:
            raise InputError(
                f"{start}: was trained on a graph of {model.config.num_concepts:,} concepts, and task.graph has "
                f"{self.graph.num_entities:,}; give the same files (task.root, task.graph.path)"
            )
        return self.objective(model), tokenizer

    def objective(self, model: PreTrainedModel) -> Objective:
        """Joint, or with a frozen encoder."""
        return Objective(model, frozen=self.section.kagnet.text == "frozen")

    def table(self, split: Split) -> SchemaTable:
        """The schema graphs of a split, made in ``data_dir`` if they are not there."""
        questions, choices = split.texts
        return prepare_schema(self.graph, self.finder, questions, choices, self.data_dir)

    def _examples(self, split: Split, tokenizer: PreTrainedTokenizerBase, how: Reading) -> GraphChoiceExamples:
        """Those of ``choice`` with their graphs."""
        return GraphChoiceExamples(split, tokenizer, self.table(split), max_length=how.max_length, seed=how.seed)

    def guesses(self, train: Split, held_out: Split) -> dict[str, np.ndarray]:
        """Those of ``choice``, and ``graph counts``: the choice (N,) with the most links of one edge and of two, which
        a logistic regression weighs."""
        from sklearn.linear_model import LogisticRegression

        assert train.labels is not None
        there = choice.present(train)
        right = (np.arange(there.shape[1]) == train.labels[:, None])[there]
        weights = LogisticRegression().fit(self.table(train).links(), right)
        there = choice.present(held_out)
        scores = np.full(there.shape, -np.inf)
        scores[there] = weights.decision_function(self.table(held_out).links())
        return super().guesses(train, held_out) | {"graph counts": scores.argmax(1)}

    def draw(self, predicted: Predicted, folder: Path) -> list[Path]:
        """The confusion matrix, and the strongest paths of one question."""
        pictures, title = super().draw(predicted, folder), f"{self.section.name}, {predicted.split.name}"
        shown = self.explained(predicted)
        if shown is not None:
            question, paths = shown
            plot_paths(paths, folder / "paths.png", f"{title}: {question}")
            pictures.append(folder / "paths.png")
        return pictures

    def explained(self, predicted: Predicted) -> tuple[str, dict[str, list[tuple[str, float]]]] | None:
        """Of the question with the surest right answer, among those whose choices have the most paths: the question,
        and by choice its paths with their shares; None where there is none."""
        outputs, there = predicted.outputs, choice.present(predicted.split)
        if outputs.shape[1] < 1 + 2 * STRONGEST:
            return None
        owner = np.repeat(np.arange(len(there)), there.sum(1))
        read = np.bincount(owner, outputs[:, 1] >= 0, minlength=len(there))
        right = predicted.predictions == predicted.labels
        sure = 1 - self.distances(predicted)
        number = int(np.lexsort((sure, read, right))[-1])
        if not read[number]:
            return None
        return predicted.split.texts[0][number], self.strongest_paths(predicted, number)

    def strongest_paths(self, predicted: Predicted, number: int) -> dict[str, list[tuple[str, float]]]:
        """By choice of a question, with its probability, the paths that count most, with their shares."""
        outputs, there = predicted.outputs, choice.present(predicted.split)
        texts = [text for text in predicted.split.texts[1][number] if text]
        first, table = int(there[:number].sum()), self.table(predicted.split)
        return {
            f"{text} ({outputs[row, 0]:.0%})": [
                (self.format_path(table, row, int(at)), float(share))
                for at, share in outputs[row, 1:].reshape(-1, 2)
                if at >= 0
            ]
            for row, text in enumerate(texts, first)
        }

    def format_path(self, table: SchemaTable, row: int, number: int) -> str:
        """A path of a choice in words."""
        concepts, relations = table.path(row, number)
        names, parts = self.graph.relations, [self.graph.labels[concepts[0]]]
        for relation, concept in zip(relations, concepts[1:], strict=True):
            name = names[relation % len(names)]
            parts.append(f"—{name}→" if relation < len(names) else f"←{name}—")
            parts.append(self.graph.labels[concept])
        return " ".join(parts)

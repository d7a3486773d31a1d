"""ERNIE: BERT's two tasks, and naming the entity of a token among those of its example (dEA; Zhang et al. 2019,
section 3.5).

Mentions are found by a dictionary when the corpus is read (:mod:`knowledge.links.linker`); the entity belongs to the
first token of a mention. Of the entities, 5 % are shown as another one, 15 % are not shown, and 80 % are; the label
always is the true one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from bertillery.config.types import Count, Probability
from bertillery.engine.batch import Entities, PackedBatch, ranges
from bertillery.engine.objective import Term
from bertillery.engine.rng import integers, key, uniform
from bertillery.models.encoders import encode
from bertillery.models.families.ernie_thu import ErnieThuConfig, ErnieThuForPreTraining
from bertillery.run.inputs import model_inputs as model_fingerprints
from bertillery.run.waiting import main_process_first
from bertillery.system.printable import printable
from knowledge.graph import graph_report
from knowledge.links.given import GivenMentions
from knowledge.links.linked import Knowledge, embed_config, entity_table, link_corpus
from knowledge.prepare import GraphSection, prepare_graph
from knowledge.stage import Embedding
from pretrain.examples import DocumentSource
from pretrain.masked_lm import MaskedObjective
from pretrain.model import ModelSection, packed_config
from pretrain.objectives import bert
from pretrain.pairs import Tokens

_ACTION, _OTHER = 301, 302
"""What a draw is for; part of its key."""


class Config(bert.Config):
    """Section of this objective."""

    family: ClassVar[str] = "ernie_thu"
    starts_from: ClassVar[tuple[str, ...]] = ("bert",)
    type: Literal["ernie"] = "ernie"  # pyright: ignore[reportIncompatibleVariableOverride]
    graph: GraphSection = GraphSection()
    """The graph whose entities are linked."""
    entities: str | None = None
    """Directory with the entities' vectors, the ``export`` of `make embed` on this graph; where not given they are
    trained first."""
    mentions: str | None = None
    """Column of the files of `data` (.jsonl) with the mentions of a linker of your own, `[[start, end, name], ...]` in
    characters of the text and names of the graph; without it a dictionary of labels and aliases finds them."""
    unknown: Literal["fail", "skip"] = "fail"
    """Mentions of entities that are not in the graph: an error, or, with `skip`, left out."""
    entity_heads: Count = 4
    """Heads of the attention between entities."""
    replaced: Probability = 0.05
    """Share of the entities that are shown as another one."""
    removed: Probability = 0.15
    """Share of the entities that are not shown."""
    fuse: bool = True
    """Whether entities are shown; false trains the same network on text alone."""
    dea: bool = True
    """Whether entities are to be named."""


def before(config: Any) -> list[Embedding]:
    """The training of the entities' vectors, where none are given."""
    objective = config.objective
    return [] if objective.entities else [Embedding(embed_config(objective.graph, config))]


def prepare(stage: Any) -> dict[str, Any]:
    """Further arguments of :func:`source` and :func:`build`: the mentions of the run's corpus."""
    config = stage.config
    section: Config = config.objective
    with main_process_first(stage.accelerator):
        graph = prepare_graph(section.graph, config.run.data_dir)
    path = section.entities or str(Embedding(embed_config(section.graph, config)).path / "export")
    vectors = entity_table(path, graph)
    stage.pin(lambda: {"graph": graph.fingerprint, **model_fingerprints(entities=path)})
    given = None
    if section.mentions is not None:
        given = GivenMentions(config.data, section.mentions, skip=section.unknown == "skip")
    stage.model_paths["entities"] = path
    with main_process_first(stage.accelerator):
        found = link_corpus(stage.corpus, graph, vectors, config.run.data_dir, given)
    stage.say(f"{graph_report(graph)}\n{found.describe()}")
    return {"knowledge": found}


def source(
    config: Config,
    tokens: Tokens,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    seed: int,
    knowledge: Knowledge | None = None,
) -> LinkedSource:
    """BERT's pairs with their entities; without ``knowledge`` there are none."""
    kind = partial(LinkedSource, config=config, knowledge=knowledge)
    return bert.source(config, tokens, tokenizer, sequence_length=sequence_length, seed=seed, kind=kind)


class LinkedSource(DocumentSource):
    """Examples whose tokens name entities, rows of the table."""

    def __init__(self, tokens: Any, *more: Any, config: Config, knowledge: Knowledge | None, **others: Any) -> None:
        super().__init__(tokens, *more, **others)
        self._config, self._knowledge = config, knowledge
        self._rows = None if knowledge is None else knowledge.rows(tokens)

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """The batch of BERT with its entities; targets ``dea_positions`` (I,), ``dea_candidates`` (I, C), the entities
        of the example with 0 for none first and -1 behind the last, and ``dea_labels`` (I,), which of them is true;
        count ``entities``, I."""
        batch = super().collate(rows)
        lengths = rows["length"].astype(np.int64)
        firsts = np.cumsum(lengths) - lengths
        true = np.zeros(batch.input.num_tokens, np.int64)
        if self._rows is not None:
            true = self.aligned(rows, self._rows)
        places = np.flatnonzero(true)
        of = np.searchsorted(firsts, places, side="right") - 1
        shown = np.zeros_like(true)
        shown[places] = self._shown(true[places], key(rows["key"][of], places - firsts[of]))
        candidates, labels = _candidates(true[places], of, len(firsts))
        targets = {"dea_positions": places, "dea_candidates": candidates[of], "dea_labels": labels}
        return replace(
            batch,
            streams={"input": replace(batch.input, beside=Entities.aligned(shown, lengths))}
            if self._config.fuse
            else batch.streams,
            targets={**batch.targets, **{name: torch.from_numpy(value) for name, value in targets.items()}},
            counts={**batch.counts, "entities": len(places)},
        )

    def _shown(self, true: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """What is shown for the entities ``true`` (I,): another one, 0 for none, or itself."""
        draws, config = uniform(keys, _ACTION), self._config
        number = 1 if self._knowledge is None else self._knowledge.graph.num_entities
        other = 1 + integers(max(1, number - 1), keys, _OTHER)
        shown = np.where(draws < config.replaced, other + (other >= true), true)
        removed = (draws >= config.replaced) & (draws < config.replaced + config.removed)
        return np.where(removed, 0, shown)

    def show(self, batch: PackedBatch, tokenizer: PreTrainedTokenizerBase) -> str:
        """The same, and the first example's entities."""
        end, names = int(batch.input.offsets[1]), []
        for place, label, candidates in zip(
            batch.targets["dea_positions"].tolist(),
            batch.targets["dea_labels"].tolist(),
            batch.targets["dea_candidates"].tolist(),
            strict=True,
        ):
            if place < end and self._knowledge is not None:
                piece: Any = tokenizer.convert_ids_to_tokens([int(batch.input.ids[place])])
                names.append(f"{piece[0]} -> {self._knowledge.graph.labels[candidates[label] - 1]}")
        return f"{super().show(batch, tokenizer)}\n  entities: {printable(', '.join(names)) or 'none'}"


def _candidates(true: np.ndarray, of: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct entities of each of ``number`` examples, (B, C), and which of its example's each of ``true`` (I,)
    is; ``of`` (I,) says whose it is."""
    pairs = np.unique(np.stack([of, true], 1), axis=0)
    rank = ranges(np.bincount(pairs[:, 0], minlength=number))
    found = np.full((number, 2 + int(rank.max(initial=-1))), -1, np.int64)
    found[:, 0] = 0
    found[pairs[:, 0], 1 + rank] = pairs[:, 1]
    return found, (found[of] == true[:, None]).argmax(1)


class Ernie(MaskedObjective):
    """The three tasks on one ``ErnieThuForPreTraining``."""

    label = bert.LABEL

    def __init__(
        self,
        config: Config,
        sizes: ModelSection,
        tokenizer: PreTrainedTokenizerBase,
        knowledge: Knowledge | None = None,
    ) -> None:
        self.config = config
        more: dict[str, Any] = {"entity_heads": config.entity_heads}
        if knowledge is not None:
            more["num_entities"], more["entity_size"] = knowledge.vectors.shape
        super().__init__(
            ErnieThuForPreTraining(packed_config(ErnieThuConfig, sizes, tokenizer, **more)), sizes, tokenizer
        )
        if knowledge is not None:
            self.model.bert.set_table(knowledge.vectors, [*knowledge.graph.names])
        self.model.entity_transform.requires_grad_(config.dea)
        if not config.fuse:
            self.model.bert.leave_out_entities()

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``mlm`` and ``nsp`` with their accuracies, and ``dea`` with its own."""
        hidden = encode(self.model, batch.input)
        terms = bert.both_terms(self.model, hidden, batch)
        if not self.config.dea:
            return terms
        found = self.model.entity_logits(hidden[batch.targets["dea_positions"]], batch.targets["dea_candidates"])
        labels, baseline = batch.targets["dea_labels"], "candidates alike, and the most frequent one"
        right = (found.detach().argmax(-1) == labels).sum()
        return {
            **terms,
            "dea": Term(
                F.cross_entropy(found, labels, reduction="sum"), "entities", title="dEA loss (nats)", baseline=baseline
            ),
            "dea_accuracy": Term(
                right, "entities", 0.0, title="dEA accuracy", direction="higher", baseline="the same"
            ),
        }  # fmt: skip

    def flops(self, batch: PackedBatch) -> float:
        """Those of BERT, and of the entities: attention, both projections of each fused layer, and the head."""
        config, entities = self.model.config, batch.input.beside
        width, size, inner = config.hidden_size, config.entity_size, config.intermediate_size
        total = super().flops(batch)
        if self.config.dea:
            total += 3 * 2.0 * (batch.counts["entities"] * width + batch.targets["dea_candidates"].numel()) * size
        if entities is None:
            return total
        kinds = [kind for kind in config.fusion if kind != "sim"]
        rows, norms = len(entities.rows), kinds.count("norm")
        across = (2 * len(kinds) - 1) * 2.0 * rows * size * inner
        return total + 3 * (across + norms * (8.0 * rows * size**2 + 4.0 * size * int((entities.lengths**2).sum())))

    def baselines(
        self, batches: Sequence[PackedBatch], unigrams: np.ndarray, values: Mapping[str, float]
    ) -> dict[str, float]:
        """Those of BERT; of the entities the mean entropy of a uniform guess, and how often the example's entity that
        is most frequent in the batches is the true one."""
        found = super().baselines(batches, unigrams, values)
        tables = [batch.targets["dea_candidates"].numpy() for batch in batches]
        labels = [batch.targets["dea_labels"].numpy() for batch in batches]
        true = [table[np.arange(len(table)), label] for table, label in zip(tables, labels, strict=True)]
        counts = np.bincount(np.concatenate(true), minlength=1)
        if not counts.sum():
            return found
        entropy = np.concatenate([np.log((table >= 0).sum(1)) for table in tables]).mean()
        frequencies = [np.where(table > 0, counts[np.clip(table, 0, len(counts) - 1)], -1) for table in tables]
        right = np.concatenate([each.argmax(1) == label for each, label in zip(frequencies, labels, strict=True)])
        return found | {"dea": float(entropy), "dea_accuracy": float(right.mean())}


build = Ernie

"""Texts with marked places, and the entities that they mention: what entity typing and relation classification share
(Zhang et al. 2019, ERNIE, section 3.4).

Offsets count characters of a text, the end not included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.engine.batch import Entities
from bertillery.models.encoders import family
from bertillery.run.inputs import Fingerprint
from finetune.data.splits import Split
from finetune.examples import Examples, TextExamples
from finetune.predict import Predictor
from finetune.task import TaskSection, Words
from finetune.task_types.base import Reading
from finetune.task_types.vector import VectorType
from knowledge.graph import Graph
from knowledge.links.given import Mention, first_tokens, read_mentions, unknown_entity
from knowledge.links.linked import link_texts, linker_of
from knowledge.prepare import GraphSection, graph_files, prepare_graph, within

_USAGE = (
    " An encoder with entities takes `entity_ids`, too: for each token the row of the entity (its place in "
    "`entities.json`, from 1) whose mention begins there, or 0."
)
"""What a card says of a model that reads entities."""


class MentionSection(TaskSection):
    """A text, places in it, and a graph of the entities that it mentions."""

    num_texts = (1,)
    pairs_of_texts = False
    usual_markers: ClassVar[tuple[str, ...]]
    """One for each place."""

    spans: Words
    """Columns of the places that the question is about, each ``[start, end]`` in characters of the text."""
    markers: Words = []  # noqa: RUF012 (frozen)
    """What is set before and behind each place: tokens that the vocabulary lacks are added to it. By default `[ENT]`,
    or `[HD]` and `[TL]`, as in the paper; the released code has `。`, or `#` and `$`, which BERT's vocabulary knows."""
    graph: GraphSection | None = None
    """The graph of the entities that an ERNIE knows, files relative to `root`; without it, and in an encoder that
    reads no entities, texts are read alone."""
    mentions: str | None = None
    """Column with the entities of a text, ``[[start, end, name], ...]`` with their names in the graph, none within
    another; without it a dictionary of the graph's labels and aliases finds them."""
    unknown: Literal["fail", "skip"] = "fail"
    """Mentions of entities that are not in the graph: an error, or, with `skip`, left out and counted."""

    def problems(self) -> list[str]:
        """As many spans and markers as the type has."""
        found, number = super().problems(), len(self.usual_markers)
        for name, given in (("spans", self.spans), ("markers", self.markers or self.usual_markers)):
            if len(given) != number:
                found.append(f"{name} {', '.join(given)}: {self.type} takes {number}")
        if any(len(marker.split()) != 1 for marker in self.markers):
            found.append(f"markers {self.markers}: each is one word")
        if self.mentions and self.graph is None:
            found.append("mentions names entities, and of which graph is not said; give graph.path, too")
        return found


class MentionExamples(TextExamples):
    """One text each, whose tokens name entities."""

    def __init__(self, kind: MentionType, split: Split, tokenizer: PreTrainedTokenizerBase, **more: Any) -> None:
        super().__init__(split.texts[:1], split.labels, tokenizer, **more)
        if kind.graph is None:
            return
        ids, starts = self.sequences.ids, np.append(self.sequences.starts[0], len(self.sequences.ids))
        if kind.section.mentions is None:
            named = link_texts(ids, starts, tokenizer, linker_of(kind.graph, tokenizer))
            found = f"{np.count_nonzero(named):,} found by the dictionary"
        else:
            named, counts = np.zeros(len(ids), np.int64), np.zeros(2, np.int64)
            for text, mentions, start in zip(*split.texts, starts[:-1].tolist(), strict=True):
                rows = np.array([kind.rows.get(mention.entity, 0) for mention in mentions], np.int64)
                places = first_tokens(text, mentions, tokenizer)
                there = (rows > 0) & (places >= 0)
                named[start + places[there]] = rows[there]
                counts += np.array([len(rows), np.count_nonzero(rows == 0)])
            found = f"{counts[0]:,} given, {counts[1]:,} of them of entities that the graph lacks"
        self.sequences = replace(self.sequences, named=named)
        self.about = f"mentions of entities: {found}"


class MentionType(VectorType):
    """The texts of an example are the text with its markers, and, where a column has them, its mentions."""

    section: Any
    reads_causal = False

    def __init__(self, section: Any) -> None:
        super().__init__(section)
        self.reads_text_alone = self.section.graph is None
        places = " and ".join(f"{marker} before and behind the {span}" for span, marker in self._marked())
        self.usage = f"Texts have {places}, with a space between.{'' if self.reads_text_alone else _USAGE}"

    def _marked(self) -> list[tuple[str, str]]:
        return [*zip(self.section.spans, self.section.markers or self.section.usual_markers, strict=True)]

    @cached_property
    def graph_section(self) -> GraphSection | None:
        """The graph, its files found from ``task.root``."""
        return self.section.graph and within(self.section.graph, self.section.root)

    @cached_property
    def graph(self) -> Graph | None:
        """The graph, made in ``data_dir`` if it is not there."""
        return self.graph_section and prepare_graph(self.graph_section, self.data_dir)

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of each entity in the table of a model, by its name."""
        return {} if self.graph is None else {name: row for row, name in enumerate(self.graph.names, 1)}

    def inputs(self) -> dict[str, Fingerprint]:
        """The files of the graph."""
        return {} if self.graph_section is None else {"graph files": graph_files(self.graph_section)}

    # From rows to examples.

    def text_columns(self) -> dict[str, str]:
        """Columns of the text, of its places, and of its mentions."""
        section = self.section
        more = {section.mentions: f"task.mentions={section.mentions}"} if section.mentions else {}
        return super().text_columns() | dict.fromkeys(section.spans, f"task.spans=[{', '.join(section.spans)}]") | more

    def text_names(self) -> list[str]:
        """The text, and its mentions."""
        return [*self.section.text, *filter(None, [self.section.mentions])]

    def read_text(self, cell: Any) -> Any:
        """A text, or the offsets in a cell."""
        return cell if isinstance(cell, list) else super().read_text(cell)

    def example(self, texts: tuple[Any, ...], label: Any) -> tuple[tuple[Any, ...], Any]:
        """The text with its markers, and the mentions where they are then."""
        text, *cells = texts
        if not isinstance(text, str):
            raise ValueError(f"{self.section.text[0]!r} holds {text!r:.200}; it is a text")
        number = len(self.section.spans)
        spans = [_span(column, cell, text) for (column, _), cell in zip(self._marked(), cells[:number], strict=True)]
        cuts = sorted(zip(spans, self._marked(), strict=True))
        for (first, (one, _)), (second, (other, _)) in pairwise(cuts):
            if second[0] < first[1]:
                raise ValueError(f"{one!r} {[*first]} and {other!r} {[*second]} overlap; places are apart")
        marked, moved = _mark(text, [(span, marker) for span, (_, marker) in cuts])
        if self.section.mentions is None:
            return (marked,), label
        mentions = read_mentions(_decoded(cells[number]), text)
        if self.section.unknown == "fail":
            for mention in mentions:
                if mention.entity not in self.rows:
                    raise ValueError(unknown_entity(mention.entity, "task.unknown"))
        return (marked, [Mention(*moved(mention.start, mention.end), mention.entity) for mention in mentions]), label

    def fitted(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """The tokenizer with the markers that it lacks."""
        made: Any = tokenizer
        known = tokenizer.get_vocab()
        for marker in (marker for _, marker in self._marked() if marker not in known):
            made.add_tokens(AddedToken(marker, normalized=False))
        return tokenizer

    def _examples(self, split: Split, tokenizer: PreTrainedTokenizerBase, how: Reading) -> Examples:
        """One sequence each; what is too long loses its end."""
        return MentionExamples(self, split, tokenizer, max_length=how.max_length, seed=how.seed)

    def objective(self, model: PreTrainedModel) -> Predictor:
        """The type's own. Raises ``ConfigError`` for a model with the entities of another graph."""
        base: Any = model.base_model
        if self.graph is not None and family(model.config).beside is Entities and base.names != [*self.graph.names]:
            raise ConfigError(
                f"task.graph: {self.graph.num_entities:,} entities, and the model has {len(base.names):,} others, "
                "or in another order; give the graph that it was made with (its config.yaml says which), or "
                "task.graph=null to read texts alone"
            )
        return super().objective(model)

    def guesses(self, train: Split, held_out: Split) -> dict[str, np.ndarray]:
        """Those of texts; markers are words there, too."""
        return super().guesses(replace(train, texts=train.texts[:1]), replace(held_out, texts=held_out.texts[:1]))

    def format_text(self, text: Any) -> str:
        """Mentions as the part of the text and the name of the entity."""
        if isinstance(text, str):
            return super().format_text(text)
        return ", ".join(f"{mention.start}-{mention.end} {mention.entity}" for mention in text)


def _decoded(cell: Any) -> Any:
    """A list in a cell, which a table writes as JSON; ``ValueError`` for anything else."""
    if isinstance(cell, list):
        return cell
    try:
        found = json.loads(cell) if cell else []
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ValueError(f"{cell!r:.200} where a list is expected, such as [0, 4]")
    return found


def _span(column: str, cell: Any, text: str) -> tuple[int, int]:
    """The start and the end of a place; ``ValueError`` where it is none of the text."""
    found = _decoded(cell)
    if len(found) != 2 or not all(type(each) is int for each in found):
        raise ValueError(f"{column!r} holds {cell!r:.200}; a place is [start, end] in characters of the text")
    start, end = found
    if not 0 <= start < end <= len(text):
        raise ValueError(f"{column!r} holds {found}, which is no part of a text of {len(text):,} characters")
    return start, end


def _mark(text: str, spans: Sequence[tuple[tuple[int, int], str]]) -> tuple[str, Callable[[int, int], tuple[int, int]]]:
    """The text with a marker and a space before, and a space and the marker behind each of ascending spans; and a
    function that moves a start and an end of the text to where they are then."""
    parts, at, starts, ends = [], 0, [], []
    for (start, end), marker in spans:
        parts += [text[at:start], f"{marker} ", text[start:end], f" {marker}"]
        starts.append((start, len(marker) + 1))
        ends.append((end, len(marker) + 1))
        at = end

    def moved(start: int, end: int) -> tuple[int, int]:
        return (
            start + sum(size for place, size in [*starts, *ends] if place <= start),
            end + sum(size for place, size in [*starts, *ends] if place < end),
        )

    return "".join([*parts, text[at:]]), moved

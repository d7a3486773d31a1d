"""``python -m pages.inspect model=<directory> text="..."``: what a model does with a text, as one HTML page.

Attention by layer and head, and what its heads say, whatever they are: guesses for masked tokens, replaced tokens, the
decision on a pair, labels, tags, answers, distributions of the next token, a translation with its alignment, entities,
concepts and paths of a graph.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from bertillery.config.section import InputError
from bertillery.config.section import Section as Keys
from bertillery.engine.batch import pack_stream
from bertillery.models.encoders import ONE_STREAM, choice_logits, encode, family
from bertillery.models.joint_spans import joint_head
from bertillery.models.layers.attention import Recorded
from bertillery.models.load import check_vocabulary, load, load_tokenizer, read_config
from bertillery.report.card import shortened
from bertillery.run.command import as_yaml, tool
from bertillery.system.invocation import settings
from finetune.record import read_record
from pages import decisions, guesses
from pages.attention import attention_blocks, weights
from pages.blocks import Block, Facts, Lines, Page, Paragraph, Section, Table
from pages.graphs import kagnet_sections
from pages.links import entity_blocks, graph_of, linked
from pages.render import write_page
from pages.tokens import Read, read, shown
from translation.model import TranslationModel
from translation.search import DecodeSection

_CLASSES = {
    "ForPreTraining": AutoModelForPreTraining,
    "ForMaskedLM": AutoModelForMaskedLM,
    "LMHeadModel": AutoModelForCausalLM,
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForQuestionAnswering": AutoModelForQuestionAnswering,
    "ForMultipleChoice": AutoModelForMultipleChoice,
}
"""Auto classes by the endings of the classes that ``config.json`` names."""
_TRANSLATIONS = 5


class InspectSection(Keys):
    """Keys of looking inside."""

    model: str
    """Directory or Hub id of a model, such as the `export` of a run."""
    text: str | None = None
    """What it reads; by default the environment variable TEXT, which `make inspect TEXT=...` sets."""
    pair: str | None = None
    """A second text: of a pair, the context of a question, the choices of one with bars between (`a dog | a cat`), or a
    translation to align. By default the variable PAIR."""
    task: dict[str, Any] = {}  # noqa: RUF012 (frozen)
    """Keys of the task of a KagNet that differ, such as `task.graph.path=[triples.tsv]` for an export away from its
    run."""
    output: Path = Path("runs/inspect/inspect.html")
    """The page."""


def main(arguments: Sequence[str]) -> int:
    """Write the page; returns the exit status. A text is text, whatever YAML would make of it."""
    parts = [argument.partition("=") for argument in arguments]
    arguments = [
        "".join((key, mark, as_yaml(value) if key in ("text", "pair") else value)) for key, mark, value in parts
    ]
    return tool(arguments, help=__doc__, schema=InspectSection, action=_run)


def _run(section: InspectSection) -> int:
    text = section.text if section.text is not None else os.environ.get("TEXT", "")
    pair = (section.pair if section.pair is not None else os.environ.get("PAIR")) or None
    if not text.strip():
        raise InputError(f"text: none is given; give {settings('inspect', TEXT='...')}")
    with torch.inference_mode():
        found = page(section.model, text, pair, task=section.task)
    write_page(found, section.output)
    print(f"page        {section.output}")
    return 0


def page(start: str, text: str, pair: str | None, *, task: dict[str, Any] | None = None) -> Page:
    """What the model of this name does with a text; keys of ``task`` are for a KagNet."""
    record = read_record(start)
    if record is not None and record.task.get("type") == "graph_choice":
        about, sections = (
            "kagnet model, encoder with a graph",
            kagnet_sections(start, text, split_choices(pair), task=task),
        )
    else:
        config = read_config(start, roles=(*ONE_STREAM, "encoder-decoder"))
        role = family(config).role
        about = f"{config.model_type} model, {role}"
        translates = role == "encoder-decoder"
        sections = _translation(start, text, pair) if translates else _Inspected.open(start, text, pair).sections()
    given = [("model", shortened(start)), ("text", text), *([("pair", pair)] if pair else [])]
    return Page(f"Inside {shortened(start)}", f"A {about}.", [Section("Given", [Facts(given)]), *sections])


def split_choices(pair: str | None) -> list[str]:
    """The choices in the second text, which have bars between."""
    return [*filter(None, map(str.strip, (pair or "").split("|")))]


@dataclass(frozen=True)
class _Inspected:
    """A model of one stream and a text."""

    start: str
    model: Any
    tokenizer: Any
    ending: str
    """Which of :data:`_CLASSES`; empty for a model without a head."""
    text: Read
    """With the most probable choice, where there are some."""
    paired: bool
    choices: dict[str, Read]
    """The text with each of its choices."""

    @classmethod
    def open(cls, start: str, text: str, pair: str | None) -> _Inspected:
        config: Any = read_config(start, roles=ONE_STREAM)
        if joint_head(config):
            raise InputError(
                f"model: {start} has a joint head for answers, which this page does not show; see its predictions"
            )
        name, causal = (config.architectures or [""])[0], family(config).causal
        ending = next((each for each in _CLASSES if name.endswith(each)), "")
        model, report = load(_CLASSES.get(ending, AutoModel), start, roles=ONE_STREAM)
        if (
            report.fresh
            and ending not in ("", "ForMultipleChoice")
            and any(not key.startswith(model.base_model_prefix) for key in report.fresh)
        ):
            raise InputError(
                f"model: {start}: its weights lack the head that config.json names ({report}); give a whole export"
            )
        tokenizer = load_tokenizer(start, "model", role=family(config).role)
        check_vocabulary(tokenizer, config, start, "model")
        begin: Any = tokenizer.eos_token_id if causal and ending == "LMHeadModel" else None
        if begin is not None and pair is not None:
            raise InputError("pair: a causal language model reads one text; leave it out")
        model.eval()
        seconds = split_choices(pair) if ending == "ForMultipleChoice" else []
        choices = {each: read(tokenizer, config, text, each) for each in seconds}
        found = max(choices.values(), key=lambda each: float(choice_logits(model, each.stream)[0]), default=None)
        found = found or read(tokenizer, config, text, pair, begin=begin)
        return cls(start, model, tokenizer, ending, found, pair is not None, choices)

    def sections(self) -> list[Section]:
        """What it says, then where it looks."""
        entities: list[Block] = []
        if self.model.config.model_type == "ernie_thu":
            graph = graph_of(self.start)
            if not isinstance(graph, str):
                shown_entities = replace(self, text=linked(self.text, self.tokenizer, graph))
                return shown_entities._sections([*entity_blocks(self.model, shown_entities.text, graph)])
            entities = [Paragraph(f"{graph[:1].upper()}{graph[1:]}.")]
        return self._sections(entities)

    def _sections(self, entities: list[Block]) -> list[Section]:
        return [
            Section("Decision", self._decision()),
            Section("Words", self._words()),
            Section("Entities", entities),
            Section("Attention", self._attention()),
        ]

    def _decision(self) -> list[Block]:
        decide = {
            "ForPreTraining": lambda: decisions.pair_decision(self.model, self.text, paired=self.paired),
            "ForSequenceClassification": lambda: decisions.classes(self.model, self.text),
            "ForTokenClassification": lambda: decisions.tags(self.model, self.text),
            "ForQuestionAnswering": lambda: decisions.answers(self.model, self.text, paired=self.paired),
            "ForMultipleChoice": lambda: decisions.choice(self.model, self.choices),
        }.get(self.ending)
        found = [*decide()] if decide else []
        return found + ([*decisions.notes_on_pairs(self.model, paired=self.paired)] if found else [])

    def _words(self) -> list[Block]:
        if self.ending == "LMHeadModel":
            return [*guesses.next_tokens(self.model, self.tokenizer, self.text)]
        if self.ending == "ForMaskedLM" or (
            self.ending == "ForPreTraining" and self.model.config.model_type != "electra"
        ):
            filling, _ = load(AutoModelForMaskedLM, self.start)
            return [*guesses.fill_mask(filling.eval(), self.tokenizer, self.text)]
        if self.ending == "ForPreTraining":
            found, generator = [*guesses.replaced(self.model, self.text)], Path(self.start) / "generator"
            if (generator / "config.json").is_file():
                filling, _ = load(AutoModelForMaskedLM, generator)
                found += guesses.fill_mask(filling.eval(), self.tokenizer, self.text)
            return found
        return [guesses.without_head()] if not self.ending else []

    def _attention(self) -> list[Block]:
        record: list[Recorded] = []
        encode(self.model, self.text.stream, record=record)
        causal = family(self.model.config).causal
        found = weights(record, causal=causal)
        return [*attention_blocks([*found], self.text.tokens, self.text.tokens, "earlier" if causal else "all")]


def _translation(start: str, text: str, pair: str | None) -> list[Section]:
    """Translations of a text, and what the decoder looks at in the source, for the best of them or for ``pair``."""
    opened = TranslationModel.open(start)
    (source,) = opened.encode([text])
    decode = opened.search_settings(DecodeSection())
    (best,) = opened.translate([text], decode, n_best=min(_TRANSLATIONS, decode.beam))
    rows = [["translation", "score", "log-probability"]]
    rows += [[words, f"{each.score:.3f}", f"{each.log_probability:.3f}"] for words, each in best]
    of_target = replace(opened, tokenizer=opened.target_tokenizer)
    target = of_target.encode([pair])[0] if pair else best[0][1].ids
    said = [Table("Translations, by beam search", rows, note="The score is normalised by length; the best is first.")]
    sections = [Section("Translation", said)]
    if getattr(opened.model.config, "attention", "") == "none":
        why = "This model has no attention: the decoder sees the source through one state."
        return [*sections, Section("Attention", [Paragraph(why)])]
    entering = np.array([opened.model.config.decoder_start_token_id, *target[:-1]])
    streams = [pack_stream(ids, np.array([len(ids)])) for ids in (np.array(source), entering)]
    (found,) = opened.network.alignments(*streams)
    queries = [shown(opened.target_tokenizer, token) for token in target]
    keys = [shown(opened.tokenizer, token) for token in source]
    blocks = [*attention_blocks([*found], queries, keys, "source")]
    about = Lines("Of which translation", [pair if pair else best[0][0]])
    return [*sections, Section("Attention", [about, *blocks])]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

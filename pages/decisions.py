"""What heads that were trained on pairs or tasks decide on a text: probabilities, tags, answers, choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bertillery.models.encoders import (
    choice_logits,
    labels_of,
    pair_logits,
    reads_token_types,
    sequence_logits,
    span_logits,
    token_logits,
)
from bertillery.models.heads import problem_of
from bertillery.system.invocation import settings
from pages.blocks import Block, Mark, Marks, Paragraph, Table
from pages.tokens import Read

_FOLLOWS = ("the second text follows the first", "it is a random one")
_PAIRS = {"bert": _FOLLOWS, "ernie_thu": _FOLLOWS, "albert": ("the texts are in order", "they are swapped")}
"""What the two logits of a head for pairs mean, by type of model."""
_BEST, _LONGEST = 5, 30


def pair_decision(model: Any, text: Read, *, paired: bool) -> Iterator[Block]:
    """Of BERT's or ALBERT's head for two texts."""
    names = _PAIRS.get(model.config.model_type)
    if names is None:
        return
    if not paired:
        yield Paragraph(f"This model also judges pairs: give the second text, {settings('inspect', PAIR='...')}.")
        return
    logits = pair_logits(model, text.stream)
    if logits is not None:
        yield _shares("Pair decision", [*names], logits[0].softmax(-1))


def classes(model: Any, text: Read) -> Iterator[Block]:
    """Probabilities of the labels, each alone where several may hold; or the score."""
    logits, names = sequence_logits(model, text.stream)[0], [*labels_of(model.config).values()]
    problem = problem_of(model.config)
    if problem == "regression":
        yield Table("Score", [["", "score"], ["this text", f"{float(logits[0]):.3f}"]])
    elif problem == "multi_label_classification":
        yield _shares("Labels, each alone", names, logits.sigmoid())
    else:
        yield _shares("Decision", names, logits.softmax(-1))


def tags(model: Any, text: Read) -> Iterator[Block]:
    """The label of each token; that of a word is at its first token."""
    shares, names = token_logits(model, text.stream).softmax(-1), [*labels_of(model.config).values()]
    marks = []
    for token, share, special in zip(text.tokens, shares, text.special, strict=True):
        best = int(share.argmax())
        name, probability = names[best], float(share[best])
        outside = name == "O"
        if not special:
            marks.append(
                Mark(token, 0.0 if outside else probability, f"{name}, {probability:.1%}", "" if outside else name)
            )
    yield Marks("Labels of the tokens, the colour being their probability; O is not marked", marks)


def answers(model: Any, text: Read, *, paired: bool) -> Iterator[Block]:
    """The best answers in a context to a question, of independent heads for start and end."""
    if not paired:
        given = settings("inspect", TEXT="<question>", PAIR="<context>")
        yield Paragraph(f"This model answers questions: give {given}.")
        return
    start, end = span_logits(model, text.stream).unbind(-1)
    begins = text.special.index(True, 1) + 1
    inside = torch.tensor([place >= begins and not special for place, special in enumerate(text.special)])
    start, end = (each.masked_fill(~inside, -torch.inf).softmax(-1) for each in (start, end))
    spans = torch.triu(start[:, None] * end[None]) - torch.triu(start[:, None] * end[None], _LONGEST)
    best = spans.flatten().topk(min(_BEST, spans.numel()))
    rows = [["answer", "probability"]]
    for share, place in zip(*map(Tensor.tolist, best), strict=True):
        first, last = divmod(place, len(text.ids))
        rows.append([" ".join(text.tokens[first : last + 1]), f"{share:.1%}"])
    yield Table("Answers", rows, note="Probability of start and end, over the context.")
    marks = [
        Mark(token, max(float(a), float(b)), f"start {a:.1%}, end {b:.1%}")
        for token, a, b, special in zip(text.tokens, start, end, text.special, strict=True)
        if not special
    ]
    yield Marks("Where answers begin and end", marks)


def choice(model: Any, choices: Mapping[str, Read]) -> Iterator[Block]:
    """The probabilities of the choices of a text."""
    if len(choices) < 2:
        given = settings("inspect", TEXT="<question>", PAIR="a dog | a cat")
        yield Paragraph(f"This model compares choices: give {given}.")
        return
    scores = torch.stack([choice_logits(model, each.stream)[0] for each in choices.values()])
    yield _shares("Choices", [*choices], scores.softmax(0))


def _shares(caption: str, names: list[str], shares: Tensor) -> Table:
    rows = [[name, f"{float(share):.1%}"] for name, share in zip(names, shares, strict=True)]
    return Table(caption, [["", "probability"], *sorted(rows, key=lambda row: -float(row[1][:-1]))])


def notes_on_pairs(model: Any, *, paired: bool) -> Iterator[Block]:
    """That a model without embeddings of segments still reads both texts."""
    if paired and not reads_token_types(model.config):
        yield Paragraph("This family has no embeddings of segments; the two texts are told apart by their separator.")

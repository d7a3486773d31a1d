"""Questions on the installed documentation that its graph answers, for a first run without any download.

``In which module is the class that X inherits from?``, and the same of the class that the documentation of X mentions.
The answer is two facts away. So is one of the wrong choices, by other facts (the package that the module of X is in,
the module of a class that X mentions), or it is the module of X itself, one fact away. The same graph gives the same
questions.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from bertillery.config.section import InputError
from bertillery.system.files import make_once
from knowledge.graph import Graph
from knowledge.prepare import GraphSection, prepare_graph

VERSION = 1
"""Part of the folder's name; raise it when a change below alters the questions."""
_HELD_OUT = 8
"""One class in eight goes to validation, and one to test."""
_MOST = 40
"""Questions that a module may be the answer of."""
_ASKED = {
    "inherits from": "In which module is the class that {} inherits from?",
    "mentions": "In which module is the class that the documentation of {} mentions?",
}


def question_files(text: str, choices: Sequence[str], labels: Sequence[str], data_dir: Path) -> dict[str, Path]:
    """The files of the task, a jsonl for each split, with the columns ``text``, ``choices`` and ``label``; they are
    made in ``data_dir`` if it lacks them. Raises ``InputError`` unless there are as many choices as labels."""
    if len(choices) != len(labels) or len(choices) < 2:
        raise InputError(
            f"task.choices: given {len(choices)} columns and {len(labels)} labels; embedded=questions writes each "
            "choice to a column of its own, two or more, and task.labels names as many"
        )
    graph = prepare_graph(GraphSection(), data_dir)
    digest = blake2b(json.dumps([VERSION, graph.fingerprint.sha256, text, *choices, *labels]).encode(), digest_size=6)
    folder = data_dir / f"docs_questions-{digest.hexdigest()}"

    def make(partial: Path) -> Path:
        made = partial / "files"
        made.mkdir(exist_ok=True)
        lines: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        for asked, question, answers in _questions(graph, len(choices)):
            order = sorted(range(len(answers)), key=lambda place: _draw(f"{question} {answers[place]}"))
            row = {text: question, **{name: answers[at] for name, at in zip(choices, order, strict=True)}}
            held_out = _draw(asked) % _HELD_OUT
            split = {0: "validation", 1: "test"}.get(held_out, "train")
            lines[split].append(json.dumps({**row, "label": labels[order.index(0)]}, ensure_ascii=False))
        for split, found in lines.items():
            (made / f"{split}.jsonl").write_text("\n".join(found) + "\n", encoding="utf-8")
        return made

    make_once(folder, make, doing="is making this task")
    return {split: folder / f"{split}.jsonl" for split in ("train", "validation", "test")}


class _Asked(NamedTuple):
    """A question before its choices are chosen, with entities as numbers."""

    name: str
    text: str
    right: int
    linked: list[int]
    """Other modules that are one fact or two away."""


def _questions(graph: Graph, number: int) -> Iterator[tuple[str, str, list[str]]]:
    """Names of what is asked about, and of each the question and ``number`` choices, of which the first is right.

    One wrong choice is linked as closely as the right one. The others are right answers of other questions, since how
    often a module is right must not give it away; no module is right more than some times.
    """
    found = sorted(_linked(graph), key=lambda each: _draw(each.text))
    ranks: Counter[int] = Counter()
    kept = []
    for each in found:
        ranks[each.right] += 1
        kept += [each] * (ranks[each.right] <= _MOST)
    for each in kept:
        drawn = [kept[_draw(f"{each.text} {at}") % len(kept)].right for at in range(4 * number)]
        linked = sorted(each.linked, key=lambda module: _draw(f"{each.text} {module}"))
        wrong = [module for module in dict.fromkeys([*linked[:1], *drawn]) if module != each.right]
        if len(wrong) >= number - 1:
            yield each.name, each.text, [graph.names[module] for module in (each.right, *wrong[: number - 1])]


def _linked(graph: Graph) -> Iterator[_Asked]:
    """What has one answer, and a name that it shares with nothing."""
    facts: dict[str, dict[int, list[int]]] = {name: defaultdict(list) for name in graph.relations}
    for head, relation, tail in graph.triples.tolist():
        facts[graph.relations[relation]][head].append(tail)
    parent = {head: tails[0] for head, tails in facts["is in"].items()}
    labels = [*graph.labels]
    alike = Counter(labels)
    for relation, wording in _ASKED.items():
        (other,) = (name for name in _ASKED if name != relation)
        for asked, tails in facts[relation].items():
            own, right = parent.get(asked), {parent[tail] for tail in tails if tail in parent}
            if own is None or len(right) != 1 or own in right or alike[labels[asked]] > 1:
                continue
            near = {own, parent.get(own), *(parent.get(tail) for tail in facts[other][asked])} - right
            linked = sorted(module for module in near if module is not None)
            yield _Asked(graph.names[asked], wording.format(labels[asked]), min(right), linked)


def _draw(text: str) -> int:
    """A pseudo-random number that depends on nothing but the text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")

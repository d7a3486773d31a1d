"""Questions on the installed documentation that its graph answers, for a first run without any download.

``In which module is the class that X inherits from?``, and the same of the class that the documentation of X mentions.
The answer is two facts away. So are most of the wrong choices, by other facts (the package that the module of X is in,
the module of a class that X mentions), and the module of X itself is one away: which facts lead there decides, not how
many. The same graph gives the same questions.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from bertillery.config.section import InputError
from bertillery.system.files import make_once
from knowledge.graph import Graph, GraphSection, prepare_graph

VERSION = 1
"""Part of the folder's name; raise it when a change below alters the questions."""
_HELD_OUT = 8
"""One class in eight goes to validation, and one to test."""
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
        for asked, (question, answers) in _questions(graph, len(choices)):
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


def _questions(graph: Graph, number: int) -> Iterator[tuple[str, tuple[str, list[str]]]]:
    """Names of classes, and of each the question and ``number`` choices, of which the first is right."""
    facts: dict[str, dict[int, list[int]]] = {name: defaultdict(list) for name in graph.relations}
    for head, relation, tail in graph.triples.tolist():
        facts[graph.relations[relation]][head].append(tail)
    parent = {head: tails[0] for head, tails in facts["is in"].items()}
    modules = sorted({*parent.values()})
    siblings: dict[int, list[int]] = defaultdict(list)
    for module in modules:
        siblings[parent.get(module, -1)].append(module)
    labels = [*graph.labels]
    alone = Counter(labels)
    for relation, wording in _ASKED.items():
        other = facts["mentions" if relation == "inherits from" else "inherits from"]
        for asked, tails in facts[relation].items():
            own = parent.get(asked)
            right = {parent[tail] for tail in tails if tail in parent}
            if own is None or len(right) != 1 or own in right or alone[labels[asked]] > 1:
                continue
            near = [own, parent.get(own), *(parent.get(tail) for tail in other[asked])]
            beside = siblings[parent.get(min(right), -1)]
            name = graph.names[asked]
            drawn = [each[_draw(f"{name} {at}") % len(each)] for each in (beside, modules) for at in range(number) if each]
            wrong = [module for module in dict.fromkeys([*near, *drawn]) if module is not None and module not in right]
            answers = [graph.names[module] for module in [*right, *wrong[: number - 1]]]
            if len(answers) == number:
                yield name, (wording.format(labels[asked]), answers)


def _draw(text: str) -> int:
    """A pseudo-random number that depends on nothing but the text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")

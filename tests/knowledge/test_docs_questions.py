"""Questions that a graph of documentation answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bertillery.config.section import InputError
from knowledge.graph import Graph
from knowledge.questions.docs_questions import _questions, question_files
from tests.knowledge.graphs import write_graph


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Thirty modules in five packages, two classes in each, with bases and mentioned classes in other modules."""
    facts = []
    for number in range(30):
        facts.append((f"p{number % 5}.m{number}", "is in", f"p{number % 5}"))
        for which in "AB":
            facts.append((f"{which}{number}", "is in", f"p{number % 5}.m{number}"))
        facts.append((f"A{number}", "inherits from", f"B{(number * 7 + 1) % 30}"))
        facts.append((f"B{number}", "mentions", f"A{(number * 11 + 3) % 30}"))
    return write_graph(tmp_path_factory.mktemp("docs"), facts)


def test_the_first_choice_is_the_module_two_facts_away(graph: Graph) -> None:
    facts = {(graph.names[h], graph.relations[r]): graph.names[t] for h, r, t in graph.triples.tolist()}
    asked = [*_questions(graph, 4)]
    assert len(asked) > 40
    for name, question, choices in asked:
        relation = "mentions" if "mentions" in question else "inherits from"
        assert name in question
        assert choices[0] == facts[facts[name, relation], "is in"]
        assert len({*choices}) == 4
        assert facts[name, "is in"] not in choices[:1]
        linked = {facts[name, "is in"], facts[facts[name, "is in"], "is in"]}
        assert linked & {*choices[1:]}, "one of the wrong ones is as close"


def test_the_same_graph_gives_the_same_questions(graph: Graph) -> None:
    assert [*_questions(graph, 4)] == [*_questions(graph, 4)]


def test_choices_are_modules_that_are_right_elsewhere(graph: Graph) -> None:
    asked = [*_questions(graph, 4)]
    right = Counter(choices[0] for _, _, choices in asked)
    wrong = Counter(module for _, _, choices in asked for module in choices[1:])
    assert sum(count for module, count in wrong.items() if module in right) >= 2 * len(asked)


def test_choices_are_columns_as_many_as_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task\.choices: given 1 columns and 4 labels"):
        question_files("text", ["choices"], list("abcd"), tmp_path)

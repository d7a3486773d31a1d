from __future__ import annotations

import numpy as np
import pytest

from finetune.task_types.tokens import Config, count, entities, entity_scores, kinds

NAMES = ["O", "B-per", "I-per", "B-loc", "I-loc"]


def ids(*sentences: str) -> list[np.ndarray]:
    return [np.array([NAMES.index(tag) for tag in sentence.split()], np.int64) for sentence in sentences]


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("O B-per I-per O", [(1, 3, 0)]),
        ("B-per B-per I-per", [(0, 1, 0), (1, 3, 0)]),
        ("I-per I-per O I-loc", [(0, 2, 0), (3, 4, 1)]),  # IOB1, and what opens with I-
        ("B-per I-loc I-loc", [(0, 1, 0), (1, 3, 1)]),  # another kind is another entity
        ("I-per B-per", [(0, 1, 0), (1, 2, 0)]),  # in IOB1, B- parts neighbours
        ("B-loc I-loc I-per O O", [(0, 2, 1), (2, 3, 0)]),
        ("O O", []),
        ("B-loc", [(0, 1, 1)]),
    ],
)
def test_entities_of_a_sentence(tags: str, wanted: list[tuple[int, int, int]]) -> None:
    assert [tuple(entity) for entity in entities(ids(tags), NAMES).tolist()] == wanted


def test_an_entity_ends_with_its_sentence() -> None:
    apart = entities(ids("O B-per", "I-per O", "I-per"), NAMES)
    assert apart.tolist() == [[1, 2, 0], [2, 3, 0], [4, 5, 0]]


def test_counted_by_hand() -> None:
    """Right: one. Wrong: a border, a kind, one too many, one missing."""
    labels = ids("B-per I-per O B-loc O", "B-loc O B-per O O")
    found = ids("B-per I-per O B-per O", "B-loc I-loc O O B-loc")
    overall = count(found, labels, NAMES)[None]
    assert (overall.right, overall.predicted, overall.there) == (1, 4, 4)
    got = entity_scores(Config.available_metrics, found, labels, NAMES)
    assert got == {"f1": 0.25, "precision": 0.25, "recall": 0.25, "accuracy": 0.6}
    by_kind = count(found, labels, NAMES)
    assert (by_kind["per"].predicted, by_kind["loc"].there, by_kind["loc"].right) == (2, 2, 0)


def chunks(sentences: list[np.ndarray]) -> set[tuple[int, int, str]]:
    """Read tag by tag, as the shared task's rules say."""
    found, at = set(), 0
    for sentence in sentences:
        begin, open_kind = 0, None
        for place, tag in enumerate([*sentence, 0]):
            prefix, _, kind = NAMES[tag].partition("-")
            goes_on = prefix == "I" and kind == open_kind
            if open_kind is not None and not goes_on:
                found.add((at + begin, at + place, open_kind))
                open_kind = None
            if prefix != "O" and open_kind is None:
                begin, open_kind = place, kind
        at += len(sentence)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_equals_reading_tag_by_tag(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, found = ([rng.integers(0, 5, n) for n in rng.integers(1, 9, 12)] for _ in range(2))
    found = [np.where(rng.random(len(a)) < 0.6, a, np.resize(b, len(a))) for a, b in zip(labels, found, strict=True)]
    assert {(a, b, kinds(NAMES)[kind]) for a, b, kind in entities(labels, NAMES).tolist()} == chunks(labels)
    there, given = chunks(labels), chunks(found)
    precision, recall = len(there & given) / max(1, len(given)), len(there & given) / max(1, len(there))
    got = entity_scores(Config.available_metrics, found, labels, NAMES)
    assert (got["precision"], got["recall"]) == (precision, recall)
    assert got["f1"] == pytest.approx(2 * precision * recall / (precision + recall) if there & given else 0)


def test_nothing_found_and_nothing_there() -> None:
    nothing = ids("O O", "O")
    assert entity_scores(["f1", "accuracy"], nothing, nothing, NAMES) == {"f1": 0, "accuracy": 1}
    assert entities([], NAMES).shape == (0, 3)

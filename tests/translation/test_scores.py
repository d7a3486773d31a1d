"""BLEU by its expected values, beside a count of our own; baselines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest

from translation.scores import baselines, corpus_scores, length_ratio, looks_tokenized, sentence_scores, signatures


def bleu(hypothesis: str, reference: str, *, lowercase: bool = False, tokens: str = "13a") -> float:
    name = "bleu_lowercase" if lowercase else "bleu"
    return 100 * corpus_scores([name], [hypothesis], [reference], tokens)[name]


@pytest.mark.parametrize(
    ("hypothesis", "reference", "expected"),
    [
        ("Half as my heart is in Obama ooh na", "Half of my heart is in Havana ooh na na", 33.0101),
        ("Havana na in heart my is Half ooh of na", "Half of my heart is in Havana ooh na na", 7.4619),
        ("the the the the the the the", "the cat is on the mat", 7.8098),
        ("a short sentence", "a short sentence", 0.0),
        ("", "the cat is on the mat", 0.0),
    ],
)
def test_bleu(hypothesis: str, reference: str, expected: float) -> None:
    assert bleu(hypothesis, reference) == pytest.approx(expected, abs=5e-5)


def test_case_and_tokens_matter() -> None:
    reference = "The cat sat on the mat , and it was happy there , too ."
    assert bleu(reference.lower(), reference, lowercase=True) == pytest.approx(100)
    assert bleu(reference.lower(), reference) < 95
    assert bleu("Hello, world! It is, well, fine.", "Hello , world ! It is , well , fine .") == pytest.approx(100)
    assert bleu("Hello, world! It is, well, fine.", "Hello , world ! It is , well , fine .", tokens="none") < 20
    korean = "나는 학교에 간다", "나는 집에 간다"
    assert bleu(*korean) == pytest.approx(0, abs=1e-9)
    assert bleu(*korean, tokens="char") == pytest.approx(30.74, abs=0.01)


def counted(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU without smoothing, from the definition (Papineni et al. 2002)."""
    matches, totals = Counter[int](), Counter[int]()
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        a, b = hypothesis.split(), reference.split()
        for n in range(1, 5):
            found, known = (Counter(tuple(x[i : i + n]) for i in range(len(x) - n + 1)) for x in (a, b))
            matches[n] += (found & known).total()
            totals[n] += found.total()
    if not all(matches[n] for n in range(1, 5)):
        return 0.0
    c, r = (sum(len(text.split()) for text in texts) for texts in (hypotheses, references))
    mean = sum(math.log(matches[n] / totals[n]) for n in range(1, 5)) / 4
    return math.exp(mean + min(0.0, 1 - r / c))


def test_bleu_is_of_the_corpus_by_its_definition() -> None:
    references = ["a man rides a red bike down the street", "two dogs play in the snow near a tree", "a boy sleeps"]
    hypotheses = ["a man rides a bike down the road", "two dogs run in the snow near a house", "the boy sleeps"]
    found = corpus_scores(["bleu"], hypotheses, references)["bleu"]
    assert found == pytest.approx(counted(hypotheses, references), abs=1e-9)
    each = [corpus_scores(["bleu"], [a], [b])["bleu"] for a, b in zip(hypotheses, references, strict=True)]
    assert found != pytest.approx(sum(each) / 3, abs=0.01)


def test_signatures_name_case_tokens_and_version() -> None:
    found = signatures(["bleu", "bleu_lowercase", "chrf"], "char")
    assert "case:mixed" in found["bleu"]
    assert "case:lc" in found["bleu_lowercase"]
    assert "tok:char" in found["bleu"]
    assert all("version:" in text for text in found.values())


def test_sentences_and_lengths() -> None:
    assert sentence_scores(["a cat", "xyz"], ["a cat", "abc"]).tolist() == pytest.approx([1.0, 0.0])
    assert length_ratio(["a b c"], ["a b c d e f"]) == pytest.approx(0.5)


def test_floors() -> None:
    found = baselines(["a red dog", "a blue cat", "the sun"], ["ein Hund", "eine Katze", "ein Hund"], ["my blue cat"])
    assert found == {"copy": ["my blue cat"], "one sentence": ["ein Hund"], "nearest sentence": ["eine Katze"]}


def test_tokenised_references_are_noticed() -> None:
    assert looks_tokenized(["a dog , a cat .", "ok"])
    assert not looks_tokenized(["A dog, a cat.", "Fine."])

"""BERT's examples: the expected values are those of the original data code on synthetic documents (fidelity, 1.8)."""

from __future__ import annotations

import numpy as np
import pytest

from pretrain.masking import num_predictions
from pretrain.pairs import full_segments, next_sentence_pairs
from tests.corpora import Tokens, counting_tokens, random_tokens


def draw(tokens: Tokens, length: int = 128, short: float = 0.1, seed: int = 1, epoch: int = 0) -> np.ndarray:
    documents = np.arange(len(tokens.documents) - 1)
    return next_sentence_pairs(
        tokens, documents, sequence_length=length, short_probability=short, seed=seed, epoch=epoch
    )


def document_of(tokens: Tokens, position: np.ndarray) -> np.ndarray:
    return np.searchsorted(tokens.sentences[tokens.documents], position, side="right") - 1


def test_statistics_of_long_documents() -> None:
    rows = draw(random_tokens(1700))
    assert len(rows) > 10_000
    assert rows["label"].mean() == pytest.approx(0.556, abs=0.015)
    assert rows["length"].mean() == pytest.approx(110, abs=1)
    predictions = num_predictions(rows["length"], 0.15, 20)
    assert predictions.mean() == pytest.approx(16.4, abs=0.2)
    assert (predictions / rows["length"]).mean() == pytest.approx(0.149, abs=0.001)


def test_short_documents_have_more_random_pairs() -> None:
    rows = draw(random_tokens(7000, sentences=(1, 6)))
    assert rows["label"].mean() == pytest.approx(0.657, abs=0.015)


def test_random_share_is_singles_plus_half_the_rest() -> None:
    """share = P(single) + (1 - P(single)) / 2, where a single is a chunk of one sentence."""
    tokens = random_tokens(3000, sentences=(1, 12), length=(20, 80))
    rows = draw(tokens, short=0.0)
    start = np.searchsorted(tokens.sentences, rows["a_start"] - 0, side="right") - 1
    last = tokens.documents[document_of(tokens, rows["a_start"]) + 1]
    single = np.minimum(np.maximum(np.searchsorted(tokens.sentences, tokens.sentences[start] + 125), start + 1), last)
    single = single - start == 1
    untouched = tokens.sentences[start] == rows["a_start"]
    share = single[untouched].mean()
    observed = rows["label"][untouched].mean()
    expected = share + (1 - share) / 2
    assert observed == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / untouched.sum()))
    assert rows["label"][untouched & single].all()


def test_walk_loses_and_repeats_nothing() -> None:
    """All A in order, each with its B where B is the actual next, give the documents back (before truncation)."""
    tokens = counting_tokens(40)
    rows = draw(tokens, length=100_000, short=1.0)
    ordered = np.sort(rows[rows["a_length"] + rows["b_length"] + 3 == rows["length"]], order="a_start")
    covered = []
    for row in ordered:
        covered.append(np.arange(row["a_start"], row["a_start"] + row["a_length"]))
        if row["label"] == 0:
            assert row["b_start"] == row["a_start"] + row["a_length"]
            covered.append(np.arange(row["b_start"], row["b_start"] + row["b_length"]))
    np.testing.assert_array_equal(np.concatenate(covered), tokens.ids)


def test_segments_stay_within_documents() -> None:
    tokens = counting_tokens(60, sentences=(1, 9))
    for length in (16, 128, 512):
        rows = draw(tokens, length=length)
        for side in "ab":
            first = document_of(tokens, rows[f"{side}_start"])
            last = document_of(tokens, rows[f"{side}_start"] + rows[f"{side}_length"] - 1)
            np.testing.assert_array_equal(first, last)
        same = document_of(tokens, rows["a_start"]) == document_of(tokens, rows["b_start"])
        np.testing.assert_array_equal(same, rows["label"] == 0)
        assert (rows["a_length"] >= 1).all()
        assert (rows["b_length"] >= 1).all()
        assert (rows["length"] <= length).all()


def test_truncation_takes_from_the_longer_side_and_both_ends() -> None:
    tokens = random_tokens(3000, length=(50, 90))
    rows = draw(tokens, length=64, short=0.0)
    cut = rows[(rows["length"] == 64)]
    assert abs(cut["a_length"].astype(int) - cut["b_length"]).max() <= 1  # both sides were longer than half
    assert ((cut["a_length"] - cut["b_length"]) >= 0).all()  # on a tie B loses a token first
    sentence = np.searchsorted(tokens.sentences, cut["a_start"], side="right") - 1
    front = cut["a_start"] - tokens.sentences[sentence]
    whole = tokens.sentences[sentence + 1] - tokens.sentences[sentence]
    one = cut["a_start"] + cut["a_length"] <= tokens.sentences[sentence + 1]
    removed = (whole - cut["a_length"])[one]
    share = front[one].sum() / removed.sum()
    assert share == pytest.approx(0.5, abs=3 * np.sqrt(0.25 / removed.sum()))


def test_short_targets_are_drawn_once_per_document_pass() -> None:
    tokens = random_tokens(2000, sentences=(300, 300), length=(1, 1))
    rows = draw(tokens, short=0.1)
    document = document_of(tokens, rows["a_start"])
    longest = np.zeros(2000, int)
    np.maximum.at(longest, document, rows["length"])
    shorter = (longest < 128).mean()  # targets are uniform in 2..125, so nearly all short passes stay below
    assert shorter == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / 2000))


def test_examples_depend_on_seed_epoch_and_document_only() -> None:
    tokens = random_tokens(50)
    documents = np.arange(50)

    def rows(documents: np.ndarray, seed: int = 1, epoch: int = 0) -> np.ndarray:
        drawn = next_sentence_pairs(
            tokens, documents, sequence_length=128, short_probability=0.1, seed=seed, epoch=epoch
        )
        return np.sort(drawn, order=["a_start", "key"])

    np.testing.assert_array_equal(rows(documents), rows(documents[::-1]))
    parts = np.concatenate([rows(documents[:20]), rows(documents[20:])])
    np.testing.assert_array_equal(rows(documents), np.sort(parts, order=["a_start", "key"]))
    assert len(np.intersect1d(rows(documents)["key"], rows(documents, epoch=1)["key"])) == 0
    assert len(np.intersect1d(rows(documents)["key"], rows(documents, seed=2)["key"])) == 0


def test_two_documents_take_random_sentences_from_each_other() -> None:
    tokens = counting_tokens(2)
    rows = draw(tokens)
    random = rows[rows["label"] == 1]
    assert len(random)
    assert (document_of(tokens, random["a_start"]) != document_of(tokens, random["b_start"])).all()


def test_full_segments_cover_every_token_once_in_whole_sentences() -> None:
    tokens = counting_tokens(80, length=(3, 200))
    rows = np.sort(full_segments(tokens, np.arange(80), sequence_length=128, seed=1, epoch=0), order="a_start")
    covered = np.concatenate([np.arange(r["a_start"], r["a_start"] + r["a_length"]) for r in rows])
    np.testing.assert_array_equal(covered, tokens.ids)
    assert (rows["length"] <= 128).all()
    ends = rows["a_start"] + rows["a_length"]
    whole = np.isin(ends, tokens.sentences)
    assert (rows["length"][~whole] == 128).all()  # a sentence is cut only where it alone is too long
    np.testing.assert_array_equal(document_of(tokens, rows["a_start"]), document_of(tokens, ends - 1))

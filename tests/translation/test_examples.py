"""Vocabularies and pairs of sentences as two streams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from transformers import AutoTokenizer

from bertillery.config.section import ConfigError, InputError
from bertillery.models.load import load_tokenizer
from translation.examples import TranslationExamples
from translation.vocabulary import VocabularySection, check_alphabet, train_vocabulary

ENGLISH = [
    f"{a} {b} {c} the big dog." for a in ("A", "My", "One") for b in ("red", "blue") for c in ("saw", "has", "is")
]
GERMAN = [f"{a} {b} {c} großen Hund über Öl." for a in ("Ein", "Mein", "Kein") for b in ("rot", "blau") for c in "xyz"]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest):
    size = 320 if request.param == "bpe" else 300
    return train_vocabulary([*ENGLISH, *GERMAN] * 30 + words(), VocabularySection(type=request.param, vocab_size=size))


def words() -> list[str]:
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnoprstuvwz")
    return [" ".join("".join(rng.choice(letters, 4)) for _ in range(6)) for _ in range(400)]


def test_texts_are_read_back(tokenizer) -> None:
    for text in [*ENGLISH[:3], *GERMAN[:3], "Ein   Hund"]:
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id == 1
        expected = text if "   " not in text or tokenizer.unk_token is None else " ".join(text.split())
        assert tokenizer.decode(ids, skip_special_tokens=True) == expected
    if tokenizer.unk_token is None:
        strange = "naïve 한국어 🙂\ttab"
        assert tokenizer.decode(tokenizer(strange)["input_ids"], skip_special_tokens=True) == strange


def test_a_vocabulary_is_saved_and_opened_as_it_was(tokenizer, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path), "tokenizer.path", role="encoder-decoder")
    assert again.get_vocab() == tokenizer.get_vocab()
    assert [again(text)["input_ids"] for text in GERMAN] == [tokenizer(text)["input_ids"] for text in GERMAN]
    assert AutoTokenizer.from_pretrained(tmp_path)("A dog.")["input_ids"] == tokenizer("A dog.")["input_ids"]


def test_training_is_repeatable() -> None:
    texts, section = [*ENGLISH, *GERMAN] * 5 + words(), VocabularySection(vocab_size=320)
    assert train_vocabulary(texts, section).get_vocab() == train_vocabulary(texts, section).get_vocab()


def test_a_text_with_too_few_pieces_says_how_many() -> None:
    with pytest.raises(ConfigError, match="supports"):
        train_vocabulary(["aa bb", "aa bb"], VocabularySection(vocab_size=5000))


def test_a_tokenizer_of_another_script_is_refused(tmp_path) -> None:
    unigram = train_vocabulary([*ENGLISH] * 30 + words(), VocabularySection(type="unigram", vocab_size=300))
    check_alphabet(unigram, ENGLISH, "en", "tokenizer.path")
    with pytest.raises(ConfigError, match=r"tokenizer.path: .*% of the pieces of ko are unknown.*lacks 간"):
        check_alphabet(unigram, ["나는 학교에 간다"] * 3, "ko", "tokenizer.path")
    of_bytes = train_vocabulary([*ENGLISH] * 30 + words(), VocabularySection(vocab_size=320))
    check_alphabet(of_bytes, [*ENGLISH, *GERMAN], "de", "model.from")  # a few umlauts are two pieces
    with pytest.raises(ConfigError, match=r"model.from: .*% of the pieces of ko are parts of characters.*lacks 간"):
        check_alphabet(of_bytes, ["나는 학교에 간다"] * 3, "ko", "model.from")


def test_a_tokenizer_without_an_end_is_refused(tmp_path) -> None:
    from tests.corpora import tiny_tokenizer

    tiny_tokenizer(64).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no eos token"):
        load_tokenizer(str(tmp_path), "tokenizer.path", role="encoder-decoder")


def made(tokenizer, sources: Sequence[str], references: Sequence[str] | None, **settings) -> TranslationExamples:
    return TranslationExamples(sources, references, tokenizer, seed=1, **{"max_length": 64, **settings})


def test_the_decoder_reads_the_target_one_token_behind(tokenizer) -> None:
    examples = made(tokenizer, ENGLISH, GERMAN)
    batch = examples.collate(examples.examples(0, 0)[[4, 2]])
    source, target = batch.streams["source"], batch.streams["target"]
    for place, number in enumerate((4, 2)):
        theirs, ours = (stream.ids[stream.offsets[place] : stream.offsets[place + 1]] for stream in (source, target))
        wanted = tokenizer(GERMAN[number])["input_ids"]
        following = batch.targets["next_ids"][target.offsets[place] : target.offsets[place + 1]]
        assert theirs.tolist() == tokenizer(ENGLISH[number])["input_ids"]
        assert following.tolist() == wanted
        assert ours.tolist() == [tokenizer.pad_token_id, *wanted[:-1]]
        assert examples.decode(following.tolist()) == GERMAN[number]
    assert batch.counts["target_tokens"] == target.num_tokens
    assert batch.counts["tokens"] == batch.num_tokens == examples.lengths[[4, 2]].sum()


def test_long_sentences_are_cut_or_left_out(tokenizer) -> None:
    sources, references = ["a dog", "a dog " * 40, "b"], ["ein Hund", "x", "ein Hund " * 40]
    cut = made(tokenizer, sources, references, max_length=12)
    assert (cut.num_examples, cut.num_cut) == (3, 2)
    assert max(cut.source.lengths.max(), cut.target.lengths.max()) == 12
    ids, _ = cut.source.take(np.array([1]))
    assert ids[-1] == tokenizer.eos_token_id
    kept = made(tokenizer, sources, references, max_length=12, drop=True)
    assert (kept.num_examples, kept.num_cut) == (1, 2)
    with pytest.raises(InputError, match="all 2 sentence pairs have more than 12 tokens"):
        made(tokenizer, sources[1:], references[1:], max_length=12, drop=True)


def test_sources_without_references_can_be_translated(tokenizer) -> None:
    examples = made(tokenizer, ENGLISH, None)
    assert examples.labels is None
    batch = examples.collate(examples.examples(0, 0)[:3])
    assert batch.streams["target"].ids.tolist() == [tokenizer.pad_token_id] * 3

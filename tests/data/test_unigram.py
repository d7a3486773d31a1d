"""The Unigram tokenizer: deterministic training, a stock class that reloads, exact fast encoding."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import AlbertTokenizer, AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from bertillery.config.section import ConfigError, InputError
from bertillery.data.corpus import CorpusSection
from bertillery.data.prepare import prepare
from bertillery.data.pydocs import _read_topics
from bertillery.data.tokenizer import SPECIALS as BERT_SPECIALS
from bertillery.data.tokenizer import TokenizerSection, WordEncoder, starts_of_words
from bertillery.data.unigram import SPECIALS, SYMBOLS, _runs, train_unigram
from bertillery.models.load import load_tokenizer
from tests.corpora import korean_text, unspaced_text, write_text
from tests.data.test_tokenizer import TRICKY, encoded, random_texts, reference

KOREAN = [" ".join(document) for document in korean_text(5)]


def section(vocab_size: int = 2000, **more: Any) -> TokenizerSection:
    return TokenizerSection(type="unigram", vocab_size=vocab_size, **more)


def model_of(tokenizer: PreTrainedTokenizerBase) -> list[list[Any]]:
    return json.loads(cast(Any, tokenizer).backend_tokenizer.to_str())["model"]["vocab"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [paragraph for topic in _read_topics() for paragraph in topic]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    return train_unigram([*texts, *TRICKY, *TRICKY], section())


def test_vocabulary_has_the_size_asked_and_the_specials_first(tokenizer: PreTrainedTokenizerBase) -> None:
    assert sorted(tokenizer.get_vocab().values()) == list(range(2000))
    assert tokenizer.convert_ids_to_tokens(list(range(13))) == [*SPECIALS, *SYMBOLS]
    ids = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert [*ids, tokenizer.mask_token_id] == [0, 1, 2, 3, 4]


def test_training_is_the_same_in_other_processes_and_another_order(texts: list[str], tmp_path: Path) -> None:
    """Pieces, their order and their scores."""
    (tmp_path / "texts.json").write_text(json.dumps(texts[::-1]))
    script = (
        "import json, sys; from bertillery.data.unigram import *\n"
        "tokenizer = train_unigram(json.load(open(sys.argv[1])), TokenizerSection(vocab_size=1500))\n"
        "print(json.dumps(json.loads(tokenizer.backend_tokenizer.to_str())['model']['vocab']))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "texts.json")]
    hashes = {hashlib.sha256(json.dumps(model_of(train_unigram(texts, section(1500)))).encode()).hexdigest()}
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        root = Path(__file__).parents[2]
        said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, env=environment).stdout
        hashes.add(hashlib.sha256(said.strip().encode()).hexdigest())
    assert len(hashes) == 1


def test_it_cuts_english_into_words_and_suffixes(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.tokenize("The statement") == ["▁the", "▁statement"]
    assert tokenizer.tokenize("(x)-y.")[:3] == ["▁", "(", "x"]
    pieces = sum(map(len, reference(tokenizer, texts)))
    assert 1.2 < pieces / sum(len(text.split()) for text in texts) < 1.8


def test_pieces_mix_neither_scripts_nor_digits_nor_symbols(tokenizer: PreTrainedTokenizerBase) -> None:
    for piece in tokenizer.convert_ids_to_tokens(list(range(13, 2000))):
        body = piece.removeprefix("▁")
        kinds = {"digit" if c.isdigit() else "letter" if c.isalpha() else "mark" for c in body}
        assert len(kinds) <= 1 or not body.isascii(), piece
        assert len(body) == 1 or not set(body) & set(SYMBOLS), piece


def test_saving_and_loading_gives_the_same_tokenizer_with_segments(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        assert isinstance(loaded, AlbertTokenizer)
        assert loaded.model_max_length == 512
        assert model_of(loaded) == model_of(tokenizer)
        pair = loaded("The [MASK].", "Next one.")
        assert pair.data == tokenizer("The [MASK].", "Next one.").data
        assert pair["token_type_ids"][0] == 0
        assert pair["token_type_ids"][-1] == 1


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_encoder_equals_the_tokenizer(texts: list[str], lowercase: bool) -> None:
    tokenizer = train_unigram([*texts, *KOREAN, *TRICKY, *TRICKY], section(lowercase=lowercase))
    encoder = WordEncoder(tokenizer)
    assert encoder._words is not None
    # Of a special token that is spelt out the library's Unigram model makes the token, whatever it is asked for.
    ordinary = [text for text in TRICKY if not any(special in text for special in SPECIALS)]
    for batch in (ordinary, KOREAN, random_texts(1000), texts, texts):
        assert encoded(encoder, batch) == reference(tokenizer, batch)
    spelt = encoded(encoder, [f"a {special}" for special in SPECIALS] + TRICKY)
    control = {*range(len(SPECIALS))} - {tokenizer.unk_token_id}
    assert not control & {number for ids in spelt for number in ids}


def test_word_encoder_hands_over_where_a_word_is_not_cut_alone(texts: list[str]) -> None:
    vocabulary = [(piece, score) for piece, score in model_of(train_unigram(texts, section()))]
    tokenizer = AlbertTokenizer(vocab=vocabulary, add_prefix_space=False)
    encoder = WordEncoder(tokenizer)
    assert encoder._words is None
    assert encoded(encoder, texts[:100]) == reference(tokenizer, texts[:100])


def test_a_vocabulary_the_corpus_cannot_fill_is_an_error_that_says_how_large_it_may_be(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"asked 30000 pieces, the corpus supports \d+; set tokenizer") as error:
        train_unigram(texts[:20], section(30_000))
    supported = int(str(error.value).rsplit(" or less", 1)[0].rsplit(" ", 1)[1])
    assert len(train_unigram(texts[:20], section(supported)).get_vocab()) == supported


def test_starts_of_words() -> None:
    pieces = ["▁the", "▁", "ing", "s", ".", "-", "3", "2a", "한", "ü", "n't", "Ed"]
    starts = [True, True, False, False, True, True, True, True, True, True, True, False]
    unigram = AlbertTokenizer(vocab=[(piece, -1.0) for piece in [*SPECIALS, *pieces]])
    assert starts_of_words(unigram).tolist() == [True, True, False, False, False, *starts]
    wordpiece = BertTokenizer(vocab={piece: i for i, piece in enumerate([*BERT_SPECIALS, "the", "##ing", "▁", "3"])})
    assert starts_of_words(wordpiece).tolist() == [True] * 5 + [True, False, True, True]


def test_a_corpus_is_prepared_with_it(tmp_path: Path) -> None:
    data = CorpusSection(path=[str(write_text(tmp_path / "a.txt"))], holdout=0.2)
    first = prepare(data, section(150), tmp_path / "one")
    second = prepare(data, section(150), tmp_path / "two")
    assert isinstance(first.tokenizer(), AlbertTokenizer)
    assert first.manifest["files"] == second.manifest["files"]
    assert first.unigrams[1] == 0, "no unknown tokens"


def test_text_without_spaces_is_cut_into_runs_of_a_script() -> None:
    texts = unspaced_text(250)
    tokenizer = train_unigram(texts, section(2500))
    ids = [token for encoded in tokenizer(texts, add_special_tokens=False)["input_ids"] for token in encoded]
    assert ids.count(SPECIALS.index("<unk>")) / len(ids) < 0.03
    pieces = [piece.removeprefix("▁") for piece in tokenizer.get_vocab()]
    assert sum(len(piece) > 1 and piece[0] >= "\u4e00" for piece in pieces) > 1200
    assert not [piece for piece in pieces if len(piece) > 1 and "。" in piece]
    assert model_of(tokenizer) == model_of(train_unigram(texts[::-1], section(2500)))
    word = "▁" + "漢字" * 40 + "、かな" + "3" * 5
    runs = [word[:64], word[64:81], "、", "かな", "33333"]
    assert _runs(word) == runs
    assert (_runs("▁" + "漢" * 63), _runs("▁" + "a/" * 99)) == (["▁" + "漢" * 63], ["▁" + "a/" * 99])


def test_text_of_nothing_but_overlong_words_is_refused() -> None:
    with pytest.raises(InputError, match=r"no word of less than 64 characters; check data.path"):
        train_unigram(["0123456789abcdef" * 10], section())

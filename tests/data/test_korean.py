"""Hangul: thousands of syllables that are letters of their own, and that Unicode takes apart into a few dozen parts."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import ConfigError
from bertillery.data.corpus import CorpusSection
from bertillery.data.prepare import prepare
from bertillery.data.tokenizer import TokenizerSection, WordEncoder, train_wordpiece
from bertillery.data.unigram import train_unigram
from bertillery.engine.objective import objective_module
from tests.corpora import korean_text
from tests.data.test_tokenizer import encoded, reference
from tests.pretrain.test_objectives import OBJECTIVES, STILL

TRAIN = {"wordpiece": train_wordpiece, "unigram": train_unigram}
TEXTS = [" ".join(document) for document in korean_text(30)]
CASES = [(kind, lowercase) for kind in TRAIN for lowercase in (True, False)]


def train(kind: Any, vocab_size: int, lowercase: bool, texts: list[str] = TEXTS) -> PreTrainedTokenizerBase:
    return TRAIN[kind](texts, TokenizerSection(type=kind, vocab_size=vocab_size, lowercase=lowercase))


def supported(kind: str, asked: int, lowercase: bool, texts: list[str] = TEXTS) -> int:
    """What the error says that the texts support."""
    with pytest.raises(ConfigError, match=rf"asked {asked} pieces, the corpus supports \d+; set .* or less") as error:
        train(kind, asked, lowercase, texts)
    return int(str(error.value).rsplit(" or less", 1)[0].rsplit(" ", 1)[1])


@pytest.mark.parametrize(("kind", "lowercase"), CASES)
def test_text_comes_back(kind: str, lowercase: bool) -> None:
    """Cased, syllables are whole in text and vocabulary; uncased they are in parts, to Unicode the same text."""
    tokenizer = train(kind, supported(kind, 30_000, lowercase), lowercase)
    assert encoded(WordEncoder(tokenizer), TEXTS) == reference(tokenizer, TEXTS)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        decoded = str(tokenizer.decode(ids)).replace(" .", ".")
        assert unicodedata.normalize("NFC", decoded) == text
        assert (decoded == text) != lowercase
    in_parts = [piece for piece in tokenizer.get_vocab() if any("\u1100" <= c <= "\u11ff" for c in piece)]
    assert bool(in_parts) == lowercase


@pytest.mark.parametrize(("kind", "lowercase"), CASES)
def test_every_size_up_to_the_one_advised_can_be_trained(kind: str, lowercase: bool) -> None:
    """Half of a small vocabulary is for more than characters, unless so many characters leave no more than that."""
    most = supported(kind, 30_000, lowercase)
    for size in (most, most - 1, most - 7, most // 2, 64):
        assert len(train(kind, size, lowercase).get_vocab()) == size
    assert supported(kind, most + 1, lowercase) == most


@pytest.mark.parametrize("kind", TRAIN)
def test_more_syllables_than_a_small_vocabulary_has_room_for(kind: str) -> None:
    """1,500 of them, each there once, so that no two meet twice and all pieces are characters."""
    places = np.random.default_rng(0).choice(11172, (50, 10, 3), replace=False)
    texts = [" ".join("".join(chr(0xAC00 + place) for place in word) for word in text) for text in places]
    most = supported(kind, 30_000, False, texts)
    for size in (most, most - 1, most - 2, most // 3):
        assert len(train(kind, size, False, texts).get_vocab()) == size


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The prepared corpus of each kind of tokenizer, made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("korean"), {}
    text = "\n\n".join(" ".join(document) for document in korean_text(60))
    Path(folder / "text.txt").write_text(text, encoding="utf-8")
    data = CorpusSection.model_validate({"path": str(folder / "text.txt"), "holdout": 0.2, "language": "en"})

    def corpus(kind: Any, lowercase: bool) -> Any:
        if (kind, lowercase) not in made:
            causal = kind == "byte_bpe"
            section = TokenizerSection(type=kind, vocab_size=300 if causal else 200, lowercase=lowercase)
            read = data.model_copy(update={"units": "documents"}) if causal else data
            made[kind, lowercase] = prepare(read, section, folder / "cache", 1)
        return made[kind, lowercase]

    return corpus


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_reads_korean(name: str, lowercase: bool, corpora: Any) -> None:
    """From the text to the terms of a batch; the example that is shown is in syllables."""
    kind = objective_module("pretrain.objectives", {"type": name})
    corpus = corpora({"albert": "unigram", "causal_lm": "byte_bpe"}.get(name, "wordpiece"), lowercase)
    tokenizer = corpus.tokenizer()
    source = kind.source(kind.Config(), corpus.train, tokenizer, sequence_length=64, seed=1)
    batch = source.collate(source.examples(0, 0)[:8])
    shown = source.show(batch, tokenizer)
    words = {word.strip(".") for text in korean_text(60) for sentence in text for word in sentence.split()}
    assert len(words & set(shown.replace(".", "").split())) > 3
    terms = kind.build(kind.Config(), STILL, tokenizer)(batch)
    assert all(torch.isfinite(term.total).all() for term in terms.values())

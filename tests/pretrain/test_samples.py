"""Words hidden in held-out sentences, whatever the text and the tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import BertForMaskedLM, BertTokenizer

import pretrain.samples
from bertillery.config.section import ConfigError
from bertillery.data.prepared import TokenArrays
from pretrain.model import ModelSection, bert_config
from pretrain.samples import fill_masks
from tests.corpora import SPECIALS

SIZES = ModelSection(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, max_position_embeddings=64)

WORDS = ["a", "river", "opens", "the", "old", "market"]
TOKENIZER = BertTokenizer(vocab={piece: number for number, piece in enumerate([*SPECIALS, *WORDS])})


@pytest.fixture
def export(tmp_path: Path) -> Path:
    BertForMaskedLM(bert_config(SIZES, TOKENIZER)).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


def document(*lengths: int) -> TokenArrays:
    """One of sentences of these lengths, of all words in turn."""
    bounds = np.cumsum([0, *lengths])
    ids = np.resize(np.array([TOKENIZER.convert_tokens_to_ids(word) for word in WORDS], np.uint16), bounds[-1])
    return TokenArrays(ids, bounds, np.array([0, len(lengths)]))


@pytest.mark.parametrize(("lengths", "shown"), [((3, 10), 10), ((200,), 32), ((2, 3), 0)])
def test_long_sentences_are_cut_and_short_ones_passed_over(export: Path, lengths: tuple[int, ...], shown: int) -> None:
    rows = fill_masks(export, document(*lengths))
    assert len(rows) == bool(shown)
    for row in rows:
        words = row["sentence"].split()
        assert len(words) == shown
        assert abs(2 * words.index("[MASK]") - shown) <= 2
        assert row["hidden"].isalpha()


def test_a_tokenizer_without_marks_of_words_has_samples_too(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: object) -> np.ndarray:
        raise ConfigError("its pieces do not mark words")

    monkeypatch.setattr(pretrain.samples, "starts_of_words", refuses)
    assert len(fill_masks(export, document(10))) == 1

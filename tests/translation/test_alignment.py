"""Pictures of the attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bertillery.models.families.rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from tests.translation.models import transformer
from translation.alignment import draw_alignments
from translation.examples import TranslationExamples
from translation.vocabulary import VocabularySection, train_vocabulary

TEXTS = ["a dog", "the cat runs", "a cat"]


@pytest.fixture(scope="module")
def examples() -> TranslationExamples:
    tokenizer = train_vocabulary(TEXTS * 9, VocabularySection(vocab_size=262))
    return TranslationExamples(TEXTS[:2], TEXTS[1:], tokenizer, max_length=32, seed=0)


def test_heads_are_drawn_without_dropout(examples: TranslationExamples, tmp_path: Path) -> None:
    """A picture of the layers and one of the heads, the same in training, which goes on."""
    model: Any = transformer("post", vocab_size=262, dropout=0.5).train()
    pictures = draw_alignments(model, examples, tmp_path)
    assert [path.name for path in pictures] == ["alignments.png", "heads.png"]
    first = [path.read_bytes() for path in pictures]
    assert [path.read_bytes() for path in draw_alignments(model, examples, tmp_path)] == first
    assert model.training


def test_one_head_is_one_picture_and_no_attention_none(examples: TranslationExamples, tmp_path: Path) -> None:
    for attention, names in (("general", ["alignments.png"]), ("none", [])):
        sizes = {"vocab_size": 262, "embedding_size": 8, "hidden_size": 8, "encoder_hidden_size": 8}
        model = RnnSeq2SeqForConditionalGeneration(RnnSeq2SeqConfig(**sizes, attention=attention))
        assert [path.name for path in draw_alignments(model, examples, tmp_path)] == names

"""How an example is shown before training."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
from transformers import AlbertTokenizer, BertTokenizer

from bertillery.data.unigram import SPECIALS as UNIGRAM
from bertillery.engine.batch import PackedBatch, pack
from pretrain.examples import show_example
from pretrain.objectives.bert import LABEL
from tests.corpora import SPECIALS


def batch(tokenizer: Any, tokens: list[str], masked: dict[int, str]) -> PackedBatch:
    """One example of these tokens, of which some stand where others were."""
    ids = np.array(tokenizer.convert_tokens_to_ids(tokens))
    assert tokenizer.unk_token_id not in ids
    targets = {
        "masked_positions": np.array(list(masked)),
        "masked_ids": np.array(tokenizer.convert_tokens_to_ids(list(masked.values()))),
        "pair_labels": np.array([0]),
    }
    return pack(ids, np.zeros_like(ids), np.array([len(ids)]), targets=targets, counts={})


def test_wordpieces_are_joined_to_words() -> None:
    words = ["the", "play", "##ing", "##s", "of", ".", "▁"]  # the last is a character of some texts
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate([*SPECIALS, *words])})
    tokens = ["[CLS]", "##s", "the", "play", "##ing", "##s", "[MASK]", "##s", "of", "the", ".", "[SEP]"]
    shown = show_example(batch(tokenizer, tokens, {6: "play", 8: "of", 9: "##ing"}), tokenizer, LABEL)
    assert shown == (
        "  [CLS] ##s the playings [MASK]<-play ##s of<-kept the<-##ing . [SEP]\n"
        "  12 tokens, 3 predicted\n  label: IsNext"
    )


def test_unigram_pieces_are_joined_in_the_same_way() -> None:
    pieces = ["▁the", "▁play", "ing", "s", "▁", "(", "▁of", "."]
    tokenizer = AlbertTokenizer(vocab=[(piece, 0.0) for piece in [*UNIGRAM, *pieces]])
    tokens = ["[CLS]", "s", "▁the", "▁play", "ing", "s", "[MASK]", "s", "▁of", "▁the", "▁", "(", ".", "▁", "[SEP]"]
    shown = show_example(batch(tokenizer, tokens, {6: "▁play", 8: "▁of", 9: "ing"}), tokenizer)
    assert shown.splitlines()[0] == "  [CLS] ##s the playings [MASK]<-play ##s of<-kept the<-##ing (. ▁ [SEP]"


def test_hangul_in_parts_is_shown_in_syllables() -> None:
    parts = unicodedata.normalize("NFD", "한글")
    pieces = [parts[:2], f"##{parts[2:]}"]
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate([*SPECIALS, *pieces])})
    assert show_example(batch(tokenizer, ["[CLS]", *pieces], {0: "[CLS]"}), tokenizer).startswith("  [CLS]<-kept ")
    assert show_example(batch(tokenizer, ["[CLS]", *pieces, "[SEP]"], {3: "[SEP]"}), tokenizer).startswith(
        "  [CLS] 한글 "
    )

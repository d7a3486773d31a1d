from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest
from transformers import AlbertTokenizer, BertTokenizer

from bertillery.data.unigram import SPECIALS as UNIGRAM
from bertillery.engine.batch import PackedBatch, pack
from pretrain.report import show_example, without_context
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
    shown = show_example(batch(tokenizer, tokens, {6: "play", 8: "of", 9: "##ing"}), tokenizer)
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


def test_what_is_known_without_context() -> None:
    """Against the expectation written out, for BERT's 80/10/10 and ELECTRA's 85/15; and no other belief does better."""
    rng = np.random.default_rng(0)
    unigrams = np.append(0, 1_000_000 // np.arange(1, 400))  # 0 is [MASK]
    share = (unigrams + 1) / (unigrams + 1).sum()
    labels = rng.choice(400, 400_000, p=share)
    draw = rng.random(len(labels))
    entropy = -(share * np.log(share)).sum()

    seen = np.where(draw < 0.8, 0, np.where(draw < 0.9, labels, rng.integers(1, 400, len(labels))))
    loss, accuracy, sampled = without_context(labels, seen, unigrams, mask_id=0)
    visible = seen != 0
    copied = (seen == labels)[visible].mean()
    right = share[labels] * (1 - copied) + copied * (seen == labels)
    wanted = 0.8 * entropy - 0.2 * np.log(right[visible]).mean()
    assert loss == pytest.approx(wanted, abs=1e-2)
    assert accuracy == pytest.approx(0.8 * share.max() + 0.2 * max(copied, share.max()), abs=1e-2)
    assert sampled == pytest.approx(0.8 * (share**2).sum() + 0.2 * right[visible].mean(), abs=1e-2)
    for other in (copied - 0.05, copied + 0.05):
        worse = share[labels] * (1 - other) + other * (seen == labels)
        assert -np.log(worse[visible]).mean() > -np.log(right[visible]).mean()

    seen = np.where(draw < 0.85, 0, labels)
    loss, accuracy, sampled = without_context(labels, seen, unigrams, mask_id=0)
    assert loss == pytest.approx(0.85 * entropy, abs=1e-2)
    assert accuracy == pytest.approx(0.85 * share.max() + 0.15, abs=1e-2)
    assert sampled == pytest.approx(0.85 * (share**2).sum() + 0.15, abs=1e-2)

    loss, accuracy, _ = without_context(labels, np.zeros_like(labels), unigrams, mask_id=0)
    assert (loss, accuracy) == (pytest.approx(entropy, abs=1e-2), pytest.approx(share.max(), abs=1e-2))

"""Texts as packed examples: what the model sees is what the tokenizer of its family would have made."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, RobertaTokenizer

from bertillery.config.section import InputError
from finetune.examples import TextExamples, truncated
from tests.corpora import tiny_tokenizer
from tests.finetune.tasks import sentences


def roberta_like() -> PreTrainedTokenizerBase:
    """Two separators between the texts and no token types."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "w", *"0123456789", "Ġ", "Ġw"]
    return RobertaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("Ġ", "w")])


@pytest.mark.parametrize("make", [tiny_tokenizer, roberta_like])
@pytest.mark.parametrize("num_texts", [1, 2])
def test_examples_are_the_tokenizers_own(make: object, num_texts: int) -> None:
    tokenizer: PreTrainedTokenizerFast = make()  # type: ignore[operator]
    columns = tuple(sentences(20, seed) for seed in range(num_texts))
    source = TextExamples(columns, np.arange(20), tokenizer, max_length=512, seed=1)
    rows = source.examples(0, 0)
    batch = source.collate(rows[[3, 0, 11]])
    assert batch.targets["labels"].tolist() == [3, 0, 11]
    for place, index in enumerate((3, 0, 11)):
        start, end = batch.input.offsets[place : place + 2].tolist()
        wanted = tokenizer(*(column[index] for column in columns), return_token_type_ids=True)
        assert batch.input.ids[start:end].tolist() == wanted["input_ids"]
        assert batch.input.token_type_ids[start:end].tolist() == wanted["token_type_ids"]


def test_the_longer_text_of_a_pair_loses_its_end() -> None:
    """Against the loop of BERT's ``_truncate_seq_pair``, for all lengths up to 12 and all rooms."""
    for room in range(2, 24):
        for a in range(13):
            for b in range(13):
                first, second = a, b
                while first + second > room:
                    if first > second:
                        first -= 1
                    else:
                        second -= 1
                kept = truncated([np.array([a]), np.array([b])], room)
                assert [int(x[0]) for x in kept] == [first, second], (a, b, room)


def test_long_examples_are_cut_and_counted() -> None:
    tokenizer = tiny_tokenizer()
    texts = (["w1 " * 30, "w1 w2"], ["w4 " * 9, "w4"])
    source = TextExamples(texts, None, tokenizer, max_length=16, seed=1)
    rows = source.examples(0, 0)
    assert rows["length"].tolist() == [16, 6]
    assert source.num_cut == 1
    batch = source.collate(rows)
    ids, types = batch.input.ids, batch.input.token_type_ids
    assert tokenizer.decode(ids[:16]) == "[CLS] " + "w1 " * 7 + "[SEP] " + "w4 " * 6 + "[SEP]"
    assert types[:16].tolist() == [0] * 9 + [1] * 7
    with pytest.raises(InputError, match="leaves no room"):
        TextExamples(texts, None, tokenizer, max_length=4, seed=1)


def test_both_orders() -> None:
    tokenizer = tiny_tokenizer()
    texts = (sentences(7, 0), sentences(7, 1))
    source = TextExamples(texts, np.arange(7), tokenizer, max_length=64, seed=1, both_orders=True)
    turned = TextExamples(texts[::-1], np.arange(7), tokenizer, max_length=64, seed=1)
    rows = source.examples(0, 0)
    assert len(rows) == source.num_examples == 14
    same, other = source.collate(rows[7:]), turned.collate(turned.examples(0, 0))
    assert same.input.ids.tolist() == other.input.ids.tolist()
    assert same.input.token_type_ids.tolist() == other.input.token_type_ids.tolist()
    assert same.targets["labels"].tolist() == other.targets["labels"].tolist()
    assert len({*rows["key"].tolist()}) == 14

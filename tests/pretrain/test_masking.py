from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bertillery.config.section import ConfigError
from bertillery.engine.rng import key
from pretrain import masking
from pretrain.examples import FlatExamples
from pretrain.masking import Masked, Masking, MaskingSection, mask_tokens, num_predictions
from pretrain.objectives import mlm
from tests.corpora import Tokens, tiny_tokenizer
from tests.models.test_frame import KINDS, WORDS

VOCAB = 30522


def flat(lengths: list[int] | np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Random ids with [CLS] 2 and [SEP] 3 at the ends of each example: ids, lengths, keys, candidates."""
    lengths = np.asarray(lengths)
    ids = np.random.default_rng(seed).integers(5, VOCAB, lengths.sum())
    ends = np.cumsum(lengths)
    ids[ends - lengths], ids[ends - 1] = 2, 3
    return ids, lengths, key(7, seed, np.arange(len(lengths))), (ids > 3)


def mask(lengths: list[int] | np.ndarray, *, maximum: int, rate: float = 0.15, seed: int = 0, **more: object) -> Masked:
    ids, lengths, keys, candidates = flat(lengths, seed)
    return mask_tokens(
        ids,
        lengths,
        keys,
        candidates,
        rate=rate,
        maximum=maximum,
        mask_id=4,
        vocab_size=VOCAB,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("length", "maximum", "expected"), [(128, 20, 19), (512, 77, 77), (512, 20, 20), (3, 20, 1)])
def test_exact_counts(length: int, maximum: int, expected: int) -> None:
    masked = mask([length] * 50, maximum=maximum)
    assert len(masked.positions) == 50 * expected
    per_example = np.bincount(masked.positions // length, minlength=50)
    assert (per_example == expected).all()


def test_counts_round_half_to_even() -> None:
    np.testing.assert_array_equal(num_predictions(np.array([10, 30, 50]), 0.15, 99), [2, 4, 8])  # 1.5, 4.5, 7.5


def test_what_replaces_a_masked_token() -> None:
    """80/10/10 of 190,000, the random share hits the original about once in a vocabulary."""
    ids, *_ = flat([128] * 10_000)
    masked = mask([128] * 10_000, maximum=20)
    assert len(masked.positions) == 190_000
    now = masked.input_ids[masked.positions]
    np.testing.assert_array_equal(masked.labels, ids[masked.positions])
    assert (now == 4).mean() == pytest.approx(0.8, abs=0.003)
    assert (now == masked.labels).mean() == pytest.approx(0.1, abs=0.003)
    other = now[(now != 4) & (now != masked.labels)]
    assert len(other) / len(now) == pytest.approx(0.1, abs=0.003)
    assert other.mean() == pytest.approx(VOCAB / 2, rel=0.02)
    untouched = np.delete(masked.input_ids, masked.positions)
    np.testing.assert_array_equal(untouched, np.delete(ids, masked.positions))


def test_random_words_are_uniform_over_the_whole_vocabulary() -> None:
    """[PAD] and the other special rows included, as in the original."""
    ids, lengths, keys, candidates = flat([128] * 5000)
    ids = np.where(candidates, 5 + ids % 15, ids)
    masked = mask_tokens(ids, lengths, keys, candidates, rate=0.15, maximum=20, mask_id=4, vocab_size=20)
    now = masked.input_ids[masked.positions]
    rows = [row for row in range(5) if row != 4]
    share = np.bincount(now, minlength=20)[rows] / len(now)
    np.testing.assert_allclose(share, 0.1 / 20, atol=4 * np.sqrt(0.005 / len(now)))


def test_positions_are_uniform_ascending_and_never_special() -> None:
    ids, *_ = flat([40] * 20_000)
    masked = mask([40] * 20_000, maximum=20)
    assert (np.diff(masked.positions) > 0).all()
    assert (ids[masked.positions] > 3).all()
    share = np.bincount(masked.positions % 40, minlength=40)[1:-1] / 20_000
    assert np.abs(share - 6 / 38).max() < 4 * np.sqrt(6 / 38 * (1 - 6 / 38) / 20_000)


def test_masks_do_not_depend_on_the_batch() -> None:
    ids, lengths, keys, candidates = flat([20, 60, 33, 128])
    settings = {"rate": 0.15, "maximum": 20, "mask_id": 4, "vocab_size": VOCAB}
    whole = mask_tokens(ids, lengths, keys, candidates, **settings)
    start = 0
    for i, length in enumerate(lengths):
        part = slice(start, start + length)
        alone = mask_tokens(ids[part], lengths[i : i + 1], keys[i : i + 1], candidates[part], **settings)
        np.testing.assert_array_equal(alone.input_ids, whole.input_ids[part])
        start += length


def test_whole_words() -> None:
    """Chosen words are whole, counts never exceeded, and 80/10/10 is still drawn per piece."""
    lengths = [128] * 2000
    ids, *_ = flat(lengths)
    starts_word = (ids % 3 != 0) | (ids <= 3)
    masked = mask(lengths, maximum=20, starts_word=starts_word)
    chosen = np.zeros(len(ids), bool)
    chosen[masked.positions] = True
    continues = ~starts_word & (np.roll(ids, 1) != 2)  # after [CLS] a piece opens a word
    inside = continues & (np.roll(ids, 1) != 3) & (ids > 3)
    np.testing.assert_array_equal(chosen[inside], np.roll(chosen, 1)[inside])
    counts = np.bincount(masked.positions // 128, minlength=2000)
    assert counts.max() == 19
    assert (counts == 19).mean() > 0.99  # a word of one piece nearly always fills the rest
    now = masked.input_ids[masked.positions]
    assert (now == 4).mean() == pytest.approx(0.8, abs=3 * np.sqrt(0.16 / len(now)))


def test_rate_can_be_raised() -> None:
    masked = mask([128] * 10, maximum=39, rate=0.3)
    assert len(masked.positions) == 10 * 38


@pytest.mark.parametrize("kind", KINDS)
def test_whole_words_with_every_kind_of_tokenizer(kind: str) -> None:
    """What is predicted of a word is all of it: words of one text each, most of them of several tokens."""
    tokenizer = KINDS[kind]()
    rng = np.random.default_rng(0)
    texts = [" ".join(f"{word}s" for word in rng.choice(WORDS, 20)) for _ in range(40)]
    encoded = tokenizer([f" {text}" for text in texts], add_special_tokens=False, return_offsets_mapping=True)
    ids = np.concatenate(encoded["input_ids"])
    ends = np.append(0, np.cumsum([len(each) for each in encoded["input_ids"]]))
    source = mlm.source(
        mlm.Config(masking=MaskingSection(rate=0.3, whole_words=True)),
        Tokens(ids, ends, np.arange(len(ends))),
        tokenizer,
        sequence_length=128,
        seed=0,
    )
    rows = source.examples(0, 0)
    batch = source.collate(rows)
    masked = np.zeros(len(batch.input.ids), bool)
    masked[batch.targets["masked_positions"].numpy()] = True
    several = 0
    for row, mask in zip(rows, np.split(masked, batch.input.offsets[1:-1].numpy()), strict=True):
        text = int(np.searchsorted(ends, row["a_start"]))
        spaces = np.cumsum([character == " " for character in f" {texts[text]}"])
        words = np.array([spaces[end - 1] for _, end in encoded["offset_mapping"][text]])
        chosen = mask[1:-1]
        assert len(chosen) == len(words)
        for word in np.unique(words):
            of_word = chosen[words == word]
            assert of_word.all() or not of_word.any()
            several += int(of_word.all() and len(of_word) > 1)
    assert several > 40


def test_a_vocabulary_that_marks_no_words_is_refused() -> None:
    vocabulary = {piece: number for number, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    with pytest.raises(ConfigError, match=r"whole_words: the pieces of this BPE tokenizer do not mark .*=false"):
        Masking(MaskingSection(whole_words=True), tokenizer, 128)
    Masking(MaskingSection(), tokenizer, 128)
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    marked = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    Masking(MaskingSection(whole_words=True), marked, 128)


def test_a_batch_does_not_read_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading 30,000 pieces takes longer than masking and packing a batch."""
    tokenizer = tiny_tokenizer(VOCAB)
    masking = Masking(MaskingSection(), tokenizer, 32)
    ids, lengths, keys, maskable = flat([20, 30])
    examples = FlatExamples(ids, np.zeros_like(ids), lengths, ~maskable, keys, np.zeros(2, np.int64))
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda _: pytest.fail("read the vocabulary"))
    assert masking(examples).counts["masked"] > 0


@pytest.mark.parametrize("lengths", [[5, 5, 5], [3, 0, 7, 1], [1] * 40 + [400], [0, 0], []])
def test_units_are_ranked_within_their_examples(lengths: list[int]) -> None:
    """However they are sorted; equal places in the order keep the order of the text."""
    examples = np.repeat(np.arange(len(lengths)), lengths)
    order = np.random.default_rng(1).integers(4, size=len(examples)) / 4
    first = np.searchsorted(examples, np.arange(len(lengths)))
    ranked = masking._ranked(examples, order, first, np.array(lengths, dtype=np.int64))
    assert ranked.tolist() == sorted(range(len(examples)), key=lambda unit: (examples[unit], order[unit]))

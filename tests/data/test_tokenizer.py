from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from tokenizers.normalizers import BertNormalizer
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from bertillery.config.section import ConfigError
from bertillery.data import tokenizer as module
from bertillery.data.encode import Encoder
from bertillery.data.pydocs import _read_topics
from bertillery.data.tokenizer import SPECIALS, TokenizerSection, WordEncoder, starts_of_words, train_wordpiece
from bertillery.models.load import load_tokenizer
from tests.corpora import unspaced_text
from tests.finetune.texts import bytes_

DATA = Path(os.environ.get("BERTILLERY_DATA", Path(__file__).parents[2] / "../shared/data"))

TRICKY = [
    "", " ", "  two  spaces ", "\ttabs\tand\nnewlines\r\n", "don't (stop)... e.g. U.S.A.!?",
    "“quotes” — dash – … • § ¶ № ‘x’", "$1,234.56 #hash @at a_b c^d e`f {g} ~h |i\\j",
    "Ünïcödé naïve ÅNGSTRÖM ﬁne ǅ", "İstanbul ΣΑΣ ΣΑΣ. ß ẞ", "東京 は日本の首都。한국어 ไทย", "emoji 👩‍👩‍👧 🇩🇪 ☃️ 𝔘𝔫𝔦 𐐀",
    "a\u0301b e\u0301 \u0301x x \u0301y", "zero\u200bwidth soft\u00adhyphen bom\ufeff",
    "ctrl\x00\x01\x1c\x1f\x7fend \ufffd",
    "nb\u00a0space thin\u2009space line\u2028sep par\u2029sep nel\x85x", "\u1e9b\u0323 \u0f43 \u2126 \u212b \ufb1d",
    "[MASK]", "the [MASK] [CLS]x[SEP]! [UNK][PAD] [mask] [ MASK ] [MASK",
    "x" * 99, "x" * 100, "x" * 101 + ".", "y" * 300 + " z",
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    """Words of every kind of character; a seed, no corpus."""
    rng = random.Random(0)
    ranges = [(32, 127), (32, 127), (0, 0x250), (0x300, 0x600), (0x2000, 0x2100), (0x3000, 0x3100), (0x4E00, 0x4F00)]
    ranges += [(0xA000, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000), (0xE0000, 0xE0200)]
    return [
        " ".join(
            "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(12)))
            for _ in range(rng.randrange(30))
        )
        for _ in range(count)
    ]


def reference(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The tokenizer itself, to which special tokens that are spelt out are text."""
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]  # pyright: ignore


def encoded(encoder: WordEncoder, texts: list[str]) -> list[list[int]]:
    return [np.frombuffer(ids, encoder.dtype).tolist() for ids in encoder.encode_bytes(texts)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [paragraph for topic in _read_topics() for paragraph in topic]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> PreTrainedTokenizerBase:
    return train_wordpiece([*texts, *TRICKY, *TRICKY], TokenizerSection(vocab_size=2000))


def test_vocabulary_has_the_size_asked_and_the_specials_first(tokenizer: PreTrainedTokenizerBase) -> None:
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(2000))
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == SPECIALS
    assert not any(piece in vocabulary for piece in ("##.", "##東", "A"))
    assert [tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token] == SPECIALS[:4]


def test_training_is_the_same_in_another_process_and_another_order(texts: list[str], tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(texts[::-1]))
    script = (
        "import json, sys; from bertillery.data.tokenizer import *\n"
        "vocabulary = train_wordpiece(json.load(open(sys.argv[1])), TokenizerSection(vocab_size=1500)).get_vocab()\n"
        "print(json.dumps(vocabulary, sort_keys=True))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "texts.json")]
    other = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    here = json.dumps(train_wordpiece(texts, TokenizerSection(vocab_size=1500)).get_vocab(), sort_keys=True)
    assert hashlib.sha256(other.strip().encode()).digest() == hashlib.sha256(here.encode()).digest()


def test_a_vocabulary_the_corpus_cannot_fill_is_an_error_that_says_how_large_it_may_be(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"asked 30522 pieces, the corpus supports \d+; set tokenizer") as error:
        train_wordpiece(texts[:50], TokenizerSection())
    supported = int(str(error.value).rsplit(" or less", 1)[0].rsplit(" ", 1)[1])
    assert len(train_wordpiece(texts[:50], TokenizerSection(vocab_size=supported)).get_vocab()) == supported
    with pytest.raises(ConfigError):
        train_wordpiece(texts[:50], TokenizerSection(vocab_size=supported + 1))


def test_a_corpus_too_small_for_any_vocabulary_is_told_so() -> None:
    with pytest.raises(ConfigError, match=r"the corpus supports \d\d; give more text"):
        train_wordpiece(["a few words"], TokenizerSection(vocab_size=64))


def test_a_small_vocabulary_is_exact_in_spite_of_many_characters() -> None:
    rng = random.Random(0)
    letters = [chr(point) for point in range(0x3B1, 0x590) if chr(point).isalpha() and chr(point).islower()]
    many = [" ".join("".join(rng.choices(letters, k=3)) for _ in range(500)) for _ in range(20)]
    assert len(letters) > 100
    assert len(train_wordpiece(many, TokenizerSection(vocab_size=150)).get_vocab()) == 150


def test_cased_keeps_case_and_accents(texts: list[str]) -> None:
    cased = train_wordpiece([*texts, "É" * 5], TokenizerSection(vocab_size=2000, lowercase=False))
    assert "A" in cased.get_vocab()
    assert "É" in cased.get_vocab()
    assert cased.tokenize("The É") == ["The", "É"]


def test_saving_and_loading_gives_the_same_tokenizer(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert isinstance(loaded, BertTokenizer)
    assert loaded.model_max_length == 512
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("The [MASK].", "Next one.").data == tokenizer("The [MASK].", "Next one.").data


def test_loading_what_is_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer.path: .*nowhere: no such folder; give one"):
        load_tokenizer(str(tmp_path / "nowhere"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"no tokenizer could be loaded \(.*HF_HUB_OFFLINE=1; with make, HUB=1"):
        load_tokenizer("no-owner/no-model", "model.from")
    with pytest.raises(ConfigError, match=r"given '.*': no tokenizer could be loaded \((?!no such folder)"):
        load_tokenizer(str(tmp_path))
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no cls, sep, mask, pad token"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_encoder_equals_the_tokenizer(texts: list[str], lowercase: bool) -> None:
    tokenizer = train_wordpiece([*texts, *TRICKY, *TRICKY], TokenizerSection(vocab_size=2000, lowercase=lowercase))
    encoder = WordEncoder(tokenizer)
    assert encoder._words is not None
    for batch in (TRICKY, random_texts(1000), texts, texts):
        assert encoded(encoder, batch) == reference(tokenizer, batch)


def test_word_encoder_stays_exact_when_its_memory_is_full(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CACHED_WORDS", 10)
    encoder = WordEncoder(tokenizer)
    assert encoded(encoder, texts[:300]) == reference(tokenizer, texts[:300])
    assert encoder._words is not None
    assert len(encoder._words) <= 10


@pytest.mark.parametrize(
    "added",
    ["foo", "two words", AddedToken("Foo", normalized=True), AddedToken("b.c", single_word=True, normalized=False)],
)
def test_word_encoder_honours_added_tokens(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, added: str | AddedToken
) -> None:
    tokenizer.save_pretrained(tmp_path)
    changed = load_tokenizer(str(tmp_path))
    changed.add_tokens([added])
    texts = ["a foo b", "xfoox foo. FOO", "two words, two  words", "b.c ab.cd (b.c)", *TRICKY]
    assert encoded(WordEncoder(changed), texts) == reference(changed, texts)


def test_word_encoder_of_another_kind_of_tokenizer_and_of_one_that_truncates(texts: list[str]) -> None:
    backend = Tokenizer(models.BPE(unk_token="<unk>", vocab={"<unk>": 0, "a": 1, "Ġ": 2, "Ġa": 3}, merges=[("Ġ", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel()
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<unk>")
    assert encoded(WordEncoder(tokenizer), texts[:50]) == reference(tokenizer, texts[:50])


def test_ids_beyond_two_bytes() -> None:
    vocabulary = {piece: i for i, piece in enumerate([*SPECIALS, *(f"w{i}" for i in range(70_000))])}
    encoder = WordEncoder(BertTokenizer(vocab=vocabulary))
    assert encoded(encoder, ["w3 w69999"]) == [[8, 70_004]]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real text in {DATA}; set BERTILLERY_DATA")
def test_word_encoder_on_real_text() -> None:
    lines = [line for line in (DATA / "corpus_wiki_en/valid.txt").read_text().splitlines() if line][:6000]
    tokenizer = train_wordpiece(lines, TokenizerSection(vocab_size=8000))
    german = (DATA / "multi30k_en_de/val.de").read_text().splitlines()
    assert encoded(WordEncoder(tokenizer), [*lines, *german]) == reference(tokenizer, [*lines, *german])


def test_an_alphabet_of_more_characters_where_the_text_has_them() -> None:
    texts = unspaced_text(250)
    tokenizer = train_wordpiece(texts, TokenizerSection(vocab_size=1300))
    ids = [token for encoded in tokenizer(texts)["input_ids"] for token in encoded]
    assert ids.count(SPECIALS.index("[UNK]")) / len(ids) < 0.03
    with pytest.raises(ConfigError, match=r"the corpus supports 1[45]\d\d; set"):
        train_wordpiece(texts, TokenizerSection(vocab_size=3000))


def test_characters_that_hardly_occur_are_none_of_an_alphabet() -> None:
    texts = ["the old mill " * 5000, "".join(chr(0x4E00 + number) for number in range(1200)) * 2]
    normalizer = BertNormalizer()
    assert 1150 < len(module._characters(texts, normalizer)) < 1209
    assert len(module._characters([texts[0] * 200, texts[1]], normalizer)) == 1000


def test_sentences_are_read_as_in_one_text_where_a_space_matters(tmp_path: Path) -> None:
    """Otherwise the first word of a sentence would be one with the last of the sentence before."""
    bytes_().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    documents = [(False, ["The old mill. A river stands by.", "Nobody crosses."]), (True, ["The old mill. Any more."])]
    encoded = Encoder(tmp_path, "en")(documents)
    stock = [loaded(" ".join(paragraphs), add_special_tokens=False)["input_ids"] for _, paragraphs in documents]
    assert encoded.ids.tolist() == [*stock[0], *stock[1]]
    assert encoded.sentences.tolist() == [2, 1, 2]
    opens = starts_of_words(loaded)[encoded.ids[np.cumsum(encoded.lengths)[:-1]]]
    assert opens.tolist() == [True, True, False, True]  # but at the beginning of a document

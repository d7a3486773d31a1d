"""What stock code makes of an export is what training did: the same tokens, types and cuts, whatever the tokenizer."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AlbertTokenizer,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    pipeline,
)

from bertillery.config.section import ConfigError
from bertillery.models.encoders import FAMILIES, longest_sequence, sequence_logits
from bertillery.models.export import export_model
from bertillery.models.layers.attention import NAME
from bertillery.models.load import load_tokenizer
from finetune.data.splits import Split
from finetune.examples import TextExamples
from finetune.task_types.tokens import SentenceExamples
from finetune.task_types.windows import read_contexts
from pretrain.objectives import bert, mlm
from tests.corpora import random_tokens, tiny_tokenizer
from tests.models.families import tiny_config

WORDS = ["the", "old", "mill", "stands", "by", "a", "river", "that", "nobody", "crosses", "any", "more"]


def wordpiece() -> PreTrainedTokenizerBase:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", *".,"]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})


def unigram() -> PreTrainedTokenizerBase:
    """As ALBERT's is published: it makes token types, but keeps them to itself."""
    pieces = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    scored = (
        [(piece, 0.0) for piece in pieces]
        + [(f"▁{word}", -5.0) for word in WORDS]
        + [("s", -6.0), (".", -6.0), ("▁", -7.0)]
    )
    return AlbertTokenizer(vocab=scored)


def _byte_level() -> tuple[dict[str, int], Any]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=specials, show_progress=False)
    backend.train_from_iterator([" ".join(WORDS)] * 9, trainer)
    parts = json.loads(backend.to_str())["model"]
    return parts["vocab"], [(a, b) for a, b in parts["merges"]]


def roberta_bpe() -> PreTrainedTokenizerBase:
    """Two separators between the texts, no token types."""
    vocabulary, merges = _byte_level()
    return RobertaTokenizer(vocab=vocabulary, merges=merges)


def framed_bpe(pair: str = "<s>:0 $A:0 </s>:0 $B:1 </s>:1", single: str = "<s> $A </s>") -> PreTrainedTokenizerBase:
    """Byte-level BPE with BERT's frame."""
    vocabulary, merges = _byte_level()
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    ends = [(token, vocabulary[token]) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)
    names = {
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


KINDS = {"wordpiece": wordpiece, "unigram": unigram, "roberta_bpe": roberta_bpe, "framed_bpe": framed_bpe}


@cache
def texts() -> tuple[list[str], list[str]]:
    """Short and long, pairs in which the first, the second or both are too long; as many words as there are tokens."""
    rng = np.random.default_rng(0)
    sizes = [(3, 5), (1, 1), (2000, 2), (2, 300), (300, 301), (12, 9), (40, 40)]
    first, second = ([" ".join(rng.choice(WORDS, size)) for size in column] for column in zip(*sizes, strict=True))
    return first, second


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stock_pipeline_answers_as_we_do(family: str, kind: str, tmp_path: Path) -> None:
    KINDS[kind]().save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    # With 3 special tokens, or 4, an even number of tokens is left for a pair.
    positions = 33 + (kind == "roberta_bpe")
    if FAMILIES[family].positions_after_padding:
        positions += vocabulary["pad_token_id"] + 1
    torch.manual_seed(0)
    config = tiny_config(family, num_labels=3, num_hidden_layers=1, max_position_embeddings=positions, **vocabulary)
    model: Any = AutoModelForSequenceClassification.from_config(config, attn_implementation=NAME).eval()
    folder = export_model(model, tokenizer, tmp_path / "export", card="")
    stock: Any = pipeline("text-classification", str(folder), truncation=True, top_k=None, function_to_apply="none")
    for columns in (texts()[:1], texts()):
        examples = TextExamples(columns, None, tokenizer, max_length=longest_sequence(config), seed=0)
        with torch.inference_mode():
            ours = sequence_logits(model, examples.collate(examples.examples(0, 0)).input).numpy()
        rows = [dict(zip(("text", "text_pair"), row, strict=False)) for row in zip(*columns, strict=True)]
        theirs = [sorted(answer, key=lambda each: each["label"]) for answer in stock(rows)]
        found = np.array([[each["score"] for each in answer] for answer in theirs])
        np.testing.assert_allclose(found, ours, atol=2e-5)
        assert np.ptp(ours, axis=0).min() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_stock_tokenizer_reads_words_as_training_does(kind: str, tmp_path: Path) -> None:
    """Tags of words: both a list of words and running text, whose first word has no space before it."""
    KINDS[kind]().save_pretrained(tmp_path / "tokenizer")
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer"))
    vocabulary = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    model: Any = AutoModelForTokenClassification.from_config(tiny_config("bert", num_labels=3, **vocabulary))
    folder = export_model(model, tokenizer, tmp_path / "export", card="", texts_only=True, spaced=True)
    stock: Any = AutoTokenizer.from_pretrained(folder)
    sentences: list[Any] = [WORDS[:5], WORDS[7:8], [*WORDS] * 9]
    split = Split("test", (sentences,), None, np.arange(len(sentences)))
    examples = SentenceExamples(split, tokenizer, max_length=longest_sequence(model.config), seed=0)
    batch = examples.collate(examples.examples(0, 0))
    ours = [ids.tolist() for ids in batch.input.ids.split(batch.input.offsets.diff().tolist())]
    assert stock(sentences, is_split_into_words=True, truncation=True)["input_ids"] == ours
    assert stock([" ".join(words) for words in sentences], truncation=True)["input_ids"] == ours


def test_an_export_remembers_nothing_of_this_machine(tmp_path: Path) -> None:
    wordpiece().save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True, cache_dir=str(tmp_path))
    model = AutoModelForSequenceClassification.from_config(tiny_config("bert"))
    folder = export_model(model, tokenizer, tmp_path / "export", card="")
    written = (folder / "tokenizer_config.json").read_text() + (folder / "config.json").read_text()
    assert "local" not in written
    assert str(tmp_path) not in written


@pytest.mark.parametrize(
    "make",
    [
        roberta_bpe,
        lambda: framed_bpe(pair="<s> $A </s> $B </s>"),  # no token types
        lambda: framed_bpe(pair="<s>:0 $A:0 </s>:0 $B:1"),
        lambda: framed_bpe(single="$A", pair="$A $B:1"),
    ],
)
def test_pretraining_refuses_a_tokenizer_that_frames_pairs_otherwise(make: Any) -> None:
    tokens = random_tokens(20, vocab_size=50)
    with pytest.raises(ConfigError, match=r"reads texts as .* stock code would read the export otherwise"):
        bert.source(bert.Config(), tokens, make(), sequence_length=32, seed=0)


def test_pretraining_takes_what_frames_texts_as_it_does() -> None:
    tokens = random_tokens(20, vocab_size=50)
    for make in (tiny_tokenizer, unigram, framed_bpe):
        bert.source(bert.Config(), tokens, make(), sequence_length=32, seed=0)
    mlm.source(mlm.Config(), tokens, roberta_bpe(), sequence_length=32, seed=0)
    with pytest.raises(ConfigError, match="<s> before them and </s> behind"):
        TextExamples((["a"],), None, framed_bpe(single="$A"), max_length=8, seed=0)


SPELT = "the [SEP] old[MASK] [PAD] mill <pad>[CLS] <s> </s></s> <unk> <mask> [UNK]"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_that_are_spelt_out_are_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    tokenizer.add_tokens(["river stone"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["[E1]"]})
    examples = TextExamples(([SPELT, "a [E1] river stone"],), None, tokenizer, max_length=512, seed=0)
    batch = examples.collate(examples.examples(0, 0))
    control = {getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad", "mask")}
    first, second = batch.input.ids.split(batch.input.offsets.diff().tolist())
    assert not control & {*first[1:-1].tolist()}
    assert {*tokenizer.convert_tokens_to_ids(["[E1]", "river stone"])} <= {*second.tolist()}


def test_special_tokens_in_a_context_are_text_at_their_place() -> None:
    contexts, _ = read_contexts(["the [SEP] old mill"], wordpiece())
    assert wordpiece().sep_token_id not in contexts.tokens.ids.tolist()
    span = contexts.span(0, len("the [SEP] "), len("old mill"))
    assert span is not None
    assert contexts.text(0, *span) == ("old mill", len("the [SEP] "))

"""Tokenizers of three families that cut words into pieces, and a tiny encoder, made by the tests for themselves."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

WORDS = [
    *("who", "what", "when", "where", "is", "was", "the", "a", "in", "of"),
    *("river", "town", "king", "queen", "built", "ruled", "crossed", "stood", "old", "new", "stone", "gold"),
]
_MARKS = string.ascii_lowercase + string.digits + ".,?!'-"
_NAMES = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}


def wordpiece() -> PreTrainedTokenizerBase:
    """BERT's: letters, and some whole words."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = [*specials, *_MARKS, *(f"##{mark}" for mark in _MARKS), *(word for word in WORDS if len(word) > 1)]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(vocab)})


def bytes_() -> PreTrainedTokenizerBase:
    """RoBERTa's: bytes, without merges; two separators between texts."""
    vocab = [*_NAMES.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(vocab)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return PreTrainedTokenizerFast(tokenizer_object=core, **_NAMES)


def unigram() -> PreTrainedTokenizerBase:
    """ALBERT's: pieces that begin with the space before them."""
    pieces = [*_NAMES.values(), "▁", *_MARKS, *(f"▁{word}" for word in WORDS)]
    core = Tokenizer(models.Unigram([(piece, -1.0 - (len(piece) == 1)) for piece in pieces], unk_id=2))
    core.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("  ", " ")])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, **_NAMES)


TOKENIZERS = {"wordpiece": wordpiece, "bytes": bytes_, "unigram": unigram}


def write_encoder(folder: Path) -> Path:
    """A tiny random BERT without dropout, and its tokenizer."""
    tokenizer = wordpiece()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, initializer_range=0.1, **sizes, **still)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

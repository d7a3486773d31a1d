"""BERT: sizes are the published ones, and corpora without next sentences are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForMaskedLM, BertForPreTraining

from bertillery.config.section import ConfigError
from pretrain.model import ModelSection, bert_config
from pretrain.objectives import bert
from tests.corpora import random_tokens, tiny_tokenizer


def test_bert_refuses_corpora_without_next_sentences() -> None:
    for documents, sentences, said in ((1, (5, 5), "has one document"), (9, (1, 1), "have a single sentence")):
        tokens = random_tokens(documents, sentences=sentences)
        with pytest.raises(ConfigError, match=rf"{said}.*objective.type=mlm"):
            bert.source(bert.Config(), tokens, tiny_tokenizer(), sequence_length=32, seed=1)


def test_published_sizes() -> None:
    """Parameters with both heads, and with the masked-word head alone, to the unit (fidelity, 1.2)."""
    sizes = {
        "tiny": (2, 128, 30522, 4_433_468, 4_416_698),
        "mini": (4, 256, 30522, 11_267_900, 11_201_594),
        "small": (4, 512, 30522, 29_058_876, 28_795_194),
        "medium": (8, 512, 30522, 41_668_412, 41_404_730),
        "base": (12, 768, 30522, 110_106_428, 109_514_298),
        "base cased": (12, 768, 28996, 108_932_934, None),
        "large": (24, 1024, 30522, 336_226_108, 335_174_458),
        "large cased": (24, 1024, 28996, 334_661_958, None),
    }

    class OfSize:
        pad_token_id = 0

        def __init__(self, size: int) -> None:
            self.size = size

        def __len__(self) -> int:
            return self.size

        def get_vocab(self) -> dict[str, int]:
            return {"last": self.size - 1}

    for name, (layers, width, vocabulary, both, masked) in sizes.items():
        section = ModelSection(num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64)
        config = bert_config(section, OfSize(vocabulary))  # type: ignore[arg-type]
        with torch.device("meta"):
            count = sum(p.numel() for p in BertForPreTraining(config).parameters())
            assert count == both, name
            if masked is not None:
                assert sum(p.numel() for p in BertForMaskedLM(config).parameters()) == masked, name

"""Sizes to the unit, sinusoids, and the schedule of the paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bertillery.config.section import ConfigError, validate
from bertillery.engine.optim import OptimSection, learning_rate
from finetune.config import load_config
from translation.architecture import ModelSection, TransformerSection

ROOT = Path(__file__).resolve().parents[2]


class Vocabulary:
    """What a model asks of a tokenizer of a size."""

    pad_token_id, eos_token_id = 0, 1

    def __init__(self, size: int) -> None:
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        return {"last": self.size - 1}


def counted(size: int, **settings: Any) -> tuple[int, int]:
    """Parameters, and those that are trained."""
    with torch.device("meta"):
        section = TransformerSection(initializer="normal", **settings)
        model = section.build(Vocabulary(size))  # pyright: ignore[reportArgumentType]
    every = list(model.parameters())
    return sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)


def sizes(layers: int, width: int, inner: int, heads: int, norm: str = "post") -> dict[str, Any]:
    return {
        "encoder_layers": layers, "decoder_layers": layers, "hidden_size": width, "intermediate_size": inner,
        "num_attention_heads": heads, "norm": norm,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("size", "settings", "total", "trained"),
    [
        (37_000, sizes(6, 512, 2048, 8), 63_606_784, 63_082_496),
        (37_000, sizes(6, 1024, 4096, 16), 215_293_952, 214_245_376),
        (10_000, sizes(6, 512, 1024, 4), 37_187_584, 36_663_296),
        (4_000, sizes(3, 256, 512, 4), 5_239_808, 4_977_664),
        (8_000, sizes(3, 256, 512, 4), 6_263_808, 6_001_664),
        (10_000, sizes(3, 256, 512, 4), 6_775_808, 6_513_664),
        (8_000, sizes(4, 256, 1024, 4), 9_682_944, 9_420_800),
        (4_000, sizes(4, 128, 256, 4), 1_968_128, 1_837_056),
        (8_000, sizes(4, 128, 256, 4), 2_480_128, 2_349_056),
        (10_000, sizes(4, 128, 256, 4), 2_736_128, 2_605_056),
        (8_000, sizes(4, 128, 256, 4, "pre"), 2_480_640, 2_349_568),
    ],
)
def test_parameters(size: int, settings: dict[str, Any], total: int, trained: int) -> None:
    assert counted(size, **settings) == (total, trained)


@pytest.mark.parametrize(
    ("name", "more", "total"),
    [
        ("transformer_base", (), 63_606_784),
        ("transformer_big", (), 215_293_952),
        ("transformer_iwslt", (), 37_187_584),
        ("transformer_small", (), 6_263_808),
        ("transformer_small", ("tokenizer.vocab_size=10_000",), 6_775_808),
        ("transformer_tiny", (), 2_224_128),
        ("transformer_tiny_pre", (), 2_224_640),
        ("transformer_tiny_pre", ("tokenizer.vocab_size=8_000",), 2_480_640),
        ("rnn", ("tokenizer.vocab_size=8_000",), 3_885_568 - 786_432),
        ("gru", ("tokenizer.vocab_size=8_000",), 5_200_384 - 786_432),
        ("gru_attention", ("tokenizer.vocab_size=8_000",), 5_200_384),
        ("gru_attention", (), 4_688_384),
        ("gru_additive", ("tokenizer.vocab_size=8_000",), 5_200_384 + 262_656),
        ("lstm_attention", ("tokenizer.vocab_size=8_000",), 7_169_024),
    ],
)
def test_parameters_of_the_configurations_that_are_shipped(name: str, more: tuple[str, ...], total: int) -> None:
    paths = [str(ROOT / f"configs/{each}.yaml") for each in ("finetune/multi30k", f"translation/{name}")]
    config: Any = load_config([*paths, *more])
    with torch.device("meta"):
        model = config.model.build(Vocabulary(config.tokenizer.vocab_size))
    assert sum(each.numel() for each in model.parameters()) == total


def test_two_vocabularies_have_two_tables() -> None:
    """The target's is the output's, too; both are drawn alike, and begin a sequence with zeros."""
    section = TransformerSection(encoder_layers=1, decoder_layers=1, hidden_size=64, num_attention_heads=4)
    one, two = section.build(Vocabulary(600)), section.build(Vocabulary(600), Vocabulary(500))  # pyright: ignore[reportArgumentType]
    assert sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in one.parameters()) == 500 * 64
    decoder: Any = two.get_decoder()
    for table, rows in ((two.get_input_embeddings(), 600), (decoder.embed_tokens, 500)):
        weight: Any = table.weight  # pyright: ignore[reportAttributeAccessIssue]
        assert weight.shape == (rows, 64)
        assert weight[1:].std().item() == pytest.approx(1 / 8, rel=0.05)
        assert not weight[0].any()
    assert two.get_output_embeddings().weight is decoder.embed_tokens.weight  # pyright: ignore[reportOptionalMemberAccess]


def test_sinusoids() -> None:
    """Vaswani et al. 2017, section 3.5, with sines and cosines in halves: positions 0 and 1 of width 512."""
    section = TransformerSection(encoder_layers=1, decoder_layers=1, max_position_embeddings=4)
    model: Any = section.build(Vocabulary(300))  # pyright: ignore[reportArgumentType]
    rows = model.get_encoder().embed_positions.weight
    assert rows[0].tolist() == [0.0] * 256 + [1.0] * 256
    assert [rows[1, column].item() for column in (0, 256, 1)] == pytest.approx([0.841471, 0.540302, 0.821856], abs=1e-6)


@pytest.mark.parametrize(
    ("width", "warmup", "step", "rate"),
    [
        (512, 4000, 1, 1.746928e-7), (512, 4000, 2000, 3.493856e-4), (512, 4000, 4000, 6.987712e-4),
        (512, 4000, 16000, 3.493856e-4), (512, 4000, 100000, 1.397542e-4), (256, 2000, 2000, 1.397542e-3),
        (128, 2000, 2000, 1.976424e-3),
    ],
)  # fmt: skip
def test_the_papers_schedule_is_an_inverse_square_root(width: int, warmup: int, step: int, rate: float) -> None:
    peak = 1 / math.sqrt(width * warmup)
    section = OptimSection(schedule="inverse_sqrt", warmup=warmup, learning_rate=peak)  # pyright: ignore
    assert learning_rate(section, 200_000)(step) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "cnn"}, "architecture"),
        ({"num_attention_heads": 7}, "not a multiple"),
        ({"hidden_size": 9, "num_attention_heads": 1}, "odd"),
        ({"cell": "gru"}, "unknown key"),
        ({"architecture": "rnn", "norm": "pre"}, "unknown key"),
        ({"from": "a/model", "hidden_size": 8}, "unknown key"),
    ],
)
def test_sections_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(ModelSection, values)


def test_the_kind_of_model_follows_from_the_keys() -> None:
    kinds = [{"norm": "pre"}, {"architecture": "rnn", "cell": "lstm"}, {"from": "a/model"}]
    found = [type(validate(ModelSection, values)).__name__ for values in kinds]
    assert found == ["TransformerSection", "RnnSection", "ExistingSection"]

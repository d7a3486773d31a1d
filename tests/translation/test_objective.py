"""The smoothed loss: its minimum, its value for a uniform prediction, and that of torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bertillery.engine.batch import PackedBatch
from bertillery.models.layers.chunks import LOGITS
from tests.translation.models import NORMS, pairs, transformer
from translation import objective
from translation.architecture import TransformerSection
from translation.objective import ObjectiveSection, TranslationObjective
from translation.search import DecodeSection


def built(norm: str, **settings: object) -> TranslationObjective:
    return TranslationObjective(transformer(norm), ObjectiveSection(**settings), DecodeSection())  # pyright: ignore


@pytest.mark.parametrize("norm", NORMS)
def test_terms(norm: str) -> None:
    """Perplexity is that of the reference without smoothing."""
    batch = pairs([5, 9, 3], [4, 2, 7])
    found = built(norm)(batch)
    exactly = built(norm, label_smoothing=0)(batch)
    perplexity, count = found["perplexity"], batch.counts["target_tokens"]
    assert perplexity.value([perplexity.total.item()], count) == pytest.approx(
        math.exp(exactly["translation"].total.item() / count)
    )
    assert exactly["translation"].total.item() == pytest.approx(exactly["perplexity"].total.item())
    assert found["translation"].total.item() != pytest.approx(exactly["translation"].total.item())
    assert found["perplexity"].weight == found["accuracy"].weight == 0


def test_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, found = pairs([5, 9, 3], [4, 2, 7]), []
    for most in (LOGITS, 90):  # three rows of 30
        monkeypatch.setattr(objective, "LOGITS", most)
        trained = built("post")
        trained(batch)["translation"].total.backward()
        found.append(torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_parts_of_a_batch_add_up(norm: str) -> None:
    """Sums of a batch are those of its sentences, so micro-batches and processes change rounding only."""
    trained = built(norm)

    def sums(batch: PackedBatch) -> torch.Tensor:
        return torch.stack([term.total.float() for term in trained(batch).values()])

    source, target = [5, 9, 3], [4, 2, 7]
    whole = pairs(source, target)
    total = torch.zeros(3)
    for number in range(3):
        part = pairs([source[number]], [target[number]])
        for name, stream in part.streams.items():
            offsets = whole.streams[name].offsets
            stream.ids[:] = whole.streams[name].ids[offsets[number] : offsets[number + 1]]
        offsets = whole.streams["target"].offsets
        part.targets["next_ids"][:] = whole.targets["next_ids"][offsets[number] : offsets[number + 1]]
        total += sums(part)
    torch.testing.assert_close(total, sums(whole), atol=1e-4, rtol=1e-5)


def test_flops_count_matrix_products() -> None:
    """Against torch's own counter, which does not see the attention of a CPU."""
    from torch.utils.flop_counter import FlopCounterMode

    for norm in NORMS:
        trained, batch = built(norm), pairs([24, 24], [20, 20], vocab_size=30)
        with FlopCounterMode(display=False) as counter:
            trained(batch)["translation"].total.backward()
        pairs_of_tokens = 2 * 2 * 24**2 + 2 * 2 * (20**2 / 2 + 20 * 24)  # two layers, two sentences, causal halved
        assert trained.flops(batch) - 3 * 4 * 16 * pairs_of_tokens == counter.get_total_flops()


def test_initial_loss_is_that_of_a_uniform_prediction() -> None:
    """Weights as transformers draws them: at most .12 above the logarithm of the vocabulary's size."""
    from translation.vocabulary import VocabularySection, train_vocabulary

    texts = [f"{a}{b}{a} {b}{a}{b} runs" for a in "abcdefgh" for b in "ijklmnop"] * 2
    tokenizer = train_vocabulary(texts, VocabularySection(vocab_size=300))
    for norm in NORMS:
        torch.manual_seed(0)
        section = TransformerSection(
            norm=norm, encoder_layers=2, decoder_layers=2, hidden_size=64, intermediate_size=128,  # pyright: ignore
            num_attention_heads=4, initializer="normal",
        )  # fmt: skip
        trained = TranslationObjective(section.build(tokenizer).eval(), ObjectiveSection(), DecodeSection())
        batch = pairs([9] * 20, [12] * 20, vocab_size=300)
        loss = trained(batch)["perplexity"].total.item() / batch.counts["target_tokens"]
        assert 0 <= loss - math.log(300) <= 0.12


def test_glorot_draws_within_its_bounds_and_leaves_sinusoids() -> None:
    model = transformer("post")
    from translation.architecture import draw_glorot

    positions = model.get_encoder().embed_positions.weight.clone()  # pyright: ignore
    draw_glorot(model)
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            bound = math.sqrt(6 / sum(module.weight.shape))
            assert 0.8 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()
    assert torch.equal(model.get_encoder().embed_positions.weight, positions)  # pyright: ignore
    assert model.get_input_embeddings().weight[2:].std().item() == pytest.approx(0.25, rel=0.1)  # pyright: ignore

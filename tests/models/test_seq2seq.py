"""Encoder-decoders on packed sources and targets, against the stock models on single sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bertillery.engine.batch import PackedBatch, pack_stream
from bertillery.models.layers.attention import NAME
from bertillery.models.seq2seq import encoder_decoder
from tests.translation.models import NORMS, pairs, sources, transformer

SOURCE, TARGET = [5, 9, 3, 5], [4, 2, 7, 6]


@pytest.fixture(params=NORMS)
def model(request: pytest.FixtureRequest) -> Any:
    return transformer(request.param)


def logits(model: Any, batch: PackedBatch) -> torch.Tensor:
    network = encoder_decoder(model)
    states = network.decoder_states(batch.streams["source"], batch.streams["target"], batch.cross_layout)  # pyright: ignore
    return network.vocabulary_logits(states)


def single(model: Any, batch: PackedBatch, number: int) -> torch.Tensor:
    """Logits of one sentence by the stock forward pass."""
    ids = [stream.ids[stream.offsets[number] : stream.offsets[number + 1]][None] for stream in batch.streams.values()]
    model.set_attn_implementation("eager")
    found = model(input_ids=ids[0], decoder_input_ids=ids[1]).logits[0]
    model.set_attn_implementation(NAME)
    return found


def test_packed_equals_the_stock_forward_pass_of_each_sentence(model: Any) -> None:
    batch = pairs(SOURCE, TARGET)
    expected = torch.cat([single(model, batch, number) for number in range(len(SOURCE))])
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_stock_model(model: Any) -> None:
    batch, found = pairs(SOURCE, TARGET), []
    for computed in (logits, lambda model, batch: torch.cat([single(model, batch, n) for n in range(len(SOURCE))])):
        model.zero_grad()
        torch.nn.functional.cross_entropy(computed(model, batch), batch.targets["next_ids"]).backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() / found[1].norm() < 1e-5


def test_no_target_token_sees_a_later_one_or_another_sentence(model: Any) -> None:
    batch = pairs(SOURCE, TARGET)
    before = logits(model, batch)
    target = batch.streams["target"]
    row = int(target.offsets[2]) + 3  # in the third sentence
    target.ids[row] = 2 + (target.ids[row] - 1) % 28
    after = logits(model, batch)
    untouched = torch.ones(len(before), dtype=torch.bool)
    untouched[row : int(target.offsets[3])] = False
    assert torch.equal(before[untouched], after[untouched])
    assert not torch.equal(before[row:], after[row:])


def test_a_source_reaches_its_own_target_only(model: Any) -> None:
    batch = pairs(SOURCE, TARGET)
    before = logits(model, batch)
    source, target = batch.streams["source"], batch.streams["target"]
    source.ids[int(source.offsets[1])] = 2 + (source.ids[int(source.offsets[1])] - 1) % 28
    changed = (logits(model, batch) != before).any(1)
    inside = torch.zeros_like(changed)
    inside[int(target.offsets[1]) : int(target.offsets[2])] = True
    assert torch.equal(changed, inside)


def test_decoding_step_by_step_gives_the_states_of_training(model: Any) -> None:
    batch = pairs(SOURCE, [6] * 4)
    target = batch.streams["target"].ids.view(4, 6)
    expected = logits(model, batch).log_softmax(-1).view(4, 6, -1)
    network = encoder_decoder(model)
    state, everyone = network.begin(batch.streams["source"]), torch.arange(4)
    for place in range(6):
        log_probs, state = network.step(state, target[:, place : place + 1])
        torch.testing.assert_close(log_probs[:, 0], expected[:, place], atol=1e-5, rtol=0)
        state = network.select(state, everyone, torch.zeros(4, 1, dtype=torch.long))


def test_selecting_moves_hypotheses_with_all_they_know(model: Any) -> None:
    """Two hypotheses of each sentence, then the second of the last sentence beside the first one twice."""
    source, network = sources(SOURCE), encoder_decoder(model)
    log_probs, state = network.step(network.begin(source), torch.zeros(4, 1, dtype=torch.long))
    best = log_probs[:, 0].topk(2).indices
    state = network.select(state, torch.arange(4), torch.zeros(4, 2, dtype=torch.long))
    plain, grown = network.step(state, best)
    moved = network.select(grown, torch.tensor([3, 1]), torch.tensor([[1, 0], [0, 0]]))
    following = torch.tensor([[5, 6], [7, 7]])
    found, _ = network.step(moved, following)
    assert not torch.allclose(plain[3, 0], plain[3, 1])
    untouched = torch.full((4, 2), 9)
    untouched[3], untouched[1] = torch.tensor([6, 5]), torch.tensor([7, 9])
    expected, _ = network.step(grown, untouched)
    torch.testing.assert_close(found[0], expected[3].flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1], expected[1, :1].expand(2, -1), atol=1e-5, rtol=0)


def test_a_source_is_decoded_alike_alone_and_beside_longer_ones(model: Any) -> None:
    network, rng = encoder_decoder(model), np.random.default_rng(0)
    short, long = rng.integers(2, 30, 3), rng.integers(2, 30, 20)
    alone = network.begin(pack_stream(short, np.array([3])))
    beside = network.begin(pack_stream(np.concatenate([short, long]), np.array([3, 20])))
    expected, _ = network.step(alone, torch.tensor([[0]]))
    found, _ = network.step(beside, torch.tensor([[0], [0]]))
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=0)


def test_alignments_are_distributions_over_the_source(model: Any) -> None:
    batch = pairs(SOURCE, TARGET)
    found = encoder_decoder(model).alignments(batch.streams["source"], batch.streams["target"])
    assert [each.shape for each in found] == [(2, 2, t, s) for t, s in zip(TARGET, SOURCE, strict=True)]
    for each in found:
        np.testing.assert_allclose(each.sum(-1), 1, atol=1e-5)
    assert model.config._attn_implementation == NAME


def test_feeding_back_is_refused(model: Any) -> None:
    batch = pairs([2], [3])
    with pytest.raises(ValueError, match="all target positions at once"):
        encoder_decoder(model).decoder_states(
            batch.streams["source"], batch.streams["target"], batch.cross_layout, torch.tensor([True, False, True])
        )  # pyright: ignore

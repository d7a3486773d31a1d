"""DistilBERT: which tokens are masked, and the three losses, beside the library's own padded computation."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bertillery.config.section import ConfigError
from bertillery.engine.batch import PackedBatch, Stream
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.loader import Phase, Steps
from bertillery.engine.loop import share_of_loss
from bertillery.engine.objective import sampled
from distill.corpus import Part
from distill.objectives import distilbert
from distill.objectives.distilbert import Config, Distributions, RareMaskedSource, build, rarity_weights
from tests.corpora import Tokens, learnable_tokens, random_tokens, tiny_tokenizer
from tests.distill.pairs import masked, stock, student_of, teacher_of, values
from tests.models.families import LENGTHS, padded_inputs

VOCABULARY = 512
CLS, SEP, MASK = 2, 3, 4


def source_of(tokens: Tokens, *, length: int = 40, rate: float = 0.15) -> RareMaskedSource:
    part = Part(tokens, np.bincount(tokens.ids, minlength=VOCABULARY))
    return distilbert.source(Config(rate=rate), part, tiny_tokenizer(VOCABULARY), sequence_length=length, seed=3)


def steps_of(
    source: Any, *, ranks: int = 1, micro: int = 10**6, number: int = 5, size: int = 24
) -> list[list[PackedBatch]]:
    """All micro-batches of each step, of all ranks."""
    shares = [
        Steps(
            [source], [Phase(batch_size=size)], total_steps=number, seed=7, micro_batch_tokens=micro,
            num_ranks=ranks, rank=rank,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    return [[batch for share in shares for batch in share[step].micro_batches] for step in range(number)]


def sequences(batches: list[PackedBatch]) -> set[tuple[Any, ...]]:
    """Every sequence as it stands in the batch, with what is predicted where."""
    found = set()
    for batch in batches:
        labels = torch.full((batch.input.num_tokens,), -100)
        labels[batch.targets["masked_positions"]] = batch.targets["masked_ids"]
        sizes = batch.input.offsets.diff().tolist()
        for ids, wanted in zip(batch.input.ids.split(sizes), labels.split(sizes), strict=True):
            found.add((*ids.tolist(), "predicted", *wanted.tolist()))
    return found


def test_exactly_a_share_of_a_step_is_masked_whoever_computes_it() -> None:
    """Ranks and micro-batches share a step out; which of its tokens are masked does not depend on them."""
    source = source_of(learnable_tokens())
    whole = steps_of(source)
    for ranks, micro in ((1, 64), (2, 10**6), (3, 64)):
        for step, (batches, expected) in enumerate(zip(steps_of(source, ranks=ranks, micro=micro), whole, strict=True)):
            tokens, chosen = (sum(batch.counts[name] for batch in batches) for name in ("tokens", "masked"))
            assert tokens == expected[0].num_tokens
            assert chosen == sum(len(batch.targets["masked_ids"]) for batch in batches)
            assert chosen == math.ceil(0.15 * tokens), step
            assert len(batches) >= ranks * (micro < 100) * 3
            assert sequences(batches) == sequences(expected)
    assert len(set.union(*(sequences(batches) for batches in whole))) == 5 * 24, "steps are not alike"


def test_held_out_tokens_are_masked_once_and_for_all() -> None:
    held_out = HeldOut(source_of(learnable_tokens()), num_examples=50, micro_batch_tokens=100)
    one, two = held_out.batches(), [*held_out.batches(2, 0), *held_out.batches(2, 1)]
    assert sequences(one) == sequences(two)
    assert sum(b.counts["masked"] for b in one) == math.ceil(0.15 * sum(b.num_tokens for b in one))


def test_special_tokens_are_never_masked_and_others_become_something_else() -> None:
    """80 % [MASK], 10 % as they are, 10 % any row of the vocabulary."""
    actions = np.zeros(3)
    for batch in (batch for step in steps_of(source_of(learnable_tokens(400)), number=12, size=100) for batch in step):
        positions, labels = batch.targets["masked_positions"], batch.targets["masked_ids"]
        assert (labels >= 5).all()
        lasts = batch.input.offsets[1:] - 1
        assert not np.isin(positions, np.concatenate([batch.input.first_rows, lasts])).any()
        assert (batch.input.ids[batch.input.first_rows] == CLS).all()
        assert (batch.input.ids[lasts] == SEP).all()
        now = batch.input.ids[positions]
        actions += [int((now == MASK).sum()), int((now == labels).sum()), len(labels)]
    number = actions[2]
    for found, share in ((actions[0], 0.8 + 0.1 / VOCABULARY), (actions[1], 0.1 + 0.1 / VOCABULARY)):
        assert abs(found / number - share) < 3 * math.sqrt(share * (1 - share) / number)


def test_special_tokens_in_the_text_are_never_masked() -> None:
    """Above all [UNK], which is as rare as words are that are masked often."""
    tokens = learnable_tokens(100)
    places = np.random.default_rng(1).permutation(len(tokens.ids))
    for special, found in enumerate(np.split(places[:250], 5)):
        tokens.ids[found] = special
    labels = torch.cat([batch.targets["masked_ids"] for step in steps_of(source_of(tokens)) for batch in step])
    assert (labels >= 5).all()
    all_but = source_of(tokens, rate=0.99)
    batch = all_but.collate(sampled(all_but, all_but.examples(0, 0)))
    before = batch.input.ids.clone()
    before[batch.targets["masked_positions"]] = batch.targets["masked_ids"]
    assert batch.targets["masked_positions"].tolist() == torch.nonzero(before >= 5).flatten().tolist()
    nothing_else = source_of(Tokens(np.full(40, MASK), np.array([0, 20, 40]), np.arange(3)))
    assert nothing_else.collate(sampled(nothing_else, nothing_else.examples(0, 0))).counts["masked"] == 0


def test_rare_tokens_are_masked_more_often() -> None:
    """Taking the earliest exponential times, a token is chosen with probability 1 - exp(-weight * time): the logarithms
    are to one another as the weights are."""
    tokens = random_tokens(400, vocab_size=VOCABULARY)
    rng = np.random.default_rng(1)
    tokens.ids = np.where(rng.random(len(tokens.ids)) < 1 / 9, 11, 10)
    chosen, there = np.zeros(2), np.zeros(2)
    for batch in (batch for step in steps_of(source_of(tokens), number=20, size=100) for batch in step):
        before = batch.input.ids.clone()
        before[batch.targets["masked_positions"]] = batch.targets["masked_ids"]
        for index, token in enumerate((10, 11)):
            there[index] += int((before == token).sum())
            chosen[index] += int((batch.targets["masked_ids"] == token).sum())
    share = chosen / there
    rates = -np.log1p(-share)
    error = np.sqrt(share * (1 - share) / there) / (1 - share) / rates
    count = np.bincount(tokens.ids)[[10, 11]]
    expected = (count[0] / count[1]) ** -0.7
    assert rates[0] / rates[1] == pytest.approx(expected, rel=3 * float(np.hypot(*error)))
    assert 0.2 < expected < 0.27
    assert rarity_weights(np.array([0, 1, 16]), 0.5).tolist() == [1, 1, 0.25]


def test_short_and_unknown_segments_are_left_out() -> None:
    """Documents of one sentence of 9, 10, 11 and 38 tokens, each two longer with the special ones: 20 unknown of 40 are
    half."""
    lengths, unknown = [9, 10, 11, 38, 38, 38], [0, 0, 0, 0, 19, 20]
    ids = np.concatenate(
        [np.where(np.arange(n) < u, 1, 50 + np.arange(n)) for n, u in zip(lengths, unknown, strict=True)]
    )
    places = np.append(0, np.cumsum(lengths))
    source = source_of(Tokens(ids, places, np.arange(7)))
    rows = source.examples(0, 0)
    assert sorted(rows["a_start"].tolist()) == [places[i] for i in (1, 2, 3, 4)]
    with pytest.raises(ConfigError, match="cut to a sequence_length of 11, has 12 tokens"):
        source_of(learnable_tokens(), length=11)


def test_a_token_is_masked_by_its_place_in_the_step_alone() -> None:
    """Rows keep their order of rarity: half of a step's rows, sampled by themselves, are masked alike but for where the
    line is drawn."""
    source = source_of(learnable_tokens())
    rows = source.examples(0, 0)[:40]
    whole, half = sampled(source, rows), sampled(source, rows[:20])
    assert len(set(whole["threshold"].tolist())) == 1
    both = [set(source.collate(each[:20]).targets["masked_positions"].tolist()) for each in (whole, half)]
    assert both[0] <= both[1] or both[1] <= both[0]


def pair(config: Config | None = None, of: str = "distilbert", **section: Any) -> Distributions:
    teacher = teacher_of(words=True)
    return build(config or Config(), student_of(teacher, words=True, type=of, **section), teacher)


@pytest.mark.parametrize("of", ["bert", "distilbert"])
def test_losses_are_those_of_the_plain_library(of: str) -> None:
    """Divergence and cosine over all tokens, [CLS] and [SEP] included, and no padding; words where they are masked."""
    objective, batch = pair(Config(temperature=2.0), of).eval(), masked()
    models = stock(objective.student), stock(objective.teacher.module)
    logits, hidden = [], []
    for model in models:
        inputs, real = padded_inputs(model.config, batch)
        found = model(**inputs, output_hidden_states=True)
        logits.append(found.logits[real])
        hidden.append(found.hidden_states[-1][real])
    positions, labels = batch.targets["masked_positions"], batch.targets["masked_ids"]
    kl = F.kl_div((logits[0] / 2).log_softmax(-1), (logits[1] / 2).softmax(-1), reduction="batchmean") * 4
    target = torch.ones(batch.input.num_tokens)
    expected = {
        "kl": kl,
        "cosine": F.cosine_embedding_loss(hidden[0], hidden[1], target),
        "mlm": F.cross_entropy(logits[0][positions], labels),
        "mlm_accuracy": (logits[0][positions].argmax(-1) == labels).float().mean(),
        "teacher_mlm": F.cross_entropy(logits[1][positions], labels),
        "teacher_mlm_accuracy": (logits[1][positions].argmax(-1) == labels).float().mean(),
    }
    found = values(objective, batch)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    assert share_of_loss(objective(batch), batch.counts).item() == pytest.approx(
        (5 * expected["kl"] + 2 * expected["mlm"] + expected["cosine"]).item(), rel=1e-4
    )


def test_a_teacher_has_nothing_to_learn_from_itself() -> None:
    teacher = teacher_of(words=True)
    found = values(Distributions(Config(), copy.deepcopy(teacher.module), teacher).eval(), masked())
    assert abs(found["kl"].item()) <= 1e-6
    assert abs(found["cosine"].item()) <= 1e-6
    assert found["mlm"].item() == found["teacher_mlm"].item()


@pytest.mark.parametrize("name", ["kl", "mlm", "cosine"])
def test_weights_give_each_part(name: str) -> None:
    weights = {each: float(each == name) for each in ("kl", "mlm", "cosine")}
    objective, batch = pair(Config(**weights)).eval(), masked()  # pyright: ignore[reportArgumentType]
    assert share_of_loss(objective(batch), batch.counts).item() == pytest.approx(values(objective, batch)[name].item())
    assert values(objective, batch)[name].item() > 0.01


def test_temperature_leaves_the_gradient_its_size() -> None:
    """Without the square of the temperature each doubling would divide it by about four."""
    norms = []
    for temperature in (8.0, 16.0):
        objective, batch = pair(Config(temperature=temperature)).eval(), masked()
        values(objective, batch)["kl"].backward()
        norms.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]).norm().item())
    assert 0.8 < norms[1] / norms[0] < 1.25


def test_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither values nor gradients; and all logits that are made are those of tokens, never of padding."""
    found, rows = [], []
    original = distilbert.mlm_logits

    def counted(model: Any, stream: Stream, positions: Tensor, hidden: Tensor) -> Tensor:
        rows.append(len(positions))
        return original(model, stream, positions, hidden)

    monkeypatch.setattr(distilbert, "mlm_logits", counted)
    for chunk in (1 << 25, 90 * 7):
        monkeypatch.setattr(distilbert, "_CHUNK", chunk)
        objective, batch = pair(), masked()
        share_of_loss(objective(batch), batch.counts).backward()
        gradient = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
        found.append((values(objective, batch), gradient))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    predicted = batch.counts["masked"]
    assert rows[:8] == [sum(LENGTHS), sum(LENGTHS), predicted, predicted] * 2, "student, teacher; trained, then read"
    assert set(rows[8:]) == {7, sum(LENGTHS) % 7, predicted}
    assert sum(rows[8:]) == 4 * (sum(LENGTHS) + predicted), "nothing is computed again in the backward pass"


def test_a_batch_without_masks_is_no_division_by_nothing() -> None:
    objective, batch = pair(), masked(every=10**6)
    batch.targets.update({name: tensor[:0] for name, tensor in batch.targets.items()})
    batch.counts["masked"] = 0
    loss = share_of_loss(objective(batch), batch.counts)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


def test_widths_must_be_equal_where_the_cosine_counts() -> None:
    narrow: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2}
    with pytest.raises(ConfigError, match=r"cosine loss needs equal hidden sizes \(teacher 24, student 16\)"):
        pair(**narrow)
    found = values(pair(Config(cosine=0), **narrow), masked())
    assert "cosine" not in found
    assert found["kl"] > 0
    with pytest.raises(ConfigError, match="kl, mlm and cosine are all 0"):
        pair(Config(kl=0, mlm=0, cosine=0))

"""ELECTRA: counts and shares are those of the original (fidelity, 3.9 and 10)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import AutoModelForPreTraining, ElectraForMaskedLM, ElectraForPreTraining

from bertillery.config.section import ConfigError
from bertillery.engine.batch import PackedBatch
from bertillery.engine.evaluate import Sums
from bertillery.engine.optim import OptimSection, build_optimizer, learning_rate
from bertillery.engine.rng import key
from bertillery.models.export import export_model
from bertillery.run.checkpoint import load_checkpoint, save_checkpoint
from pretrain.config import load_config
from pretrain.model import ModelSection
from pretrain.objectives import electra
from pretrain.objectives.electra import (
    Config,
    Electra,
    Slots,
    area_under_roc,
    build,
    detection_terms,
    generator_sizes,
    histograms,
    mask_slots,
    sample,
)
from pretrain.pairs import segment_pairs
from tests.corpora import Tokens, counting_tokens, learnable_tokens, random_tokens, tiny_tokenizer
from tests.pretrain.test_objectives import STILL, stock_outputs, train

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
SMALL = Config(embedding_size=24, generator_fraction=0.5)


class OfSize:
    """As much of a tokenizer as a model needs."""

    pad_token_id, mask_token_id = 0, 103

    def __init__(self, size: int = 30522) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def get_vocab(self) -> dict[str, int]:
        return {"last": self.size - 1}


def make(config: Config = SMALL, seed: int = 0) -> tuple[Electra, Any]:
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    return build(config, STILL, tokenizer), electra.source(
        config, learnable_tokens(), tokenizer, sequence_length=32, seed=1
    )


def batch_of(source: Any, number: int = 16) -> PackedBatch:
    return source.collate(source.examples(0, 0)[:number])


def share(term: str, objective: Electra, batch: PackedBatch) -> float:
    found = objective(batch)[term]
    return found.total.item() / batch.counts[found.count]


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


# Examples


def draw(tokens: Tokens, length: int = 128, *, single: float = 0.1, short: float = 0.05, epoch: int = 0) -> np.ndarray:
    documents = np.arange(len(tokens.documents) - 1)
    settings = {"single_probability": single, "short_probability": short}
    return segment_pairs(tokens, documents, sequence_length=length, seed=1, epoch=epoch, **settings)


def original(tokens: Tokens, length: int, *, slips: bool, seed: int = 0) -> np.ndarray:
    """``ExampleBuilder`` of the original, in words of our arrays: rows of (A, B, slipped) lengths before the cut.

    With ``slips`` a short sentence may go to the first segment when the second has begun, as there.
    """
    rng, rows = np.random.default_rng(seed), []
    target = length
    for document in range(len(tokens.documents) - 1):
        sizes = np.diff(tokens.sentences[tokens.documents[document] : tokens.documents[document + 1] + 1])
        held: list[int] = []
        for place, size in enumerate(sizes.tolist()):
            held.append(size)
            if sum(held) < target and place < len(sizes) - 1:
                continue
            half = 100_000 if rng.random() < 0.1 else (target - 3) // 2
            a = b = slipped = 0
            for piece in held:
                fits = (a + piece < half and (slips or not b)) or (not b and a < half and rng.random() < 0.5)
                if not a or fits:
                    slipped += bool(b)
                    a += piece
                else:
                    b += piece
            rows.append((a, b, slipped))
            held, target = [], int(rng.integers(5, length + 1)) if rng.random() < 0.05 else length
    return np.array(rows)


def test_segments_have_the_lengths_of_the_original() -> None:
    tokens = random_tokens(3000, length=(3, 40))
    rows, theirs = draw(tokens), original(tokens, 128, slips=False)
    a = np.minimum(theirs[:, 0], 126)
    b = np.clip(125 - a, 0, theirs[:, 1])
    n = len(rows)
    assert n == pytest.approx(len(theirs), rel=0.01)
    assert rows["a_length"].mean() == pytest.approx(a.mean(), abs=4 * a.std() * math.sqrt(2 / n))
    assert rows["b_length"].mean() == pytest.approx(b.mean(), abs=4 * b.std() * math.sqrt(2 / n))
    assert (rows["b_length"] == 0).mean() == pytest.approx((b == 0).mean(), abs=4 * math.sqrt(2 * 0.1 / n))
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(rows["a_length"], quantile) == pytest.approx(np.quantile(a, quantile), abs=1.5)


def test_how_often_a_sentence_slips_back_in_the_original() -> None:
    """The measure of the deviation that ``segment_pairs`` names."""
    for length, expected in ((64, 0.07), (128, 0.19)):
        slipped = original(random_tokens(300, length=(3, 40)), length, slips=True)[:, 2] > 0
        assert slipped.mean() == pytest.approx(expected, abs=0.04)


def test_a_tenth_has_one_segment() -> None:
    tokens = random_tokens(300, sentences=(300, 300))
    rows = draw(tokens, short=0.0)
    singles = (rows["b_length"] == 0).mean()
    # beside the drawn ones, those that end a document early
    assert singles == pytest.approx(0.1, abs=3 * math.sqrt(0.09 / len(rows)) + 300 / len(rows))
    assert (draw(tokens, single=0.0, short=0.0)["b_length"] == 0).mean() < 300 / len(rows)
    assert (draw(tokens, single=1.0)["b_length"] == 0).all()


def test_targets_are_drawn_for_each_example() -> None:
    tokens = random_tokens(200, sentences=(3000, 3000), length=(1, 1))
    rows = draw(tokens)
    assert (rows["length"] < 127).mean() == pytest.approx(0.05, abs=3 * math.sqrt(0.05 / len(rows)) + 200 / len(rows))
    assert rows["length"].max() == 128


def test_segments_are_consecutive_and_within_a_document() -> None:
    tokens = counting_tokens(60, sentences=(1, 30))
    for length in (8, 16, 128, 512):
        rows = draw(tokens, length)
        assert (rows["length"] <= length).all()
        assert (rows["length"] == rows["a_length"] + rows["b_length"] + np.where(rows["b_length"], 3, 2)).all()
        assert (rows["a_length"] >= 1).all()
        pairs = rows[rows["b_length"] > 0]
        np.testing.assert_array_equal(pairs["b_start"], pairs["a_start"] + pairs["a_length"])
        first = np.searchsorted(tokens.sentences[tokens.documents], rows["a_start"], side="right")
        end = rows["a_start"] + rows["a_length"] + rows["b_length"] - 1
        np.testing.assert_array_equal(first, np.searchsorted(tokens.sentences[tokens.documents], end, side="right"))


def test_walks_lose_nothing_but_the_tails() -> None:
    """Where nothing is cut, the examples give the documents back."""
    tokens = counting_tokens(40, length=(1, 3))
    rows = np.sort(draw(tokens, 100_000, short=1.0), order="a_start")
    covered = [np.arange(row["a_start"], row["a_start"] + row["a_length"] + row["b_length"]) for row in rows]
    np.testing.assert_array_equal(np.concatenate(covered), tokens.ids)


def test_examples_depend_on_seed_epoch_and_document_only() -> None:
    tokens = random_tokens(50)
    settings = {"sequence_length": 64, "single_probability": 0.1, "short_probability": 0.05, "seed": 1}
    whole = np.sort(draw(tokens, 64), order="a_start")
    halves = [segment_pairs(tokens, part, epoch=0, **settings) for part in (np.arange(30)[::-1], np.arange(30, 50))]
    np.testing.assert_array_equal(whole, np.sort(np.concatenate(halves), order="a_start"))
    assert len(np.intersect1d(whole["key"], draw(tokens, 64, epoch=1)["key"])) == 0


# Masks


def slots(length: int, number: int, *, rate: float = 0.15, replacement: bool = False) -> tuple[np.ndarray, Slots]:
    ids = np.random.default_rng(0).integers(5, 30522, length * number)
    ids[::length], ids[length - 1 :: length] = 2, 3
    maximum = max(1, int((rate + 0.005) * length))
    keys = key(1, np.arange(number))
    settings = {"rate": rate, "maximum": maximum, "mask_id": 4, "replacement": replacement}
    return ids, mask_slots(ids, np.full(number, length), keys, ids > 3, **settings)


@pytest.mark.parametrize(("length", "rate", "expected"), [(128, 0.15, 19), (512, 0.15, 77), (512, 0.25, 128)])
@pytest.mark.parametrize("replacement", [False, True])
def test_exact_counts(length: int, rate: float, expected: int, replacement: bool) -> None:
    ids, found = slots(length, 1000, rate=rate, replacement=replacement)
    assert (np.bincount(found.positions // length, minlength=1000) == expected).all()
    assert (ids[found.positions] > 3).all()
    np.testing.assert_array_equal(found.labels, ids[found.positions])
    unique = len(np.unique(found.positions)) / 1000
    with_replacement = {19: 17.68, 77: 71.54, 128: 113.3}[expected]
    assert unique == pytest.approx(with_replacement if replacement else expected, abs=0.3 if replacement else 0)


@pytest.mark.parametrize(("replacement", "kept"), [(False, 0.15), (True, 0.139)])
def test_what_the_generator_sees(replacement: bool, kept: float) -> None:
    """85:15 of the draws; of the tokens drawn with replacement 13.9 % stay, and no token is ever a random one."""
    ids, found = slots(128, 5000, replacement=replacement)
    rows = np.unique(found.positions)
    now = found.input_ids[rows]
    assert ((now == 4) | (now == ids[rows])).all()
    assert (now != 4).mean() == pytest.approx(kept, abs=3 * math.sqrt(kept * (1 - kept) / len(now)))
    np.testing.assert_array_equal(np.delete(found.input_ids, rows), np.delete(ids, rows))


@pytest.mark.parametrize("replacement", [False, True])
def test_positions_are_uniform_and_do_not_depend_on_the_batch(replacement: bool) -> None:
    ids, found = slots(40, 20_000, replacement=replacement)
    counts = np.bincount(found.positions % 40, minlength=40)[1:-1] / 20_000
    assert np.abs(counts - 6 / 38).max() < 4 * math.sqrt(6 / 38 / 20_000)
    part = slice(40 * 100, 40 * 140)
    settings = {"rate": 0.15, "maximum": 6, "mask_id": 4, "replacement": replacement}
    alone = mask_slots(ids[part], np.full(40, 40), key(1, np.arange(100, 140)), ids[part] > 3, **settings)
    np.testing.assert_array_equal(alone.input_ids, found.input_ids[part])
    np.testing.assert_array_equal(alone.uniforms, found.uniforms[600:840])


def test_a_row_drawn_twice_is_sampled_once() -> None:
    _, found = slots(128, 100, replacement=True)
    _, first, back = np.unique(found.positions, return_index=True, return_inverse=True)
    assert len(first) < len(found.positions)
    np.testing.assert_array_equal(found.uniforms, found.uniforms[first][back])


# Sampling


def test_sampling_is_categorical() -> None:
    """Chi-square of 100,000 draws from five logits; the 99.9 % point of 4 degrees of freedom is 18.47."""
    logits = torch.tensor([0.0, 1.0, -2.0, 0.5, -1.0])
    uniforms = torch.from_numpy(np.random.default_rng(0).random(100_000))
    drawn = torch.bincount(sample(logits.expand(100_000, 5), uniforms), minlength=5)
    expected = logits.softmax(0) * 100_000
    assert ((drawn - expected) ** 2 / expected).sum().item() < 18.47


def test_sampling_inverts_the_distribution_function() -> None:
    """At the size of BERT's vocabulary, against float64 throughout; the ends of [0, 1) give possible tokens."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(200, 30522)
    uniforms = torch.rand(200, dtype=torch.float64)
    uniforms[:2] = torch.tensor([0.0, 1 - 2.0**-53])
    ends = logits.double().softmax(-1).cumsum(-1)
    found = sample(logits, uniforms)
    rows = torch.arange(200)
    assert (ends[rows, found] >= uniforms - 1e-6).all()
    assert (ends[rows, found] - logits.double().softmax(-1)[rows, found] <= uniforms + 1e-6).all()
    certain = torch.full((3, 300), -1e9)
    certain[:, 255] = 0.0
    for logits in (certain, certain.bfloat16()):
        assert sample(logits, torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)).tolist() == [255] * 3


# The networks


@pytest.mark.parametrize(
    ("name", "joint", "generator", "discriminator", "embeddings"),
    [
        ("small", 14_196_219, 4_620_026, 13_549_057, 3_972_864),
        ("small_plus_plus", 23_122_875, 13_546_682, 13_549_057, 3_972_864),
        ("base", 119_386_427, 33_740_602, 109_483_009, 23_837_184),
        ("large", 354_655_291, 51_295_290, 335_142_913, 31_782_912),
    ],
)
def test_published_sizes(name: str, joint: int, generator: int, discriminator: int, embeddings: int) -> None:
    config = load_config([str(CONFIGS / f"electra_{name}.yaml")])
    with torch.device("meta"):
        objective = build(config.objective, config.model, OfSize())  # type: ignore[arg-type]
    shared = objective.discriminator.electra.embeddings
    models = [objective, objective.generator, objective.discriminator, shared]
    assert [sum(p.numel() for p in m.parameters()) for m in models] == [joint, generator, discriminator, embeddings]
    assert objective.discriminator.config.hidden_act == "gelu"
    assert config.optim.schedule == "electra"


@pytest.mark.parametrize(
    ("width", "layers", "fraction", "expected"),
    [
        (256, 12, 0.25, (64, 1, 256, 12)),
        (256, 12, 1.0, (256, 4, 1024, 12)),
        (768, 12, 0.33333, (256, 4, 1024, 12)),
        (1024, 24, 0.25, (256, 4, 1024, 24)),
    ],
)
def test_published_generators(width: int, layers: int, fraction: float, expected: tuple[int, ...]) -> None:
    model = ModelSection(hidden_size=width, num_attention_heads=width // 64, num_hidden_layers=layers)
    found = generator_sizes(Config(generator_fraction=fraction), model)
    assert (
        found.hidden_size, found.num_attention_heads, found.intermediate_size, found.num_hidden_layers
    ) == expected  # fmt: skip


def test_generators_of_other_sizes() -> None:
    assert generator_sizes(Config(generator_fraction=0.01), ModelSection()).num_attention_heads == 1
    with pytest.raises(ConfigError, match=r"generator_fraction: 0\.26 .* 200, which its 3 heads"):
        generator_sizes(Config(generator_fraction=0.26), ModelSection())


def assert_shared(objective: Electra) -> None:
    table = objective.discriminator.electra.embeddings
    assert objective.generator.electra.embeddings is table
    assert objective.generator.generator_lm_head.weight is table.word_embeddings.weight
    assert objective.generator.electra.embeddings_project is not objective.discriminator.electra.embeddings_project


def test_embeddings_stay_shared(accelerator: Accelerator, tmp_path: Path) -> None:
    """After prepare, after a step, after saving, loading and resuming; a checkpoint holds the table once."""
    objective, source = make()
    prepared = accelerator.unwrap_model(accelerator.prepare_model(objective))
    assert_shared(prepared)
    train(accelerator, prepared, source, steps=2)
    assert_shared(prepared)
    section = OptimSection()
    path = save_checkpoint(
        tmp_path, step=2, model=prepared, optimizer=build_optimizer(section, prepared), state={}, config=""
    )
    once = sum(p.numel() for p in prepared.parameters())
    assert (path / "model.safetensors").stat().st_size < 4 * once + 20_000
    other, _ = make(seed=7)
    load_checkpoint(path, model=other, optimizer=build_optimizer(section, other))
    assert_shared(other)
    for (name, ours), theirs in zip(prepared.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    train(accelerator, other, source, steps=2)
    assert_shared(other.to(torch.float64))


def test_both_networks_are_exported(tmp_path: Path) -> None:
    objective, source = make()
    objective.eval()
    folder = export_model(
        objective.exported(),
        tiny_tokenizer(),
        tmp_path / "export",
        card="",
        auxiliary_models=objective.auxiliary_models(),
    )
    assert type(AutoModelForPreTraining.from_pretrained(folder)) is ElectraForPreTraining
    batch = batch_of(source, 1)
    inputs = {"input_ids": batch.input.ids[None], "token_type_ids": batch.input.token_type_ids[None]}
    pairs = [
        (objective.discriminator, ElectraForPreTraining.from_pretrained(folder)),
        (objective.generator, ElectraForMaskedLM.from_pretrained(folder / "generator")),
    ]
    for ours, theirs in pairs:
        with torch.no_grad():
            torch.testing.assert_close(theirs.eval()(**inputs)[0], stock_outputs(ours, batch)[0], atol=1e-5, rtol=0)


def test_initialisation() -> None:
    """Truncated normal, but Glorot for the projections of the embeddings and the discriminator's last layer."""
    objective, _ = make()
    for model in (objective.generator, objective.discriminator):
        width = model.config.hidden_size
        weight = model.electra.embeddings_project.weight
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (width + 24)), rel=0.15)
        assert model.electra.embeddings_project.bias.abs().max() == 0
        assert model.electra.encoder.layer[0].intermediate.dense.weight.abs().max() <= 0.04
    last = objective.discriminator.discriminator_predictions.dense_prediction.weight
    assert last.abs().max() <= math.sqrt(6 / 33)
    assert last.abs().max() > 0.2


# The loss


def gradients(objective: Electra, batch: PackedBatch, generator: float, discriminator: float) -> dict[str, Tensor]:
    """Gradients that are there and not 0."""
    objective.zero_grad()
    terms = objective(batch)
    parts = [(generator, terms["generator"]), (discriminator, terms["discriminator"])]
    torch.stack([w * t.total / batch.counts[t.count] for w, t in parts if w]).sum().backward()
    found = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    return {name: gradient for name, gradient in found.items() if gradient.abs().max() > 0}


def test_no_gradient_from_the_discriminator_to_the_generator() -> None:
    objective, source = make()
    batch = batch_of(source)
    shared = {
        f"discriminator.electra.embeddings.{n}" for n, _ in objective.generator.electra.embeddings.named_parameters()
    }
    own = {
        network: {n for n, _ in objective.named_parameters() if n.startswith(network)} - shared
        for network in ("generator", "discriminator")
    }
    detection = gradients(objective, batch, 0, 1)
    assert detection.keys() == own["discriminator"] | shared
    words = gradients(objective, batch, 1, 0)
    assert words.keys() == own["generator"] | shared
    both = gradients(objective, batch, 1, 50)
    for name in own["generator"]:
        assert torch.equal(both[name], words[name]), name
    assert not torch.equal(both[min(shared)], words[min(shared)])


def test_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is replaced if it was predicted and the sample differs; the input is the original elsewhere."""
    objective, source = make()
    batch = batch_of(source)
    right = torch.arange(batch.counts["masked"]) % 2 == 0

    def half_right(logits: Tensor, uniforms: Tensor) -> Tensor:
        return torch.where(right, batch.targets["masked_ids"], sample(logits, uniforms))

    monkeypatch.setattr(electra, "sample", half_right)
    seen: dict[str, Tensor] = {}

    def spy(logits: Tensor, replaced: Tensor, count: str) -> Any:
        return seen.update(replaced=replaced) or detection_terms(logits, replaced, count)

    monkeypatch.setattr(electra, "detection_terms", spy)
    objective.discriminator.electra.register_forward_pre_hook(
        lambda _, __, inputs: seen.update(ids=inputs["input_ids"][0]), with_kwargs=True
    )
    objective(batch)
    original_ids = batch.input.ids.clone()
    original_ids[batch.targets["masked_positions"]] = batch.targets["masked_ids"]
    assert torch.equal(seen["replaced"], seen["ids"] != original_ids)
    assert 0 < seen["replaced"].sum() <= (~right).sum()
    outside = torch.ones(batch.input.num_tokens, dtype=torch.bool)
    outside[batch.targets["masked_positions"]] = False
    assert not seen["replaced"][outside].any()
    assert not seen["replaced"][original_ids < 4].any()  # [CLS] and [SEP]
    assert batch.counts["tokens"] == batch.input.num_tokens


def test_perfect_and_ignorant_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, source = make()
    batch = batch_of(source, 64)
    predicted = batch.counts["masked"] / batch.input.num_tokens
    monkeypatch.setattr(electra, "sample", lambda logits, uniforms: batch.targets["masked_ids"])
    assert share("replaced", objective, batch) == 0
    assert share("sampled_accuracy", objective, batch) == 1
    monkeypatch.setattr(electra, "sample", lambda logits, uniforms: sample(torch.zeros_like(logits), uniforms))
    assert share("replaced", objective, batch) == pytest.approx(predicted, rel=0.02)  # 1 of 512 guesses is right


def test_initial_loss() -> None:
    """ln V + 50 ln 2, 44.98 for BERT's vocabulary, where the last layer says nothing yet."""
    torch.manual_seed(0)
    objective = build(SMALL, STILL, OfSize()).eval()  # type: ignore[arg-type]
    torch.nn.init.zeros_(objective.discriminator.discriminator_predictions.dense_prediction.weight)
    batch = batch_of(make()[1])
    terms = objective(batch)
    total = sum(t.weight * t.total.item() / batch.counts[t.count] for t in terms.values() if t.weight)
    assert total == pytest.approx(44.98, abs=0.3)
    assert terms["discriminator"].weight == 50


# What is reported


def test_detection_is_what_a_sort_finds(accelerator: Accelerator) -> None:
    """Precision, recall and area of two batches together, against counting pairs."""
    rng, sums = np.random.default_rng(0), Sums()
    truth, scores = rng.random(4000) < 0.1, rng.normal(size=4000)
    scores[truth] += 1.5
    for part in np.array_split(np.arange(4000), [1000]):
        terms = detection_terms(torch.tensor(scores[part]).float(), torch.tensor(truth[part]), "tokens")
        sums.add(terms, {"tokens": len(part)})
    values = sums.means(accelerator)
    guessed = scores > 0
    assert values["precision"] == pytest.approx((truth & guessed).sum() / guessed.sum())
    assert values["recall"] == pytest.approx((truth & guessed).sum() / truth.sum())
    assert values["replaced"] == pytest.approx(truth.mean())
    assert values["discriminator_accuracy"] == pytest.approx((truth == guessed).mean())
    area = (scores[truth][:, None] > scores[~truth][None]).mean()
    assert values["auc"] == pytest.approx(area, abs=2e-3)
    assert values["loss"] == 0


def test_area_at_its_ends() -> None:
    scores, truth = torch.tensor([-99.0, -1.0, 1.0, 99.0]), torch.tensor([False, False, True, True])
    assert area_under_roc(histograms(scores, truth).tolist(), 4) == 1
    assert area_under_roc(histograms(-scores, truth).tolist(), 4) == 0
    assert area_under_roc(histograms(torch.zeros(4), truth).tolist(), 4) == 0.5
    assert area_under_roc(histograms(scores, truth & False).tolist(), 4) == 0.5


def test_learning_rate() -> None:
    section = load_config([str(CONFIGS / "electra_small.yaml")]).optim
    rate = learning_rate(section, 1_000_000)
    found = [rate(step) / section.learning_rate for step in (0, 5000, 10_000, 200_000)]
    assert found == pytest.approx([0, 0.4975, 0.99, 0.8])


def test_overfits_32_examples(accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generator learns its words by heart; a discriminator beside one that never learns tells all that it made."""
    config = SMALL.model_copy(update={"rate": 0.25})
    objective, source = make(config)
    rows = source.examples(0, 0)[:32]
    source.examples, source.num_blocks = lambda epoch, block: rows, 1
    monkeypatch.setattr(electra, "sample", lambda logits, uniforms: sample(torch.zeros_like(logits), uniforms))
    train(accelerator, objective, source, steps=300, batch_size=32, rate=3e-3)
    batch, sums = source.collate(rows), Sums()
    sums.add(objective.eval()(batch), batch.counts)
    values = sums.means(accelerator)
    assert values["generator_accuracy"] > 0.98
    assert values["auc"] > 0.99
    assert values["recall"] > 0.9
    assert values["replaced"] > 0.2

"""ALBERT's examples and model; expected values are those of the original code (fidelity, 2.1, 2.2 and 2.8)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AlbertForPreTraining

from bertillery.config.section import ConfigError
from bertillery.engine.loader import Phase, Steps
from bertillery.engine.loop import training_steps
from bertillery.engine.objective import Objective
from bertillery.engine.optim import OptimSection, build_optimizer, parameter_groups
from bertillery.engine.rng import key
from bertillery.models.export import export_model
from bertillery.run.checkpoint import load_checkpoint, save_checkpoint
from pretrain.masking import Masked, draw_ngrams, mask_tokens
from pretrain.model import ModelSection
from pretrain.objectives import albert
from pretrain.pairs import sentence_order_pairs
from tests.corpora import Tokens, counting_tokens, learnable_tokens, random_tokens, tiny_tokenizer
from tests.pretrain.test_objectives import stock_outputs

TINY = ModelSection(num_hidden_layers=3, hidden_size=32, num_attention_heads=2, max_position_embeddings=64)


def draw(tokens: Tokens, length: int = 512, single_segment: str = "original", short: float = 0.1) -> np.ndarray:
    return sentence_order_pairs(
        tokens,
        np.arange(len(tokens.documents) - 1),
        sequence_length=length,
        short_probability=short,
        single_segment=cast(Any, single_segment),
        seed=1,
        epoch=0,
    )


def document_of(tokens: Tokens, position: np.ndarray) -> np.ndarray:
    return np.searchsorted(tokens.sentences[tokens.documents], position, side="right") - 1


def test_half_of_the_pairs_with_an_order_are_swapped() -> None:
    tokens = random_tokens(4000, sentences=(10, 40))
    rows = draw(tokens, 128, "drop")
    assert len(rows) > 10_000
    assert rows["label"].mean() == pytest.approx(0.5, abs=3 * np.sqrt(0.25 / len(rows)))


def test_chunks_of_one_sentence_raise_the_share() -> None:
    """.55 to .57 with the original's synthetic documents; exactly: P(single) + (1 - P(single)) / 2."""
    tokens = random_tokens(1700)
    rows, kept = draw(tokens, 128), draw(tokens, 128, "drop")
    assert 0.53 < rows["label"].mean() < 0.58
    single = 1 - len(kept) / len(rows)
    assert 0.04 < single < 0.2
    assert rows["label"].mean() == pytest.approx(single + (1 - single) / 2, abs=3 * np.sqrt(0.25 / len(rows)))


def test_in_order_and_swapped_pairs_are_one_stretch_of_text() -> None:
    tokens = counting_tokens(300)
    rows = draw(tokens, 100_000, "drop", short=0.0)  # nothing is truncated
    a, b = rows["a_start"], rows["b_start"]
    swapped = rows["label"] == 1
    np.testing.assert_array_equal((a + rows["a_length"])[~swapped], b[~swapped])
    np.testing.assert_array_equal((b + rows["b_length"])[swapped], a[swapped])
    assert 0.3 < swapped.mean() < 0.7
    covered = np.sort(np.concatenate([np.minimum(a, b), np.maximum(a, b)]))
    assert len(np.unique(covered)) == 600, "every document is one pair"


def test_the_two_ways_of_single_sentences() -> None:
    tokens = counting_tokens(200, sentences=(1, 9), length=(20, 80))
    original, dropped = draw(tokens, 64), draw(tokens, 64, "drop")
    same = document_of(tokens, original["a_start"]) == document_of(tokens, original["b_start"])
    assert (original["label"][~same] == 1).all()
    np.testing.assert_array_equal(original[same], dropped)
    assert (~same).any()
    for rows in (original, dropped):
        assert (rows["length"] <= 64).all()
        assert (rows["b_length"] >= 1).all()


def test_no_segment_crosses_a_document() -> None:
    tokens = counting_tokens(100, sentences=(1, 30))
    for single_segment in ("original", "drop"):
        rows = draw(tokens, 128, single_segment)
        for side in "ab":
            start, end = rows[f"{side}_start"], rows[f"{side}_start"] + rows[f"{side}_length"] - 1
            np.testing.assert_array_equal(document_of(tokens, start), document_of(tokens, end))


def test_every_sentence_is_visited_once() -> None:
    """Unlike BERT's, the walk never goes back: A and B of "drop" cover whole chunks without overlap."""
    tokens = counting_tokens(100, length=(3, 9))
    rows = draw(tokens, 512, short=0.0)
    assert (rows["label"] == 0).any()
    covered = np.concatenate([np.arange(r["a_start"], r["a_start"] + r["a_length"]) for r in rows])
    assert len(np.unique(covered)) == len(covered)


def mask(length: int, maximum: int, examples: int, starts: np.ndarray | None = None, ngram: int = 3) -> Masked:
    ids = np.random.default_rng(0).integers(5, 30_000, length * examples)
    ids[::length], ids[length - 1 :: length], ids[length // 2 :: length] = 2, 3, 3
    return mask_tokens(
        ids,
        np.full(examples, length),
        key(7, np.arange(examples)),
        ids > 3,
        rate=0.15,
        maximum=maximum,
        mask_id=4,
        vocab_size=30_000,
        starts_word=np.ones(len(ids), bool) if starts is None else starts,
        longest_ngram=ngram,
    )


def test_lengths_of_ngrams() -> None:
    drawn = draw_ngrams(key(3, np.arange(200_000)), 3)
    np.testing.assert_allclose(np.bincount(drawn, minlength=4)[1:] / 200_000, [6 / 11, 3 / 11, 2 / 11], atol=0.005)


@pytest.mark.parametrize(
    ("length", "maximum", "exact", "runs"),
    [
        (512, 20, 20, (0.561, 0.267, 0.164)),
        (512, 77, 77, (0.512, 0.270, 0.178)),
        (128, 20, 19, (0.533, 0.269, 0.164)),
    ],
)
def test_ngram_masks_are_exact_and_their_runs_the_originals(
    length: int, maximum: int, exact: int, runs: tuple[float, ...]
) -> None:
    examples = 3000
    masked = mask(length, maximum, examples)
    assert (np.bincount(masked.positions // length, minlength=examples) == exact).all()
    # A run goes on across [SEP] (in the middle), which is no candidate.
    place = masked.positions - (masked.positions % length > length // 2)
    ends = np.flatnonzero(np.append(np.diff(place) != 1, True))
    sizes = np.diff(ends, prepend=-1)
    found = np.bincount(sizes, minlength=4)[1:4] / len(sizes)
    np.testing.assert_allclose(found, runs, atol=0.012)


def test_ngrams_are_whole_words_and_counts_stay_exact() -> None:
    length, examples = 128, 2000
    starts = np.random.default_rng(1).random(length * examples) < 0.7
    masked = mask(length, 20, examples, starts)
    counts = np.bincount(masked.positions // length, minlength=examples)
    assert counts.max() == 19
    assert (counts == 19).mean() > 0.999
    chosen = np.zeros(length * examples, bool)
    chosen[masked.positions] = True
    place = np.arange(length * examples) % length
    inside = ~starts & ~np.isin(place, (0, 1, length // 2, length // 2 + 1, length - 1))
    np.testing.assert_array_equal(chosen[inside], np.roll(chosen, 1)[inside])
    now = masked.input_ids[masked.positions]
    assert (now == 4).mean() == pytest.approx(0.8, abs=3 * np.sqrt(0.16 / len(now)))
    assert (now == masked.labels).mean() == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / len(now)))


def test_ngrams_may_straddle_the_separator() -> None:
    masked = mask(64, 20, 4000)
    around = np.isin(masked.positions % 64, (31, 33))
    both = np.intersect1d(masked.positions[around] + 2, masked.positions[around])
    apart = np.intersect1d(masked.positions + 2, masked.positions)
    rate = len(masked.positions) / (4000 * 61)
    assert len(both) / 4000 > 1.5 * rate**2, "masked together more often than by chance"
    assert len(apart)


def test_ngram_masks_do_not_depend_on_the_batch() -> None:
    whole, part = mask(64, 20, 50), mask(64, 20, 20)
    np.testing.assert_array_equal(whole.input_ids[: 64 * 20], part.input_ids)


def make(sharing: str = "all", layers: int = 3, dropout: float = 0.0, **more: Any) -> tuple[Objective, Any]:
    off = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    sizes = TINY.model_copy(update={"num_hidden_layers": layers, **off})
    config = albert.Config.model_validate({"sharing": sharing, **more})
    torch.manual_seed(0)
    objective = albert.build(config, sizes, tiny_tokenizer())
    return objective, albert.source(config, learnable_tokens(64), tiny_tokenizer(), sequence_length=32, seed=1)


def layers_of(model: Any) -> list[Any]:
    groups = model.albert.encoder.albert_layer_groups
    return [groups[min(i, len(groups) - 1)].albert_layers[0] for i in range(model.config.num_hidden_layers)]


def size(objective: Objective) -> int:
    return sum(parameter.numel() for parameter in objective.parameters())


def test_all_layers_are_one_and_their_number_costs_nothing() -> None:
    objective, _ = make("all")
    assert len({id(layer) for layer in layers_of(objective.model)}) == 1
    assert size(objective) == size(make("all", layers=7)[0])


def test_what_is_shared_is_the_same_parameter_and_counted_once() -> None:
    sizes = {sharing: size(make(sharing)[0]) for sharing in ("all", "attention", "ffn", "none")}
    attention = 4 * (32 * 32 + 32) + 64
    ffn = 32 * 128 + 128 + 128 * 32 + 32 + 64
    assert sizes["none"] == sizes["all"] + 2 * (attention + ffn)
    assert sizes["attention"] == sizes["all"] + 2 * ffn
    assert sizes["ffn"] == sizes["all"] + 2 * attention
    for sharing, shared, own in (("attention", "attention", "ffn"), ("ffn", "ffn_output", "attention")):
        objective, _ = make(sharing)
        layers = layers_of(objective.model)
        assert len({id(getattr(layer, shared)) for layer in layers}) == 1
        assert len({id(getattr(layer, own)) for layer in layers}) == 3
        held = [id(p) for group in parameter_groups(objective, 0.01) for p in group["params"]]
        assert len(held) == len(set(held)) == len(list(objective.parameters()))


def test_published_sizes() -> None:
    """Parameters with both heads, to the unit, and the table's 12M, 18M, 60M, 235M are near (fidelity, 2.2)."""

    class Vocabulary:
        pad_token_id, cls_token_id, sep_token_id = 0, 2, 3

        def __len__(self) -> int:
            return 30_000

        def get_vocab(self) -> dict[str, int]:
            return {"last": 29_999}

    sizes = {
        (12, 768, 12): 11_813_810,
        (24, 1024, 16): 17_847_474,
        (24, 2048, 16): 59_021_490,
        (12, 4096, 64): 223_158_450,
    }
    for (layers, width, heads), count in sizes.items():
        section = ModelSection(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads)
        with torch.device("meta"):
            model = AlbertForPreTraining(albert.albert_config(albert.Config(), section, cast(Any, Vocabulary())))
        assert sum(parameter.numel() for parameter in model.parameters()) == count
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_layer_norms_and_biases_are_exempt() -> None:
    decayed, exempt = parameter_groups(make("none")[0], 0.01)
    assert all(parameter.ndim == 2 for parameter in decayed["params"])
    assert all(parameter.ndim == 1 for parameter in exempt["params"])


def train(objective: Objective, source: Any, optimizer: Any, steps: range) -> None:
    data = Steps([source], [Phase(batch_size=16)], total_steps=20, seed=5, micro_batch_tokens=300)
    objective.train()
    for _ in training_steps(
        Accelerator(cpu=True),
        objective,
        optimizer,
        (data[step] for step in steps),
        learning_rate=lambda _: 1e-2,
        max_gradient_norm=1.0,
        seed=5,
    ):
        pass


@pytest.mark.parametrize("sharing", ["all", "attention", "ffn", "none"])
def test_resumed_and_exported_whatever_is_shared(sharing: str, tmp_path: Path) -> None:
    """Six steps of LAMB in one go and in two with a checkpoint between are the same bits, gradients included."""
    section = OptimSection(algorithm="lamb")
    whole, source = make(sharing, dropout=0.1)
    optimizer = build_optimizer(section, whole)
    train(whole, source, optimizer, range(3))
    path = save_checkpoint(tmp_path, step=3, model=whole, optimizer=optimizer, state={}, config="{}\n")
    train(whole, source, optimizer, range(3, 6))

    torch.manual_seed(99)
    resumed, _ = make(sharing, dropout=0.1)
    other = build_optimizer(section, resumed)
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.add_(1)
    load_checkpoint(path, model=resumed, optimizer=other)
    train(resumed, source, other, range(3, 6))
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert len({id(layer.attention) for layer in layers_of(resumed.model)}) == (3 if sharing in ("ffn", "none") else 1)

    exported = whole.exported()
    folder = export_model(exported, tiny_tokenizer(), tmp_path / "export", card="# test\n")
    reloaded = AlbertForPreTraining.from_pretrained(folder).eval()
    batch = source.collate(source.examples(0, 0)[:1])
    inputs = {"input_ids": batch.input.ids[None], "token_type_ids": batch.input.token_type_ids[None]}
    with torch.no_grad():
        theirs, ours = reloaded(**inputs), stock_outputs(whole.eval().model, batch)
    torch.testing.assert_close(theirs.prediction_logits, ours.prediction_logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(theirs.sop_logits, ours.sop_logits, atol=1e-5, rtol=0)


def test_partly_shared_weights_stay_equal_in_the_export_and_train_on_as_one() -> None:
    objective, source = make("attention")
    optimizer = build_optimizer(OptimSection(algorithm="lamb"), objective)
    train(objective, source, optimizer, range(2))
    first, *others = layers_of(objective.exported())
    for layer in others:
        assert layer.attention is not first.attention
        assert torch.equal(layer.attention.query.weight, first.attention.query.weight)
        assert not torch.equal(layer.ffn.weight, first.ffn.weight)
    assert len({id(layer.attention) for layer in layers_of(objective.model)}) == 1, (
        "exporting leaves training as it was"
    )


def test_the_order_head_has_no_dropout() -> None:
    objective, source = make("all", dropout=0.0)
    batch = source.collate(source.examples(0, 0)[:16])
    assert objective.exported().config.classifier_dropout_prob == 0.1, "for fine-tuning (Table 14)"
    values = {objective.train()(batch)["sop"].total.item() for _ in range(3)}
    assert len(values) == 1


def test_labels_are_what_the_order_head_learns_from() -> None:
    _, source = make()
    rows = source.examples(0, 0)[:64]
    batch = source.collate(rows)
    np.testing.assert_array_equal(batch.targets["order_labels"].numpy(), rows["label"])
    assert batch.counts["pairs"] == 64


def test_corpora_without_an_order_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    for documents, sentences, more, said in (
        (1, (5, 5), {}, "has one document.*objective.single_segment=drop"),
        (9, (1, 1), {}, "no two sentences.*objective.type=mlm"),
        (9, (1, 1), {"single_segment": "drop"}, "no two sentences"),
    ):
        config = albert.Config.model_validate(more)
        tokens = random_tokens(documents, sentences=sentences)
        with pytest.raises(ConfigError, match=said):
            albert.source(config, tokens, tokenizer, sequence_length=32, seed=1)
    drop = albert.Config(single_segment="drop")
    long = random_tokens(9, length=(60, 60))
    with pytest.raises(ConfigError, match="lengthen"):
        albert.source(drop, long, tokenizer, sequence_length=32, seed=1)
    assert albert.source(drop, random_tokens(1), tokenizer, sequence_length=64, seed=1).num_documents == 1


def test_predictions_of_the_paper_and_of_the_rate() -> None:
    tokens = random_tokens(20, sentences=(60, 60), vocab_size=512)
    for maximum, expected in ((20, 20), (None, 77)):
        config = albert.Config.model_validate({"masking": {"max_predictions": maximum}, "short_probability": 0})
        examples = albert.source(config, tokens, tiny_tokenizer(), sequence_length=512, seed=1)
        rows = examples.examples(0, 0)
        full = rows[rows["length"] == 512][:10]
        batch = examples.collate(full)
        assert batch.counts["masked"] == expected * len(full)

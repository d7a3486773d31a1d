"""What holds for the objectives that predict masked tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.nn import functional as F

from bertillery.engine.objective import Objective, objective_module
from tests.corpora import random_tokens, tiny_tokenizer
from tests.pretrain.test_objectives import OBJECTIVES, batch_of, make, ties, train


def masks(name: str) -> bool:
    _, source = make(objective_module("pretrain.objectives", {"type": name}))
    return "masked" in batch_of(source, 1).counts


@pytest.fixture(params=filter(masks, OBJECTIVES))
def module(request: pytest.FixtureRequest) -> Any:
    return objective_module("pretrain.objectives", {"type": request.param})


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def word_head(objective: Objective) -> Any:
    """Output layer of the exported model that predicts words: the first that has one."""
    models: list[Any] = [objective.exported(), *objective.auxiliary_models().values()]
    return next(model.get_output_embeddings() for model in models if model.get_output_embeddings() is not None)


def test_the_head_sees_masked_rows_only(module: Any) -> None:
    objective, source = make(module)
    batch, rows = batch_of(source), []
    word_head(objective).register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:-1].numel()))
    objective(batch)
    assert rows == [batch.counts["masked"]] == [len(batch.targets["masked_ids"])]


def test_initial_loss_is_that_of_guessing(module: Any) -> None:
    """ln V for masked words, ln 2 for pairs and for tokens; at the size of BERT's vocabulary BERT's is 11.02."""
    objective, source = make(module)
    objective.eval()
    batch = batch_of(source, 64)
    expected = {"masked": math.log(512), "pairs": math.log(2), "tokens": math.log(2)}
    for name, term in objective(batch).items():
        if term.weight and term.count != "entities":  # those of an example, tests/pretrain/test_ernie.py
            mean = term.total.item() / batch.counts[term.count]
            assert mean == pytest.approx(expected[term.count], rel=0.05), name


def test_an_example_has_a_mask_however_low_the_rate(module: Any) -> None:
    """Of words of one piece: where all are longer than there is room for none is masked, as in ALBERT's code."""
    tokens = random_tokens(40, sentences=(2, 3), length=(1, 2))
    tokens.ids = 6 + 3 * (tokens.ids % 168)
    settings = module.Config().model_dump()
    settings.get("masking", settings)["rate"] = 0.001
    config = module.Config.model_validate(settings)
    batch = batch_of(module.source(config, tokens, tiny_tokenizer(), sequence_length=8, seed=1), 30)
    places = torch.searchsorted(batch.input.offsets, batch.targets["masked_positions"], right=True) - 1
    assert places.tolist() == list(range(len(batch.input.offsets) - 1))


def test_without_any_mask_the_loss_is_finite(module: Any) -> None:
    objective, source = make(module)
    batch = batch_of(source)
    number = batch.counts["masked"]
    assert number not in (batch.counts.get("pairs"), batch.input.num_tokens)
    targets = {name: values[:0] if len(values) == number else values for name, values in batch.targets.items()}
    terms = objective(dataclasses.replace(batch, targets=targets, counts={**batch.counts, "masked": 0}))
    assert all(torch.isfinite(term.total).all() for term in terms.values())
    assert all(not term.total.any() for term in terms.values() if term.count == "masked")
    torch.stack([term.total for term in terms.values() if term.weight]).sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in objective.parameters())


def test_in_bfloat16_only_the_products_are(module: Any) -> None:
    """Cross-entropy in float32, from logits in bfloat16: their softmax in bfloat16 would be off by about 1 %."""
    objective, source = make(module)
    batch, logits = batch_of(source, 64), []
    word_head(objective).register_forward_hook(lambda _, __, output: logits.append(output.detach()))
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective(batch)
    assert logits[0].dtype == torch.bfloat16
    words = next(term.total for term in terms.values() if term.count == "masked" and term.weight)
    exact = F.cross_entropy(logits[0].double(), batch.targets["masked_ids"], reduction="sum")
    assert words.item() == pytest.approx(exact.item(), rel=1e-6)
    assert {term.total.dtype for term in terms.values() if term.weight} == {torch.float32}


def test_overfits_32_examples(module: Any, accelerator: Accelerator) -> None:
    """Within 500 steps every accuracy reaches 1, which a wrong label, mask or shift would prevent."""
    objective, source = make(module, num_documents=32)
    rows = source.examples(0, 0)[:32]
    source.examples = lambda epoch, block: rows
    source.num_blocks = 1
    train(accelerator, objective, source, steps=400, batch_size=32, rate=3e-3)
    batch = source.collate(rows)
    objective.eval()
    accuracies = {n: t.total.item() / batch.counts[t.count] for n, t in objective(batch).items() if "accuracy" in n}
    assert accuracies == dict.fromkeys(accuracies, pytest.approx(1.0, abs=0.02))


def test_initialisation_is_truncated(module: Any) -> None:
    objective, _ = make(module)
    table = objective.exported().get_input_embeddings().weight.detach()
    assert table.abs().max() <= 0.04
    assert table.std().item() == pytest.approx(0.02 * 0.8796, rel=0.03)  # deviation of a normal cut at two
    assert np.isclose(table[0].std().item(), 0.0176, rtol=0.3)  # [PAD] is a row like any other


def test_the_output_layer_is_tied_to_the_words(module: Any, accelerator: Accelerator) -> None:
    """After prepare and after steps."""
    objective, source = make(module)
    prepared = accelerator.unwrap_model(accelerator.prepare_model(objective))
    train(accelerator, prepared, source, steps=2)
    table = cast(Any, prepared.exported()).get_input_embeddings().weight
    assert word_head(prepared).weight is table
    assert word_head(make(module)[0]).weight is not table
    tied = [names for names in ties(prepared) if any("word_embeddings" in name for name in names)]
    assert len(tied) == 1
    assert len(tied[0]) > 1

"""The contract that every file in ``pretrain/objectives`` keeps, whatever it predicts.

A new objective is tested by being there. To show that nothing else is asked of one, a file with a regression is dropped
into the package for these tests.
"""

from __future__ import annotations

import json
import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, PreTrainedTokenizerBase

import pretrain.objectives
from bertillery.engine.batch import PackedBatch
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.loader import Phase, Steps
from bertillery.engine.loop import DivergedError, StepInfo, training_steps
from bertillery.engine.objective import Objective, objective_module
from bertillery.engine.optim import OptimSection, build_optimizer, learning_rate, parameter_groups
from bertillery.models.encoders import model_inputs
from bertillery.models.export import export_model
from bertillery.models.layers import attention, linear
from bertillery.models.layers.prepare import prepare_layers
from bertillery.run.checkpoint import load_checkpoint, save_checkpoint
from pretrain.config import load_config
from pretrain.initialization import load_weights, networks
from pretrain.model import ModelSection
from tests.corpora import learnable_tokens, tiny_tokenizer
from tests.knowledge.mentions import mentions

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OBJECTIVES = sorted(module.name for module in pkgutil.iter_modules(pretrain.objectives.__path__))
TINY = ModelSection(num_hidden_layers=2, hidden_size=32, num_attention_heads=2, max_position_embeddings=64)
STILL = TINY.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})


@pytest.fixture(params=[*OBJECTIVES, "regression"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    drop_in(monkeypatch)
    return objective_module("pretrain.objectives", {"type": request.param})


def drop_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the files of ``new_objectives`` into ``pretrain/objectives``."""
    folder = str(Path(__file__).with_name("new_objectives"))
    monkeypatch.setattr(pretrain.objectives, "__path__", [*pretrain.objectives.__path__, folder])


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def tokenizer_for(module: Any) -> PreTrainedTokenizerBase:
    """A tokenizer with the special tokens that an objective needs."""
    tokenizer = tiny_tokenizer()
    if module.Config.units == "documents":
        tokenizer.eos_token = "[SEP]"
    return tokenizer


def more_than_a_corpus(module: Any, tokens: Any) -> dict[str, Any]:
    """Further arguments of an objective that reads more than a corpus."""
    return {"knowledge": mentions(tokens)} if hasattr(module, "prepare") else {}


def make(
    module: Any, sizes: ModelSection = STILL, *, num_documents: int = 64, length: int = 32
) -> tuple[Objective, Any]:
    tokenizer, config = tokenizer_for(module), module.Config()
    torch.manual_seed(0)
    tokens = learnable_tokens(num_documents)
    more = more_than_a_corpus(module, tokens)
    objective = module.build(config, sizes, tokenizer, **more)
    prepare_layers(objective)  # as a run does
    return objective, module.source(config, tokens, tokenizer, sequence_length=length, seed=1, **more)


def train(
    accelerator: Accelerator,
    objective: Objective,
    source: Any,
    *,
    steps: int,
    batch_size: int = 16,
    micro_batch_tokens: int = 10**6,
    rate: float = 1e-3,
    seed: int = 5,
) -> list[StepInfo]:
    section = OptimSection.model_validate({"learning_rate": rate, "schedule": "linear", "warmup": 2})
    data = Steps(
        [source], [Phase(batch_size=batch_size)], total_steps=steps, seed=seed, micro_batch_tokens=micro_batch_tokens
    )
    objective.train()
    return list(
        training_steps(
            accelerator,
            objective,
            build_optimizer(section, objective),
            (data[step] for step in range(steps)),
            learning_rate=learning_rate(section, steps),
            max_gradient_norm=1.0,
            seed=seed,
        )
    )


def batch_of(source: Any, number: int = 16) -> PackedBatch:
    return source.collate(source.examples(0, 0)[:number])


def loss(objective: Objective, batch: PackedBatch) -> Tensor:
    terms = objective(batch).values()
    return torch.stack([term.weight * term.total / batch.counts[term.count] for term in terms if term.weight]).sum()


def stock_outputs(model: Any, batch: PackedBatch) -> Any:
    """What the model's own ``forward`` makes of a packed batch."""
    return model(**model_inputs(model.config, batch.input))


def weights(objective: Objective) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in objective.parameters()])


def test_counts_are_known_before_the_forward_pass(module: Any) -> None:
    objective, source = make(module)
    batch = batch_of(source)
    for name, term in objective(batch).items():
        assert term.total.ndim == 0 or not term.weight, name
        assert batch.counts[term.count] > 0, name


def test_terms_are_sums(module: Any) -> None:
    """Over two halves of a batch, totals and counts add up to those of the whole: nothing is a mean."""
    objective, source = make(module)
    rows = source.examples(0, 0)[:16]
    whole, *halves = (source.collate(part) for part in (rows, rows[:7], rows[7:]))
    found = [objective.eval()(half) for half in halves]
    for name, term in objective(whole).items():
        torch.testing.assert_close(sum(half[name].total for half in found), term.total, rtol=1e-4, atol=1e-4)
        assert sum(half.counts[term.count] for half in halves) == whole.counts[term.count], name


def test_processes_share_a_step(module: Any) -> None:
    """The terms of two processes add up to those of one."""
    objective, source = make(module)

    def sums(num_ranks: int) -> dict[str, tuple[float, int]]:
        totals: dict[str, tuple[float, int]] = {}
        for rank in range(num_ranks):
            step = Steps(
                [source], [Phase(batch_size=16)], total_steps=1, seed=5, micro_batch_tokens=200,
                num_ranks=num_ranks, rank=rank,
            )[0]  # fmt: skip
            for batch in step.micro_batches:
                for name, term in objective(batch).items():
                    total, count = totals.get(name, (0.0, 0))
                    totals[name] = (total + term.total.double().sum().item(), count + batch.counts[term.count])
        return totals

    one, two = sums(1), sums(2)
    assert one.keys() == two.keys()
    for name, (total, count) in one.items():
        assert two[name] == (pytest.approx(total, rel=1e-4), count)


def test_everything_trainable_gets_a_gradient(module: Any) -> None:
    objective, source = make(module)
    loss(objective, batch_of(source)).backward()
    missing = [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_a_step_lowers_the_loss(module: Any, accelerator: Accelerator) -> None:
    objective, source = make(module)
    batch = batch_of(source, 64)
    before = loss(objective.eval(), batch).item()
    train(accelerator, objective, source, steps=8, batch_size=64)
    assert loss(objective.eval(), batch).item() < before - min(0.05, before / 10)


@pytest.mark.parametrize("micro_batch_tokens", [40, 150])
def test_micro_batches_change_only_rounding(module: Any, accelerator: Accelerator, micro_batch_tokens: int) -> None:
    """20 steps in pieces equal 20 whole steps to 1e-5, without dropout."""
    results = []
    for size in (10**6, micro_batch_tokens):
        objective, source = make(module)
        infos = train(accelerator, objective, source, steps=20, micro_batch_tokens=size)
        assert (len(infos[0].terms) == 1) == (size == 10**6)
        results.append((weights(objective), torch.tensor([_loss_of(info) for info in infos])))
    (whole, whole_losses), (parts, part_losses) = results
    torch.testing.assert_close(part_losses, whole_losses, atol=1e-5, rtol=1e-5)
    assert (parts - whole).abs().max() < 1e-4
    assert (parts - whole).norm() / whole.norm() < 1e-5


def _mean(info: StepInfo, name: str) -> float:
    total = sum(terms[name].total.item() for terms, _ in info.terms)
    return total / sum(counts[terms[name].count] for terms, counts in info.terms)


def _loss_of(info: StepInfo) -> float:
    return sum(term.weight * _mean(info, name) for name, term in info.terms[0][0].items() if term.weight)


def test_dropout_follows_seed_and_step(module: Any, accelerator: Accelerator) -> None:
    """The same run twice is the same bit for bit; what else was drawn from torch in between does not matter."""
    results = []
    for extra in (0, 3):
        objective, source = make(module, TINY)
        torch.rand(extra)
        train(accelerator, objective, source, steps=3)
        results.append(weights(objective))
    assert torch.equal(*results)
    objective, source = make(module, TINY)
    train(accelerator, objective, source, steps=3, seed=6)
    assert not torch.equal(weights(objective), results[0])


def test_flops_equal_torchs_count(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_WORTH_A_KERNEL", 0)
    monkeypatch.setattr(linear, "kernel_rows", lambda number: number)
    monkeypatch.setattr(linear, "WITH_BIAS", None)  # torch's counter does not know the product
    objective, source = make(module)
    batch = batch_of(source)
    # In bfloat16 attention is plain matrix products, which torch's counter sees; it also sees their padding.
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        loss(objective, batch).backward()
    assert objective.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_export_reloads_with_equal_outputs(module: Any, tmp_path: Any) -> None:
    objective, source = make(module)
    objective.eval()
    folder = export_model(objective.exported(), tokenizer_for(module), tmp_path / "export", card="# test\n")
    assert AutoModel.from_pretrained(folder).config.model_type == module.Config.family
    reloaded = type(objective.exported()).from_pretrained(folder).eval()
    assert reloaded.config._attn_implementation in ("sdpa", "eager")  # not ours, which other programs lack
    if reloaded.get_output_embeddings() is not None:
        assert reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight
    batch = batch_of(source, 1)
    types = batch.input.token_type_ids
    inputs = {"input_ids": batch.input.ids[None], "token_type_ids": None if types is None else types[None]}
    with torch.no_grad():
        text = replace(batch, streams={"input": replace(batch.input, beside=None)})
        ours, theirs = stock_outputs(objective.exported(), text), reloaded(**inputs)
    torch.testing.assert_close(theirs[0], ours[0], atol=1e-5, rtol=0)


def test_it_goes_on_from_its_export_and_from_the_bare_encoder(module: Any, tmp_path: Path) -> None:
    """``model.from``: every tensor is the directory's bit for bit, what is not there is as freshly made, ties are kept.

    The directory alone decides sizes and the keys of the objective that are sizes.
    """
    name, tokenizer = module.Config().type, tokenizer_for(module)
    more = more_than_a_corpus(module, learnable_tokens(64))
    before, _ = make(module)
    with torch.no_grad():
        for parameter in before.parameters():
            parameter.copy_(torch.randn_like(parameter))
    whole = export_model(
        before.exported(), tokenizer, tmp_path / "whole", card="", auxiliary_models=before.auxiliary_models()
    )
    cast(Any, before.exported()).base_model.save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    for folder in (whole, tmp_path / "bare"):
        arguments = [f"objective.type={name}", f"model.from={folder}", "train.phases=[{sequence_length: 32}]"]
        config = load_config(arguments)
        assert config.model.hidden_size == 32
        torch.manual_seed(3)
        fresh = module.build(config.objective, config.model, tokenizer, **more)
        torch.manual_seed(3)
        objective = module.build(config.objective, config.model, tokenizer, **more)
        load_weights(objective, str(folder))
        assert ties(objective) == ties(fresh) == ties(before)
        there = dict(before.named_parameters())
        taken = 0
        for parameter, (path, found), new in zip(there, objective.named_parameters(), fresh.parameters(), strict=True):
            assert parameter == path
            assert torch.equal(found, there[path]) or (folder != whole and torch.equal(found, new)), path
            taken += torch.equal(found, there[path])
        body = cast(Any, before.exported()).base_model
        assert taken == len(there) if folder == whole else taken >= len(list(body.parameters())) > 0


def ties(objective: Objective) -> list[list[str]]:
    """Names by which one tensor is known, for every tensor."""
    names: dict[int, list[str]] = {}
    for name, parameter in objective.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return sorted(names.values())


def test_what_is_tied_stays_tied(module: Any, accelerator: Accelerator, tmp_path: Path) -> None:
    """After prepare, after a step, and in another objective that resumes."""
    objective, source = make(module)
    before = ties(objective)
    section = OptimSection()
    prepared = accelerator.unwrap_model(accelerator.prepare_model(objective))
    assert ties(prepared) == before
    train(accelerator, prepared, source, steps=2)
    optimizer = build_optimizer(section, prepared)
    path = save_checkpoint(tmp_path, step=2, model=prepared, optimizer=optimizer, state={}, config="")
    resumed, _ = make(module)
    load_checkpoint(path, model=resumed, optimizer=build_optimizer(section, resumed))
    assert torch.equal(weights(resumed), weights(prepared))
    assert ties(prepared) == ties(resumed) == before
    assert not {id(parameter) for parameter in prepared.parameters()} & {id(p) for p in resumed.parameters()}


def test_a_resumed_training_is_the_same_bit_for_bit(module: Any, accelerator: Accelerator, tmp_path: Path) -> None:
    """Four steps with dropout, in one go and with a checkpoint in another objective between them."""
    section = OptimSection()

    def steps(objective: Objective, optimizer: Any, source: Any, which: range) -> None:
        data = Steps([source], [Phase(batch_size=8)], total_steps=4, seed=5, micro_batch_tokens=100)
        found = (data[step] for step in which)
        list(
            training_steps(
                accelerator,
                objective.train(),
                optimizer,
                found,
                learning_rate=lambda _: 1e-3,
                max_gradient_norm=1,
                seed=5,
            )
        )

    whole, source = make(module, TINY)
    optimizer = build_optimizer(section, whole)
    steps(whole, optimizer, source, range(2))
    path = save_checkpoint(tmp_path, step=2, model=whole, optimizer=optimizer, state={}, config="")
    steps(whole, optimizer, source, range(2, 4))
    torch.manual_seed(9)
    resumed, _ = make(module, TINY)
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.zero_()
    other = build_optimizer(section, resumed)
    load_checkpoint(path, model=resumed, optimizer=other)
    steps(resumed, other, source, range(2, 4))
    assert torch.equal(weights(resumed), weights(whole))


def test_decay_is_for_all_but_layer_norms_and_biases(module: Any) -> None:
    objective, _ = make(module)
    decayed, exempt = parameter_groups(objective, 0.01)
    held = [id(parameter) for group in (decayed, exempt) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in objective.parameters() if parameter.requires_grad)
    assert {parameter.ndim for parameter in decayed["params"]} == {2}
    assert {parameter.ndim for parameter in exempt["params"]} == {1}
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.01, 0.0)


def test_networks_are_all_that_is_trained(module: Any) -> None:
    objective, _ = make(module)
    models = networks(objective)
    assert models.keys() == {"", *objective.auxiliary_models()}
    assert type(models[""]) is type(objective.exported())
    assert {id(p) for model in models.values() for p in model.parameters()} == {id(p) for p in objective.parameters()}


def test_held_out_numbers_do_not_depend_on_the_split(module: Any, accelerator: Accelerator) -> None:
    objective, source = make(module)
    values = [
        HeldOut(source, num_examples=50, micro_batch_tokens=tokens).evaluate(accelerator, objective)
        for tokens in (60, 10**6)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert objective.training
    terms = objective(batch_of(source))
    weighted = sum(term.weight * values[0][name] for name, term in terms.items() if term.weight)
    assert values[0]["loss"] == pytest.approx(weighted, rel=1e-6)
    assert values[0].keys() == {"loss", *terms}


def test_a_gradient_that_is_not_finite_stops_before_the_update(module: Any, accelerator: Accelerator) -> None:
    objective, source = make(module)
    with torch.no_grad():
        next(objective.parameters()).fill_(float("nan"))
    before = weights(objective)
    with pytest.raises(DivergedError, match=r"step 1: the loss .* is not finite .* were not updated"):
        train(accelerator, objective, source, steps=2)
    assert torch.equal(weights(objective).nan_to_num(), before.nan_to_num())


def test_reports_need_nothing_but_the_terms(module: Any, accelerator: Accelerator) -> None:
    """Every term with a title has a baseline that says what it is, and a number for it; nothing else has one."""
    objective, source = make(module)
    held_out = HeldOut(source, num_examples=40)
    values = held_out.evaluate(accelerator, objective)
    found = objective.baselines(held_out.batches(), np.ones(512, np.int64), values)
    titled = {name for name, term in objective(batch_of(source)).items() if term.title}
    assert titled
    assert held_out.shown.keys() == titled == found.keys()
    assert all(shown.baseline for shown in held_out.shown.values())
    assert all(np.isfinite(value) for value in found.values())


def test_the_first_example_is_shown(module: Any) -> None:
    _, source = make(module)
    assert "tokens" in source.show(batch_of(source, 1), tokenizer_for(module))


HOLDS_FOR = "float32 on a CPU, whatever its instructions and the number of threads"
TOLERANCE = 1e-4
"""In nats. Rounding moves the losses by 1e-6, from SSE4.1 to AVX-512 and with one thread or two; a dropout more in a
network of this size by 1e-3."""


def golden_losses(module: Any, accelerator: Accelerator) -> dict[str, list[float]]:
    """Losses of 20 steps with dropout, in float32."""
    objective, source = make(module, TINY)
    infos = train(accelerator, objective, source, steps=20)
    names = [name for name, term in infos[0].terms[0][0].items() if term.weight]
    return {name: [round(_mean(info, name), 6) for info in infos] for name in names}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_golden_losses(name: str, accelerator: Accelerator) -> None:
    """Losses as they were; a change that moves them on purpose rewrites the file with `make golden`."""
    module = objective_module("pretrain.objectives", {"type": name})
    expected = json.loads((GOLDEN / f"{module.Config().type}.json").read_text())
    losses = golden_losses(module, accelerator)
    assert (expected["holds_for"], expected["tolerance"]) == (HOLDS_FOR, TOLERANCE)
    assert losses.keys() == expected["losses"].keys()
    for name, values in losses.items():
        assert values == pytest.approx(expected["losses"][name], abs=expected["tolerance"]), name

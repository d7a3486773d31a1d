"""TinyBERT: raw scores, hidden states and embeddings, beside the library's own padded computation."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bertillery.config.layers import read_values
from bertillery.config.section import ConfigError, validate
from bertillery.engine.batch import PackedBatch
from bertillery.engine.loop import share_of_loss
from bertillery.engine.optim import OptimSection
from bertillery.engine.schedule import EpochSize, Schedule, steps_per_epoch
from bertillery.models.encoders import encode_layers
from bertillery.models.layers.attention import Recorded
from bertillery.models.relations import attention_scores, real_cells
from distill.config import load_config
from distill.objectives.tinybert import Config, Layers, attention_error, build
from distill.stage import TaskAgnostic
from distill.teacher import Teacher
from finetune.config import FinetuneTrainSection
from tests.corpora import write_text
from tests.distill.pairs import stock, student_of, teacher_of, values
from tests.finetune.texts import wordpiece
from tests.models.families import LENGTHS, batch_of, padded_inputs
from tests.models.test_relations import projections


def scores(model: Any, batch: PackedBatch) -> list[Tensor]:
    """Raw scores (B, heads, s, s) of each layer of a stock model, from what its linear layers return."""
    twin, heads = stock(model), model.config.num_attention_heads
    found = projections(twin, batch)
    cut = [[x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in found[part]] for part in "qk"]
    return [q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 for q, k in zip(*cut, strict=True)]


def expected_losses(objective: Layers, batch: PackedBatch, layers: list[int]) -> dict[str, float]:
    """Means over real tokens, over real pairs and heads, and over the elements of a state; summed over the layers."""
    student, teacher = objective.student, objective.teacher.module
    inputs, real = padded_inputs(student.config, batch)
    there, _ = padded_inputs(teacher.config, batch)
    pairs = (real[:, :, None] & real[:, None, :])[:, None].expand(-1, student.config.num_attention_heads, -1, -1)
    mine, theirs = scores(student, batch), scores(teacher, batch)
    attention = [F.mse_loss(mine[m][pairs], theirs[layer - 1][pairs]) for m, layer in enumerate(layers)]
    states = stock(student)(**inputs, output_hidden_states=True).hidden_states
    taught = stock(teacher)(**there, output_hidden_states=True).hidden_states
    errors = [
        F.mse_loss(objective.fit_dense(state[real]), taught[layer][real])
        for state, layer in zip(states, [0, *layers], strict=True)
    ]
    return {"attention": sum(attention).item(), "hidden": sum(errors[1:]).item(), "embedding": errors[0].item()}  # pyright: ignore


@pytest.mark.parametrize(
    ("kind", "section", "layers", "expected"),
    [
        ("bert", {"hidden_size": 16}, None, [3]),
        ("bert", {"num_hidden_layers": 3, "hidden_size": 16}, None, [1, 2, 3]),
        ("bert", {"num_hidden_layers": 2, "type": "distilbert"}, [1, 3], [1, 3]),
        ("albert", {"num_hidden_layers": 3}, None, [1, 2, 3]),
        ("electra", {"num_hidden_layers": 1, "hidden_size": 32}, None, [3]),
        ("distilbert", {"num_hidden_layers": 3, "hidden_size": 16}, None, [1, 2, 3]),
    ],
)
def test_losses_are_those_of_the_plain_library(
    kind: str, section: dict[str, Any], layers: list[int] | None, expected: list[int]
) -> None:
    teacher, batch = teacher_of(kind, words=False), batch_of(LENGTHS)
    student = student_of(teacher, words=False, **section)
    objective = build(Config(layers=layers), student, teacher).eval()
    assert objective.layers == expected
    found = {name: value.item() for name, value in values(objective, batch).items()}
    assert found == pytest.approx(expected_losses(objective, batch, expected), rel=1e-4)
    assert min(found.values()) > 1e-3
    assert share_of_loss(objective(batch), batch.counts).item() == pytest.approx(sum(found.values()))


def identity() -> Layers:
    teacher = teacher_of(words=False)
    objective = build(Config(), copy.deepcopy(teacher.module), teacher).eval()
    torch.nn.init.eye_(objective.fit_dense.weight)
    torch.nn.init.zeros_(objective.fit_dense.bias)
    return objective


def test_a_teacher_has_nothing_to_learn_from_itself() -> None:
    objective, batch = identity(), batch_of(LENGTHS)
    terms = objective(batch)
    assert [term.total.abs().max().item() for name, term in terms.items() if name != "unexplained"] == [0, 0, 0]
    nothing = terms["unexplained"]
    assert nothing.value(nothing.total.tolist(), 1.0) == 0
    torch.nn.init.zeros_(objective.fit_dense.weight)
    everything = objective(batch)["unexplained"]
    assert everything.value(everything.total.tolist(), 1.0) == pytest.approx(1)


def test_padding_does_not_matter() -> None:
    """The sums of sequences by themselves are those of a batch in which a long one makes the others pad."""
    teacher, lengths = teacher_of(words=False), [3, 4, 39, 5]
    objective, whole = build(Config(), student_of(teacher, words=False, hidden_size=16), teacher), batch_of(lengths)
    assert any(bias is not None for bias in whole.input.layout.biases)
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    alone: dict[str, float] = {}
    for begin, end in pairwise(ends):
        one = batch_of([end - begin])
        types = whole.input.token_type_ids
        assert types is not None
        stream = replace(one.input, ids=whole.input.ids[begin:end], token_type_ids=types[begin:end])
        one = replace(one, streams={"input": stream})
        for name, term in objective(one).items():
            if not term.total.ndim:
                alone[name] = alone.get(name, 0.0) + term.total.item()
    found = {name: term.total.item() for name, term in objective(whole).items() if not term.total.ndim}
    assert found == pytest.approx(alone, rel=1e-4)


def test_scores_are_compared_before_the_softmax() -> None:
    """A constant added to all scores of a query leaves its attention as it is, but not the loss."""
    batch, c = batch_of([9, 6, 9]), 3.0
    torch.manual_seed(0)
    query, key = torch.randn(2, batch.input.num_tokens, 2, 5).unbind()
    key[..., -1] = 1.0
    before = Recorded(query, key, key, 5**-0.5)
    moved = query.clone()
    moved[2, 0, -1] += c
    after = replace(before, query=moved)
    both = [attention_scores(each, batch.input.layout) for each in (before, after)]
    for one, other, cells in zip(*both, real_cells(batch.input.layout), strict=True):
        hidden = ~cells[:, None, None, :]
        torch.testing.assert_close(*((x.masked_fill(hidden, -torch.inf).softmax(-1)) for x in (one, other)))
    error = attention_error(after, before, batch.input.layout, real_cells(batch.input.layout))
    assert error.item() == pytest.approx((c * 5**-0.5) ** 2 * 9 / 2, rel=1e-4), "9 keys, one of two heads"


def test_one_projection_learns_from_all_levels_and_stays_behind() -> None:
    """Also where the widths are equal; embeddings and every layer pass through it."""
    teacher = teacher_of(words=False)
    objective = build(Config(), student_of(teacher, words=False, num_hidden_layers=3), teacher)
    outputs: list[Tensor] = []
    objective.fit_dense.register_forward_hook(lambda _, __, output: (output.retain_grad(), outputs.append(output))[0])
    batch = batch_of(LENGTHS)
    share_of_loss(objective(batch), batch.counts).backward()
    assert len(outputs) == 1 + 3
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in outputs)
    beside = {name for name in objective.state_dict() if not name.startswith("student.")}
    assert beside == {"fit_dense.weight", "fit_dense.bias"}
    assert not [name for name in objective.exported().state_dict() if "fit_dense" in name]
    with torch.no_grad():
        assert len(encode_layers(objective.exported(), batch.input)) == 4


def test_what_cannot_be_compared_is_refused() -> None:
    teacher = teacher_of(words=False)
    with pytest.raises(ConfigError, match=r"\(teacher 4, student 2\); .*objective.type=minilm"):
        build(Config(), student_of(teacher, words=False, num_attention_heads=2), teacher)
    two = student_of(teacher, words=False, num_hidden_layers=2)
    with pytest.raises(ConfigError, match="2 layers of the student do not divide the teacher's 3"):
        build(Config(), two, teacher)
    for layers in ([3], [2, 4], [3, 1], [1, 2, 3]):
        with pytest.raises(ConfigError, match=r"objective.layers: given .* from 1 to 3, for each of the student's 2"):
            build(Config(layers=layers), two, teacher)
    deeper = Teacher(teacher_of(words=False, num_hidden_layers=12).module)
    four = student_of(teacher, words=False, num_hidden_layers=4)
    assert build(Config(), four, deeper).layers == [3, 6, 9, 12]


@pytest.mark.parametrize("config", ["tinybert_general", "tinybert_general_6l", "tinybert_mini"])
def test_each_tensors_gradient_is_clipped_by_itself(config: str, tmp_path: Path) -> None:
    """What Adam's first moments hold after the first step is a tenth of the clipped gradients."""
    teacher, most = tmp_path / "teacher", 1e-4
    teacher_of(words=False, num_hidden_layers=1, vocab_size=len(wordpiece())).module.save_pretrained(teacher)
    wordpiece().save_pretrained(teacher)
    write_text(tmp_path / "text.txt")
    given = [f"data.path={tmp_path}/text.txt", f"run.dir={tmp_path}", f"run.data_dir={tmp_path}", "run.threads=1"]
    sizes = ["model.num_hidden_layers=1", "model.hidden_size=16", "model.num_attention_heads=4"]
    train = ["train.steps=4", "train.phases=[{batch_size: 8, sequence_length: 32}]", "train.log_every=1"]
    more = [f"teacher.from={teacher}", f"optim.max_gradient_norm={most}", "run.precision=fp32", "data.holdout=0.2"]
    trainer = TaskAgnostic(load_config([f"configs/distill/{config}.yaml", *given, *sizes, *train, *more])).start()
    info = next(trainer.steps(lambda step: 1e-3, lambda: False))
    norms = torch.stack([10 * state["exp_avg"].norm() for state in trainer.optimizer.state.values()])
    assert most / 2 < norms.max() <= most * 1.001
    assert norms.norm() > 2 * most, "together they are longer than that"
    assert info.gradient_norm > 10 * norms.norm(), "what is reported is the norm before"


@pytest.mark.parametrize("stage", ["before", None])
def test_the_released_code_leaves_an_incomplete_batch_out(stage: str | None) -> None:
    values, _ = read_values(["configs/distill/tinybert_task.yaml"])
    values = values[stage] if stage else values
    section, optim = validate(FinetuneTrainSection, values["train"]), validate(OptimSection, values["optim"])
    epochs = 20 if stage else 3
    assert Schedule.of(section, lambda: steps_per_epoch(section.phases, [EpochSize(3668, 0)])).total == 114 * epochs
    assert optim.clipping == "tensor"

"""A student's size to the unit, and whose weights it starts with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
)

from bertillery.config.section import ConfigError
from bertillery.models.encoders import encode, mlm_logits
from distill.config import load_config
from distill.student import StudentSection, build_student, spread, student_config, uniform
from tests.distill.pairs import STILL, TEACHERS, masked, stock, student_of, teacher_of
from tests.models.families import padded_inputs

ROOT = Path(__file__).resolve().parents[2]
CASED = BertConfig(vocab_size=28996)


def size(name: str, model_class: Any, teacher: BertConfig | None = None) -> int:
    """Parameters of the student that a configuration describes, beside BERT-Base; nothing is allocated."""
    section: Any = load_config([str(ROOT / f"configs/distill/{name}.yaml"), "teacher.from=none"]).model
    with torch.device("meta"):
        model = model_class(student_config(section, teacher or BertConfig()))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "model_class", "teacher", "expected"),
    [
        ("distilbert", DistilBertModel, None, 66_362_880),
        ("distilbert", DistilBertForMaskedLM, None, 66_985_530),
        ("distilbert", DistilBertForSequenceClassification, None, 66_955_010),
        ("distilbert", DistilBertModel, CASED, 65_190_912),
        ("distilbert", DistilBertForMaskedLM, CASED, 65_812_036),
        ("tinybert_general", BertModel, None, 14_350_248),
        ("tinybert_general", BertForSequenceClassification, None, 14_591_258 - 240_384),
        ("tinybert_general_6l", BertModel, None, 66_955_008),
        ("tinybert_general_6l", BertForSequenceClassification, None, 67_547_138 - 590_592),
    ],
)
def test_sizes_are_the_papers(name: str, model_class: Any, teacher: BertConfig | None, expected: int) -> None:
    assert size(name, model_class, teacher) == expected


def test_what_is_not_given_is_the_teachers() -> None:
    teacher = BertConfig(hidden_size=48, num_attention_heads=4, intermediate_size=100, layer_norm_eps=1e-5)
    config: Any = student_config(StudentSection(num_hidden_layers=2), teacher)
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (48, 4, 100)
    assert (config.max_position_embeddings, config.hidden_act, config.layer_norm_eps) == (512, "gelu", 1e-5)
    assert student_config(StudentSection(num_hidden_layers=2, hidden_size=24), teacher).intermediate_size == 96
    with pytest.raises(ConfigError, match="hidden_size 50 is not a multiple of num_attention_heads 4"):
        student_config(StudentSection(num_hidden_layers=2, hidden_size=50), teacher)


def test_layers_to_start_from() -> None:
    assert spread(6, 12) == [0, 2, 4, 7, 9, 11]
    assert spread(12, 12) == list(range(12))
    assert spread(1, 12) == [0]
    for student, teacher in ((2, 12), (3, 12), (4, 6), (5, 24)):
        found = spread(student, teacher)
        assert found[0] == 0
        assert found[-1] == teacher - 1
        assert found == sorted(set(found))
    with pytest.raises(ConfigError, match="a student of 4 layers cannot be started from a teacher of 3"):
        spread(4, 3)


def test_layers_to_compare_with() -> None:
    assert uniform(4, 12) == [3, 6, 9, 12]
    assert uniform(6, 12) == [2, 4, 6, 8, 10, 12]
    with pytest.raises(ConfigError, match=r"5 layers of the student do not divide the teacher's 12.*objective.layers="):
        uniform(5, 12)


_RENAMED = {
    "embeddings": "embeddings",
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
"""DistilBERT's name for each module of BERT's layer."""


def test_every_tensor_of_a_mapped_layer_is_the_teachers() -> None:
    """And embeddings, LayerNorm and word head; the student's decoder is its embedding."""
    teacher = teacher_of(words=True, num_hidden_layers=12)
    student: Any = student_of(teacher, words=True, type="distilbert", num_hidden_layers=6, start="teacher")
    mine, theirs = student.state_dict(), teacher.module.state_dict()
    compared = 0
    for layer, of in enumerate([0, 2, 4, 7, 9, 11]):
        names = [name for name in mine if name.startswith(f"distilbert.transformer.layer.{layer}.")]
        assert len(names) == 16
        for there, here in _RENAMED.items():
            for part in ("weight", "bias") if here != "embeddings" else ():
                left, right = (
                    f"distilbert.transformer.layer.{layer}.{here}.{part}",
                    f"bert.encoder.layer.{of}.{there}.{part}",
                )
                assert torch.equal(mine[left], theirs[right]), left
                compared += 1
    assert compared == 6 * 16
    for part in ("word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias"):
        assert torch.equal(mine[f"distilbert.embeddings.{part}"], theirs[f"bert.embeddings.{part}"])
    heads = {"vocab_transform": "dense", "vocab_layer_norm": "LayerNorm"}
    for here, there in heads.items():
        for part in ("weight", "bias"):
            assert torch.equal(mine[f"{here}.{part}"], theirs[f"cls.predictions.transform.{there}.{part}"])
    assert torch.equal(mine["vocab_projector.bias"], theirs["cls.predictions.bias"])
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight
    assert student.vocab_projector.weight is not teacher.module.get_input_embeddings().weight
    batch = masked()
    with torch.no_grad():
        rows = torch.arange(batch.input.num_tokens)
        logits = [mlm_logits(model.eval(), batch.input, rows) for model in (student, teacher.module)]
    assert (logits[0] - logits[1]).abs().mean() > 0.1 * logits[1].std()


def test_a_student_of_all_layers_is_its_teacher() -> None:
    """Of BERT, whose token types are copied; the copy that is trained leaves the teacher as it is."""
    teacher = teacher_of(words=True)
    student = student_of(teacher, words=True, num_hidden_layers=3, start="teacher").eval()
    batch = masked()
    rows = torch.arange(batch.input.num_tokens)
    with torch.no_grad():
        assert torch.equal(mlm_logits(student, batch.input, rows), mlm_logits(teacher.module, batch.input, rows))
        for parameter in student.parameters():
            parameter.add_(1)
        assert not torch.equal(mlm_logits(student, batch.input, rows), mlm_logits(teacher.module, batch.input, rows))


@pytest.mark.parametrize("of", ["bert", "distilbert"])
@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("kind", ["electra", "distilbert"])
def test_layers_of_other_families(kind: str, words: bool, of: str) -> None:
    """ELECTRA's generator, where its embeddings are as wide as it is, and DistilBERT itself."""
    teacher = teacher_of(kind, words=words, **({"embedding_size": 24} if kind == "electra" else {}))
    section = StudentSection(type=of, num_hidden_layers=2, start="teacher", layers=[0, 2], **STILL)  # pyright: ignore
    student, said = build_student(section, teacher.module, masked_words=words)
    types = kind == "electra" and of == "bert"
    assert said.startswith(f"{4 + types + 2 * 16 + words * 5} tensors copied from the teacher (layers 0, 2")
    mine, theirs = student.base_model, teacher.module.base_model
    stacks: list[Any] = [
        next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList)) for model in (mine, theirs)
    ]
    for here, there in ((0, 0), (1, 2)):
        for names in [*_RENAMED.items()][1:]:
            copy, original = (
                layer.get_submodule(names[family == "distilbert"])
                for layer, family in ((stacks[0][here], of), (stacks[1][there], kind))
            )
            assert torch.equal(copy.weight, original.weight), names
            assert torch.equal(copy.bias, original.bias), names


def test_what_cannot_be_copied_is_refused() -> None:
    bert = teacher_of(words=True)
    for kind in ("albert", "roberta"):
        with pytest.raises(
            ConfigError, match=f"layers of the family {kind} cannot be copied into a student.*start=random"
        ):
            student_of(teacher_of(kind, words=True), words=True, start="teacher")
    with pytest.raises(ConfigError, match=r"word_embeddings.weight: teacher \(90, 24\), student \(90, 16\)"):
        student_of(bert, words=True, start="teacher", hidden_size=16)
    with pytest.raises(ConfigError, match=r"layer 0.intermediate.dense.weight: teacher \(56, 24\), student \(30, 24\)"):
        student_of(bert, words=True, start="teacher", intermediate_size=30)
    with pytest.raises(ConfigError, match=r"word_embeddings.weight: teacher \(90, 16\)"):
        student_of(teacher_of("electra", words=True), words=True, start="teacher")
    with pytest.raises(ConfigError, match="a student of 4 layers cannot be started from a teacher of 3"):
        student_of(bert, words=True, start="teacher", num_hidden_layers=4)
    for layers in ([0, 1], [2, 0, 1], [0, 1, 3]):
        with pytest.raises(ConfigError, match=r"model.layers: given .* from 0 to 2, for each of the student's 3"):
            student_of(bert, words=True, start="teacher", num_hidden_layers=3, layers=layers)
    with pytest.raises(ConfigError, match=r"model.layers: nothing is copied"):
        student_of(bert, words=True, layers=[0])


@pytest.mark.parametrize("of", ["bert", "distilbert"])
@pytest.mark.parametrize("kind", TEACHERS)
def test_fresh_students_of_every_family(kind: str, of: str) -> None:
    """They read what the teacher reads, give a logit for each of its words, and are what the library makes of them."""
    teacher = teacher_of(kind, words=True)
    student = student_of(
        teacher, words=True, type=of, num_hidden_layers=2, hidden_size=16, num_attention_heads=2
    ).eval()
    batch = masked()
    with torch.no_grad():
        logits = mlm_logits(student, batch.input, torch.arange(batch.input.num_tokens), encode(student, batch.input))
        inputs, real = padded_inputs(student.config, batch)
        expected = stock(student)(**inputs).logits[real]
    assert logits.shape == (batch.input.num_tokens, teacher.module.config.vocab_size)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    linear: Any = next(module for module in student.modules() if isinstance(module, torch.nn.Linear))
    assert linear.weight.abs().max() <= 0.4 + 1e-6, "drawn from a truncated normal, as in pretraining"
    assert not linear.bias.any()

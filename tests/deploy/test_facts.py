"""Counts of a model beside those of torch, and scores of cards and seeds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertForMaskedLM

from bertillery.models.encoders import FAMILIES
from deploy.facts import facts_of, read_card, seeds_of
from deploy.timing import stock_inputs
from finetune.config import load_config
from finetune.report import model_card
from tests.deploy.models import classifier, saved
from tests.deploy.test_compare import comparison, facts
from tests.models.families import tiny_config

HEADS = ["SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "MaskedLM"]


def counted(model: Any, length: int) -> int:
    """FLOPs by torch's counter, which sees attention where it is plain products."""
    model.eval().set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(**stock_inputs(model, 1, length))
    return counter.get_total_flops()


@pytest.mark.parametrize("kind", FAMILIES)
def test_multiply_adds_are_half_of_torchs_count(kind: str, tmp_path: Path) -> None:
    config = tiny_config(kind)
    models = [getattr(transformers, f"AutoModelFor{head}").from_config(config) for head in HEADS]
    models += [AutoModel.from_config(config)]
    if kind in ("bert", "albert", "electra"):
        models += [transformers.AutoModelForPreTraining.from_config(config)]
    for model in models:
        facts = facts_of("a", tmp_path, model, [5, 17])
        assert {2 * n: length for length, n in facts.multiply_adds.items()} == {
            counted(model, length): length for length in (5, 17)
        }, type(model).__name__


def test_parameters_to_the_unit(tmp_path: Path) -> None:
    width, inner, vocabulary, positions, labels = 24, 56, 90, 40, 3
    tables = width * (vocabulary + positions + 2)
    layer = 4 * (width * width + width) + (width * inner + inner) + (inner * width + width) + 4 * width
    pooler, classes = width * width + width, width * labels + labels
    bert = facts_of("a", tmp_path, classifier("bert"), [4])
    assert bert.parameters == tables + 2 * width + 3 * layer + pooler + classes
    assert bert.without_embeddings == bert.parameters - tables
    narrow = 16
    tables = narrow * (vocabulary + positions + 2)
    albert = facts_of("a", tmp_path, classifier("albert"), [4])
    assert albert.parameters == tables + 2 * narrow + narrow * width + width + layer + pooler + classes
    assert albert.without_embeddings == albert.parameters - tables
    words = facts_of("a", tmp_path, BertForMaskedLM(cast(Any, tiny_config("bert"))), [4])
    transform = width * width + width + 2 * width
    assert words.without_embeddings == 2 * width + 3 * layer + transform + vocabulary  # the decoder is the table


def test_bytes_are_those_of_the_files_that_are_read(tmp_path: Path) -> None:
    model = classifier("bert")
    folder = saved(model, tmp_path / "a")
    (folder / "training_args.bin").write_bytes(b"12345")
    (folder / "pytorch_model.bin").write_bytes(b"12345")
    assert facts_of("a", folder, model, [4]).bytes == (folder / "model.safetensors").stat().st_size
    model.save_pretrained(tmp_path / "b", max_shard_size="20KB")
    shards = sorted((tmp_path / "b").glob("*.safetensors"))
    assert len(shards) > 1
    assert facts_of("b", tmp_path / "b", model, [4]).bytes == sum(file.stat().st_size for file in shards)


def test_scores_are_read_from_the_card(tmp_path: Path) -> None:
    found = {("mnli", "validation_matched"): {"accuracy": 0.8, "f1": 0.7}, ("sts", "validation"): {"pearson": -0.1}}
    assert read_card(saved(classifier("bert"), tmp_path / "a", found)).scores == found
    assert read_card(saved(classifier("bert"), tmp_path / "b")).scores == {}
    for broken in ("no metadata", "---\n- 1\n---\n", "---\nmodel-index:\n- name: x\n---\n", "---\na: [\n---\n"):
        (tmp_path / "b/README.md").write_text(broken)
        assert read_card(tmp_path / "b").scores == {}


def test_a_card_of_ours_says_what_a_comparison_asks(tmp_path: Path) -> None:
    given = ["task={name: rte, type: classification, labels: [a, b], metrics: accuracy, files: {train: x}}"]
    config = load_config([*given, f"model.from={saved(classifier('bert'), tmp_path / 'a')}"])
    text = model_card(
        "rte/a/seed-1", "a model", "", {"validation": {"accuracy": 0.5}}, config, "", None,
        baselines={"validation": {"majority": {"accuracy": 0.5}, "bag of words": {"accuracy": 0.6}}},
        warnings={"validation": "predicts the class 'a' for every example"},
    )  # fmt: skip
    (tmp_path / "README.md").write_text(text)
    card, key = read_card(tmp_path), ("rte", "validation")
    assert (card.scores, card.majority) == ({key: {"accuracy": 0.5}}, {key: {"accuracy": 0.5}})
    assert card.warnings == {key: "predicts the class 'a' for every example"}


def write_run(path: Path, **settings: Any) -> Path:
    """The folder of a run with this configuration, which has to be there to be compared; its export."""
    (path / "export").mkdir(parents=True)
    (path / "config.yaml").write_text(json.dumps(settings))
    return path / "export"


def test_seeds_are_those_of_the_same_runs(tmp_path: Path) -> None:
    start = {"from": "a/student"}
    one, two, eleven = (
        write_run(tmp_path / f"seed-{n}", run={"name": f"seed-{n}", "seed": n}, model=start, train={"keep": n})
        for n in (1, 2, 11)
    )
    other = write_run(tmp_path / "other", run={"seed": 3}, model=start)
    assert seeds_of(two) == ([two, one, eleven], [])
    assert seeds_of(other) == ([other], [])
    assert seeds_of(tmp_path / "seed-1") == ([tmp_path / "seed-1"], [])
    write_run(tmp_path / "seed-3", run={"seed": 3}, model=start, optim={"learning_rate": 0.001})
    write_run(tmp_path / "seed-4", run={"seed": 4}, model={"from": "b/student"})
    write_run(tmp_path / "seed-5").with_name("config.yaml").unlink()
    same, others = seeds_of(two)
    assert same == [two, one, eleven]
    assert others == [
        "seed-3 (optim.learning_rate: it has 0.001, the compared run has nothing)",
        "seed-4 (model.from: it has 'b/student', the compared run has 'a/student')",
        f"seed-5 (there is no {tmp_path}/seed-5/config.yaml)",
    ]
    noted = comparison([replace(facts("big", {}), left_out=tuple(others)), facts("small", {})], [10, 4]).tables()
    assert f"- big: not other seeds of the same run, and left out: {'; '.join(others)}." in noted
    assert "small: not" not in noted


def test_seeds_of_two_stages_are_those_of_the_same_first_stage(tmp_path: Path) -> None:
    def stages(seed: int, student: str) -> Path:
        before = {"run": {"seed": seed}, "model": {"from": student}}
        start = {"from": f"first/seed-{seed}/export"}
        return write_run(tmp_path / f"seed-{seed}", run={"seed": seed}, model=start, before=before)

    one, two, _ = stages(1, "a"), stages(2, "a"), stages(3, "b")
    assert seeds_of(one) == ([one, two], ["seed-3 (before.model.from: it has 'b', the compared run has 'a')"])

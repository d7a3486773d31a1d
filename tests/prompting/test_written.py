"""Answers that a model writes: what of them counts, what they are compared with, and the command."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from bertillery.config.section import InputError, validate
from prompting import written
from prompting.fewshot import evaluate, floors, main
from prompting.items import FewshotTask, Items, WrittenSection, draw_shots, read_items
from prompting.model import CausalModel
from prompting.written import check_metric, compare, first_sentences, trimmed
from tests.prompting.exports import write_causal

HAS_PACKAGES = find_spec("rouge_score") is not None and find_spec("sacrebleu") is not None
needs_packages = pytest.mark.skipif(not HAS_PACKAGES, reason="the extra evaluation is not installed")


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    return CausalModel.open(str(write_causal(tmp_path_factory.mktemp("model"))))


def values(folder: Path, **more: Any) -> dict[str, Any]:
    (folder / "test.tsv").write_text("".join(f"the cat {i}\tThe dog {i}. A mat.\n" for i in range(5)))
    data: dict[str, Any] = {"name": "pairs", "root": str(folder), "files": {"test": "test.tsv"}}
    data |= {"columns": ["source", "target"], "gold": "target"}
    section = {"metric": "rouge", "source": "source", "max_new_tokens": 6, **more}
    return {"data": data, "prompt": {"template": "{source} =", "separator": "\n", "written": section}}


def items_of(given: dict[str, Any]) -> Items:
    return read_items(validate(FewshotTask, given), Path("data"))


def test_what_counts_of_an_answer() -> None:
    assert trimmed(" One. Two! Three? Four.\nFive.", "\n", 3) == "One. Two! Three?"
    assert trimmed(" One. Two", "", None) == "One. Two"
    assert first_sentences("It is 3.5 m long. And wide.", 1) == "It is 3.5 m long."


@pytest.mark.parametrize("shots", [0, 2])
def test_answers_are_those_of_the_stock_model(
    causal: CausalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shots: int
) -> None:
    """Greedy, after the worked examples; a prompt with no room for all of them has fewer, and is cut from the left."""
    monkeypatch.setattr(written, "compare", lambda metric, answers, references: ({}, {}))
    items = items_of(values(tmp_path))
    found = evaluate(causal, items, shots, 1)
    assert len(found.answers) == 5
    context = items.context(items.items[3], draw_shots(items, 3, shots, 1))
    assert context.count(" = The dog") == shots
    assert len(causal.ids(context)) < causal.positions - 7
    ids = torch.tensor([[causal.end, *causal.ids(context)]])
    stock: Any = AutoModelForCausalLM.from_pretrained(causal.start)
    expected: Any = stock.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=causal.end
    )
    text = causal.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert found.answers[3] == trimmed(text, "\n", None)
    assert (found.fewer, found.cut) == (0, 0)


def test_prompts_that_do_not_fit_are_counted(
    causal: CausalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "compare", lambda metric, answers, references: ({}, {}))
    items = items_of(values(tmp_path, max_new_tokens=40))
    assert (evaluate(causal, items, 4, 1).fewer, evaluate(causal, items, 0, 1).cut) == (5, 0)
    assert evaluate(causal, items_of(values(tmp_path, max_new_tokens=62)), 0, 1).cut == 5
    with pytest.raises(InputError, match="has 64 positions for prompt and answer"):
        evaluate(causal, items_of(values(tmp_path, max_new_tokens=63)), 0, 1)


@needs_packages
def test_scores_are_those_of_the_libraries(tmp_path: Path) -> None:
    same = ["The cat sat on the mat today.", "A dog is not a cat."]
    for metric, names in (("rouge", ["rouge1", "rouge2", "rougeL", "average"]), ("bleu", ["bleu"])):
        means, errors = compare(metric, same, same)
        assert means == {name: pytest.approx(1) for name in names}
        assert [*errors] == names
    means, errors = compare("rouge", ["the cat", "x"], ["the cat sat on", "y"])
    assert means["rouge1"] == pytest.approx((2 / 3 + 0) / 2)
    assert errors["rouge1"] == pytest.approx(1 / 3)
    precisions = (9 / 10) * (8 / 9) * (7 / 8) * (6 / 7)
    found, _ = compare("bleu", ["a b c d e f g h i x"], ["a b c d e f g h i j"])
    assert found["bleu"] == pytest.approx(precisions**0.25)
    assert floors(items_of(values(tmp_path, metric="bleu")))["bleu of the source"] < 0.5


@needs_packages
def test_the_command(causal: CausalModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pairs.yaml").write_text(yaml.safe_dump(values(tmp_path, metric="bleu")))
    given = [
        str(tmp_path / "pairs.yaml"),
        f"model={causal.start}",
        "shots=[0,1]",
        "seeds=[1,2]",
        f"output={tmp_path}/o",
    ]
    assert main(given) == 0
    assert "bleu of the source" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "o/answers.jsonl").read_text().splitlines()]
    assert len(rows) == 15
    assert rows[0]["reference"] == "The dog 0. A mat."
    results = json.loads((tmp_path / "o/results.json").read_text())
    assert "tok:13a" in results["metric"]
    assert "answers" not in results["outcomes"][0]


def test_a_package_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"rouge is computed by rouge_score.*\.\[evaluation\]"):
        check_metric(WrittenSection(metric="rouge", source="a"))

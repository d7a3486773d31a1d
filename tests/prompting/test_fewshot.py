"""Evaluation in context: prompts, draws, floors, partial scoring, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertillery.config.layers import read_values
from bertillery.config.section import InputError, validate
from finetune.config import load_config
from prompting.fewshot import evaluate, floors, main
from prompting.items import FewshotTask, draw_shots, read_items
from prompting.model import CausalModel
from prompting.outcomes import results_table
from prompting.scorer import Request, Scorer, perplexities
from tests.finetune.tasks import write_encoder
from tests.prompting.exports import write_causal

ROOT = Path(__file__).resolve().parents[2]
PROMPTED = sorted((ROOT / "configs/prompting").glob("*.yaml"))


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> CausalModel:
    return CausalModel.open(str(write_causal(tmp_path_factory.mktemp("model"))))


def write_rows(folder: Path, number: int = 12, **more: Any) -> dict[str, Any]:
    rows = [
        {"query": f"the cat {i}", "choices": ["sat", "sat on", "the mat"][: 2 + i % 2], "gold": i % 2}
        for i in range(number)
    ]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "data": {
            "name": "cats",
            "root": str(folder),
            "files": {"test": "test.jsonl"},
            "options": "choices",
            "gold": "gold",
        },
        "prompt": {"template": "{query}", **more},
    }


def items_of(values: dict[str, Any]) -> Any:
    return read_items(validate(FewshotTask, values), Path("data"))


def test_prompts_hold_the_worked_examples_and_the_item(tmp_path: Path) -> None:
    items = items_of(write_rows(tmp_path, description="Cats.", separator="\n"))
    item, shot = items.items[3], items.items[1]
    assert items.pairs(item, []) == [
        ("Cats.\nthe cat 3", " sat"),
        ("Cats.\nthe cat 3", " sat on"),
        ("Cats.\nthe cat 3", " the mat"),
    ]
    assert items.pairs(item, [shot])[0][0] == "Cats.\nthe cat 1 sat on\nthe cat 3"


def test_without_worked_examples_there_is_no_separator(tmp_path: Path) -> None:
    items = items_of(write_rows(tmp_path))
    assert items.pairs(items.items[0], [])[0] == ("the cat 0", " sat")


def test_draws_are_pure_and_never_the_item(tmp_path: Path) -> None:
    items = items_of(write_rows(tmp_path))
    for number in range(12):
        drawn = draw_shots(items, number, 11, seed=3)
        assert items.items[number] not in drawn
        assert len(set(drawn)) == 11
        assert drawn == draw_shots(items, number, 11, seed=3)
    assert draw_shots(items, 0, 5, seed=3) != draw_shots(items, 0, 5, seed=4)
    with pytest.raises(InputError, match="cats has 11 other rows"):
        draw_shots(items, 0, 12, seed=3)


def test_floors(tmp_path: Path) -> None:
    found = floors(items_of(write_rows(tmp_path)))
    assert found == {"chance": pytest.approx((6 / 2 + 6 / 3) / 12), "majority": 0.5, "longest": 0.0, "shortest": 0.5}


def test_accuracy_is_that_of_the_scores(causal: CausalModel, tmp_path: Path) -> None:
    items = items_of(write_rows(tmp_path))
    outcome = evaluate(causal, items, 0, 1)
    right = normed = 0
    for item in items.items:
        scores = Scorer(causal).scores([Request(item.text, answer) for answer in item.answers])
        sums = [score.log_likelihood for score in scores]
        norms = [total / len(answer.strip()) for total, answer in zip(sums, item.answers, strict=True)]
        right += sums.index(max(sums)) == item.gold
        normed += norms.index(max(norms)) == item.gold
    assert outcome.metrics == {"accuracy": pytest.approx(right / 12), "accuracy_norm": pytest.approx(normed / 12)}


def test_partial_scoring_compares_what_follows(causal: CausalModel, tmp_path: Path) -> None:
    items = items_of(write_rows(tmp_path, template=" {query}", answer="{answer}", order="answer_first"))
    assert items.pairs(items.items[0], []) == [("sat", " the cat 0"), ("sat on", " the cat 0")]
    assert evaluate(causal, items, 1, 1).num_items == 12


def test_examples_that_do_not_fit_are_left_out_and_counted(causal: CausalModel, tmp_path: Path) -> None:
    items = items_of(write_rows(tmp_path))
    outcome = evaluate(causal, items, 11, 1)
    assert outcome.fewer == 12
    assert not causal.tokenizer.deprecation_warnings, "transformers warned that a text is too long"
    fitted = []
    for number, item in enumerate(items.items):
        drawn = draw_shots(items, number, 11, 1)
        lengths = [max(len(causal.ids(a + b)) for a, b in items.pairs(item, drawn[11 - n :])) for n in range(12)]
        fitted.append(max(n for n, length in enumerate(lengths) if length <= causal.positions))
    assert outcome.left_out == sum(11 - n for n in fitted)
    assert f"| 12 ({sum(fitted) / 12:.1f} of 11 did) |" in results_table("a", [outcome], {})


def test_a_cloze_wants_every_token(causal: CausalModel, tmp_path: Path) -> None:
    rows = [{"context": "the cat sat on the", "continuation": "mat"}] * 3
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"name": "last", "root": str(tmp_path), "files": {"test": "a.jsonl"}, "gold": "continuation"}
    outcome = evaluate(causal, items_of({"data": data, "prompt": {"template": "{context}"}}), 0, 1)
    (score,) = Scorer(causal).scores([Request("the cat sat on the", " mat")])
    assert outcome.metrics["accuracy"] == score.is_greedy
    assert outcome.metrics["perplexity"] == pytest.approx(2.718281828**-score.log_likelihood, rel=1e-4)


def test_whole_texts_are_read(causal: CausalModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no table is one text; of a table, each row is one. They take no worked examples."""
    text = "The cat sat on the mat.\n" * 9
    (tmp_path / "a.raw").write_text(text)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": text}) for _ in range(2)))
    expected = perplexities([Scorer(causal).rolling(text)], [text])
    for name, template, number in (("a.raw", "{text}", 1), ("a.jsonl", "{body}", 2)):
        values = {
            "data": {"name": "texts", "root": str(tmp_path), "files": {"test": name}},
            "prompt": {"template": template},
        }
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
        assert main([str(tmp_path / "a.yaml"), f"model={causal.start}", "shots=[0,4]", f"output={tmp_path}/o"]) == 0
        (outcome,) = json.loads((tmp_path / "o/results.json").read_text())["outcomes"]
        assert outcome["metrics"] == pytest.approx(expected)
        assert (outcome["shots"], outcome["num_items"]) == (0, number)
    assert "bits_per_byte" in capsys.readouterr().out


def test_items_that_are_cut_are_counted(causal: CausalModel, tmp_path: Path) -> None:
    outcome = evaluate(causal, items_of(write_rows(tmp_path, template="{query} " + "the mat " * 60 + "is")), 1, 1)
    assert (outcome.cut, outcome.fewer) == (12, 12)


def test_a_fine_tuning_task_with_a_prompt(causal: CausalModel, tmp_path: Path) -> None:
    """One YAML is both: fine-tuning passes over the prompt, and examples come from the training rows."""
    for name in ("train", "valid"):
        (tmp_path / f"{name}.csv").write_text(
            "text,label\n" + "".join(f"{name} cat {i},{'ab'[i % 2]}\n" for i in range(8))
        )
    task = {
        "name": "letters", "type": "classification", "labels": ["a", "b"], "metrics": "accuracy", "text": "text",
        "root": str(tmp_path), "files": {"train": "train.csv", "validation": "valid.csv"},
    }  # fmt: skip
    values = {"task": task, "prompt": {"template": "{text}", "labels": ["good", "bad"]}}
    (tmp_path / "letters.yaml").write_text(yaml.safe_dump(values))
    items = items_of(values)
    assert items.pairs(items.items[0], [])[0] == ("valid cat 0", " good")
    assert all(shot.text.startswith("train") for shot in draw_shots(items, 0, 8, seed=1))
    assert (
        load_config([str(tmp_path / "letters.yaml"), f"model.from={write_encoder(tmp_path, 'bert')}"]).task.name
        == "letters"
    )
    arguments = [str(tmp_path / "letters.yaml"), f"model={causal.start}", "shots=[0,2]", f"output={tmp_path}/out"]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [(o["shots"], o["seed"]) for o in results["outcomes"]] == [(0, 1), (2, 1), (2, 2), (2, 3)]
    assert (tmp_path / "out/shots.png").stat().st_size > 5000
    assert "+-" in results["table"]


@pytest.mark.parametrize("path", PROMPTED, ids=lambda path: path.stem)
def test_shipped_prompts_are_valid(path: Path) -> None:
    task = ROOT / f"configs/finetune/{path.stem}.yaml"
    values, sources = read_values([*([str(task)] if task.exists() else []), str(path)])
    config = validate(FewshotTask, values, sources)
    assert f"make fewshot TASK={path.stem} MODEL=" in path.read_text()
    if config.task is not None:
        assert len(config.prompt.labels) == len(config.task.labels)
        assert all(f"{{{column}}}" in config.prompt.template for column in config.task.text)
    assert not config.prompt.template.endswith(" ")


def test_bad_input_is_told(causal: CausalModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = write_rows(tmp_path)
    cases = [
        ({**values, "prompt": {"template": "{question}"}}, [], "has no column 'question'; it has query, choices, gold"),
        ({"data": values["data"]}, [], "a section prompt"),
        (values, [f"model={write_encoder(tmp_path, 'bert')}"], "is an encoder"),
        (values, ["data.files.test=none.jsonl"], "no such file"),
        (values, ["data.gold=label"], "no column 'label'"),
        (values, ["shots=[40]"], "other rows to draw from"),
        (values, ["promt.template=a"], "promt: unknown"),
        (values, ["data.gold=query"], "test.jsonl:1: query is 'the cat 0'; it is the number of one of 2 answers"),
        (values, ["data.options=query"], "test.jsonl:1: query is 'the cat 0'; it is a list of answers"),
        (values, ["prompt.written.metric=bleu", "prompt.written.source=query"], "prompt.written needs the references"),
    ]
    for number, (given, more, said) in enumerate(cases):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(given))
        assert main([str(file), f"model={causal.start}", *more]) == 2
        assert said in capsys.readouterr().err

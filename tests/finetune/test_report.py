"""Names and texts that others wrote, in what a fine-tuning run leaves and says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bertillery.config.section import ConfigError, validate
from bertillery.report.card import fact_list, model_card
from finetune.data.splits import Split
from finetune.report import hardest_examples, results_table, write_predictions
from finetune.task import TaskSection, task_type_of
from finetune.task_types.base import Predicted

FORMULA, TURNED = '=HYPERLINK("http://x","y")', "\x1b[2J\u202eabc\x00"


def section(labels: list[str]) -> TaskSection:
    values: dict[str, Any] = {"name": "toy", "type": "classification", "labels": labels, "metrics": "accuracy"}
    return validate(TaskSection, {**values, "files": {"train": "x", "validation": "y"}}, {})


def test_tables_hold_no_formulas_and_the_screen_no_control_characters(tmp_path: Path) -> None:
    kind = task_type_of(section(["+1+1", FORMULA]))
    texts = [FORMULA, TURNED, "@SUM(A1)"]
    split = Split("validation", (texts,), np.array([0, 1, 1]), np.arange(3))
    predicted = Predicted(split, np.array([[0.9, 0.1]] * 3, np.float32), np.zeros(3, np.int64))
    told = hardest_examples(predicted, kind, tmp_path / "hardest.tsv")
    write_predictions(tmp_path / "predictions", {"validation": predicted}, kind)
    for file in (tmp_path / "hardest.tsv", tmp_path / "predictions/validation.tsv"):
        lines = file.read_text().split("\n")[:-1]
        assert len(lines) == 4
        cells = [cell for line in lines for cell in line.split("\t")]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
        assert all(cell.isprintable() for cell in cells)
    assert all(line.isprintable() for line in told.splitlines())
    assert kind.ensemble([tmp_path / "predictions/validation.tsv"] * 2) == {"accuracy": pytest.approx(1 / 3)}


def test_names_in_cards_are_no_markup() -> None:
    name, fact = "run\n# <script>x</script>", "weights of <img src=x>\n## Scores"
    warning = "predicts the class '<script>x</script>|' for every example"
    for card in (
        model_card(name, fact_list({"weights at the start": fact}), config="a: 1\n"),
        results_table({"validation": {}}, {"validation": {}}, {"validation": warning}, {}),
    ):
        body = card.split("---\n", 2)[-1].replace("\\<", "")
        assert "<script" not in body
        assert "<img" not in body
        assert [line for line in body.splitlines() if line.startswith("#")][1:] in ([], ["## Configuration"])


def test_labels_are_one_line() -> None:
    with pytest.raises(ConfigError, match="line breaks or control characters"):
        section(["good", "bad\nworse"])

"""What W&B is told of one run of each stage, read back from the offline files: that of a chain from a corpus to a
student, so that the lineage is one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bertillery.report.plot import plot_curves
from distill.__main__ import main as distill
from experiments.dashboard import BOARDS, EFFORT
from finetune.__main__ import main as finetune
from pretrain.__main__ import main as pretrain
from tests.corpora import write_text
from tests.finetune.tasks import write_task
from tests.finetune.test_translation import MODEL, RUN, write_pairs
from tests.wandb_record import Record, read

TINY = """
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, max_position_embeddings: 64}
tokenizer: {vocab_size: 200}
data: {holdout: 0.2}
objective: {type: mlm}
train: {steps: 4, phases: [{batch_size: 4, sequence_length: 32}], log_every: 2, save_every: 4, evaluate_every: 2}
"""
STUDENT = """
model: {num_hidden_layers: 1}
data: {holdout: 0.2}
objective: {type: distilbert}
train: {steps: 4, phases: [{batch_size: 4, sequence_length: 32}], log_every: 2, save_every: 4, evaluate_every: 2}
"""
STEPS = ["train.steps=4", "train.log_every=2", "train.save_every=4", "train.evaluate_every=2"]


DRAWN: dict[str, list[int]] = {}
"""Steps at which the curves of runs were drawn."""


def counting(folder: str, plot: Callable[..., None]) -> Callable[..., None]:
    def plot_curves(metrics: Path, *given: Any) -> None:
        rows = [json.loads(line) for line in metrics.read_text().splitlines()]
        DRAWN.setdefault(folder, []).append(max(row["step"] for row in rows))
        plot(metrics, *given)

    return plot_curves


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """By job type."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_DIR"):
            patch.delenv(variable, raising=False)
        for variable in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
            patch.setenv(variable, str(folder / "home"))
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_CONSOLE", "off")
        write_text(folder / "text.txt")
        write_task(folder / "task")
        write_pairs(folder / "toy", 24)
        (folder / "tiny.yaml").write_text(TINY)
        (folder / "student.yaml").write_text(STUDENT)
        at = [f"run.dir={folder}/runs", f"run.data_dir={folder}/data", "run.threads=1", "run.device=cpu"]
        text, encoder = f"data.path={folder}/text.txt", f"{folder}/runs/pretrain/tiny/export"
        patch.setattr("pretrain.stage.plot_curves", counting("pretrain", plot_curves))
        patch.setattr("distill.stage.plot_curves", counting("distill", plot_curves))
        with pytest.MonkeyPatch.context() as long:
            long.setattr("bertillery.run.stage._REDRAWN_AFTER", 0.0)
            assert pretrain([f"{folder}/tiny.yaml", *at, text]) == 0
        task = [f"{folder}/task/task.yaml", *at, *STEPS, f"model.from={encoder}", "tracking.wandb=auto"]
        assert finetune(task) == 0
        assert distill([f"{folder}/student.yaml", *at, text, f"teacher.from={encoder}"]) == 0
        run = [each for each in RUN if not each.startswith("tracking")]
        assert finetune([f"{folder}/toy/task.yaml", *MODEL, *run, *at, *STEPS]) == 0
    runs = {
        "pretrain": "pretrain/tiny",
        "finetune": "finetune/classification_toy/tiny/seed-12345",
        "distill": "distill/student",
        "translate": "finetune/toy/tiny/seed-12345",
    }
    return {job: read(folder / "runs" / path) for job, path in runs.items()}


def contents(artifact: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["path"]: each for each in artifact["manifest"]["contents"]}


@pytest.mark.parametrize(
    ("job", "name", "group", "tags"),
    [
        ("pretrain", "tiny", "mlm/1x16", ["pretrained", "mlm", "1x16"]),
        ("finetune", "classification_toy/tiny/seed-12345", "classification_toy/tiny",
         ["fine-tuned", "classification_toy", "tiny"]),
        ("distill", "student", "distilbert/tiny", ["student", "distilbert", "tiny"]),
        ("translate", "toy/tiny/seed-12345", "toy/tiny", ["fine-tuned", "toy", "tiny"]),
    ],
)  # fmt: skip
def test_runs_are_listed_by_task_model_and_stage(
    records: dict[str, Record], job: str, name: str, group: str, tags: list[str]
) -> None:
    run = records[job].run
    assert (run["job_type"], run["display_name"], run["run_group"]) == (job, name, group)
    assert run["tags"][: len(tags)] == tags
    assert "cpu" in run["tags"]
    assert records[job].exit_code == 0
    assert [alert["title"] for alert in records[job].alerts] == ["finished"]


@pytest.mark.parametrize(
    ("job", "axis", "best"),
    [
        ("pretrain", "tokens", {"loss": "min", "mlm_accuracy": "max"}),
        ("finetune", "examples", {"loss": "min", "accuracy": "max", "macro_f1": "max"}),
        ("distill", "tokens", {"loss": "min", "kl": "min", "cosine": "min", "mlm": "min", "mlm_accuracy": "max"}),
        (
            "translate",
            "examples",
            {"loss": "min", "perplexity": "min", "accuracy": "max", "bleu": "max", "chrf": "max"},
        ),
    ],
)
def test_metrics_have_an_axis_and_a_best_value(
    records: dict[str, Record], job: str, axis: str, best: dict[str, str]
) -> None:
    found = records[job]
    assert {found.metrics[name]["step_metric"] for name in ("train/*", "held_out/*", "held_out/loss")} == {axis}
    assert {
        name.removeprefix("held_out/"): next(each for each in metric["summary"] if each != "last")
        for name, metric in found.metrics.items()
        if "summary" in metric
    } == best
    seen = [row["held_out/loss"] for row in found.history if "held_out/loss" in row]
    assert len(seen) == 2
    assert found.summary["held_out/loss.min"] == min(seen)
    assert found.summary["held_out/loss.last"] == seen[-1]
    for name in ("tokens", "examples"):
        values = [row[name] for row in found.history if name in row]
        assert values == sorted(values)
        assert values[0] > 0
        assert all(name in row for row in found.history if "train/loss" in row or "held_out/loss" in row)


def test_no_number_has_two_names(records: dict[str, Record]) -> None:
    for job, record in records.items():
        rows = [{n: v for n, v in row.items() if n.startswith(("train/", "held_out/"))} for row in record.history]
        names = {name for row in rows for name in row}
        same = [
            (one, other)
            for one in names
            for other in names
            if one < other
            and (both := [row for row in rows if one in row and other in row])
            and all(row[one] == row[other] != 0 for row in both)
            and isinstance(both[0][one], float)
        ]
        assert same == [], job
    assert "train/mlm" not in records["pretrain"].names()
    assert "train/cross_entropy" not in records["finetune"].names()
    assert "train/mlm" in records["distill"].names(), "where the loss is a sum, its terms are shown"


def test_the_lineage_leads_from_a_corpus_to_a_student(records: dict[str, Record]) -> None:
    made = records["pretrain"].made["tiny"]
    assert made["type"] == "model"
    assert {*made["aliases"]} == {"latest", "pretrained"}
    assert {part["type"] for part in records["pretrain"].used.values()} == {"corpus", "tokenizer"}
    for job in ("finetune", "distill"):  # the same artifact, by its content
        assert records[job].used["tiny"]["digest"] == made["digest"]
    (student,) = records["distill"].made.values()
    assert (student["name"], "student" in student["aliases"]) == ("student", True)
    (tuned,) = records["finetune"].made.values()
    assert (tuned["name"], "fine-tuned" in tuned["aliases"]) == ("tiny-classification_toy", True)
    rows = {name for name in records["finetune"].used if name.startswith("classification_toy")}
    assert rows == {f"classification_toy-{split}-rows" for split in ("train", "validation", "test")}
    corpora = [name for job in ("pretrain", "distill") for name in records[job].used if name.startswith("corpus-")]
    assert len(corpora) == 2
    assert len({*corpora}) == 1, "two stages that read one text read one corpus"
    tokenizers = [name for record in records.values() for name in record.used if name.startswith("tokenizer-")]
    assert len({*tokenizers}) == 2, "of pretraining and of translation; a model brings its own"


def test_what_is_large_is_a_reference_and_what_is_small_is_stored(records: dict[str, Record]) -> None:
    weights = contents(records["pretrain"].made["tiny"])["model.safetensors"]
    assert weights["ref"].startswith("file:///")
    (corpus,) = (each for each in records["pretrain"].used.values() if each["type"] == "corpus")
    assert all("ref" in file for name, file in contents(corpus).items() if name.endswith(".bin"))
    (tokenizer,) = (each for each in records["pretrain"].used.values() if each["type"] == "tokenizer")
    assert {"tokenizer.json", "tokenizer_config.json"} <= contents(tokenizer).keys()
    assert "ref" not in contents(tokenizer)["tokenizer.json"]
    for record in records.values():
        for artifact in [*record.used.values(), *record.made.values()]:
            assert "fingerprint.json" in contents(artifact)
            assert re.fullmatch(r"[0-9a-f]{64}", json.loads(artifact["metadata"])["sha256"])
            stored = [int(file["size"]) for file in contents(artifact).values() if "ref" not in file]
            assert sum(stored) < 5e6


def test_examples_are_shown_in_tables(records: dict[str, Record]) -> None:
    guesses = records["pretrain"].tables["masked_tokens"]
    assert guesses["columns"] == ["sentence", "hidden", "best", "second", "third"]
    assert guesses["data"]
    assert all("[MASK]" in row[0] and "%" in row[2] for row in guesses["data"])
    assert records["distill"].tables["masked_tokens"]["columns"] == guesses["columns"]
    shown, hardest = (records["finetune"].tables[name] for name in ("predictions", "hardest_examples"))
    assert shown["columns"] == ["id", "first", "second", "expected", "predicted", "error",
                                "p(red)", "p(green)", "p(blue)"]  # fmt: skip
    assert len(shown["data"]) == 41
    errors = [row[5] for row in hardest["data"]]
    assert errors == sorted(errors, reverse=True)
    for row in shown["data"]:
        assert row[5] == pytest.approx(1 - row[6 + ["red", "green", "blue"].index(row[3])], abs=1e-6)
    translations = records["translate"].tables["translations"]
    assert translations["columns"] == ["source", "reference", "translation", "attention"]
    assert {row[3]["_type"] for row in translations["data"]} == {"image-file"}
    assert len(translations["data"]) == 4


def test_confused_classes_and_distributions_are_drawn_by_wandb(records: dict[str, Record]) -> None:
    found = records["finetune"]
    assert sum(row[2] for row in found.tables["confusion_table"]["data"]) == 41
    assert found.summary["errors._type"] == "histogram"
    assert sum(found.summary["errors.values"]) == 41
    assert {record.summary["held_out/lengths._type"] for record in records.values()} == {"histogram"}


def test_the_summary_has_results_beside_baselines(records: dict[str, Record]) -> None:
    found = records["finetune"].summary
    assert found["score"] == found["result/validation/accuracy"] == found["held_out/accuracy.last"]
    assert 0 < found["baseline/validation/accuracy/majority"] < 1
    assert records["pretrain"].summary["result/loss"] == records["pretrain"].summary["held_out/loss.last"]
    assert records["pretrain"].summary["baseline/mlm"] > 0
    assert records["distill"].summary["teacher/mlm"] > 0
    assert records["translate"].summary["score"] == records["translate"].summary["result/validation/bleu"]
    assert any("score" in row for row in records["finetune"].history), "a sweep reads what was logged"


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.title)
def test_a_dashboard_shows_what_runs_record(records: dict[str, Record], board: Any) -> None:
    """Everything it names was recorded by some run, and most of it by this stage's."""
    own, everywhere = records[board.job_type].names(), {key for each in records.values() for key in each.names()}
    elsewhere = {"held_out/bits_per_byte", "samples", "entities", "questions"}  # of other models and tasks
    curves = [*board.learning, *EFFORT]
    assert {name for curve in curves for name in curve.metrics} <= everywhere | elsewhere
    for curve in curves:
        assert not curve.pattern or any(re.search(curve.pattern, name) for name in everywhere), curve.title
    assert {*board.best, *board.bars, *board.tables, *board.media} <= everywhere | elsewhere
    assert {board.axis, board.best[0], *board.bars[:1], board.media[0], board.tables[0]} <= own


def test_curves_are_drawn_at_evaluations_of_a_run_that_takes_long(records: dict[str, Record]) -> None:
    assert DRAWN == {"pretrain": [2, 4, 4], "distill": [4]}, "with baselines at the end"

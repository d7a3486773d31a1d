"""The examples of ``docs/extending.md``: its diffs, applied to a copy of the tree, add files that work as they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from tests.corpora import write_text

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(TASK,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
TINY = [
    "run.device=cpu", "run.precision=fp32", "run.threads=1", 'tracking.wandb="off"', "train.steps=4",
    "train.phases=[{batch_size: 4, sequence_length: 32}]", "train.log_every=1", "train.save_every=2",
    "train.evaluate_every=2",
]  # fmt: skip
SIZES = [
    "model.num_hidden_layers=2", "model.hidden_size=16", "model.num_attention_heads=2",
    "model.max_position_embeddings=32", "tokenizer.vocab_size=200",
]  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with all diffs of the page, beside a text."""
    folder = tmp_path_factory.mktemp("extending")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs git and a checkout")
    for name in {*listed.stdout.split("\0")} - {""}:
        if (ROOT / name).is_file() and not name.startswith(("tests/before/", "docs/")):
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder)}
    for diff in DIFFS:
        applied = subprocess.run(
            ["git", "apply", "-"], cwd=folder / "tree", env=alone, input=diff, capture_output=True, text=True
        )
        assert not applied.returncode, applied.stderr
    (folder / "text").mkdir()
    write_text(folder / "text/a.txt")
    return folder / "tree"


def python(tree: Path, *arguments: str) -> str:
    """Standard output of a fresh process in the copy; it must end well, and nothing beside the run may fail."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed: " not in done.stderr, done.stderr
    return done.stdout


def trained(tree: Path, stage: str, config: str, *settings: str) -> tuple[Path, str]:
    """The folder of a run of a command, and what it said."""
    name, folder = Path(config).stem, tree.parent
    places = [f"run.dir={folder}/runs", f"run.name={name}"]
    said = python(tree, "-m", stage, config, *TINY, *settings, *places)
    return folder / "runs" / stage / name, said


def corpus(tree: Path) -> list[str]:
    return [f"data.path={tree.parent}/text", "data.holdout=0.2", f"run.data_dir={tree.parent}/data"]


@pytest.fixture(scope="module")
def span(tree: Path) -> tuple[Path, str]:
    return trained(tree, "pretrain", "configs/pretrain/span_mini.yaml", *SIZES, *corpus(tree))


@pytest.fixture(scope="module")
def gated(tree: Path) -> tuple[Path, str]:
    return trained(tree, "pretrain", "configs/pretrain/gated_mini.yaml", *SIZES, *corpus(tree))


def test_a_diff_is_short_and_edits_no_file() -> None:
    assert [len(re.findall("^```diff", section, re.MULTILINE)) for section in SECTIONS[1:]] == [1, 1, 2, 1]
    for diff in DIFFS:
        files = re.findall(r"^diff --git a/(\S+) b/\1$", diff, re.MULTILINE)
        assert files
        assert len(files) == diff.count("\nnew file mode 100644\n--- /dev/null\n+++ b/")
        assert not any((ROOT / file).exists() for file in files)
        assert max(len(line) for line in diff.splitlines()) <= 121
        code = diff.split("\ndiff --git ")[0]
        assert len(code.splitlines()) < 110, files


def test_an_objective_is_trained_exported_and_reported(span: tuple[Path, str]) -> None:
    run, said = span
    results = json.loads((run / "finished.json").read_text())
    _, _, loss, accuracy = (line.strip("| ").split("|") for line in results["table"].splitlines())
    assert loss[0].strip() == "MLM loss of spans (nats)"
    assert [cell.strip() for cell in loss[2:]] == [f"{results['baselines']['mlm']:.4f}", "unigrams, and copying"]
    assert accuracy[0].strip() == "MLM accuracy"
    assert results["table"] in (run / "export/README.md").read_text()
    assert (run / "curves.png").stat().st_size > 10_000
    assert "about 5 of 32 tokens" in said
    assert not any(AutoModelForMaskedLM.from_pretrained(run / "export", output_loading_info=True)[1].values())


def test_spans_cover_the_rate_and_are_runs(tree: Path) -> None:
    code = """
import numpy as np, torch
from pretrain.objectives import span
from tests.corpora import random_tokens, tiny_tokenizer
tokenizer = tiny_tokenizer()
tokens = random_tokens(40, vocab_size=512)
source = span.source(span.Config(rate=0.15), tokens, tokenizer, sequence_length=128, seed=1)
rows = source.examples(0, 0)[:200]
batch = source.collate(rows)
positions = batch.targets["masked_positions"].numpy()
plain = source.lay_out(rows)
assert not plain.special[positions].any()
assert (plain.input_ids[positions] == batch.targets["masked_ids"].numpy()).all()
assert (np.diff(positions) > 0).all()
examples = np.repeat(np.arange(len(rows)), plain.lengths)
assert len(np.unique(examples[positions])) == len(rows)
offsets = np.concatenate([np.arange(length) for length in plain.lengths])
inside = np.flatnonzero((offsets >= 10) & ~plain.special)  # where spans of every length may reach
print(np.isin(inside, positions).mean(), len(positions) / (1 + (np.diff(positions) > 1).sum()))
half = source.collate(rows[100:])
whole = positions[positions >= plain.lengths[:100].sum()] - plain.lengths[:100].sum()
assert (half.targets["masked_positions"].numpy() == whole).all()
"""
    share, length = map(float, python(tree, "-c", code).split())
    assert share == pytest.approx(0.15, abs=0.01)
    assert 3.3 < length < 4.8


def test_a_task_type_is_found_trained_and_reported(tree: Path, span: tuple[Path, str]) -> None:
    folder = tree.parent
    levels = ["bad", "poor", "fair", "good"]
    rows = [{"text": "river " * (1 + number) + "garden", "label": levels[number % 4]} for number in range(12)]
    (folder / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "reviews.yaml").write_text(TASK)
    files = [f"task.files.{split}={folder}/reviews.jsonl" for split in ("train", "validation", "test")]
    run, said = trained(
        tree, "finetune", f"{folder}/reviews.yaml", *files, f"model.from={span[0]}/export", "recipe=none"
    )
    assert "ordinal, scored by near, accuracy" in said
    results = json.loads((run / "finished.json").read_text())
    scores, baselines = results["scores"]["validation"], results["baselines"]["validation"]
    assert list(scores) == ["near", "accuracy"]
    assert scores["near"] >= scores["accuracy"]
    assert baselines["majority"] == {"near": pytest.approx(9 / 12), "accuracy": pytest.approx(3 / 12)}
    predictions = (run / "predictions/test.tsv").read_text().splitlines()
    assert len(predictions) == 13
    assert {line.split("\t")[1] for line in predictions[1:]} <= {*levels}
    assert (run / "curves.png").exists()
    assert (run / "confusion.png").exists()
    model = AutoModelForSequenceClassification.from_pretrained(run / "export")
    assert model.config.id2label == dict(enumerate(levels))


def test_a_family_is_trained_and_opens_after_import_bertillery(tree: Path, gated: tuple[Path, str]) -> None:
    run, said = gated
    assert "GatedForMaskedLM" in said
    code = """
import sys, warnings
import bertillery
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer
assert bertillery.__file__.startswith(sys.argv[2])
model, report = AutoModelForMaskedLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(report.values()), report
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts = ["a river", "the old garden by the river"]
both = tokenizer(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    padded = model(**both).logits
    for text, found in zip(texts, padded):
        alone = model(**tokenizer(text, return_tensors="pt")).logits[0]
        torch.testing.assert_close(found[: len(alone)], alone)
    packed = torch.cat([tokenizer(text, return_tensors="pt")["input_ids"][0] for text in texts])
    positions = torch.cat([torch.arange(int(number)) for number in both["attention_mask"].sum(1)])
    flat = model(packed[None], position_ids=positions[None]).logits[0]
    torch.testing.assert_close(flat, padded[both["attention_mask"].bool()])
print(type(model).__name__)
"""
    assert python(tree, "-c", code, str(run / "export"), str(tree)).strip() == "GatedForMaskedLM"


def test_a_method_distils_also_from_the_new_family(tree: Path, gated: tuple[Path, str]) -> None:
    settings = f"teacher.from={gated[0]}/export", "model.num_hidden_layers=1", *corpus(tree)
    run, said = trained(tree, "distill", "configs/distill/cosine_mini.yaml", *settings)
    assert "GatedModel" in said
    assert "1 - cosine of last hidden states" in (run / "export/README.md").read_text()
    assert (run / "curves.png").exists()
    student = AutoModel.from_pretrained(run / "export")
    assert (student.config.model_type, student.config.num_hidden_layers) == ("bert", 1)


def test_the_contract_tests_find_the_new_files(tree: Path) -> None:
    """The cheap ones run; that the others are collected is enough, since they are the same for all objectives."""
    chosen = "(span or gated) and (sums or flops or gradient or reloads or valid or opens)"
    files = "tests/pretrain/test_objectives.py", "tests/test_configs.py"
    said = python(tree, "-m", "pytest", "-vv", "-k", chosen, *files)
    for name in ("test_terms_are_sums", "test_flops_equal_torchs_count", "test_export_reloads_with_equal_outputs"):
        assert all(f"{name}[{each}]" in said for each in ("span", "gated"))
    assert "test_configuration_is_valid_and_round_trips[gated_mini]" in said

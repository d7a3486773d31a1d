from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from bertillery.models.encoders import FAMILIES, longest_sequence, sequence_logits
from bertillery.models.export import export_model
from bertillery.models.layers.attention import NAME
from deploy import onnx
from deploy import timing as speed
from finetune.examples import TextExamples
from tests.corpora import tiny_tokenizer
from tests.deploy.models import classifier, saved
from tests.models.families import tiny_config


@pytest.fixture
def runtime() -> Any:
    """onnxruntime, where all that the extra installs is there."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason="an optional extra: pip install 'bertillery[onnx]'")
    return pytest.importorskip("onnxruntime", reason="an optional extra: pip install 'bertillery[onnx]'")


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_TURN", 0.001)


def exported(folder: Path) -> int:
    return onnx.main([f"model={folder}", "lengths=[8]", "batch_sizes=[1,2]"])


@pytest.mark.parametrize("kind", ["distilbert", "bert", "albert"])
def test_what_is_exported_answers_as_the_model_does(
    kind: str, tmp_path: Path, runtime: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = classifier(kind, num_hidden_layers=1)
    folder = saved(model, tmp_path / kind)
    assert exported(folder) == 0
    said = capsys.readouterr()
    assert sorted(file.name for file in (folder / "onnx").iterdir()) == ["model.onnx", "model_int8.onnx"]
    assert {file.name for file in folder.iterdir() if file.name.startswith("onnx")} == {"onnx"}
    assert "W1" not in said.err
    exact, small = (runtime.InferenceSession(folder / "onnx" / f"{name}.onnx") for name in ("model", "model_int8"))
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (kind != "distilbert")
    assert [given.name for given in exact.get_inputs()] == names
    assert [given.shape for given in exact.get_inputs()] == [["batch", "sequence"]] * len(names)
    rng = np.random.default_rng(1)
    for batch_size, length in ((1, 1), (3, 40), (5, 9)):
        inputs = {name: rng.integers(0, 2, (batch_size, length)) for name in names}
        inputs["input_ids"] = rng.integers(5, 90, (batch_size, length))
        inputs["attention_mask"][:, 0] = 1
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).logits.numpy()
        (found,) = exact.run(["logits"], inputs)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        (rough,) = small.run(["logits"], inputs)
        assert 0 < np.abs(rough - expected).max() < np.abs(expected).max()


def test_other_heads_and_their_outputs(tmp_path: Path, runtime: Any) -> None:
    heads = {
        "spans": (AutoModelForQuestionAnswering, "roberta", ["start_logits", "end_logits"]),
        "choices": (AutoModelForMultipleChoice, "bert", ["logits"]),
    }
    for name, (head, kind, outputs) in heads.items():
        folder = saved(head.from_config(tiny_config(kind, num_hidden_layers=1)), tmp_path / name)
        assert exported(folder) == 0
        session = runtime.InferenceSession(folder / "onnx/model.onnx")
        assert [given.name for given in session.get_outputs()] == outputs


def test_an_export_that_answers_otherwise_is_refused_and_removed(
    tmp_path: Path, runtime: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(classifier("distilbert", num_hidden_layers=1), tmp_path / "a")
    (folder / "onnx").mkdir()
    (folder / "onnx/model.onnx").write_text("an older one")
    export = onnx.export

    def slightly_off(model: Any, file: Path) -> None:
        other = copy.deepcopy(model)
        nn.init.constant_(other.classifier.bias, 1e-2)
        export(other, file)

    monkeypatch.setattr(onnx, "export", slightly_off)
    assert exported(folder) == 2
    said = capsys.readouterr()
    assert "is off by 1.0e-02" in said.err
    assert not said.out
    assert (folder / "onnx/model.onnx").read_text() == "an older one"
    assert not (folder / "onnx.partial").exists()


def test_parity_is_of_answers_not_of_padding() -> None:
    """Every way of being wrong is seen, what stands at padding is not."""

    class Wrong:
        def __init__(self, model: Any, change: Any) -> None:
            self.model, self.change = model, change

        def prepare(self, inputs: Any) -> Any:
            (found,) = onnx._outputs(self.model, inputs).values()
            return lambda: [self.change(found.copy(), inputs["attention_mask"].numpy())]

    def parity(model: Any, change: Any) -> onnx.Parity:
        return onnx.compare(model, Wrong(model, change))  # type: ignore[arg-type]

    words = AutoModelForMaskedLM.from_config(tiny_config("bert")).eval()
    at_padding = parity(words, lambda found, mask: np.where(mask[..., None] == 1, found, 7e7))
    assert at_padding.holds
    assert (at_padding.difference, at_padding.same) == (0, 1)
    assert not parity(words, lambda found, mask: found * (1 + 2e-4)).holds
    assert not parity(words, lambda found, mask: found * np.nan).holds
    classes = classifier("bert")
    assert parity(classes, lambda found, mask: found * (1 + 2e-5)).holds
    other = parity(classes, lambda found, mask: -found)
    assert other.same == 0
    assert other.difference == pytest.approx(2 * other.scale)
    assert (
        parity(classifier("bert", id2label={0: "score"}, label2id={"score": 0}), lambda found, mask: found).same is None
    )


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForMultipleChoice])
def test_the_printed_line_runs_on_what_the_tokenizer_gives(
    kind: str, head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the tokenizer beside the model gives unasked, and for texts that are too long; the exporter and its
    runtime are stood in for by the model."""

    class Runs:
        def __init__(self, file: Path | str) -> None:
            self.file = file

        def prepare(self, inputs: dict[str, torch.Tensor]) -> Any:
            return lambda: [*onnx._outputs(model, inputs).values()]

        def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert inputs.keys() == onnx.stock_inputs(model, 1, 2).keys(), "another input than the file has"
            return self.prepare({name: torch.from_numpy(value) for name, value in inputs.items()})()

    tokenizer = tiny_tokenizer(90)
    tokenizer.model_max_length = 38
    tokenizer.save_pretrained(tmp_path)
    model = head.from_config(tiny_config(kind, num_hidden_layers=1, num_labels=3, pad_token_id=0)).eval()
    saved(model, tmp_path)
    monkeypatch.setattr(onnx, "_check_packages", lambda: None)
    monkeypatch.setattr(onnx, "export", lambda model, file: file.write_bytes(b"model"))
    monkeypatch.setattr(onnx, "quantize", lambda file, small: small.write_bytes(b"model"))
    monkeypatch.setattr(onnx, "Session", Runs)
    assert exported(tmp_path) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to use")]
    words = {"texts": ["w1 w2", "w4 " * 99], "text": "w1", "choices": ["w2", "w4 " * 99, "w5"]}
    runtime = SimpleNamespace(InferenceSession=Runs)
    (logits,) = eval(
        line.removeprefix("to use").strip(),
        {**words, "onnxruntime": runtime, "tokenizer": AutoTokenizer.from_pretrained(tmp_path)},
    )
    assert logits.shape == ((2, 3) if head is AutoModelForSequenceClassification else (1, 3))


@pytest.mark.parametrize("kind", ["distilbert", "albert", "roberta"])
def test_the_printed_line_answers_as_we_do(
    kind: str, tmp_path: Path, runtime: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer(90)
    config = tiny_config(kind, num_hidden_layers=1, num_labels=3, pad_token_id=0)
    model: Any = AutoModelForSequenceClassification.from_config(config, attn_implementation=NAME).eval()
    folder = export_model(model, tokenizer, tmp_path / "export", card="")
    assert exported(folder) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to use")]
    texts = ["w1 w2", "w4 " * 99, "w5", "w7"]
    names = {"texts": texts, "onnxruntime": runtime, "tokenizer": AutoTokenizer.from_pretrained(folder)}
    found = eval(line.removeprefix("to use").strip(), names)[0]
    examples = TextExamples((texts,), None, tokenizer, max_length=longest_sequence(config), seed=0)
    with torch.inference_mode():
        ours = sequence_logits(model, examples.collate(examples.examples(0, 0)).input).numpy()
    np.testing.assert_allclose(found, ours, atol=1e-4 * np.abs(ours).max())


def test_missing_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxruntime" else name)
    assert exported(tmp_path) == 2
    said = capsys.readouterr().err
    assert "not installed: onnxruntime; install what is missing with `make onnx" in said

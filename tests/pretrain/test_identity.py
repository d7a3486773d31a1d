"""A run is what it was begun from: other inputs are refused, and what is exported again is the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

import pretrain.stage
from pretrain.__main__ import main
from pretrain.objectives import bert
from tests.corpora import write_text
from tests.kept import restored
from tests.models.test_frame import framed_bpe

CONFIG = """
model: {num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, max_position_embeddings: 32}
tokenizer: {vocab_size: 200}
data: {holdout: 0.2}
objective: {type: bert}
optim: {learning_rate: 3.0e-3, warmup: 2 steps}
train: {steps: 4, phases: [{batch_size: 4, sequence_length: 32}], log_every: 1, save_every: 2, evaluate_every: 2}
tracking: {wandb: "off"}
run: {threads: 1}
"""
RUN = "runs/pretrain/a"


def arguments(folder: Path) -> list[str]:
    places = {"run.dir": "runs", "run.data_dir": "data", "data.path": "text"}
    return [str(folder / "tiny.yaml"), "run.name=a", *(f"{key}={folder / name}" for key, name in places.items())]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text in ``text/``, its prepared corpus, and a finished run."""
    folder = tmp_path_factory.mktemp("identity")
    (folder / "text").mkdir()
    write_text(folder / "text/a.txt")
    (folder / "tiny.yaml").write_text(CONFIG)
    assert main(arguments(folder)) == 0
    return folder


@pytest.fixture
def folder(finished: Path) -> Path:
    """The same folder, in which every test finds the same text and the same run."""
    return restored(finished)


def interrupt(run: Path) -> None:
    """Make the run what it was after the first of its two checkpoints."""
    (run / "finished.json").unlink()
    shutil.rmtree(run / "export")
    shutil.rmtree(run / "checkpoints/step-0000000004")


def exported(run: Path) -> dict[Path, bytes]:
    """All but the card, which tells the speed."""
    return {path: content for path, content in state(run / "export").items() if path.suffix != ".md"}


def state(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"}


def add_a_file(folder: Path) -> str:
    write_text(folder / "text/b.txt", seed=7)
    return "corpus files: was 1 file of"


def edit_in_place(folder: Path) -> str:
    """As many bytes, and other words."""
    text = (folder / "text/a.txt").read_text()
    (folder / "text/a.txt").write_text(text.replace("e", "a"))
    return "corpus: was "


@pytest.mark.parametrize("change", [add_a_file, edit_in_place])
def test_an_interrupted_run_refuses_another_corpus(
    folder: Path, capsys: pytest.CaptureFixture[str], change: object
) -> None:
    """By name, and with nothing overwritten."""
    interrupt(folder / RUN)
    before, said = state(folder / RUN), change(folder)  # type: ignore[operator]
    assert main(arguments(folder)) == 2
    error = capsys.readouterr().err
    assert f"{folder / RUN} was made from other inputs than this command gives" in error
    assert said in error
    assert "run.name=<new>" in error
    assert state(folder / RUN) == before


def test_files_that_were_only_touched_are_the_same_corpus(folder: Path) -> None:
    expected = exported(folder / RUN)
    interrupt(folder / RUN)
    os.utime(folder / "text/a.txt", ns=(1, 1))
    assert main(arguments(folder)) == 0
    assert exported(folder / RUN) == expected


@pytest.mark.parametrize("change", [None, add_a_file, edit_in_place])
def test_a_finished_run_says_what_has_changed_since(
    folder: Path, capsys: pytest.CaptureFixture[str], change: object
) -> None:
    """It is left alone, and nothing is prepared in order to compare."""
    before = state(folder / RUN)
    if change:
        change(folder)  # type: ignore[operator]
    assert main(arguments(folder)) == 0
    said = capsys.readouterr().out
    assert "is finished; for another run" in said
    sure = "may be" if change is edit_in_place else "is"  # only the file's time says so
    assert (f"{sure} the result of other inputs than the present ones" in said) == (change is not None)
    assert ("corpus files: was 1 file of" in said) == (change is not None)
    assert state(folder / RUN) == before
    assert len([*(folder / "data").iterdir()]) == 1


@pytest.mark.parametrize("lost", ["export", "weights", "export and finished.json"])
def test_a_finished_run_without_its_export_exports_again(
    folder: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    """The same bytes, with the tokenizer that the weights were trained with, whatever became of the text."""
    run = folder / RUN
    expected, results = state(run / "export"), json.loads((run / "finished.json").read_text())
    if lost == "weights":
        weights = run / "export/model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8] + b"\0\1\2\3\4\5\6\7")
    else:
        shutil.rmtree(run / "export")
    if lost == "export and finished.json":
        (run / "finished.json").unlink()
    add_a_file(folder)
    assert main(arguments(folder)) == 0
    assert state(run / "export") == expected
    assert json.loads((run / "finished.json").read_text()) == results
    assert (run / "export.damaged").exists() == (lost == "weights")
    assert "is finished; for another run" not in capsys.readouterr().out


def test_a_run_that_was_killed_before_all_was_shown_is_finished(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers are there, and what was half-written is removed by the next start."""
    run = folder / RUN
    interrupt(run)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(pretrain.stage.Pretraining, "show", killed)
        assert main(arguments(folder)) == 130
    for name in ("finished.json", "export/README.md", "checkpoints/step-0000000002"):
        (run / f"{name}.123.partial").write_text("half of")
    capsys.readouterr()
    assert main(arguments(folder)) == 0
    said = capsys.readouterr()
    assert "is finished; for another run" in said.out
    assert "MLM loss" in said.out
    assert not [*run.rglob("*.partial")]


def test_a_finished_run_with_neither_export_nor_checkpoints_is_told_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("export", "checkpoints"):
        shutil.rmtree(folder / RUN / part)
    before = state(folder)
    assert main(arguments(folder)) == 2
    assert "it has no checkpoint to export again" in capsys.readouterr().err
    assert state(folder) == before


def test_a_run_of_before_goes_on_and_is_pinned_from_then_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It has neither ``inputs.json`` nor a word of its inputs in its checkpoints."""
    run = folder / RUN
    expected = exported(run)
    interrupt(run)
    (run / "inputs.json").unlink()
    shutil.rmtree(run / "tokenizer")
    (checkpoint,) = (run / "checkpoints").iterdir()
    old = json.loads((checkpoint / "state.json").read_text())
    old = {key: old[key] for key in ("step", "cursor", "seed", "total_steps")}
    (checkpoint / "state.json").write_text(json.dumps(old, indent=1))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    content = (checkpoint / "state.json").read_bytes()
    manifest["state.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert main(arguments(folder)) == 0
    assert "no record of its inputs" in capsys.readouterr().out
    found = exported(run)
    config = json.loads(expected[run / "export/config.json"])
    assert config.pop("pretraining_tokens") > 0  # not known of a run of before
    assert json.loads(found[run / "export/config.json"]) == config
    assert {path: found[path] for path in found if path.name != "config.json"} == {
        path: expected[path] for path in expected if path.name != "config.json"
    }
    assert set(json.loads((run / "inputs.json").read_text())) == {"corpus files", "corpus", "tokenizer"}


def test_without_its_record_a_run_has_that_of_its_checkpoints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interrupt(folder / RUN)
    (folder / RUN / "inputs.json").unlink()
    edit_in_place(folder)
    assert main(arguments(folder)) == 2
    assert "step-0000000002 was made from other inputs" in capsys.readouterr().err


def test_the_kept_tokenizer_is_the_exports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another one in its place is refused."""
    run = folder / RUN
    assert (run / "tokenizer/tokenizer.json").read_bytes() == (run / "export/tokenizer.json").read_bytes()
    interrupt(run)
    file = run / "tokenizer/tokenizer.json"
    file.write_text(file.read_text().replace('"##a"', '"##zz"'))
    assert main(arguments(folder)) == 2
    assert "not the tokenizer that the weights are trained with" in capsys.readouterr().err


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("nothing to see")


@pytest.mark.parametrize("name", ["baselines", "fill_masks", "plot_curves", "model_card"])
def test_what_is_only_shown_never_costs_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    expected = exported(folder / RUN)
    interrupt(folder / RUN)
    monkeypatch.setattr(bert.Bert if name == "baselines" else pretrain.stage, name, fail)
    assert main(arguments(folder)) == 0
    assert "nothing to see" in caplog.text
    assert (folder / RUN / "finished.json").exists()
    assert exported(folder / RUN) == expected


def test_a_place_that_cannot_be_written_is_noticed_before_anything_is_prepared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    given = [*arguments(folder), f"run.dir={tmp_path}/file/runs", f"run.data_dir={tmp_path}/data"]
    assert main(given) == 2
    assert f"{tmp_path}/file/runs/pretrain/a" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_a_tokenizer_of_another_frame_is_refused_before_its_corpus_is_prepared(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    framed_bpe(pair="<s> $A </s> $B </s>").save_pretrained(folder / "theirs")
    before = sorted((folder / "data").iterdir())
    assert main([*arguments(folder), "run.name=b", f"tokenizer.path={folder / 'theirs'}"]) == 2
    assert "stock code would read the export otherwise" in capsys.readouterr().err
    assert sorted((folder / "data").iterdir()) == before
    assert not (folder / "runs/pretrain/b").exists()

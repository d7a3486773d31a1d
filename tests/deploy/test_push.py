"""What is published: exactly what a dry run shows, private, and nothing that tells of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from deploy import push
from tests.deploy import hub
from tests.deploy.models import classifier, saved

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def published(model: Path, *given: str) -> int:
    return push.main([f"model={model}", "repo=me/mood", "license=mit", "language=en", *given])


def test_a_dry_run_lays_out_what_would_go(finetuned: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finetuned, place / "run")
    (place / "run/export/onnx").mkdir()
    (place / "run/export/.secret").write_text("mine")
    assert published(place / "run/export") == 0
    said, folder = capsys.readouterr().out, place / "runs/push/me/mood"
    names = {"README.md", "config.json", "model.safetensors", "task.yaml", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == names
    assert "left behind: .secret, onnx" in said
    assert all(name in said for name in names)
    assert "nothing was sent" in said
    assert "private" in said
    weights = [part / "model.safetensors" for part in (folder, finetuned / "export")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert (folder / "README.md").read_text() in said


def test_the_card_says_what_the_hub_asks_for(finetuned: Path, place: Path) -> None:
    assert published(finetuned / "export", "base_model=google/bert-mini", "datasets=[me/moods]") == 0
    card: Any = metadata_load(place / "runs/push/me/mood/README.md")
    assert (card["license"], card["language"]) == ("mit", ["en"])
    assert (card["base_model"], card["datasets"]) == (["google/bert-mini"], ["me/moods"])
    name, results = model_index_to_eval_results(card["model-index"])
    assert name == "mood"
    found = {each.metric_name: each for each in results}
    scores = json.loads((finetuned / "finished.json").read_text())["scores"]["validation"]
    assert {name: each.metric_value for name, each in found.items()} == pytest.approx(scores, abs=1e-6)
    assert found["macro_f1"].metric_type == "f1"
    assert found["macro_f1"].metric_args == {"average": "macro", "sequence_length": 24, "seed": 12345}


def test_nothing_tells_of_this_machine(finetuned: Path, place: Path) -> None:
    """Neither the folders of data, encoder and run, which its configuration holds, nor how a library loaded it."""
    shutil.copytree(finetuned.parents[2], place / "all")
    export = place / "all/runs/finetune/mood/export"
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps({**config, "_name_or_path": str(place / "somewhere")}))
    assert published(export) == 0
    folder = place / "runs/push/me/mood"
    texts = "\n".join(file.read_text(errors="replace") for file in folder.iterdir())
    assert str(place) not in texts
    assert str(finetuned.parents[2]) not in texts
    assert "_name_or_path" not in texts
    assert not [*push.leaks(folder)]
    text = (folder / "README.md").read_text()
    assert "encoder fine-tuned on classification_toy" in text
    assert "from: encoder" in text


def test_a_file_that_tells_of_this_machine_is_refused(
    finetuned: Path, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push.socket, "gethostname", lambda: "ourbox17")
    for number, text in enumerate((f"see {place}/notes", "trained on ourbox17 by night")):
        export = place / f"export{number}"
        shutil.copytree(finetuned / "export", export)
        (export / "special_tokens_map.json").write_text(json.dumps({"note": text}))
        assert published(export) == 2
        said = capsys.readouterr().err
        assert "special_tokens_map.json" in said
        assert "nothing was sent" in said
    assert not (place / "runs/push/me/mood").exists()


@pytest.mark.parametrize("tag", ["text-classification", None])
def test_the_snippet_runs(tag: str | None, place: Path) -> None:
    folder = saved(classifier("bert"), place / "me" / "mood")
    config = SimpleNamespace(architectures=["BertForSequenceClassification"])
    text = push.usage("me/mood", tag, config)  # pyright: ignore[reportArgumentType]
    made: dict[str, Any] = {}
    exec(text.removeprefix("```python\n").removesuffix("\n```"), made)
    assert type(getattr(made["model"], "model", made["model"])).__name__ == "BertForSequenceClassification"
    assert folder.is_dir()


class Hub:
    """What the Hub is asked for; ``there`` says whether a repository exists, and is private."""

    there: bool | None = None
    calls: list[tuple[str, dict[str, Any]]]

    def create_repo(self, repo: str, **given: Any) -> None:
        self.calls.append(("create", {"repo": repo, **given}))

    def model_info(self, repo: str) -> Any:
        return SimpleNamespace(private=self.there is not False)

    def upload_folder(self, **given: Any) -> str:
        names = sorted(file.name for file in Path(given["folder_path"]).rglob("*"))
        self.calls.append(("upload", {"repo": given["repo_id"], "names": names}))
        return "https://there"


@pytest.mark.parametrize("there", [None, False])
def test_what_is_sent_is_private(
    finetuned: Path,
    place: Path,
    there: bool | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A public repository that is there is refused, unless one says so."""
    asked = Hub()
    asked.there, asked.calls = there, []
    monkeypatch.setattr(push, "HfApi", lambda: asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert published(finetuned / "export", "dry_run=true") == 0
    assert asked.calls == []
    shown = sorted(file.name for file in (place / "runs/push/me/mood").iterdir())
    status = published(finetuned / "export")
    created = ("create", {"repo": "me/mood", "private": True, "exist_ok": True})
    if there is False:
        assert status == 2
        assert "private=false" in capsys.readouterr().err
        assert asked.calls == [created]
    else:
        assert status == 0
        assert asked.calls == [created, ("upload", {"repo": "me/mood", "names": shown})]


def test_what_was_sent_can_be_loaded(finetuned: Path, tmp_path: Path) -> None:
    """With the Hub's own client, over the loopback interface: the files are those of the dry run, the repository is
    private, and the class that the card names opens it for who has the token."""
    with hub.running("hf_of_mine") as server:
        place = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        place |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
        given = [f"model={finetuned / 'export'}", "repo=me/mood", "license=mit", "language=en"]

        def python(*arguments: str, token: str) -> subprocess.CompletedProcess[str]:
            environment = {**os.environ, **place, "HF_TOKEN": token}
            command = [sys.executable, *arguments]
            return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

        refused = python("-m", "deploy.push", *given, token="hf_of_another")
        assert refused.returncode == 2, refused.stderr
        assert "me/mood: the Hub refused: " in refused.stderr
        assert server.files == {}
        sent = python("-m", "deploy.push", *given, token="hf_of_mine")
        assert sent.returncode == 0, sent.stderr
        assert server.address in sent.stdout
        shown = tmp_path / "runs/push/me/mood"
        assert server.files["me/mood"] == {file.name: file.read_bytes() for file in shown.iterdir()}
        assert server.private == {"me/mood": True}
        assert "PUT /large" in server.asked
        load = "from transformers import pipeline; print(pipeline('text-classification', 'me/mood')('so good'))"
        opened = python("-c", load, token="hf_of_mine")
        assert opened.returncode == 0, opened.stderr
        assert "'label': " in opened.stdout
        assert python("-c", load, token="hf_of_another").returncode != 0
    away = python("-m", "deploy.push", *given, token="hf_of_mine")
    assert (away.returncode, away.stderr.count("\n")) == (2, 1), away.stderr
    assert f"the Hub at {server.address} does not answer" in away.stderr

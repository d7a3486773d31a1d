"""Views of a run: what is told in which situation, what a failure leaves, and trackio's database."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bertillery.config.section import ConfigError, validate
from bertillery.run.inputs import Fingerprint
from bertillery.run.lineage import Artifact
from bertillery.run.tracking import Tracker, TrackingSection
from bertillery.run.views import Listing, View, WandbView


class Told(View):
    """A view that only remembers what it is told."""

    name = "told"

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.failing = failing

    def _say(self, what: str, *given: Any) -> None:
        if what in self.failing:
            raise RuntimeError("out of order")
        self.said.append((what, *given))

    def start(self, listing: Listing, config: Any) -> None: ...

    def define(self, name: str, axis: Any, best: Any) -> None:
        self._say("define", name, axis, best)

    def log(self, metrics: Any, step: int) -> None:
        self._say("log", dict(metrics))

    def summary(self, values: Any, step: int) -> None:
        self._say("summary", dict(values))

    def table(self, name: str, rows: Any, step: int) -> None:
        self._say("table", name, len(rows))

    def confusion(self, labels: Any, predictions: Any, names: Any, step: int) -> None:
        self._say("confusion")

    def _send(self, found: Any, aliases: list[str], *, used: bool) -> None: ...

    def alert(self, title: str, text: str, level: Any) -> None:
        self._say("alert", title, level)

    def finish(self, exit_code: int, *, preempted: bool) -> None:
        self._say("finish", exit_code, preempted)


def tracked(folder: Path, *failing: str) -> tuple[Tracker, Told]:
    tracker = Tracker(
        TrackingSection(wandb="off"), folder, listing=Listing("a", axis="tokens"), config={}, is_main=True
    )
    tracker._view = told = Told(failing)
    return tracker, told


def test_a_term_that_is_the_loss_is_shown_once_and_recorded_twice(tmp_path: Path) -> None:
    tracker, told = tracked(tmp_path)
    tracker.repeated = frozenset(["mlm"])
    row = {"train/loss": 1.5, "train/mlm": 1.5, "train/mlm_accuracy": 0.5}
    tracker.log(1, row)
    tracker.log(2, {"held_out/mlm": 1.0, "other/held_out/mlm": 2.0, "other/held_out/loss": 2.0})
    assert told.said[0] == ("log", {"train/loss": 1.5, "train/mlm_accuracy": 0.5})
    assert told.said[1][1].keys() == {"held_out/mlm", "other/held_out/loss"}, "without a loss beside it, it stays"
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert row.items() <= written[0].items()
    assert tracker.distinct({"loss": 1.0, "mlm": 1.0}) == {"loss": 1.0}


def test_a_metric_is_defined_once(tmp_path: Path) -> None:
    tracker, told = tracked(tmp_path)
    tracker.repeated = frozenset(["mlm"])
    for _ in range(2):
        tracker.define({"held_out/loss": "lower", "held_out/mlm": "lower", "held_out/f1": "higher"})
    assert told.said == [("define", "held_out/loss", "tokens", "lower"), ("define", "held_out/f1", "tokens", "higher")]


def test_a_table_that_fails_is_left_out_and_the_rest_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker, told = tracked(tmp_path, "table", "alert", "confusion")
    tracker.table("samples", [{"a": 1}], 1)
    tracker.alert("diverged", "step 1", "error")
    tracker.confusion([0], [0], ["a"], 1)
    tracker.log(1, {"loss": 1.0})
    tracker.close(1)
    assert told.said == [("log", {"loss": 1.0}), ("finish", 1, False)]
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    assert messages[0] == "told does not show the table samples: RuntimeError: out of order"


def test_a_view_that_fails_is_switched_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker, told = tracked(tmp_path, "log")
    tracker.log(1, {"loss": 1.0})
    tracker.table("samples", [{"a": 1}], 1)
    tracker.close()
    assert told.said == []
    assert not tracker.shows
    assert len(caplog.records) == 1


def test_nothing_is_made_for_nobody(tmp_path: Path) -> None:
    tracker = Tracker(TrackingSection(wandb="off"), tmp_path, listing=Listing("a"), config={}, is_main=True)
    tracker.used(pytest.fail("an artifact") for _ in range(1))
    tracker.close()


def test_a_tracker_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    TrackingSection().check()
    validate(TrackingSection, {"to": "trackio", "wandb": "off"}).check()
    with pytest.raises(ConfigError, match=r"tracking\.to: given 'trackio', which is not installed"):
        TrackingSection(to="trackio").check()


def test_names_are_cut_to_what_wandb_takes(tmp_path: Path) -> None:
    class Module:
        given: dict[str, Any]

        def Settings(self, **_: Any) -> None: ...

        def init(self, **given: Any) -> None:
            self.given = given

    view = WandbView(tmp_path, "p", "offline")
    view.module = module = Module()
    view.start(Listing("n" * 200 + "/seed-1", "g" * 200, "finetune", ("t" * 99,)), {})
    assert module.given["name"].endswith("/seed-1")
    assert [len(module.given[key]) for key in ("name", "group")] == [128, 128]
    assert module.given["tags"] == ["t" * 64]


TRACKIO = """
import json, sqlite3, sys
from pathlib import Path
from bertillery.run.inputs import Fingerprint
from bertillery.run.lineage import Artifact
from bertillery.run.tracking import Tracker, TrackingSection
from bertillery.run.views import Listing
folder = Path(sys.argv[1])
model = folder / "model.bin"
model.write_bytes(b"x")
for job, used in (("pretrain", False), ("finetune", True)):
    run = folder / job
    run.mkdir()
    listing = Listing("a", "task/model", job, ("one",), "tokens")
    for resumed in (None, 2):
        section = TrackingSection(to="trackio", project="kept")
        tracker = Tracker(section, run, listing=listing, config={"x": {"y": 1}}, is_main=True, resume_step=resumed)
        assert tracker.mode == "offline"
        fingerprint = Fingerprint("ab" * 32, "1 file")
        artifact = Artifact("m", "model", fingerprint, references={"model.bin": model}, alias="made")
        if used:
            tracker.used([artifact])
        else:
            tracker.made(artifact)
        tracker.define({"held_out/loss": "lower"})
        tracker.log(3 if resumed else 1, {"train/loss": 1.0, "tokens": 7})
        tracker.table("rows", [{"a": "<b>", "n": 0.5}], 3)
        tracker.histogram("errors", [0.1, 0.2, float("nan")], 3)
        tracker.confusion([0, 1], [0, 0], ["r", "g"], 3)
        tracker.alert("plateau", "text", "warning")
        tracker.summary({"result/loss": 1.0}, 3)
        tracker.close()
"""


@pytest.mark.skipif(find_spec("trackio") is None, reason="trackio is not installed (make trackio)")
def test_trackio_keeps_runs_on_this_machine(tmp_path: Path) -> None:
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "kept"), "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).resolve().parents[2]
    told = subprocess.run(
        [sys.executable, "-c", TRACKIO, str(tmp_path)], cwd=root, env=environment, capture_output=True, text=True
    )
    assert (told.returncode, told.stdout) == (0, ""), told.stderr
    assert "does not show" not in told.stderr
    assert "failed" not in told.stderr
    asked = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
names = [run.name for run in trackio.Api().runs("kept")]
rows = {name: SQLiteStorage.get_logs("kept", name) for name in names}
print(json.dumps({name: sorted({key for row in found for key in row}) for name, found in rows.items()}))
"""
    found = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    runs = json.loads(found.stdout.splitlines()[-1])
    assert runs.keys() == {"a (pretrain)", "a (finetune)"}, "a resumed run is one run"
    for keys in runs.values():
        assert {"train/loss", "tokens", "rows", "errors", "confusion", "result/loss"} <= {*keys}


def test_a_histogram_leaves_out_what_is_no_number(tmp_path: Path) -> None:
    view, kept = WandbView(tmp_path, "p", "offline"), []

    class Run:
        def log(self, values: Any, step: int) -> None:
            kept.append(values)

    class Module:
        Histogram = staticmethod(list)

    view.run, view.module = Run(), Module()
    view.histogram("errors", [0.5, math.nan, math.inf], 1)
    view.histogram("errors", [math.nan], 1)
    assert kept == [{"errors": [0.5]}]


def test_an_artifact_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    """Two contents are two versions, also where a tracker reads no file."""
    import wandb

    view = WandbView(tmp_path, "p", "offline")
    sent: list[Any] = []
    view._send = lambda found, aliases, *, used: sent.append(found)  # pyright: ignore
    file = tmp_path / "ids.bin"
    file.write_bytes(b"x")
    for content in ("aa", "aa", "bb"):
        made = Artifact("c", "corpus", Fingerprint(content, "1 file"), references={"ids.bin": file}, checksums=False)
        view.artifact(made, used=True)
    digests = [each.digest for each in sent]
    assert isinstance(sent[0], wandb.Artifact)
    assert digests[0] == digests[1] != digests[2]

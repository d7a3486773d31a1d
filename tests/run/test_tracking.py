from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bertillery.config.section import validate
from bertillery.run.tracking import Tracker, TrackingSection
from bertillery.run.views import Listing, wandb_mode


@pytest.fixture(autouse=True)
def _own_wandb(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings, keys or caches of the user's, and no network."""
    home = tmp_path_factory.mktemp("home")
    for variable in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_DIR", "WANDB_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def tracker(folder: Path, wandb: str = "off", **options: Any) -> Tracker:
    section = validate(TrackingSection, {"wandb": wandb})
    return Tracker(
        section, folder, **{"listing": Listing("test"), "config": {"a": {"b": 1}}, "is_main": True, **options}
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_are_on_disk_at_once(tmp_path: Path):
    tracking = tracker(tmp_path)
    tracking.log(1, {"loss": 2.5})
    tracking.log(1, {"accuracy": 0.5})
    written = rows(tmp_path)
    assert [{k: v for k, v in row.items() if k != "time"} for row in written] == [
        {"step": 1, "loss": 2.5},
        {"step": 1, "accuracy": 0.5},
    ]
    assert all(isinstance(row["time"], float) for row in written)
    tracking.summary({"best": 1}, 1)
    tracking.image("plot", tmp_path / "none.png", 1)
    tracking.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_resumed_run_cuts_what_it_will_write_again(tmp_path: Path):
    first = tracker(tmp_path)
    for step in range(6):
        first.log(step, {"loss": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    second = tracker(tmp_path, resume_step=3)
    second.log(4, {"loss": -4.0})
    second.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(0, 0), (1, 1), (2, 2), (3, 3), (4, -4)]
    tracker(tmp_path).close()  # no checkpoint to resume from: from the start
    assert rows(tmp_path) == []


def test_offline_without_a_key_and_the_same_run_when_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a prompt"))
    for resume_step in (None, 2):
        tracking = tracker(tmp_path, "auto", resume_step=resume_step)
        assert tracking.mode == "offline"
        assert tracking._view.run.id == (tmp_path / "wandb_id").read_text()
        tracking.log(1 if resume_step is None else 3, {"loss": 1.0})
        tracking.summary({"best": 1.0}, 1)
        tracking.close(preempted=resume_step is None)
    name = f"run-{(tmp_path / 'wandb_id').read_text()}.wandb"
    assert [file.name for file in (tmp_path / "wandb").glob("offline-run-*/*.wandb")] == [name, name]
    assert [row["step"] for row in rows(tmp_path)] == [1, 3]


def test_wanted_online_without_a_key_warns_and_goes_offline(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tracking = tracker(tmp_path, "online")
    assert tracking.mode == "offline"
    assert "no W&B key" in caplog.text
    tracking.close()


def test_an_unreachable_server_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("bertillery.run.views._INIT_SECONDS", 1)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    tracking = tracker(tmp_path, "auto")
    assert tracking.mode == "offline"
    (message,) = [record.getMessage() for record in caplog.records if record.name == "bertillery.run.views"]
    assert message.startswith("W&B does not work online, recording offline")
    tracking.log(1, {"loss": 1.0})
    tracking.close()
    assert [*(tmp_path / "wandb").glob("offline-run-*")]


def test_a_key_in_netrc_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password " + "0" * 40 + "\n")
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("NETRC", str(netrc))
    assert wandb_mode("auto") == "online"


@pytest.mark.parametrize(("variable", "mode"), [("disabled", "off"), ("offline", "offline")])
def test_the_mode_of_the_environment_is_respected(monkeypatch: pytest.MonkeyPatch, variable: str, mode: str):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_mode("auto") == mode
    assert wandb_mode("online") == "online"


def test_nothing_off_the_main_process(tmp_path: Path):
    tracking = tracker(tmp_path, "offline", is_main=False)
    tracking.log(1, {"loss": 1.0})
    tracking.summary({}, 1)
    tracking.image("plot", tmp_path / "none.png", 1)
    tracking.close()
    assert tracking.mode == "off"
    assert [*tmp_path.iterdir()] == []


class Broken:
    """A view in which everything fails."""

    name = "W&B"

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("out of order")


def test_a_failure_of_wandb_is_reported_once_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    tracking = tracker(tmp_path)
    tracking._view = Broken()  # pyright: ignore
    tracking.log(1, {"loss": 1.0})
    tracking.log(2, {"loss": 1.0})
    tracking.close(preempted=True)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]
    assert len(caplog.records) == 1
    assert "RuntimeError: out of order" in caplog.text

"""The workspaces as objects of W&B's library, and as it sends them; nothing leaves this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from experiments import dashboard
from experiments.dashboard import BOARDS, main, workspace


def metrics_of(panel: Any) -> list[str]:
    config = panel["config"]
    return config["metrics"] or [config["metricRegex"]]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.title)
def test_a_board_becomes_a_workspace(board: Any) -> None:
    built = workspace(board, entity="somebody", project="mine")
    spec = built._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("somebody", "mine", board.title)
    sections = {each["name"]: each["panels"] for each in spec["spec"]["section"]["panelBankConfig"]["sections"]}
    assert [*sections] == ["Learning", "Results", "Examples", "Speed and optimisation"]
    learning = [metrics_of(panel) for panel in sections["Learning"]]
    assert learning == [[*curve.metrics] or [curve.pattern] for curve in board.learning]
    assert {panel["config"]["xAxis"] for panel in sections["Learning"]} == {board.axis}
    assert len(sections["Examples"]) == len(board.tables)
    (runs,) = spec["spec"]["section"]["runSets"]
    assert board.job_type in str(runs["filters"])
    assert "group" in str(runs["grouping"])
    assert {f"summary:{name}" for name in board.best} <= {*built.runset_settings.pinned_columns}


def test_without_a_key_they_are_built_and_not_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dashboard, "wandb_mode", lambda wanted: "offline")
    monkeypatch.setattr(dashboard, "_send", lambda built: pytest.fail("sent"))
    assert main(["project=mine"]) == 0
    said = capsys.readouterr().out
    assert all(board.title in said for board in BOARDS)
    assert "wandb login" in said


def test_with_a_key_they_are_sent(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[tuple[str, str, str]] = []

    def save(built: Any) -> None:
        if built.project == "closed":
            raise ValueError("permission denied\nand more")
        sent.append((built.entity, built.project, built.name))

    monkeypatch.setattr(dashboard, "wandb_mode", lambda wanted: "online")
    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.save", save)
    monkeypatch.setattr("wandb_workspaces.workspaces.Workspace.url", "https://there")
    assert main(["project=mine", "entity=team"]) == 0
    assert sent == [("team", "mine", board.title) for board in BOARDS]
    assert capsys.readouterr().out.count("https://there") == 4
    assert main(["project=closed", "entity=team"]) == 2
    message = capsys.readouterr().err
    assert "'Pretraining' for team/closed (permission denied)" in message


class Server(ThreadingHTTPServer):
    """As much of a W&B server as taking workspaces needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.views: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Who has the key, and a view to keep; the library's notes on its own use are not read."""
        body, found = self.rfile.read(int(self.headers["Content-Length"] or 0)), {}
        if self.path == "/graphql" and body.startswith(b"{"):
            asked = json.loads(body)
            found = {"viewer": {"id": "1", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}}}
            if "upsertView" in asked["query"]:
                self.server.views.append(asked["variables"])
                found = {"upsertView": {"view": {"id": "1", "name": asked["variables"]["name"]}, "inserted": True}}
        answer = json.dumps({"data": found}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def test_a_server_gets_what_was_built(server: Server, tmp_path: Path) -> None:
    """Over the loopback interface, with W&B's own client; the entity is that of the key."""
    address = f"http://127.0.0.1:{server.server_address[1]}"
    given = {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": address,
        "WANDB_API_KEY": "0" * 40,
        "WANDB_ERROR_REPORTING": "false",
    }
    given |= {"PYTHONPATH": str(Path(__file__).resolve().parents[2]), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "experiments.dashboard", "project=mine"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **given}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{address}/me/mine?nw=") == len(BOARDS)
    assert [(each["entityName"], each["projectName"], each["displayName"]) for each in server.views] == [
        ("me", "mine", board.title) for board in BOARDS
    ]
    for view, board in zip(server.views, BOARDS, strict=True):
        sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
        learning = [metrics_of(panel) for panel in sections[0]["panels"]]
        assert learning == [[*curve.metrics] or [curve.pattern] for curve in board.learning]

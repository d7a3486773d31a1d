"""The workspaces as objects of W&B's library; nothing is sent."""

from __future__ import annotations

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
    assert "'Pretraining' for team/closed (ValueError: permission denied)" in message

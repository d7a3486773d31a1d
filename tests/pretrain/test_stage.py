"""A run of an objective that nothing but its own file knows of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import bertillery.run.stage
import pretrain.stage
from bertillery.models.layers.dropout import Dropout
from bertillery.models.layers.linear import Linear
from bertillery.report.plot import Panel
from pretrain.__main__ import main
from tests.corpora import write_text
from tests.pretrain.test_identity import CONFIG, arguments
from tests.pretrain.test_objectives import drop_in


def test_a_new_objective_is_trained_exported_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its terms have a row, a baseline and a panel; what has no title and no mask has none. Its layers are the fast
    ones, which it need not know of."""
    drop_in(monkeypatch)
    layers: set[type] = set()
    shared_out = bertillery.run.stage.prepared

    def prepared(accelerator: Any, objective: Any, sharding: Any) -> Any:
        layers.update(map(type, objective.modules()))
        return shared_out(accelerator, objective, sharding)

    monkeypatch.setattr(bertillery.run.stage, "prepared", prepared)
    drawn: list[Panel] = []
    plot = pretrain.stage.plot_curves

    def plot_curves(metrics: Path, panels: Any, picture: Path, title: str) -> None:
        drawn.extend(panels)
        plot(metrics, panels, picture, title)

    monkeypatch.setattr(pretrain.stage, "plot_curves", plot_curves)
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text/a.txt")
    (tmp_path / "tiny.yaml").write_text(CONFIG.replace("type: bert", "type: regression"))
    assert main(arguments(tmp_path)) == 0
    assert {Linear, Dropout} <= layers
    assert not {nn.Linear, nn.Dropout} & layers
    run = tmp_path / "runs/pretrain/a"
    results = json.loads((run / "finished.json").read_text())
    _, _, error, close = (line.strip("| ").split("|") for line in results["table"].splitlines())
    for row, name, title in ((error, "error", "squared error of the share"), (close, "close", "shares within 0.1")):
        assert [cell.strip() for cell in row] == [
            title, row[1].strip(), f"{results['baselines'][name]:.4f}", "the mean share"
        ]  # fmt: skip
    assert results["table"] in (run / "export/README.md").read_text()
    assert {panel.name: (panel.title, panel.direction, [*panel.baselines]) for panel in drawn} == {
        "error": ("squared error of the share", "lower", ["baseline"]),
        "close": ("shares within 0.1", "higher", ["baseline"]),
    }
    assert (run / "curves.png").stat().st_size > 10_000
    said = capsys.readouterr()
    assert "predicted   32 of 32 tokens" in said.out
    assert "fill_mask" not in results
    assert "failed: " not in said.err

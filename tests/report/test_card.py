"""Model cards read back, and say nothing about the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub.repocard import metadata_load

from bertillery.report.card import model_card, shortened
from bertillery.report.table import escaped
from tests.report.test_markdown import NAMES


def test_paths_of_the_machine_are_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / "one" / "two"
    home = tmp_path.parent / "home"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(home))
    text = f"from: {tmp_path.parent.parent}/other/runs/tiny/export, in {deep}; `{home}/x.txt` '{tmp_path}/*.txt'"
    assert shortened(text) == "from: tiny/export, in one/two; `~/x.txt` '*.txt'"
    assert str(tmp_path.parent.parent) not in shortened(f"[{tmp_path.parent}/a b/c.txt]")
    for other in ("and/or", "https://huggingface.co/tmp/x", "/rec.autos", "3 km/h", "runs/a/b", "/", f"/{'x' * 300}/y"):
        assert shortened(other) == other


def test_a_card_reads_back(tmp_path: Path) -> None:
    config = yaml.safe_dump({"run": {"dir": str(tmp_path / "runs")}, "task": {"name": "a\n# b <b>"}})
    for name in NAMES[:-1]:
        (tmp_path / "README.md").write_text(model_card(name, escaped(name), config=config, tags=["x", name]))
        assert (metadata_load(tmp_path / "README.md") or {})["tags"] == ["bertillery", "x", name]
        lines = (tmp_path / "README.md").read_text().splitlines()
        assert [line for line in lines if line.startswith("#")] == [f"# {escaped(name)}", "## Configuration"]
        assert str(tmp_path) not in "\n".join(lines)

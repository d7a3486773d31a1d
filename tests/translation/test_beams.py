"""BLEU against the size of the beam."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from translation import beams
from translation.beams import main
from translation.search import DecodeSection, Hypothesis

REFERENCES = ["one two three four five six", "seven eight nine ten eleven twelve"]


class Shortening:
    """Writes a word less for each hypothesis more, and finds it more probable."""

    @staticmethod
    def open(start: str) -> Any:
        assert start == "a/model"
        return Shortening()

    def search_settings(self, given: DecodeSection) -> DecodeSection:
        return given

    def translate(self, texts: list[str], decode: DecodeSection) -> list[list[tuple[str, Hypothesis]]]:
        cut = [" ".join(line.split()[: 7 - decode.beam]) for line in REFERENCES]
        return [[(text, Hypothesis([], -6.0 / decode.beam, 0.0))] for text in cut]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(beams, "TranslationModel", Shortening)
    (tmp_path / "a").write_text("x\ny\n")
    (tmp_path / "b").write_text("".join(f"{line}\n" for line in REFERENCES))
    given = ["model=a/model", f"file={tmp_path}/a", f"reference={tmp_path}/b", f"picture={tmp_path}/out.png"]
    assert main([*given, "beams=[1,2,3]"]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert rows[0] == ["beam", "bleu", "bleu lowercase", "chrf", "length ratio", "log probability"]
    assert [row[0] for row in rows[2:]] == ["1", "2", "3"]
    assert [float(row[1]) for row in rows[2:]] == [100.0, pytest.approx(81.9, abs=0.05), pytest.approx(60.7, abs=0.05)]
    assert [row[4] for row in rows[2:]] == ["1.000", "0.833", "0.667"]
    assert [row[5] for row in rows[2:]] == ["-6.00", "-3.00", "-2.00"]
    assert "case:mixed" in out
    assert (tmp_path / "out.png").stat().st_size > 1000
    for wrong, said in (("beams=[]", "beams"), ("beams=[0]", "beams"), ("reference=none", "none: no such file")):
        assert main([*given, wrong]) == 2
        assert said in capsys.readouterr().err

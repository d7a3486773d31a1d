"""BLEU by length of the source: groups, and the command over files."""

from __future__ import annotations

from pathlib import Path

import pytest

from translation.lengths import by_length, group_scores, main, mean_lengths

TEXTS = ["a b c d e f g h", "a b", "a b c d", "a", "a b c d e f", "a b c"]


def test_groups_go_from_short_to_long_and_take_all() -> None:
    parts = by_length(TEXTS, 3)
    assert parts == [[3, 1], [5, 2], [4, 0]]
    assert mean_lengths(TEXTS, parts) == [1.5, 3.5, 7.0]
    assert sorted(number for part in by_length(TEXTS, 50) for number in part) == [*range(6)]


def test_a_group_is_scored_by_itself() -> None:
    references = [f"{text} . and it goes on" for text in TEXTS]
    written = [*references[:4], "nothing of that", references[5]]
    short, middle, long = group_scores("bleu", written, references, by_length(TEXTS, 3), "13a")
    assert (short, middle) == (pytest.approx(1), pytest.approx(1))
    assert long < 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, lines in {"x.en": TEXTS, "x.de": TEXTS, "good": TEXTS, "bad": ["z"] * 6, "few": ["z"] * 5}.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    given = [f"file={tmp_path}/x.en", f"reference={tmp_path}/x.de", "groups=2", f"picture={tmp_path}/out.png"]
    assert main([*given, f"translations=[{tmp_path}/good,{tmp_path}/bad]"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[0]] == ["words of the source", "2.0", "6.0"]
    assert [float(row[-1]) for row in rows[2:]] == [100.0, 0.0]
    assert (tmp_path / "out.png").stat().st_size > 1000
    for wrong, said in (
        (f"translations=[{tmp_path}/few]", "few 5"),
        (f"translations=[{tmp_path}/none]", "no such file"),
        (f"translations=[{tmp_path}/good] groups=7", "6 lines"),
    ):
        assert main([*given, *wrong.split(" ")]) == 2
        assert said in capsys.readouterr().err

"""Tables that a spreadsheet opens."""

from __future__ import annotations

import csv
from pathlib import Path

from bertillery.report.table import read_tsv, write_tsv


def test_no_cell_is_a_formula_and_all_read_back(tmp_path: Path) -> None:
    formulas = ["=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(1)", "'=a", "''-b", "=", "-x"]
    others = ["a", "-1.5", "-1", "+3e5", "'quoted'", "a=b", "", '"', "x y"]
    write_tsv(tmp_path / "a.tsv", [["index", "x"], *([cell, "1"] for cell in formulas + others)])
    with (tmp_path / "a.tsv").open(newline="") as file:
        cells = [row[0] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][1:]
    assert all(cell.startswith("'") for cell in cells[: len(formulas)])
    assert cells[len(formulas) :] == others
    assert [row[0] for row in read_tsv(tmp_path / "a.tsv")[1:]] == formulas + others


def test_a_row_stays_a_row(tmp_path: Path) -> None:
    for cell in ("a\tb", "a\nb", "a\r=1", "a\x85b\u2028c", "\x1b[2J", "\ud800"):
        write_tsv(tmp_path / "a.tsv", [[cell, "1"]])
        ((text, one),) = read_tsv(tmp_path / "a.tsv")
        assert one == "1"
        assert text.isprintable()

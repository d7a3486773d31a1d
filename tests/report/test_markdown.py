"""What is written for others to read: names are text in it, and paths say nothing about the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub.repocard import metadata_load

from bertillery.report.table import card, code, escaped, fenced, markdown_table, shortened

NAMES = [
    "<script>alert(1)</script>", "<b>bold", "a | b", "a\nb\r\n# c", "`x` and ```y", "**b** _i_ __init__", "[x](http://y)",
    r"\<b> \\<i> \| \ ", "&lt;b&gt; &#60;", "a\x1b[31mred\x07", "x\u2028y\u202ez", "\ud800",
]  # fmt: skip


def shown(markdown: str) -> str:
    """The text that a line of Markdown shows, by CommonMark's rules for backslashes; fails where one sign is live."""
    text, at = "", 0
    while at < len(markdown):
        if markdown[at] == "\\" and markdown[at + 1 : at + 2] in {*"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"} - {""}:
            at += 1
        else:
            assert markdown[at] not in "`*|\n"
            assert not (markdown[at] == "<" and markdown[at + 1 : at + 2].isalpha())
            assert markdown[at : at + 2] not in ("](", "][", "</", "<!")
        text, at = text + markdown[at], at + 1
    return text


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text(name: str) -> None:
    visible = shown(escaped(name))
    kept = {each for each in name if each.isprintable()}
    assert "".join(each for each in visible if each in kept) == "".join(each for each in name if each in kept)
    assert visible.isprintable()
    visible.encode()


def test_plain_names_are_left_alone() -> None:
    """Tables are printed, too."""
    for name in (
        "bert_mini",
        "60.00 [50.00, 70.00] (85.7 %)",
        "Home & Garden",
        "<5",
        "差评",
        "optim.learning_rate",
        r"\d",
    ):
        assert escaped(name) == name


def test_a_table_has_as_many_cells_as_it_was_given() -> None:
    lines = markdown_table([["name", "x"], *([name, "1"] for name in NAMES)]).splitlines()
    assert len(lines) == len(NAMES) + 2
    for line in lines[2:]:
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 3


def test_nothing_ends_code() -> None:
    for text in ("a", "`", "a``b`", "```\nb"):
        ticks = len(code(text)) - len(code(text).lstrip("`"))
        assert "`" * ticks not in code(text).strip("`")
        block = fenced(text, "sh").splitlines()
        assert block[-1] not in block[1:-1]
        assert block[0] == f"{block[-1]}sh"


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
        (tmp_path / "README.md").write_text(card({"tags": ["x", name]}, name, escaped(name), config=config))
        assert (metadata_load(tmp_path / "README.md") or {})["tags"] == ["x", name]
        lines = (tmp_path / "README.md").read_text().splitlines()
        assert [line for line in lines if line.startswith("#")] == [f"# {escaped(name)}", "## Configuration"]
        assert str(tmp_path) not in "\n".join(lines)

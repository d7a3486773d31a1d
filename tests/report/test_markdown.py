"""What is written for others to read: names are text in it, and paths say nothing about the machine."""

from __future__ import annotations

import pytest

from bertillery.report.table import code, escaped, fenced, markdown_table

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

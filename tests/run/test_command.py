"""What is said on terminals that know few characters, and by commands that are asked for help."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from bertillery.config.layers import parse_yaml
from bertillery.config.section import InputError, Section
from bertillery.run.command import guarded, tool


class Help(Section):
    """A schema."""

    key: int = 1
    """A description."""


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_a_terminal_that_lacks_characters_ends_no_command(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what is printed, nor an error, nor help does; what can be shown is."""
    raw = {name: io.BytesIO() for name in ("stdout", "stderr")}

    def fresh() -> None:
        for name, file in raw.items():
            monkeypatch.setattr(sys, name, io.TextIOWrapper(file, encoding=encoding, write_through=True))

    def refused() -> int:
        raise InputError("no label 中")

    fresh()
    assert guarded(lambda: print("score 差评 ok") or 0) == 0
    assert guarded(refused) == 2
    fresh()
    assert tool(["--help"], help="中 says what it does", schema=Help, action=refused) == 0
    out, err = (file.getvalue().decode(encoding) for file in raw.values())
    assert out.startswith("score ")
    assert " says what it does" in out
    assert "error: no label" in err
    if encoding == "utf-8":
        assert "差评" in out


def test_a_printed_configuration_reads_back_alike_from_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(Section):
        name: str = "x"

    file = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(file, encoding="latin-1", write_through=True))
    assert tool(["--print-config", "name=差评"], help=None, schema=Named, action=lambda: 1) == 0
    assert parse_yaml(file.getvalue().decode("latin-1"), "printed") == {"name": "差评"}


@pytest.mark.parametrize("package", ["bertillery", "pretrain", "finetune", "distill", "experiments", "deploy"])
def test_a_command_shows_what_every_package_logs(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(package), "level", logging.NOTSET)
    assert guarded(lambda: 0 if logging.getLogger(package).isEnabledFor(logging.INFO) else 1) == 0

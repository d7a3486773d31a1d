"""``python -m translation model=<directory> text="A dog runs."``: translates texts, one sentence each."""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from bertillery.config.section import InputError, Section, read_values, validate
from bertillery.config.types import Runs
from bertillery.run.command import tool
from bertillery.system.files import write_text
from bertillery.system.printable import printable
from translation.search import DecodeSection
from translation.translator import TranslationModel

Texts = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]


class TranslateSection(Section):
    """Keys of translating."""

    model: str
    """Directory or Hub id of a translation model."""
    text: Texts = Field(default=[])
    """Sentences; by default the environment variable TEXT, which `make translate TEXT=...` sets."""
    file: Path | None = None
    """Sentences from a file, one a line."""
    n_best: Runs = 1
    """Translations of each sentence, at most `decode.beam`."""
    decode: DecodeSection = DecodeSection()
    output: Path | None = None
    """A file for the best translations, one a line, as sacreBLEU reads them."""


def main(arguments: Sequence[str]) -> int:
    """Translate and print; returns the exit status. A text is text, whatever YAML would make of it."""
    start = "text="
    texts = {each: each.removeprefix(start) for each in arguments if each.startswith(start) and each[5:6] != "["}
    arguments = [f"{start}{json.dumps([texts[each]])}" if each in texts else each for each in arguments]
    return tool(arguments, help=__doc__, schema=TranslateSection, action=lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    section = validate(TranslateSection, *read_values(arguments))
    if section.n_best > section.decode.beam:
        raise InputError(f"n_best: given {section.n_best}, and decode.beam is {section.decode.beam}; give a wider beam")
    texts = _texts(section)
    found = TranslationModel.open(section.model).translate(texts, section.decode, n_best=section.n_best)
    for text, translations in zip(texts, found, strict=True):
        print(printable(text))
        for translation, hypothesis in translations:
            print(f"  {hypothesis.score:8.3f}  {printable(translation)}")
        print(flush=True)
    if section.output is not None:
        lines = (" ".join(translations[0][0].split()) for translations in found)
        write_text(section.output, "".join(f"{line}\n" for line in lines))
        print(f"translations  {section.output}")
    return 0


def _texts(section: TranslateSection) -> list[str]:
    texts = list(section.text)
    if section.file is not None:
        if not section.file.is_file():
            raise InputError(f"file: {section.file}: no such file; it holds a sentence on each line")
        texts += section.file.read_text(encoding="utf-8").splitlines()
    if not texts and os.environ.get("TEXT"):
        texts = [os.environ["TEXT"]]
    if not texts:
        raise InputError('no text: give text="..." (with make TEXT="..."), or file=<a sentence on each line>')
    return texts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

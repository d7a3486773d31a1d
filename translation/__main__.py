"""``python -m translation model=<directory> text="A dog runs."``: translates texts, one sentence each."""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from bertillery.config.section import InputError, Section
from bertillery.config.types import Runs, Texts
from bertillery.run.command import given_texts, quoted, tool
from bertillery.system.files import write_text
from bertillery.system.printable import printable
from translation.model import TranslationModel
from translation.search import DecodeSection


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
    """The search; keys that are not given are those of the model's ``generation_config.json``, as its run searched."""
    output: Path | None = None
    """A file for the best translations, one a line, as sacreBLEU reads them."""


def main(arguments: Sequence[str]) -> int:
    """Translate and print; returns the exit status. A text is text, whatever YAML would make of it."""
    arguments = quoted(arguments, "text")
    return tool(arguments, help=__doc__, schema=TranslateSection, action=_run)


def _run(section: TranslateSection) -> int:
    if "beam" in section.decode.model_fields_set:
        _check(section.n_best, section.decode.beam)
    texts = given_texts(section.text, section.file, key="text", what="a sentence")
    model = TranslationModel.open(section.model)
    decode = model.search_settings(section.decode)
    _check(section.n_best, decode.beam)
    found = model.translate(texts, decode, n_best=section.n_best)
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


def _check(n_best: int, beam: int) -> None:
    if n_best > beam:
        raise InputError(f"n_best: given {n_best}, and decode.beam is {beam}; give a wider beam")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m translation.beams model=<directory> file=test.en reference=test.de``: BLEU against the size of the beam.

A wider beam finds more probable translations. They need not be better: the most probable one is often too short (Koehn
and Knowles 2017, arXiv 1706.03872, section 3.6), which the ratio of lengths shows.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from bertillery.config.section import Section
from bertillery.report.plot import figure, save
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from translation.model import TranslationModel
from translation.scores import METRICS, Tokens, corpus_scores, length_ratio, read_lines, signatures
from translation.search import DecodeSection


class BeamsSection(Section):
    """Keys of the comparison."""

    model: str
    """Directory or Hub id of a translation model."""
    file: Path
    """Sources, one a line."""
    reference: Path
    """Their translations, line by line."""
    beams: list[Annotated[int, Field(ge=1, le=1024)]] = Field(default=[1, 2, 4, 8, 16], min_length=1)
    """Sizes of the beam."""
    decode: DecodeSection = DecodeSection()
    """All else of the search; keys that are not given are the model's own."""
    bleu_tokens: Tokens = "13a"
    """How BLEU finds words."""
    picture: Path | None = None
    """Where the picture goes."""


@dataclass(frozen=True)
class Found:
    """What a size of the beam finds."""

    beam: int
    scores: dict[str, float]
    """From 0 to 1, by metric."""
    length_ratio: float
    """Words of the translations over words of the references."""
    log_probability: float
    """Mean of the translations' sums."""


def main(arguments: Sequence[str]) -> int:
    """Translate with every size, print a table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=BeamsSection, action=_run)


def _run(section: BeamsSection) -> int:
    texts, references = read_lines(section.file, section.reference)
    model = TranslationModel.open(section.model)
    decode = model.search_settings(section.decode)
    found = [
        measure(model, texts, references, decode.model_copy(update={"beam": beam}), section.bleu_tokens)
        for beam in section.beams
    ]
    print(table(found))
    print("\n" + "\n".join(signatures(METRICS, section.bleu_tokens).values()))
    if section.picture is not None:
        draw(found, section.picture)
        print(f"picture  {section.picture}")
    return 0


def measure(
    model: TranslationModel, texts: Sequence[str], references: Sequence[str], decode: DecodeSection, tokens: Tokens
) -> Found:
    """Translate all texts with one beam."""
    best = [each[0] for each in model.translate(texts, decode)]
    written = [text for text, _ in best]
    scores, ratio = corpus_scores(METRICS, written, references, tokens), length_ratio(written, references, tokens)
    return Found(decode.beam, scores, ratio, float(np.mean([hypothesis.log_probability for _, hypothesis in best])))


def table(found: Sequence[Found]) -> str:
    """A row for each beam."""
    head = ["beam", *(name.replace("_", " ") for name in METRICS), "length ratio", "log probability"]
    rows = [
        [str(each.beam), *(f"{100 * each.scores[name]:.1f}" for name in METRICS), f"{each.length_ratio:.3f}",
         f"{each.log_probability:.2f}"]
        for each in found
    ]  # fmt: skip
    return markdown_table([head, *rows])


def draw(found: Sequence[Found], picture: Path) -> None:
    """BLEU and the ratio of lengths over the size of the beam."""
    axes = figure(2, "beam search")
    beams = [each.beam for each in found]
    shown = {
        "BLEU": [100 * each.scores["bleu"] for each in found],
        "length of translations / references": [each.length_ratio for each in found],
    }
    for axis, (title, values) in zip(axes, shown.items(), strict=True):
        axis.plot(beams, values, marker="o")
        axis.set_xscale("log", base=2)
        axis.set_xticks(beams, [str(beam) for beam in beams])
        axis.set(xlabel="beam")
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    save(axes, picture)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m translation.lengths file=test.en reference=test.de translations=[a.de,b.de]``: BLEU by length of sources.

An encoder without attention hands one vector to its decoder, whatever the sentence's length; what that costs shows in
long sentences (Bahdanau et al. 2015, arXiv 1409.0473, figure 2).
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from bertillery.config.section import InputError, Section
from bertillery.config.types import Count
from bertillery.report.plot import figure, plain, save
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from translation.scores import Tokens, corpus_scores, read_lines, signatures

GROUPS = 6
"""Groups of equally many sentences."""


class LengthsSection(Section):
    """Keys of the comparison."""

    file: Path
    """Sources, one a line."""
    reference: Path
    """Their translations, line by line."""
    translations: list[Path] = Field(min_length=1)
    """What models wrote, line by line, such as `predictions/<split>.<target>` of their runs."""
    groups: Count = GROUPS
    """Groups of equally many sentences."""
    bleu_tokens: Tokens = "13a"
    """How BLEU finds words."""
    picture: Path | None = None
    """Where the picture goes."""


def main(arguments: Sequence[str]) -> int:
    """Score each group, print a table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=LengthsSection, action=_run)


def _run(section: LengthsSection) -> int:
    texts, references, *written = read_lines(section.file, section.reference, *section.translations)
    if section.groups > len(texts):
        raise InputError(f"groups: given {section.groups}, and {section.file} has {len(texts):,} lines; give fewer")
    parts = by_length(texts, section.groups)
    values = {
        str(path): group_scores("bleu", lines, references, parts, section.bleu_tokens)
        for path, lines in zip(section.translations, written, strict=True)
    }
    words = mean_lengths(texts, parts)
    head = ["words of the source", *(f"{each:.1f}" for each in words)]
    print(markdown_table([head, *([name, *(f"{100 * each:.1f}" for each in row)] for name, row in values.items())]))
    print("\n" + signatures(["bleu"], section.bleu_tokens)["bleu"])
    if section.picture is not None:
        draw(values, words, len(parts[0]), "bleu", section.picture, "translations")
        print(f"picture  {section.picture}")
    return 0


def by_length(texts: Sequence[str], groups: int = GROUPS) -> list[list[int]]:
    """Numbers of the sentences of each group, from the shortest ones in words to the longest; none is empty."""
    sizes = [len(text.split()) for text in texts]
    return [part.tolist() for part in np.array_split(np.argsort(sizes, kind="stable"), groups) if len(part)]


def mean_lengths(texts: Sequence[str], parts: Sequence[Sequence[int]]) -> list[float]:
    """Mean number of words in each group."""
    sizes = np.array([len(text.split()) for text in texts])
    return [float(sizes[[*part]].mean()) for part in parts]


def group_scores(
    metric: str, written: Sequence[str], references: Sequence[str], parts: Sequence[Sequence[int]], tokens: Tokens
) -> list[float]:
    """A metric of each group, from 0 to 1."""
    scores = []
    for part in parts:
        texts, wanted = [written[number] for number in part], [references[number] for number in part]
        scores.append(corpus_scores([metric], texts, wanted, tokens)[metric])
    return scores


def draw(
    values: Mapping[str, Sequence[float]], words: Sequence[float], size: int, metric: str, picture: Path, title: str
) -> None:
    """Scores by name over the mean lengths of the groups, of ``size`` sentences each."""
    (axis,) = axes = figure(1, title, panel=(5.2, 3.6))
    for name, row in values.items():
        axis.plot(words, [100 * value for value in row], marker="o", label=plain(name))
    axis.set_xlabel(f"words of the source ({size:,} sentences a point)")
    axis.set_ylabel(metric.replace("_", " "))
    axis.set_ylim(bottom=0)
    if len(values) > 1:
        axis.legend(fontsize=8)
    save(axes, picture)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

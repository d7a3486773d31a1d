"""BLEU and chrF of whole splits, by sacreBLEU (Post 2018), with the signatures that make them comparable; and baselines
that need no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bertillery.config.section import InputError
from bertillery.data import files

METRICS = ("bleu", "bleu_lowercase", "chrf")
"""BLEU cased and lower-cased (published numbers of Multi30k are lower-cased), and chrF2; from 0 to 1."""
Tokens = Literal["13a", "intl", "char", "zh", "none"]
"""How sacreBLEU splits detokenised text into words: ``char`` for Korean, Japanese and other languages whose words it
does not find."""


def _scorer(metric: str, tokens: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return CHRF() if metric == "chrf" else BLEU(lowercase=metric == "bleu_lowercase", tokenize=tokens)


def corpus_scores(
    metrics: Sequence[str], translations: Sequence[str], references: Sequence[str], tokens: str = "13a"
) -> dict[str, float]:
    """Each metric of all sentences together: matches and lengths are summed before anything is divided."""
    found = {}
    for metric in metrics:
        found[metric] = _scorer(metric, tokens).corpus_score(list(translations), [list(references)]).score / 100
    return found


def signatures(metrics: Sequence[str], tokens: str) -> dict[str, str]:
    """How each metric was computed, as sacreBLEU writes it."""
    found = {}
    for metric in metrics:
        scorer = _scorer(metric, tokens)
        scorer.corpus_score(["a"], [["a"]])  # the number of references is known only now
        found[metric] = str(scorer.get_signature())
    return found


def sentence_scores(translations: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """chrF2 (N,) of each sentence, from 0 to 1: sentence BLEU is 0 wherever no four words match."""
    scorer = _scorer("chrf", "")
    pairs = zip(translations, references, strict=True)
    return np.array([scorer.sentence_score(text, [reference]).score / 100 for text, reference in pairs])


def length_ratio(translations: Sequence[str], references: Sequence[str], tokens: str = "13a") -> float:
    """Words of the translations over words of the references, as BLEU counts them; below 1 BLEU punishes."""
    found = _scorer("bleu", tokens).corpus_score(list(translations), [list(references)])
    return found.sys_len / max(1, found.ref_len)


def baselines(
    sources: Sequence[str], targets: Sequence[str], held_out: Sequence[str], *, most: int = 100_000
) -> dict[str, list[str]]:
    """Translations of ``held_out`` sources without a model, by name: the source itself, the most frequent training
    target, and the target of the training source that is nearest by the words they share (cosine of TF-IDF)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    common: str = Counter(targets[:most]).most_common(1)[0][0]
    vectorizer: Any = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]", sublinear_tf=True, dtype=np.float32)  # pyright: ignore
    known = vectorizer.fit_transform(sources[:most])
    wanted: Any = vectorizer.transform(held_out)
    nearest: list[int] = []
    for start in range(0, wanted.shape[0], 256):
        nearest += np.asarray((wanted[start : start + 256] @ known.T).argmax(axis=1)).ravel().tolist()
    return {
        "copy": list(held_out),
        "one sentence": [common] * len(held_out),
        "nearest sentence": [targets[number] for number in nearest],
    }


def looks_tokenized(references: Sequence[str]) -> bool:
    """Whether references look as if their punctuation had been split off: BLEU is for text as people write it."""
    marks = sum(" ." in text or " ," in text for text in references)
    return marks > len(references) / 10


def read_lines(*paths: Path) -> list[list[str]]:
    """The lines of files of which line n of one belongs to line n of the others; ``InputError`` where there are not as
    many in all."""
    for path in paths:
        if not path.is_file():
            raise InputError(f"{path}: no such file; it holds a sentence on each line")
    found = [[line.rstrip("\r\n") for line in files.read_lines(path, files.Decoder())] for path in paths]
    if len({len(lines) for lines in found}) > 1 or not found[0]:
        sizes = ", ".join(f"{path} {len(lines):,}" for path, lines in zip(paths, found, strict=True))
        raise InputError(f"lines: {sizes}; line n of each file belongs to line n of the others, so give equal numbers")
    return found

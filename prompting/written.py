"""Answers that a model writes, compared with references: summaries after ``TL;DR:`` and translations after ``=``.

Prompts and settings are those of GPT-2 (Radford et al. 2019, sections 3.6 and 3.7). ROUGE is computed by the package
``rouge_score``, which is in the extra ``evaluation``, BLEU by ``sacrebleu``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from bertillery.config.section import InputError
from prompting.generate import GenerateSection, continuations
from prompting.items import Items, WrittenSection, draw_shots
from prompting.model import CausalModel
from prompting.outcomes import Outcome, standard_error

_PACKAGES = {"rouge": "rouge_score"}
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def check_metric(section: WrittenSection) -> None:
    """``InputError`` where the package of the metric is not installed."""
    package = _PACKAGES.get(section.metric)
    if package is not None and find_spec(package) is None:
        raise InputError(
            f"prompt.written.metric: {section.metric} is computed by {package}, which is not installed; "
            "type .venv/bin/python -m pip install -c constraints.txt -e '.[evaluation]'"
        )


def evaluate_written(causal: CausalModel, items: Items, shots: int, seed: int) -> Outcome:
    """Let the model write an answer to each item and compare the answers with the references."""
    section = items.prompt.written
    assert section is not None
    how = GenerateSection(
        model=causal.start,
        max_new_tokens=section.max_new_tokens,
        temperature=1.0 if section.top_k else 0.0,
        top_k=section.top_k,
        seed=seed,
    )
    room = causal.positions - section.max_new_tokens - 1
    if room < 1:
        raise InputError(
            f"prompt.written.max_new_tokens: given {section.max_new_tokens}; {causal.start} has {causal.positions} "
            "positions for prompt and answer together; give fewer"
        )
    prompts, fewer, lacking, cut = [], 0, 0, 0
    for number, item in enumerate(items.items):
        drawn, left_out = draw_shots(items, number, shots, seed), 0
        ids = causal.ids(items.context(item, drawn))
        while len(ids) > room and left_out < shots:
            left_out += 1
            ids = causal.ids(items.context(item, drawn[left_out:]))
        fewer, lacking, cut = fewer + (left_out > 0), lacking + left_out, cut + (len(ids) > room)
        prompts.append([causal.end, *ids[-room:]])
    torch.manual_seed(seed)
    answers = [
        trimmed(answer, items.prompt.separator, section.sentences) for (answer,) in continuations(causal, prompts, how)
    ]
    metrics, errors = compare(section.metric, answers, [item.answers[0] for item in items.items])
    return Outcome(shots, seed, len(answers), metrics, errors, fewer=fewer, left_out=lacking, cut=cut, answers=answers)


def trimmed(answer: str, separator: str, sentences: int | None) -> str:
    """The answer up to the separator of worked examples, and its first sentences."""
    answer = answer.split(separator)[0] if separator else answer
    return first_sentences(answer.strip(), sentences)


def first_sentences(text: str, number: int | None) -> str:
    """So many sentences, which end with a full stop, a question or an exclamation mark; all without a number."""
    return text if number is None else " ".join(_SENTENCE.split(text, maxsplit=number)[:number])


def compare(
    metric: str, answers: Sequence[str], references: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores from 0 to 1 and their standard errors: F1 of ROUGE-1, -2 and -L and their average, each the mean over the
    answers, or BLEU of all answers, of which the error is a bootstrap's."""
    if metric == "bleu":
        from sacrebleu.metrics.bleu import BLEU  # pyright: ignore[reportMissingImports]

        found: Any = BLEU().corpus_score(answers, [references], n_bootstrap=1000)
        # The library gives half the width of the interval of 95 %.
        return {"bleu": found.score / 100}, {"bleu": found._ci / 1.96 / 100}
    from rouge_score.rouge_scorer import RougeScorer  # pyright: ignore[reportMissingImports]

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, use_stemmer=True)
    each = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    values = {name: [float(scores[name].fmeasure) for scores in each] for name in names}
    values["average"] = [sum(parts) / len(names) for parts in zip(*values.values(), strict=True)]
    means = {name: sum(found) / len(found) for name, found in values.items()}
    return means, {name: standard_error(found) for name, found in values.items()}


def signature(metric: str) -> str:
    """How a metric was computed, as its library says it."""
    if metric == "bleu":
        from sacrebleu.metrics.bleu import BLEU  # pyright: ignore[reportMissingImports]

        # The number of references is part of it, and known only after scoring.
        scorer = BLEU()
        scorer.corpus_score(["a"], [["a"]])
        return str(scorer.get_signature())
    return "rouge_score, F1, with stemming"

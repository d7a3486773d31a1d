"""``python -m prompting.fewshot configs/prompting/<task>.yaml model=<directory> shots=[0,1,4]``: evaluation in context.

Every answer is scored by its log-likelihood after the prompt (Brown et al. 2020, section 2.4): ``accuracy`` compares
sums, ``accuracy_norm`` sums per character. Worked examples are drawn for each item by seed, from the training rows, and
never are the item itself. Beside each number stand its standard error, and what needs no model: chance, the most
frequent answer, the longest answer.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import hashlib
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

from pydantic import Field
from tqdm import tqdm

from bertillery.config.layers import merge_layers, names_file, read_layers, take
from bertillery.config.section import InputError, Section, validate
from bertillery.config.types import Count, Seed
from bertillery.run.command import cli
from bertillery.run.stage import beside
from bertillery.system.files import write_text
from bertillery.system.invocation import command_line
from finetune.config import FinetuneConfig
from prompting.items import FewshotTask, Item, Items, check_shots, draw_shots, read_items
from prompting.model import CausalModel
from prompting.outcomes import Outcome, draw, results_table, standard_error
from prompting.scorer import Request, Score, Scorer, perplexities
from prompting.written import check_metric, compare, evaluate_written, first_sentences, signature

_CHUNK = 64
"""Items whose prompts are encoded at a time."""


class FewshotSection(Section):
    """Keys of an evaluation in context."""

    model: str
    """Directory or Hub id of a causal language model."""
    shots: list[Annotated[int, Field(ge=0, le=1000)]] = Field(default=[0, 1, 4], min_length=1)
    """Numbers of worked examples."""
    seeds: list[Seed] = Field(default=[1, 2, 3], min_length=1)
    """Of the draws; without worked examples there is one run."""
    limit: Count | None = None
    """Evaluate the first items only."""
    data_dir: Path = Path("data")
    """Folder for what has to be made first."""
    output: Path | None = None
    """Folder of the results; by default runs/prompting/<task>/<model>."""


def main(arguments: Sequence[str]) -> int:
    """Evaluate and print the table; returns the exit status."""
    return cli(arguments, help=__doc__, schema=FewshotSection, action=lambda: _run(arguments), settings=read_arguments)


def read_arguments(arguments: Sequence[str]) -> tuple[FewshotSection, FewshotTask]:
    """The keys of the evaluation and the task; raises what reading and validating raise."""
    section, rest = take(FewshotSection, arguments)
    values, sources = merge_layers(read_layers(rest))
    if not any(map(names_file, rest)) or "prompt" not in values:
        raise InputError(
            "evaluation in context needs a task with a section prompt: "
            + command_line("fewshot", TASK="<name in configs/prompting or a .yaml>", MODEL="<directory or Hub id>")
        )
    unknown = values.keys() - {"prompt", "task", "data"} - FinetuneConfig.model_fields.keys()
    if unknown:
        raise InputError(
            f"{', '.join(sorted(unknown))}: unknown; beside the keys of this command (--help) there are the sections "
            "prompt, and task or data"
        )
    given = {key: values[key] for key in ("prompt", "task", "data") if key in values}
    return section, validate(FewshotTask, given, sources)


def _run(arguments: Sequence[str]) -> int:
    section, config = read_arguments(arguments)
    if config.prompt.written is not None:
        check_metric(config.prompt.written)
    items = read_items(config, section.data_dir)
    shots = [0] if items.kind == "text" else section.shots
    check_shots(items, max(shots))
    if section.limit is not None:
        items = replace(items, items=items.items[: section.limit])
    causal = CausalModel.open(section.model)
    folder = section.output or Path("runs/prompting") / items.name / causal.name
    outcomes = [
        evaluate(causal, items, number, seed) for number in shots for seed in section.seeds[: None if number else 1]
    ]
    beside_it = floors(items)
    table = results_table(items.name, outcomes, beside_it)
    _write(folder, config, section.model, items, outcomes, table)
    with beside(f"the picture {folder / 'shots.png'}"):
        draw(folder / "shots.png", f"{items.name}, {causal.name}", outcomes, beside_it)
    print(f"\n{table}\n\nresults     {folder / 'results.json'}\npicture     {folder / 'shots.png'}")
    return 0


def evaluate(causal: CausalModel, items: Items, shots: int, seed: int) -> Outcome:
    """Evaluate all items with so many worked examples each."""
    if items.kind == "text":
        return _evaluate_texts(causal, items, seed)
    if items.kind == "written":
        return evaluate_written(causal, items, shots, seed)
    scorer, fewer, lacking, cut, ties = Scorer(causal), 0, 0, 0, 0
    found: dict[str, list[float]] = {}
    progress = tqdm(range(0, len(items.items), _CHUNK), desc=f"{items.name}, {shots} shots", unit="chunk", disable=None)
    for start in progress:
        chunk = range(start, min(start + _CHUNK, len(items.items)))
        requests: list[Request] = []
        for number in chunk:
            pairs, left_out, fits = fitting(causal, items, number, draw_shots(items, number, shots, seed))
            fewer, lacking, cut = fewer + (left_out > 0), lacking + left_out, cut + (not fits)
            requests += [Request(*pair) for pair in pairs]
        scores = scorer.scores(requests)
        for number in chunk:
            item = items.items[number]
            mine, scores = scores[: len(item.answers)], scores[len(item.answers) :]
            values, tied = judge(item, mine, items)
            ties += tied
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    metrics = {name: mean(values) for name, values in found.items()}
    errors = {name: standard_error(values) for name, values in found.items()}
    if items.kind == "cloze":  # so far the nats of each answer
        metrics["perplexity"] = math.exp(min(700, metrics["perplexity"]))
        errors["perplexity"] *= metrics["perplexity"]
    return Outcome(shots, seed, len(items.items), metrics, errors, ties, fewer, lacking, cut)


def _evaluate_texts(causal: CausalModel, items: Items, seed: int) -> Outcome:
    """Perplexity of whole texts, read in windows."""
    scorer = Scorer(causal)
    scores = [scorer.rolling(item.text) for item in tqdm(items.items, desc=items.name, unit="text", disable=None)]
    return Outcome(0, seed, len(scores), perplexities(scores, [item.text for item in items.items]), {})


def fitting(
    causal: CausalModel, items: Items, number: int, shots: list[Item]
) -> tuple[list[tuple[str, str]], int, bool]:
    """Contexts and continuations of an item with as many of the worked examples as fit the model; how many do not, and
    whether the item itself fits."""
    item = items.items[number]
    for left_out in range(len(shots) + 1):
        pairs = items.pairs(item, shots[left_out:])
        if max(len(causal.ids(f"{context}{answer}")) for context, answer in pairs) <= causal.positions:
            return pairs, left_out, True
    return items.pairs(item, []), len(shots), False


def judge(item: Item, scores: Sequence[Score], items: Items) -> tuple[dict[str, float], bool]:
    """Metrics of one item, and whether its best answers tie."""
    if items.kind == "cloze":
        (only,) = scores
        return {"accuracy": float(only.is_greedy), "perplexity": -only.log_likelihood}, False
    sums = [score.log_likelihood for score in scores]
    texts = item.answers if items.prompt.order == "answer_last" else [item.text] * len(sums)
    norms = [total / max(1, len(text.strip())) for total, text in zip(sums, texts, strict=True)]
    values = {"accuracy": float(sums.index(max(sums)) == item.gold)}
    values["accuracy_norm"] = float(norms.index(max(norms)) == item.gold)
    return values, sums.count(max(sums)) > 1


def floors(items: Items) -> dict[str, float]:
    """Accuracy of what needs no model: a guess, the most frequent place of the answer, the longest and the shortest
    answer. For written answers, the metrics of the first sentences of the source."""
    section = items.prompt.written
    if section is not None:
        copied = [first_sentences(item.source, section.sentences) for item in items.items]
        means, _ = compare(section.metric, copied, [item.answers[0].strip() for item in items.items])
        return {f"{name} of the source": value for name, value in means.items()}
    if items.kind != "choice":
        return {}
    number, golds = len(items.items), [item.gold for item in items.items]
    lengths = [[len(answer) for answer in item.answers] for item in items.items]
    return {
        "chance": sum(1 / len(item.answers) for item in items.items) / number,
        "majority": max(Counter(golds).values()) / number,
        "longest": sum(each.index(max(each)) == gold for each, gold in zip(lengths, golds, strict=True)) / number,
        "shortest": sum(each.index(min(each)) == gold for each, gold in zip(lengths, golds, strict=True)) / number,
    }


def _write(
    folder: Path, config: FewshotTask, model: str, items: Items, outcomes: Sequence[Outcome], table: str
) -> None:
    """``results.json``, and ``answers.jsonl`` where the model wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    prompt = config.prompt.model_dump()
    results: dict[str, Any] = {
        "task": items.name,
        "model": model,
        "prompt": prompt,
        "prompt_sha256": hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest(),
        "floors": floors(items),
        "outcomes": [{key: value for key, value in vars(outcome).items() if key != "answers"} for outcome in outcomes],
        "table": table,
    }
    if config.prompt.written is not None:
        results["metric"] = signature(config.prompt.written.metric)
        rows = [
            {"shots": outcome.shots, "seed": outcome.seed, "answer": answer, "reference": item.answers[0].strip()}
            for outcome in outcomes
            for answer, item in zip(outcome.answers, items.items, strict=True)
        ]
        write_text(folder / "answers.jsonl", "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
    write_text(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

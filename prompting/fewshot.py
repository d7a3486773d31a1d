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
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from tqdm import tqdm

from bertillery.config.section import InputError, Section, merge_layers, names_file, read_layers, take, validate
from bertillery.config.types import Count, Seed
from bertillery.report.plot import figure, save
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.run.stage import beside
from bertillery.system.files import write_text
from prompting.items import FewshotTask, Item, Items, draw_shots, read_items
from prompting.model import CausalModel
from prompting.scorer import Request, Score, Scorer

Numbers = Annotated[list[int], BeforeValidator(lambda value: [value] if isinstance(value, int) else value)]
_CHUNK = 64
"""Items whose prompts are encoded at a time."""


class FewshotSection(Section):
    """Keys of an evaluation in context."""

    model: str
    """Directory or Hub id of a causal language model."""
    shots: Annotated[list[Annotated[int, Field(ge=0, le=1000)]], BeforeValidator(lambda value: value)] = [0, 1, 4]  # noqa: RUF012
    """Numbers of worked examples."""
    seeds: list[Seed] = [1, 2, 3]  # noqa: RUF012
    """Of the draws; without worked examples there is one run."""
    limit: Count | None = None
    """Evaluate the first items only."""
    data_dir: Path = Path("data")
    """Folder for what has to be made first."""
    output: Path | None = None
    """Folder of the results; by default runs/prompting/<task>/<model>."""


@dataclass(frozen=True)
class Outcome:
    """One run over all items."""

    shots: int
    seed: int
    num_items: int
    metrics: dict[str, float]
    ties: int
    """Items whose best answers are equally likely; the first of them counts."""
    fewer: int
    """Items whose prompts had room for fewer worked examples."""


def main(arguments: Sequence[str]) -> int:
    """Evaluate and print the table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=FewshotSection, action=lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    section, rest = take(FewshotSection, arguments)
    values, sources = merge_layers(read_layers(rest))
    if not any(map(names_file, rest)) or "prompt" not in values:
        raise InputError(
            "evaluation in context needs a task with a section prompt: make fewshot TASK=<name in configs/prompting "
            "or a .yaml> MODEL=<directory or Hub id>"
        )
    config = validate(FewshotTask, {key: values[key] for key in ("prompt", "task", "data") if key in values}, sources)
    items = read_items(config, section.data_dir)
    if section.limit is not None:
        items = Items(**{**vars(items), "items": items.items[: section.limit]})
    causal = CausalModel.open(section.model)
    folder = section.output or Path("runs/prompting") / items.name / causal.name
    outcomes = [
        evaluate(causal, items, shots, seed)
        for shots in section.shots
        for seed in section.seeds[: None if shots else 1]
    ]
    table = results_table(items, outcomes)
    _write(folder, config, section, items, outcomes, table)
    print(f"\n{table}\n\nresults     {folder / 'results.json'}\npicture     {folder / 'shots.png'}")
    return 0


def evaluate(causal: CausalModel, items: Items, shots: int, seed: int) -> Outcome:
    """Score all items with so many worked examples each."""
    scorer, fewer, ties = Scorer(causal), 0, 0
    found: dict[str, list[float]] = {}
    progress = tqdm(range(0, len(items.items), _CHUNK), desc=f"{items.name}, {shots} shots", unit="chunk", disable=None)
    for start in progress:
        requests: list[Request] = []
        for number in range(start, min(start + _CHUNK, len(items.items))):
            pairs, left_out = fitting(scorer, causal, items, number, draw_shots(items, number, shots, seed))
            fewer += left_out > 0
            requests += [Request(*pair) for pair in pairs]
        scores = scorer.scores(requests)
        for number in range(start, min(start + _CHUNK, len(items.items))):
            item = items.items[number]
            mine, scores = scores[: len(item.answers)], scores[len(item.answers) :]
            values, tied = judge(item, mine, items)
            ties += tied
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    metrics = {name: mean(values) for name, values in found.items()}
    if items.is_cloze:
        metrics["perplexity"] = math.exp(min(700, metrics["perplexity"]))
    return Outcome(shots, seed, len(items.items), metrics, ties, fewer)


def fitting(
    scorer: Scorer, causal: CausalModel, items: Items, number: int, shots: list[Item]
) -> tuple[list[tuple[str, str]], int]:
    """Contexts and continuations of an item with as many of the worked examples as fit the model, and how many do
    not."""
    item = items.items[number]
    left_out = 0
    while True:
        pairs = items.pairs(item, shots[left_out:])
        size = max(len(causal.ids(f"{context}{continuation}")) for context, continuation in pairs)
        if size <= causal.positions or left_out == len(shots):
            return pairs, left_out
        left_out += 1


def judge(item: Item, scores: Sequence[Score], items: Items) -> tuple[dict[str, float], bool]:
    """Metrics of one item, and whether its best answers tie."""
    if items.is_cloze:
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
    answer."""
    if items.is_cloze:
        return {}
    number, golds = len(items.items), [item.gold for item in items.items]
    lengths = [[len(answer) for answer in item.answers] for item in items.items]
    return {
        "chance": sum(1 / len(item.answers) for item in items.items) / number,
        "majority": max(Counter(golds).values()) / number,
        "longest": sum(each.index(max(each)) == gold for each, gold in zip(lengths, golds, strict=True)) / number,
        "shortest": sum(each.index(min(each)) == gold for each, gold in zip(lengths, golds, strict=True)) / number,
    }


def results_table(items: Items, outcomes: Sequence[Outcome]) -> str:
    """A row for each number of worked examples, with mean and deviation over seeds, the standard error of the items,
    and the floors."""
    names, number = list(outcomes[0].metrics), outcomes[0].num_items
    rows = [["shots", *names, "standard error", "ties", "fewer shots fit"]]
    for shots in dict.fromkeys(outcome.shots for outcome in outcomes):
        mine = [outcome for outcome in outcomes if outcome.shots == shots]
        cells = []
        for name in names:
            values = [outcome.metrics[name] for outcome in mine]
            scale = 1 if name == "perplexity" else 100
            spread = f" +- {scale * stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{scale * mean(values):.1f}{spread}")
        share = mean(outcome.metrics["accuracy"] for outcome in mine)
        error = 100 * math.sqrt(share * (1 - share) / number)
        rows.append(
            [str(shots), *cells, f"{error:.1f}", str(max(o.ties for o in mine)), str(max(o.fewer for o in mine))]
        )
    beside_it = ", ".join(f"{name} {100 * value:.1f}" for name, value in floors(items).items())
    return f"{items.name}, {number:,} items\n\n{markdown_table(rows)}" + (f"\n\n{beside_it}" if beside_it else "")


def _write(
    folder: Path,
    config: FewshotTask,
    section: FewshotSection,
    items: Items,
    outcomes: Sequence[Outcome],
    table: str,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prompt = config.prompt.model_dump()
    results: dict[str, Any] = {
        "task": items.name,
        "model": section.model,
        "prompt": prompt,
        "prompt_sha256": hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest(),
        "floors": floors(items),
        "outcomes": [vars(outcome) for outcome in outcomes],
        "table": table,
    }
    write_text(folder / "results.json", json.dumps(results, indent=1, ensure_ascii=False))
    with beside(f"the picture {folder / 'shots.png'}"):
        _draw(folder / "shots.png", items, outcomes, folder.name)


def _draw(picture: Path, items: Items, outcomes: Sequence[Outcome], model: str) -> None:
    """Accuracy over the number of worked examples, a point for each seed, with the floors."""
    (axis,) = figure(1, f"{items.name}, {model}", panel=(5.2, 3.6))
    for name in (name for name in outcomes[0].metrics if name != "perplexity"):
        by_shots = {o.shots: [100 * each.metrics[name] for each in outcomes if each.shots == o.shots] for o in outcomes}
        (line,) = axis.plot(
            [*by_shots], [mean(values) for values in by_shots.values()], "o-", label=name.replace("_", " ")
        )
        for shots, values in by_shots.items():
            axis.plot([shots] * len(values), values, ".", color=line.get_color(), alpha=0.5)
    for (name, value), style in zip(floors(items).items(), ("--", ":", "-.", (0, (1, 4))), strict=False):
        axis.axhline(100 * value, color="gray", linestyle=style, linewidth=0.8, label=name)
    axis.set_xlabel("worked examples")
    axis.set_ylabel("%")
    axis.legend(fontsize=7)
    save([axis], picture)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

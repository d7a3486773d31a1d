"""``python -m prompting.probes model=<directory>``: does a causal model learn from its context?

Three probes on random tokens, in which nothing but the context tells the answer, so that a small model can show what on
real sets it cannot:

- ``repeated``: a random block twice. Where induction heads have formed, the loss of the second block falls by more than
  a nat (Olsson et al. 2022, arXiv 2209.11895).
- ``mapping``: pairs of tokens, each K times in random order; then the first token of one of them.
- ``copy``: K strings with a copy behind each; then a string to copy.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from bertillery.config.section import InputError, Section, read_values, validate
from bertillery.config.types import Count, Seed
from bertillery.engine.batch import pack_stream
from bertillery.models.encoders import encode
from bertillery.report.plot import figure, save
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.run.stage import beside
from bertillery.system.files import write_text
from prompting.model import CausalModel

_BLOCK, _PAIRS, _STRING = 64, 4, 3
"""Tokens of a repeated block, pairs of a mapping, tokens of a string to copy; a block is shorter where the model reads
less."""
_BATCH = 32
Probe = Callable[[np.random.Generator, np.ndarray, int], tuple[np.ndarray, int]]
"""Random tokens that end with an answer, and the length of the answer, for a number of examples."""


class ProbesSection(Section):
    """Keys of the probes."""

    model: str
    """Directory or Hub id of a causal language model."""
    shots: list[Count] = Field(default=[1, 2, 4, 8], min_length=1)
    """Examples before the question, K; those that the model cannot read are left out."""
    trials: int = Field(default=200, ge=10, le=100_000)
    """Random sequences for each number."""
    seed: Seed = 12345
    """Of the random tokens."""
    output: Path | None = None
    """Folder of the results; by default runs/prompting/probes/<model>."""


def main(arguments: Sequence[str]) -> int:
    """Probe and print the table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=ProbesSection, action=lambda: _run(arguments))


def _run(arguments: Sequence[str]) -> int:
    section = validate(ProbesSection, *read_values(arguments))
    causal = CausalModel.open(section.model)
    tokens = np.array(sorted({*range(causal.model.config.vocab_size)} - {*causal.tokenizer.all_special_ids}))
    if len(tokens) < 2 * _PAIRS:
        raise InputError(
            f"model: {section.model} has {len(tokens)} tokens; the probes draw {2 * _PAIRS} different ones"
        )
    first, second = repeated(causal, tokens, section)
    curves = {
        "mapping": by_shots(causal, tokens, section, mapping),
        "copy": by_shots(causal, tokens, section, copying),
    }
    name = next(part for part in (*reversed(Path(section.model).parts), "model") if part not in ("export", "/"))
    folder = section.output or Path("runs/prompting/probes") / name
    table = _table(first, second, curves, len(tokens))
    folder.mkdir(parents=True, exist_ok=True)
    results = {"model": section.model, "first": first.tolist(), "second": second.tolist(), **curves, "table": table}
    write_text(folder / "results.json", json.dumps(results, indent=1))
    with beside(f"the picture {folder / 'probes.png'}"):
        _draw(folder / "probes.png", first, second, curves, name)
    print(f"\n{table}\n\nresults     {folder / 'results.json'}\npicture     {folder / 'probes.png'}")
    return 0


def next_token_nats(causal: CausalModel, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy of each token after the first, and whether it is the most probable one: (N, L - 1) of (N, L)."""
    nats, right = [], []
    for batch in np.split(sequences, range(_BATCH, len(sequences), _BATCH)):
        lengths = np.full(len(batch), batch.shape[1] - 1)
        with torch.inference_mode():
            hidden = encode(causal.model, pack_stream(batch[:, :-1].ravel(), lengths))
            logits = causal.model.lm_head(hidden).float()
            targets = torch.from_numpy(batch[:, 1:].ravel())
            nats.append(F.cross_entropy(logits, targets, reduction="none").view(len(batch), -1).numpy())
            right.append((logits.argmax(-1) == targets).view(len(batch), -1).numpy())
    return np.concatenate(nats), np.concatenate(right)


def repeated(causal: CausalModel, tokens: np.ndarray, section: ProbesSection) -> tuple[np.ndarray, np.ndarray]:
    """Mean nats of each place of a random block, the first time and the second."""
    size = min(_BLOCK, (causal.positions - 1) // 2)
    rng = np.random.default_rng([section.seed, 1])
    blocks = rng.choice(tokens, (section.trials, size))
    sequences = np.concatenate([np.full((section.trials, 1), causal.end), blocks, blocks], axis=1)
    nats, _ = next_token_nats(causal, sequences)
    return nats[:, :size].mean(0), nats[:, size:].mean(0)


def mapping(rng: np.random.Generator, tokens: np.ndarray, shots: int) -> tuple[np.ndarray, int]:
    """Pairs, each ``shots`` times in random order, then one of them again: tokens, and how many the answer has."""
    drawn = rng.choice(tokens, 2 * _PAIRS, replace=False).reshape(_PAIRS, 2)
    order = np.concatenate([rng.permutation(_PAIRS) for _ in range(shots)])
    return np.concatenate([drawn[order].ravel(), drawn[rng.integers(_PAIRS)]]), 1


def copying(rng: np.random.Generator, tokens: np.ndarray, shots: int) -> tuple[np.ndarray, int]:
    """Strings with a copy behind each, a separator after both: tokens, and how many the answer has."""
    separators = rng.choice(tokens, 2, replace=False)
    rest = np.setdiff1d(tokens, separators)
    parts = []
    for _ in range(shots + 1):
        string = rng.choice(rest, _STRING)
        parts += [string, separators[:1], string, separators[1:]]
    return np.concatenate(parts[:-1]), _STRING


def by_shots(causal: CausalModel, tokens: np.ndarray, section: ProbesSection, make: Probe) -> dict[int, float]:
    """The share of answers that the model gives whole, by the number of examples."""
    found = {}
    for shots in section.shots:
        rng = np.random.default_rng([section.seed, shots])
        made = [make(rng, tokens, shots) for _ in range(section.trials)]
        sequences = np.stack([np.append(causal.end, sequence) for sequence, _ in made])
        if sequences.shape[1] - 1 > causal.positions:
            break
        _, right = next_token_nats(causal, sequences)
        found[shots] = float(right[:, -made[0][1] :].all(1).mean())
    return found


def _table(first: np.ndarray, second: np.ndarray, curves: dict[str, dict[int, float]], number: int) -> str:
    rows = [["probe", "examples", "result", "chance"]]
    uniform = f"{np.log(number):.2f}"
    rows.append(["repeated block, first time", "", f"{first.mean():.2f} nats", uniform])
    rows.append(["repeated block, second time", "", f"{second.mean():.2f} nats", uniform])
    for name, curve in curves.items():
        rows += [[name, str(shots), f"{100 * value:.1f} %", "0.0 %"] for shots, value in curve.items()]
    return markdown_table(rows)


def _draw(picture: Path, first: np.ndarray, second: np.ndarray, curves: dict[str, dict[int, float]], name: str) -> None:
    losses, answers = figure(2, f"in-context probes, {name}")
    losses.plot(first, label="first time")
    losses.plot(second, label="second time")
    losses.set_xlabel("place in the block")
    losses.set_ylabel("nats")
    losses.set_ylim(bottom=0)
    losses.legend(fontsize=8)
    for label, curve in curves.items():
        answers.plot([*curve], [100 * value for value in curve.values()], "o-", label=label)
    answers.set_xlabel("examples before the question")
    answers.set_ylabel("answers, %")
    answers.set_ylim(-2, 102)
    answers.legend(fontsize=8)
    save([losses, answers], picture)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m prompting.probes model=<directory>``: does a causal model learn from its context? On random tokens.

A small model answers no questions, but it may learn in context where the context holds all there is to know: a string
is copied or reversed, tokens are mapped to tokens, or a block is repeated (induction, Olsson et al. 2022, arXiv
2209.11895), after K examples. A causal model predicts every token from those before, so that one pass over a sequence
gives the curve over K.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from bertillery.config.section import InputError, Section
from bertillery.config.types import Seed
from bertillery.engine.batch import pack_stream
from bertillery.models.encoders import encode
from bertillery.report.plot import figure, save
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.run.stage import beside
from bertillery.system.files import write_text
from prompting.model import CausalModel

_STRING, _PAIRS = 4, 4
"""Tokens of a string, pairs of a mapping."""
_EXAMPLE = 2 * _STRING + 2
"""Tokens of a copy with its string and marks."""
_MOST, _REPETITIONS = 32, 7
"""Examples before the last, and repetitions of a block, at most."""
_WORDS = 200
"""Whole words that a vocabulary has at least, if sequences are drawn from them alone."""
_SHOWN = (0, 1, 2, 4, 8, 16, 32)
"""Numbers of examples in the table."""
_BATCH_TOKENS = 8192


class ProbesSection(Section):
    """Keys of the probes."""

    model: str
    """Directory or Hub id of a causal language model."""
    trials: Annotated[int, Field(ge=2, le=100_000)] = 200
    """Random sequences of each probe."""
    block: Annotated[int, Field(ge=2, le=10_000)] = 64
    """Tokens of the repeated block; shorter where the model cannot read two of them."""
    seed: Seed = 12345
    """Of the sequences."""
    output: Path | None = None
    """Folder of the results; by default runs/prompting/probes/<model>."""


@dataclass(frozen=True)
class Episodes:
    """Sequences of a probe: E of L tokens, of which N are to be predicted."""

    ids: np.ndarray
    """(E, L)."""
    places: np.ndarray
    """(N,) columns that are predicted from those before them; the same in all sequences."""
    shown: np.ndarray
    """(N,) examples that stand before."""
    candidates: np.ndarray
    """(E, N, C) tokens that the answer may be: knowing no more than these, one in C guesses is right."""


@dataclass(frozen=True)
class Curve:
    """Results of a probe after K = 0, 1, 2, ... examples."""

    nats: list[float]
    """Mean loss of the predicted tokens."""
    accuracy: list[float]
    """Share of them that are the most probable of the whole vocabulary."""
    among: list[float]
    """Share of them that are the most probable of their candidates."""
    error: list[float]
    """Standard error of ``among``, from its spread over episodes."""
    chance: float
    """Of ``among``."""
    by_place: list[list[float]]
    """``nats`` of each predicted token of an example."""


def main(arguments: Sequence[str]) -> int:
    """Run the probes and print the table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=ProbesSection, action=_run)


def _run(section: ProbesSection) -> int:
    causal = CausalModel.open(section.model)
    curves = {name: measure(causal, episodes) for name, episodes in make_probes(causal, section).items()}
    folder = section.output or Path("runs/prompting/probes") / causal.name
    table = results_table(curves)
    results: dict[str, Any] = {"model": section.model, "trials": section.trials, "seed": section.seed}
    results |= {"curves": {name: vars(curve) for name, curve in curves.items()}, "table": table}
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.json", json.dumps(results, indent=1))
    with beside(f"the picture {folder / 'probes.png'}"):
        _draw(folder / "probes.png", curves, causal.name)
    print(f"\n{table}\n\nresults     {folder / 'results.json'}\npicture     {folder / 'probes.png'}")
    return 0


def make_probes(causal: CausalModel, section: ProbesSection) -> dict[str, Episodes]:
    """The episodes of each probe; ``InputError`` for a model that cannot read two examples of each."""
    room = causal.positions - 1
    block = min(section.block, room // 2)
    if room < 2 * _EXAMPLE:
        raise InputError(
            f"model: {section.model} reads {causal.positions} tokens; the probes need {2 * _EXAMPLE + 1}, two examples"
        )
    tokens = drawable(causal)
    if len(tokens) < _EXAMPLE:
        raise InputError(f"model: {section.model} has {len(tokens)} tokens; the probes draw from {_EXAMPLE} at least")
    rng, number = np.random.default_rng(section.seed), section.trials
    examples = min(_MOST + 1, room // _EXAMPLE)
    return {
        "copy": copies(rng, tokens, number, examples, backwards=False),
        "reversal": copies(rng, tokens, number, examples, backwards=True),
        "token mapping": mappings(rng, tokens, number, min(_MOST + 1, room // (2 * _PAIRS))),
        "repeated block": blocks(rng, tokens, number, min(_REPETITIONS + 1, room // block), block),
    }


def drawable(causal: CausalModel) -> np.ndarray:
    """Tokens that sequences are drawn from: words with a space before them, or, where these are few, all tokens that
    are not special."""
    tokenizer = causal.tokenizer
    pieces = {
        piece: number for piece, number in tokenizer.get_vocab().items() if number not in tokenizer.all_special_ids
    }
    words = [number for piece, number in pieces.items() if piece[:1] == "\u0120" and piece[1:].isalpha()]
    return np.array(sorted(words if len(words) >= _WORDS else pieces.values()))


def _draw_tokens(rng: np.random.Generator, tokens: np.ndarray, shape: tuple[int, ...], size: int) -> np.ndarray:
    """(*shape, size) tokens, of which each row's are different."""
    rows = [rng.choice(len(tokens), min(size, len(tokens)), replace=False) for _ in range(math.prod(shape))]
    rows = [row if len(row) == size else np.resize(row, size) for row in rows]
    return tokens[np.stack(rows)].reshape(*shape, size)


def copies(rng: np.random.Generator, tokens: np.ndarray, episodes: int, examples: int, *, backwards: bool) -> Episodes:
    """``string mark copy end`` again and again, each with a new string; the two marks are random tokens, too, which no
    string of the episode has."""
    marks = _draw_tokens(rng, tokens, (episodes,), 2)
    strings = np.stack(
        [_draw_tokens(rng, np.setdiff1d(tokens, mine), (examples,), _STRING) for mine in marks]
    )  # (E, examples, string)
    middle, end = (np.broadcast_to(marks[:, None, [i]], (episodes, examples, 1)) for i in (0, 1))
    copied = strings[:, :, ::-1] if backwards else strings
    ids = np.concatenate([strings, middle, copied, end], axis=2).reshape(episodes, -1)
    places = np.arange(examples)[:, None] * _EXAMPLE + _STRING + 1 + np.arange(_STRING)
    return Episodes(ids, places.ravel(), np.repeat(np.arange(examples), _STRING), np.repeat(strings, _STRING, axis=1))


def mappings(rng: np.random.Generator, tokens: np.ndarray, episodes: int, rounds: int) -> Episodes:
    """A few pairs ``a b``, the same in all rounds of an episode but each time in another order; ``b`` is predicted."""
    drawn = _draw_tokens(rng, tokens, (episodes,), 2 * _PAIRS).reshape(episodes, 2, _PAIRS)
    order = rng.permuted(np.broadcast_to(np.arange(_PAIRS), (episodes, rounds, _PAIRS)), axis=2)
    keys, values = (np.take_along_axis(drawn[:, [i]].repeat(rounds, 1), order, axis=2) for i in (0, 1))
    ids = np.stack([keys, values], axis=-1).reshape(episodes, -1)
    places = np.arange(1, ids.shape[1], 2)
    candidates = np.broadcast_to(drawn[:, None, 1], (episodes, len(places), _PAIRS))
    return Episodes(ids, places, np.repeat(np.arange(rounds), _PAIRS), candidates)


def blocks(rng: np.random.Generator, tokens: np.ndarray, episodes: int, times: int, size: int) -> Episodes:
    """A random block of tokens, so many times. The first token of each repetition is not predicted: before the
    second one, nothing tells it."""
    block = _draw_tokens(rng, tokens, (episodes,), size)
    places = np.arange(times)[:, None] * size + np.arange(1, size)
    candidates = np.broadcast_to(block[:, None], (episodes, times * (size - 1), size))
    return Episodes(np.tile(block, times), places.ravel(), np.repeat(np.arange(times), size - 1), candidates)


def measure(causal: CausalModel, episodes: Episodes) -> Curve:
    """Run the model on all episodes, each after the end-of-text token."""
    number, length = episodes.ids.shape
    found = []
    size = max(1, _BATCH_TOKENS // (length + 1))
    for start in range(0, number, size):
        ids = episodes.ids[start : start + size]
        rows = np.concatenate([np.full((len(ids), 1), causal.end), ids], axis=1)
        with torch.inference_mode():
            hidden = encode(causal.model, pack_stream(rows.ravel(), np.full(len(ids), length + 1)))
            hidden = hidden.view(len(ids), length + 1, -1)
            for one, sequence, candidates in zip(hidden, ids, episodes.candidates[start:], strict=False):
                # Column p of the sequence stands at p + 1, and the state before it predicts it.
                logits = causal.model.lm_head(one[torch.from_numpy(episodes.places)]).float()
                found.append(_judged(logits, torch.from_numpy(sequence[episodes.places]), torch.tensor(candidates)))
    values = np.stack(found)  # (E, measures, N)
    groups = [values[:, :, episodes.shown == shown] for shown in range(episodes.shown[-1] + 1)]
    means = [group.mean(2) for group in groups]
    nats, accuracy, among = ([float(each[:, i].mean()) for each in means] for i in range(3))
    by_place = [group[:, 0].mean(0).tolist() for group in groups]
    error = [float(each[:, 2].std(ddof=1)) / math.sqrt(number) for each in means]
    return Curve(nats, accuracy, among, error, 1 / episodes.candidates.shape[2], by_place)


def _judged(logits: torch.Tensor, targets: torch.Tensor, candidates: torch.Tensor) -> np.ndarray:
    """Loss, whether the target is the most probable token, and whether it is that of its candidates: (3, N)."""
    chosen = candidates.gather(1, logits.gather(1, candidates).argmax(-1, keepdim=True))[:, 0]
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return torch.stack([nats, (logits.argmax(-1) == targets).float(), (chosen == targets).float()]).double().numpy()


def results_table(curves: dict[str, Curve]) -> str:
    """Loss and accuracies of each probe after 0, 1, 2, 4 ... examples, and chance."""
    most = max(len(curve.nats) for curve in curves.values())
    shown = [k for k in _SHOWN if k < most]
    rows = [["probe", "", "chance", *(f"K={k}" for k in shown)]]
    for name, curve in curves.items():
        among = [f"{100 * value:.1f} +- {100 * e:.1f}" for value, e in zip(curve.among, curve.error, strict=True)]
        for measure_name, values, chance in (
            ("loss (nats)", [f"{value:.2f}" for value in curve.nats], ""),
            ("accuracy", [f"{100 * value:.1f}" for value in curve.accuracy], ""),
            ("of candidates", among, f"{100 * curve.chance:.1f}"),
        ):
            cells = [values[k] if k < len(values) else "" for k in shown]
            rows.append([name, measure_name, chance, *cells])
    drop = curves["repeated block"].nats
    return f"{markdown_table(rows)}\n\nloss of a block, second time less first time: {drop[1] - drop[0]:+.2f} nats"


def _draw(picture: Path, curves: dict[str, Curve], model: str) -> None:
    """Accuracy among the candidates and loss over the number of examples, and loss over the places of the block."""
    accuracy, loss, places = figure(3, f"learning in context, {model}", panel=(4.2, 3.4))
    for name, curve in curves.items():
        examples, error = [*range(len(curve.nats))], [100 * error for error in curve.error]
        (line, *_) = accuracy.errorbar(examples, [100 * value for value in curve.among], error, label=name)
        accuracy.axhline(100 * curve.chance, color=line.get_color(), linestyle=":", linewidth=0.8)
        loss.plot(examples, curve.nats, ".-", color=line.get_color())
    for time, name in enumerate(["first time", "second time"]):
        losses = curves["repeated block"].by_place[time]
        places.plot(range(2, len(losses) + 2), losses, label=name)
    for axis, title, along in (
        (accuracy, "% right of the candidates (dotted: chance)", "examples before"),
        (loss, "loss (nats)", "examples before"),
        (places, "loss of a repeated block (nats)", "place in the block"),
    ):
        axis.set_xlabel(along)
        axis.set_title(title, fontsize=9)
    accuracy.legend(fontsize=7)
    places.legend(fontsize=7)
    save([accuracy, loss, places], picture)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

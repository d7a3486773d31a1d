"""What a corpus and a stream of examples cost, each measured in a process of its own."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import psutil

from benchmarks.scale_data import BLOCK, Numbered
from bertillery.data.corpus import CorpusSection
from bertillery.data.prepare import prepare
from bertillery.data.tokenizer import TokenizerSection
from bertillery.engine.loader import Cursor, Steps
from bertillery.engine.schedule import Phase
from pretrain.objectives import bert
from pretrain.pairs import Tokens

PHASE = Phase(batch_size=256, sequence_length=128)
PLACES = ("begin", "middle", "end")


def prepare_and_take(file: Path, tokenizer: str, cache: Path, rounds: int) -> dict[str, float]:
    """Prepare a text, then draw and pack a step's examples from it: seconds, and peak MiB."""
    data = CorpusSection(path=[str(file)], holdout=0.1)
    started = time.perf_counter()
    corpus = prepare(data, TokenizerSection(path=tokenizer), cache, workers=1)
    seconds, memory = time.perf_counter() - started, _peak()
    settings = {"sequence_length": PHASE.sequence_length, "seed": 1}
    source = bert.source(bert.Config(), cast(Tokens, corpus.train), corpus.tokenizer(), **settings)
    number = len(source.examples(0, 0))
    drawing = _median(lambda turn: source.examples(turn, 0), rounds)
    steps = Steps([source], [PHASE], total_steps=10**6, seed=1, micro_batch_tokens=8192)
    steps[0]
    return {
        "characters_per_second": corpus.manifest["read"]["characters"] / seconds,
        "memory_mib": memory,
        # A block is drawn at once; a step's share of that is its share of the block's examples.
        "draw_seconds": drawing / number * PHASE.last,
        "pack_seconds": _median(lambda turn: steps[turn + 1], 10 * rounds),
    }


def first_batches(num_examples: int, rounds: int) -> dict[str, float]:
    """Seconds to the first batch from the begin, the middle and near the end of an epoch, and peak MiB."""
    seconds = {}
    for place in PLACES:
        source = Numbered(num_examples)
        block = {"begin": 0, "middle": source.num_blocks // 2, "end": source.num_blocks - 2}[place]
        step = (block * BLOCK + BLOCK // 3) // PHASE.last
        start = (step, Cursor(block=block, offset=BLOCK // 3))
        resumed = lambda _, start=start, source=source: Steps(  # noqa: E731
            [source], [PHASE], total_steps=10**9, seed=1, micro_batch_tokens=8192, start=start
        )[start[0]]
        seconds[place] = _median(resumed, rounds)
    return {**seconds, "memory_mib": _peak()}


def train_tokenizer(data: CorpusSection, section: TokenizerSection, cache: Path) -> Path:
    """The tokenizer that a text is prepared with."""
    return prepare(data, section, cache, workers=1).path / "tokenizer"


def apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns, made in a fresh process of one thread, whose peak memory is the call's own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        return pool.submit(call, *arguments).result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _median(call: Callable[[int], Any], rounds: int) -> float:
    seconds = []
    for turn in range(rounds):
        started = time.perf_counter()
        call(turn)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _peak() -> float:
    """Peak MiB of this process. What ``getrusage`` tells may be of the process that started it; Linux knows better."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        if found:
            return int(found[1]) / 1024
    return psutil.Process().memory_info().rss / 2**20

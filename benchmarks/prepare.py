"""Text to ids against ``datasets.map``: ``python -m benchmarks.prepare [FILE]``; the last line is JSON.

Both sides run in this process, one thread, in turns; ratios are those of each round, in tokens per CPU-second.
The other side is what the example scripts do: ``map`` the tokenizer over the sentences, then ``map`` a regrouping.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import numpy as np
from sentencex import segment  # pyright: ignore[reportAttributeAccessIssue]
from transformers import PreTrainedTokenizerBase

from benchmarks.turns import Ratio
from bertillery.data.corpus import CorpusSection, ReadReport, read_documents
from bertillery.data.prepare import prepare
from bertillery.data.tokenizer import TokenizerSection, WordEncoder

BLOCK = 128
_BATCH = 1000
T = TypeVar("T")


def measure(rounds: int = 5, path: str | None = None) -> dict[str, Any]:
    """Throughputs on the text in ``path`` (default: the embedded corpus), and the ratio of each round; the encoder
    starts empty in every round."""
    datasets.disable_progress_bars()
    data = CorpusSection(path=[path or "python-docs"])
    paragraphs = [text for document in read_documents(data, data.path, ReadReport()) for text in document]
    characters = sum(map(len, paragraphs))
    started = time.process_time()
    sentences = [sentence.strip() for text in paragraphs for sentence in segment("en", text)]
    splitting = time.process_time() - started
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        prepared = prepare(data, TokenizerSection(vocab_size=8000), Path(folder))
        preparing = time.perf_counter() - started
        tokenizer = prepared.tokenizer()
        ratios, ours, theirs = [], [], []
        for _ in range(rounds):
            batches, seconds = _timed(lambda: _encode(tokenizer, sentences))
            tokens = sum(map(len, batches))
            ours.append(tokens / seconds)
            _, seconds = _timed(lambda: _map_and_group(tokenizer, sentences))
            theirs.append(tokens / seconds)
            ratios.append(ours[-1] / theirs[-1])
    return {
        "encode_tokens_per_cpu_second": statistics.median(ours),
        "datasets_map_tokens_per_cpu_second": statistics.median(theirs),
        "encode_ratios": ratios,
        "split_characters_per_cpu_second": characters / splitting,
        "prepare_characters_per_second": characters / preparing,
    }


def as_ratio(found: dict[str, Any]) -> Ratio:
    """What was measured, as the other measurements are kept."""
    rates = found["encode_tokens_per_cpu_second"], found["datasets_map_tokens_per_cpu_second"]
    return Ratio("text_to_ids", 1, "CPU", "tokens", "word by word", "datasets.map", found["encode_ratios"], rates)


def _timed(function: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    result = function()
    return result, time.process_time() - started


def _encode(tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> list[np.ndarray]:
    encoder = WordEncoder(tokenizer)
    batches = (sentences[start : start + _BATCH] for start in range(0, len(sentences), _BATCH))
    return [np.frombuffer(b"".join(encoder.encode_bytes(batch)), encoder.dtype) for batch in batches]


def _map_and_group(tokenizer: PreTrainedTokenizerBase, sentences: list[str]) -> datasets.Dataset:
    def tokenize(batch: dict[str, list[str]]) -> dict[str, Any]:
        return {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]}

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = list(chain(*batch["input_ids"]))
        return {"input_ids": [joined[start : start + BLOCK] for start in range(0, len(joined), BLOCK)]}

    rows = datasets.Dataset.from_dict({"text": sentences})
    rows = rows.map(tokenize, batched=True, batch_size=_BATCH, remove_columns=["text"], keep_in_memory=True)
    return rows.map(group, batched=True, batch_size=_BATCH, keep_in_memory=True)


if __name__ == "__main__":
    print(json.dumps(measure(path=sys.argv[1] if len(sys.argv) > 1 else None)))

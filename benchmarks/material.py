"""The measured text: English in a vocabulary of BERT's size, and the sentences of GLUE's tasks.

Both are read from the folder in ``BERTILLERY_DATA``. Without it, random tokens and sentences of similar lengths replace
them, and the results say so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.config.layers import read_values
from bertillery.config.section import validate
from bertillery.data.corpus import CorpusSection
from bertillery.data.prepare import prepare
from bertillery.data.tokenizer import TokenizerSection
from finetune.data.splits import Split, read_task
from finetune.task import TaskSection
from pretrain.pairs import Tokens
from tests.corpora import random_tokens, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("BERTILLERY_DATA", ROOT / "../shared/data"))
VOCAB_SIZE = 30522
MOST_EXAMPLES = 2048

_LENGTHS = {"mrpc": (2, 3.19, 0.30, 0.72), "qqp": (2, 2.53, 0.45, 0.48), "sst2": (1, 2.11, 0.87, 0.0)}
"""Texts of an example, mean and deviation of the logarithm of a text's tokens, correlation of a pair's two: measured on
the first 4,000 examples of each training split."""


@dataclass(frozen=True)
class Material:
    """Text as token ids, and the tokenizer it was encoded with."""

    tokens: Tokens
    unigrams: np.ndarray
    """(V,) int64: how often each token occurs."""
    tokenizer: PreTrainedTokenizerBase
    text: str | None = None
    """Where the text is from; None for random tokens."""
    glue: Path | None = None
    """Folder of GLUE's tasks, where there is one."""

    def has(self, task: str) -> bool:
        """Whether the sentences of a task are its own, and not made up."""
        folder = _section(task).folder
        return self.glue is not None and folder is not None and (self.glue / folder.name).is_dir()

    def split(self, task: str, name: str = "train") -> Split:
        """At most ``MOST_EXAMPLES`` examples of a split of ``mrpc``, ``qqp`` or ``sst2``, in its order."""
        if not self.has(task):
            return _made_up(task, name, self.tokenizer)
        found = read_task(_section(task), data_dir=Path("data"), glue_dir=self.glue).split(name)
        texts = tuple(column[:MOST_EXAMPLES] for column in found.texts)
        labels = None if found.labels is None else found.labels[:MOST_EXAMPLES]
        return replace(found, texts=texts, labels=labels, index=found.index[:MOST_EXAMPLES])


def read_material(folder: Path) -> Material:
    """A vocabulary trained on the text and the text encoded with it; ``folder`` takes the prepared corpus."""
    file = DATA / "corpus_wiki_en" / "valid.txt"
    glue = DATA / "glue" if (DATA / "glue").is_dir() else None
    if not file.exists():
        return random_material(VOCAB_SIZE, glue=glue)
    prepared = prepare(CorpusSection(path=[str(file)]), TokenizerSection(vocab_size=VOCAB_SIZE), folder)
    text = f"{file.parent.name}/{file.name}"
    return Material(cast(Tokens, prepared.train), prepared.unigrams, prepared.tokenizer(), text, glue)


def random_material(vocab_size: int, num_documents: int = 2000, glue: Path | None = None) -> Material:
    """Documents of random tokens."""
    tokens = random_tokens(num_documents, vocab_size=vocab_size)
    unigrams = np.bincount(tokens.ids, minlength=vocab_size)
    return Material(tokens, unigrams, tiny_tokenizer(vocab_size), glue=glue)


def _section(task: str) -> TaskSection:
    return validate(TaskSection, read_values([str(ROOT / f"configs/finetune/{task}.yaml")])[0]["task"])


def _made_up(task: str, name: str, tokenizer: PreTrainedTokenizerBase) -> Split:
    """Random whole words, as many to a text as the task's texts have tokens, and random labels."""
    number, mean, deviation, correlation = _LENGTHS[task]
    rng = np.random.default_rng(0)
    words = np.array(sorted(piece for piece in tokenizer.get_vocab() if piece.isalnum()))
    common, own = rng.standard_normal((1, MOST_EXAMPLES)), rng.standard_normal((number, MOST_EXAMPLES))
    sizes = np.exp(mean + deviation * (common * correlation**0.5 + own * (1 - correlation) ** 0.5))
    texts = tuple([" ".join(rng.choice(words, max(1, round(size)))) for size in column] for column in sizes)
    return Split(name, texts, rng.integers(2, size=MOST_EXAMPLES), np.arange(MOST_EXAMPLES))

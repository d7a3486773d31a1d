"""Translation beside the conventional way: training steps in target tokens, beam search in sentences.

Both sides have the same small Transformer, the same vocabulary and the same batches. The conventional way is that of
``run_translation``: a padded batch, logits at every position, the library's ``LabelSmoother`` and ``generate``; and
that of JoeyNMT, where it is installed.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.trainer_pt_utils import LabelSmoother

from benchmarks import conventional, joey, ours
from benchmarks.contest import Build, Contest, Step, apart
from benchmarks.conventional import DROPOUT, Baseline, Example, Inputs
from benchmarks.material import DATA, ROOT
from benchmarks.workload import ALL, FAST, SEED
from bertillery.config.layers import read_values
from bertillery.config.section import validate
from translation.architecture import TransformerSection
from translation.examples import TranslationExamples
from translation.model import TranslationModel
from translation.objective import ObjectiveSection, TranslationObjective
from translation.search import DecodeSection
from translation.vocabulary import VocabularySection, train_vocabulary

PRECISIONS = {"fp32": False, "bf16": True}
BATCH = 128
"""Pairs of a step, some 3,600 tokens of both sides."""
SENTENCES = 64
"""Learned by heart, and then translated in a round."""
LESSONS = 160
"""Steps in which they are learned."""
AT_ONCE = 32
"""Sentences of a batch of ``generate``."""
DECODING = DecodeSection(beam=5, stop="heuristic", max_length=64)
"""The stock ``generate(num_beams=5)``."""


class Pairs:
    """Sentences of Multi30k, English and German, or random words of similar lengths."""

    def __init__(self, pieces: int = 6_000) -> None:
        files = [DATA / "multi30k_en_de" / f"train.{language}" for language in ("en", "de")]
        self.made_up = not files[0].exists()
        sides = [_made_up(seed) if self.made_up else _lines(file) for seed, file in enumerate(files)]
        self.sources, self.targets = sides
        section = VocabularySection(vocab_size=pieces)
        self.tokenizer: PreTrainedTokenizerBase = train_vocabulary([*self.sources, *self.targets], section)

    def first(self, number: int) -> Pairs:
        """The first of them, with the same vocabulary."""
        found = copy.copy(self)
        found.sources, found.targets = self.sources[:number], self.targets[:number]
        return found

    def named(self, name: str) -> str:
        """The name; it says so if sentences are made up."""
        return f"{name}_made_up" if self.made_up else name

    def examples(self) -> TranslationExamples:
        """As the stage lays them out."""
        return TranslationExamples(self.sources, self.targets, self.tokenizer, max_length=256, seed=SEED)

    def section(self, dropout: float = DROPOUT) -> TransformerSection:
        """The sizes of the model."""
        values = read_values([str(ROOT / "configs/translation/transformer_tiny.yaml")])[0]["model"]
        return validate(TransformerSection, {**values, "dropout": dropout})

    def objective(self, dropout: float) -> TranslationObjective:
        """Model and loss, freshly initialised."""
        torch.manual_seed(SEED)
        return TranslationObjective(self.section(dropout).build(self.tokenizer), ObjectiveSection(), DECODING)

    def joey(self, function: Callable[..., Step], *given: Any) -> Mapping[str, Build]:
        """JoeyNMT's side by one of its functions, if there is one."""
        return {"JoeyNMT fp32": partial(function, self.section(), self.examples(), *given)} if joey.INSTALLED else {}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _made_up(seed: int, number: int = 4000) -> list[str]:
    """Words of common and rare syllables; as many to a sentence as in Multi30k."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice([*"aeioubdfgklmnprst"], rng.integers(2, 9))) for _ in range(3000)]
    sizes = np.maximum(3, rng.normal(11.5, 3.5, number).round().astype(int))
    return [" ".join(words[int(len(words) * share**3)] for share in rng.random(size)) for size in sizes]


def training(name: str, pairs: Pairs) -> Contest:
    """One training step; an item is the rows of a step, the unit a target token."""
    source = pairs.examples()
    stock = partial(_padded, pairs)
    theirs = {label: partial(conventional.step, stock, bf16=bf16) for label, bf16 in PRECISIONS.items()}
    return Contest(
        pairs.named(name),
        ours={each.label: partial(ours.step, pairs.objective, source, each, work="target_tokens") for each in ALL},
        theirs={**theirs, **pairs.joey(joey.step)},
        items=_batches(source),
        steps=2,
        part=lambda rows: rows[: len(rows) // 4],
    )


def _batches(source: TranslationExamples) -> Iterator[np.ndarray]:
    """Endless batches of pairs in random order."""
    plan, rng = source.examples(0, 0), np.random.default_rng(SEED)
    while True:
        order = rng.permutation(len(plan))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            yield plan[order[start : start + BATCH]]


def _padded(pairs: Pairs) -> Baseline:
    """``run_translation``: the stock model and collator, padded to the longest of the batch."""
    model: Any = _stock(pairs.objective(DROPOUT).model)
    source, smoother = pairs.examples(), LabelSmoother(epsilon=0.1)

    def examples(rows: np.ndarray) -> list[Example]:
        sides = [side.take(rows["index"]) for side in (source.source, source.target)]
        sources, targets = ([each.tolist() for each in np.split(ids, np.cumsum(n)[:-1])] for ids, n in sides)
        return [{"input_ids": ids, "labels": labels} for ids, labels in zip(sources, targets, strict=True)]

    def loss(inputs: Inputs) -> Tensor:
        outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
        return smoother(outputs, inputs["labels"])

    collator: Any = DataCollatorForSeq2Seq(cast(Any, pairs.tokenizer), model=model)
    return Baseline(model, examples, collator, loss, work=lambda inputs: int((inputs["labels"] != -100).sum()))


def _stock(model: Any) -> Any:
    """The same weights with the library's attention."""
    found = type(model)._from_config(model.config, attn_implementation="sdpa")
    found.load_state_dict(model.state_dict())
    return found


def beam_search(name: str, pairs: Pairs, folder: Path) -> Contest:
    """Beam search with five hypotheses, by a model that knows the sentences by heart and so ends its translations as
    a good model does; an item is all of them, the unit one."""
    pairs = pairs.first(SENTENCES)
    export = folder / "translator"
    apart(partial(_save, pairs, export))
    theirs = {label: partial(_generate, export, bf16=bf16) for label, bf16 in PRECISIONS.items()}

    def mine() -> Step:
        model = TranslationModel.open(str(export))
        return lambda texts: lambda: len(model.translate(texts, DECODING))

    return Contest(
        pairs.named(name),
        ours={"fp32": mine},
        theirs={**theirs, **pairs.joey(joey.search, partial(_teach, pairs), DECODING, AT_ONCE)},
        items=itertools.repeat(pairs.sources),
        part=lambda texts: texts[: len(texts) // 4],
        unit="sentences",
    )


def _teach(pairs: Pairs, made: Callable[[Callable[[int], float]], Step]) -> None:
    """Learn all pairs by heart, at a rate with a warm-up, by the step that ``made`` returns for the rate."""
    step, rows = made(lambda step: 1.5e-3 * min(1, (step + 1) / 60)), pairs.examples().examples(0, 0)
    for _ in range(LESSONS):
        step(rows)()


def _save(pairs: Pairs, export: Path) -> None:
    """A model that has learned, and its tokenizer."""
    objective, source = pairs.objective(0.0), pairs.examples()
    _teach(pairs, lambda rate: ours.step(lambda _: objective, source, FAST, learning_rate=rate))
    objective.model.save_pretrained(export)
    pairs.tokenizer.save_pretrained(export)


def _generate(export: Path, *, bf16: bool) -> Step:
    """The stock ``generate`` on padded batches in the order of the file."""
    pairs: Any = [found.from_pretrained(export) for found in (AutoModelForSeq2SeqLM, PreTrainedTokenizerFast)]
    model, tokenizer = pairs
    settings = {"num_beams": DECODING.beam, "max_new_tokens": DECODING.max_length}

    def run(texts: list[str]) -> int:
        found: list[str] = []
        for start in range(0, len(texts), AT_ONCE):
            inputs = tokenizer(texts[start : start + AT_ONCE], return_tensors="pt", padding=True)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                found += tokenizer.batch_decode(model.generate(**inputs, **settings), skip_special_tokens=True)
        return len(found)

    return lambda texts: partial(run, texts)

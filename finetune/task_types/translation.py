"""A text in another language for each text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from bertillery.config.section import InputError
from bertillery.data import files
from bertillery.data.tables import Part, Table, parts
from bertillery.models.encoders import ANY, family, longest_sequence
from bertillery.models.heads import head_in_words
from bertillery.models.load import load_encoder_decoder, load_tokenizer, read_config
from finetune.data.rows import as_text, objects
from finetune.data.sources import Source
from finetune.data.splits import Split
from finetune.record import Record
from finetune.task import TaskSection
from finetune.task_types.base import Predicted, Reading, TaskType
from finetune.translating import Translating, TranslationConfig
from translation.examples import TranslationExamples
from translation.lengths import by_length, draw, group_scores, mean_lengths
from translation.objective import ObjectiveSection, TranslationObjective
from translation.scores import METRICS, Tokens, baselines, corpus_scores, length_ratio, sentence_scores, signatures
from translation.search import DecodeSection
from translation.vocabulary import TARGET, check_vocabularies, open_target

RunConfig, RunStage = TranslationConfig, Translating
_TWO_VOCABULARIES = f"""The target has a vocabulary of its own, in the folder `{TARGET}`:

```python
source = AutoTokenizer.from_pretrained(folder)
target = AutoTokenizer.from_pretrained(folder, subfolder="{TARGET}")
model = AutoModelForSeq2SeqLM.from_pretrained(folder)
target.batch_decode(model.generate(**source(["..."], return_tensors="pt")), skip_special_tokens=True)
```"""


class Config(TaskSection):
    """A translation for each text. ``text`` is the column of the source and ``label`` that of the target; where files
    are named ``<any>.<text>`` and ``<any>.<label>``, such as train.en and train.de, line n of one is the translation of
    line n of the other."""

    available_metrics = METRICS
    num_texts = (1,)
    unlabelled = "a translation"

    bleu_tokens: Tokens = "13a"
    """How BLEU finds words: ``char`` for languages that do not separate them as English does, such as Korean."""
    too_long: Literal["drop", "fail"] = "drop"
    """A training pair with more tokens than the model has positions is left out and counted, or is an error. Elsewhere
    its source is cut."""

    def read_files(self, paths: Sequence[Path]) -> list[Table]:
        """Tables, or pairs of parallel files."""
        source, target = ([path for path in paths if _language(path) == name] for name in (self.text[0], self.label))
        if not source and not target:
            return super().read_files(paths)
        others = [path for path in paths if path not in (*source, *target)]
        if others or len(source) != len(target):
            given = ", ".join(path.name for path in paths)
            raise InputError(
                f"task.files: given {given}; a split is pairs of files that end with .{self.text[0]} and "
                f".{self.label}, or tables with these columns"
            )
        return [self._parallel(*pair) for pair in zip(source, target, strict=True)]

    def read_parts(self, path: Path) -> Iterator[Table]:
        """The same; of a file that is named ``<any>.<text>``, or ``.txt``, each line is a text."""
        if _language(path) not in (self.text[0], "txt"):
            yield from super().read_parts(path)
            return
        lines = enumerate((line.rstrip("\r\n") for line in files.read_lines(path, files.Decoder())), 1)
        for part in parts(lines, Part(), lambda line: len(line[1])):
            yield Table(str(path), {self.text[0]: [text for _, text in part]}, [number for number, _ in part])

    def _parallel(self, source: Path, target: Path) -> Table:
        sides = [[line.rstrip("\r\n") for line in files.read_lines(path, files.Decoder())] for path in (source, target)]
        lengths = [len(lines) for lines in sides]
        if lengths[0] != lengths[1]:
            raise InputError(_unequal(source, target, *sides))
        where = f"{source} and {target.name}"
        return Table(where, dict(zip((self.text[0], self.label), sides, strict=True)), range(1, lengths[0] + 1))


def _language(path: Path) -> str:
    name = path.name
    for suffix in files.COMPRESSED[1:]:
        name = name.removesuffix(suffix)
    return name.rpartition(".")[2]


def _unequal(source: Path, target: Path, first: Sequence[str], second: Sequence[str]) -> str:
    """Both numbers of lines, and the line where they seem to part: empty on one side only, or the first without a
    partner."""
    pairs = enumerate(zip(first, second, strict=False))
    odd = next((number for number, (a, b) in pairs if bool(a.strip()) != bool(b.strip())), None)
    longer, lines = (source, first) if len(first) > len(second) else (target, second)
    if odd is None:
        number = min(len(first), len(second))
        part = f"{longer.name} goes on alone with line {number + 1}: {lines[number]!r:.100}"
    else:
        part = f"line {odd + 1} is empty in {target.name if first[odd].strip() else source.name} alone"
    return (
        f"{source} has {len(first):,} lines and {target} {len(second):,}; line n of one translates line n of the other."
        f" The first odd one: {part}. Mend the files, or give a table with both columns"
    )


class Type(TaskType):
    """Labels and predictions are texts (N,)."""

    model_class = AutoModelForSeq2SeqLM
    pipeline = "translation"
    distilled = False
    section: Config  # pyright: ignore[reportIncompatibleVariableOverride]
    target_tokenizer: PreTrainedTokenizerBase | None = None
    """Of the target, where it has a vocabulary of its own."""

    def tokenizers(self) -> dict[str, PreTrainedTokenizerBase]:
        """The target's."""
        return {} if self.target_tokenizer is None else {TARGET: self.target_tokenizer}

    def set_target_tokenizer(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Give the target a vocabulary of its own; stock pipelines, which have one for both, are not for it then."""
        self.target_tokenizer = tokenizer
        if tokenizer is not None:
            self.pipeline, self.usage = None, _TWO_VOCABULARIES

    def label_reader(self, source: Source, table: Table, column: str) -> Callable[[Any], Any]:
        """Text as it is."""
        return as_text

    def label_array(self, labels: list[Any]) -> np.ndarray:
        """(N,) objects."""
        return objects(labels)

    def describe_labels(self, labels: np.ndarray) -> str:
        """Words of a reference."""
        return f"{np.mean([len(text.split()) for text in labels]):.1f} words a reference"

    def _examples(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, split: Split, tokenizer: PreTrainedTokenizerBase, how: Reading
    ) -> TranslationExamples:
        """Pairs of sentences; an order of the two has no meaning here."""
        (texts,) = split.texts
        found = TranslationExamples(
            texts, None if split.labels is None else [*split.labels], tokenizer, self.target_tokenizer,
            max_length=how.max_length, seed=how.seed, drop=how.training,
        )  # fmt: skip
        if how.training and found.num_cut and self.section.too_long == "fail":
            raise InputError(
                f"{self.section.name} {split.name}: {found.num_cut:,} pairs have more than {how.max_length} tokens on "
                "a side; give a larger train.phases.0.sequence_length, or task.too_long=drop to leave them out"
            )
        return found

    def settings(self) -> dict[str, Any]:
        """Nothing: a translation has no labels."""
        return {}

    def reopen(self, start: str, record: Record) -> tuple[Any, PreTrainedTokenizerBase]:
        """An encoder-decoder that searches as its run did."""
        config = read_config(start, roles=ANY)
        if family(config).role != "encoder-decoder":
            raise self.another_kind(start, f"answers with: {head_in_words(config)}")
        tokenizer = load_tokenizer(start, "model", role="encoder-decoder")
        self.set_target_tokenizer(open_target(start, tokenizer, "model"))
        check_vocabularies(tokenizer, self.target_tokenizer, config, start, "model")
        for each in filter(None, (tokenizer, self.target_tokenizer)):
            each.model_max_length = VERY_LARGE_INTEGER  # examples cut texts, and the library would warn of each
        model: Any = load_encoder_decoder(start, {})
        decode = DecodeSection().over(model.generation_config).within(longest_sequence(config))
        return TranslationObjective(model, ObjectiveSection(), decode), tokenizer

    def plain(self, prediction: Any) -> str:
        """The translation."""
        return str(prediction)

    def decide(self, outputs: np.ndarray, examples: Any, index: np.ndarray) -> np.ndarray:
        """The texts of the best hypotheses."""
        return objects([examples.decode(row[row >= 0].astype(np.int64).tolist()) for row in outputs])

    def scores(
        self, predictions: np.ndarray, labels: np.ndarray, outputs: np.ndarray | None = None
    ) -> dict[str, float]:
        """By sacreBLEU."""
        return corpus_scores(self.section.metrics, [*predictions], [*labels], self.section.bleu_tokens)

    def notes(self, predicted: Mapping[str, Predicted], means: Mapping[str, Mapping[str, float]]) -> list[str]:
        """The perplexity of the references, the length of the translations, and how the scores were computed."""
        section, lines = self.section, []
        for name, found in means.items():
            if "perplexity" in found:
                each = predicted[name]
                ratio = length_ratio([*each.predictions], [*each.labels], section.bleu_tokens)
                value = f"{name}: perplexity {found['perplexity']:.3f}"
                lines.append(f"{value}, length of the translations {ratio:.3f} of the references'.")
        return [*lines, *(f"{name}: {text}" for name, text in signatures(section.metrics, section.bleu_tokens).items())]

    def warning(self, predictions: np.ndarray, labels: np.ndarray) -> str | None:
        """Few different translations of many sources."""
        different = len({*predictions})
        if different <= len({*labels}) / 10:
            return f"writes {different:,} different translations of {len(predictions):,} sources"
        return None

    def guesses(self, train: Split, held_out: Split) -> dict[str, np.ndarray]:
        """Those of :func:`translation.scores.baselines`."""
        assert train.labels is not None
        found = baselines(train.texts[0], [*train.labels], held_out.texts[0])
        return {name: objects(texts) for name, texts in found.items()}

    def distances(self, predicted: Predicted) -> np.ndarray:
        """1 - chrF of each sentence."""
        return 1 - sentence_scores([*predicted.predictions], [*predicted.labels])

    def format_prediction(self, prediction: Any) -> str:
        """On one line."""
        return " ".join(str(prediction).split())

    def write(self, folder: Path, predicted: Predicted) -> list[Path]:
        """A line for each translation, as sacreBLEU reads them: ``<split>.<target>``."""
        path = folder / f"{predicted.split.name}.{self.section.label}"
        lines = map(self.format_prediction, predicted.predictions)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return [path]

    def draw(self, predicted: Predicted, folder: Path) -> list[Path]:
        """The first metric by length of the source, of groups with equally many sentences."""
        section, texts = self.section, predicted.split.texts[0]
        parts, metric = by_length(texts), section.metrics[0]
        values = group_scores(metric, [*predicted.predictions], [*predicted.labels], parts, section.bleu_tokens)
        path = folder / "by_length.png"
        title = f"{section.name}, {predicted.split.name}"
        draw({title: values}, mean_lengths(texts, parts), len(parts[0]), metric, path, title)
        return [path]

"""What one task is: the section ``task`` of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from bertillery.config.section import Section
from bertillery.config.types import Name, Tokens, check_name
from bertillery.system.printable import printable
from finetune.metrics import METRICS_OF
from finetune.task_types import answers, entities

_METRICS = {**METRICS_OF, "tokens": entities.METRICS, "spans": answers.METRICS}


def _word(value: Any) -> Any:
    """Labels are words, also where YAML reads a number or a truth value."""
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int | float) else value


Words = Annotated[list[Annotated[str, BeforeValidator(_word)]], BeforeValidator(
    lambda value: [value] if isinstance(value, str | int | float) else value
)]  # fmt: skip
"""A list of strings; one alone stands for a list of one."""
Splits = Annotated[Words, AfterValidator(lambda names: [check_name(name) for name in names])]
"""Names of splits, of which files are called."""
Files = Annotated[dict[str, Words], BeforeValidator(
    lambda value: {split: names for split, names in value.items() if names} if isinstance(value, dict) else value or {}
)]  # fmt: skip
"""Files of each split; a split that is set to null has none."""


class FolderSection(Section):
    """Where a task lies in the archives of the GLUE benchmark: tab-separated files in a folder below ``GLUE_DIR``."""

    name: str
    """The folder."""
    files: dict[str, str] = Field(default={"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"})
    """The file of each split; one that is not named here is called as by default, or after the split."""
    columns: dict[str, str] = Field(default={})
    """What the files call our columns, where they call them otherwise."""
    header: Words = Field(default=[])
    """Columns of a file whose first line does not name them."""
    values: Words = Field(default=[])
    """How the labels are written, in the order of `labels`; without it as in `labels`."""

    def file(self, split: str) -> str:
        """The name of a split's file."""
        usual = type(self).model_fields["files"].default
        return {**usual, **self.files}.get(split, f"{split}.tsv")


class HubSection(Section):
    """Where a task lies on the Hub."""

    dataset: str
    """Its id, `owner/name`."""
    subset: str | None = None
    """The configuration of the data set."""
    revision: str | None = None
    """Branch, tag or commit; the newest where not given."""
    splits: dict[str, str] = Field(default={})
    """What the Hub calls a split, where it calls it otherwise; `subset/split` for one of another subset."""
    columns: dict[str, str] = Field(default={})
    """What the Hub calls our columns, where it calls them otherwise."""
    values: Words = Field(default=[])
    """How the labels are written where the Hub does not name them, in the order of `labels`."""


class SpansSection(Section):
    """How answers are looked for in a text; the defaults are those of BERT's ``run_squad.py``."""

    unanswerable: bool = False
    """Whether some questions have no answer in their text, as in SQuAD 2.0."""
    stride: Tokens = 128
    """Tokens from one window on a long text to the next."""
    question_length: Tokens = 64
    """Tokens of a question, at most; the rest is cut off."""
    answer_length: Tokens = 30
    """Tokens of an answer, at most."""
    n_best: Annotated[int, Field(ge=1, le=1000)] = 20
    """Of a window's tokens, so many are tried as the start of an answer and so many as its end; with
    a head other than `independent`, as its end for each start."""
    head: Literal["independent", "electra", "albert"] = "independent"
    """``independent``: first and last token each by itself, as BERT finds them, and the score of [CLS] for no answer.
    ``electra``, ``albert``: the last token given the first, and a classifier for no answer, as in the released code of
    these models, for whom alone they are; their recipes set them. ``albert`` goes with `unanswerable` only."""


class TaskSection(Section):
    """One task: its columns, its labels, where its data is and what it is scored by."""

    name: Name
    """What it is called in reports, and the folder of its runs."""
    type: Literal["classification", "multilabel", "regression", "choice", "tokens", "spans"]
    """One label, several labels, or a score for each example; one of several texts (``choice``); a label for each word
    (``tokens``); or an answer within a text (``spans``)."""
    text: Words = Field(default=["text"], min_length=1, max_length=2)
    """Column of the text, or the two columns of a pair. For ``choice``, what is to be continued, and where there is a
    second column what every choice begins with; for ``tokens`` lists of words; for ``spans`` question and text."""
    choices: Words = Field(default=[])
    """Columns of the choices, of which a row may leave some empty, or one column with a list of them."""
    spans: SpansSection | None = None
    """How answers are looked for; only with ``type=spans``, where it may be left out."""
    label: str = "label"
    """Column of the label. Of several labels: a list of names, or in csv and tsv names with commas between, or a vector
    with 0 or 1 for each of `labels`; without such a column, a column of 0 and 1 for each label, called as the label is
    written. For ``tokens`` a list of tags. For ``spans`` the answers as SQuAD has them, `answer_start` an integer, also
    as 21.0 or "21"; a question without an answer has an empty list."""
    labels: Words = Field(default=[])
    """Names of the labels, in the order of their ids; none for a score or an answer. For ``choice`` what the column
    calls the choices, in their order."""
    range: tuple[float, float] | None = None
    """Lowest and highest score there can be."""
    metrics: Words = Field(min_length=1)
    """What it is scored by; the first decides which checkpoint is the best, unless ``train.best_by`` names another."""
    validation: Splits = Field(default=["validation"], min_length=1)
    """Labelled splits to evaluate on; the first decides."""
    test: Splits = Field(default=["test"])
    """Splits to predict, labelled or not."""
    files: Files = {}  # noqa: RUF012 (frozen)
    """Your own data: for each split its files or globs, csv, tsv, jsonl or parquet, SQuAD's json, CoNLL's columns
    (.conll or .txt), also .gz, .xz, .zst. The splits are `train` and those named in `validation` and `test`. Where it
    is given, no other source is asked; `files=null`, or `files.test=null`, takes back what a YAML names."""
    root: Path = Path()
    """Folder that `files` are relative to."""
    header: Words = Field(default=[])
    """Columns of a file of yours whose first line does not name them."""
    values: Words = Field(default=[])
    """How your files write the labels, in the order of `labels`; without it as in `labels`."""
    embedded: Literal["package", "pairs"] | None = None
    """A task made of the documentation that is installed: which of the packages in `labels` a docstring is of, or
    whether two paragraphs belong together."""
    folder: FolderSection | None = None
    """Where it lies below the folder `GLUE_DIR`."""
    hub: HubSection | None = None
    """Where it lies on the Hub, or in a folder `GLUE_DIR` that is laid out as the Hub, `<subset>/<split>-*.parquet`."""
    index: str | None = None
    """Column with the id of an example, where a split has it, kept as it is written; otherwise the row's number from 0.
    For ``spans`` no two questions of a split that is predicted share an id."""
    incomplete: Literal["fail", "skip"] = "fail"
    """Rows without text or with missing fields: an error, or, with `skip`, left out and counted. A test split leaves
    out nothing, since every row needs a prediction; a text that is missing there is empty."""
    submission: dict[str, str] = Field(default={})
    """File in a submission to GLUE for each test split that belongs there."""

    @property
    def splits(self) -> list[str]:
        """All splits there may be, ``train`` first."""
        return ["train", *self.validation, *self.test]

    @model_validator(mode="after")
    def _fits(self) -> TaskSection:
        problems = [*self._label_problems(), *self._kind_problems(), *self._source_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _label_problems(self) -> list[str]:
        problems = []
        allowed = _METRICS[self.type]
        wrong = [name for name in self.metrics if name not in allowed]
        if wrong:
            problems.append(f"metrics {', '.join(wrong)}: for {self.type} there are {', '.join(allowed)}")
        if self.type == "classification" and "f1" in self.metrics and len(self.labels) not in (0, 2):
            problems.append(f"f1 is that of the second of two labels, and there are {len(self.labels)}; use macro_f1")
        if self.type in ("regression", "spans") and (self.labels or self.values):
            what = "a regression" if self.type == "regression" else "an answer"
            problems.append(f"{what} has no labels and no values; leave them out, or set type=classification")
        if self.range and (self.type != "regression" or self.range[0] >= self.range[1]):
            problems.append("range is the lowest and the highest score of a regression, in this order")
        if unsafe := [label for label in self.labels if label != printable(label)]:
            problems.append(f"labels {unsafe} hold control characters or ends of lines; name them without")
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            problems.append("labels are two or more different names")
        broken = [name for name in self.labels if "\t" in name or len(name.splitlines()) > 1]
        if broken:
            problems.append(f"labels have no tabs and no line breaks: {', '.join(map(repr, broken))}")
        for where in (self, self.folder, self.hub):
            if where and where.values and len(set(where.values)) != len(self.labels):
                problems.append(
                    f"values {where.values} do not give one way of writing for each of labels {self.labels}"
                )
        if self.embedded and (self.type, len(self.text)) != ("classification", 1 + (self.embedded == "pairs")):
            problems.append("embedded tasks are classifications, of one text (package) or of two (pairs)")
        return problems

    def _kind_problems(self) -> list[str]:
        problems, spans = [], self.spans or SpansSection()
        if (self.type == "choice") != bool(self.choices):
            problems.append("choices names the columns of the choices of a task of type choice, and of no other")
        if len(self.choices) > 1 and len(self.labels) not in (0, len(self.choices)):
            problems.append(f"there are {len(self.choices)} choices and {len(self.labels)} labels, which name them")
        if self.spans and self.type != "spans":
            problems.append(f"spans says how answers are found, and this task is of type {self.type}")
        texts = {"tokens": 1, "spans": 2}.get(self.type, len(self.text))
        if len(self.text) != texts:
            problems.append("text is the column of the words" if texts == 1 else "text is [question, context]")
        best = [name for name in self.metrics if name.startswith("best_")]
        if best and not spans.unanswerable:
            problems.append(f"metrics {', '.join(best)}: there is a threshold to choose with spans.unanswerable only")
        if spans.head == "albert" and not spans.unanswerable:
            problems.append(
                "spans.head: albert tells unanswerable questions from others, and there are none here; give "
                "independent, or spans.unanswerable=true"
            )
        tags = [name for name in self.labels if name != "O" and not name.startswith(("B-", "I-"))]
        if self.type == "tokens" and self.labels and (tags or "O" not in self.labels):
            problems.append(f"labels of words are O, B-<kind> and I-<kind>, not {', '.join(tags) or 'without O'}")
        return problems

    def _source_problems(self) -> list[str]:
        problems = []
        if len(set(self.splits)) < len(self.splits):
            problems.append("validation and test name different splits, none of them train")
        named = {"files": self.files, "submission": self.submission}
        named |= {"folder.files": self.folder.files} if self.folder else {}
        named |= {"hub.splits": self.hub.splits} if self.hub else {}
        for key, value in named.items():
            unknown = [split for split in value if split not in self.splits]
            if unknown:
                problems.append(f"{key}: unknown split {', '.join(unknown)}; there are {', '.join(self.splits)}")
        if not (self.files or self.embedded or self.folder or self.hub):
            problems.append(
                "no data: give files.train=... and files.validation=..., or a data set of the Hub (hub.dataset=...)"
            )
        return problems

"""One task: the section ``task`` of a configuration. ``task.type`` names the module that adds the type's own keys."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ModelWrapValidatorHandler, model_validator

from bertillery.config.section import Section, describe
from bertillery.config.types import Name, check_name
from bertillery.data.tables import Part, Table, read_table, read_tables
from bertillery.system.printable import printable

if TYPE_CHECKING:
    from finetune.task_types.base import TaskType

_TYPES = "finetune.task_types"
_EMBEDDED = {
    "package": (("classification",), 1),
    "pairs": (("classification",), 2),
    "proofreading": (("tokens",), 1),
    "questions": (("graph_choice", "choice"), 1),
}
"""The task types that an embedded task is for, and its number of texts."""


def task_types() -> dict[str, Any]:
    """The modules of ``finetune/task_types`` that define a task type, by the type's name."""
    names = sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(_TYPES).__path__))
    modules = {name: importlib.import_module(f"{_TYPES}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "Type")}


def run_of(values: Mapping[str, Any], name: Literal["Config", "Stage"]) -> Any:
    """What a run of a task type has of its own, its configuration or its stage: the class ``Run<name>`` of the type's
    module; None where it has those of all."""
    module = task_types().get(str(values.get("type")))
    return getattr(module, f"Run{name}", None)


def task_type_of(section: TaskSection) -> TaskType:
    """The type of a task."""
    return task_types()[section.type].Type(section)


def describe_task_types() -> str:
    """The keys that each task type adds to the section ``task``, and those of its runs, for ``--help``."""
    lines = []
    for name, module in task_types().items():
        keys = describe(module.Config, "task.").split("\n")
        pairs = zip(keys[::2], keys[1::2], strict=True)  # a key, and below it what it means
        shared = {field.alias or key for key, field in TaskSection.model_fields.items()}
        own = [f"{key}\n{meaning}" for key, meaning in pairs if key.split(" ")[0].split(".")[1] not in shared]
        lines += [f"with task.type={name}:", *own] if own else []
        if hasattr(module, "RunConfig"):
            lines += [f"with task.type={name}{when}:\n{keys}" for when, keys in module.RunConfig.describe().items()]
    return "\n".join(lines)


def _known_type(name: str) -> str:
    if name not in task_types():
        raise ValueError(f"there are: {', '.join(task_types())} (one file each in finetune/task_types)")
    return name


def _word(value: Any) -> Any:
    """Labels are words, also where YAML reads a number or a truth value."""
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int | float) else value


Words = Annotated[list[Annotated[str, BeforeValidator(_word)]], BeforeValidator(
    lambda value: [value] if isinstance(value, str | int | float) else value
)]  # fmt: skip
"""A list of strings; one alone stands for a list of one."""
Splits = Annotated[Words, AfterValidator(lambda names: [check_name(name) for name in names])]
"""Names of splits, after which files are named."""
Files = Annotated[dict[str, Words], BeforeValidator(
    lambda value: {split: names for split, names in value.items() if names} if isinstance(value, dict) else value or {}
)]  # fmt: skip
"""Files of each split; a split that is set to null has none."""


class FolderSection(Section):
    """Where a task lies in the archives of the GLUE benchmark: tab-separated files in a folder below ``GLUE_DIR``."""

    name: str
    """The folder."""
    files: dict[str, str] = Field(default={"train": "train.tsv", "validation": "dev.tsv", "test": "test.tsv"})
    """The file of each split; a split that is missing here has its default file, or the one named after the split."""
    columns: dict[str, str] = Field(default={})
    """The files' names for our columns, where they differ."""
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
    """The Hub's names of the splits, where they differ; `subset/split` for a split of another subset."""
    columns: dict[str, str] = Field(default={})
    """The Hub's names for our columns, where they differ."""
    values: Words = Field(default=[])
    """How the labels are written where the Hub does not name them, in the order of `labels`."""


class TaskSection(Section):
    """One task: its columns, its labels, where its data is and its metrics.

    Each task type derives its ``Config`` from this class. Values are validated as the ``Config`` of their ``type``.
    """

    available_metrics: ClassVar[tuple[str, ...]] = ()
    """Metrics of the task type."""
    num_texts: ClassVar[tuple[int, ...]] = (1, 2)
    """How many columns ``text`` may name."""
    texts_are: ClassVar[str] = ""
    """What the columns are, where that is not plain."""
    pairs_of_texts: ClassVar[bool] = True
    """Whether two columns of text are a pair whose order can be exchanged."""
    is_score: ClassVar[bool] = False
    """Whether the label is a score."""
    unlabelled: ClassVar[str] = ""
    """The name of an example's target where the task type has no names of labels, such as "a regression"."""

    name: Name
    """The name in reports, and the folder of the runs."""
    type: Annotated[str, AfterValidator(_known_type)]
    """The task type, a file in ``finetune/task_types``: one label (``classification``), several labels
    (``multilabel``), or a score (``regression``) for each example; one of several texts (``choice``), also beside
    a graph (``graph_choice``); a label for each word (``tokens``); an answer within a text (``spans``); or a text in
    another language (``translation``)."""
    text: Words = Field(default=["text"], min_length=1, max_length=2)
    """Column of the text, or the two columns of a pair. For ``choice``, what is to be continued, and where there is a
    second column what every choice begins with; for ``tokens`` lists of words; for ``spans`` question and text."""
    label: str = "label"
    """Column of the label. Of several labels: a list of names, or in csv and tsv names with commas between, or a vector
    with 0 or 1 for each of `labels`; without such a column, a column of 0 and 1 for each label, called as the label is
    written. For ``tokens`` a list of tags. For ``spans`` the answers as SQuAD has them, `answer_start` an integer, also
    as 21.0 or "21"; a question without an answer has an empty list."""
    labels: Words = Field(default=[])
    """Names of the labels, in the order of their ids; empty for a score or an answer. For ``choice`` the column's names
    for the choices, in their order."""
    metrics: Words = Field(min_length=1)
    """Metrics; the first decides which checkpoint is the best, unless ``train.best_by`` names another."""
    validation: Splits = Field(default=["validation"], min_length=1)
    """Labelled splits to evaluate on; the first decides."""
    test: Splits = Field(default=["test"])
    """Splits to predict, labelled or not."""
    files: Files = {}  # noqa: RUF012 (frozen)
    """Your own data: for each split its files or globs, csv, tsv, jsonl or parquet, SQuAD's json, CoNLL's columns
    (.conll or .txt), also .gz, .xz, .zst. The splits are `train` and those named in `validation` and `test`. Where it
    is given, no other source is asked; `files=null`, or `files.test=null`, takes back what a YAML names."""
    root: Path = Path()
    """Folder that `files` are relative to; where it is not given, and they lie beside the YAML that names them, the
    folder of that YAML."""
    header: Words = Field(default=[])
    """Columns of a file of yours whose first line does not name them."""
    values: Words = Field(default=[])
    """How your files write the labels, in the order of `labels`; without it as in `labels`."""
    embedded: Literal["package", "pairs", "proofreading", "questions"] | None = None
    """A task made of the documentation that is installed: which of the packages in `labels` a docstring is of, whether
    two paragraphs belong together, which words of a sentence are wrong, or where a class is from, which its graph
    knows."""
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

    @classmethod
    def variant(cls, values: Any) -> type[TaskSection]:
        """The ``Config`` of the task type that the values name."""
        name = values.get("type") if isinstance(values, Mapping) else None
        found = task_types() if cls is TaskSection and isinstance(name, str) else {}
        return found[name].Config if name in found else cls

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """A key of another task type is named as such."""
        modules = task_types()
        owners = [name for name, module in modules.items() if key in module.Config.model_fields]
        own = [f", and this task is of type {name}" for name, module in modules.items() if module.Config is cls]
        belongs = f"it belongs to task.type={' or '.join(owners)}{''.join(own)}; leave it out"
        return belongs if owners else super().unknown_key(key)

    @model_validator(mode="wrap")
    @classmethod
    def _as_its_type(cls, values: Any, handler: ModelWrapValidatorHandler[TaskSection]) -> TaskSection:
        """Validate as the ``Config`` of the task type. Empty keys of other types pass: earlier versions wrote them."""
        chosen = cls.variant(values)
        if isinstance(values, Mapping) and (unknown := values.keys() - chosen.model_fields.keys()):
            others = {key for module in task_types().values() for key in module.Config.model_fields}
            empty = {key for key in unknown & others if values[key] in (None, [])}
            values = {key: value for key, value in values.items() if key not in empty}
        return handler(values) if chosen is cls else chosen.model_validate(values)

    @property
    def splits(self) -> list[str]:
        """All splits there may be, ``train`` first."""
        return ["train", *self.validation, *self.test]

    @property
    def is_pair(self) -> bool:
        """Whether an example is two texts whose order can be exchanged."""
        return self.pairs_of_texts and len(self.text) == 2

    @classmethod
    def recipe_kinds(cls, values: Mapping[str, Any]) -> list[str]:
        """Names of the parts of a recipe's ``kinds`` that hold for a task with these values, later ones over earlier
        ones."""
        return [values.get("type", "")]

    @classmethod
    def fit_recipe(cls, recipe: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a recipe without those that contradict the task's own values."""
        return recipe

    def read_files(self, paths: Sequence[Path]) -> list[Table]:
        """The tables of one split's files."""
        return [read_table(path, header=self.header, needed=self.text) for path in paths]

    def read_parts(self, path: Path) -> Iterator[Table]:
        """The tables of one file in parts of bounded size."""
        return read_tables(path, header=self.header, needed=self.text, most=Part())

    def check_model(self, start: str) -> None:
        """``ConfigError`` where the task cannot be put to the model at ``start``, a directory or Hub id."""

    @model_validator(mode="after")
    def _fits(self) -> TaskSection:
        problems = [*self.problems(), *self._source_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def problems(self) -> list[str]:
        """What does not fit together; a task type adds its own."""
        problems = []
        wrong = [name for name in self.metrics if name not in self.available_metrics]
        if wrong:
            there = ", ".join(self.available_metrics)
            problems.append(f"metrics {', '.join(wrong)}: for {self.type} there are {there}")
        if len(self.text) not in self.num_texts:
            number, wanted = len(self.text), self.num_texts[0]
            problems.append(
                f"text names {number} column{'s' * (number != 1)}; {self.type} takes {wanted}{self.texts_are}"
            )
        if self.unlabelled and (self.labels or self.values):
            problems.append(
                f"{self.unlabelled} has no labels and no values; leave them out, or set type=classification"
            )
        if unsafe := [label for label in self.labels if label != printable(label)]:
            problems.append(f"labels {unsafe} hold tabs, line breaks or control characters; name them without")
        if len(set(self.labels)) < len(self.labels) or len(self.labels) == 1:
            problems.append("labels are two or more different names")
        for where in (self, self.folder, self.hub):
            if where and where.values and len(set(where.values)) != len(self.labels):
                problems.append(
                    f"values {where.values} do not give one way of writing for each of labels {self.labels}"
                )
        return problems

    def _source_problems(self) -> list[str]:
        problems = []
        types, number = _EMBEDDED[self.embedded] if self.embedded else ((self.type,), len(self.text))
        if self.type not in types or len(self.text) != number:
            problems.append(f"embedded={self.embedded} is a task of type {' or '.join(types)} with {number} in text")
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

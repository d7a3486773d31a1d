"""``python -m deploy.predict model=<directory or Hub id> data=[file.csv] key=value``: predictions for rows of files.

The text columns are those of the task that the model was trained on. The rows go to a file of the same form, as they
are, with the prediction and its probabilities beside them. Files may be larger than memory.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from bertillery.config.section import InputError
from bertillery.data.files import distinct, format_of, matching, open_parquet
from bertillery.system.invocation import command_line, settings
from deploy.rows import FORMATS, Columns, row_writer, schema_of, settled
from deploy.trained import ALONE, Trained, UseSection, use
from finetune.data.rows import unlabelled
from finetune.data.sources import Source
from finetune.data.splits import read_unlabelled, unusable
from finetune.task_types.base import Predicted

if TYPE_CHECKING:
    import pyarrow


def main(arguments: Sequence[str]) -> int:
    """Predict and write; returns the exit status."""
    return use(arguments, __doc__, _run)


def _run(section: UseSection, named: bool) -> int:
    files = found_files(section.data)
    places = _places(section, files)
    trained = Trained.open(section, named, own={**ALONE, "files": {"data": [*map(str, files)]}})
    checked = [Rows.check(trained, file, place) for file, place in zip(files, places, strict=True)]
    for rows in checked:
        print(rows.predict(trained), flush=True)
    return 0


def found_files(names: Sequence[str]) -> list[Path]:
    """The files that names and patterns stand for; ``InputError`` where one stands for none."""
    if not names:
        wanted = settings("predict", DATA="<file>")
        raise InputError(f"no data: give {wanted}, a csv, tsv, jsonl, parquet or other table")
    paths: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        found = [path] if path.is_file() else [each for each in sorted({*matching(path)}) if each.is_file()]
        if not found:
            inside = f"a folder; name the files in it ({settings('predict', DATA='folder/*.csv')})"
            what = inside if path.is_dir() else "no such file"
            raise InputError(f"data: {name}: {what}")
        paths += found
    return distinct(paths)


def _places(section: UseSection, files: Sequence[Path]) -> list[Path]:
    """Where the predictions of each file go; ``InputError`` for a place that cannot be meant."""
    folder = section.run.dir / "predict" / section.called

    def written(file: Path) -> Path:
        kind = format_of(file)
        stem = file.name[: file.name.lower().rindex(kind)] if kind else file.name
        return Path(f"{stem}{kind if kind in FORMATS else '.jsonl'}")

    if section.output is not None and len(files) == 1 and not section.output.is_dir():
        places = [section.output]
    else:
        places = [(section.output or folder) / written(file) for file in files]
    if len({*places}) < len(places):
        raise InputError("data: two files of one name, whose predictions would go to one file; predict them one by one")
    for place, file in zip(places, files, strict=True):
        if place.suffix not in FORMATS:
            raise InputError(f"output: {place}: predictions are written as one of {', '.join(FORMATS)}")
        if place.exists() and any(place.samefile(each) for each in files):
            raise InputError(f"output: {place} is the file that is read; name another one than {file}")
    return places


@dataclass(frozen=True)
class Rows:
    """The rows of one file, all of which can be predicted."""

    file: Path
    place: Path
    number: int
    columns: tuple[str, ...]
    """Names of the columns."""
    schema: pyarrow.Schema | None
    """Types of the columns, where the predictions go to a parquet file."""
    labelled: bool
    """Whether the file has labels."""

    @classmethod
    def check(cls, trained: Trained, file: Path, place: Path) -> Rows:
        """Read the whole file once. ``InputError`` for a file without rows or without the task's columns, and for rows
        that cannot be predicted, all of them in one message."""
        section, problems, number, names = trained.section, [], 0, dict[str, None]()
        arrow, labelled = place.suffix == ".parquet", False
        schema = _own_schema(file) if arrow and file.suffix == ".parquet" else None
        own = schema is not None
        for table in section.read_parts(file):
            if number == 0 and not table.lines:
                break
            _, wrong = read_unlabelled(trained.task_type, table, f"{section.name}, {file.name}")
            problems, number = [*problems, *wrong], number + len(table.lines)
            names |= dict.fromkeys(table.columns)
            source = Source(str(file), lambda _: [], {}, section.values)
            labels = trained.task_type.label_cells(source, table, section.label)
            labelled |= labels is not None and not all(map(unlabelled, labels))
            if arrow and not own:
                schema = schema_of(table.columns, schema, str(file))
        if problems:
            raise unusable(section, problems, number)
        if not number:
            raise InputError(f"{file}: no rows in it; give a file with rows to predict")
        return cls(file, place, number, tuple(names), schema, labelled)

    def predict(self, trained: Trained) -> str:
        """Write the predictions; returns what a reader wants to know of them."""
        begun, cut, without = time.perf_counter(), 0, 0
        parts = self._predicted(trained)
        first = next(parts)
        schema = self._with_predictions(first[0])
        with row_writer(self.place, schema) as add, _bar(self.number, self.file) as bar:
            for columns, predicted in chain([first], parts):
                add(columns)
                cut, without = cut + predicted.num_cut, without + predicted.split.left_out
                bar.update(predicted.split.num_examples)
        seconds = time.perf_counter() - begun
        told = [f"{self.file}: {self.number:,} rows in {seconds:,.1f} s, {self.number / seconds:,.0f} a second"]
        told += [f"  {cut:,} were longer than {trained.record.sequence_length} tokens: cut as in training"] * bool(cut)
        told += [f"  {without:,} without text"] * bool(without)
        told += [self._note(trained)] * self.labelled
        return "\n".join([*told, f"predictions {self.place}"])

    def _note(self, trained: Trained) -> str:
        return (
            f"  note: it has labels ({trained.section.label!r}), which a prediction does not need; they are copied, "
            f"not read. {command_line('evaluate', MODEL='...', DATA='...')} scores them"
        )

    def _predicted(self, trained: Trained) -> Iterator[tuple[Columns, Predicted]]:
        """The columns of each part of the file, with those of its predictions."""
        section = trained.section
        for table in section.read_parts(self.file):
            split, problems = read_unlabelled(trained.task_type, table, f"{section.name}, {self.file.name}")
            if split is None or problems or not {*table.columns} <= {*self.columns}:
                raise InputError(f"{self.file}: has changed since the command began; start it again")
            predicted, _ = trained.predict(split)
            fields = trained.task_type.fields(predicted)
            if taken := [name for name in fields if name in self.columns]:
                raise InputError(
                    f"{self.file}: has the column {taken[0]!r} already, which the predictions need; rename it, or give "
                    "the file without it"
                )
            none = [None] * len(table.lines)
            yield {**{name: table.columns.get(name, none) for name in self.columns}, **fields}, predicted

    def _with_predictions(self, columns: Columns) -> pyarrow.Schema | None:
        schema = self.schema
        if schema is not None:
            for name in [name for name in columns if name not in self.columns]:
                schema = schema.append(settled(schema_of({name: columns[name]}, None, str(self.file)).field(name)))
        return schema


def _own_schema(file: Path) -> pyarrow.Schema:
    with open_parquet(file) as opened:
        return opened.schema_arrow


def _bar(total: int, file: Path) -> Any:
    """A progress bar where somebody watches."""
    return tqdm(total=total, unit="row", desc=file.name, disable=not sys.stderr.isatty(), dynamic_ncols=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m experiments.glue <model, or folder of a table> [ensemble=true] [fill=true]``: a submission to GLUE.

The model is the one given to ``make glue``; its folder is the one printed at the end. For each task the best seed on
the validation split predicts, or, with ``ensemble``, the mean of all seeds' probabilities. Every file needs
predictions; with ``fill`` missing files get the majority class, with a warning.
``python -m experiments.glue validate <.zip or folder>`` checks an existing submission: eleven files in a flat archive.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import logging
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bertillery.config.layers import read_values
from bertillery.config.section import InputError, Section, validate
from bertillery.run.command import tool
from bertillery.system.files import publish, remove, write_text, writing
from bertillery.system.invocation import command_line
from bertillery.system.records import checked, read_yaml
from experiments.seeds import read_summaries
from finetune.config import model_name
from finetune.task import TaskSection, task_type_of
from finetune.task_types.vector import VectorType, mean_outputs

logger = logging.getLogger(__name__)
TABLES = Path("runs/finetune/tables")
"""Where ``make glue`` writes its tables."""
_HEADER = "index\tprediction"
_LOW, _HIGH = 0.0, 5.0
_LARGEST = 64_000_000
"""Bytes of a file of a submission; the largest, QQP's, has some four million."""


@dataclass(frozen=True)
class SubmissionFile:
    """One file of a submission."""

    num_rows: int
    """Examples of the official test split."""
    majority: str | float
    """The training split's most frequent label, or its mean score."""
    written: Mapping[str, str] = field(default_factory=dict)
    """The file's text for each label; empty for scores from 0 to 5."""


_NLI = {name: name for name in ("entailment", "neutral", "contradiction")}
_TWO_WAY = {name: name for name in ("entailment", "not_entailment")}
FILES: dict[str, SubmissionFile] = {
    "CoLA.tsv": SubmissionFile(1063, "acceptable", {"unacceptable": "0", "acceptable": "1"}),
    "SST-2.tsv": SubmissionFile(1821, "positive", {"negative": "0", "positive": "1"}),
    "MRPC.tsv": SubmissionFile(1725, "equivalent", {"not_equivalent": "0", "equivalent": "1"}),
    "STS-B.tsv": SubmissionFile(1379, 2.7),
    "QQP.tsv": SubmissionFile(390965, "not_duplicate", {"not_duplicate": "0", "duplicate": "1"}),
    "MNLI-m.tsv": SubmissionFile(9796, "entailment", _NLI),
    "MNLI-mm.tsv": SubmissionFile(9847, "entailment", _NLI),
    "QNLI.tsv": SubmissionFile(5463, "entailment", _TWO_WAY),
    "RTE.tsv": SubmissionFile(3000, "entailment", _TWO_WAY),
    "WNLI.tsv": SubmissionFile(146, "not_entailment", {"not_entailment": "0", "entailment": "1"}),
    "AX.tsv": SubmissionFile(1104, "entailment", _NLI),
}
"""A submission has exactly these eleven files."""


def write_submission(
    folder: Path, predictions: Mapping[str, Sequence[str] | np.ndarray], *, fill: bool = False
) -> Path:
    """Write the files to ``folder`` and a flat archive of them beside it; returns the archive.

    ``predictions`` holds for each file the names of the predicted labels (never ids), or scores, in the official order;
    scores are clipped to [0, 5]. With ``fill`` missing files get the majority class, or the mean score, and a warning
    is logged. Raises one ``InputError`` with all problems; ``folder`` is then unchanged.
    """
    problems = [f"{name}: no such file; there are: {', '.join(FILES)}" for name in predictions if name not in FILES]
    missing = [name for name in FILES if name not in predictions]
    if missing and not fill:
        problems.append(
            f"no predictions for {', '.join(missing)}; predict them, or have them filled: "
            + command_line("submission", "fill=true", MODEL="...")
        )
    texts = {}
    for name, file in FILES.items():
        values = predictions[name] if name in predictions else np.full(file.num_rows, file.majority)
        try:
            texts[name] = _text(file, values)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    _refuse("cannot write a submission", problems)
    if missing:
        logger.warning("filled with the majority class, not predicted: %s", ", ".join(missing))
    partial = folder.with_name(f"{folder.name}.partial")
    remove(partial)
    partial.mkdir(parents=True)
    for name, text in texts.items():
        write_text(partial / name, text)
    validate_submission(partial)
    publish(partial, folder)
    archive = folder.with_name(f"{folder.name}.zip")
    packing = archive.with_name(f"{archive.name}.partial")
    with writing(packing), zipfile.ZipFile(packing, "w", zipfile.ZIP_DEFLATED) as stream:
        for name, text in texts.items():
            stream.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)  # without dates: same in, same out
    packing.replace(archive)
    return archive


def _text(file: SubmissionFile, values: Sequence[str] | np.ndarray) -> str:
    if len(values) != file.num_rows:
        raise ValueError(f"{len(values):,} predictions for {file.num_rows:,} examples")
    if file.written:
        unknown = sorted({str(value) for value in values} - set(file.written))
        if unknown:
            raise ValueError(f"{', '.join(map(repr, unknown[:5]))} is no label; labels are {', '.join(file.written)}")
        cells = [file.written[str(value)] for value in values]
    else:
        scores = np.asarray(values, dtype=np.float64)
        if not np.isfinite(scores).all():
            raise ValueError(f"{int((~np.isfinite(scores)).sum()):,} predictions are not a number")
        cells = [f"{score:.3f}" for score in scores.clip(_LOW, _HIGH)]
    return "\n".join([_HEADER, *(f"{index}\t{cell}" for index, cell in enumerate(cells))]) + "\n"


def validate_submission(path: Path) -> None:
    """Check an archive or a folder; raises one ``InputError`` with all problems."""
    problems = []
    there: dict[str, bytes] = {}
    for name, content in _entries(path):
        if "/" in name:
            problems.append(f"{name}: in a folder; the archive is flat (zip -j)")
        elif name not in FILES:
            problems.append(f"{name}: does not belong to a submission")
        elif name in there:
            problems.append(f"{name}: twice in the archive")
        else:
            there[name] = content
    for name, file in FILES.items():
        if name not in there:
            problems.append(f"{name}: missing; all {len(FILES)} files are required")
        else:
            problems += [f"{name}: {problem}" for problem in _problems(file, there[name])]
    _refuse(f"{path} is no submission to GLUE", problems)


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file():
                yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.file_size > _LARGEST:
                    raise InputError(
                        f"{path}: {entry.filename} has {entry.file_size:,} bytes unpacked, which no file has"
                    )
                if not entry.is_dir():
                    yield entry.filename, archive.read(entry)
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable zip archive or folder: {error}") from error


def _problems(file: SubmissionFile, content: bytes) -> Iterator[str]:
    """The problems of one file; for wrong rows their number and the first."""
    header, *rows = content.decode("utf-8", errors="replace").removesuffix("\n").split("\n")
    if header != _HEADER:
        yield f"line 1 is {header!r}, not {_HEADER!r}"
    if len(rows) != file.num_rows:
        yield f"{len(rows):,} rows after the header, not {file.num_rows:,}"
    alphabet = set(file.written.values())
    wanted = " or ".join(sorted(alphabet)) or f"a number from {_LOW:g} to {_HIGH:g}"
    wrong: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        index, tab, value = row.partition("\t")
        if index != str(number) or not tab:
            wrong.setdefault("do not begin with their index, 0, 1, 2, ...", []).append(number)
        elif value not in alphabet if alphabet else not _is_score(value):
            wrong.setdefault(f"do not end with {wanted}", []).append(number)
    for what, numbers in wrong.items():
        yield f"{len(numbers):,} rows {what}; the first is line {numbers[0] + 2}, {rows[numbers[0]]!r}"


def _is_score(text: str) -> bool:
    try:
        return _LOW <= float(text) <= _HIGH
    except ValueError:
        return False


def _refuse(what: str, problems: Sequence[str]) -> None:
    if problems:
        raise InputError("\n  - ".join([f"{what}:", *problems]))


class SubmitSection(Section):
    """How predictions are chosen."""

    ensemble: bool = False
    """Average the seeds instead of taking the best."""
    fill: bool = False
    """Give files without predictions the majority class."""


def main(arguments: Sequence[str]) -> int:
    """Write and check a submission, or validate an existing one; returns the exit status."""
    if arguments[:1] == ["validate"] and len(arguments) == 2:
        return _validate(Path(arguments[1]))
    if not arguments or any("=" not in each and not each.startswith("-") for each in arguments[1:]):
        print(__doc__, file=sys.stderr)
        return 2

    def read(given: Sequence[str]) -> SubmitSection:
        return validate(SubmitSection, *read_values(given[1:]))

    def action(section: SubmitSection) -> int:
        return _submit(table_folder(arguments[0]), section)

    return tool(arguments, help=__doc__, schema=SubmitSection, action=action, read=read)


def _validate(path: Path) -> int:
    try:
        validate_submission(path)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {len(FILES)} files, {sum(file.num_rows for file in FILES.values()):,} rows, all as required")
    return 0


def table_folder(given: str) -> Path:
    """The given folder if it holds a table, else the folder of the model with this name, directory or id."""
    folder = Path(given)
    return folder if (folder / "table.json").is_file() else TABLES / model_name(given)


def _submit(folder: Path, section: SubmitSection) -> int:
    if not (folder / "table.json").is_file():
        raise InputError(
            f"{folder}: no table.json in it; run `{command_line('glue', MODEL='...')}` with this model, or give the "
            "folder that it names at its end"
        )
    predictions: dict[str, list[str] | np.ndarray] = {}
    for summary in read_summaries(folder).values():
        runs = [Path(run) for run in (summary["runs"] if section.ensemble else [summary["best"]])]
        predictions |= predictions_of(runs)
    archive = write_submission(folder / "submission", predictions, fill=section.fill)
    print(f"{archive}: eleven files, checked; predicted: {', '.join(predictions)}")
    return 0


def predictions_of(runs: Sequence[Path]) -> dict[str, list[str] | np.ndarray]:
    """Names of labels, or scores, for each file that the task of these runs contributes to a submission.

    Several runs, the seeds of one task, are averaged. Raises ``InputError`` if a file of a run is damaged.
    """
    remedy = "run the seeds of this task again"
    file = runs[0] / "config.yaml"
    task = checked(file, read_yaml(file, dict[str, Any], remedy=remedy).get("task"), TaskSection, remedy=remedy)
    task_type = task_type_of(task)
    if not isinstance(task_type, VectorType):
        return {}  # a table may hold tasks other than GLUE's
    found: dict[str, list[str] | np.ndarray] = {}
    for split, name in task.submission.items():
        files = [run / "predictions" / f"{split}.tsv" for run in runs]
        if all(file.exists() for file in files):
            best = task_type.best(mean_outputs(files))
            found[name] = best if task.is_score else [task_type.format_prediction(each) for each in best]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

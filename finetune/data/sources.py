"""The places that have a task's rows: files of one's own, installed documentation, a GLUE folder, the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertillery.config.section import InputError
from bertillery.data.docs_task import embedded_files
from bertillery.data.files import COMPRESSED, distinct, matching
from bertillery.data.tables import Table, from_arrow, read_table
from bertillery.system.invocation import by_make
from finetune.task import HubSection, TaskSection
from knowledge.questions.docs_questions import question_files

_PROBE_SECONDS = 5.0


@dataclass(frozen=True)
class Source:
    """One place that has a task, and the names it uses."""

    where: str
    read: Callable[[str], list[Table]]
    """Reads the tables of a split; ``FileNotFoundError`` with the place that was searched if the split is missing."""
    columns: Mapping[str, str]
    """Its names for our columns, where they differ."""
    values: Sequence[str]
    """Its names for our labels, in our order; empty if they are the same."""


def glue_dir_from_environment() -> Path | None:
    """The folder in the variable ``GLUE_DIR``, if it is set; ``InputError`` if it does not exist."""
    name = os.environ.get("GLUE_DIR")
    if not name:
        return None
    path = Path(name).expanduser()
    if not path.is_dir():
        raise InputError(f"GLUE_DIR={name}: no such folder; it holds the folders of the tasks, CoLA, SST-2, MRPC, ...")
    return path


def find_source(task: TaskSection, *, data_dir: Path, glue_dir: Path | None) -> Source:
    """The first place that has the task: its files, the installed documentation, ``glue_dir``, the Hub.

    Raises ``InputError`` with all places and what to set if none has it, without waiting for a network.
    """
    if task.files:
        return Source(f"files of {task.name}", _own_files(task), {}, task.values)
    if task.embedded:
        files = _embedded(task, data_dir)
        where = f"{files['train'].parent}, made of the documentation that is installed"
        return Source(where, lambda split: [read_table(files[split], header=(), needed=())], {}, ())
    tried = []
    if glue_dir is not None:
        folder, hub = task.folder, task.hub
        if folder and (glue_dir / folder.name).is_dir():
            return Source(str(glue_dir / folder.name), _folder(task, glue_dir), folder.columns, folder.values)
        if hub and hub.subset and (glue_dir / hub.subset).is_dir():
            return Source(str(glue_dir / hub.subset), _hub_folder(hub, glue_dir), hub.columns, hub.values)
        names = [name for name in (folder and folder.name, hub and hub.subset) if name]
        tried.append(f"GLUE_DIR={glue_dir} has no folder {' or '.join(names)}")
    elif task.folder:
        tried.append("GLUE_DIR is not set")
    if task.hub:
        unreachable = _unreachable(task.hub.dataset)
        if unreachable is None:
            where = f"{task.hub.dataset} {task.hub.subset or ''}".strip()
            return Source(f"{where} on the Hub", _hub(task.hub), task.hub.columns, task.hub.values)
        tried.append(f"{task.hub.dataset} on the Hub: {unreachable}")
    layout = f" that holds {task.folder.name}/{task.folder.file('train')}" if task.folder else ""
    raise InputError(
        f"no data for {task.name}: {'; '.join(tried)}. Set GLUE_DIR=<folder>{layout}, or give the Hub a way "
        f"(a network{', and HUB=1' * by_make()}), or name files of your own (task.files.train=...)"
    )


def _embedded(task: TaskSection, data_dir: Path) -> dict[str, Path]:
    assert task.embedded is not None
    if task.embedded == "questions":
        return question_files(task.text[0], getattr(task, "choices", []), task.labels, data_dir)
    return embedded_files(task.embedded, task.text, task.labels, data_dir)


def _own_files(task: TaskSection) -> Callable[[str], list[Table]]:
    def read(split: str) -> list[Table]:
        if split not in task.files:
            raise FileNotFoundError(f"task.files.{split} is not given")
        return task.read_files(resolve(task.root, task.files[split]))

    return read


def resolve(root: Path, names: Sequence[str]) -> list[Path]:
    """Expand globs, sorted, each file once; a name also stands for a compressed file of that name."""
    paths: list[Path] = []
    for name in names:
        entry = str(root.expanduser() / Path(name).expanduser())
        named = [path for suffix in COMPRESSED if (path := Path(entry + suffix)).is_file()][:1]
        found = named or sorted({*matching(Path(entry))})
        files = [path for path in found if path.is_file()]
        if not files:
            raise InputError(f"{entry}: no such file; task.files are relative to task.root={root}")
        paths += files
    return distinct(paths)


def _folder(task: TaskSection, glue_dir: Path) -> Callable[[str], list[Table]]:
    folder = task.folder
    assert folder is not None

    def read(split: str) -> list[Table]:
        path = Path(os.path.normpath(glue_dir / folder.name / folder.file(split)))
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there")
        return [read_table(path, header=folder.header, needed=[folder.columns.get(name, name) for name in task.text])]

    return read


def _hub_split(hub: HubSection, split: str) -> tuple[str | None, str]:
    """Subset and name of a split on the Hub."""
    subset, _, name = hub.splits.get(split, split).rpartition("/")
    return subset or hub.subset, name


def _hub_folder(hub: HubSection, glue_dir: Path) -> Callable[[str], list[Table]]:
    def read(split: str) -> list[Table]:
        subset, name = _hub_split(hub, split)
        base = glue_dir / (subset or "")
        paths = sorted([*base.glob(f"{name}-*.parquet"), *base.glob(f"{name}/*.parquet")])
        if not paths:
            raise FileNotFoundError(f"{base / name}-*.parquet is not there")
        return [read_table(path, header=(), needed=()) for path in paths]

    return read


def _hub(hub: HubSection) -> Callable[[str], list[Table]]:
    def read(split: str) -> list[Table]:
        import datasets

        subset, name = _hub_split(hub, split)
        try:
            data: Any = datasets.load_dataset(hub.dataset, subset, split=name, revision=hub.revision)
        except ConnectionError as error:
            raise InputError(f"{hub.dataset} on the Hub: {error}") from error
        except ValueError as error:  # an unknown subset or split; the library names those there are
            raise FileNotFoundError(f"{hub.dataset} on the Hub: {error}") from error
        except RuntimeError as error:  # a data set that is a script, which the library runs no more
            raise InputError(
                f"{hub.dataset} on the Hub: {error}; its rows may be there as parquet files, too: "
                "task.hub.revision=refs/convert/parquet"
            ) from error
        where = f"{hub.dataset}/{subset}/{name}" if subset else f"{hub.dataset}/{name}"
        return [from_arrow(where, data.with_format("arrow")[:], data.features.to_dict())]

    return read


def _unreachable(dataset: str) -> str | None:
    """Why the Hub cannot be asked for a data set; None if it can, or if all of it may be in the cache.

    ``datasets`` alone would repeat the question for 23 seconds.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        import datasets

        try:
            datasets.get_dataset_config_names(dataset)
        except (ConnectionError, FileNotFoundError):
            return "HF_HUB_OFFLINE is set, and the cache does not hold it"
        return None
    try:
        HfApi().dataset_info(dataset, timeout=_PROBE_SECONDS)
    except HfHubHTTPError as error:
        return str(error).strip().splitlines()[0]
    except Exception as error:  # of the library's transport, which may be another one tomorrow
        return f"cannot be reached ({error})"
    return None

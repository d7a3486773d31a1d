"""``python -m deploy.push model=<export> repo=<owner/name> license=<id> language=<code>``: a model goes to the Hub.

What goes is first laid out in a folder: weights, tokenizer, ``task.yaml``, and a model card with license, language,
base model, data sets, scores and a snippet that uses the model. Whatever tells about this machine is taken out, and
files that still name a place on it are refused. Without the Hub (``HF_HUB_OFFLINE=1``, which make sets unless
``HUB=1``), and with ``dry_run=true``, that folder is all. A new repository is private unless ``private=false``.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import getpass
import json
import os
import re
import shutil
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import transformers
import yaml
from huggingface_hub import HfApi, constants, metadata_load
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # of the library that it asks with
    LocalTokenNotFoundError,
)
from pydantic import BeforeValidator, Field

from bertillery.config.section import InputError, Section
from bertillery.config.types import Texts
from bertillery.models.folder import ConfigFile
from bertillery.report.card import shortened
from bertillery.report.table import code, fenced
from bertillery.run.command import tool
from bertillery.system.files import publish, remove, sha256, write_text, writing
from bertillery.system.invocation import by_make
from bertillery.system.printable import first_line
from bertillery.system.records import read_json, read_text, read_yaml
from finetune.config import model_name
from finetune.record import FILE, read_record

_GOES = (".json", ".safetensors", ".txt", ".model")
"""Suffixes of files that belong to a model."""
_OF_LOADING = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "cache_dir")
"""What libraries note in their files of where something was loaded from."""
_PIPELINES = ("text-classification", "token-classification", "fill-mask", "text-generation")
"""Pipelines that take a text alone."""
_Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]+)*$")]


class PushSection(Section):
    """Keys of publishing."""

    model: Path
    """Directory of a model, such as the ``export`` of a run."""
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository on the Hub, `owner/name`."""
    license: str = Field(pattern=r"^[a-z0-9][a-z0-9.+-]*$")
    """License of the weights, by the Hub's identifier, such as `apache-2.0`, `mit`, `cc-by-sa-4.0`, `other`."""
    language: Annotated[list[_Language], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
    """Languages of the texts, by their codes: `en`, or `[en, de]`."""
    base_model: str | None = None
    """The Hub's id of the model that this one was made from; by default the one that the run was started from, if that
    is one of the Hub."""
    datasets: Texts | None = None
    """The Hub's ids of the data; by default that of the task, or of the corpus, if it is one of the Hub."""
    private: bool = True
    """Whether a new repository can be seen by its owner alone."""
    dry_run: bool = False
    """Only lay out and show what would go."""
    dir: Path = Path("runs/push")
    """Folder in which it is laid out."""


def main(arguments: Sequence[str]) -> int:
    """Lay out, show and send; returns the exit status."""
    return tool(arguments, help=__doc__, schema=PushSection, action=_run)


def _run(section: PushSection) -> int:
    folder, left = lay_out(section)
    print(listing(folder, left))
    print(f"\n{(folder / 'README.md').read_text(encoding='utf-8')}")
    if section.dry_run or constants.HF_HUB_OFFLINE:
        how = "without dry_run" if section.dry_run else "with HUB=1" if by_make() else "with HF_HUB_OFFLINE=0"
        seen = "private" if section.private else "PUBLIC"
        print(f"nothing was sent. Exactly these files lie in {folder}; the same command {how} sends them to")
        print(f"  {constants.ENDPOINT}/{section.repo}, {seen} if it is new")
        return 0
    print(f"sent        {send(section, folder)}")
    return 0


def lay_out(section: PushSection) -> tuple[Path, list[str]]:
    """The folder with exactly what would go, and the names of what stays behind.

    Raises ``InputError`` for a folder that is no model, and for a file that names a place, a user or a host here.
    """
    source, remedy = section.model, "give a model directory, such as the export/ of a run"
    if not (source / "config.json").is_file():
        raise InputError(
            f"{source}: {'no config.json in this folder' if source.is_dir() else 'no such folder'}; {remedy}"
        )
    config = read_json(source / "config.json", ConfigFile, remedy=remedy)
    folder = section.dir / section.repo
    partial = folder.with_name(f"{folder.name}.partial")
    remove(partial)
    kept, left = _chosen(source)
    with writing(partial):
        for file in kept:
            target = partial / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".json":
                values = read_json(file, Any, remedy="export the model again")
                write_text(target, json.dumps(_without_places(values), indent=2, ensure_ascii=False) + "\n")
            elif file.name == FILE:
                write_text(target, shortened(read_text(file, remedy="export the model again")))
            else:
                _link(file, target)
    write_text(partial / "README.md", card(section, config))
    if found := [*leaks(partial)]:
        remove(partial)
        listed = "\n".join(f"  - {each}" for each in found[:8])
        raise InputError(
            f"nothing was sent, since these files tell of this machine:\n{listed}\nTake it out of {source}"
        )
    publish(partial, folder)
    return folder, left


def _chosen(source: Path) -> tuple[list[Path], list[str]]:
    """Files of a model and of those in folders within it, and names of what else is there."""
    models = [source, *(path.parent for path in sorted(source.glob("*/config.json")))]
    files = [file for folder in models for file in sorted(folder.iterdir()) if file.is_file()]
    kept = [file for file in files if file.suffix in _GOES or file == source / FILE]
    others = {path for path in source.iterdir() if path not in {*kept, *models}} - {source / "README.md"}
    return kept, sorted(path.name for path in others)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk
        shutil.copyfile(file, target)


def _without_places(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_places(value) for key, value in values.items() if key not in _OF_LOADING}
    return [*map(_without_places, values)] if isinstance(values, list) else values


def leaks(folder: Path) -> Iterator[str]:
    """What files tell of this machine: paths that exist here, its name, the user's name in a path."""
    names = {socket.gethostname(), socket.gethostname().partition(".")[0]} - {"localhost", ""}
    with suppress(KeyError, OSError):
        names |= {f"/{getpass.getuser()}/"}
    hosts = re.compile(
        "|".join(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])" for name in sorted(names) if len(name) > 3) or "$^"
    )
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        text = _text_of(file)
        for line in text.splitlines():
            if shortened(line) != line or hosts.search(line) or str(Path.home()) in line:
                yield f"{file.relative_to(folder)}: {line.strip()[:160]}"


def _text_of(file: Path) -> str:
    """The text of a file, of weights what stands before them; nothing of what is binary."""
    if file.suffix == ".safetensors":
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(size))
        return json.dumps(header.get("__metadata__", {}))
    if file.name in ("tokenizer.json", "vocab.txt", "merges.txt") or file.suffix == ".model":
        return ""  # pieces of text, which may be anything
    return file.read_text(encoding="utf-8")


def card(section: PushSection, config: ConfigFile) -> str:
    """The model's card with what the Hub shows of a model, without what is about this machine."""
    file = section.model / "README.md"
    text = read_text(file, remedy="export the model again") if file.is_file() else ""
    try:
        metadata = dict(metadata_load(file) or {}) if file.is_file() else {}
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file}: its metadata cannot be read ({error}); export the model again") from None
    body = re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL).strip()
    body, _, configuration = body.partition("## Configuration")
    run = section.model.resolve().parent / "config.yaml"
    values: dict[str, Any] = (
        read_yaml(run, dict[str, Any], remedy="restore it") if run.is_file() else _configured(configuration)
    )
    name, tag = section.repo.partition("/")[2], metadata.get("pipeline_tag")
    body = re.sub(r"\A# .*\n", "", body)
    places = {*_places(values)}
    for place in sorted({*places, *map(shortened, places)}, key=len, reverse=True):
        body = body.replace(place, model_name(place))
    head = {
        "license": section.license,
        "language": section.language,
        **_listed("base_model", [section.base_model] if section.base_model else _base_models(values)),
        **_listed("datasets", section.datasets if section.datasets is not None else _datasets(section.model, values)),
        **{
            key: value
            for key, value in metadata.items()
            if key not in ("license", "language", "base_model", "datasets")
        },
    }
    for index in head.get("model-index") or []:
        index["name"] = name
    parts = [f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---", f"# {name}", body.strip()]
    record = read_record(str(section.model))
    parts += [
        "## Use",
        usage(section.repo, tag, config, pair=record is not None and len(record.task.get("text", ())) == 2),
    ]
    parts += ["## Configuration", fenced(_published(values), "yaml")] if values else []
    return shortened("\n\n".join(filter(None, parts)) + "\n")


def _configured(text: str) -> dict[str, Any]:
    """The configuration on a card."""
    found = re.search(r"`{3,}yaml\n(.*?)\n`{3,}", text, flags=re.DOTALL)
    with suppress(yaml.YAMLError):
        values = yaml.safe_load(found[1]) if found else None
        return values if isinstance(values, dict) else {}
    return {}


def _listed(key: str, values: Sequence[str]) -> dict[str, Any]:
    return {key: [*values]} if values else {}


def _starts(values: Mapping[str, Any]) -> list[str]:
    """Models that a run was made from."""
    sections = (values.get(name) for name in ("model", "teacher"))
    return [each["from"] for each in sections if isinstance(each, dict) and isinstance(each.get("from"), str)]


def _base_models(values: Mapping[str, Any]) -> list[str]:
    return [name for name in _starts(values)[:1] if not _is_place(name)]


def _datasets(model: Path, values: Mapping[str, Any]) -> list[str]:
    """The Hub's names of the task's data, or the corpus'."""
    record = read_record(str(model))
    hub = record.task.get("hub") if record else None
    paths = (values.get("data") or {}).get("path") or []
    corpora = [path.removeprefix("hub:").partition("@")[0] for path in paths if str(path).startswith("hub:")]
    return [hub["dataset"]] if isinstance(hub, dict) and "dataset" in hub else corpora


def _is_place(text: str) -> bool:
    """Whether a text of a configuration names a place on this machine, as files and folders of runs do."""
    return "/" in text and (text.startswith(("/", "~/", "./", "../")) or Path(text).exists())


def _places(values: Any) -> Iterator[str]:
    if isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _places(value)
    elif isinstance(values, str) and _is_place(values) and not values.startswith("hub:"):
        yield values


def _published(values: dict[str, Any]) -> str:
    """The configuration without the run's place and its records; of files and models their last names."""
    run = {key: value for key, value in (values.get("run") or {}).items() if key in ("seed", "precision", "sharding")}
    task = {key: value for key, value in (values.get("task") or {}).items() if key not in ("root",)}
    kept = {key: value for key, value in values.items() if key not in ("run", "tracking", "task")}
    named = {**({"task": task} if task else {}), **kept, "run": run}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list):
            return [*map(plain, value)]
        place = isinstance(value, str) and _is_place(value) and not value.startswith("hub:")
        return (model_name(value) if Path(value).name == "export" else Path(value).name) if place else value

    return yaml.safe_dump(plain(named), sort_keys=False, allow_unicode=True)


def usage(repo: str, tag: str | None, config: ConfigFile, *, pair: bool = False) -> str:
    """Python that loads the model, as Markdown; for a ``pair`` of texts, if it reads one."""
    name = (config.architectures or ["AutoModel"])[0]
    stock = hasattr(transformers, name)
    tag = tag or {"MaskedLM": "fill-mask"}.get(name.partition("For")[2])
    if stock and tag in _PIPELINES:
        example = '{"text": "A sentence.", "text_pair": "Another one."}' if pair else '"A sentence."'
        if tag == "fill-mask":
            example = 'f"A {model.tokenizer.mask_token} sentence."'
        lines = ["from transformers import pipeline", "", f'model = pipeline("{tag}", model="{repo}")']
        return fenced("\n".join([*lines, f"print(model({example}))"]), "python")
    auto = _auto_class(name)
    lines = [f"from transformers import {auto}, AutoTokenizer", ""]
    lines += [f'tokenizer = AutoTokenizer.from_pretrained("{repo}")', f'model = {auto}.from_pretrained("{repo}")']
    before = [] if stock else ["import bertillery  # registers the class of the model"]
    more = "" if stock else f"\n\n{code(name)} is a class of Bertillery's, which has to be installed."
    return fenced("\n".join([*before, *lines]), "python") + more


def _auto_class(name: str) -> str:
    """The Auto class that opens a model class."""
    ending = name.partition("For")[2]
    special = {"ConditionalGeneration": "Seq2SeqLM", "PreTraining": "PreTraining"}
    found = f"AutoModelFor{special.get(ending, ending)}" if ending else "AutoModel"
    if name == "MarianMTModel":
        found = "AutoModelForSeq2SeqLM"
    return found if hasattr(transformers, found) else "AutoModel"


def listing(folder: Path, left: Sequence[str]) -> str:
    """The files with their sizes and checksums, and what stays behind."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{file.stat().st_size:>14,}  {sha256(file)[:12]}  {file.relative_to(folder)}" for file in files]
    total = sum(file.stat().st_size for file in files)
    behind = [f"left behind: {', '.join(left)}"] if left else []
    return "\n".join(
        [f"{len(files)} files, {total:,} bytes, each with the first digits of its SHA-256", *lines, *behind]
    )


def send(section: PushSection, folder: Path) -> str:
    """Upload the folder; returns the address. ``InputError`` where the Hub refuses, and for a public repository unless
    ``private=false``."""
    api = HfApi()
    try:
        api.create_repo(section.repo, private=section.private, exist_ok=True)
        if section.private and api.model_info(section.repo).private is False:
            raise InputError(
                f"repo: {section.repo} is there and public; give private=false to publish, or another name"
            )
        done = api.upload_folder(repo_id=section.repo, folder_path=folder, commit_message="Model of Bertillery")
    except LocalTokenNotFoundError as error:
        raise InputError(f"no token of the Hub: set HF_TOKEN, or log in with `hf auth login` ({error})") from None
    except HfHubHTTPError as error:
        raise InputError(f"{section.repo}: the Hub refused: {str(error).strip().splitlines()[0]}") from None
    except (HTTPError, OSError, RuntimeError) as error:  # the last one: of what carries large files
        raise InputError(
            f"{section.repo}: the Hub at {constants.ENDPOINT} does not answer, or sending broke off "
            f"({first_line(error)}); try again later"
        ) from None
    return str(done)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Every command and every block of code in the documentation is one that exists, and the site has no broken link."""

from __future__ import annotations

import gzip
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from huggingface_hub import constants
from jsonschema import Draft202012Validator
from transformers import AutoConfig

from bertillery.__main__ import main
from bertillery.config.layers import parse_yaml
from deploy.schema import schemas
from tests.blocks import PAGES, RUN, commands, outputs
from tests.corpora import tiny_tokenizer
from tests.finetune.tasks import write_encoder
from tests.prompting.exports import write_causal
from tests.test_commands import dry_run

ROOT = Path(__file__).resolve().parents[1]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@cache
def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(schemas()[kind])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody who follows the documentation: the configurations are there, and nothing else."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@cache
def made_by(*given: str) -> list[list[str]]:
    """The programs that make would start."""
    there = (each for name in ("onnx", "site", "browser") for each in ("-o", f".venv/.{name}"))
    done = dry_run(*there, *given)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    parts = (part for line in lines if "-m " in line for part in line.split("&&"))
    return [shlex.split(part) for part in parts if "-m pip " not in part]


def started(words: list[str]) -> Iterator[list[str]]:
    """The module of ours that a command starts, by its name or as ``bertillery``, and its arguments; several where make
    starts several, none for other programs."""
    if words[0] == "make" and words[1:]:
        for each in made_by(*words[1:]):
            yield from started(each)
    elif words[0] in SCRIPTS:
        yield ["bertillery", *words[SCRIPTS[words[0]](words) :]]
    elif words[0] == "bertillery":
        yield words
    elif "-m" in words:
        _, *given = words[max(place for place, word in enumerate(words) if word == "-m") :]
        if (ROOT / given[0].split(".")[0]).is_dir() and given[0] != "bertillery.system.gpus":
            yield given


SCRIPTS = {
    "host.sh": lambda words: 4,  # rank, hosts, address
    "sbatch": lambda words: words.index("slurm.sh") + 1,
    "docker": lambda words: words.index("bertillery") + 1 if words[1] == "run" else len(words),
}
"""Programs of other people and scripts that start ours, and where its arguments begin."""


def main_of(module: str) -> Callable[[Sequence[str]], int]:
    found = importlib.util.find_spec(module)
    assert found is not None, module
    return importlib.import_module(f"{module}.__main__" if found.submodule_search_locations else module).main


def provide(given: Sequence[str], page: Path) -> None:
    """Make in this folder what a command reads before its first step: the model to start from, of the shape that its
    name says and without weights, and the page's task."""
    for argument in given:
        key, _, value = argument.partition("=")
        if key in ("model.from", "teacher.from"):
            kind = next((kind for name, kind in FAMILIES.items() if name in value), "bert")
            named = ROOT / f"configs/pretrain/{Path(value).parent.name}.yaml"
            shape = parse_yaml(named.read_text(), named.name).get("model", {}) if named.is_file() else {}
            tokenizer = tiny_tokenizer()
            AutoConfig.for_model(kind, **shape, vocab_size=len(tokenizer)).save_pretrained(value)
            tokenizer.save_pretrained(value)
        for name in re.findall(r"[\w./]+\.yaml", argument):
            if not name.startswith(("configs/", str(ROOT))):
                text = page.read_text() + (ROOT / "docs/tasks/index.md").read_text()
                Path(name).write_text(re.findall(r"^```yaml\n(task:.*?)^```", text, flags=re.M | re.S)[0])


FAMILIES = {"gpt": "gpt2", "ernie": "ernie_thu"}
"""What stands in the name of a model that is no BERT."""


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_is_accepted(
    page: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the first step: names, keys, values and their combinations; help and schemas are printed and written."""
    monkeypatch.chdir(place)
    for script in re.findall(r"clusters/\w+\.sh", page.read_text()):
        assert (ROOT / script).is_file(), script
    for words in commands(page, tmp_path):
        for name, *given in started(words):
            provide(given, page)
            run = main if name == "bertillery" else main_of(name)
            runs = name == "bertillery" and (not given or "--help" in given or given[0] == "schema")
            status = run(given if runs else [*given, "--print-config"])
            assert status == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"


USES = ("predict", "evaluate", "export", "push", "compare", "report", "inspect", "generate", "probes")
"""Commands that use what a training has left, within seconds."""


MOOD = "runs/finetune/mood/bert_mini/seed-12345"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The task of the page on fine-tuning, trained for two steps as its command says, and a causal model."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "configs").symlink_to(ROOT / "configs")
    write_encoder(folder / "runs/pretrain/bert_mini/export")
    write_causal(folder / "runs/pretrain/gpt2_docs", positions=128)
    (folder / "prompts.txt").write_text("The cat\nA mat\n")
    (task,) = re.findall(r"^```yaml\n(task:.*?)^```", (ROOT / "docs/finetuning.md").read_text(), flags=re.M | re.S)
    (folder / "mood.yaml").write_text(task)
    rows = [f"w1 w{i},{('bad', 'good')[i % 2]}" for i in range(16)]
    (folder / "new").mkdir()
    for name in ("reviews", "held_out", "labelled", "new/a", "new/b"):
        (folder / f"{name}.csv").write_text("\n".join(["review,mood", *rows, ""]))
    with gzip.open(folder / "mails.jsonl.gz", "wt") as file:
        file.write('{"body": "w1 w2"}\n{"body": "w4"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        given = ["model.from=runs/pretrain/bert_mini/export", "recipe=none", "run.device=cpu", "run.precision=fp32"]
        assert main(["finetune", "mood.yaml", *given, "train.steps=2", "train.phases.0.sequence_length=64"]) == 0
    return folder


@pytest.mark.parametrize("name", ["finetuning", "distillation", "pages", "prompting"])
def test_commands_that_use_a_model_run(
    name: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as make does
    found = commands(ROOT / f"docs/{name}.md", tmp_path)
    for words in [each for each in found if each[0] == "make" and each[1] in USES]:
        monkeypatch.delenv("PAIR", raising=False)
        for key, _, value in (word.partition("=") for word in words):
            if key in ("TEXT", "PAIR", "PROMPT"):  # which make exports
                monkeypatch.setenv(key, value)
            for path in map(Path, value.split() if key in ("MODEL", "TEACHER", "STUDENTS", "RUNS") else ()):
                run = trained / ("runs/pretrain/gpt2_docs" if "gpt2" in value else MOOD)
                if not path.exists():
                    shutil.copytree(run if key == "RUNS" else run / "export", path, symlinks=True)
        for module, *given in started(words):
            AcceleratorState._reset_state(True)  # as in a process of its own: commands are of several precisions
            assert main_of(module)(given) == 0, f"{shlex.join(words)}\n{capsys.readouterr().err}"


@pytest.mark.parametrize("page", [page for page in PAGES if "tasks" in page.parts], ids=lambda page: page.stem)
def test_the_tasks_of_the_pages_are_tasks(page: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), flags=re.M | re.S):
        values = parse_yaml(block, page.name)
        assert [error.message for error in validator("finetune").iter_errors(values)] == []
        assert page.stem in ("index", values["task"]["type"])


def test_every_task_type_and_every_objective_has_its_text() -> None:
    types = schemas()["finetune"]["properties"]["task"]["properties"]["type"]["enum"]
    for name in types:
        assert (ROOT / f"docs/tasks/{name}.md").is_file()
        assert f"({name}.md)" in (ROOT / "docs/tasks/index.md").read_text()
    text = (ROOT / "docs/learn/objectives.md").read_text()
    for package in ("pretrain", "distill"):
        for file in (ROOT / package / "objectives").glob("[a-z]*.py"):
            assert f"`{file.stem}`" in text


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_blocks_print_what_the_page_says(page: Path) -> None:
    """``python -m tests.blocks`` writes the outputs anew."""
    for printed, said in outputs(page):
        assert printed == said


def test_links_lead_to_pages_and_headings() -> None:
    """In README and CONTRIBUTING, too, which the site does not have."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("http:", "https:")):
                continue
            path, _, heading = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), (page.name, target)
            if heading:
                titles = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.M)
                slugs = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
                assert heading in slugs, (page.name, target, slugs)


def test_every_page_is_in_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    listed = set(re.findall(r"[\w/]+\.md", navigation))
    assert listed == {page.relative_to(ROOT / "docs").as_posix() for page in PAGES if "docs" in page.parts}


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs_material_extensions") and not shutil.which("mkdocs"),
                    reason="needs the extra site")  # fmt: skip
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """With search and the docstrings of the API, and without a request to another host."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training_steps" in (tmp_path / "api/engine.html").read_text()
    assert (tmp_path / "search/search_index.js").is_file()
    page = (tmp_path / "index.html").read_text()
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://(?!squidfunk)[^"]*"', page)

"""Every command and every block of code in the documentation is one that exists, and the site has no broken link."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from bertillery.__main__ import COMMANDS, main, resolve
from bertillery.config.section import parse_yaml, read_values
from deploy.schema import schemas
from tests.blocks import PAGES, RUN, commands, outputs
from tests.test_commands import would_run

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"data": "pretrain", "pretrain": "pretrain", "embed": "embed", "finetune": "finetune", "distill": "distill"}
"""The schema of the settings of each training."""
NAMED = {"CONFIG": ("pretrain", "distill", "embed"), "TASK": ("finetune", "prompting")}
"""Variables of make that name a configuration, and the folders that have it."""
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@cache
def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(schemas()[kind])


def lines(page: Path, program: str) -> list[list[str]]:
    """The page's commands of a program, as words; what stands in <...> is to be filled in."""
    found = [re.sub(r"^(\.venv/bin/|[A-Z_]+=\S+ )+", "", line) for line in commands(page)]
    found = [re.sub(r"<[^<>]*?>", "x", line) for line in found]
    return [shlex.split(line) for line in found if line.split()[0] == program]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_of_make_are_targets_with_configurations(page: Path) -> None:
    for _, target, *given in lines(page, "make"):
        assert would_run("-o", ".venv/.onnx", "-o", ".venv/.site", target, *given)
        for variable, _, value in (each.partition("=") for each in given):
            if variable in NAMED and value != "..." and not value.endswith(".yaml"):
                assert any((ROOT / f"configs/{folder}/{value}.yaml").is_file() for folder in NAMED[variable]), value


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_of_the_program_have_names_and_keys_that_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _, *given in lines(page, "bertillery"):
        name, *rest = given or ["--help"]
        if name.startswith("-"):
            continue
        assert name in COMMANDS, name
        if "--help" in rest:
            assert main(given) == 0
            continue
        settings = [each for each in rest if "=" in each]
        for each in rest:  # a name that is not there raises
            assert each.endswith(".yaml") or each.startswith("--") or resolve(each, COMMANDS[name])
        if name in KINDS:
            values, _ = read_values(settings)
            values.get("train", {}).pop("phases", None)  # an index of a list
            assert [error.message for error in validator(KINDS[name]).iter_errors(values)] == []
        elif name not in ("seeds", "search"):  # which read their model
            assert main([*given, "--print-config"]) == 0, capsys.readouterr().err


RECORDS = ("results", "performance")
"""Pages of what was measured, also with scripts of earlier commits, which they name."""


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in RECORDS], ids=lambda page: page.stem)
def test_modules_and_scripts_of_commands_exist(page: Path) -> None:
    for program in ("python", "sbatch", "torchrun"):
        for words in lines(page, program):
            modules = [words[place + 1] for place, word in enumerate(words[:-1]) if word == "-m"]
            assert all(importlib.util.find_spec(module) for module in modules), words
    for line in commands(page):
        for script in re.findall(r"clusters/[\w.]+", line):
            assert (ROOT / script).is_file(), script


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

import json
from pathlib import Path

import pytest
import torch

from bertillery.system import environment
from bertillery.system.environment import cores_in_groups, num_cores


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{text}\n")


def test_the_cores_of_a_group(tmp_path: Path) -> None:
    write(tmp_path / "job", cpu_max="150000 100000")
    write(tmp_path / "free", cpu_max="max 100000")
    write(tmp_path / "cpu" / "old", cpu_cfs_quota_us="200000", cpu_cfs_period_us="100000")
    write(tmp_path / "cpu" / "unlimited", cpu_cfs_quota_us="-1", cpu_cfs_period_us="100000")
    found = {name: cores_in_groups(tmp_path, [name]) for name in ("job", "free", "old", "unlimited", "none")}
    assert found == {"job": [1.5], "free": [], "old": [2.0], "unlimited": [], "none": []}


def test_a_limit_of_cpu_time_is_a_limit_of_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(environment, "_GROUPS", tmp_path)
    assert num_cores() == 8
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert num_cores() == 2


def test_environment_is_json_and_names_no_machine():
    found = environment.environment()
    json.dumps(found)
    assert found["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert not {"host", "hostname", "node"} & found.keys()

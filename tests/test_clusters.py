"""The scripts for several hosts, run as they stand: a Slurm of two nodes, and two network namespaces as hosts."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpora import write_text
from tests.test_packaging import PACKAGES

ROOT = Path(__file__).resolve().parents[1]
SRUN = """#!/bin/bash
# A task on each of the nodes, all on this machine.
[[ $1 == --kill-on-bad-exit=1 ]] && shift
for ((node = 0; node < SLURM_NNODES; node++)); do SLURM_NODEID=$node "$@" & tasks+=($!); done
status=0
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit $status
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """A training of two steps with batches of several examples."""
    write_text(tmp_path / "text.txt")
    tiny = ["model.num_hidden_layers=1", "model.hidden_size=16", "model.num_attention_heads=2"]
    tiny += ["tokenizer.vocab_size=200", f"data.path={tmp_path}/text.txt", "data.holdout=0.2", "tracking.wandb=off"]
    tiny += ["train.steps=2", "train.phases=[{batch_size: 4, sequence_length: 32}]"]
    return ["pretrain", "bert_docs", *tiny, f"run.dir={tmp_path}/runs", f"run.data_dir={tmp_path}/data"]


@pytest.fixture
def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def assert_two_processes_trained(folder: Path, said: str) -> None:
    assert "processes: 2, device: cpu" in said
    results = json.loads((folder / "runs/pretrain/bert_docs/finished.json").read_text())
    assert results["steps"] == 2


def test_slurm_runs_one_training_on_all_nodes(tmp_path: Path, command: list[str], free_port: int) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", '#!/bin/bash\necho 127.0.0.1\necho "$3"\n')):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2", "PORT": str(free_port)}
    given = environment(**slurm)
    given["PATH"] = f"{tools}:{given['PATH']}"
    script = [str(ROOT / "clusters/slurm.sh"), *command]
    done = subprocess.run(script, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_two_processes_trained(tmp_path, done.stderr)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, as hosts 10.77.0.1 and 10.77.0.2."""
    names = tuple(f"bert{os.getpid()}{side}" for side in "ab")
    cable = [f"b{os.getpid()}{side}" for side in "ab"]
    commands = [f"ip netns add {names[0]}", f"ip netns add {names[1]}"]
    commands += [f"ip link add {cable[0]} netns {names[0]} type veth peer name {cable[1]} netns {names[1]}"]
    for number, (name, end) in enumerate(zip(names, cable, strict=True), 1):
        commands += [f"ip -n {name} addr add 10.77.0.{number}/24 dev {end}"]
        commands += [f"ip -n {name} link set {end} up", f"ip -n {name} link set lo up"]
    try:
        for line in commands:
            if not Path("/usr/sbin/ip").exists() or subprocess.run(line.split(), capture_output=True).returncode:
                pytest.skip("needs network namespaces, which take the rights of an administrator")
        yield names  # type: ignore[misc]
    finally:
        for name in names:
            if Path("/usr/sbin/ip").exists():
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_two_hosts_train_together(tmp_path: Path, command: list[str], hosts: tuple[str, str]) -> None:
    """They see each other through one cable only."""
    cable = {name: f"b{os.getpid()}{side}" for name, side in zip(hosts, "ab", strict=True)}
    running = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, str(ROOT / "clusters/host.sh"), str(rank), "2", "10.77.0.1", *command],
            cwd=tmp_path, env=environment(GPUS="0", GLOO_SOCKET_IFNAME=cable[name]),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank, name in enumerate(hosts)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    assert_two_processes_trained(tmp_path, said[0])


def test_a_host_without_its_number_is_told_the_usage(tmp_path: Path) -> None:
    for given in ([], ["pretrain", "bert_docs"], ["a", "2", "10.0.0.1", "pretrain"]):
        done = subprocess.run([str(ROOT / "clusters/host.sh"), *given], capture_output=True, text=True)
        assert (done.returncode, done.stderr[:24]) == (2, "usage: clusters/host.sh ")


def test_the_container_has_all_that_the_wheel_has() -> None:
    text = (ROOT / "clusters/Dockerfile").read_text()
    assert re.findall(r"^COPY (\w+) \1$", text, flags=re.M) == [*PACKAGES, "configs"]

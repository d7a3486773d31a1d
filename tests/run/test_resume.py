"""Where a run goes on from: the same place for all processes, whatever each of them sees, or nowhere.

One launch of two processes goes through all cases; this file is what they run, too.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bertillery.config.section import InputError
from tests.programs import run_program
from tests.run.test_checkpoint import flip_a_bit
from tests.run.test_trainer import SCORES, train, trainer_of

ROOT = Path(__file__).resolve().parents[2]
LAST = "checkpoints/step-0000000012"
REFUSED = {
    "nothing": "it does not exist",
    "damaged": "model.safetensors has another checksum",
    "another": "it differs from the main process's",
}


def resume(rank: int, folder: Path, port: int) -> None:
    """What each of the two processes does."""
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    found: dict[str, Any] = {}
    for case in (*REFUSED, "newer", "shared"):
        trainer = trainer_of(folder / case / f"{rank}", SCORES)
        try:
            found[case] = trainer.resume(), trainer.objective.weight.item(), sorted(trainer.evaluations.items())
        except InputError as error:
            found[case] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What either process did; the folders of the second one are not those of the first, but for ``shared``."""
    folder = tmp_path_factory.mktemp("resume")
    train(folder / "whole", SCORES)
    train(folder / "other", SCORES, phases=[{"batch_size": 3}])
    for case in REFUSED:
        shutil.copytree(folder / "whole", folder / case / "0")
    for case in ("damaged", "newer"):
        shutil.copytree(folder / "whole", folder / case / "1")
    shutil.copytree(folder / "whole", folder / "newer" / "0", ignore=shutil.ignore_patterns(Path(LAST).name))
    shutil.copytree(folder / "other", folder / "another" / "1")
    flip_a_bit(folder / "damaged" / "1" / LAST)
    (folder / "newer" / "1" / "metrics.jsonl").unlink()
    shutil.copytree(folder / "whole", folder / "shared" / "0")
    (folder / "shared" / "1").symlink_to("0")
    done = run_program("tests.run.test_resume", str(folder))
    assert done.status == 0, done.output
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", REFUSED)
def test_another_checkpoint_than_the_main_process_has_is_refused_by_all(found: list[dict[str, Any]], case: str) -> None:
    for mine in found:
        assert f"1 of 2 do not have the main one's (process 1: {REFUSED[case]})" in mine[case]
        assert "run.dir must be a folder that all machines share" in mine[case]


def test_all_go_on_from_what_the_main_process_sees(found: list[dict[str, Any]]) -> None:
    """Its evaluations are those of all, too: they decide whether another one is made, and all make one or none."""
    for case, step in (("newer", 10), ("shared", 12)):
        first, second = (mine[case] for mine in found)
        assert first == second
        assert first[0] == step
        assert [number for number, _ in first[2]] == [*range(2, step + 1, 2)]


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(resume, (Path(sys.argv[1]), port), nprocs=2, start_method="fork")

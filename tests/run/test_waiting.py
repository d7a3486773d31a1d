from __future__ import annotations

import json
import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import distributed as dist

from bertillery.run.waiting import main_process_first
from tests.programs import run_program

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1.0


def work(rank: int, folder: Path, port: int) -> None:
    """Two processes that give each other up after a second, of which the main one has more than that to do."""
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    accelerator = Accelerator(cpu=True)
    default = timedelta(seconds=PATIENCE)
    dist.distributed_c10d._set_pg_timeout(default)
    dist.distributed_c10d.default_pg_timeout = default  # of further groups
    with main_process_first(accelerator):
        if accelerator.is_main_process:
            time.sleep(2 * PATIENCE)
        (folder / f"{accelerator.process_index}.json").write_text(json.dumps(time.monotonic()))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        time.sleep(2 * PATIENCE)
    else:
        with pytest.raises(RuntimeError, match=r"(?i)timed out"):  # as ever elsewhere
            accelerator.wait_for_everyone()


def test_the_others_wait_longer_for_the_main_process_than_training_does(tmp_path: Path) -> None:
    done = run_program("tests.run.test_waiting", str(tmp_path))
    assert done.status == 0, done.output
    prepared, opened = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert prepared < opened


def test_one_process_waits_for_nobody() -> None:
    with main_process_first(Accelerator(cpu=True)):
        assert not dist.is_initialized()


if __name__ == "__main__":
    # Forked behind the imports, which take longer than everything else.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(work, (Path(sys.argv[1]), port), nprocs=2, start_method="fork")

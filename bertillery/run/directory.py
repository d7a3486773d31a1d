"""A run: its section, its directory, the processes and threads it runs with, and how it is asked to stop."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from bertillery.config.section import ConfigError, InputError, Section, completed, parse_yaml
from bertillery.config.types import PathName, Processes, Seed
from bertillery.engine.sharding import Sharding
from bertillery.run.inputs import Pins
from bertillery.system.environment import num_cores
from bertillery.system.files import sha256, tidy, write_text
from bertillery.system.gpus import check_gpus
from bertillery.system.lock import locked
from bertillery.system.records import checked, read_json, read_yaml

logger = logging.getLogger(__name__)


class RunSection(Section):
    """Where a run lives and what it runs on."""

    name: PathName | None = None
    """Folder under ``run.dir``; without one it is taken from the configuration files."""
    dir: Path = Path("runs")
    """Folder of all runs; of several machines one that they share."""
    data_dir: Path = Path("data")
    """Folder of corpora, prepared corpora and downloaded tasks."""
    seed: Seed = 12345
    """Everything random follows from it."""
    threads: Processes | None = None
    """CPU threads of each process; without it torch's choice, or an equal share of the cores if there are several."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """``bf16`` multiplies matrices in bfloat16, weights stay float32; ``auto`` does if the device does so natively."""
    device: Literal["auto", "cpu"] = "auto"
    """``cpu`` ignores a GPU."""
    compile: bool = False
    """Compile the encoders' layers (a minute, at the first steps). Results are the same but for rounding; on a CPU with
    AVX-512 a step of 4 layers of 256 became 5 % faster."""
    sharding: Sharding = "none"
    """``full`` splits parameters, gradients and optimizer state over all processes, for models that one device cannot
    hold. Slower otherwise; checkpoints and results are the same."""


def start_accelerator(section: RunSection) -> Accelerator:
    """Set threads and memory up, then start accelerate; what was chosen, and why, goes to the log."""
    on_gpu = section.device == "auto" and torch.accelerator.is_available()
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if on_gpu and local_processes > 1:
        lacking = check_gpus(local_processes, by=f"{local_processes} processes on this machine")
        if lacking:
            raise ConfigError(f"{lacking}, or run.device=cpu")
    precision, reason = choose_precision(section.precision, on_gpu=on_gpu)
    # Unless it is told of the CPU, accelerate takes the processes of torchrun for that many runs of one process.
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision="bf16" if precision == "bf16" else "no",
        # Encoders' buffers are constants, and the gradients may live in the buckets they are summed in.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )
    if section.sharding != "none" and accelerator.num_processes == 1:
        raise ConfigError(
            f"run.sharding: given {section.sharding!r}, but there is one process, and nothing to split a model over; "
            "start several (make's PROCESSES=2, or GPUS=8), or give run.sharding=none"
        )
    if section.threads is not None:
        torch.set_num_threads(section.threads)
    elif not on_gpu:  # torch knows of the machine's cores, not of a container's share of them
        share = max(1, num_cores() // local_processes)
        torch.set_num_threads(share if local_processes > 1 else min(share, torch.get_num_threads()))
    memory = "kept" if keep_large_blocks() else "given back"
    if accelerator.is_main_process:
        logger.info("precision %s (%s)", precision, reason)
        processes, threads = accelerator.num_processes, torch.get_num_threads()
        facts = processes, accelerator.device, threads, memory
        logger.info("processes: %d, device: %s, CPU threads of each: %d, freed memory: %s", *facts)
    return accelerator


def choose_precision(given: Literal["auto", "bf16", "fp32"], *, on_gpu: bool) -> tuple[Literal["bf16", "fp32"], str]:
    """The precision to multiply in, and the reason in words."""
    if on_gpu:
        name = "GPU"
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # private, but torch offers nothing else; where they are missing or the CPU is no x86, float32 is safe
        name, checks = "CPU", ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    fact = f"this {name} {'multiplies' if native else 'does not multiply'} bfloat16 natively"
    if given == "auto":
        return ("bf16" if native else "fp32"), fact
    return given, f"as configured; {fact}"


def keep_large_blocks() -> bool:
    """Keep freed memory in the process instead of returning it to the system; whether that could be arranged.

    By default glibc maps every large tensor anew and unmaps it when freed, so each step pays for zeroing the same pages
    again; on the CPU that is 10 to 30 % of a training step. Other C libraries have no such switch, and are left alone.
    """
    known = platform.libc_ver()[0] == "glibc"
    if known:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: only blocks above 1 GiB are mapped singly
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never give the top of the heap back
    return known


RESUMABLE = ("run.name", "run.dir", "run.data_dir", "run.threads", "run.device", "run.compile", "run.sharding",
             "tracking", "train.micro_batch_tokens", "train.workers", "train.log_every", "train.save_every",
             "train.keep")  # fmt: skip
"""Keys that may change when a run is resumed: they change nothing but rounding, speed and what is written."""


_OF_A_START = re.compile(r"lock$|config\.yaml")
"""Names of what is in the folder of a run that was killed while it was made."""


FINISHED_REMEDY = "delete this file: the next start writes it again from the last checkpoint"


@dataclass(frozen=True)
class _Noted:
    """A file of a finished run's export."""

    size: int
    sha256: str


class RunDirectory:
    """The folder of one run: ``config.yaml``, ``inputs.json``, ``tokenizer/``, ``metrics.jsonl``, ``checkpoints/``,
    ``export/``, ``finished.json``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"
        self.metrics_file = path / "metrics.jsonl"
        self.pins = Pins(path)

    @classmethod
    def open(
        cls,
        path: Path,
        config_text: str,
        *,
        schema: type[Section] | None = None,
        ignore: Sequence[str] = RESUMABLE,
        is_main: bool = True,
    ) -> RunDirectory:
        """Open the folder of the run with this configuration (YAML), to start it or to resume it.

        ``ignore`` names keys, or whole sections, that may differ when a run is resumed. A key of the ``schema`` that
        the folder's configuration lacks is younger than the run, which was made with what is its default now. All
        processes call this and check alike, so that all of them fail or none; only the main one writes, which has to
        hold the run. Let them meet at a barrier after it. Raises ``ConfigError`` if the folder belongs to something
        else.
        """
        config_file = path / "config.yaml"
        if config_file.exists():
            remedy = "give another run.name, or delete the folder"
            there = read_yaml(config_file, dict[str, Any], remedy=remedy)
            given = parse_yaml(config_text, "the configuration")
            found = changes(completed(there, schema) if schema else there, given, ignore)
            if found:
                listing = "\n".join(f"  - {change}" for change in found)
                raise ConfigError(
                    f"{path} holds a run with another configuration:\n{listing}\n"
                    "Give this run another name (run.name=...), use the old values to resume, or delete the folder."
                )
        elif path.exists() and (not path.is_dir() or any(not _OF_A_START.match(e.name) for e in path.iterdir())):
            raise ConfigError(
                f"{path} exists and is not a run (it has no config.yaml); give another run.name or run.dir, or move it"
            )
        elif is_main:
            path.mkdir(parents=True, exist_ok=True)
            write_text(config_file, config_text)
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the run to this process: ``ConfigError`` where another one is at it, which would write the same files.

        What a kill left half-written in the folder is finished or removed.
        """
        remedy = "wait for it, end it, or give another run.name"
        with locked(self.path / "lock", doing="is at this run", remedy=remedy):
            for folder in self._folders:
                tidy(folder)
            yield

    @property
    def _folders(self) -> tuple[Path, ...]:
        """Those in which a kill may leave something half-written."""
        return self.path, self.checkpoints, self.export

    def clear(self) -> None:
        """Finish or remove what a kill left of a run that is finished; nothing where there is nothing, another process
        is at it, or the folder can only be read."""
        if any(left for folder in self._folders for end in ("partial", "old") for left in folder.glob(f"*.{end}")):
            with suppress(InputError, OSError), self.held():
                pass

    @property
    def begun(self) -> bool:
        """Whether there are checkpoints."""
        return any(self.checkpoints.glob("step-*/manifest.json"))

    @property
    def trained(self) -> bool:
        """Whether the last step is done: what remains is to export."""
        states = sorted(self.checkpoints.glob("step-*/state.json"))
        try:
            state = json.loads(states[-1].read_text(encoding="utf-8")) if states else {}
        except (OSError, ValueError, RecursionError):  # damaged: resuming finds that out, and says so
            state = {}
        return self.finished or (
            isinstance(state, dict) and "step" in state and state["step"] == state.get("total_steps")
        )

    @property
    def finished(self) -> bool:
        """Whether ``finish`` was called, by this process or an earlier one."""
        return (self.path / "finished.json").exists()

    @property
    def results(self) -> dict[str, Any]:
        """What the finished run was finished with; ``InputError`` where that is damaged."""
        return read_json(self.path / "finished.json", dict[str, Any], remedy=FINISHED_REMEDY)

    def finish(self, results: dict[str, Any]) -> None:
        """Mark the run as finished, with its results; written again when what is shown beside them is known."""
        write_text(self.path / "finished.json", json.dumps(results, indent=1))

    def exported(self) -> dict[str, Any]:
        """Sizes and checksums of what is in ``export/``, but for the card, as ``finished.json`` keeps them."""
        files = sorted(file for file in self.export.rglob("*") if file.is_file() and file.suffix != ".md")
        return {
            file.relative_to(self.export).as_posix(): {"size": file.stat().st_size, "sha256": sha256(file)}
            for file in files
        }

    def export_defect(self) -> str | None:
        """What is missing of a finished run's export, or damaged, or None.

        Weights are held to their checksums. Other files need only be there, as a configuration may be edited.
        """
        if not (self.export / "config.json").is_file():
            return f"{self.export} is not there" if not self.export.exists() else f"{self.export} has no config.json"
        results, found = self.path / "finished.json", self.results.get("exported", {})
        for name, noted in checked(results, found, dict[str, _Noted], remedy=FINISHED_REMEDY).items():
            file = self.export / name
            if not file.is_file():
                return f"{file} is missing"
            if file.suffix == ".safetensors" and file.stat().st_size != noted.size:
                return f"{file} has {file.stat().st_size:,} bytes of {noted.size:,}"
            if file.suffix == ".safetensors" and sha256(file) != noted.sha256:
                return f"{file} has another checksum"
        return None


def changes(old: dict[str, Any], new: dict[str, Any], ignore: Sequence[str]) -> list[str]:
    """Where two configurations differ, but for the keys and sections to ``ignore``."""
    before, after = dict(_flat(old)), dict(_flat(new))
    keys = [k for k in {**before, **after} if not any(k == i or k.startswith(f"{i}.") for i in ignore)]

    def shown(values: dict[str, Any], key: str) -> str:
        return repr(values[key]) if key in values else "nothing"

    pairs = [(key, shown(before, key), shown(after, key)) for key in keys]
    return [f"{key}: {there} there, {here} given" for key, there, here in pairs if there != here]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class StoppedError(Exception):
    """A command was asked to stop by a signal, and what it had started has ended."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name, self.status = name, 128 + signal.Signals[name]


class StopSignal:
    """Turns SIGTERM and SIGINT (Ctrl-C) into a flag that the loop looks at; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested: str | None = None
        """Name of the first signal that came."""
        self._first_at = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.requested is None:
            self.requested, self._first_at = signal.Signals(number).name, now
        # Under torchrun one Ctrl-C arrives twice, from the terminal and from torchrun: within a second they are one.
        elif number == signal.SIGINT and now - self._first_at > 1:
            raise KeyboardInterrupt

"""What does not grow with the data, and what grows with processes: ``python -m benchmarks.scale [key=value ...]``.

Prints tables, keeps everything in ``benchmarks/results/``; with ``picture=FILE.png`` also draws it. Keys: ``parts``
(prepare,resume,processes), ``megabytes`` (0.5,5,50), ``examples`` (1e6,1e7,1e8,1e9), ``rounds`` (5), ``steps`` (20, of
each training). Every size is measured in a process of its own, one thread. Text is made up: words by Zipf's law. Its
tokenizer is trained once, on the smallest text, which also shows most of what is opened once, whatever the size.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import psutil

from benchmarks.scale_data import BLOCK, Numbered, write_text
from engine.environment import environment
from engine.order import Cursor, Steps
from engine.phase import Phase
from engine.plot import figure, save
from pretrain.corpus import CorpusSection
from pretrain.objectives import bert
from pretrain.pairs import Tokens
from pretrain.prepare import prepare
from pretrain.tokenizer import TokenizerSection

ROOT = Path(__file__).resolve().parents[1]
PHASE = Phase(batch_size=256, sequence_length=128)
PLACES = ("begin", "middle", "end")
_TRAINING = (
    "configs/pretrain/mlm_mini.yaml", "train.phases=[{batch_size: 64, sequence_length: 128}]", "train.log_every=1",
    "train.save_every=100%", "train.evaluate_every=100%", "train.evaluate_examples=64", "run.threads=1",
    "run.device=cpu", "tracking.wandb=off",
)  # fmt: skip


def main(arguments: list[str]) -> None:
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    known = {"parts": "prepare,resume,processes", "megabytes": "0.5,5,50", "examples": "1e6,1e7,1e8,1e9",
             "rounds": "5", "steps": "20", "picture": ""}  # fmt: skip
    chosen = {**known, **given}
    parts, rounds = chosen["parts"].split(","), int(chosen["rounds"])
    if len(given) < len(arguments) or not set(given) <= set(known) or not set(parts) <= set(known["parts"].split(",")):
        sys.exit("usage: python -m benchmarks.scale " + " ".join(f"[{name}={value}]" for name, value in known.items()))
    about = environment() | {"physical_cores": physical_cores()}
    print(f"{about['cpu']}, {about['cores']} cores for this process, {about['physical_cores']} of them physical")
    print(f"torch {about['torch']}, commit {about['commit']}{' with changes' if about['changed'] else ''}", flush=True)
    results: dict[str, Any] = {"environment": about}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "prepare" in parts:
            results["prepare"] = _prepare([float(size) for size in chosen["megabytes"].split(",")], folder, rounds)
        if "resume" in parts:
            results["resume"] = _resume([int(float(number)) for number in chosen["examples"].split(",")], rounds)
        if "processes" in parts:
            results["processes"] = _processes(folder, rounds, int(chosen["steps"]), about)
    kept = ROOT / "benchmarks" / "results" / f"scale-{time.strftime('%Y%m%d-%H%M%S')}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{kept}")
    if chosen["picture"]:
        draw(results, Path(chosen["picture"]))


def _prepare(sizes: list[float], folder: Path, rounds: int) -> list[dict[str, float]]:
    print(f"\n{'text':>10}{'characters/s':>14}{'peak':>10}{'draw, a step':>16}{'pack, a step':>16}", flush=True)
    tokenizer, rows = None, []
    for size in sizes:
        file = write_text(folder / f"{size}.txt", size)
        if tokenizer is None:
            data, section = CorpusSection(path=[str(file)], holdout=0.1), TokenizerSection(vocab_size=4000)
            tokenizer = str(_apart(_tokenizer, data, section, folder / "first"))
        row = {"megabytes": size, **_apart(prepare_and_take, file, tokenizer, folder / "data", rounds)}
        rows.append(row)
        print(
            f"{size:>7g} MB{row['characters_per_second']:>14,.0f}{row['memory_mib']:>6,.0f} MiB"
            f"{1e3 * row['draw_seconds']:>13.2f} ms{1e3 * row['pack_seconds']:>13.2f} ms",
            flush=True,
        )
        file.unlink()
    return rows


def _resume(numbers: list[int], rounds: int) -> list[dict[str, float]]:
    print(f"\nfirst batch from a cursor at\n{'examples':>16}", *(f"{place:>13}" for place in PLACES), "      peak")
    rows = []
    for number in numbers:
        row = {"examples": number, **_apart(first_batches, number, rounds)}
        rows.append(row)
        seconds = "".join(f"{1e3 * row[place]:>11.1f} ms" for place in PLACES)
        print(f"{number:>16,} {seconds}{row['memory_mib']:>6,.0f} MiB", flush=True)
    return rows


def _processes(folder: Path, rounds: int, steps: int, about: dict[str, Any]) -> dict[str, Any]:
    """Tokens per second of whole runs, one process and two by turns: the same steps of the same size."""
    _run(["-m", "pretrain.prepare", *_TRAINING, f"run.data_dir={folder}"])
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for processes in (1, 2) if turn % 2 == 0 else (2, 1):
            several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
            run = folder / "runs" / "pretrain" / f"{processes}-{turn}"
            places = [f"run.name={run.name}", f"run.dir={folder}/runs", f"run.data_dir={folder}"]
            launch = several if processes > 1 else []
            _run([*launch, "-m", "pretrain", *_TRAINING, *places, f"train.steps={steps}"])
            lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
            # The first steps meet cold caches and allocators, which a long run does once.
            speed = [row["tokens_per_second"] for row in lines if "tokens_per_second" in row][steps // 5 :]
            speeds[processes].append(statistics.harmonic_mean(speed))
    ratios = [two / one for one, two in zip(speeds[1], speeds[2], strict=True)]
    efficiency, physical = statistics.median(ratios) / 2, about["physical_cores"]
    units = "; the system reports one physical core for both" * (physical < 2 <= about["cores"])
    units += "; both share one core" * (about["cores"] < 2)
    print(
        f"\ntokens/s of one process {statistics.median(speeds[1]):,.0f}, of two {statistics.median(speeds[2]):,.0f}: "
        f"efficiency {efficiency:.0%} (rounds {min(ratios) / 2:.0%} to {max(ratios) / 2:.0%}){units}",
        flush=True,
    )
    return {"tokens_per_second": speeds, "ratios": ratios, "efficiency": efficiency, "steps": steps}


def prepare_and_take(file: Path, tokenizer: str, cache: Path, rounds: int) -> dict[str, float]:
    """Prepare a text, then draw and pack a step's examples from it: seconds, peak MiB, and MiB beyond the start."""
    before = _resident()
    data = CorpusSection(path=[str(file)], holdout=0.1)
    started = time.perf_counter()
    corpus = prepare(data, TokenizerSection(path=tokenizer), cache, workers=1)
    seconds, memory = time.perf_counter() - started, _peak()
    settings = {"sequence_length": PHASE.sequence_length, "seed": 1}
    source = bert.source(bert.Config(), cast(Tokens, corpus.train), corpus.tokenizer(), **settings)
    number = len(source.plan(0, 0))
    drawing = _median(lambda turn: source.plan(turn, 0), rounds)
    steps = Steps([source], [PHASE], total_steps=10**6, seed=1, micro_batch_tokens=8192)
    steps[0]
    return {
        "characters_per_second": corpus.manifest["read"]["characters"] / seconds,
        "memory_mib": memory,
        "grown_mib": memory - before,
        # A block is drawn at once; a step's share of that is its share of the block's examples.
        "draw_seconds": drawing / number * PHASE.last,
        "pack_seconds": _median(lambda turn: steps[turn + 1], 10 * rounds),
    }


def first_batches(num_examples: int, rounds: int) -> dict[str, float]:
    """Seconds to the first batch from the begin, the middle and near the end of an epoch, peak MiB, and MiB beyond the
    start."""
    before, seconds = _resident(), {}
    for place in PLACES:
        source = Numbered(num_examples)
        block = {"begin": 0, "middle": source.num_blocks // 2, "end": source.num_blocks - 2}[place]
        step = (block * BLOCK + BLOCK // 3) // PHASE.last
        start = (step, Cursor(block=block, offset=BLOCK // 3))
        resumed = lambda _, start=start, source=source: Steps(  # noqa: E731
            [source], [PHASE], total_steps=10**9, seed=1, micro_batch_tokens=8192, start=start
        )[start[0]]
        seconds[place] = _median(resumed, rounds)
    return {**seconds, "memory_mib": _peak(), "grown_mib": _peak() - before}


def _tokenizer(data: CorpusSection, section: TokenizerSection, cache: Path) -> Path:
    return prepare(data, section, cache, workers=1).path / "tokenizer"


def _median(call: Callable[[int], Any], rounds: int) -> float:
    seconds = []
    for turn in range(rounds):
        started = time.perf_counter()
        call(turn)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returns, made in a fresh process of one thread, whose peak memory is the call's own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        return pool.submit(call, *arguments).result()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _run(arguments: list[str]) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}")


def _resident() -> float:
    return psutil.Process().memory_info().rss / 2**20


def _peak() -> float:
    """Peak MiB of this process. What ``getrusage`` tells may be of the process that started it; Linux knows better."""
    with suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        if found:
            return int(found[1]) / 1024
    return psutil.Process().memory_info().rss / 2**20


def physical_cores() -> int:
    """Cores this process may use that share no units with each other, as far as the system tells."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    with suppress(OSError):
        return len({Path(topology.format(core)).read_text(encoding="utf-8").strip() for core in allowed})
    return min(len(allowed), psutil.cpu_count(logical=False) or 1)


def draw(results: dict[str, Any], picture: Path) -> None:
    """A panel for each quantity, from zero upwards, so that what is flat looks flat."""
    panels: list[tuple[str, str, dict[str, tuple[list[float], list[float]]]]] = []

    def panel(rows: list[dict[str, float]], along: str, across: str, lines: dict[str, str], scale: float = 1) -> None:
        x = [row[along] for row in rows]
        panels.append((along, across, {name: (x, [scale * row[key] for row in rows]) for name, key in lines.items()}))

    if rows := results.get("prepare"):
        panel(rows, "megabytes", "preparing, million characters/s", {"": "characters_per_second"}, 1e-6)
        panel(rows, "megabytes", "preparing, peak MiB", {"": "memory_mib"})
        panel(rows, "megabytes", "a step's batch, ms", {"drawing": "draw_seconds", "packing": "pack_seconds"}, 1e3)
    if rows := results.get("resume"):
        panel(rows, "examples", "first batch from a cursor, ms", {place: place for place in PLACES}, 1e3)
    if found := results.get("processes"):
        x = [float(turn) for turn in range(1, len(found["ratios"]) + 1)]
        panels.append(("round", "efficiency of two processes", {"": (x, [ratio / 2 for ratio in found["ratios"]])}))
    axes = figure(len(panels), f"{results['environment']['cpu']}, one thread each", columns=3)
    for axis, (along, across, lines) in zip(axes, panels, strict=True):
        for name, (x, y) in lines.items():
            axis.plot(x, y, "o-", label=name)
        axis.set(xlabel=along, ylabel=across, xscale="linear" if along == "round" else "log")
        axis.set_ylim(bottom=0)
        axis.set_xticks(x := next(iter(lines.values()))[0], [f"{value:g}" for value in x])
        axis.minorticks_off()
        if len(lines) > 1:
            axis.legend(fontsize=8)
    save(axes, picture)


if __name__ == "__main__":
    main(sys.argv[1:])

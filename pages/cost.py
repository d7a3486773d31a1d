"""What a run cost: device hours, tokens and arithmetic, from the record of its training."""

from __future__ import annotations

from dataclasses import dataclass

from pages.runs import Run


@dataclass(frozen=True)
class Cost:
    """Of the steps that count; what a killed process lost is not in the record, nor is the time of evaluations."""

    device: str
    processes: int
    device_hours: float
    tokens: float
    flops: float
    """Of training, by the run's own count."""
    memory_gib: float
    """Peak of one device, or of one process on CPUs."""

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.tokens * self.processes / (3600 * self.device_hours) if self.device_hours else 0.0


def cost_of(run: Run) -> Cost:
    """Summed over the intervals of the record; the processes are those of the start that an interval belongs to."""
    hours = tokens = flops = memory = 0.0
    before = 0
    for row in run.rows:
        seconds = row.get("seconds_per_step")
        if seconds is None:
            continue
        processes = max((start for start in run.starts if start.step <= before), key=lambda s: s.time, default=None)
        number = processes.processes if processes else 1
        spent = seconds * (row["step"] - before)
        before = row["step"]
        hours += spent * number / 3600
        tokens += row.get("tokens_per_second", 0.0) * spent
        flops += row.get("model_tflops_per_device", 0.0) * 1e12 * spent * number
        memory = max(memory, row.get("memory_gib", 0.0))
    if run.finished is not None and run.finished.tokens is not None:
        tokens = run.finished.tokens
    last = run.starts[-1] if run.starts else None
    gpus = (last.environment.get("gpus") or []) if last and last.device == "cuda" else []
    device = str(gpus[0]) if gpus else str(last.environment.get("cpu") or last.device) if last else "not recorded"
    return Cost(device, last.processes if last else 1, hours, float(tokens), flops, memory)

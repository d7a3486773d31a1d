"""``python -m pages.report runs=[runs]``: one page over chosen runs, as HTML that opens from disk and as Markdown.

What was run on which data with which command, curves beside baselines, scores with their spread beside what others
published, students, samples, evaluations in context, what it cost, and hashes and versions.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from pydantic import Field

from bertillery.config.section import Section as Keys
from bertillery.report.card import shortened
from bertillery.report.table import read_tsv
from bertillery.run.command import tool
from pages.blocks import Block, Facts, Lines, Page, Paragraph, Section, Table
from pages.chart import Chart, Series, number
from pages.cost import cost_of
from pages.render import write_page
from pages.runs import Compared, Found, Outcomes, Run, distinct, find
from pages.scores import read_published, task_tables

_MOST_LINES = 8
"""Runs in a chart: as many colours as can be told apart."""
_FEW = 3
"""With so many runs a chart also has their training curves."""
_SAMPLES = 5


class ReportSection(Keys):
    """Keys of a report."""

    runs: list[Path] = Field(default=[Path("runs")], min_length=1)
    """Folders of runs, of comparisons and of evaluations in context, or folders that hold some."""
    output: Path = Path("runs/report")
    """Folder for `report.html`, `report.md` and the charts of the latter."""


def main(arguments: Sequence[str]) -> int:
    """Write the page; returns the exit status."""
    return tool(arguments, help=__doc__, schema=ReportSection, action=_run)


def _run(section: ReportSection) -> int:
    found = find(section.runs)
    html, markdown = section.output / "report.html", section.output / "report.md"
    write_page(report(found), html, markdown)
    for each in found.left_out:
        print(f"left out: {each}")
    print(f"report      {html}   ({len(found.runs)} runs)\nmarkdown    {markdown}")
    return 0


def report(found: Found) -> Page:
    """The page."""
    done = sum(run.finished is not None for run in found.runs)
    published = read_published()
    return Page(
        "Report",
        f"{len(found.runs)} runs, {done} of them finished.",
        [
            Section("What was run", [*_overview(found)]),
            Section("Curves", [*_curves(found.runs)]),
            Section("Tasks", [t for task, runs in found.tasks.items() for t in task_tables(task, runs, published)]),
            Section("Students and teachers", [block for each in found.comparisons for block in _students(each)]),
            Section("Samples", [block for run in _one_of_each(found.runs) for block in _samples(run)]),
            Section("In context", [*_contexts(found.contexts)]),
            Section("Cost", [*_costs(found.runs)]),
            Section("Commands, inputs and versions", [block for run in found.runs for block in _origin(run)]),
        ],
    )


def _overview(found: Found) -> Iterator[Block]:
    rows = [["run", "stage", "learns", "from", "data", "steps", "result", "state"]]
    for run in found.runs:
        result = [_result(run), "finished" if run.finished else "not finished"]
        rows.append([run.name, run.stage, run.about, run.started_from, run.data, f"{run.steps:,}", *result])
    if found.runs:
        yield Table("Runs", rows, note="The result is the first metric of a task, else the held-out loss.")
    for each in found.left_out:
        yield Paragraph(f"Left out: {each}")


def _result(run: Run) -> str:
    if run.finished is None:
        return ""
    for split, scores in run.finished.scores.items():
        for metric, value in scores.items():
            return f"{metric.replace('_', ' ')} {100 * value:.2f} ({split.replace('_', ' ')})"
    for name, value in run.finished.held_out.items():
        return f"{name.replace('_', ' ')} {number(value)}"
    return ""


def _curves(runs: Sequence[Run]) -> Iterator[Block]:
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.stage, run.about), []).append(run)
    if any(name.startswith("held_out/") for run in runs for row in run.rows for name in row):
        yield Paragraph(
            "Strong lines are held-out data, faint ones training, grey ones what needs no model or no context."
        )
    for (_, about), group in groups.items():
        for name in _metrics(group):
            if chart := _chart(f"{about}: {name.replace('_', ' ')}", name, group):
                yield chart
        if len(group) > _MOST_LINES:
            yield Paragraph(f"The charts of {about} show {_MOST_LINES} of {len(group)} runs, the first by name.")


def _metrics(runs: Sequence[Run]) -> list[str]:
    """Metrics that were evaluated on held-out data, the loss and those of the results first."""
    names = {name for run in runs for row in run.rows for name in row}
    known = {name.removeprefix("held_out/") for name in names if name.startswith("held_out/")}
    named = [name for run in runs if run.finished for name in (*run.finished.held_out, *_scored(run))]
    return [name for name in dict.fromkeys(["loss", *named]) if name in known] or sorted(known)[:4]


def _scored(run: Run) -> list[str]:
    scores = run.finished.scores if run.finished else {}
    return [metric for split in scores.values() for metric in split]


def _chart(title: str, name: str, runs: Sequence[Run]) -> Chart | None:
    series: list[Series] = []
    levels: dict[str, float] = {}
    with_training = len(runs) <= _FEW
    for run in runs[:_MOST_LINES]:
        held_out, training = run.points(f"held_out/{name}"), run.points(f"train/{name}")
        if not held_out:
            continue
        series.append(Series(_short(run, runs), held_out, markers=True))
        if with_training and training:
            series.append(Series(f"{run.name}, training", training, like=len(series) - 1))
        levels |= {label: value for label, value in _levels(run, name).items() if label not in levels}
    if not series:
        return None
    return Chart(title, "step", name.replace("_", " "), series, dict([*levels.items()][:4]))


def _short(run: Run, runs: Sequence[Run]) -> str:
    """The name without what all of these runs share."""
    if len(runs) == 1:
        return "held out"
    seed = next((part for part in run.name.split("/") if part.startswith("seed-")), "")
    several = sum(each.group == run.group for each in runs) > 1
    return f"{run.group}, {seed}" if seed and several else run.group


def _levels(run: Run, name: str) -> dict[str, float]:
    if run.finished is None:
        return {}
    found = run.finished.baselines
    if not run.finished.scores:
        value = found.get(name)
        return {"baseline": float(value)} if isinstance(value, int | float) else {}
    split = next(iter(run.finished.scores))
    named = found.get(split, {})
    return {label: float(scores[name]) for label, scores in named.items() if name in scores}


def _students(compared: Compared) -> Iterator[Block]:
    if not compared.models:
        return
    speeds = min(compared.speeds, key=lambda each: (each["batch_size"], -each["length"]), default=None)
    seconds = {name: float(side["median_seconds"]) for name, side in (speeds or {}).get("sides", {}).items()}
    teacher = compared.models[0]["name"]
    rows = [["model", "score", "kept", "parameters", "MB", "milliseconds"]]
    points: dict[str, list[tuple[float, float]]] = {}
    spans: dict[str, list[tuple[float, float]]] = {}
    metrics: list[str] = []
    for model in compared.models:
        first = model["scores"][0] if model["scores"] else None
        name = f"{model['name']} (teacher)" if model["name"] == teacher else model["name"]
        milliseconds = 1e3 * seconds.get(model["name"], float("nan"))
        score = f"{first['metric'].replace('_', ' ')} {100 * first['score']:.2f}" if first else ""
        kept = f"{100 * first['kept']:.1f} %" if first and first["kept"] is not None else ""
        size = [f"{model['parameters']:,}", f"{model['bytes'] / 1e6:.1f}"]
        rows.append([name, score, kept, *size, number(milliseconds) if milliseconds == milliseconds else ""])
        if first and milliseconds == milliseconds:
            metrics.append(f"{first['dataset']}, {first['metric'].replace('_', ' ')} (%)")
            points[name] = [(milliseconds, 100 * first["score"])]
            seeds = [100 * value for value in first["seeds"] or [first["score"]]]
            spans[name] = [(min(seeds), max(seeds))]
    shape = f"batch of {speeds['batch_size']}, {speeds['length']} tokens, {compared.device.upper()}" if speeds else ""
    yield Table(f"{teacher} and its students", rows, note=f"Milliseconds: {shape}." if shape else "")
    if points:
        series = [Series(name, at, line=False, markers=True, spans=spans[name]) for name, at in points.items()]
        yield Chart(f"Score against latency, {shape}", "milliseconds", metrics[0], series[:_MOST_LINES], x_from=0.0)


def _one_of_each(runs: Sequence[Run]) -> list[Run]:
    """The first finished run of those that differ in the seed."""
    found: dict[tuple[str, str, str], Run] = {}
    for run in runs:
        if run.finished is not None:
            found.setdefault((run.stage, run.task, run.group), run)
    return [*found.values()]


def _samples(run: Run) -> Iterator[Block]:
    if run.finished is None:
        return
    for caption, text in (
        ("guesses for masked tokens", run.finished.fill_mask),
        ("continuations", run.finished.samples),
    ):
        if text:
            yield Lines(f"{run.name}: {caption}", [shortened(line) for line in text.splitlines()])
    file = run.path / "hardest.tsv"
    rows = read_tsv(file) if run.task and file.is_file() else []
    if len(rows) > 1:
        head, *rows = rows
        places = sorted({round(place * (len(rows) - 1) / (_SAMPLES - 1)) for place in range(_SAMPLES)})
        shown = [[rows[place][0], *rows[place][4:], rows[place][2], rows[place][3], rows[place][1]] for place in places]
        names = ["example", *(name.replace("_", " ") for name in head[4:]), "label", "prediction", "error"]
        note = "Sorted by error: the worst, the quartiles and the best; nothing is picked by hand."
        yield Table(f"{run.name}: predictions", [names, *([_cut(cell) for cell in row] for row in shown)], note=note)


def _cut(text: str, most: int = 240) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _contexts(contexts: Sequence[Outcomes]) -> Iterator[Block]:
    for task in dict.fromkeys(each.task for each in contexts):
        mine = [each for each in contexts if each.task == task]
        metrics = [*mine[0].outcomes[0]["metrics"]] if mine[0].outcomes else []
        shares = [name for name in metrics if name in ("accuracy", "accuracy_norm")]
        for name in shares or metrics[:1]:
            yield from _shots(task, name, mine)


def _shots(task: str, name: str, contexts: Sequence[Outcomes]) -> Iterator[Block]:
    share = name.startswith(("accuracy", "f1", "rouge"))
    scale, unit = (100.0, f"{name.replace('_', ' ')} (%)") if share else (1.0, name.replace("_", " "))
    series, rows = [], [["model", "worked examples", "seeds", "mean", "lowest", "highest", "standard error", "items"]]
    for each in contexts:
        points, spans = [], []
        for shots in dict.fromkeys(outcome["shots"] for outcome in each.outcomes):
            mine = [outcome for outcome in each.outcomes if outcome["shots"] == shots and name in outcome["metrics"]]
            values = [scale * outcome["metrics"][name] for outcome in mine]
            if not values:
                continue
            points.append((float(shots), mean(values)))
            spans.append((min(values), max(values)))
            error = mean(scale * outcome["errors"].get(name, 0.0) for outcome in mine)
            numbers = [f"{value:.2f}" for value in (mean(values), min(values), max(values), error)]
            rows.append([_model(each.model), str(shots), str(len(values)), *numbers, f"{mine[0]['num_items']:,}"])
        series.append(Series(_model(each.model), points, markers=True, spans=spans))
    floors = {floor: scale * value for floor, value in contexts[0].floors.items()} if share else {}
    rows += [[floor, "", "", f"{value:.2f}", "", "", "", ""] for floor, value in floors.items()]
    if any(len(each.points) > 1 for each in series):
        yield Chart(
            f"{task}: {name.replace('_', ' ')} in context", "worked examples", unit, series[:_MOST_LINES], floors, 0.0
        )
    yield Table(f"{task}, in context", rows)


def _model(start: str) -> str:
    parts = [part for part in Path(start).parts if part not in ("export", "/", ".", "..")]
    return "/".join(parts[-2:])


def _costs(runs: Sequence[Run]) -> Iterator[Block]:
    rows = [["run", "device", "devices", "device hours", "tokens", "tokens/s", "FLOP", "memory, GiB"]]
    costs = [cost_of(run) for run in runs]
    for run, cost in zip(runs, costs, strict=True):
        spent = [f"{cost.device_hours:.3f}", f"{cost.tokens:,.0f}", f"{cost.tokens_per_second:,.0f}"]
        last = [f"{cost.flops:.2e}", f"{cost.memory_gib:.2f}"]
        rows.append([run.name, cost.device, str(cost.processes), *spent, *last])
    if runs:
        hours, tokens = sum(cost.device_hours for cost in costs), sum(cost.tokens for cost in costs)
        flops = sum(cost.flops for cost in costs)
        rows.append(["all", "", "", f"{hours:.3f}", f"{tokens:,.0f}", "", f"{flops:.2e}", ""])
        note = (
            "Training alone, without evaluations and without steps that a killed process repeated. A device is a GPU, "
            "or a process on CPUs. FLOP: the operations of matrix products in training, by the run's own count."
        )
        yield Table("Cost of training", rows, note=note)


def _origin(run: Run) -> Iterator[Block]:
    pairs = [("command", run.command)]
    pairs += [(f"input: {name}", f"{each.what}, sha256 {each.sha256[:16]}") for name, each in run.inputs.items()]
    exported = run.finished.exported if run.finished else {}
    weights = {name: each for name, each in exported.items() if str(name).endswith(".safetensors")}
    pairs += [(f"export: {name}", f"sha256 {str(each.get('sha256', ''))[:16]}") for name, each in weights.items()]
    pairs.append(("seed", str(run.section("run").get("seed", ""))))
    kept = ("python", "torch", "transformers", "accelerate", "tokenizers")
    pairs += [("versions", distinct(_versions(start.environment, kept) for start in run.starts))]
    commits = (f"{str(e.get('commit'))[:12]}{' with changes' * bool(e.get('changed'))}" for e in _known(run))
    pairs += [("source", distinct(commits)), ("precision", distinct(start.precision for start in run.starts))]
    resumed = ", ".join(f"step {start.step:,}" for start in run.starts[1:])
    pairs.append(("starts", resumed and f"resumed after {resumed}"))
    yield Lines(run.name, [f"$ {run.command}"])
    yield Facts([(name, value) for name, value in pairs[1:] if value])


def _known(run: Run) -> list[dict[str, object]]:
    return [start.environment for start in run.starts if start.environment.get("commit")]


def _versions(environment: dict[str, object], names: Sequence[str]) -> str:
    return " ".join(f"{name} {environment[name]}" for name in names if name in environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

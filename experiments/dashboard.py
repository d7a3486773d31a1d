"""``python -m experiments.dashboard``: W&B workspaces for pretraining, fine-tuning, distillation and translation.

The workspaces are built from this file, so that a project's dashboards can be made again, or changed, like its code.
Sending one replaces nothing: W&B adds it as a saved view of the project. Without a key they are built and listed only.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bertillery.config.section import ConfigError, InputError, Section
from bertillery.config.types import Name
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.run.views import wandb_mode
from bertillery.system.printable import first_line

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


class DashboardSection(Section):
    """Keys of the dashboards."""

    project: Name = "bertillery"
    """Project in W&B, as `tracking.project` of the runs."""
    entity: str | None = None
    """User or team that owns the project; by default that of the key."""


@dataclass(frozen=True)
class Curve:
    """A line plot."""

    title: str
    metrics: tuple[str, ...] = ()
    """Names of metrics."""
    pattern: str = ""
    """Instead of names, a regular expression that they match."""
    log: bool = False
    """Whether the vertical axis is logarithmic."""


@dataclass(frozen=True)
class Board:
    """What one workspace shows."""

    title: str
    job_type: str
    """Stage whose runs it lists."""
    axis: str
    """What its curves are drawn over."""
    learning: tuple[Curve, ...]
    """What the runs are watched for."""
    best: tuple[str, ...]
    """Columns of the table of runs: numbers of the summary."""
    bars: tuple[str, ...]
    """Results that are compared as bars, one for each group of runs."""
    tables: tuple[str, ...] = ()
    media: tuple[str, ...] = ("curves",)


LOSS = Curve("loss", ("train/loss", "held_out/loss"))
EFFORT = (
    Curve("learning rate", ("learning_rate",)),
    Curve("gradient norm, before clipping", ("gradient_norm",), log=True),
    Curve("tokens per second", ("tokens_per_second",)),
    Curve("TFLOP/s of the model, each device", ("model_tflops_per_device",)),
    Curve("memory (GiB)", ("memory_gib",)),
    Curve("seconds per step", ("seconds_per_step",)),
)
"""Curves of every stage."""
METRICS = "accuracy|f1|macro_f1|matthews|pearson|spearman|exact_match|bleu|chrf"
BOARDS = (
    Board(
        "Pretraining", "pretrain", "tokens",
        learning=(
            LOSS,
            Curve("accuracies, held out", pattern="^held_out/.*accuracy$"),
            Curve("terms of the loss, held out", pattern="^held_out/(mlm|nsp|sop|lm|generator|discriminator|dea)$"),
            Curve("bits per byte, held out", ("held_out/bits_per_byte",)),
        ),
        best=("held_out/loss.min", "result/loss", "tokens"),
        bars=("result/loss", "tokens_per_second"),
        tables=("masked_tokens", "samples"),
    ),
    Board(
        "Fine-tuning", "finetune", "examples",
        learning=(LOSS, Curve("metrics, held out", pattern=f"^held_out/(.*/)?({METRICS})$")),
        best=("score", "held_out/loss.min", "examples"),
        bars=("score",),
        tables=("hardest_examples", "predictions"),
        media=("curves", "confusion", "entities", "questions"),
    ),
    Board(
        "Distillation", "distill", "tokens",
        learning=(
            LOSS,
            Curve("distance from the teacher, held out",
                  pattern="^held_out/(kl|cosine|soft|attention|hidden|embedding|queries|keys|values)$"),
            Curve("masked tokens: student and teacher, held out",
                  ("held_out/mlm_accuracy", "held_out/teacher_mlm_accuracy")),
            Curve("time spent on the teacher", ("share_of_teacher",)),
        ),
        best=("held_out/loss.min", "score", "tokens"),
        bars=("result/loss", "result/mlm_accuracy", "score"),
        tables=("masked_tokens", "hardest_examples"),
    ),
    Board(
        "Translation", "translate", "examples",
        learning=(
            LOSS,
            Curve("BLEU and chrF, held out", pattern="^held_out/(.*/)?(bleu|chrf)$"),
            Curve("perplexity, held out", ("held_out/perplexity",), log=True),
        ),
        best=("score", "held_out/perplexity.min", "examples"),
        bars=("score",),
        tables=("translations", "predictions"),
        media=("curves", "by_length", "alignments"),
    ),
)  # fmt: skip


def workspace(board: Board, *, entity: str, project: str) -> Workspace:
    """The board as an object of W&B's library, not yet sent."""
    import wandb_workspaces.reports.v2 as parts
    import wandb_workspaces.workspaces as spaces

    def lines(curves: Sequence[Curve]) -> list[Any]:
        return [
            parts.LinePlot(
                title=each.title,
                x=board.axis,
                y=[*each.metrics],
                metric_regex=each.pattern or None,
                log_y=each.log or None,
            )
            for each in curves
        ]

    results: list[Any] = [parts.BarPlot(title=name, metrics=[name], groupby="Group") for name in board.bars]
    results += [parts.MediaBrowser(title=name, media_keys=[name]) for name in board.media]
    tables: list[Any] = [parts.WeavePanelSummaryTable(table_name=name) for name in board.tables]
    return spaces.Workspace(
        name=board.title,
        entity=entity,
        project=project,
        sections=[
            spaces.Section(name="Learning", panels=lines(board.learning), is_open=True),
            spaces.Section(name="Results", panels=results, is_open=True),
            spaces.Section(name="Examples", panels=tables),
            spaces.Section(name="Speed and optimisation", panels=lines(EFFORT)),
        ],
        settings=spaces.WorkspaceSettings(x_axis=board.axis),
        runset_settings=spaces.RunsetSettings(
            filters=[spaces.Metric("JobType") == board.job_type],
            groupby=[spaces.Metric("Group")],
            pinned_columns=[f"summary:{name}" for name in board.best],
        ),
    )


def main(arguments: Sequence[str]) -> int:
    """Build the workspaces, send them if there is a key, and list them; returns the exit status."""
    return tool(arguments, help=__doc__, schema=DashboardSection, action=_run)


def _run(section: DashboardSection) -> int:
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ConfigError("the dashboards need the package wandb-workspaces: install this project with its extra dev")
    online = wandb_mode("auto") == "online"
    entity = section.entity or (_owner() if online else "nobody")
    rows = [["workspace", "runs", "panels", "where" if online else "not sent"]]
    for board in BOARDS:
        built = workspace(board, entity=entity, project=section.project)
        panels = sum(len(part.panels) for part in built.sections)
        rows.append([board.title, board.job_type, str(panels), _send(built) if online else "no W&B key"])
    print(markdown_table(rows))
    if not online:
        print("\nto send them: .venv/bin/wandb login, then the same command")
    return 0


def _owner() -> str:
    import wandb

    try:
        found = wandb.Api().default_entity
    except Exception as error:
        raise InputError(f"W&B does not answer ({first_line(error)}); give entity=..., or try again later") from None
    if not found:
        raise InputError("entity: the key has no default one; give entity=<user or team>")
    return found


def _send(built: Workspace) -> str:
    try:
        built.save()
    except Exception as error:
        raise InputError(
            f"W&B did not take the workspace {built.name!r} for {built.entity}/{built.project} ({first_line(error)}); "
            "check the key and entity=..., and that the project has a run"
        ) from None
    return built.url


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

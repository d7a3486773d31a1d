"""What a general distillation shows when it ends: its terms beside the teacher's, curves, and a model card."""

from __future__ import annotations

from pathlib import Path

from bertillery.report.plot import figure, save
from bertillery.report.table import card, escaped, markdown_table
from bertillery.run.tracking import read_series

_NAMES = {
    "loss": "loss, all terms weighted",
    "kl": "divergence from the teacher (T² nats)",
    "mlm": "MLM loss (nats)",
    "mlm_accuracy": "MLM accuracy",
    "cosine": "1 - cosine of last hidden states",
    "attention": "attention scores, squared error",
    "hidden": "hidden states, squared error",
    "embedding": "embeddings, squared error",
    "unexplained": "share of hidden states left unexplained",
    "query": "relations of queries (nats)",
    "key": "relations of keys (nats)",
    "value": "relations of values (nats)",
}
_TEACHER = "teacher_"


def results_table(held_out: dict[str, float]) -> str:
    """Held-out terms as a Markdown table, beside the teacher's own where it has one."""
    rows = [["held-out", "student", "teacher"]]
    for name, value in held_out.items():
        if not name.startswith(_TEACHER):
            teacher = held_out.get(f"{_TEACHER}{name}")
            rows.append([_NAMES.get(name, name), f"{value:.4f}", "" if teacher is None else f"{teacher:.4f}"])
    return markdown_table(rows)


def plot_terms(metrics_file: Path, names: list[str], picture: Path, title: str) -> None:
    """Every term over steps, in training and held out, with the teacher's as a line."""
    series = read_series(metrics_file)
    shown = [name for name in names if not name.startswith(_TEACHER)]
    axes = figure(len(shown), title)
    for axis, name in zip(axes, shown, strict=True):
        for part, style in (("train", "-"), ("held_out", "o-")):
            if points := series.get(f"{part}/{name}"):
                axis.plot(*zip(*points, strict=True), style, label=part.replace("_", " "), markersize=4)
        if teacher := series.get(f"held_out/{_TEACHER}{name}"):
            axis.axhline(teacher[-1][1], color="grey", linestyle="--", linewidth=1, label="teacher")
        axis.set_title(_NAMES.get(name, name), fontsize=9)
        axis.set(xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(axes, picture)


def model_card(name: str, table: str, facts: dict[str, str], text: str, *, fills_masks: bool) -> str:
    """The export's README.md."""
    head = {
        "library_name": "transformers",
        **({"pipeline_tag": "fill-mask"} if fills_masks else {}),
        "tags": ["bertillery", "distillation"],
    }
    lines = "\n".join(f"- {fact}: {escaped(value)}" for fact, value in facts.items())
    return card(head, name, "A student distilled with Bertillery.", lines, table, config=text)

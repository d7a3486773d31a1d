"""What a pretraining run shows: an example before it starts, numbers beside their baselines and a plot when it ends."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, pipeline

from bertillery.data.tokenizer import is_unigram
from bertillery.engine.batch import PackedBatch
from bertillery.engine.evaluate import HeldOut
from bertillery.models.export import warnings_of_transformers
from bertillery.report.plot import figure, save
from bertillery.report.table import card, escaped, markdown_table
from bertillery.run.tracking import read_series
from bertillery.system.printable import printable

_LABELS = {"pair_labels": ("IsNext", "NotNext (random)"), "order_labels": ("in order", "swapped (or random)")}
_PAIR_TASKS = {"pair_labels": "nsp", "order_labels": "sop"}


def show_example(batch: PackedBatch, tokenizer: PreTrainedTokenizerBase, index: int = 0) -> str:
    """One example decoded, its masks, if it has any, as ``[MASK]<-original``, and its pair label; ``##`` is what
    continues a word."""
    start, end = batch.input.offsets[index : index + 2].tolist()
    tokens = _pieces(tokenizer, batch.input.ids[start:end])
    nothing = torch.empty(0, dtype=torch.int64)
    positions = batch.targets.get("masked_positions", nothing).tolist()
    originals = _pieces(tokenizer, batch.targets.get("masked_ids", nothing))
    alone = {place for place, token in enumerate(tokens) if token in tokenizer.all_special_tokens}
    masked = {p - start: original for p, original in zip(positions, originals, strict=True) if start <= p < end}
    words: list[str] = []
    for place, token in enumerate(tokens):
        if place in masked:
            words.append(f"{token}<-{masked[place]}" if token != masked[place] else f"{token}<-kept")
        elif token.startswith("##") and place - 1 not in alone | masked.keys():
            words[-1] = words[-1].removeprefix("▁") + token[2:]
        else:
            words.append(token)
    label = ""
    for name, meanings in _LABELS.items():
        if name in batch.targets:
            label = f"\n  label: {meanings[int(batch.targets[name][index])]}"
    text = printable(unicodedata.normalize("NFC", " ".join(words)))  # an uncased vocabulary has its Hangul in parts
    predicted = f", {len(masked)} predicted" * bool(masked)
    return f"  {text}\n  {end - start} tokens{predicted}{label}"


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> list[str]:
    """The tokens as WordPiece writes them, who marks what continues a word; Unigram marks what begins one."""
    tokens = [*tokenizer.convert_ids_to_tokens(ids.tolist())]
    if not is_unigram(tokenizer):
        return tokens
    special = set(tokenizer.all_special_tokens)
    return [t if t in special else t[1:] or t if t.startswith("▁") else f"##{t}" for t in tokens]


_ROWS = {
    "mlm": ("MLM loss (nats)", "unigrams, and copying"),
    "mlm_accuracy": ("MLM accuracy", "the same"),
    "nsp": ("NSP loss (nats)", "label entropy"),
    "nsp_accuracy": ("NSP accuracy", "majority class"),
    "sop": ("SOP loss (nats)", "label entropy"),
    "sop_accuracy": ("SOP accuracy", "majority class"),
    "generator": ("generator's MLM loss (nats)", "unigrams, and copying"),
    "generator_accuracy": ("generator's MLM accuracy", "the same"),
    "sampled_accuracy": ("sampled tokens that are right", "a draw from the same"),
    "discriminator": ("detection loss (nats)", "label entropy"),
    "auc": ("detection AUC", "chance"),
    "discriminator_accuracy": ("detection accuracy", "calling all tokens original"),
    "precision": ("detection precision", "share of replaced tokens"),
    "recall": ("detection recall", "calling all tokens original"),
}
"""What a term is called in the results, and what its baseline is; also the order of the panels of the plot."""


def baselines(held_out: HeldOut, unigrams: np.ndarray, values: dict[str, float], *, mask_id: int) -> dict[str, float]:
    """What guessing without looking at the context reaches on the same held-out examples; ``values`` are the model's.

    ``mlm`` and ``mlm_accuracy``: :func:`without_context` with the training text's unigrams; ``nsp_accuracy`` or
    ``sop_accuracy``: always the more frequent label; ``nsp`` or ``sop``: the labels' entropy. The same of ELECTRA's
    generator and discriminator; what share of tokens is replaced is up to the generator, so the discriminator's
    baselines follow from the measured one.
    """
    batches = held_out.batches()
    labels = np.concatenate([batch.targets["masked_ids"].numpy() for batch in batches])
    seen = np.concatenate([batch.input.ids[batch.targets["masked_positions"]].numpy() for batch in batches])
    loss, accuracy, sampled = without_context(labels, seen, unigrams, mask_id=mask_id)
    found = {"mlm": loss, "mlm_accuracy": accuracy}
    for name in _PAIR_TASKS.keys() & batches[0].targets.keys():
        second = float(np.concatenate([batch.targets[name].numpy() for batch in batches]).mean())
        found |= {f"{_PAIR_TASKS[name]}_accuracy": max(second, 1 - second), _PAIR_TASKS[name]: _entropy(second)}
    if "replaced" in values:
        replaced = values["replaced"]
        found |= {"generator": loss, "generator_accuracy": accuracy, "sampled_accuracy": sampled}
        found |= {"discriminator": _entropy(replaced), "auc": 0.5, "precision": replaced, "recall": 0.0}
        found["discriminator_accuracy"] = 1 - replaced
    return {name: value for name, value in found.items() if name in values}


def without_context(
    labels: np.ndarray, seen: np.ndarray, unigrams: np.ndarray, *, mask_id: int
) -> tuple[float, float, float]:
    """Cross-entropy, accuracy and share of right draws of a model that sees nothing but the position itself.

    ``labels`` (M,) are the tokens to predict, ``seen`` (M,) what stands there: [MASK], the token itself, or another.
    Of a masked token it knows the ``unigrams`` (counts, smoothed by one); a token that is to be predicted and stands
    there was kept or replaced, so it is believed as often as such tokens are right. That is learned without any
    context, and it is no little: where a tenth is kept and a tenth replaced it is worth more than half a nat.
    """
    share = (unigrams + 1) / (unigrams + 1).sum()
    visible, kept = seen != mask_id, seen == labels
    copied = kept[visible].mean() if visible.any() else 0.0
    chance = share[labels] * np.where(visible, 1 - copied, 1.0) + np.where(visible & kept, copied, 0.0)
    guess = np.where(visible & (copied > share.max()), seen, int(np.argmax(unigrams)))
    return float(-np.log(chance).mean()), float((guess == labels).mean()), float(chance.mean())


def _entropy(share: float) -> float:
    return float(-sum(p * np.log(p) for p in (share, 1 - share) if p > 0))


def results_table(values: dict[str, float], baseline: dict[str, float]) -> str:
    """Held-out numbers beside their baselines, as a Markdown table."""
    rows = [
        (title, f"{values[name]:.4f}", f"{baseline[name]:.4f}" if name in baseline else "", what)
        for name, (title, what) in _ROWS.items()
        if name in values
    ]
    return markdown_table([("held-out", "model", "baseline", "baseline is"), *rows])


def plot_curves(metrics_file: Path, baseline: dict[str, float], picture: Path, title: str) -> None:
    """Loss and accuracy over steps, training and held-out, with the baselines as lines."""
    series = read_series(metrics_file)
    panels = [name for name in _ROWS if f"train/{name}" in series]
    axes = figure(len(panels), title)
    for axis, name in zip(axes, panels, strict=True):
        axis.plot(
            *zip(*series[f"train/{name}"], strict=True), color="tab:blue", alpha=0.6, linewidth=1, label="training"
        )
        if f"held_out/{name}" in series:
            axis.plot(
                *zip(*series[f"held_out/{name}"], strict=True), "o-", color="tab:orange", markersize=4, label="held out"
            )
        if name in baseline:
            axis.axhline(baseline[name], color="grey", linestyle="--", linewidth=1, label="baseline")
        axis.set(title=name, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(axes, picture)


def fill_masks(export: Path, sentences: list[str]) -> str:
    """The exported model's three best guesses for [MASK] in each sentence, through transformers' own pipeline."""
    with warnings_of_transformers():  # the pipeline's model has no use for the pooler and says so
        fill: Any = pipeline("fill-mask", model=str(export), device="cpu", top_k=3, trust_remote_code=False)
    lines = []
    with torch.no_grad():
        for sentence in sentences:
            guesses = fill(sentence.replace("[MASK]", fill.tokenizer.mask_token))
            lines.append(
                f"  {sentence}\n    " + ", ".join(f"{printable(g['token_str'])} ({g['score']:.0%})" for g in guesses)
            )
    return "\n".join(lines)


def model_card(name: str, table: str, facts: dict[str, str], config: str, fills_masks: bool) -> str:
    """The export's README.md: what it is, how it was measured, and the configuration that makes it again."""
    head = {"library_name": "transformers", "tags": ["bertillery", *["fill-mask"] * fills_masks]}
    lines = "\n".join(f"- {key}: {escaped(value)}" for key, value in facts.items())
    return card(head, name, "Pretrained with Bertillery.", table, lines, config=config)

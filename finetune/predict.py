"""A model that predicts, its predictions for whole splits, gathered from all processes, and the task's metrics.

F1, Matthews' and the other correlations of a set are not means over its batches, so nothing is averaged: every example
is predicted once, by one process, and the metrics see all of them.

Legend: M rows of outputs of some examples, K outputs of a row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from bertillery.engine.batch import PackedBatch, ranges
from bertillery.engine.evaluate import HeldOut, Sums
from bertillery.engine.loader import shares
from bertillery.engine.objective import Objective, Term
from bertillery.models.encoders import sequence_logits
from bertillery.models.flops import encoder_flops
from bertillery.models.layers.chunks import LOGITS, in_chunks
from bertillery.models.layers.cross_entropy import cross_entropies
from finetune.examples import Examples

if TYPE_CHECKING:
    from finetune.task_types.base import TaskType


class Predictor(Objective):
    """The objective of a task: a stock model whose head sees the rows that it needs, and what its logits mean."""

    entries: ClassVar[tuple[str, ...]] = ("logits",)
    auxiliary_lm: float = 0.0
    """Weight of the language model's loss beside the task's, of a causal model (GPT-1's is 0.5)."""
    class_weights: Tensor | None
    """Weights (L,) of the classes in the loss."""
    orders: int = 1
    """Sequences of an example: 2 where a pair is read in both orders and the states are added."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("class_weights", None, persistent=False)  # of the data, so no part of a checkpoint

    def logits(self, batch: PackedBatch) -> Tensor:
        """(M, K), or (M,), in float32; by default a row for each example, from its [CLS] or its extract token."""
        return sequence_logits(self.model, batch.input, orders=self.orders).float()

    @abstractmethod
    def terms(self, logits: Tensor, batch: PackedBatch) -> dict[str, Term]:
        """Sums of the batch by name; the first one is the task's loss."""

    def log_probabilities(self, logits: Tensor, batch: PackedBatch) -> Tensor | None:
        """Logarithms of the probabilities (M, K) or (M,) of the logits, which sum to 1 over whatever excludes one
        another; None for a score. For logits divided by a temperature these are the softened ones."""
        return None

    def distributions(self, logits: Tensor) -> int:
        """How many distributions each row of ``logits`` stands for; the task's loss is the mean over them."""
        return 1

    def predict(
        self, batch: PackedBatch, autocast: Callable[[], Any], *, labelled: bool
    ) -> tuple[dict[str, Term], Tensor]:
        """The terms, where there are labels, and the outputs (M, K) of a batch."""
        with autocast():
            logits = self.logits(batch)
        return self.terms(logits, batch) if labelled else {}, self.outputs(logits, batch)

    @abstractmethod
    def outputs(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """(M, K) numbers that may be averaged over models: probabilities, or scores. The rows of an example follow
        those of the example before it."""

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """The terms of the batch, and ``lm`` where the language model is trained, too."""
        if not self.auxiliary_lm:
            return self.terms(self.logits(batch), batch)
        states: list[Tensor] = []
        base: Any = self.model.base_model
        with base.register_forward_hook(lambda _, __, output: states.append(output.last_hidden_state[0])):
            terms = self.terms(self.logits(batch), batch)
        table = base.get_input_embeddings().weight
        return terms | {"lm": Term(next_token_means(states[0], table, batch), "sequences", self.auxiliary_lm)}

    def exported(self) -> PreTrainedModel:
        """The fine-tuned model."""
        return self.model

    @torch.no_grad()
    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass of the encoder, and of the language model's head where it is trained; the task's
        head, with its few rows, is not counted."""
        config, total = self.model.config, encoder_flops(self.model.config, batch.input)
        if self.auxiliary_lm:
            total += 2.0 * (batch.num_tokens - batch.input.num_sequences) * config.hidden_size * config.vocab_size
        return 3 * total


def next_token_means(hidden: Tensor, table: Tensor, batch: PackedBatch) -> Tensor:
    """The sum over sequences of the mean cross-entropy of their tokens after the first, from the states (T, H) under
    the tied embeddings (V, H): GPT-1's code weighs long and short sequences alike."""
    stream = batch.input
    lengths = stream.offsets.diff()
    rows = torch.ones(stream.num_tokens, dtype=torch.bool, device=hidden.device)
    rows[stream.last_rows] = False
    following = torch.ones_like(rows)
    following[stream.first_rows] = False
    shares = (1.0 / (lengths - 1)).repeat_interleave(lengths)[rows]

    def sums(hidden: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, ...]:
        found = cross_entropies(F.linear(hidden, table.to(hidden.dtype)), targets)
        return ((found.losses * shares).sum(),)

    inputs = hidden[rows], stream.ids[following], shares
    return in_chunks(sums, *inputs, parameters=[table], width=len(table), most=LOGITS)[0]


@torch.no_grad()
def predict(
    accelerator: Accelerator, objective: nn.Module, examples: Examples, rows: np.ndarray, *, micro_batch_tokens: int
) -> tuple[np.ndarray, dict[str, float]]:
    """Outputs (M, K), float32, and the means of the objective's terms if there are labels.

    The outputs of a row, as many as ``examples.num_outputs`` says, follow those of the row before it. All processes
    call it with the same rows and get the same; each predicts its part, no example twice.
    """
    plain: Any = accelerator.unwrap_model(objective)
    sums, parts, training = Sums(), [], plain.training
    plain.eval()
    lengths = rows["length"].astype(np.int64)
    # Of fewer rows than processes, each predicts all: what is gathered is the same several times, and so are the means.
    enough = len(rows) >= accelerator.num_processes
    ranks, rank = (accelerator.num_processes, accelerator.process_index) if enough else (1, 0)
    for part in shares(lengths, micro_batch_tokens, ranks, rank):
        batch = examples.collate(rows[part]).to(accelerator.device)
        terms, outputs = plain.predict(batch, accelerator.autocast, labelled=examples.labels is not None)
        sums.add(terms, batch.counts)
        parts.append((part, outputs.float().cpu().numpy()))
    plain.train(training)
    outputs = in_order(gather_object(parts), examples.num_outputs(rows["index"]))
    return outputs, sums.means(accelerator)


def in_order(parts: Sequence[tuple[np.ndarray, np.ndarray]], sizes: np.ndarray) -> np.ndarray:
    """Rows of outputs (M, ...), float32, of all examples, from those of parts: numbers of examples, and their rows.

    ``sizes`` (N,) are the rows of each example; they follow those of the example before it.
    """
    starts = np.cumsum(sizes) - sizes
    found = np.empty((int(sizes.sum()), *parts[0][1].shape[1:]), np.float32)
    for part, values in parts:
        found[np.repeat(starts[part], sizes[part]) + ranges(sizes[part])] = values
    return found


class Scored(HeldOut):
    """Validation splits, scored by the task's metrics; one metric on the first split decides which is the best."""

    def __init__(
        self, splits: dict[str, Examples], task_type: TaskType, *, num_examples: int | None, best_by: str | None = None
    ) -> None:
        """``best_by`` is the metric that decides; the task's first where not given."""
        (_, first), *others = splits.items()
        super().__init__(first, num_examples=num_examples)
        drawn = [self.rows, *(HeldOut(source, num_examples=num_examples).rows for _, source in others)]
        self._splits = [(name, source, rows) for (name, source), rows in zip(splits.items(), drawn, strict=True)]
        self._task_type, self._best_by = task_type, best_by or task_type.section.metrics[0]

    def seconds(self, accelerator: Accelerator, objective: nn.Module) -> float:
        """That of the first split, and as much for each token of the others."""
        tokens = [int(rows["length"].sum()) for _, _, rows in self._splits]
        return super().seconds(accelerator, objective) * sum(tokens) / tokens[0]

    def score(self, values: dict[str, float]) -> float:
        """The deciding metric on the first validation split."""
        return values[self._best_by]

    def better(self) -> dict[str, Literal["lower", "higher"]]:
        """The same, and of the metrics, of all splits, the higher ones."""
        prefixes = ["" if source is self._source else f"{name}/" for name, source, _ in self._splits]
        names = [f"{prefix}{metric}" for prefix in prefixes for metric in self._task_type.section.metrics]
        higher: dict[str, Literal["lower", "higher"]] = dict.fromkeys(names, "higher")
        return super().better() | higher

    def evaluate(self, accelerator: Accelerator, objective: nn.Module) -> dict[str, float]:
        """Loss and metrics; those of further splits are called ``<split>/<name>``."""
        found: dict[str, float] = {}
        for name, examples, rows in self._splits:
            assert examples.labels is not None
            outputs, means = predict(accelerator, objective, examples, rows, micro_batch_tokens=self.micro_batch_tokens)
            predictions = self._task_type.decide(outputs, examples, rows["index"])
            values = means | self._task_type.scores(predictions, examples.labels[rows["index"]], outputs)
            found |= {key if examples is self._source else f"{name}/{key}": value for key, value in values.items()}
        return found

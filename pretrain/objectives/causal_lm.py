"""Causal language modelling with GPT-2's network: every token is predicted from those before it (Radford et al. 2019).

A document t1 ... tn is the sequence EOT t1 ... tn EOT, where EOT is the end-of-text token. Inputs are all of it but the
last token, targets all but the first, so an epoch predicts every token once. A longer document is cut into consecutive
windows. Documents do not see each other, or, with ``cross_document``, the documents of an epoch are one sequence that
is cut into windows of full length, as in GPT-2 and GPT-3 (Brown et al. 2020, appendix B).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from bertillery.config.types import Epsilon
from bertillery.data.causal_tokenizer import piece_bytes
from bertillery.engine.batch import PackedBatch, pack, ranges
from bertillery.engine.objective import Objective, Term
from bertillery.engine.rng import Permutation, key
from bertillery.engine.schedule import EpochSize
from bertillery.models.encoders import Role, encode
from bertillery.models.flops import encoder_flops
from bertillery.models.layers.attention import NAME
from bertillery.models.layers.chunks import word_sums
from bertillery.models.load import vocabulary_size
from bertillery.system.printable import printable
from pretrain.config import ObjectiveSection
from pretrain.mixture import Mixture
from pretrain.model import ModelSection
from pretrain.pairs import Tokens

ROW = np.dtype(
    [("epoch", np.int64), ("rank", np.int64), ("offset", np.int64), ("length", np.int32), ("key", np.uint64)]
)
"""A window: the place of its first document in the order of the epoch, the place of its first input in the sequence of
that document (0 is EOT), its length, and the key of further draws."""
_BLOCK_TOKENS = 1 << 24
_LN_2 = math.log(2)


class Config(ObjectiveSection):
    """Section of this objective."""

    family: ClassVar[str] = "gpt2"
    num_texts: ClassVar[int] = 1
    role: ClassVar[Role] = "decoder"
    units: ClassVar[Literal["sentences", "documents"]] = "documents"
    defaults: ClassVar[Mapping[str, Any]] = {
        "data": {"units": "documents"},
        "tokenizer": {"type": "byte_bpe"},
        "model": {"layer_norm_eps": 1e-5},
    }
    keys: ClassVar[Mapping[str, str]] = {
        "intermediate_size": "n_inner",
        "hidden_act": "activation_function",
        "hidden_dropout_prob": "resid_pdrop",
        "attention_probs_dropout_prob": "attn_pdrop",
        "layer_norm_eps": "layer_norm_epsilon",
    }
    type: Literal["causal_lm"] = "causal_lm"
    cross_document: bool = False
    """Cut windows from all documents as one sequence, in which a document sees those before it."""
    positions_range: Epsilon = 0.02
    """Deviation of the position embeddings at the start; GPT-2's code has 0.01."""


class Source:
    """Windows of the documents of a prepared corpus, which an epoch visits once in a keyed permutation, or as often as
    a mixture says."""

    def __init__(
        self,
        config: Config,
        tokens: Tokens,
        tokenizer: PreTrainedTokenizerBase,
        *,
        sequence_length: int,
        seed: int,
        mixture: Mixture | None = None,
    ) -> None:
        self.tokens, self.tokenizer, self.seed, self.length = tokens, tokenizer, seed, sequence_length
        self._cross, self._end = config.cross_document, cast(int, tokenizer.eos_token_id)
        bytes_of = piece_bytes(tokenizer)
        self._bytes = np.zeros(0, np.int64) if bytes_of is None else bytes_of
        self._starts = np.asarray(tokens.sentences)[np.asarray(tokens.documents)].astype(np.int64)
        """(D+1,) where in ``ids`` each document starts."""
        self._mixture = mixture
        self.num_documents = mixture.num_documents if mixture else len(self._starts) - 1
        """Documents that an epoch visits."""
        whole = int(self._starts[-1])
        self._block = max(1, min(self.num_documents, _BLOCK_TOKENS * self.num_documents // max(1, whole)))
        self.num_blocks = -(-self.num_documents // self._block)

    def examples(self, epoch: int, block: int) -> np.ndarray:
        """Rows (N,) of :data:`ROW`: the windows of the block's documents."""
        ranks = np.arange(block * self._block, min((block + 1) * self._block, self.num_documents))
        sizes = self._sizes(epoch, ranks)
        if self._cross:
            starts = np.cumsum(sizes) - sizes
            firsts = np.arange(0, sizes.sum(), self.length)
            which = np.searchsorted(starts, firsts, side="right") - 1
            rank, offset = ranks[which], firsts - starts[which]
            lengths = np.minimum(self.length, sizes.sum() - firsts)
        else:
            windows = -(-sizes // self.length)
            rank, offset = np.repeat(ranks, windows), ranges(windows) * self.length
            lengths = np.minimum(self.length, np.repeat(sizes, windows) - offset)
        rows = np.zeros(len(rank), ROW)
        rows["epoch"], rows["rank"], rows["offset"], rows["length"] = epoch, rank, offset, lengths
        rows["key"] = key(self.seed, epoch, rank, offset)
        return rows

    def epoch_size(self) -> EpochSize:
        """Windows and tokens of an epoch; exact for one block, else an estimate from the first one."""
        rows, blocks = self.examples(0, 0), self.num_documents / self._block
        return EpochSize(len(rows) * blocks, int(rows["length"].sum(dtype=np.int64)) * blocks)

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """The packed batch of some windows, with the targets ``next_ids`` (T,) and the counts ``tokens`` and
        ``bytes``."""
        lengths = rows["length"].astype(np.int64)
        ids = self._read(rows, lengths + 1)
        last = np.cumsum(lengths + 1) - 1
        inputs, targets = np.delete(ids, last), np.delete(ids, last - lengths)
        size = int(self._bytes[targets].sum()) if len(self._bytes) else 0
        return pack(inputs, None, lengths, targets={"next_ids": targets}, counts={"bytes": size})

    def show(self, batch: PackedBatch, tokenizer: PreTrainedTokenizerBase) -> str:
        """The first window as text."""
        end = int(batch.input.offsets[1])
        text = printable(str(tokenizer.decode(batch.input.ids[:end])))
        following = printable(str(tokenizer.decode(batch.targets["next_ids"][end - 1 : end])))
        return f"  {text}\n  {end} tokens, the last target: {following!r}"

    def _sizes(self, epoch: int, ranks: np.ndarray) -> np.ndarray:
        """Inputs of the documents of these places: EOT and their tokens."""
        documents = self._documents(epoch, ranks)
        return self._starts[documents + 1] - self._starts[documents] + 1

    def _documents(self, epoch: int, ranks: np.ndarray) -> np.ndarray:
        if self._mixture:
            return self._mixture.documents(epoch, ranks)
        return Permutation(self.num_documents, self.seed, epoch)(ranks)

    def _read(self, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """``lengths`` tokens from the beginning of each window, end to end, through the documents that follow."""
        result = np.full(int(lengths.sum()), self._end, np.int64)
        place, left = np.cumsum(lengths) - lengths, lengths.copy()
        rank, offset = rows["rank"].copy(), rows["offset"].copy()
        alive = np.flatnonzero(left)
        while len(alive):
            for epoch in np.unique(rows["epoch"][alive]):
                at = alive[(rows["epoch"][alive] == epoch) & (rank[alive] < self.num_documents)]
                documents = self._documents(int(epoch), rank[at])
                start = self._starts[documents]
                size = self._starts[documents + 1] - start + 1
                taken = np.minimum(left[at], size - offset[at])
                opening = (offset[at] == 0).astype(np.int64)  # EOT is there already
                number = taken - opening
                cells = np.repeat(place[at] + opening, number) + ranges(number)
                result[cells] = self.tokens.ids[np.repeat(start + offset[at] + opening - 1, number) + ranges(number)]
                place[at] += taken
                left[at] -= taken
                rank[at] += 1
                offset[at] = 0
            # A document ends with the EOT that opens the next one; behind the last document nothing else follows.
            ended = left == 1 if not self._cross else (left == 1) & (rank >= self.num_documents)
            left[ended] = 0
            alive = np.flatnonzero(left)
        return result


class CausalLm(Objective):
    """A stock ``GPT2LMHeadModel``."""

    def __init__(self, config: Config, sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
        """Draws weights as GPT-2 does: from a normal distribution, residual projections scaled by the square root of
        their number, biases 0 (Radford et al. 2019, section 2.3)."""
        super().__init__()
        self.model: Any = GPT2LMHeadModel(gpt2_config(sizes, tokenizer))
        initialize(self.model, sizes.initializer_range, config.positions_range)
        self._counts_bytes = piece_bytes(tokenizer) is not None

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        """Terms ``lm``, the mean cross-entropy of the next token, ``lm_accuracy`` and ``bits_per_byte``."""
        head, targets = self.model.lm_head, batch.targets["next_ids"]
        hidden = encode(self.model, batch.input)
        loss, right = word_sums(
            head, hidden, targets, parameters=head.parameters(), vocab_size=self.model.config.vocab_size
        )
        common = "unigrams"
        terms = {
            "lm": Term(loss, "tokens", title="LM loss (nats per token)", baseline=common),
            "lm_accuracy": Term(right, "tokens", 0.0, title="next token accuracy", direction="higher", baseline=common),
        }
        if self._counts_bytes:
            bits = loss.detach() / _LN_2
            terms["bits_per_byte"] = Term(bits, "bytes", 0.0, title="bits per byte", baseline=common)
        return terms

    def baselines(
        self, batches: Sequence[PackedBatch], unigrams: np.ndarray, values: Mapping[str, float]
    ) -> dict[str, float]:
        """Those of a model that knows how frequent each token is; counts (V,) are smoothed by one. The number of
        documents, and so of EOT, is that of the batches."""
        targets = np.concatenate([batch.targets["next_ids"].numpy() for batch in batches])
        share = (unigrams + 1.0) / (unigrams + 1.0).sum()
        end = self.model.config.eos_token_id
        ends = float((targets == end).mean())
        share = share / (1 - share[end]) * (1 - ends)
        share[end] = ends
        loss = float(-np.log(share[targets]).mean())
        found = {"lm": loss, "lm_accuracy": float((targets == share.argmax()).mean())}
        if self._counts_bytes:
            size = sum(batch.counts["bytes"] for batch in batches)
            found["bits_per_byte"] = loss * len(targets) / max(1, size) / _LN_2
        return found

    def exported(self) -> PreTrainedModel:
        """The model with its head."""
        return self.model

    def flops(self, batch: PackedBatch) -> float:
        """Three times the forward pass: the layers, and the vocabulary projection of every token."""
        config = self.model.config
        return 3 * (encoder_flops(config, batch.input) + 2.0 * batch.num_tokens * config.n_embd * config.vocab_size)


def gpt2_config(sizes: ModelSection, tokenizer: PreTrainedTokenizerBase) -> GPT2Config:
    """GPT-2's configuration of these sizes, with the packed attention."""
    end = tokenizer.eos_token_id
    settings: dict[str, Any] = {
        "vocab_size": vocabulary_size(tokenizer),
        "n_positions": sizes.max_position_embeddings,
        "n_embd": sizes.hidden_size,
        "n_layer": sizes.num_hidden_layers,
        "n_head": sizes.num_attention_heads,
        "embd_pdrop": sizes.hidden_dropout_prob,
        "initializer_range": sizes.initializer_range,
        **{name: getattr(sizes, key) for key, name in Config.keys.items()},
    }
    settings |= {"bos_token_id": end, "eos_token_id": end, "attn_implementation": NAME}
    return GPT2Config(**settings)


def initialize(model: GPT2LMHeadModel, std: float, positions_std: float) -> None:
    """Normal weights; those of the projections back into the residual stream, two a layer, are scaled by
    1 / sqrt(2 L)."""
    residual = std / math.sqrt(2 * model.config.n_layer)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif ".wpe." in name:
            nn.init.normal_(parameter, std=positions_std)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=residual if name.endswith("c_proj.weight") else std)


source = Source
build = CausalLm

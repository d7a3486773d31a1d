"""TransE (Bordes et al. 2013): a relation moves its head to its tail.

The distance of a triple is ||h + r - t|| of vectors that are scaled to length 1. Rows of entities are shifted by one:
row 0 is the zero vector and stands for "no entity", as in ERNIE's table (Zhang et al. 2019).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, initialization


class TransEConfig(PreTrainedConfig):
    """Sizes, and the norm of distances."""

    model_type = "transe"

    vocab_size: int = 2
    """Rows of the table of entities, "no entity" included."""
    num_relations: int = 1
    embedding_size: int = 100
    norm: int = 1
    """1 for the sum of absolute differences, 2 for the Euclidean distance."""
    pad_token_id: int | None = 0


class TransEModel(PreTrainedModel):
    """Vectors of entities and relations."""

    config_class = TransEConfig
    base_model_prefix = "transe"
    main_input_name = "heads"

    def __init__(self, config: TransEConfig) -> None:
        super().__init__(config)
        self.entities = nn.Embedding(config.vocab_size, config.embedding_size, padding_idx=0)
        self.relations = nn.Embedding(config.num_relations, config.embedding_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Glorot's bounds, as in the paper's code."""
        if isinstance(module, nn.Embedding):
            bound = (6 / sum(module.weight.shape)) ** 0.5
            initialization.uniform_(module.weight, -bound, bound)
            if module.padding_idx is not None:
                initialization.zeros_(module.weight[module.padding_idx])

    def get_input_embeddings(self) -> nn.Module:
        """The table of entities."""
        return self.entities

    def entity_vectors(self, rows: Tensor | None = None) -> Tensor:
        """Vectors (..., D) of length 1 of the given rows, or of all of them; zeros for row 0."""
        weight: Any = self.entities.weight if rows is None else self.entities(rows)
        return F.normalize(weight, dim=-1)

    def relation_vectors(self, relations: Tensor) -> Tensor:
        """Vectors (..., D) of length 1."""
        return F.normalize(self.relations(relations), dim=-1)

    def forward(self, heads: Tensor, relations: Tensor, tails: Tensor) -> Tensor:
        """Distances (...) of triples, given by rows of entities and numbers of relations, which broadcast."""
        moved = self.entity_vectors(heads) + self.relation_vectors(relations)
        return torch.linalg.vector_norm(moved - self.entity_vectors(tails), ord=self.config.norm, dim=-1)


AutoConfig.register("transe", TransEConfig)
AutoModel.register(TransEConfig, TransEModel)

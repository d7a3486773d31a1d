"""KagNet (Lin et al. 2019, arXiv 1909.02151): an encoder of text, and beside it a network that reads, for each choice
of a question, the paths of a knowledge graph between the concepts of both.

Of a choice the model is given its schema graph (:class:`SchemaGraphs`). A choice without paths is scored from the text
alone. Sizes and layers are those of the released code.

Legend: N questions, C choices of each, S choices of all of them; H width of the encoder; V nodes, E edges, Q pairs of a
concept of the question and one of the choice, P paths, M nodes of all paths; R relations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForMultipleChoice, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MultipleChoiceModelOutput

from bertillery.models.heads import log_softmax_within


@dataclass(frozen=True)
class SchemaGraphs:
    """The schema graphs of S choices, end to end; all numbers are int64."""

    concepts: Tensor
    """(V,), the concept of each node."""
    edges: Tensor
    """(2, E), the nodes that an edge is from and to."""
    pairs: Tensor
    """(3, Q): the choice, a node of a concept of the question, and one of a concept of the choice."""
    path_pairs: Tensor
    """(P,), the pair that a path connects."""
    path_lengths: Tensor
    """(P,), nodes of each path."""
    path_nodes: Tensor
    """(M,), the nodes of all paths, one path after the other."""
    path_relations: Tensor
    """(M,), the relation that leads from each node to the next: r, or r + R against its direction; 2 R where the path
    ends."""


class KagnetConfig(PreTrainedConfig):
    """Sizes; the defaults are those of the released code."""

    model_type = "kagnet"
    sub_configs: ClassVar[Any] = {"text_config": AutoConfig}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    """Of the encoder; BERT's defaults where not given."""
    num_concepts: int = 1
    num_relations: int = 17
    """R."""
    concept_size: int = 100
    """Width of the vectors of concepts and relations."""
    convolution_sizes: tuple[int, ...] | list[int] = (50, 25)
    """Widths of the graph convolutions."""
    path_size: int = 128
    """Of a path's vector."""
    pair_size: int = 128
    """Of a pair's vector."""
    longest_path: int = 4
    """Edges of a path, at most."""
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            self.text_config = AutoConfig.for_model("bert")
        elif isinstance(self.text_config, Mapping):
            self.text_config = AutoConfig.for_model(**self.text_config)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """H."""
        return self._of_text("hidden_size", 0)

    @property
    def max_position_embeddings(self) -> int:
        """The encoder's."""
        return self._of_text("max_position_embeddings", 512)

    @property
    def type_vocab_size(self) -> int:
        """The encoder's."""
        return self._of_text("type_vocab_size", 1)

    def _of_text(self, name: str, default: int) -> int:
        return getattr(self.text_config, name, default)


class Read(NamedTuple):
    """What was read of the graphs, and how much each part counted."""

    vectors: Tensor
    """(S, pair and path size), 0 where a choice has no path."""
    path_attention: Tensor
    """(P,), sums to 1 within each pair."""
    pair_attention: Tensor
    """(Q,), sums to 1 within each choice."""


class GraphReader(nn.Module):
    """Graph convolutions, an LSTM over each path, attention over the paths of a pair and over the pairs of a choice."""

    concepts: Tensor
    relations: Tensor

    def __init__(self, config: KagnetConfig) -> None:
        super().__init__()
        width, sizes = config.concept_size, config.convolution_sizes
        node = width + sizes[-1]
        # Tables of a knowledge graph embedding are not trained further: buffers, so that no optimizer sees them.
        self.register_buffer("concepts", torch.zeros(config.num_concepts, width))
        self.register_buffer("relations", torch.zeros(2 * config.num_relations + 1, width))
        self.convolutions = nn.ModuleList(map(nn.Linear, (width, *sizes), sizes))
        self.recurrence = nn.LSTM(node + width, config.path_size, batch_first=True)
        self.pair_encoder = nn.Sequential(
            nn.Linear(2 * node + config.hidden_size, 2 * config.pair_size),
            nn.LeakyReLU(),
            nn.Linear(2 * config.pair_size, config.pair_size),
            nn.LeakyReLU(),
        )
        self.path_query = nn.Linear(config.pair_size, config.path_size)
        self.pair_query = nn.Linear(config.hidden_size, config.pair_size)
        self.longest = config.longest_path + 1

    def forward(self, statements: Tensor, graphs: SchemaGraphs) -> Read:
        """Read the graphs of choices whose texts have the states ``statements`` (S, H)."""
        nodes = self.nodes(graphs)
        choice, question, answer = graphs.pairs
        pairs = self.pair_encoder(torch.cat([nodes[question], nodes[answer], statements[choice]], 1))
        paths, owner = self.paths(nodes, graphs), graphs.path_pairs
        matches = (paths * self.path_query(pairs)[owner]).sum(1)
        path_attention = log_softmax_within(matches, owner, len(pairs)).exp()
        evidence = paths.new_zeros(len(pairs), paths.shape[1]).index_add(0, owner, path_attention[:, None] * paths)
        matches = (pairs * self.pair_query(statements)[choice]).sum(1)
        pair_attention = log_softmax_within(matches, choice, len(statements)).exp()
        weighted = pair_attention[:, None] * torch.cat([pairs, evidence], 1)
        vectors = weighted.new_zeros(len(statements), weighted.shape[1]).index_add(0, choice, weighted)
        return Read(vectors, path_attention, pair_attention)

    def nodes(self, graphs: SchemaGraphs) -> Tensor:
        """States (V, concept size + last convolution): a concept's vector, and what its neighbours make of it. A node
        takes the sum of the states at the other ends of its edges, and not its own."""
        vectors = states = self.concepts[graphs.concepts]
        source, target = graphs.edges
        for layer in self.convolutions:
            states = F.relu(layer(torch.zeros_like(states).index_add(0, target, states[source])))
        return torch.cat([vectors, states], 1)

    def paths(self, nodes: Tensor, graphs: SchemaGraphs) -> Tensor:
        """The LSTM's state (P, path size) at the last node of each path, whatever the length of others."""
        lengths, number = graphs.path_lengths, len(graphs.path_lengths)
        owner = torch.arange(number, device=nodes.device).repeat_interleave(lengths, output_size=len(graphs.path_nodes))
        place = torch.arange(len(owner), device=nodes.device) - (lengths.cumsum(0) - lengths)[owner]
        steps = torch.cat([nodes[graphs.path_nodes], self.relations[graphs.path_relations]], 1)
        table = steps.new_zeros(max(1, number), self.longest, steps.shape[1])  # an LSTM of nothing is an error
        states, _ = self.recurrence(table.index_put((owner, place), steps))
        return states[torch.arange(number, device=nodes.device), lengths - 1]


class Scored(NamedTuple):
    """Scores of choices, and what they are made from."""

    logits: Tensor
    """(S,)."""
    read: Read | None
    """None without graphs."""


class KagnetForMultipleChoice(PreTrainedModel):
    """An encoder, whose first state stands for a text, a reader of graphs, and a linear score of both."""

    config_class = KagnetConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: KagnetConfig) -> None:
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.text_config)
        self.graph = GraphReader(config)
        self.classifier = nn.Linear(config.pair_size + config.path_size + config.hidden_size, 1)
        self.post_init()

    def draw(self, weight: Tensor) -> Tensor:
        """Draw a parameter of the head in place: matrices as the released code does, biases 0."""
        return nn.init.xavier_normal_(weight) if weight.ndim > 1 else nn.init.zeros_(weight)

    def score(self, statements: Tensor, graphs: SchemaGraphs | None) -> Scored:
        """Score choices by the states (S, H) of their texts' first tokens, and their graphs, in float32."""
        with torch.autocast(statements.device.type, enabled=False):
            statements = statements.float()
            read = None if graphs is None else self.graph(statements, graphs)
            width = self.config.pair_size + self.config.path_size
            vectors = statements.new_zeros(len(statements), width) if read is None else read.vectors
            return Scored(self.classifier(torch.cat([vectors, statements], 1))[:, 0], read)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        graphs: SchemaGraphs | None = None,
        labels: Tensor | None = None,
    ) -> MultipleChoiceModelOutput:
        """Logits (N, C) of padded texts (N, C, tokens), as stock models of multiple choice; ``graphs`` are those of all
        choices, question by question. Without them the texts alone are scored."""
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {name: value.flatten(0, 1) for name, value in given.items() if value is not None}
        states = self.encoder(input_ids.flatten(0, 1), **inputs).last_hidden_state[:, 0]
        logits = self.score(states, graphs).logits.view(input_ids.shape[:2])
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=logits)  # pyright: ignore[reportArgumentType]


class KagnetOver:
    """Opens an encoder, as an Auto class does, and puts it under a KagNet whose head is fresh."""

    def __init__(self, concepts: np.ndarray, relations: np.ndarray, *, longest_path: int = 4) -> None:
        """``concepts`` (number, width) and ``relations`` (R, width) are the vectors of a knowledge graph embedding, in
        which a relation against its direction is the negative one."""
        self.concepts, self.relations, self.longest_path = concepts, relations, longest_path

    def from_pretrained(self, name: str, *, config: PreTrainedConfig, **options: Any) -> Any:
        """The model, and transformers' report of its weights where ``output_loading_info`` asks for it."""
        encoder, info = AutoModel.from_pretrained(name, config=config, **{**options, "output_loading_info": True})
        model = self._around(encoder)
        info = {**info, "missing_keys": {f"encoder.{key}" for key in info["missing_keys"]}}
        info["mismatched_keys"] = {(f"encoder.{key}", *shapes) for key, *shapes in info["mismatched_keys"]}
        head = {name for name, _ in model.named_parameters() if not name.startswith("encoder.")}
        info["missing_keys"] |= head
        return (model.eval(), info) if options.get("output_loading_info") else model.eval()

    def from_config(self, config: PreTrainedConfig, **options: Any) -> KagnetForMultipleChoice:
        """All weights are drawn anew."""
        return self._around(AutoModel.from_config(config, **options))

    def _around(self, encoder: PreTrainedModel) -> KagnetForMultipleChoice:
        number, width = self.concepts.shape
        encoder.config._name_or_path = ""  # a place of this machine, which no export names
        attention: Any = {"attn_implementation": encoder.config._attn_implementation}  # else it is replaced
        config = KagnetConfig(
            text_config=encoder.config,
            num_concepts=number,
            num_relations=len(self.relations),
            concept_size=width,
            longest_path=self.longest_path,
            **attention,
        )
        model = KagnetForMultipleChoice(config)
        model.encoder = encoder
        if getattr(encoder, "pooler", None) is not None:  # no part of this model, but of the stock encoder in it
            encoder.pooler.requires_grad_(False)
        with torch.no_grad():
            known = torch.from_numpy(np.array(self.relations, np.float32))
            model.graph.concepts.copy_(torch.from_numpy(np.array(self.concepts, np.float32)))
            model.graph.relations[: 2 * len(known)] = torch.cat([known, -known])
        return model


AutoConfig.register("kagnet", KagnetConfig)
AutoModelForMultipleChoice.register(KagnetConfig, KagnetForMultipleChoice)

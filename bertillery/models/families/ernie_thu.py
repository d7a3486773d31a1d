"""ERNIE with informative entities (Zhang et al. 2019, arXiv 1905.07129); Baidu's is transformers' ``ernie``.

The first layers are BERT's. From the middle on, tokens that a mention links to an entity carry the entity's vector
beside their own state: a ``mix`` layer fuses the vectors of a fixed table into the text, a ``norm`` layer lets the
entities attend to each other first. Legend: T tokens, R tokens with an entity ([CLS] counts as one, whose vector is
zero), H width of the text, D of the entities.

Weights have BERT's names, so a checkpoint of BERT is one of this model without its entities. Without ``entity_ids``
the entities' part is left out; the bias with which they are projected stays, and is 0 in such a checkpoint.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    initialization,
)
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.bert.modeling_bert import BertAttention, BertLayer, BertPredictionHeadTransform

from bertillery.config.section import ConfigError
from bertillery.engine import batch
from bertillery.engine.layout import PackingLayout
from bertillery.models.encoders import Family

LayerType = Literal["sim", "mix", "norm"]
TABLE = "entities.safetensors"
"""The file with the entities' vectors, beside the weights."""
NAMES = "entities.json"
"""Their names, a list, from row 1 on."""


def default_layers(number: int) -> list[str]:
    """The types of so many layers: of 12, five of BERT, one ``mix`` and six ``norm``, as the original has them."""
    fused = number - number // 2
    return ["sim"] * (number - fused - 1) + ["mix"] * (number > 1) + ["norm"] * fused


class ErnieThuConfig(BertConfig):
    """BERT's sizes, and those of the entities. Raises ``ConfigError`` for layers of unknown types."""

    model_type = "ernie_thu"
    family: ClassVar[Family] = Family(beside=batch.Entities)

    entity_size: int = 100
    """D."""
    entity_heads: int = 4
    num_entities: int = 1
    """Rows of the table; row 0 is zero and stands for none."""
    fusion: list[str] | None = None
    """The type of each layer, ``sim``, ``mix`` or ``norm``; by default those of :func:`default_layers`."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.fusion = [*default_layers(self.num_hidden_layers)] if self.fusion is None else self.fusion
        try:
            TypeAdapter(list[LayerType]).validate_python(self.fusion)
        except ValidationError:
            raise ConfigError(f"fusion: given {self.fusion}; a layer is sim, mix or norm") from None
        if len(self.fusion) != self.num_hidden_layers:
            raise ConfigError(
                f"fusion: {len(self.fusion)} types for {self.num_hidden_layers} layers; give one for each"
            )
        if self.entity_size % self.entity_heads:
            raise ConfigError(
                f"entity_size {self.entity_size} is not a multiple of entity_heads {self.entity_heads}; change one"
            )


class Entities:
    """The states of the entities of a batch, and where they lie.

    Packed, they are the R rows ``rows`` of the flat batch alone. Padded (N, S), every position has a state, as in the
    original, and ``present`` (N, S) says which count.
    """

    def __init__(
        self,
        states: Tensor,
        *,
        rows: Tensor | None = None,
        layout: PackingLayout | None = None,
        present: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.states, self.rows, self.present = states, rows, present
        self.attention = {"attention_mask": None, "layout": layout} if rows is not None else {"attention_mask": mask}

    def kept(self, states: Tensor) -> Tensor:
        """States with zeros where there is no entity."""
        return states if self.present is None else states * self.present[..., None]

    def added(self, text: Tensor, projected: Tensor) -> Tensor:
        """``text`` with the ``projected`` entities added where they lie."""
        return text + projected if self.rows is None else text.index_add(1, self.rows, projected.to(text.dtype))

    def of(self, text: Tensor) -> Tensor:
        """The states of ``text`` where entities lie."""
        return text if self.rows is None else text.index_select(1, self.rows)


class FusedIntermediate(nn.Module):
    """The first half of the feed-forward layer, of text and entities together."""

    def __init__(self, config: ErnieThuConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dense_entities = nn.Linear(config.entity_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, text: Tensor, entities: Entities | None, states: Tensor | None) -> Tensor:
        """(N, T, I). The entities' bias is added where none is, too, as in the original."""
        inner = self.dense(text) + self.dense_entities.bias
        if entities is not None and states is not None:
            inner = entities.added(inner, nn.functional.linear(states, self.dense_entities.weight))
        return self.activation(inner)


class FusedOutput(nn.Module):
    """The second half, back to both widths."""

    def __init__(self, config: ErnieThuConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dense_entities = nn.Linear(config.intermediate_size, config.entity_size)
        self.LayerNorm_entities = nn.LayerNorm(config.entity_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, inner: Tensor, text: Tensor) -> Tensor:
        """New states of the text."""
        return self.LayerNorm(self.dropout(self.dense(inner)) + text)

    def both(self, inner: Tensor, text: Tensor, of_entities: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """New states of the text and of the entities, from ``inner`` of all tokens and of those with entities."""
        back = self.dropout(self.dense_entities(of_entities))
        return self(inner, text), self.LayerNorm_entities(back + states)


class FusedLayer(nn.Module):
    """A ``mix`` or ``norm`` layer."""

    def __init__(self, config: ErnieThuConfig, type_: str, number: int) -> None:
        super().__init__()
        self.attention = BertAttention(config, layer_idx=number)
        if type_ == "norm":
            narrow = copy.deepcopy(config)
            narrow.hidden_size, narrow.num_attention_heads = config.entity_size, config.entity_heads
            self.attention_entities = BertAttention(narrow, layer_idx=number)
            own: Any = self.attention_entities.self
            own.config = config  # which says how attention is computed
        self.intermediate = FusedIntermediate(config)
        self.output = FusedOutput(config)
        self.is_last = number == config.num_hidden_layers - 1
        if self.is_last:  # nobody reads the entities behind it
            self.output.dense_entities.requires_grad_(False)
            self.output.LayerNorm_entities.requires_grad_(False)

    def forward(self, hidden: Tensor, mask: Any, entities: Entities | None, **kwargs: Any) -> Tensor:
        """New states of the text; those of the ``entities`` are replaced."""
        text, _ = self.attention(hidden, mask, **kwargs)
        states = None if entities is None else entities.states
        if entities is not None and hasattr(self, "attention_entities"):
            states, _ = self.attention_entities(states, **entities.attention)
        if entities is not None and states is not None:
            states = entities.kept(states)
        inner = self.intermediate(text, entities, states)
        if entities is None or states is None or self.is_last:
            return self.output(inner, text)
        hidden, entities.states = self.output.both(inner, text, entities.of(inner), states)
        return hidden


class ErnieThuEncoder(nn.Module):
    """The layers."""

    def __init__(self, config: ErnieThuConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            BertLayer(config, layer_idx=number) if type_ == "sim" else FusedLayer(config, type_, number)
            for number, type_ in enumerate(config.fusion or ())
        )

    def forward(self, hidden: Tensor, mask: Any, entities: Entities | None, **kwargs: Any) -> list[Tensor]:
        """The states that enter the first layer, and those that leave each layer."""
        states = [hidden]
        for layer in self.layer:
            if isinstance(layer, FusedLayer):
                states.append(layer(states[-1], mask, entities, **kwargs))
            else:
                states.append(layer(states[-1], mask, **kwargs))
        return states


class _WithTable:
    """Reads and writes the table of entities beside the weights; it is none of them."""

    config_class = ErnieThuConfig

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """The stock method; a directory's table is read, too."""
        found = super().from_pretrained(name, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        model = found[0] if isinstance(found, tuple) else found
        folder = Path(name, kwargs.get("subfolder") or "")
        if (folder / TABLE).is_file():
            names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
            model.base_model.set_table(load_file(folder / TABLE)["vectors"], names)
        return found

    def save_pretrained(self, folder: Any, *args: Any, **kwargs: Any) -> None:
        """The stock method, and the table."""
        super().save_pretrained(folder, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        base: Any = self.base_model  # pyright: ignore[reportAttributeAccessIssue]
        if len(base.table) > 1:
            save_file({"vectors": base.table.detach().cpu().contiguous()}, Path(folder, TABLE))
            Path(folder, NAMES).write_text(json.dumps(base.names, ensure_ascii=False), encoding="utf-8")


class ErnieThuModel(_WithTable, BertModel):
    """The encoder. Its table of entities is fixed: no parameter, and in a file of its own."""

    def __init__(self, config: ErnieThuConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        self.encoder = ErnieThuEncoder(config)
        self.register_buffer("table", torch.zeros(config.num_entities, config.entity_size), persistent=False)
        self.names: list[str] = []
        """Of the entities, from row 1 on."""
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ErnieThuModel):
            initialization.zeros_(module.table)

    def leave_out_entities(self) -> None:
        """Train nothing of what reads entities: for text alone."""
        for name, parameter in self.encoder.named_parameters():
            if "_entities" in name:
                parameter.requires_grad_(False)

    def set_table(self, vectors: Tensor, names: list[str]) -> None:
        """Use these vectors (rows, D), whose row 0 is none; ``ConfigError`` for another number or width."""
        if vectors.shape != self.table.shape or len(names) != len(vectors) - 1:
            raise ConfigError(
                f"the table of entities has {tuple(vectors.shape)} and {len(names):,} names, and this model is for "
                f"{tuple(self.table.shape)}; give the table that it was trained with"
            )
        self.table = vectors.to(self.table)
        self.names = names

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        entity_ids: Tensor | None = None,
        entity_rows: Tensor | None = None,
        entity_layout: PackingLayout | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """States (N, T, H).

        ``entity_ids`` are rows of the table, 0 for none: (N, T) of a padded batch; of a packed one (1, R) for the
        flat rows ``entity_rows`` (R,), whose own sequences ``entity_layout`` describes.
        """
        hidden = self.embeddings(
            input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids, inputs_embeds=inputs_embeds
        )
        kwargs.pop("return_dict", None)
        mask = None
        if "layout" not in kwargs:
            mask = create_bidirectional_mask(self.config, hidden, attention_mask)
        entities = None if entity_ids is None else self._entities(entity_ids, entity_rows, entity_layout, hidden)
        states = self.encoder(hidden, mask, entities, **kwargs)
        pooled = None if self.pooler is None else self.pooler(states[-1])
        return BaseModelOutputWithPooling(
            last_hidden_state=states[-1],
            pooler_output=pooled,
            hidden_states=tuple(states) if output_hidden_states else None,
        )

    def _entities(self, ids: Tensor, rows: Tensor | None, layout: PackingLayout | None, hidden: Tensor) -> Entities:
        vectors = self.table[ids].to(hidden.dtype)
        if rows is not None:
            return Entities(vectors, rows=rows, layout=layout)
        present = ids > 0
        present[:, 0] = True  # [CLS]
        mask = create_bidirectional_mask(self.config, hidden, present.long())
        return Entities(vectors, present=present.to(hidden.dtype), mask=mask)


class ErnieThuForPreTraining(_WithTable, BertForPreTraining):
    """MLM, next-sentence prediction, and the head that names the entity of a token."""

    added_parts = ("_entities",)
    """In the names of parameters that a checkpoint of BERT lacks."""

    def __init__(self, config: ErnieThuConfig) -> None:
        super().__init__(config)
        self.bert = ErnieThuModel(config)
        narrow = copy.deepcopy(config)
        narrow.hidden_size = config.entity_size
        self.entity_transform = BertPredictionHeadTransform(narrow)
        self.entity_transform.dense = nn.Linear(config.hidden_size, config.entity_size)
        self.post_init()

    def entity_logits(self, states: Tensor, candidates: Tensor) -> Tensor:
        """Logits (M, C), float32, of states (M, H) for rows ``candidates`` (M, C) of the table; -inf where they are
        negative (no candidate)."""
        wanted = self.entity_transform(states).float()
        logits = torch.einsum("md,mcd->mc", wanted, self.bert.table[candidates.clamp(min=0)].float())
        return logits.masked_fill(candidates < 0, -torch.inf)


class _Head(_WithTable):
    """A stock model with a head, on our encoder."""

    def __init__(self, config: ErnieThuConfig) -> None:
        super().__init__(config)  # pyright: ignore[reportCallIssue]
        own: Any = self
        own.bert = ErnieThuModel(config, add_pooling_layer=own.bert.pooler is not None)
        own.post_init()


class ErnieThuForMaskedLM(_Head, BertForMaskedLM):
    """With the MLM head alone."""


class ErnieThuForSequenceClassification(_Head, BertForSequenceClassification):
    """A class for a text."""


class ErnieThuForTokenClassification(_Head, BertForTokenClassification):
    """A class for each token."""


class ErnieThuForMultipleChoice(_Head, BertForMultipleChoice):
    """A score for each choice."""


class ErnieThuForQuestionAnswering(_Head, BertForQuestionAnswering):
    """Where an answer begins and ends."""


AutoConfig.register("ernie_thu", ErnieThuConfig)
AutoModel.register(ErnieThuConfig, ErnieThuModel)
AutoModelForPreTraining.register(ErnieThuConfig, ErnieThuForPreTraining)
AutoModelForMaskedLM.register(ErnieThuConfig, ErnieThuForMaskedLM)
AutoModelForSequenceClassification.register(ErnieThuConfig, ErnieThuForSequenceClassification)
AutoModelForTokenClassification.register(ErnieThuConfig, ErnieThuForTokenClassification)
AutoModelForMultipleChoice.register(ErnieThuConfig, ErnieThuForMultipleChoice)
AutoModelForQuestionAnswering.register(ErnieThuConfig, ErnieThuForQuestionAnswering)
